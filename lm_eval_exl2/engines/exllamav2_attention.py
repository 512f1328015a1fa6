"""Attention for exllamav2's layers, in place of its own, which is not causal.

exllamav2 0.2.9 to 0.3.2 without flash-attn and xformers runs `scaled_dot_product_attention` with
neither mask nor `is_causal` (`attn.py`, `_attn_torch`): tokens see their future, and scores are
too good. Here every attention module is given functions of ours. A packed step is answered by
tree attention, or run by run with flash-attn or xformers; anything else (exllamav2's own cached
and padded calls) by a masked `scaled_dot_product_attention`.

Shapes: B rows, Q queries and K keys of a row, H query heads, G key-value heads, D head size,
T tokens of a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lm_eval_exl2.engines.tree_attention import AttentionOptions, current_step

if TYPE_CHECKING:
    from lm_eval_exl2.engines.exllamav2_runs import RunAttention


def masked_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    options: AttentionOptions,
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend causally, the last query standing at the last key.

    Args:
        query: (B, H, Q, D).
        keys: (B, G, K, D) with K >= Q; the first K - Q are from before.
        values: Like `keys`.
        options: Scale, window and soft-cap of the layer.
        padding: Added to the scores of keys (B, K): 0 for real ones, -inf for padding.

    Returns:
        (B, H, Q, D). A query that sees nothing but padding gives zeros.
    """
    count, length = query.shape[2], keys.shape[2]
    places = torch.arange(length, device=query.device)
    distance_QK = places[length - count :, None] - places
    visible = distance_QK >= 0
    if options.window is not None:
        # transformers admits the `window` most recent keys, the query's own included.
        visible = visible & (distance_QK < options.window)
    visible = visible[None, None]
    if padding is not None:
        real = padding[:, :length].to(query.device) > -1.0
        real = F.pad(real, (0, length - real.shape[1]), value=True)
        visible = visible & real[:, None, None]
    # A row of minus infinities is NaN in every softmax; such queries are padding themselves.
    blind = ~visible.any(-1, keepdim=True)
    mask = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
    mask.masked_fill_(~(visible | blind), float("-inf"))
    # Sharing heads inside the call would rule out all kernels that save memory.
    repeats = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    if options.softcap is None:
        result = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=options.scaling
        )
    else:
        # Scaled before the product: products of raw float16 queries and keys can overflow.
        scores = (query * options.scaling) @ keys.transpose(2, 3)
        scores = torch.tanh(scores / options.softcap) * options.softcap + mask
        result = F.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype) @ values
    return result.masked_fill(blind, 0.0)


class KeyValueRounding:
    """Rounds keys and values as exllamav2's quantized caches do, by way of such a cache."""

    def __init__(self, exllamav2: Any, model: Any, mode: str, tokens: int) -> None:
        """Allocate a cache for the tokens of one step.

        Args:
            exllamav2: The imported module.
            model: The loaded model.
            mode: Q8, Q6 or Q4.
            tokens: Most tokens per step.
        """
        make: Any = getattr(exllamav2, f"ExLlamaV2Cache_{mode}")
        # Models with odd sizes are rounded in blocks of several tokens; none has larger ones.
        self._cache: Any = make(model, batch_size=1, max_seq_len=-(-tokens // 512) * 512)

    def __call__(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (1, G, T, D) as they come back from the cache."""
        count = keys.shape[2]
        held_keys, held_values = self._cache.get_kv_state(layer, 1, 0, 0)
        held_keys[:, :count].copy_(keys.transpose(1, 2))
        held_values[:, :count].copy_(values.transpose(1, 2))
        self._cache.store_kv_state(layer, 1, 0, count)
        held_keys, held_values = self._cache.get_kv_state(layer, 1, 0, count)
        return held_keys[:, :count].transpose(1, 2), held_values[:, :count].transpose(1, 2)


# -- in place of exllamav2's ------------------------------------------------------------------


class LayerAttention:
    """Answers one attention module; has the signature of its `_attn_torch`."""

    def __init__(
        self,
        module: Any,
        softcap: float | None,
        run: RunAttention | None,
    ) -> None:
        """Take over a module.

        Args:
            module: exllamav2's attention module; its functions are replaced.
            softcap: Of the attention scores; None without one.
            run: Answers runs; None to answer every step by tree attention.
        """
        self.layer: int = module.layer_idx
        self.options = AttentionOptions(
            scaling=module.scaling, window=module.sliding_window or None, softcap=softcap
        )
        # Neither window nor soft-cap of the libraries has been seen to equal transformers'.
        is_plain = self.options.window is None and softcap is None
        self.run = run if is_plain else None
        self.rounding: KeyValueRounding | None = None
        """Rounds keys and values before they are kept and seen."""
        self.shape = (
            int(module.num_attention_heads),
            int(module.num_key_value_heads),
            int(module.head_dim),
        )
        module._attn_torch = module._attn_flash = module._attn_xformers = self

    def __call__(
        self,
        batch_size: int,
        q_len: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attn_params: Any,
        _config: Any,
        causal: bool = True,
    ) -> torch.Tensor:
        """Return (B, Q, H x D) for query (B, Q, H, D), keys and values (B, K, G, D)."""
        if not causal:
            raise NotImplementedError("only causal attention is evaluated")
        if current_step() is not None:
            output = self._answer_step(query, keys, values)
        else:
            if self.rounding is not None and batch_size == 1:
                keys, values = self._rounded_rows(keys, values)
            output = masked_attention(
                query.transpose(1, 2),
                keys.transpose(1, 2),
                values.transpose(1, 2),
                self.options,
                attn_params.input_mask,
            ).transpose(1, 2)
        return output.reshape(batch_size, q_len, -1)

    def _rounded_rows(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Round the keys and values (1, K, G, D) of an ordinary row."""
        assert self.rounding is not None
        rounded = self.rounding(self.layer, keys.transpose(1, 2), values.transpose(1, 2))
        return rounded[0].transpose(1, 2), rounded[1].transpose(1, 2)

    def _answer_step(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Answer a packed step: its tokens came as rows of length 1, padding rows last."""
        step = current_step()
        assert step is not None
        count = step.token_count
        query_HTD, keys_GTD, values_GTD = (
            tensor[:count, 0].transpose(0, 1)[None] for tensor in (query, keys, values)
        )
        if self.rounding is not None:
            keys_GTD, values_GTD = self.rounding(self.layer, keys_GTD, values_GTD)
        stored = step.write(self.layer, keys_GTD, values_GTD)
        output = torch.zeros_like(query[:, 0])
        runs = step.runs
        if self.run is not None and runs is not None:
            entries = runs.prepared("keys", query.device, lambda: runs.keys.to(query.device))
            (buffer_keys, buffer_values), *_ = stored.values()
            output[:count] = self.run(
                query[:count, 0],
                buffer_keys[0].index_select(1, entries).transpose(0, 1),
                buffer_values[0].index_select(1, entries).transpose(0, 1),
                runs,
                self.options.scaling,
            )
        else:
            output[:count] = step.attend_blocks(stored, query_HTD, self.options)[0].transpose(0, 1)
        return output
