"""Tiles answer exactly the visible pairs of a tree, each once, wherever it is cut."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.prefix_tree import build_tree
from lm_eval_exl2.tiles import Mask, TileCost, cut_tiles

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=14)
COSTS = st.builds(
    TileCost,
    call=st.sampled_from([0.0, 1.0, 20.0, 1e6]),
    pair=st.sampled_from([0.0, 0.5, 1.0]),
    merge=st.sampled_from([0.0, 3.0]),
)


def is_visible(tree, query, key):
    return key <= query < tree.ends[key]


def pairs_of(tile, tree, entries, start):
    """The (query, key) pairs a tile computes, as preorder positions."""
    for query, key in product(range(*tile.queries), range(*tile.keys)):
        pair = (query + start, entries[key])
        if (
            tile.mask is Mask.NONE
            or (tile.mask is Mask.CAUSAL and key - tile.keys[0] <= query - tile.queries[0])
            or (tile.mask is Mask.TREE and is_visible(tree, *pair))
        ):
            yield pair


def cut(tree, start, stop, cost, *, with_closed=False):
    path = [g for g in range(start) if with_closed or tree.ends[g] > start]
    tiles = cut_tiles(
        [tree.ends[g] for g in path], start, tree.depths[start:stop], tree.ends[start:stop], cost
    )
    return tiles, path + list(range(start, stop))


@given(SEQUENCES, st.integers(1, 9), COSTS, st.booleans())
def test_every_visible_pair_is_computed_once_and_no_other(sequences, size, cost, with_closed):
    tree, _ = build_tree(sequences, [0] * len(sequences))
    for start in range(0, len(tree), size):
        stop = min(len(tree), start + size)
        tiles, entries = cut(tree, start, stop, cost, with_closed=with_closed)
        assert all(t.queries[0] < t.queries[1] and t.keys[0] < t.keys[1] for t in tiles.rectangles)
        found = [
            pair
            for tile in [*tiles.squares, *tiles.rectangles]
            for pair in pairs_of(tile, tree, entries, start)
        ]
        expected = [
            (query, key)
            for query in range(start, stop)
            for key in range(stop)
            if is_visible(tree, query, key)
        ]
        assert sorted(found) == expected


@given(SEQUENCES, st.integers(1, 9), COSTS)
def test_squares_follow_each_other_and_hold_every_query_once(sequences, size, cost):
    tree, _ = build_tree(sequences, [0] * len(sequences))
    for start in range(0, len(tree), size):
        stop = min(len(tree), start + size)
        tiles, _ = cut(tree, start, stop, cost)
        bounds = [bound for tile in tiles.squares for bound in tile.queries]
        assert bounds[0] == 0
        assert bounds[-1] == stop - start
        assert bounds[1:-1:2] == bounds[2::2]


def work(tiles):
    return sum((q[1] - q[0]) * (k[1] - k[0]) for q, k, _ in [*tiles.squares, *tiles.rectangles])


def test_a_shared_beginning_is_one_rectangle_below_which_branches_are_apart():
    preamble = list(range(100))
    sequences = [[*preamble, 1000 + branch, *range(200, 280)] for branch in range(6)]
    tree, _ = build_tree(sequences, [0] * 6)
    tiles, _ = cut(tree, 0, len(tree), TileCost(call=100.0, pair=1.0, merge=1.0))
    assert [(t.queries, t.keys) for t in tiles.rectangles] == [((100, 586), (0, 100))]
    assert [t.mask for t in tiles.squares] == [Mask.CAUSAL] * 7


def test_a_document_cut_in_two_is_one_rectangle_and_one_triangle():
    tree, _ = build_tree([list(range(64))], [0])
    tiles, _ = cut(tree, 40, 64, TileCost(call=1.0, pair=1.0, merge=1.0))
    assert [tuple(t) for t in tiles.rectangles] == [((0, 24), (0, 40), Mask.NONE)]
    assert [t.mask for t in tiles.squares] == [Mask.CAUSAL]


@pytest.mark.parametrize("call", [0.0, 50.0, 5000.0, 1e9])
def test_dearer_calls_mean_fewer_tiles_and_more_masked_pairs(call):
    sequences = [[7, *range(a, a + 20), *range(b, b + 9)] for a in range(8) for b in range(5)]
    tree, _ = build_tree(sequences, [0] * len(sequences))
    cheap, _ = cut(tree, 0, len(tree), TileCost(call=call, pair=1.0, merge=1.0))
    dear, _ = cut(tree, 0, len(tree), TileCost(call=10 * call + 1, pair=1.0, merge=1.0))
    assert len(dear.squares) + len(dear.rectangles) <= len(cheap.squares) + len(cheap.rectangles)
    assert work(dear) >= work(cheap)
