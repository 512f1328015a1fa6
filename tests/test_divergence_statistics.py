"""Means, quantiles and intervals over windows, against numpy, scipy and hand-made cases."""

import math

import numpy as np
import pytest
from scipy import stats

from lm_eval_exl2.divergence.statistics import WindowRecord, ratio_of_sums, summarise


def window(seed, count=20, **changes):
    draw = np.random.default_rng(seed)
    values = {
        "kl": draw.exponential(0.1, count),
        "top_probability": draw.uniform(0.05, 1.0, count),
        "agreeing": draw.integers(0, 2, count - 1),
        "baseline_logprob": -draw.exponential(1.0, count - 1),
        "candidate_logprob": -draw.exponential(1.1, count - 1),
    }
    return WindowRecord(**{name: np.asarray(value) for name, value in (values | changes).items()})


def test_mean_and_interval_of_windows_of_one_size_are_those_of_a_t_test_on_window_means():
    records = [window(seed) for seed in range(8)]
    means = [record.kl.mean() for record in records]
    found = summarise(records).kl
    assert found.value == pytest.approx(np.mean(means), rel=1e-12)
    assert found.stderr == pytest.approx(stats.sem(means), rel=1e-12)
    expected = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_windows_of_different_sizes_count_by_their_tokens():
    found = ratio_of_sums([10.0, 2.0, 6.0], [4, 1, 5])
    assert found.value == 1.8
    # Residuals 10 - 7.2, 2 - 1.8, 6 - 9: sqrt(3 / 2 * (7.84 + .04 + 9)) / 10.
    assert found.stderr == pytest.approx(math.sqrt(1.5 * 16.88) / 10, rel=1e-12)
    assert found.upper - found.value == pytest.approx(4.302652729911275 * found.stderr, rel=1e-9)


def test_windows_of_one_article_have_the_error_of_their_articles():
    """Eight windows of an article diverge alike, so there are only as many values as articles."""
    articles = np.random.default_rng(5).normal(0.1, 0.02, 200)
    totals = np.repeat(articles, 8) * 512
    found = ratio_of_sums(totals.tolist(), [512] * 1600, stride=512)
    assert found.value == pytest.approx(articles.mean())
    # Falling weights miss some of it: by 8 of 33 windows they leave nine tenths of the variance.
    assert 0.85 < found.stderr / stats.sem(articles) < 1.05
    alone = ratio_of_sums(totals.tolist(), [512] * 1600)
    assert alone.stderr == pytest.approx(stats.sem(articles) / math.sqrt(8), rel=0.01)


def test_one_window_has_a_mean_and_no_interval():
    found = summarise([window(1)])
    assert found.kl.value == pytest.approx(window(1).kl.mean())
    assert math.isnan(found.kl.stderr)
    assert math.isnan(found.perplexity_ratio.upper)
    # A share of tokens has Wilson's interval all the same.
    assert 0 < found.agreement[0].lower < found.agreement[0].value < found.agreement[0].upper < 1


def test_quantiles_are_numpys_over_all_tokens():
    records = [window(seed) for seed in range(3)]
    values = np.concatenate([record.kl for record in records])
    found = summarise(records)
    expected = [np.percentile(values, share) for share in (50, 90, 99, 100, 0)]
    assert [found.median, found.p90, found.p99, found.largest, found.smallest] == expected


def test_buckets_include_their_lower_edge_and_the_last_one_includes_1():
    edges = np.array([0.1, 0.25, 0.4, 0.5, 0.75, 0.9499, 0.95, 1.0, 1.0])
    kl = np.arange(9, dtype=float)
    found = summarise([window(1, 9, kl=kl, top_probability=edges)]).buckets
    assert [(b.lower, b.upper) for b in found] == [
        *((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.95), (0.95, 1.0))
    ]
    assert [b.count for b in found] == [1, 2, 1, 2, 3]
    assert [b.mean for b in found] == [0.0, 1.5, 3.0, 4.5, 7.0]


def test_an_empty_bucket_has_no_mean():
    found = summarise([window(1, 4, top_probability=np.full(4, 0.3))]).buckets
    assert [b.count for b in found] == [0, 4, 0, 0, 0]
    assert math.isnan(found[0].mean)


