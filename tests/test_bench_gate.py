"""MLPerf's gate: its edges, its limits of length, its intervals."""

import itertools
from dataclasses import replace
from fractions import Fraction as F

import numpy as np
import pytest

from lm_eval_exl2.bench.gate import Measured, judge
from lm_eval_exl2.bench.intervals import ratio_interval
from lm_eval_exl2.bench.rules import read_rules
from lm_eval_exl2.errors import OptionError

RULES = read_rules()
OWN = RULES["own"]
R99, R999 = F("0.99"), F("0.999")


def measured(*scores, length=100, documents=10, kinds=OWN.kinds):
    """Every document has the same scores; lengths add up to `length` a document."""
    rouge = {kind: np.full(documents, each) for kind, each in zip(kinds, scores, strict=True)}
    lengths = np.full(documents, int(length))
    lengths[0] += round((length - int(length)) * documents)
    return Measured(rouge, lengths)


def small(name):
    """A rule whose data set has 100 documents."""
    return replace(RULES[name], documents=100, length_documents=100)


def state(candidate, baseline=None, rule=OWN, ratio=R99, **more):
    unit = rule.unit or "tokens"
    return judge(rule, ratio, candidate, baseline, unit=unit, **more)


BASE = measured(50.0, 20.0, 30.0)


def test_exactly_99_percent_of_all_three_and_90_percent_of_the_length_passes():
    found = state(measured(49.5, 19.8, 29.7, length=90), BASE)
    assert found.state == "ship"
    assert found.profile == "mlperf-99"
    assert [each.holds for each in found.demands] == [True] * 4
    assert [each.ratio for each in found.demands] == pytest.approx([0.99, 0.99, 0.99, 0.9])


@pytest.mark.parametrize("at", range(3))
def test_one_rouge_a_ten_thousandth_below_99_percent_fails(at):
    scores = [49.5, 19.8, 29.7]
    scores[at] -= 0.0001
    found = state(measured(*scores), BASE)
    assert found.state == "do not ship"
    assert [each.holds for each in found.demands] == [each != at for each in range(3)] + [True]
    assert found.demands[at].name in found.explanation


def test_the_edge_of_999_is_exact_too():
    passing = measured(49.95, 19.98, 29.97)
    assert state(passing, BASE, ratio=R999).state == "ship"
    assert state(passing, BASE, ratio=R999).profile == "mlperf-99.9"
    assert state(measured(49.95, 19.98, 29.9699), BASE, ratio=R999).state == "do not ship"


def test_binary_rounding_moves_no_edge():
    assert 0.99 * 1.07 > 1.0593
    edge = measured(1.0593, 1.0593, 1.0593)
    assert state(edge, measured(1.07, 1.07, 1.07)).state == "ship"


def test_a_better_candidate_passes_and_two_percent_less_does_not():
    assert state(measured(60.0, 30.0, 40.0), BASE).state == "ship"
    assert state(measured(49.0, 20.0, 30.0), BASE).state == "do not ship"


@pytest.mark.parametrize(("length", "expected"), [(89.9, "do not ship"), (90, "ship")])
def test_answers_shorter_than_90_percent_fail(length, expected):
    assert state(measured(50.0, 20.0, 30.0, length=length), BASE).state == expected


def test_only_a_rule_with_an_upper_limit_minds_longer_answers():
    longer = measured(50.0, 20.0, 30.0, length=110.1)
    assert state(longer, BASE).state == "ship"
    rule = small("llama2-70b")
    expected = {264.9: "do not ship", 265.1: "ship", 323.8: "ship", 324.0: "do not ship"}
    for length, answer in expected.items():  # 90 and 110 % of 294.45: 265.005 and 323.895
        run = measured(44.4312, 22.0352, 28.6162, length=length, documents=100)
        assert state(run, rule=rule).state == answer, length


def test_exactly_90_and_110_percent_of_the_length_are_inside():
    rule = replace(small("llama2-70b"), length=F(100))
    for length, expected in ((90, "ship"), (110, "ship"), (110.01, "do not ship")):
        run = measured(50.0, 30.0, 30.0, length=length, documents=100)
        assert state(run, rule=rule).state == expected


PUBLISHED = {
    "llama2-70b": (44.4312, 22.0352, 28.6162),
    "llama3.1-8b": (38.7792, 15.9075, 24.4957, 35.793),
    "mixtral-8x7b": (45.5989, 23.3526, 30.4608),
}


LENGTHS = {"llama2-70b": 294.45, "llama3.1-8b": 8167644 / 13368, "mixtral-8x7b": 144.84}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_scores_stand_for_the_baseline(name):
    rule, scores = small(name), PUBLISHED[name]
    length = round(float(rule.length))
    found = state(measured(*scores, length=length, kinds=rule.kinds, documents=100), rule=rule)
    assert found.is_published
    assert found.demands[-1].baseline == pytest.approx(LENGTHS[name])
    assert all(each.holds for each in found.demands)
    assert [each.baseline for each in found.demands[:-1]] == list(scores)
    lower = [0.98999 * each for each in scores]
    found = state(measured(*lower, length=length, kinds=rule.kinds, documents=100), rule=rule)
    assert [each.holds for each in found.demands] == [False] * len(scores) + [True]


