import itertools

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import xlogy

from lm_eval_exl2.compare.statistics import (
    Bounds,
    PairedCounts,
    StatisticsError,
    drop_bounds,
    drop_interval,
    equivalence_p,
    score_test,
    wider,
)

TABLES = [
    PairedCounts(60, 3, 1, 36),
    PairedCounts(600, 30, 20, 350),
    PairedCounts(0, 7, 2, 4),
    PairedCounts(20, 5, 0, 5),
    PairedCounts(20, 0, 4, 76),
]


def test_tangos_interval_is_the_one_published_for_airways_before_and_after_transplantation():
    # Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850, table of intervals.
    found = drop_interval(PairedCounts(1, 1, 7, 12))
    assert np.allclose(found, (-0.517, -0.026), atol=5e-4)


def most_likely_variance(counts, drop):
    """Maximise the trinomial likelihood numerically under lost - gained = drop."""
    same = counts.both_right + counts.both_wrong

    def loss(lost):
        gained = lost - drop
        rest = max(1 - lost - gained, 0.0)
        return -(xlogy(counts.lost, lost) + xlogy(counts.gained, gained) + xlogy(same, rest))

    low, high = max(drop, 0.0), (1 + drop) / 2
    lost = optimize.minimize_scalar(loss, bounds=(low, high), options={"xatol": 1e-12}).x
    return 2 * lost - drop - drop**2


@pytest.mark.parametrize("counts", TABLES)
@pytest.mark.parametrize("drop", [-0.3, -0.02, 0.0, 0.01, 0.4])
def test_the_absolute_score_statistic_uses_the_most_likely_variance(counts, drop):
    variance = most_likely_variance(counts, drop)
    expected = (drop - counts.drop) / np.sqrt(variance / counts.documents)
    assert score_test(counts, drop).statistic == pytest.approx(expected, rel=2e-4, abs=1e-9)


# statsmodels 0.15.0: _confint_riskratio_paired_nam([[right, lost], [gained, wrong]], alpha) gives
# the interval of baseline / candidate; a relative drop is 1 minus the inverse.
NAM = [
    (TABLES[0], 0.05, 0.9551946694601565, 1.1332411692354145),
    (TABLES[0], 0.1, 0.9721749480711943, 1.110901757403293),
    (TABLES[1], 0.1, 0.997325063853684, 1.0361006512737265),
    (TABLES[4], 0.05, 0.6414692935030017, 0.9933941175290912),
    (PairedCounts(43, 1, 0, 0), 0.05, 0.939338806001892, 1.1338859627951832),
    (PairedCounts(1, 1, 7, 12), 0.1, 0.07951749577614753, 0.7454632592584346),
]


@pytest.mark.parametrize(("counts", "alpha", "low", "high"), NAM)
def test_relative_bounds_are_those_of_the_score_interval_of_paired_ratios(counts, alpha, low, high):
    found = drop_interval(counts, 1 - alpha, relative=True)
    assert np.allclose(found, (1 - 1 / low, 1 - 1 / high), atol=1e-9)


@pytest.mark.parametrize("relative", [False, True])
def test_a_bound_is_where_its_test_changes_its_mind(relative):
    for counts in [*TABLES, PairedCounts(60, 0, 0, 40), PairedCounts(0, 1, 0, 0)]:
        bounds = drop_bounds(counts, 0.05, relative=relative)
        if bounds.upper < 1 - 1e-9:
            assert score_test(counts, bounds.upper + 1e-6, relative=relative).below < 0.05
            assert score_test(counts, bounds.upper - 1e-6, relative=relative).below > 0.05
        assert score_test(counts, bounds.lower - 1e-6, relative=relative).above < 0.05
        assert score_test(counts, bounds.lower + 1e-6, relative=relative).above > 0.05


def test_without_flips_the_bound_is_the_exact_one_of_zero_events():
    counts = PairedCounts(60, 0, 0, 40)
    # With this rate, 100 documents without a loss happen in 5 % of samples.
    assert stats.binom.pmf(0, 100, drop_bounds(counts).upper) == pytest.approx(0.05)
    assert drop_bounds(counts).lower == -drop_bounds(counts).upper
    assert stats.binom.pmf(0, 60, drop_bounds(counts, relative=True).upper) == pytest.approx(0.05)
    assert score_test(counts, 0.03).below == pytest.approx(0.97**100)
    assert score_test(counts, -0.03).above == pytest.approx(0.97**100)
    gain = drop_bounds(counts, relative=True).lower
    assert score_test(counts, gain, relative=True).above == pytest.approx(0.05)


def test_swapped_runs_negate_the_drop_and_invert_the_ratio():
    for counts in TABLES[:3]:
        one, other = drop_bounds(counts), drop_bounds(counts.swapped())
        assert np.allclose(one, (-other.upper, -other.lower), atol=1e-12)
        one, other = (drop_bounds(table, relative=True) for table in (counts, counts.swapped()))
        assert np.allclose(np.subtract(1, one), 1 / np.subtract(1, other)[::-1], rtol=1e-9)


def test_every_table_of_up_to_three_documents_has_ordered_bounds_around_its_drop():
    for cells in itertools.product(range(4), repeat=4):
        if not 1 <= sum(cells) <= 3:
            continue
        counts = PairedCounts(*cells)
        low, high = drop_bounds(counts)
        assert -1 <= low <= counts.drop + 1e-9
        assert counts.drop - 1e-9 <= high <= 1
        assert low < high
        if counts.baseline > 0:
            low, high = drop_bounds(counts, relative=True)
            assert low - 1e-9 <= counts.drop / counts.baseline <= high + 1e-9 <= 1 + 2e-9


def test_more_lost_documents_never_lower_a_bound():
    for relative in (False, True):
        bounds = [
            drop_bounds(PairedCounts(60 - lost, lost, 2, 38), relative=relative)
            for lost in range(1, 60, 6)
        ]
        assert all(np.diff([bound.upper for bound in bounds]) > 0)
        assert all(np.diff([bound.lower for bound in bounds]) > 0)


def test_pairs_are_not_two_samples():
    counts = PairedCounts(600, 30, 20, 350)
    paired = np.ptp(drop_interval(counts)) / 2 / 1.96
    assert paired == pytest.approx(np.sqrt(0.05 / 1000), rel=0.05)
    assert paired < 0.4 * np.sqrt(2 * 0.62 * 0.38 / 1000)


def test_equivalence_holds_exactly_where_the_90_percent_interval_lies_within_the_margin():
    counts = TABLES[1]
    low, high = drop_interval(counts, 0.9)
    edge = max(-low, high)
    assert equivalence_p(counts, edge + 1e-6) < 0.05 < equivalence_p(counts, edge - 1e-6)
    assert equivalence_p(counts, edge) >= score_test(counts, edge).below - 1e-12


def test_on_each_side_the_worse_of_several_bounds_counts():
    assert wider(Bounds(-1.0, 2.0), Bounds(-3.0, 1.0)) == Bounds(-3.0, 2.0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: drop_bounds(PairedCounts(0, 0, 0, 0)), "at least one document"),
        (lambda: drop_bounds(PairedCounts(5, -1, 0, 0)), "at least one document"),
        (lambda: drop_bounds(PairedCounts(0, 0, 3, 5), relative=True), "no relative drop"),
        (lambda: drop_bounds(TABLES[0], 0.95), "between 0 and 0.5"),
        (lambda: score_test(TABLES[0], 2), "fraction"),
        (lambda: equivalence_p(TABLES[0], 0), "positive"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(call, text):
    with pytest.raises(StatisticsError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
