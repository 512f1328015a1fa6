"""The invariants of scoring, against brute force on the scripted engine."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.engines.scripted import ScriptedEngine, scripted_logits
from lm_eval_exl2.errors import EngineMemoryError
from lm_eval_exl2.plan import Budget, Targets, count_rows, next_chunk
from lm_eval_exl2.prefix_tree import build_tree
from lm_eval_exl2.records import Score, ScoreRequest
from lm_eval_exl2.scoring import count_tokens, score, score_naively

VOCABULARY = 5
ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)
pairs = st.lists(st.tuples(ids, ids), max_size=25)


def requests_of(drawn: list[tuple[list[int], list[int]]]) -> list[ScoreRequest]:
    return [ScoreRequest(index, *pair) for index, pair in enumerate(drawn)]


def engine(**options: int) -> ScriptedEngine:
    return ScriptedEngine(vocab_size=VOCABULARY, **options)


def by_index(scores: list[Score]) -> list[Score]:
    return sorted(scores, key=lambda found: found.index)


def brute_force(context: list[int], target: list[int]) -> tuple[float, bool]:
    """Score a target from the definition, one token at a time."""
    total, greedy = [], True
    for place, token in enumerate(target):
        logits = scripted_logits([*context, *target[:place]], VOCABULARY)
        total.append(logits[token] - math.log(math.fsum(map(math.exp, logits))))
        greedy = greedy and logits.index(max(logits)) == token
    return math.fsum(total), greedy


def proper_prefixes(drawn: list[tuple[list[int], list[int]]]) -> set[tuple[int, ...]]:
    whole = [(*context, *target) for context, target in drawn]
    return {sequence[:length] for sequence in whole for length in range(1, len(sequence))}


@given(pairs, st.integers(1, 40), st.none() | st.integers(1, 5))
def test_scores_equal_brute_force_whatever_the_budget(drawn, tokens, rows):
    found = by_index(list(score(requests_of(drawn), engine(), Budget(tokens, rows))))
    expected = [Score(i, *brute_force(*pair)) for i, pair in enumerate(drawn)]
    assert found == expected


@given(pairs, st.integers(1, 40))
def test_every_distinct_proper_prefix_is_forwarded_exactly_once(drawn, tokens):
    used = engine()
    list(score(requests_of(drawn), used, Budget(tokens)))
    assert used.counts.forwarded == len(proper_prefixes(drawn)) == count_tokens(requests_of(drawn))


@given(pairs.flatmap(lambda drawn: st.tuples(st.just(drawn), st.permutations(range(len(drawn))))))
def test_a_score_does_not_depend_on_order_or_siblings(drawn_and_order):
    drawn, order = drawn_and_order
    requests = requests_of(drawn)
    together = by_index(list(score(requests, engine(), Budget(16))))
    shuffled = by_index(list(score([requests[i] for i in order], engine(), Budget(16))))
    alone = [next(score([request], engine(), Budget(16))) for request in requests]
    assert together == shuffled == alone


@given(pairs)
def test_duplicates_cost_nothing_and_are_all_answered(drawn):
    once, twice = engine(), engine()
    list(score(requests_of(drawn), once, Budget(16)))
    found = list(score(requests_of(drawn + drawn), twice, Budget(16)))
    assert twice.counts.forwarded == once.counts.forwarded
    assert sorted(answer.index for answer in found) == list(range(2 * len(drawn)))


@given(pairs)
def test_the_slow_twin_gives_the_same_scores(drawn):
    requests = requests_of(drawn)
    assert list(score_naively(requests, engine())) == by_index(
        list(score(requests, engine(), Budget(16)))
    )


@given(pairs, st.integers(1, 12))
def test_running_out_of_memory_halves_the_step_and_changes_no_score(drawn, capacity):
    small = engine(capacity=capacity)
    found = by_index(list(score(requests_of(drawn), small, Budget(64))))
    assert found == by_index(list(score(requests_of(drawn), engine(), Budget(64))))
    assert small.counts.forwarded == len(proper_prefixes(drawn))


def test_a_step_of_one_token_that_does_not_fit_is_one_clear_error():
    with pytest.raises(EngineMemoryError, match=r"one token .* does not fit into memory"):
        list(score([ScoreRequest(0, [1], [2])], engine(capacity=0), Budget(8)))


def test_retried_tokens_are_counted_apart():
    small = engine(capacity=2)
    list(score([ScoreRequest(0, [1, 2, 3], [4])], small, Budget(4)))
    assert (small.counts.forwarded, small.counts.retried) == (3, 3)


def test_no_requests_give_no_scores():
    assert list(score([], engine(), Budget(8))) == []


def test_scores_are_given_out_as_soon_as_they_are_known():
    requests = [ScoreRequest(0, [0], [1]), ScoreRequest(1, [3], [1]), ScoreRequest(2, [4], [1])]
    used = engine()
    first = next(score(requests, used, Budget(1)))
    assert (first.index, used.counts.forwarded) == (0, 1)


@given(st.lists(ids, max_size=20))
def test_a_tree_holds_each_distinct_prefix_once_below_its_ancestors(sequences):
    tree, positions = build_tree(sequences, [len(sequence) for sequence in sequences])
    assert len(tree) == len({tuple(s[: n + 1]) for s in sequences for n in range(len(s))})
    for sequence, path in zip(sequences, positions, strict=True):
        assert [tree.tokens[position] for position in path] == sequence
        assert [tree.depths[position] for position in path] == list(range(len(sequence)))
        last = path[-1]
        ancestors = [p for p in range(len(tree)) if p <= last < tree.ends[p]]
        assert ancestors == path


@given(st.lists(ids, min_size=1, max_size=20), st.integers(1, 9), st.integers(1, 4))
def test_chunks_follow_each_other_without_gaps_within_the_budget(sequences, tokens, rows):
    tree, _ = build_tree(sequences, [0] * len(sequences))
    start = 0
    while start < len(tree):
        chunk = next_chunk(tree, Targets([], []), start, Budget(tokens, rows))
        assert chunk.start == start
        assert 1 <= len(chunk.token_ids) <= tokens
        assert count_rows(chunk) <= rows
        start = chunk.stop
    assert start == len(tree)


def test_the_planner_and_tree_survive_pickling():
    tree, _ = build_tree([[1, 2], [1, 3]], [1, 1])
    assert pickle.loads(pickle.dumps(tree)) == tree
