import itertools
from collections import Counter

import numpy as np
import pytest

from lm_eval_exl2.compare.statistics import (
    Bounds,
    PairedCounts,
    StatisticsError,
    bound_power,
    certification_power,
    clopper_pearson_interval,
    documents_needed,
    documents_to_settle,
    drop_bounds,
    holm,
    wilson_interval,
)


def test_wilsons_interval_is_that_of_statsmodels():
    # statsmodels 0.15.0: proportion_confint(60, 100, .05, "wilson"), (0, 20, .05, "wilson")
    assert np.allclose(wilson_interval(60, 100), (0.5020025867910618, 0.6905987135675411))
    assert np.allclose(wilson_interval(0, 20), (0, 0.1611251580528194))
    assert wilson_interval(0, 20).lower == 0
    assert wilson_interval(20, 20).upper == 1


def test_the_exact_interval_is_that_of_statsmodels():
    # statsmodels 0.15.0: proportion_confint(3, 1319, .05, "beta"), (0, 20, .05, "beta")
    found = clopper_pearson_interval(3, 1319)
    assert np.allclose(found, (0.00046929216964512673, 0.006632391267459879), rtol=1e-9, atol=0)
    assert np.allclose(clopper_pearson_interval(0, 20), (0, 0.16843347098308534))
    assert clopper_pearson_interval(20, 20).upper == 1


def test_holm_adjusts_like_statsmodels():
    # statsmodels 0.15.0: multipletests([.01, .04, .03, .005, .5], method="holm")[1]
    assert np.allclose(holm([0.01, 0.04, 0.03, 0.005, 0.5]), [0.04, 0.09, 0.09, 0.025, 0.5])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_power_is_the_sum_over_all_outcomes_of_every_document():
    documents, flip_rate, margin = 6, 0.3, 0.5
    chance = {0: 1 - flip_rate, 1: flip_rate / 2, -1: flip_rate / 2}
    probability = Counter()
    for outcome in itertools.product(chance, repeat=documents):
        key = outcome.count(1), outcome.count(-1)
        probability[key] += np.prod([chance[one] for one in outcome])
    expected = sum(
        share
        for (lost, gained), share in probability.items()
        if drop_bounds(PairedCounts(documents - lost - gained, lost, gained, 0)).upper < margin
    )
    assert 0.05 < expected < 0.95
    found = certification_power(documents, flip_rate, margin)
    assert found == pytest.approx(expected, abs=1e-8)


def test_exact_and_normal_power_agree_where_one_takes_over_from_the_other():
    exact = certification_power(33_000, 0.06, 0.0025)
    assert exact == pytest.approx(bound_power(0.0025, np.sqrt(0.06 / 33_000)), abs=0.002)
    normal = certification_power(33_400, 0.06, 0.0025)
    assert normal == bound_power(0.0025, np.sqrt(0.06 / 33_400))


def test_identical_runs_are_certified_where_the_zero_event_bound_allows_and_not_before():
    assert certification_power(98, 0.0, 0.03) == 0
    assert certification_power(99, 0.0, 0.03) == 1
    assert documents_needed(0.0, 0.03) == 99


def test_the_documents_needed_reach_the_power_asked_for():
    needed = documents_needed(0.06, 0.02, power=0.8)
    assert certification_power(needed, 0.06, 0.02) >= 0.8
    assert certification_power(int(0.95 * needed), 0.06, 0.02) < 0.8
    # Normal: (1.645 + .842)^2 x .06 / .02^2 = 928.
    assert needed == pytest.approx(928, rel=0.06)


def test_four_times_the_documents_halve_the_distance_to_a_bound():
    bounds = Bounds(-0.024, 0.04)
    assert documents_to_settle(100, 0.008, bounds, 0.024) == pytest.approx(400)
    assert documents_to_settle(100, 0.008, bounds, -0.008) == pytest.approx(400)
    assert documents_to_settle(100, 0.008, bounds, 0.2) == 100
    assert documents_to_settle(100, 0.008, bounds, 0.008) == np.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson_interval(3, 2),
        lambda: clopper_pearson_interval(0, 0),
        lambda: wilson_interval(1, 2, 95),
        lambda: holm([1.2]),
        lambda: certification_power(0, 0.1, 0.1),
        lambda: certification_power(10, 1.1, 0.1),
        lambda: documents_needed(0.1, 0.1, power=1),
        lambda: bound_power(0.1, 0),
    ],
)
def test_impossible_questions_are_refused(call):
    with pytest.raises(StatisticsError):
        call()
