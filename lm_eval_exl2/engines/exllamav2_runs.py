"""flash-attn and xformers on the runs of a tree, each called as one batch of sequences.

Shapes: T tokens of a step, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from lm_eval_exl2.engines.exllamav2_settings import Exllamav2Settings
    from lm_eval_exl2.engines.tree_runs import Runs

    RunAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Runs, float], torch.Tensor]


def flash_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, runs: Runs, scaling: float
) -> torch.Tensor:
    """Attend run by run with flash-attn.

    Args:
        query: (T, H, D).
        keys: (sum of key counts, G, D), those of each run together.
        values: Like `keys`.
        runs: Where runs begin and end.
        scaling: Factor of the scores.

    Returns:
        (T, H, D).
    """
    function: Any = import_module("flash_attn").flash_attn_varlen_func
    device = query.device

    def bounds(counts: list[int]) -> torch.Tensor:
        ends = torch.tensor([0, *counts]).cumsum(0)
        return ends.to(device, torch.int32)

    starts_q, starts_k = runs.prepared(
        "flash", device, lambda: (bounds(runs.query_counts), bounds(runs.key_counts))
    )
    return function(
        query,
        keys,
        values,
        starts_q,
        starts_k,
        max(runs.query_counts),
        max(runs.key_counts),
        softmax_scale=scaling,
        causal=True,
    )


def xformers_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, runs: Runs, scaling: float
) -> torch.Tensor:
    """Attend run by run with xformers; shapes as for `flash_attention`."""
    function: Any = import_module("xformers.ops").memory_efficient_attention
    masks: Any = import_module("xformers.ops.fmha.attn_bias")
    mask: Any = masks.BlockDiagonalCausalFromBottomRightMask
    bias: Any = runs.prepared(
        "xformers",
        query.device,
        lambda: mask.from_seqlens(runs.query_counts, runs.key_counts).to(query.device),
    )
    # xformers does not share key-value heads between query heads.
    repeats = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    return function(query[None], keys[None], values[None], attn_bias=bias, scale=scaling)[0]


RUN_ATTENTION: dict[str, RunAttention] = {
    "flash_attn": flash_attention,
    "xformers": xformers_attention,
}
"""Functions that answer runs, by the library they need; the preferred first."""


def available_runs(found: Any, settings: Exllamav2Settings) -> str | None:
    """Return the name of the attention library to use, None if there is none.

    Args:
        found: exllamav2's module `attn`, which has looked for them.
        settings: May leave one or both out.
    """
    # flash-attn imports on cards it cannot run on; exllamav2 then only prints a warning.
    runs_here: bool = getattr(found, "is_ampere_or_newer_gpu", False)
    if found.has_flash_attn and runs_here and not settings.no_flash_attn:
        return "flash_attn"
    if found.has_xformers and not settings.no_xformers:
        return "xformers"
    return None
