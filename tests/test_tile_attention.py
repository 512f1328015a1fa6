"""Attention by tiles equals attention written down as a formula, however a tree is cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.engines.key_values import KeyValueBuffer
from lm_eval_exl2.engines.tile_attention import attend_tiles, make_calls
from lm_eval_exl2.engines.tree_attention import (
    AttentionOptions,
    Step,
    TreeKeys,
    UsingStep,
    tree_attention,
)
from lm_eval_exl2.prefix_tree import build_tree
from lm_eval_exl2.tiles import TileCost, cut_tiles

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=14)


def reference(tree, query, keys, values, start, scaling):
    """softmax(q k) v over the ancestors of each query, in float64."""
    heads, groups = query.shape[1], keys.shape[1]
    keys, values = (x.double().repeat_interleave(heads // groups, 1) for x in (keys, values))
    positions = torch.arange(len(tree))
    own = positions[start : start + query.shape[2], None]
    ends = torch.tensor(list(tree.ends))
    visible = (positions <= own) & (own < ends)
    scores = query.double() @ keys.transpose(2, 3) * scaling
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ values


def answer(tree, query, keys, values, start, scaling, cost):
    """The same by tiles; everything before the chunk is kept, closed or open."""
    stop = start + query.shape[2]
    buffer = KeyValueBuffer()
    entries = TreeKeys(
        torch.arange(stop), torch.tensor(list(tree.ends[:stop])), torch.tensor(tree.depths[:stop])
    )
    tiles = cut_tiles(
        tree.ends[:start], start, tree.depths[start:stop], tree.ends[start:stop], cost
    )
    calls = make_calls(tiles, buffer, entries, stop - start)
    stored = {id(buffer): (keys[:, :, :stop], values[:, :, :stop])}
    return attend_tiles(calls, stored, query, scaling)


@given(
    SEQUENCES,
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.floats(0, 0.9),
    st.sampled_from([0.0, 30.0, 1e6]),
)
def test_tiles_equal_the_formula(sequences, heads, where, call):
    tree, _ = build_tree(sequences, [0] * len(sequences))
    start = int(where * len(tree))
    torch.manual_seed(len(tree))
    query = torch.randn(1, heads[0], len(tree) - start, 8)
    keys, values = (torch.randn(1, heads[1], len(tree), 8) for _ in range(2))
    found = answer(tree, query, keys, values, start, 0.3, TileCost(call, 1.0, 2.0))
    expected = reference(tree, query, keys, values, start, 0.3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_merging_in_bfloat16_rounds_once():
    sequences = [[*range(40), 100 + branch, *range(50, 70)] for branch in range(5)]
    tree, _ = build_tree(sequences, [0] * 5)
    torch.manual_seed(0)
    query, keys, values = (torch.randn(1, 2, len(tree), 16, dtype=torch.bfloat16) for _ in range(3))
    found = answer(tree, query, keys, values, 0, 0.25, TileCost(1.0, 1.0, 1.0))
    expected = reference(tree, query, keys, values, 0, 0.25)
    assert found.dtype == torch.bfloat16
    # One rounding is half of 2^-8 of a value; the kernel's own weights are rounded, too.
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    ("options", "uses_tiles"),
    [
        (AttentionOptions(scaling=0.3, window=None, softcap=None), True),
        (AttentionOptions(scaling=0.3, window=12, softcap=None), True),
        (AttentionOptions(scaling=0.3, window=11, softcap=None), False),
        (AttentionOptions(scaling=0.3, window=None, softcap=5.0), False),
    ],
)
def test_windows_that_matter_and_soft_caps_are_left_to_blocks(options, uses_tiles):
    tree, _ = build_tree([list(range(12))], [0])
    buffer = KeyValueBuffer()
    keys = TreeKeys(torch.arange(12), torch.full((12,), 12), torch.arange(12))
    tiles = cut_tiles([], 0, tree.depths, tree.ends, TileCost(1.0, 1.0, 1.0))
    asked = []

    def make_blocks():
        asked.append(True)
        return []

    step = Step([(buffer, slice(0, 12))], make_blocks, tiles=make_calls(tiles, buffer, keys, 12))
    layer = torch.nn.Module()
    layer.layer_idx = 0
    tensors = [torch.randn(1, 2, 12, 8) for _ in range(3)]
    with UsingStep(step):
        tree_attention(
            layer,
            *tensors,
            None,
            scaling=options.scaling,
            sliding_window=options.window,
            softcap=options.softcap,
        )
    assert bool(asked) is not uses_tiles
