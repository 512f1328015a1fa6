"""Token sequences folded into their prefix tree, laid out in preorder.

In that layout the whole tree is three flat lists: token g has `depths[g]` tokens before it in its
own sequence, and everything below it are the positions [g, ends[g]). So position a is an ancestor
of position b, or b itself, exactly if a <= b < ends[a]. A chunk of work is any slice of the
lists, and what it must remember from before are the open ancestors of its first token.

Standard library only; knows ids, nothing of requests, text or tensors.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_ID_BYTES = array("I").itemsize


@dataclass(slots=True)
class PrefixTree:
    """The distinct non-empty prefixes of a set of sequences, each exactly once."""

    tokens: array[int] = field(default_factory=lambda: array("q"))
    depths: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        """Number of distinct prefixes: positions that have to be forwarded."""
        return len(self.tokens)


def build_tree(
    sequences: Sequence[Sequence[int]], tails: Sequence[int]
) -> tuple[PrefixTree, list[list[int]]]:
    """Fold sequences into a tree.

    The result does not depend on the order in which sequences are given, and a repeated sequence
    adds nothing.

    Args:
        sequences: Token ids, none empty.
        tails: For each sequence, how many of its last positions the caller wants to know.

    Returns:
        The tree, and for each sequence the preorder positions of its last `tails` tokens.
    """
    tree = PrefixTree()
    keys = [sort_key(sequence) for sequence in sequences]
    positions: list[list[int]] = [[] for _ in sequences]
    path: list[int] = []
    previous = b""
    for index in sorted(range(len(sequences)), key=keys.__getitem__):
        sequence, key = sequences[index], keys[index]
        shared = shared_length(previous, key)
        _close(tree, path, shared)
        first = len(tree)
        path.extend(range(first, first + len(sequence) - shared))
        tree.tokens.extend(sequence[shared:])
        tree.depths.extend(range(shared, len(sequence)))
        tree.ends.extend([0] * (len(sequence) - shared))
        positions[index] = path[len(sequence) - tails[index] :]
        previous = key
    _close(tree, path, 0)
    return tree, positions


def _close(tree: PrefixTree, path: list[int], depth: int) -> None:
    """End the subtrees of all open positions from `depth` on."""
    end = len(tree)
    for position in path[depth:]:
        tree.ends[position] = end
    del path[depth:]


def sort_key(sequence: Sequence[int]) -> bytes:
    """Return bytes that sort like the sequence; comparing them is a memory compare."""
    ids = array("I", sequence)
    if sys.byteorder == "little":
        ids.byteswap()
    return ids.tobytes()


def shared_length(one: bytes, other: bytes) -> int:
    """Return how many leading ids two keys share, by bisection on slices."""
    low, high = 0, min(len(one), len(other)) // _ID_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if one[low * _ID_BYTES : middle * _ID_BYTES] == other[low * _ID_BYTES : middle * _ID_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low
