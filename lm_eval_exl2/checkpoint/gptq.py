"""The 4-bit GPTQ layout of one linear layer: validation and decoding.

    qweight  int32 (K/8, N)  feature 8*i + j of a column in nibble j of word i
    qzeros   int32 (G, N/8)  zero points minus one (`gptq`) or as they are (`gptq_v2`)
    scales   fp16  (G, N)
    g_idx    int32 (K,)      group of each feature; absent or all zero without activation order

W = (q - zero) * scale, one float16 rounding, as exllamav2 0.3.2 does (`q_matrix.cu`). Only
4-bit files: exllamav2 misreads the other widths without noticing, so they are refused. Shape
suffixes: K input features, N output columns, G groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

TENSOR_NAMES = ("qweight", "qzeros", "scales")
OPTIONAL_TENSOR_NAMES = ("g_idx", "bias")
_NIBBLES = 8
_BLOCK_ELEMENTS = 1 << 20
_FORMATS = (None, "gptq", "gptq_v2")


def check_quantization(quantization: Mapping[str, Any]) -> None:
    """Check the quantization_config of a GPTQ checkpoint.

    Raises:
        ModelFormatError: not GPTQ, not 4 bits, an unknown packing, or no valid group size.
    """
    method, bits = quantization.get("quant_method", "gptq"), quantization.get("bits", 4)
    if method != "gptq" or bits != 4:
        raise ModelFormatError(
            f"quantization is {method!r:.40} with {bits!r:.40} bits, expected exl2, gptq with 4 "
            "bits, or none"
        )
    packing = quantization.get("checkpoint_format")
    if packing not in _FORMATS:
        raise ModelFormatError(
            f"GPTQ checkpoint_format is {packing!r:.40}, expected 'gptq' or 'gptq_v2'"
        )
    size = quantization.get("group_size", -1)
    if isinstance(size, bool) or not isinstance(size, int) or (size != -1 and size < 1):
        raise ModelFormatError(f"GPTQ group_size is {size!r:.40}, expected -1 or a positive number")


def zero_offset(quantization: Mapping[str, Any]) -> int:
    """Return what to add to stored zero points: 1 for `gptq`, 0 for `gptq_v2`."""
    return 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1


def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Check that the shapes of a layer agree; return (in_features, columns).

    Raises:
        ModelFormatError: a tensor is missing or two shapes contradict each other.
    """
    missing = [name for name in TENSOR_NAMES if name not in shapes]
    if missing:
        raise ModelFormatError(f"GPTQ tensors missing: {', '.join(missing)}")
    if any(len(shapes[name]) != 2 or 0 in shapes[name] for name in TENSOR_NAMES):
        raise ModelFormatError(f"GPTQ tensors must be 2-d and not empty: {dict(shapes)}")
    words, columns = shapes["qweight"]
    groups = shapes["scales"][0]
    if shapes["scales"] != (groups, columns) or columns % _NIBBLES:
        raise ModelFormatError(
            f"scales has shape {shapes['scales']}, qweight {shapes['qweight']}: columns disagree"
        )
    if shapes["qzeros"] != (groups, columns // _NIBBLES):
        raise ModelFormatError(
            f"qzeros has shape {shapes['qzeros']}, expected {(groups, columns // _NIBBLES)}"
        )
    if "g_idx" in shapes and shapes["g_idx"] != (words * _NIBBLES,):
        raise ModelFormatError(f"g_idx has shape {shapes['g_idx']}, expected {(words * _NIBBLES,)}")
    return words * _NIBBLES, columns


def decode(
    tensors: Mapping[str, torch.Tensor], *, group_size: int = -1, zero_offset: int = 1
) -> torch.Tensor:
    """Decode one linear layer.

    Args:
        tensors: The layer's stored tensors by short name.
        group_size: Features per group where there is no g_idx; -1 for one group.
        zero_offset: What to add to stored zero points: 1, or 0 for `gptq_v2`.

    Returns:
        float16 (N, K), as (out, in) like a torch linear.

    Raises:
        ModelFormatError: shapes, dtypes or group indices are wrong, or a weight is not finite.
    """
    in_features, columns = check_shapes({name: tuple(t.shape) for name, t in tensors.items()})
    if tensors["qweight"].dtype != torch.int32 or tensors["qzeros"].dtype != torch.int32:
        raise ModelFormatError("GPTQ qweight and qzeros must be int32")
    if not tensors["scales"].is_floating_point():
        raise ModelFormatError(f"GPTQ scales are {tensors['scales'].dtype}, expected float16")
    groups_K = _group_of_feature(tensors, in_features, group_size)
    weight_NK = torch.empty(
        columns, in_features, dtype=torch.float16, device=tensors["qweight"].device
    )
    block = max(1, _BLOCK_ELEMENTS // in_features // _NIBBLES) * _NIBBLES
    for start in range(0, columns, block):
        part = slice(start, start + block)
        words = slice(start // _NIBBLES, (start + block) // _NIBBLES)
        codes_KN = _nibbles(tensors["qweight"][:, part].unsqueeze(1), dim=1).flatten(0, 1)
        zeros_GN = _nibbles(tensors["qzeros"][:, words].unsqueeze(2), dim=2).flatten(1)
        scales_GN = tensors["scales"][:, part].half()
        integers_KN = codes_KN - (zeros_GN + zero_offset)[groups_K]
        weight_NK[part] = (integers_KN.half() * scales_GN[groups_K]).t()
    if not torch.isfinite(weight_NK).all():
        raise ModelFormatError("GPTQ scales hold NaN or infinity")
    return weight_NK


def _nibbles(words: torch.Tensor, *, dim: int) -> torch.Tensor:
    """Spread int32 words over their eight 4-bit fields, lowest first, along a size-1 axis."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return (words >> shifts.view([-1 if axis == dim else 1 for axis in range(words.dim())])) & 15


def _group_of_feature(
    tensors: Mapping[str, torch.Tensor], in_features: int, group_size: int
) -> torch.Tensor:
    groups = tensors["scales"].shape[0]
    stored = tensors.get("g_idx")
    if stored is not None and (stored.is_floating_point() or stored.is_complex()):
        raise ModelFormatError(f"g_idx is {stored.dtype}, expected int32")
    # An all-zero g_idx stands for "none", as exllamav2 reads it (`ext.py`).
    if stored is not None and bool((stored != 0).any()):
        index = stored.long()
        least, most = int(index.min()), int(index.max())
        if least < 0 or most >= groups:
            wrong = least if least < 0 else most
            raise ModelFormatError(f"g_idx points at group {wrong}, but there are {groups} groups")
        return index
    size = group_size if group_size > 0 else in_features
    if -(-in_features // size) != groups:
        raise ModelFormatError(
            f"{groups} groups of {size} do not make {in_features} input features"
        )
    return torch.arange(in_features, device=tensors["scales"].device) // size
