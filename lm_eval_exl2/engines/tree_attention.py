"""Attention over packed prefix trees, plugged into transformers' attention interface.

transformers computes queries, keys and values of all tokens of a step as one packed row and
hands them to `tree_attention`, which lets each query see exactly the keys of its own sequence:
its ancestors in the tree and itself, within the layer's sliding window if it has one. Work is
split into blocks of queries that share most of their keys. Soft-capping and grouped key-value
heads are handled here; positions (RoPE or learned) are the model's own business.

Shapes: H query heads, G key-value heads, T tokens of the step, Q queries and K keys of a block,
D head size; the batch dimension is always 1.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lm_eval_exl2.engines.tile_attention import attend_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lm_eval_exl2.engines.key_values import KeyValueBuffer, RowKeys
    from lm_eval_exl2.engines.tile_attention import TileCalls
    from lm_eval_exl2.engines.tree_runs import Runs

ATTENTION_NAME = "exl2_tree"
QUERIES_PER_BLOCK = 128

# Keys and values of a layer by the identity of their buffer.
Stored = dict[int, tuple[torch.Tensor, torch.Tensor]]


@dataclass(slots=True)
class Block:
    """Queries of a step that are answered in one attention call."""

    buffer: KeyValueBuffer
    queries: slice
    """Which tokens of the step."""
    keys: torch.Tensor | None
    """Which entries of the buffer, after writing; None for all."""
    visible_QK: torch.Tensor
    """Whether a query may see a key."""
    distance_QK: torch.Tensor
    """How many positions a key lies before a query; only read where `visible_QK` is true."""
    own: tuple[RowKeys, int] | None = None
    """Rows whose first so many entries, row by row, are keys behind those of the buffer."""
    _made: dict[tuple[object, ...], torch.Tensor] = field(
        default_factory=dict[tuple[object, ...], torch.Tensor]
    )

    def keys_on(self, device: torch.device) -> torch.Tensor | None:
        """Return `keys` on a layer's device."""
        if self.keys is None or self.keys.device == device:
            return self.keys
        if (device,) not in self._made:
            self._made[device,] = self.keys.to(device)
        return self._made[device,]

    def mask(self, window: int | None, repeats: int, scores: torch.Tensor) -> torch.Tensor:
        """Return what to add to a layer's attention scores, made once per step and device.

        Args:
            window: The layer's sliding window; None without one.
            repeats: Query heads per key-value head; the mask's rows are repeated that often.
            scores: A tensor with their dtype and device; an additive mask saves attention a
                conversion per layer.
        """
        name = (window, repeats, scores.device)
        if name not in self._made:
            inside = self.visible_QK
            if window is not None:
                # transformers admits the `window` most recent keys, the query's own included.
                inside = inside & (self.distance_QK < window)
            added = torch.zeros(inside.shape, dtype=scores.dtype, device=inside.device)
            added.masked_fill_(~inside, float("-inf"))
            self._made[name] = added.to(scores.device).repeat(repeats, 1)
        return self._made[name]


