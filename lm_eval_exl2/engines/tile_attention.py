"""Attention by tiles on a CPU: PyTorch's flash kernel per tile, results merged.

The kernel returns the log-sum-exp of each query's scores beside its output, which is what merging
needs; the public `scaled_dot_product_attention` keeps it to itself. Layers with soft-capped
scores or a window that matters are answered by blocks (`tree_attention`).

Shapes: H query heads, G key-value heads, T tokens of the step, Q queries and K keys of a tile,
D head size; the batch dimension is always 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lm_eval_exl2.tiles import Mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_exl2.engines.key_values import KeyValueBuffer, RowKeys
    from lm_eval_exl2.engines.tree_attention import Stored, TreeKeys
    from lm_eval_exl2.tiles import Tile, Tiles

_flash: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


@dataclass(slots=True)
class TileCall:
    """One attention call: contiguous queries of a step and contiguous entries of a buffer."""

    buffer: KeyValueBuffer
    queries: slice
    keys: slice
    is_causal: bool = False
    visible_QK: torch.Tensor | None = None
    """Which pairs count; None for all of them."""
    _masks: dict[tuple[torch.dtype, int], torch.Tensor] = field(
        default_factory=dict[tuple[torch.dtype, int], torch.Tensor]
    )

    def attend(
        self, stored: Stored, query: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return output (1, H, Q, D) and log-sum-exp of the scores (1, H, Q) of one tile."""
        keys, values = (part[:, :, self.keys] for part in stored[id(self.buffer)])
        query = query[:, :, self.queries]
        heads, groups, count = query.shape[1], keys.shape[1], query.shape[2]
        repeats = heads // groups
        if repeats == 1:
            mask = self._mask(query.dtype, 1)
            return _flash(query, keys, values, 0.0, self.is_causal, attn_mask=mask, scale=scaling)
        grouped = query.reshape(1, groups, repeats, count, -1)
        if self.is_causal:  # the query heads of a key-value head one by one
            parts = [
                _flash(grouped[:, :, number], keys, values, 0.0, True, scale=scaling)
                for number in range(repeats)
            ]
            outputs, totals = (torch.stack(part, 2) for part in zip(*parts, strict=True))
        else:  # folded into its queries
            folded = grouped.reshape(1, groups, repeats * count, -1)
            mask = self._mask(query.dtype, repeats)
            outputs, totals = _flash(
                folded, keys, values, 0.0, False, attn_mask=mask, scale=scaling
            )
        return outputs.reshape(1, heads, count, -1), totals.reshape(1, heads, count)

    def _mask(self, dtype: torch.dtype, repeats: int) -> torch.Tensor | None:
        """Return what to add to scores, its rows repeated per query head of a key-value head."""
        if self.visible_QK is None:
            return None
        if (dtype, repeats) not in self._masks:
            added = torch.zeros(self.visible_QK.shape, dtype=dtype)
            added.masked_fill_(~self.visible_QK, float("-inf"))
            self._masks[dtype, repeats] = added.repeat(repeats, 1)
        return self._masks[dtype, repeats]


@dataclass(slots=True)
class RowCall:
    """One attention call for rows of text: each one's new token against what it holds."""

    own: RowKeys
    queries: slice
    """Tokens of the step, one per active row."""
    active: list[int]
    """Rows that have a token in the step."""
    longest: int
    """Most entries that an active row sees."""
    visible_RK: torch.Tensor
    """Which of its entries a row may see."""
    _masks: dict[torch.dtype, torch.Tensor] = field(default_factory=dict[torch.dtype, torch.Tensor])

    def attend(
        self, stored: Stored, query: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return output (1, H, A, D) and log-sum-exp of the scores (1, H, A) of A active rows."""
        keys, values = (part[:, :, : self.longest] for part in stored[id(self.own)])
        rows, groups = keys.shape[:2]
        query_AHD = query[0, :, self.queries].transpose(0, 1)
        if len(self.active) < rows:
            # A finished row asks what the first active one does; nobody reads its answer.
            token_of = [0] * rows
            for token, slot in enumerate(self.active):
                token_of[slot] = token
            query_AHD = query_AHD[token_of]
        heads = query_AHD.shape[1]
        outputs, totals = _flash(
            query_AHD.reshape(rows, groups, heads // groups, -1),
            keys,
            values,
            0.0,
            False,
            attn_mask=self._mask(query.dtype),
            scale=scaling,
        )
        outputs, totals = outputs.reshape(rows, heads, -1), totals.reshape(rows, heads)
        if len(self.active) < rows:
            outputs, totals = outputs[self.active], totals[self.active]
        return outputs.transpose(0, 1)[None], totals.T[None]

    def _mask(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._masks:
            added = torch.zeros(self.visible_RK.shape, dtype=dtype)
            self._masks[dtype] = added.masked_fill_(~self.visible_RK, float("-inf"))
        return self._masks[dtype][:, None, None]


class TileCalls(NamedTuple):
    """All attention calls of a step."""

    squares: Sequence[TileCall] | Sequence[RowCall]
    """Every query is in exactly one, in order."""
    rectangles: Sequence[TileCall]
    longest: int
    """Most positions that a query sees, itself included: windows as long change nothing."""


def can_tile(device: torch.device) -> bool:
    """Whether there is a kernel here that gives what merging needs."""
    return _flash is not None and device.type == "cpu"


def make_calls(tiles: Tiles, buffer: KeyValueBuffer, keys: TreeKeys, count: int) -> TileCalls:
    """Turn the tiles of a chunk into calls.

    Args:
        tiles: As `tiles.cut_tiles` cut them.
        buffer: Holds the entries of `keys`.
        keys: All entries, those of the chunk's own T tokens last.
        count: T.
    """

    def call(tile: Tile) -> TileCall:
        queries, entries = slice(*tile.queries), slice(*tile.keys)
        visible = None
        if tile.mask is Mask.TREE:
            own = keys.positions[len(keys.positions) - count :][queries, None]
            visible = (keys.positions[entries] <= own) & (own < keys.ends[entries])
        return TileCall(buffer, queries, entries, tile.mask is Mask.CAUSAL, visible)

    return TileCalls(
        [call(tile) for tile in tiles.squares],
        [call(tile) for tile in tiles.rectangles],
        longest=int(keys.depths.max()) + 1,
    )


def attend_tiles(
    calls: TileCalls, stored: Stored, query: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return the attention output (1, H, T, D) of one layer.

    Args:
        calls: The attention of the step.
        stored: Keys and values of each buffer.
        query: (1, H, T, D).
        scaling: Factor of the scores.
    """
    if len(calls.squares) == 1:
        output, total_HT = calls.squares[0].attend(stored, query, scaling)
    else:
        output = torch.empty_like(query)
        total_HT = query.new_empty(query.shape[:3], dtype=torch.float32)
        for call in calls.squares:
            part = call.attend(stored, query, scaling)
            output[:, :, call.queries], total_HT[:, :, call.queries] = part
    if not calls.rectangles:
        return output
    merged = output.float()  # rounded once, at the end, where the dtype is a short one
    for call in calls.rectangles:
        part, part_HQ = call.attend(stored, query, scaling)
        so_far_HQ = total_HT[:, :, call.queries]
        share = torch.sigmoid(part_HQ - so_far_HQ).unsqueeze(-1)
        merged[:, :, call.queries].lerp_(part.float(), share)
        total_HT[:, :, call.queries] = torch.logaddexp(so_far_HQ, part_HQ)
    return merged.to(query.dtype)