def test_values_that_are_not_finite_are_counted_and_left_out():
    clean = window(1)
    kl, candidate = clean.kl.copy(), clean.candidate_logprob.copy()
    kl[3], kl[5], candidate[3] = math.nan, math.inf, math.nan
    found = summarise([clean._replace(kl=kl, candidate_logprob=candidate), window(2)])
    assert (found.positions, found.non_finite) == (40, 2)
    assert (found.targets, found.non_finite_targets) == (37, 1)
    kept = np.concatenate([np.delete(clean.kl, [3, 5]), window(2).kl])
    assert found.kl.value == pytest.approx(kept.mean(), rel=1e-12)
    assert found.largest == kept.max()
    assert sum(bucket.count for bucket in found.buckets) == 38
    same = np.concatenate([np.delete(clean.agreeing, [3, 5]), window(2).agreeing])
    assert found.agreement[0].value == pytest.approx(same.mean(), rel=1e-12)
    losses = np.concatenate([np.delete(clean.baseline_logprob, 3), window(2).baseline_logprob])
    assert found.baseline_perplexity.value == pytest.approx(math.exp(-losses.mean()), rel=1e-12)


def test_a_model_that_gives_nothing_finite_has_no_numbers_but_counts():
    nothing = np.full(20, math.nan)
    found = summarise([window(s, kl=nothing, candidate_logprob=nothing[1:]) for s in (1, 2)])
    assert (found.non_finite, found.non_finite_targets) == (40, 38)
    assert math.isnan(found.kl.value)
    assert math.isnan(found.perplexity.value)
    assert math.isnan(found.agreement[0].value)


def test_perplexities_are_those_of_all_tokens_and_their_ratio_is_paired_by_window():
    records = [window(seed) for seed in range(6)]
    losses = [-np.concatenate([r[i] for r in records]).mean() for i in (3, 4)]
    found = summarise(records)
    assert found.baseline_perplexity.value == pytest.approx(math.exp(losses[0]), rel=1e-12)
    assert found.perplexity.value == pytest.approx(math.exp(losses[1]), rel=1e-12)
    differences = [(r.baseline_logprob - r.candidate_logprob).mean() for r in records]
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    ratio = found.perplexity_ratio
    assert ratio.value == pytest.approx(math.exp(losses[1] - losses[0]), rel=1e-12)
    assert math.log(ratio.lower) == pytest.approx(expected.low, rel=1e-9)
    assert math.log(ratio.upper) == pytest.approx(expected.high, rel=1e-9)
    assert ratio.stderr == pytest.approx(ratio.value * stats.sem(differences), rel=1e-12)


def test_delta_p_is_the_change_of_probability_and_negative_where_the_candidate_is_worse():
    baseline, candidate = np.log([0.5, 0.8, 0.1]), np.log([0.4, 0.5, 0.3])
    record = window(1, 4, baseline_logprob=baseline, candidate_logprob=candidate)
    found = summarise([record, record])
    assert found.delta_p.value == pytest.approx((-0.1 - 0.3 + 0.2) / 3)
    assert found.delta_p_rms == pytest.approx(math.sqrt((0.01 + 0.09 + 0.04) / 3))


def test_a_share_without_any_exception_has_wilsons_interval_rather_than_none():
    records = [window(seed, agreeing=np.ones(19, dtype=int)) for seed in range(4)]
    (found,) = summarise(records).agreement
    wilson = stats.binomtest(76, 76).proportion_ci(0.95, method="wilson")
    assert (found.value, found.stderr) == (1.0, 0.0)
    assert (found.lower, found.upper) == (pytest.approx(wilson.low), 1.0)


def test_a_share_that_differs_between_windows_has_the_wider_interval_of_windows():
    records = [window(s, agreeing=np.full(19, s % 2)) for s in range(4)]
    (found,) = summarise(records).agreement
    assert (found.value, found.lower, found.upper) == (0.5, 0.0, 1.0)  # 3.18 * .29 either way


def test_agreement_in_order_falls_with_every_further_token():
    records = [window(1, 5, agreeing=np.array([0, 1, 3, 5]))]
    found = summarise(records, top=5).agreement
    assert [share.value for share in found] == [0.75, 0.5, 0.5, 0.25, 0.25]
