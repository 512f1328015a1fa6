"""Cuts the attention of a chunk into tiles: contiguous queries times contiguous keys.

A query of a tree sees its ancestors and itself. Computing all pairs and masking most of them
wastes work, and picking out each query's keys copies them. But in preorder the keys that a whole
subtree sees are one range, and so are its queries: a shared beginning is a full rectangle below
which nothing needs a mask. What remains are squares on the diagonal: runs of tokens that follow
each other, which are causal, and small subtrees, which are masked. The partial results of a
query are merged by their log-sum-exp (FlashAttention, arXiv:2205.14135, section 3.1).

How far to cut is a matter of cost: each tile is a call, each pair is work.

Standard library only; knows ranges of positions, no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_MASKED = 1.1
"""What a pair costs where a mask is added, measured on CPUs."""


@dataclass(frozen=True, slots=True)
class TileCost:
    """What tiles cost, in any one unit."""

    call: float
    """Of one attention call, whatever its size."""
    pair: float
    """Of one query that meets one key."""
    merge: float
    """Of merging one query's result into what other tiles gave it."""

    def square(self, size: int, *, is_run: bool) -> float:
        """Return the cost of so many tokens among themselves."""
        return self.call + self.pair * size * size * (0.5 if is_run else _MASKED)

    def rectangle(self, queries: int, keys: int, *, is_masked: bool = False) -> float:
        """Return the cost of queries that meet the same keys, merged into other results."""
        pairs = queries * keys * (_MASKED if is_masked else 1.0)
        return self.call + self.pair * pairs + self.merge * queries


class Mask(Enum):
    """Which pairs of a tile count."""

    NONE = "none"
    """All of them."""
    CAUSAL = "causal"
    """Query i of a square meets keys up to i."""
    TREE = "tree"
    """Those where the key is an ancestor of the query or the query itself."""


class Tile(NamedTuple):
    """One attention call."""

    queries: tuple[int, int]
    """First token of the chunk and one past the last."""
    keys: tuple[int, int]
    """First entry of the buffer and one past the last."""
    mask: Mask


class Tiles(NamedTuple):
    """The attention of a chunk; every visible pair is in exactly one tile."""

    squares: list[Tile]
    """Queries among themselves, in order: every query is in exactly one."""
    rectangles: list[Tile]
    """Queries against earlier keys, to be merged into the squares' results."""


@dataclass(slots=True)
class _Segment:
    """Own tokens that follow each other and have the same subtree below."""

    first: int
    length: int
    below: int
    """Tokens of the chunk below the last one."""
    children: list[_Segment] = field(default_factory=list["_Segment"])
    cost: float = 0.0
    is_split: bool = False

    @property
    def size(self) -> int:
        return self.length + self.below

    @property
    def stop(self) -> int:
        return self.first + self.length

    @property
    def end(self) -> int:
        return self.stop + self.below


def cut_tiles(
    kept_ends: Sequence[int], start: int, depths: Sequence[int], ends: Sequence[int], cost: TileCost
) -> Tiles:
    """Cut the attention of a chunk.

    Args:
        kept_ends: For each entry of the buffer before the chunk's own, in preorder, the end of
            its subtree; those that end before the chunk are seen by none.
        start: Preorder position of the chunk's first token.
        depths: Depth of each token of the chunk.
        ends: One past the last preorder position below each token.
        cost: Decides how far to cut.
    """
    offset, count = len(kept_ends), len(depths)
    # What lies behind the chunk does not matter: who sees a key to its end sees the same.
    kept = [min(end - start, count) for end in kept_ends]
    tiles = Tiles([], list(_cut_kept(kept, cost)))
    roots = _find_segments(depths, [min(end - start, count) for end in ends])
    _choose(roots, cost)
    for first, stop, is_run in _merged(_walk(roots), cost, with_split=True):
        keys = (first + offset, stop + offset)
        tiles.squares.append(Tile((first, stop), keys, Mask.CAUSAL if is_run else Mask.TREE))
    for segment in _walk(roots):
        if segment.is_split:
            tiles.rectangles.append(
                Tile(
                    (segment.stop, segment.end),
                    (segment.first + offset, segment.stop + offset),
                    Mask.NONE,
                )
            )
    return tiles


