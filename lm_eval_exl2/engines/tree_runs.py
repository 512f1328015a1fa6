"""A step's tokens cut into runs, for attention libraries that know only causal sequences.

In preorder every chunk of a tree falls apart into runs of tokens that follow each other in the
same sequences. Within a run attention is causal; before it stand the keys of its ancestors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from lm_eval_exl2.engines.tree_attention import TreeKeys


@dataclass(slots=True)
class Runs:
    """A step cut into runs of tokens that follow each other, each with the keys it may see.

    The last token of a run sees all of its keys, each one before it sees one less: the causal
    mask that flash-attn and xformers align at the bottom right.
    """

    keys: torch.Tensor
    """Buffer entries of all runs one after the other."""
    query_counts: list[int]
    key_counts: list[int]
    _prepared: dict[tuple[str, torch.device], Any] = field(
        default_factory=dict[tuple[str, torch.device], Any]
    )

    def prepared(self, name: str, device: torch.device, make: Callable[[], Any]) -> Any:
        """Return what `make` returns, made once per step and device."""
        if (name, device) not in self._prepared:
            self._prepared[name, device] = make()
        return self._prepared[name, device]


def find_runs(keys: TreeKeys, queries: TreeKeys) -> Runs:
    """Cut the queries of a chunk into runs.

    Args:
        keys: All entries of the buffer, the chunk's own last.
        queries: The chunk's own entries, in preorder.
    """
    depths = queries.depths
    # In preorder, a token one deeper than the one before it is its child.
    is_first = torch.ones_like(depths, dtype=torch.bool)
    is_first[1:] = depths[1:] != depths[:-1] + 1
    starts = torch.nonzero(is_first).flatten()
    stops = torch.cat([starts[1:], starts.new_tensor([len(depths)])])
    last = queries.positions[stops - 1][:, None]
    visible = (keys.positions <= last) & (last < keys.ends)
    return Runs(
        keys=torch.nonzero(visible)[:, 1],
        query_counts=cast("list[int]", (stops - starts).tolist()),
        key_counts=cast("list[int]", visible.sum(1).tolist()),
    )