@dataclass(slots=True)
class Step:
    """Where the tokens of one forward are written and what each may see.

    Said up to three ways, of which a layer takes the one it can answer.
    """

    writes: Sequence[tuple[KeyValueBuffer | RowKeys, slice]]
    make_blocks: Callable[[], list[Block]]
    """Called once, by the first layer that needs blocks."""
    runs: Runs | None = None
    """For engines whose attention knows only causal sequences."""
    tiles: TileCalls | None = None
    """For kernels that give what merging needs."""
    reads: Sequence[KeyValueBuffer] = ()
    """Buffers that are seen but not written to."""
    _blocks: list[Block] | None = None

    @property
    def blocks(self) -> list[Block]:
        """Queries with the keys they share, masked: what every engine can answer."""
        if self._blocks is None:
            self._blocks = self.make_blocks()
        return self._blocks

    @property
    def token_count(self) -> int:
        """Number of tokens T."""
        return max(tokens.stop for _, tokens in self.writes)

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> Stored:
        """Write one layer's keys and values (1, G, T, D); return those of each buffer."""
        stored = {
            id(buffer): buffer.write(layer, key[:, :, tokens], value[:, :, tokens])
            for buffer, tokens in self.writes
        }
        return stored | {id(buffer): buffer.stored(layer) for buffer in self.reads}

    def attend_blocks(
        self, stored: Stored, query: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """Return the attention output (1, H, T, D) of one layer."""
        some_values = next(iter(stored.values()))[1]
        output = torch.empty_like(query[..., : some_values.shape[-1]])
        for block in self.blocks:
            keys, values = stored[id(block.buffer)]
            chosen = block.keys_on(keys.device)
            if chosen is not None:
                keys, values = keys.index_select(2, chosen), values.index_select(2, chosen)
            if block.own is not None:
                rows, length = block.own
                keys, values = (
                    torch.cat([shared, part[:, :, :length].transpose(0, 1).flatten(1, 2)[None]], 2)
                    for shared, part in zip((keys, values), stored[id(rows)], strict=True)
                )
            mask = block.mask(options.window, query.shape[1] // keys.shape[1], query)
            output[:, :, block.queries] = _attend_block(
                query[:, :, block.queries], keys, values, mask, options
            )
        return output

    def commit(self) -> None:
        """Make what was written in all layers permanent."""
        for buffer, tokens in self.writes:
            buffer.commit(tokens.stop - tokens.start)


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a layer asks of attention."""

    scaling: float
    window: int | None
    softcap: float | None


def _attend_block(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    options: AttentionOptions,
) -> torch.Tensor:
    """Return (1, H, Q, D); query heads that share a key-value head are folded into its queries."""
    heads, kv_heads, count = query.shape[1], keys.shape[1], query.shape[2]
    folded = query.reshape(1, kv_heads, heads // kv_heads * count, query.shape[3])
    if options.softcap is None:
        result = F.scaled_dot_product_attention(
            folded, keys, values, attn_mask=mask, scale=options.scaling
        )
    else:
        # Scaled before the product: products of raw float16 queries and keys can overflow.
        scores = (folded * options.scaling) @ keys.transpose(2, 3)
        scores = torch.tanh(scores / options.softcap) * options.softcap + mask
        result = F.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype) @ values
    return result.reshape(1, heads, count, -1)


_current_step: ContextVar[Step | None] = ContextVar("exl2_current_step", default=None)


def current_step() -> Step | None:
    """Return the step that is being forwarded, None outside of one."""
    return _current_step.get()


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Answer a layer of transformers; the signature is that of its attention interface."""
    scaling = options.get("scaling")
    chosen = AttentionOptions(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
    )
    step = _current_step.get()
    if step is None:
        raise LookupError("tree attention is only answered inside a step")
    stored = step.write(module.layer_idx, key, value)
    if step.tiles is not None and _fits_tiles(step.tiles, query, value, chosen):
        output = attend_tiles(step.tiles, stored, query, chosen.scaling)
    else:
        output = step.attend_blocks(stored, query, chosen)
    return output.transpose(1, 2).contiguous(), None


def _fits_tiles(
    tiles: TileCalls, query: torch.Tensor, value: torch.Tensor, options: AttentionOptions
) -> bool:
    """Whether a layer asks for nothing that tiles cannot do."""
    sees_all = options.window is None or options.window >= tiles.longest
    return sees_all and options.softcap is None and query.shape[-1] == value.shape[-1]


def register() -> None:
    """Make `attn_implementation="exl2_tree"` known to transformers."""
    import transformers

    attention: Any = transformers.AttentionInterface
    masks: Any = transformers.AttentionMaskInterface
    attention.register(ATTENTION_NAME, tree_attention)
    masks.register(ATTENTION_NAME, _no_mask)


def _no_mask(*_args: Any, **_options: Any) -> None:
    """Build no mask: steps know what is visible."""


class UsingStep:
    """Make a step the current one for the forwards inside the `with` block."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __enter__(self) -> None:
        self._token = _current_step.set(self._step)

    def __exit__(self, *_error: object) -> None:
        _current_step.reset(self._token)


@dataclass(slots=True)
class TreeKeys:
    """Preorder position, subtree end and depth of buffered tree positions, as tensors (K,)."""

    positions: torch.Tensor
    ends: torch.Tensor
    depths: torch.Tensor

    def select(self, entries: torch.Tensor) -> TreeKeys:
        """Return the given entries."""
        return TreeKeys(self.positions[entries], self.ends[entries], self.depths[entries])

    def joined(self, other: TreeKeys) -> TreeKeys:
        """Return the entries of both."""
        return TreeKeys(
            torch.cat([self.positions, other.positions]),
            torch.cat([self.ends, other.ends]),
            torch.cat([self.depths, other.depths]),
        )

    def open_at(self, position: int) -> torch.Tensor:
        """Return the entries that are ancestors of a preorder position."""
        return torch.nonzero((self.positions < position) & (self.ends > position)).flatten()


def tree_blocks(
    buffer: KeyValueBuffer, keys: TreeKeys, queries: TreeKeys, size: int = QUERIES_PER_BLOCK
) -> Iterator[Block]:
    """Split the queries of a chunk into blocks and find the keys each block needs.

    Args:
        buffer: Holds the entries of `keys`, the chunk's own last.
        keys: All entries, the chunk's own included.
        queries: The chunk's own entries.
        size: Most queries of a block.
    """
    for first in range(0, len(queries.positions), size):
        part = slice(first, min(first + size, len(queries.positions)))
        low, high = int(queries.positions[part.start]), int(queries.positions[part.stop - 1])
        needed = torch.nonzero((keys.positions <= high) & (keys.ends > low)).flatten()
        chosen = keys.select(needed)
        own = queries.positions[part, None]
        yield Block(
            buffer=buffer,
            queries=part,
            keys=needed if len(needed) < len(keys.positions) else None,
            visible_QK=(chosen.positions <= own) & (own < chosen.ends),
            distance_QK=queries.depths[part, None] - chosen.depths,
        )
