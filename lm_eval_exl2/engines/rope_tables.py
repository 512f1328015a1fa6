"""Sine and cosine of every position, as transformers computes them.

exllamav2 0.3.2 reads the RoPE settings of old config files and knows its own variants of YaRN and
Long-RoPE (`rope.py`). Giving it these tables instead makes positions mean the same in every
engine, whatever kind of scaling a checkpoint asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

Layout = Literal["halves", "pairs"]


class RopeTable(NamedTuple):
    """float16 values for positions 0 .. length - 1, each (1, 1, length, rotated dimensions)."""

    sin: torch.Tensor
    cos: torch.Tensor


def rope_of(config: Any, layer_type: str | None = None) -> Mapping[str, Any]:
    """Return the `rope_parameters` of a text config, those of one layer type where they differ."""
    parameters: dict[str, Any] = config.rope_parameters
    return parameters.get(layer_type or "", parameters)


def make_table(
    config: Any, length: int, layout: Layout, layer_type: str | None = None
) -> RopeTable:
    """Compute the table of one kind of layer.

    Args:
        config: transformers' config of the text model.
        length: Number of positions.
        layout: How dimensions pair up: `halves` rotates i with i + d/2 (NeoX), `pairs` rotates
            2i with 2i + 1 (GPT-J).
        layer_type: `full_attention` or `sliding_attention` where the two differ.
    """
    frequencies, scale = _frequencies(config, layer_type)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    if layout == "halves":
        angles = torch.cat((angles, angles), dim=-1)
    else:
        angles = angles.repeat_interleave(2, dim=-1)
    sin, cos = angles.sin() * scale, angles.cos() * scale
    return RopeTable(sin.half()[None, None], cos.half()[None, None])


def identity_table(like: RopeTable) -> RopeTable:
    """Return the table of layers that know no positions: a rotation by nothing."""
    return RopeTable(torch.zeros_like(like.sin), torch.ones_like(like.cos))


def _frequencies(config: Any, layer_type: str | None) -> tuple[torch.Tensor, float]:
    """Return inverse frequencies (rotated dimensions / 2) and the scale of sine and cosine."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope_of(config, layer_type)
    kind = rope.get("rope_type", "default")
    if kind != "default":
        if layer_type not in config.rope_parameters:
            layer_type = None
        found: Any = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), layer_type=layer_type)
        return found
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = int(size * rope.get("partial_rotary_factor", 1.0))
    steps = torch.arange(0, size, 2, dtype=torch.float32)
    return 1.0 / (rope["rope_theta"] ** (steps / size)), 1.0