def _cut_kept(ends: Sequence[int], cost: TileCost) -> Iterator[Tile]:
    """Cut what the chunk's queries see of earlier entries: the longer ago, the more do.

    Neighbours share a tile, and a mask, where another call would cost more than masked pairs.
    """
    first = stop = queries = 0
    apart = 0.0
    for seen_by, group in groupby(ends):
        length = sum(1 for _ in group)
        own = cost.rectangle(seen_by, length)
        joined = cost.rectangle(queries, stop + length - first, is_masked=True)
        if stop > first and (seen_by <= 0 or apart + own < joined):
            yield _kept_tile(ends, queries, first, stop)
            first = stop
        if stop == first:
            queries, apart = seen_by, own
        else:
            apart = joined
        stop += length
        if seen_by <= 0:
            first = stop
    if stop > first:
        yield _kept_tile(ends, queries, first, stop)


def _kept_tile(ends: Sequence[int], queries: int, first: int, stop: int) -> Tile:
    is_full = ends[first] == ends[stop - 1]
    return Tile((0, queries), (first, stop), Mask.NONE if is_full else Mask.TREE)


def _find_segments(depths: Sequence[int], ends: Sequence[int]) -> list[_Segment]:
    """Return the topmost segments of a chunk, their descendants linked below."""
    count = len(depths)
    roots: list[_Segment] = []
    open_segments: list[_Segment] = []
    place = 0
    while place < count:
        stop, end = place + 1, ends[place]
        while stop < count and ends[stop] == end and depths[stop] == depths[stop - 1] + 1:
            stop += 1
        segment = _Segment(place, stop - place, end - stop)
        while open_segments and open_segments[-1].end <= place:
            open_segments.pop()
        (open_segments[-1].children if open_segments else roots).append(segment)
        open_segments.append(segment)
        place = stop
    return roots


def _walk(roots: Sequence[_Segment]) -> Iterator[_Segment]:
    """Yield segments in preorder, nothing below those that are not split."""
    waiting = list(reversed(roots))
    while waiting:
        segment = waiting.pop()
        yield segment
        if segment.is_split:
            waiting.extend(reversed(segment.children))


def _choose(roots: Sequence[_Segment], cost: TileCost) -> None:
    """Decide from the leaves up whether a segment and all below it are one square or are split."""
    order: list[_Segment] = []
    waiting = list(roots)
    while waiting:
        segment = waiting.pop()
        order.append(segment)
        waiting.extend(segment.children)
    for segment in reversed(order):
        segment.cost = cost.square(segment.size, is_run=not segment.below)
        if segment.below:
            split = cost.square(segment.length, is_run=True)
            split += cost.rectangle(segment.below, segment.length)
            split += _cost_of(segment.children, cost)
            if split < segment.cost:
                segment.is_split, segment.cost = True, split


def _cost_of(siblings: Sequence[_Segment], cost: TileCost) -> float:
    """Return the cost of neighbouring subtrees whose squares may be merged."""
    whole = sum(
        cost.square(stop - first, is_run=is_run)
        for first, stop, is_run in _merged(siblings, cost, with_split=False)
    )
    return whole + sum(segment.cost for segment in siblings if segment.is_split)


def _merged(
    segments: Iterable[_Segment], cost: TileCost, *, with_split: bool
) -> Iterator[tuple[int, int, bool]]:
    """Yield squares, those of neighbours merged where a call costs more than masked pairs.

    Args:
        segments: In preorder; what is below one that is not split belongs to its square.
        cost: Decides.
        with_split: Yield the squares of the split segments' own tokens, too.

    Yields:
        First token, one past the last, and whether the tokens follow each other.
    """
    first = stop = 0
    is_run = True
    for segment in segments:
        if stop > first:
            joined, size = segment.end - first, segment.size
            alone = cost.square(size, is_run=not segment.below)
            together = cost.square(joined, is_run=False)
            if not segment.is_split and (
                together < alone + cost.square(stop - first, is_run=is_run)
            ):
                stop, is_run = segment.end, False
                continue
            yield first, stop, is_run
        if segment.is_split:
            first = stop = segment.stop
            if with_split:
                yield segment.first, segment.stop, True
        else:
            first, stop, is_run = segment.first, segment.end, not segment.below
    if stop > first:
        yield first, stop, is_run
