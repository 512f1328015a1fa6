"""Majority vote and best of n against enumeration of every set of k answers."""

import random
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations
from statistics import mean

import pytest

from lm_eval_exl2.tasks.maths.votes import best_at_k, majority_at_k
from lm_eval_exl2.tasks.pass_at_k import pass_at_k


def win_of_vote(votes, right):
    counts = Counter(vote for vote in votes if vote is not None)
    winners = [vote for vote in counts if counts[vote] == max(counts.values())]
    return Fraction(right in winners, len(winners) or 1)


def enumerated_majority(votes, right, k):
    return mean(win_of_vote(chosen, right) for chosen in combinations(votes, k))


def enumerated_best(scores, right, k):
    """Draws k places, puts them in every order, takes the first of the highest score."""

    def best(places):
        return right[max(places, key=lambda place: scores[place])]

    return mean(
        Fraction(best(order))
        for places in combinations(range(len(scores)), k)
        for order in permutations(places)
    )


def test_a_vote_by_hand():
    # AAB and AAC are won; in ABC, which is drawn twice, A is one of three.
    assert majority_at_k("AABC", "A", 3) == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)
    assert majority_at_k("AABB", "A", 4) == 0.5
    assert majority_at_k("AAB", "A", 3) == 1.0
    assert majority_at_k("ABB", "A", 3) == 0.0


def test_who_says_nothing_does_not_vote():
    assert majority_at_k([None, None, None, "A"], "A", 4) == 1.0
    assert majority_at_k([None, None], "A", 2) == 0.0
    assert majority_at_k([None, None, "B", "A"], "A", 4) == 0.5
    # Of one answer, one that says nothing is wrong.
    assert majority_at_k([None, "A", "A", "B"], "A", 1) == 0.5


def test_votes_are_the_mean_over_all_sets_of_k_answers():
    rng = random.Random(5)
    for _ in range(150):
        number = rng.randint(1, 8)
        votes = rng.choices(["A", "B", "C", "D", None], k=number)
        for k in range(1, number + 1):
            expected = enumerated_majority(votes, "A", k)
            assert majority_at_k(votes, "A", k) == pytest.approx(float(expected)), (votes, k)


def test_best_of_n_by_hand():
    # Of three pairs, the right answer with score 2 is the best of two; with score 3 of none.
    assert best_at_k([3, 2, 1], [False, True, False], 2) == pytest.approx(1 / 3)
    assert best_at_k([3, 2, 1], [True, False, False], 3) == 1.0
    assert best_at_k([1, 1, 1, 1], [True, False, False, False], 4) == 0.25
    assert best_at_k([float("-inf"), 0.0], [True, False], 2) == 0.0


def test_best_of_n_is_the_mean_over_all_sets_and_orders():
    rng = random.Random(6)
    for _ in range(60):
        number = rng.randint(1, 5)
        scores = rng.choices([0.5, 1, 2, 7], k=number)
        right = rng.choices([True, False], k=number)
        for k in range(1, number + 1):
            expected = enumerated_best(scores, right, k)
            assert best_at_k(scores, right, k) == pytest.approx(float(expected)), (scores, right, k)


def test_with_one_answer_drawn_all_ways_to_choose_are_the_mean_accuracy():
    votes = ["A", None, "B", "A", "C"]
    right = [vote == "A" for vote in votes]
    assert majority_at_k(votes, "A", 1) == pytest.approx(2 / 5)
    assert best_at_k([3, 1, 4, 1, 5], right, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)


def test_a_scorer_that_knows_the_answers_reaches_pass_at_k_and_no_chooser_more():
    rng = random.Random(7)
    for _ in range(50):
        votes = rng.choices(["A", "B", "C"], k=8)
        right = [vote == "A" for vote in votes]
        for k in (2, 5, 8):
            highest = pass_at_k(8, sum(right), k)
            assert best_at_k([float(each) for each in right], right, k) == pytest.approx(highest)
            assert majority_at_k(votes, "A", k) <= highest + 1e-12


def test_order_does_not_matter():
    votes = [*"AABBCD", None]
    scores = [1, 2, 2, 3, 1, 0, 3]
    pairs = list(zip(votes, scores, strict=True))
    random.Random(8).shuffle(pairs)
    mixed, mixed_scores = zip(*pairs, strict=True)
    assert majority_at_k(mixed, "A", 4) == majority_at_k(votes, "A", 4)
    right, mixed_right = [v == "A" for v in votes], [v == "A" for v in mixed]
    assert best_at_k(mixed_scores, mixed_right, 4) == best_at_k(scores, right, 4)


def test_many_answers_are_counted_exactly():
    votes = ["A"] * 120 + ["B"] * 80
    assert majority_at_k(votes, "A", 200) == 1.0
    assert best_at_k(range(2000), [False] * 1999 + [True], 1000) == pytest.approx(0.5)
    # 64 different answers of one vote each: any of k is as likely to win, the right one if drawn.
    assert majority_at_k(range(64), 0, 16) == pytest.approx(1 / 64)
