"""Cuts a prefix tree into chunks that fit a budget.

Any cut of the preorder is valid (see prefix_tree), so planning is choosing where the next chunk
ends; nothing is ever forwarded twice. A budget may shrink between chunks, when memory runs out.
Standard library only; knows no tensors and no text.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_exl2.records import ChunkTargets, PackedChunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_exl2.prefix_tree import PrefixTree


@dataclass(frozen=True, slots=True)
class Budget:
    """What one forward may take."""

    tokens: int
    """Most tokens per forward."""
    rows: int | None = None
    """Most sequences that may end in one forward; None for no limit."""

    def halved(self) -> Budget | None:
        """Return half of this budget, None if it is down to one token."""
        if self.tokens <= 1:
            return None
        return Budget(self.tokens // 2, max(1, self.rows // 2) if self.rows else None)


@dataclass(frozen=True, slots=True)
class Targets:
    """Wanted (position, next token) pairs of a tree, each once, ascending by position."""

    positions: Sequence[int]
    token_ids: Sequence[int]


def next_chunk(tree: PrefixTree, targets: Targets, start: int, budget: Budget) -> PackedChunk:
    """Cut the chunk that begins at a preorder position.

    Args:
        tree: The whole tree.
        targets: What is to be scored in it.
        start: First position of the chunk.
        budget: Limits of the chunk; it holds at least one token whatever they say.
    """
    stop = min(len(tree), start + max(1, budget.tokens))
    if budget.rows is not None:
        stop = _limit_rows(tree, start, stop, budget.rows)
    first, last = (bisect_left(targets.positions, position) for position in (start, stop))
    return PackedChunk(
        start=start,
        token_ids=tree.tokens[start:stop],
        depths=tree.depths[start:stop],
        ends=tree.ends[start:stop],
        targets=ChunkTargets(
            [position - start for position in targets.positions[first:last]],
            targets.token_ids[first:last],
        ),
    )


def count_rows(chunk: PackedChunk) -> int:
    """Return how many sequences end in a chunk, at least 1."""
    return max(1, sum(end == place + 1 for place, end in enumerate(chunk.ends, chunk.start)))


def _limit_rows(tree: PrefixTree, start: int, stop: int, rows: int) -> int:
    """Return where a chunk must stop so that at most `rows` leaves are in it."""
    found = 0
    for position in range(start, stop):
        if tree.ends[position] == position + 1:
            found += 1
            if found == rows:
                return position + 1
    return stop
