import numpy as np
import pytest
from scipy import stats

from lm_eval_exl2.compare.statistics import (
    StatisticsError,
    mean_drop,
    paired_moments,
    perplexity_ratio,
)

BEFORE = np.array([0.6, 0.7, 0.5, 0.9, 0.4, 0.3, 0.8, 0.75])
AFTER = np.array([0.58, 0.72, 0.45, 0.9, 0.38, 0.31, 0.74, 0.7])


def test_bounds_of_a_mean_are_those_of_the_paired_t_test():
    found = mean_drop(BEFORE, AFTER)
    # statsmodels 0.15.0: DescrStatsW(BEFORE - AFTER).tconfint_mean(.1)
    assert np.allclose(found.bounds, (0.0011749047674770897, 0.04132509523252294))
    assert found.drop == pytest.approx((BEFORE - AFTER).mean())
    assert found.method == "paired t"
    unpaired = stats.ttest_ind(BEFORE, AFTER).confidence_interval(0.9)
    assert np.ptp(found.bounds) < 0.2 * (unpaired.high - unpaired.low)


def test_a_relative_drop_at_its_bound_is_just_rejected_by_the_linear_contrast():
    low, high = mean_drop(BEFORE, AFTER, relative=True).bounds
    above = stats.ttest_1samp(AFTER - (1 - high) * BEFORE, 0, alternative="greater")
    below = stats.ttest_1samp(AFTER - (1 - low) * BEFORE, 0, alternative="less")
    assert (above.pvalue, below.pvalue) == pytest.approx((0.05, 0.05))


def test_swapped_runs_negate_and_order_does_not_matter():
    one, other = mean_drop(BEFORE, AFTER), mean_drop(AFTER[::-1], BEFORE[::-1])
    assert np.allclose(one.bounds, np.negative(other.bounds[::-1]))


DROPS = np.array([0.1, 0.2, 0.15, -0.05, 0.3, 0.0, 0.12, 0.4, -0.2, 0.05])
PASSAGES = ["a", "a", "a", "b", "b", "c", "c", "c", "d", "d"]


def test_clustered_variance_and_degrees_of_freedom_are_those_of_statsmodels():
    # statsmodels 0.15.0: OLS(DROPS, ones).fit(cov_type="cluster", cov_kwds={"groups": PASSAGES},
    # use_t=True): bse and conf_int(.1), whose distribution is t with 3 degrees of freedom.
    found = paired_moments(DROPS, np.zeros(10), clusters=PASSAGES)
    assert np.sqrt(found.drop_variance) == pytest.approx(0.05033673, abs=5e-9)
    assert found.drop + found.deviation(0.05) == pytest.approx(0.22546063, abs=5e-9)
    assert found.units == 4


def test_documents_that_repeat_within_a_passage_count_once():
    drops = np.random.default_rng(1).normal(size=60)
    five = np.repeat(drops, 5)
    found = mean_drop(five, np.zeros(300), clusters=np.repeat(np.arange(60), 5))
    assert found.bounds == pytest.approx(mean_drop(drops, np.zeros(60)).bounds)
    assert found.design_effect == pytest.approx(5 * (60 / 59) / (300 / 299))


def test_clusters_that_happen_to_disagree_do_not_narrow_the_bounds():
    drops = np.tile([0.1, -0.1, 0.2, -0.2, 0.0], 50) + np.random.default_rng(2).normal(0, 0.01, 250)
    plain = mean_drop(drops, np.zeros(250))
    found = mean_drop(drops, np.zeros(250), clusters=np.repeat(np.arange(50), 5))
    assert found.design_effect < 0.1
    assert found.bounds == plain.bounds


def test_few_clusters_and_skewed_values_bring_in_the_bootstrap():
    generator = np.random.default_rng(3)
    even, skewed = generator.normal(size=200), generator.gamma(1.0, size=200)
    zeros, clusters = np.zeros(200), np.repeat(np.arange(40), 5)
    assert mean_drop(even, zeros).method == "paired t"
    assert mean_drop(skewed, zeros).method == "paired t and BCa"
    few = np.append(np.linspace(0, 0.1, 49), 5.0)
    assert mean_drop(few, zeros[:50]).method.endswith("(too skewed for so few documents)")
    assert mean_drop(even, zeros, clusters=clusters).method.startswith("paired t, over 40")
    assert mean_drop(even, zeros, clusters=clusters % 39).method.startswith(
        "paired t and BCa, over 39"
    )


