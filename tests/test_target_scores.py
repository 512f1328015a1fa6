"""Targets are scored as by a full log-softmax, in however many parts the vocabulary comes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.engines.target_scores import HeadPart, score_targets
from lm_eval_exl2.records import ChunkTargets


def parts_of(weight, width, rows):
    def logits(first):
        return lambda hidden: hidden @ weight[first : first + width].T

    return [
        HeadPart(first, min(width, len(weight) - first), rows, logits(first))
        for first in range(0, len(weight), width)
    ]


@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10)), max_size=12),
    st.sampled_from([1.0, 300.0]),
)
def test_parts_give_the_full_log_softmax(width, rows, seed, pairs, size):
    torch.manual_seed(seed)
    # Small multiples of a quarter: products and their sums are exact in whatever order and shape.
    hidden = torch.randint(-8, 9, (6, 4)).float() * size / 4
    weight = torch.randint(-8, 9, (11, 4)).float() / 4
    pairs = sorted(pairs)
    targets = ChunkTargets([place for place, _ in pairs], [token for _, token in pairs])
    found = score_targets(hidden, targets, parts_of(weight, width, rows))
    logits = hidden @ weight.T
    full = logits.double().log_softmax(-1)
    expected = [float(full[pair]) for pair in pairs]
    assert found.logprobs == pytest.approx(expected, rel=2e-6, abs=1e-5)
    assert found.is_argmax == [int(logits[place].argmax()) == token for place, token in pairs]


def test_of_equal_logits_the_first_is_the_greedy_one_also_across_parts():
    weight = torch.ones(7, 3)
    targets = ChunkTargets([0] * 7, list(range(7)))
    found = score_targets(torch.ones(1, 3), targets, parts_of(weight, 2, 1))
    assert found.is_argmax == [True] + [False] * 6


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_nan_in_any_part_shows_in_the_score(place):
    weight = torch.ones(7, 3)
    weight[place] = float("nan")
    targets = ChunkTargets([0, 0], [1, 5])
    found = score_targets(torch.ones(1, 3), targets, parts_of(weight, 2, 4))
    assert all(value != value for value in found.logprobs)