def test_the_edge_of_a_published_score_is_that_of_the_printed_digits():
    rule = small("llama2-70b")  # 99 % of 44.4312 is 43.986888
    for score, expected in ((43.9869, "ship"), (43.98686, "ship"), (43.98684, "do not ship")):
        run = measured(score, 30.0, 30.0, length=295, documents=100)
        assert state(run, rule=rule).state == expected


def test_the_length_that_llama31_publishes_is_a_total_of_characters():
    rule = RULES["llama3.1-8b"]
    assert rule.unit == "characters"
    assert rule.length * rule.documents == 8167644
    assert rule.kinds[-1] == "rougeLsum"


def test_what_mixtral_demands_besides_leaves_a_pass_open_but_not_a_failure():
    assert (RULES["mixtral-8x7b"].documents, RULES["mixtral-8x7b"].length_documents) == (
        5000,
        15000,
    )
    rule = replace(RULES["mixtral-8x7b"], documents=50, length_documents=150)
    lengths = np.full(150, 145)
    good = {kind: np.full(50, 50.0) for kind in rule.kinds}
    found = state(Measured(good, lengths), rule=rule)
    assert found.state == "inconclusive"
    assert "73.66 on GSM8K" in found.explanation
    bad = {kind: np.full(50, 20.0) for kind in rule.kinds}
    assert state(Measured(bad, lengths), rule=rule).state == "do not ship"


def test_another_number_of_documents_cannot_be_held_against_published_scores():
    found = state(measured(50.0, 30.0, 30.0), rule=RULES["llama2-70b"])
    assert found.state == "cannot compare"
    assert "24,576 documents" in found.explanation
    assert found.demands == []


def test_no_share_of_nothing_can_be_demanded():
    found = state(measured(50.0, 0.0, 30.0), measured(50.0, 0.0, 30.0))
    assert found.state == "cannot compare"
    assert "rouge2 of the baseline is 0" in found.explanation
    empty = measured(50.0, 20.0, 30.0, length=0)
    assert "no tokens" in state(BASE, empty).explanation


def test_what_certifies_nothing_cannot_ship_and_can_still_fail():
    limited = {"not_settled": ["it was run with --limit"]}
    assert state(BASE, BASE, **limited).state == "inconclusive"
    assert "--limit" in state(BASE, BASE, **limited).explanation
    assert state(measured(40.0, 20.0, 30.0), BASE, **limited).state == "do not ship"


def test_the_interval_decides_nothing():
    spread = np.array([1.0, 99.0] * 5)
    rouge = dict.fromkeys(OWN.kinds, spread)
    shuffled = dict.fromkeys(OWN.kinds, spread[::-1].copy())
    lengths = np.full(10, 9)
    found = state(Measured(shuffled, lengths), Measured(rouge, lengths))
    assert found.state == "ship"
    assert found.demands[0].interval.lower < 0.9


def test_documents_that_are_hard_for_both_runs_widen_no_interval():
    spread = np.array([1.0, 99.0] * 5)
    run = Measured(dict.fromkeys(OWN.kinds, spread), np.arange(1, 11))
    assert [each.interval for each in state(run, run).demands] == [(1.0, 1.0)] * 4
    published = replace(small("llama2-70b"), documents=10, length_documents=10)
    low, high = state(run, rule=published).demands[0].interval
    assert high - low > 0.5  # the candidate alone


def test_the_interval_is_that_of_all_resamples():
    candidate, baseline = np.array([3.0, 8.0, 4.0, 9.0]), np.array([5.0, 7.0, 6.0, 9.0])
    every = sorted(
        candidate[list(each)].sum() / baseline[list(each)].sum()
        for each in itertools.product(range(4), repeat=4)
    )
    expected = np.quantile(every, [0.025, 0.975])
    assert ratio_interval(candidate, baseline) == pytest.approx(expected, abs=0.02)


def test_the_interval_is_that_of_paired_documents_and_does_not_change():
    rng = np.random.default_rng(4)
    baseline = rng.uniform(10, 60, 2000)
    candidate = baseline * 0.98 + rng.normal(0, 2, 2000)
    ratio = candidate.mean() / baseline.mean()
    # The delta method: what is left of a document when its share of the baseline is taken off.
    error = (candidate - ratio * baseline).std() / np.sqrt(2000) / baseline.mean()
    found = ratio_interval(candidate, baseline)
    assert found == pytest.approx((ratio - 1.96 * error, ratio + 1.96 * error), abs=0.15 * error)
    assert found == ratio_interval(candidate, baseline)


def test_there_is_no_interval_of_one_document_or_of_nothing():
    assert ratio_interval(np.array([1.0]), np.array([2.0])) is None
    assert ratio_interval(np.array([1.0, 2.0]), np.array([0.0, 0.0])) is None
    assert ratio_interval(np.array([3.0, 3.0]), np.array([4.0, 4.0])) == (0.75, 0.75)


def test_rules_that_cannot_be_read_are_refused_in_one_line(tmp_path):
    for text in ("a: [", "rules: {x: {rouge: {rouge1: 1}, length: {}}}", "rules: {x: 3}"):
        path = tmp_path / "rules.yaml"
        path.write_text(text)
        with pytest.raises(OptionError, match="no rules that can be understood"):
            read_rules(path)