def test_a_skewed_upper_bound_is_the_bias_corrected_accelerated_one():
    drops = np.random.default_rng(4).lognormal(0, 1.2, 80)
    found = mean_drop(drops, np.zeros(80))
    means = np.sort(np.random.default_rng(5).choice(drops, (20_000, 80)).mean(axis=1))
    bias = stats.norm.ppf((means < drops.mean()).mean())
    left_out = drops.mean() - (drops.sum() - drops) / 79
    speed = (left_out**3).sum() / (6 * (left_out**2).sum() ** 1.5)
    z = bias + stats.norm.isf(0.05)
    expected = np.quantile(means, stats.norm.cdf(bias + z / (1 - speed * z)))
    assert found.bounds.upper == pytest.approx(expected, rel=0.02)
    assert found.bounds.upper > drops.mean() + stats.t.isf(0.05, 79) * stats.sem(drops)
    # The same numbers give the same bound: the seed is fixed.
    assert mean_drop(drops, np.zeros(80)) == found


def test_identical_values_bound_what_may_differ_unseen_and_nothing_if_that_has_no_limit():
    assert mean_drop(BEFORE, BEFORE, span=1.0).bounds.upper == pytest.approx(1 - 0.05 ** (1 / 8))
    assert mean_drop(BEFORE, BEFORE).bounds == (-np.inf, np.inf)
    assert mean_drop(BEFORE + 0.1, BEFORE, span=1.0).bounds.lower < 0 < 0.1
    assert mean_drop(BEFORE[:1], AFTER[:1]).bounds == (-np.inf, np.inf)
    assert mean_drop(BEFORE, BEFORE, span=1.0, relative=True).bounds.upper > 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_drop([1.0], [1.0, 2.0]),
        lambda: mean_drop([], []),
        lambda: mean_drop([1.0, np.nan], [1.0, 2.0]),
        lambda: mean_drop([1.0, 2.0], [1.0, 2.0], clusters=["a"]),
        lambda: mean_drop([0.0, 0.0], [1.0, 2.0], relative=True),
        lambda: perplexity_ratio([1.0], [1.0, 2.0], [1]),
        lambda: perplexity_ratio([1.0], [np.inf], [1]),
        lambda: perplexity_ratio([1.0], [1.0], [0]),
    ],
)
def test_numbers_that_give_no_statistic_are_refused(call):
    with pytest.raises(StatisticsError):
        call()


LOSSES = np.random.default_rng(6).normal(600, 80, (60, 1)) + np.array([0, 6])
LOSSES[:, 1] += np.random.default_rng(7).normal(0, 5, 60)


def test_a_ratio_of_perplexities_over_equal_windows_is_the_paired_t_of_their_losses():
    found = perplexity_ratio(LOSSES[:, 0], LOSSES[:, 1], np.full(60, 300), alpha=0.025)
    t = stats.ttest_rel(LOSSES[:, 1] / 300, LOSSES[:, 0] / 300).confidence_interval(0.95)
    assert found.bounds == pytest.approx((np.exp(t.low), np.exp(t.high)))
    assert found.ratio == pytest.approx(found.candidate / found.baseline)
    assert found.baseline == pytest.approx(np.exp(LOSSES[:, 0].sum() / 18000))


def test_windows_of_unequal_length_have_the_error_of_the_jackknife():
    counts = np.random.default_rng(8).integers(100, 500, 60)
    b, c = (LOSSES / 300 * counts[:, None]).T
    found = perplexity_ratio(b, c, counts)
    left = np.array(
        [(c.sum() - c[i] - b.sum() + b[i]) / (counts.sum() - counts[i]) for i in range(60)]
    )
    error = np.sqrt(59 / 60 * ((left - left.mean()) ** 2).sum())
    width = np.log(found.bounds.upper / found.ratio) / stats.t.isf(0.05, 59)
    assert width == pytest.approx(error, rel=0.05)


def test_runs_with_other_counts_are_compared_by_their_own():
    found = perplexity_ratio([10.0, 20.0], [10.0, 22.0], [5, 10], candidate_counts=[5, 11])
    assert found.ratio == pytest.approx(1.0)


def test_windows_of_one_text_bound_the_ratio_as_often_as_they_say():
    """Articles of 4 to 20 windows, each hurt by the candidate to its own degree; on average not."""
    random = np.random.default_rng(9)
    starts = np.arange(600) * 512
    inside, alone = 0, 0
    for _ in range(300):
        lengths = random.integers(4, 21, 150)
        hurt = np.repeat(random.normal(0, 3, 150), lengths)[:600]
        loss = random.normal(1500, 200, 600)
        candidate = loss + hurt + random.normal(0, 3, 600)
        shuffled = random.permutation(600)
        given = (loss[shuffled], candidate[shuffled], np.full(600, 512))
        bounds = perplexity_ratio(*given, starts=starts[shuffled], alpha=0.025).bounds
        inside += bounds.lower <= 1 <= bounds.upper
        bounds = perplexity_ratio(*given, alpha=0.025).bounds
        alone += bounds.lower <= 1 <= bounds.upper
    assert 0.9 < inside / 300 <= 1
    assert alone / 300 < 0.75


def test_identical_windows_bound_no_ratio():
    found = perplexity_ratio(LOSSES[:, 0], LOSSES[:, 0], np.full(60, 300))
    assert found.ratio == 1
    assert found.bounds == (0, np.inf)
