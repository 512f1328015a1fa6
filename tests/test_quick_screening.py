"""What n documents can rule out: against exact probabilities, not against the same formulas."""

from math import comb

import pytest

from lm_eval_exl2.tasks.quick.screening import (
    drop_with_flips,
    drop_without_flips,
    per_cent,
    reach,
    statement,
)


@pytest.mark.parametrize("documents", [1, 24, 200, 400, 14042])
def test_with_a_larger_drop_an_unchanged_run_has_a_chance_below_5_per_cent(documents):
    bound = drop_without_flips(documents)
    # A drop of d needs at least the share d of answers to turn wrong.
    assert (1 - bound) ** documents == pytest.approx(0.05)
    assert (1 - bound * 1.01) ** documents < 0.05


def test_the_rule_of_three():
    assert drop_without_flips(300) == pytest.approx(3 / 300, rel=0.01)


def chances(documents, flips, drop):
    """Chance of each number of answers lost, net, if `flips` change and the score falls by `drop`.

    By enumeration: how many flip is binomial, and of those how many turn wrong is binomial, too.
    """
    found = {}
    for changed in range(int(documents * flips * 3) + 1):
        some = comb(documents, changed) * flips**changed * (1 - flips) ** (documents - changed)
        wrong = (1 + drop / flips) / 2
        for lost in range(changed + 1):
            chance = some * comb(changed, lost) * wrong**lost * (1 - wrong) ** (changed - lost)
            net = 2 * lost - changed
            found[net] = found.get(net, 0.0) + chance
    return found


def test_equal_scores_are_unlikely_under_the_drop_that_they_rule_out():
    chance = chances(400, 0.06, drop_with_flips(400))
    no_worse = sum(share for net, share in chance.items() if net < 0) + chance[0] / 2
    assert no_worse == pytest.approx(0.05, abs=0.005)


def test_a_run_succeeds_four_times_in_five_at_the_drop_with_power():
    documents, flips = 400, 0.06
    drop = drop_with_flips(documents, power=0.8)
    margin = drop_with_flips(documents)  # 1.645 standard errors
    succeeding = sum(
        share
        for net, share in chances(documents, flips, 0.0).items()
        if net / documents + margin <= drop
    )
    assert succeeding == pytest.approx(0.8, abs=0.03)


def test_values_worked_out_by_hand():
    # 1.645 sqrt(0.06 / 400) and (1.645 + 0.842) sqrt(0.06 / 400)
    found = reach(400)
    assert found.with_flips == pytest.approx(1.645 * 0.0122474, rel=1e-3)
    assert found.with_power == pytest.approx(2.487 * 0.0122474, rel=1e-3)
    assert found.at_best == pytest.approx(0.00746, rel=1e-2)
    # Too few documents to see 6 % flip: the larger bound holds.
    assert reach(5).with_flips == drop_without_flips(5) == pytest.approx(1 - 0.05**0.2)


def test_the_sentence_rounds_up_and_says_that_it_only_screens():
    assert statement(400) == (
        "400 documents: this size can rule out a drop of 0.8 % at best (not one answer changes), "
        "of 2.1 % when 6 % of the answers flip and the scores are equal; paired, one-sided 5 %; "
        "it screens, it never says ship"
    )
    assert [per_cent(share) for share in (0.02, 0.0201, 0.1)] == ["2.0 %", "2.1 %", "10.0 %"]


def test_graded_scores_get_no_statement_about_flips():
    assert "flip" not in statement(300, graded=True)
    assert "1.0 % at best (no score changes)" in statement(300, graded=True)
    assert reach(300, graded=True)[1:] == (None, None)
