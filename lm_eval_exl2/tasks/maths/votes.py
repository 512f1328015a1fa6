"""Majority vote and best of n, estimated from n answers to one problem. Pure mathematics.

Both ask: if k of the n answers are drawn, each set of k equally likely, how likely is it that the
chosen one is right? Computed exactly, over all sets at once; so an estimate is unbiased, and does
not depend on the order of the answers. Where answers tie, each is as likely to be chosen.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from fractions import Fraction
from math import comb


def majority_at_k(votes: Sequence[Hashable | None], right: Hashable, k: int) -> float:
    """How likely the most frequent of k answers is right.

    Args:
        votes: What each of the n answers says; None does not vote. If nobody votes, the problem
            counts as wrong.
        right: The vote that is right.
        k: From 1 to n.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    silent = len(votes) - counts.total()
    right_votes = counts.pop(right, 0)
    won = Fraction(0)
    for winning in range(1, min(k, right_votes) + 1):
        sets = _ways(list(counts.values()), winning, k - winning)
        # The rest of the k are answers that do not vote.
        shares = sum(
            Fraction(ways * comb(silent, k - winning - size), 1 + tied)
            for (size, tied), ways in sets.items()
        )
        won += comb(right_votes, winning) * shares
    return float(won / comb(len(votes), k))


def _ways(counts: Sequence[int], most: int, room: int) -> dict[tuple[int, int], int]:
    """In how many ways wrong answers can be drawn so that none has more than `most` votes.

    Args:
        counts: How often each wrong answer was given.
        most: The votes of the right answer.
        room: How many may be drawn at most.

    Returns:
        By number drawn and number of wrong answers that have exactly `most` votes.
    """
    ways = {(0, 0): 1}
    for count in counts:
        longer: defaultdict[tuple[int, int], int] = defaultdict(int)
        for (size, tied), number in ways.items():
            for drawn in range(min(count, most, room - size) + 1):
                longer[size + drawn, tied + (drawn == most)] += number * comb(count, drawn)
        ways = longer
    return ways


def best_at_k(scores: Sequence[float], right: Sequence[bool], k: int) -> float:
    """How likely the answer with the highest score of k is right.

    A set's best is among the answers of one score exactly if it has some of these and none that is
    higher; then each of them is as likely to be chosen.

    Args:
        scores: One for each of the n answers; no NaN.
        right: Which of the answers are right.
        k: From 1 to n.
    """
    by_score: defaultdict[float, list[bool]] = defaultdict(list)
    for score, is_right in zip(scores, right, strict=True):
        by_score[score].append(is_right)
    won, below = Fraction(0), 0
    for score in sorted(by_score):
        group = by_score[score]
        sets = comb(below + len(group), k) - comb(below, k)
        won += Fraction(sets * sum(group), len(group))
        below += len(group)
    return float(won / comb(len(scores), k))
