import numpy as np
import pytest
from scipy import stats

from lm_eval_exl2.compare.statistics import (
    PairedCounts,
    StatisticsError,
    drop_bounds,
    mcnemar,
    paired_counts,
    stratified_counts,
)


def test_each_document_is_counted_in_the_cell_it_belongs_to():
    found = paired_counts([1, 1, 1, 0, 0, 1.0], [1, 0, 0, 1, 0, True])
    assert found == PairedCounts(both_right=2, lost=2, gained=1, both_wrong=1)
    assert (found.documents, found.discordant) == (6, 3)
    assert (found.baseline, found.candidate) == (4 / 6, 3 / 6)
    assert found.drop == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    "pair", [([1, 0], [1]), ([], []), ([1, 0.5], [1, 1]), ([1, np.nan], [1, 1])]
)
def test_unpaired_empty_and_graded_scores_are_refused(pair):
    with pytest.raises(StatisticsError):
        paired_counts(*pair)


def test_mcnemar_is_the_binomial_test_of_the_flips():
    # statsmodels 0.15.0: mcnemar([[0, 14], [5, 0]], exact=True).pvalue
    found = mcnemar(PairedCounts(50, 14, 5, 31))
    assert found.exact == pytest.approx(0.063568115234375, abs=1e-15)
    # Half of what was observed counts: twice (P(X < 5) + P(X = 5) / 2).
    by_hand = 2 * sum(stats.binom.pmf(range(5), 19, 0.5)) + stats.binom.pmf(5, 19, 0.5)
    assert found.mid_p == pytest.approx(by_hand)
    assert mcnemar(PairedCounts(50, 5, 14, 31)) == found


def test_as_many_gained_as_lost_or_no_flip_at_all_is_no_evidence():
    assert mcnemar(PairedCounts(9, 4, 4, 9))[:2] == (1.0, 1.0)
    assert mcnemar(PairedCounts(9, 0, 0, 9)) == (1.0, 1.0, 1.0)


def test_fewer_than_six_flips_cannot_reach_five_percent():
    assert mcnemar(PairedCounts(10, 5, 0, 10)).exact == 0.0625
    assert all(mcnemar(PairedCounts(10, n, 0, 10)).smallest > 0.05 for n in range(6))
    assert mcnemar(PairedCounts(10, 3, 3, 10)).smallest == 2 / 64


def test_mcnemars_test_needs_whole_documents():
    with pytest.raises(StatisticsError, match="whole documents"):
        mcnemar(PairedCounts(10, 1.5, 0, 10))


STRATA = [PairedCounts(60, 10, 4, 26), PairedCounts(20, 2, 9, 9), PairedCounts(100, 30, 0, 70)]


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [5.0, 1.0, 2.0]])
def test_a_group_has_the_weighted_scores_and_the_stratified_variance(weights):
    group = stratified_counts(STRATA, weights)
    share = np.array([s.documents for s in STRATA] if weights is None else weights, float)
    share /= share.sum()
    assert group.baseline == pytest.approx(share @ [s.baseline for s in STRATA])
    assert group.drop == pytest.approx(share @ [s.drop for s in STRATA])
    expected = 0.0
    for part, counts in zip(share, STRATA, strict=True):
        drops = np.repeat([0, 1, -1, 0], counts)
        expected += part**2 * np.var(drops, ddof=1) / len(drops)
    rate = group.discordant / group.documents
    assert (rate - group.drop**2) / group.documents == pytest.approx(expected)


def test_strata_that_differ_make_a_group_more_precise_than_its_documents_pooled():
    group, pooled = stratified_counts(STRATA), PairedCounts(*np.sum(STRATA, axis=0))
    assert group.drop == pytest.approx(pooled.drop)
    assert group.documents > pooled.documents
    assert drop_bounds(group).upper < drop_bounds(pooled).upper


def test_a_group_without_flips_has_the_zero_event_bound_of_its_heaviest_documents():
    quiet = [PairedCounts(50, 0, 0, 50), PairedCounts(5, 0, 0, 5)]
    assert drop_bounds(stratified_counts(quiet)).upper == pytest.approx(1 - 0.05 ** (1 / 110))
    # Half the weight on ten documents: as if there were twenty.
    assert drop_bounds(stratified_counts(quiet, [1, 1])).upper == pytest.approx(
        1 - 0.05 ** (1 / 20)
    )


def test_strata_of_one_document_do_not_make_a_group_certain():
    alone = [PairedCounts(0, 1, 0, 0), *[PairedCounts(1, 0, 0, 0)] * 9]
    assert stratified_counts(alone).documents <= 10 + 1e-9


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 0], [1, 1, -1]])
def test_weights_that_do_not_fit_the_strata_are_refused(weights):
    with pytest.raises(StatisticsError, match="weights"):
        stratified_counts(STRATA, weights)
