"""Agreement of two runs' answers; BLEU and ROUGE are counted by hand."""

import math
from fractions import Fraction as F

import pytest

from lm_eval_exl2.bench.agreement import compare_answers

# 11 and 9 words. Of the answer's 9 words, 8 pairs, 7 triples, 6 fours are in the reference:
# 9; all pairs but "sells bread", "the bridge"; 4 triples; the first two fours.
REFERENCE = "at dawn the miller sells fresh bread at the old bridge"
ANSWER = "at dawn the miller sells bread at the bridge"


def compare(baseline, candidate, **more):
    return compare_answers(baseline, candidate, **{"unit": "characters", **more})


def test_bleu_is_four_precisions_and_a_brevity_penalty():
    found = compare([REFERENCE], [ANSWER]).bleu
    precisions = [F(9, 9), F(6, 8), F(4, 7), F(2, 6)]
    assert found.precisions == pytest.approx([float(100 * each) for each in precisions])
    assert found.brevity_penalty == pytest.approx(math.exp(1 - 11 / 9))
    product = float(math.prod(precisions))
    assert found.score == pytest.approx(100 * math.exp(1 - 11 / 9) * product**0.25)


def test_bleu_counts_all_answers_together():
    # The second answer adds 2 words, 1 pair, and 2 words of reference.
    found = compare([REFERENCE, "a boat"], [ANSWER, "a boat"]).bleu
    product = float(F(11, 11) * F(7, 9) * F(4, 7) * F(2, 6))
    assert found.score == pytest.approx(100 * math.exp(1 - 13 / 11) * product**0.25)


def test_a_longer_answer_pays_no_penalty_but_loses_precision():
    found = compare([ANSWER], [REFERENCE]).bleu
    assert found.brevity_penalty == 1
    # 9 of 11; of 10 pairs 6, of 9 triples 4, of 8 fours 2.
    product = float(F(9, 11) * F(6, 10) * F(4, 9) * F(2, 8))
    assert found.score == pytest.approx(100 * product**0.25)


def test_rouge_takes_the_baselines_answer_as_reference():
    found = compare([REFERENCE], [ANSWER])
    scores = {each.kind: each.score for each in found.rouge}
    expected = {
        "rouge1": F(2 * 9, 11 + 9),
        "rouge2": F(2 * 6, 10 + 8),
        "rougeL": F(2 * 9, 11 + 9),
    }
    assert scores == pytest.approx({kind: float(100 * each) for kind, each in expected.items()})


def test_equal_answers_agree_even_where_rouge_sees_nothing():
    texts = ["橋", "", "yes", "one two three"]
    found = compare(texts, texts)
    assert [each.score for each in found.rouge] == [100.0] * 3
    assert (found.identical, found.divergence) == (4, None)


def test_identical_answers_are_supported_only_where_they_are_many():
    # What may differ unseen by more than a point: .05^(1/n) > .99 from 299 documents on.
    few, many = compare(["a b"] * 298, ["a b"] * 298), compare(["a b"] * 299, ["a b"] * 299)
    assert (few.state, many.state) == ("inconclusive", "ship")
    assert many.profile == "agreement-99"


def test_agreement_clearly_below_99_does_not_ship_and_near_it_nothing_is_settled():
    same = ["red boats leave before dawn"] * 300
    assert compare(same, [*same[:270], *["no"] * 30]).state == "do not ship"
    near = compare(same, [*same[:297], *["no"] * 3])  # exactly 99
    assert near.rouge[0].score == pytest.approx(99)
    assert near.state == "inconclusive"
    limited = compare(same * 3, same * 3, not_settled="limited")
    assert (limited.state, "limited" in limited.explanation) == ("inconclusive", True)


def test_the_first_divergence_counts_what_answers_share_from_their_start():
    baseline = ["abcdef", "abc", "xyz", "same", "ab"]
    candidate = ["abcxef", "abcd", "axz", "same", "a"]
    found = compare(baseline, candidate).divergence
    # 3, 3, 0 and 1 characters; the equal one does not count.
    assert (found.unit, found.answers, found.median) == ("characters", 4, 2)
    assert found.first_quartile == 0.75


def test_divergence_counts_tokens_where_there_are_tokens():
    pieces = [[1, 2, 3], [4]], [[1, 2, 9], [4]]
    found = compare(["a", "b"], ["c", "b"], unit="tokens", pieces=pieces).divergence
    assert (found.unit, found.answers, found.median) == ("tokens", 1, 2)


def test_one_document_bounds_nothing():
    found = compare(["a b c"], ["a b d"])
    assert [(each.lower, each.upper) for each in found.rouge] == [(0.0, 100.0)] * 3
    assert found.state == "inconclusive"
