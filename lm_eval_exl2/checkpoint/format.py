"""The EXL2 layout of one linear layer: validation and bit-exact decoding.

What goes in are the tensors stored for one layer under their short names, with K input features
and N stored output columns (a multiple of 32):

    q_weight     int32 (R, N)    packed codes, rows in permuted order
    q_invperm    int32 (K,)      row i of the layer is packed row q_invperm[i]
    q_scale      int32 (G, N/8)  4-bit scale codes, column n in bits 4*(n % 8) of word n // 8
    q_scale_max  fp16  (G,)      largest scale of each group
    q_groups     int16 (2G,)     bits and first packed row of each group, read as unsigned

What comes out is the weight as exllamav2's kernels see it. Both float16 roundings of the scale
are reproduced (of q_scale_max * prescale / 256, then of its product with the squared code):
leaving them out changes an 8-bit layer by 0.7 % rms. Sources: exllamav2 0.3.2, `ext.py`
(loading), `conversion/adaptivegptq.py` (packing), `cuda/q_matrix.cu` (reconstruction).

Knows nothing of files, models or devices.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Widths the kernels have code for; a file lists its groups from wide to narrow.
BIT_WIDTHS = (8, 6, 5, 4, 3, 2)
TENSOR_NAMES = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")
OPTIONAL_TENSOR_NAMES = ("q_perm", "bias")
COLUMN_MULTIPLE = 32
ROW_MULTIPLE = 32
"""Rows the kernels take at a time; a group must fill them (2-bit groups: half as many)."""
WORD_BITS = 32
MAX_FEATURES = 1 << 16
"""exllamav2 keeps input features' indices in 16 bits."""

# Weights decoded at once: the intermediate tensors of so many stay in a processor's cache.
_BLOCK_ELEMENTS = 1 << 20

_DTYPES = {
    "q_weight": torch.int32,
    "q_invperm": torch.int32,
    "q_scale": torch.int32,
    "q_scale_max": torch.float16,
    "q_groups": torch.int16,
}
_DIMENSIONS = {"q_weight": 2, "q_invperm": 1, "q_scale": 2, "q_scale_max": 1, "q_groups": 1}


class Group(NamedTuple):
    """One quantization group: consecutive packed rows that share scales."""

    bits: int
    first_word: int
    words: int

    @property
    def rows(self) -> int:
        """Number of input features in the group."""
        return self.words * WORD_BITS // self.bits


class Shapes(NamedTuple):
    """Sizes of one stored layer."""

    in_features: int
    columns: int
    groups: int
    words: int


def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Check that the five shapes of a layer agree, without reading any tensor.

    Raises:
        ModelFormatError: a tensor is missing or two shapes contradict each other.
    """
    missing = [name for name in TENSOR_NAMES if name not in shapes]
    if missing:
        raise ModelFormatError(f"EXL2 tensors missing: {', '.join(missing)}")
    for name, dimensions in _DIMENSIONS.items():
        if len(shapes[name]) != dimensions:
            raise ModelFormatError(f"{name} has shape {shapes[name]}, expected {dimensions}-d")
    words, columns = shapes["q_weight"]
    (in_features,) = shapes["q_invperm"]
    (groups,) = shapes["q_scale_max"]
    if min(words, columns, in_features, groups) == 0:
        raise ModelFormatError(f"empty layer: {dict(shapes)}")
    if columns % COLUMN_MULTIPLE:
        raise ModelFormatError(f"q_weight has {columns} columns, expected a multiple of 32")
    if in_features % ROW_MULTIPLE or in_features >= MAX_FEATURES:
        raise ModelFormatError(
            f"q_invperm lists {in_features} input features, expected a multiple of "
            f"{ROW_MULTIPLE} below {MAX_FEATURES}"
        )
    if shapes["q_scale"] != (groups, columns // 8):
        raise ModelFormatError(
            f"q_scale has shape {shapes['q_scale']}, expected {(groups, columns // 8)}"
        )
    if shapes["q_groups"] != (2 * groups,):
        raise ModelFormatError(f"q_groups has shape {shapes['q_groups']}, expected {(2 * groups,)}")
    return Shapes(in_features, columns, groups, words)


def read_groups(q_groups: torch.Tensor, shapes: Shapes) -> list[Group]:
    """Interpret and check the group table.

    Args:
        q_groups: int16 (2G,), read as unsigned.
        shapes: Sizes the table must agree with.

    Raises:
        ModelFormatError: unknown width, widths not in descending order, rows that are no
            multiple of what the kernels take at a time, or a total that differs from the
            number of input features.
    """
    table = [value & 0xFFFF for value in cast("list[int]", q_groups.tolist())]
    bits, starts = table[0::2], table[1::2]
    ends = [*starts[1:], shapes.words]
    if starts[0] != 0:
        raise ModelFormatError(f"q_groups starts at packed row {starts[0]}, expected 0")
    groups: list[Group] = []
    for index, (width, start, end) in enumerate(zip(bits, starts, ends, strict=True)):
        if width not in BIT_WIDTHS:
            raise ModelFormatError(
                f"group {index} has unknown width {width}, expected one of {BIT_WIDTHS}"
            )
        if groups and width > groups[-1].bits:
            raise ModelFormatError(
                f"group {index} has width {width} after {groups[-1].bits}: groups must go from "
                "wide to narrow, exllamav2 would misread this file"
            )
        multiple = ROW_MULTIPLE if width > 2 else ROW_MULTIPLE // 2
        if end <= start or (end - start) * WORD_BITS % (width * multiple):
            raise ModelFormatError(
                f"group {index} spans packed rows {start} to {end}, expected a multiple of "
                f"{multiple} rows of {width} bits"
            )
        groups.append(Group(width, start, end - start))
    rows = sum(group.rows for group in groups)
    if rows != shapes.in_features:
        raise ModelFormatError(
            f"groups hold {rows} rows, but q_invperm lists {shapes.in_features} input features"
        )
    return groups


def check_layer(tensors: Mapping[str, torch.Tensor]) -> list[Group]:
    """Check everything about a layer that decoding relies on; return its groups.

    Raises:
        ModelFormatError: as `check_shapes` and `read_groups`; also a wrong dtype, a q_invperm
            that is no permutation, or a scale that is not finite.
    """
    shapes = check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    for name, dtype in _DTYPES.items():
        if tensors[name].dtype != dtype:
            raise ModelFormatError(f"{name} is {tensors[name].dtype}, expected {dtype}")
    groups = read_groups(tensors["q_groups"], shapes)
    order = tensors["q_invperm"].long().sort().values
    if not torch.equal(order, torch.arange(shapes.in_features, device=order.device)):
        raise ModelFormatError("q_invperm is not a permutation of the input features")
    if not torch.isfinite(tensors["q_scale_max"]).all():
        raise ModelFormatError("q_scale_max holds NaN or infinity")
    return groups


def decode(tensors: Mapping[str, torch.Tensor], prescale: float = 1.0) -> torch.Tensor:
    """Decode one linear layer, bit for bit as exllamav2's kernels reconstruct it.

    Args:
        tensors: The layer's stored tensors by short name; `bias` and `q_perm` are ignored.
        prescale: Factor exllamav2 folds into the scales at load (logit scale of a head,
            residual scale of some output projections). transformers multiplies activations by
            it, so weights meant for it must be divided by it again.

    Returns:
        float16 (N, K): all stored columns, padding included, as (out, in) like a torch linear.

    Raises:
        ModelFormatError: see `check_layer`; also where a weight overflows float16.
    """
    groups = check_layer(tensors)
    q_weight, order_K = tensors["q_weight"], tensors["q_invperm"].long()
    steps_GN = _decode_steps(tensors["q_scale"], tensors["q_scale_max"], prescale)
    rows_G = torch.tensor([group.rows for group in groups], device=q_weight.device)
    in_features, columns = order_K.shape[0], q_weight.shape[1]
    weight_NK = torch.empty(columns, in_features, dtype=torch.float16, device=q_weight.device)
    block = max(COLUMN_MULTIPLE, _BLOCK_ELEMENTS // in_features)
    for start in range(0, columns, block):
        part = slice(start, start + block)
        packed_KN = _decode_codes(q_weight[:, part], groups, in_features)
        packed_KN *= steps_GN[:, part].repeat_interleave(rows_G, dim=0)
        # The kernels compute W[i] = Wp[q_invperm[i]]; torch linears want that transposed.
        weight_NK[part] = packed_KN.index_select(0, order_K).t()
    if _may_overflow(steps_GN, groups) and not torch.isfinite(weight_NK).all():
        raise ModelFormatError("q_scale_max is so large that weights overflow float16")
    return weight_NK


def _decode_steps(
    q_scale: torch.Tensor, q_scale_max: torch.Tensor, prescale: float
) -> torch.Tensor:
    """Return the step of every group and column: float16 (G, N), rounded twice."""
    shifts = torch.arange(0, WORD_BITS, 4, dtype=torch.int32, device=q_scale.device)
    codes_GN = ((q_scale.unsqueeze(-1) >> shifts) & 15).flatten(1)
    squares = ((codes_GN + 1) ** 2).half()  # 1..256, exact
    largest_G = q_scale_max * (prescale / 256)  # first rounding, to (often subnormal) float16
    return squares * largest_G.unsqueeze(1)  # second rounding


def _decode_codes(words: torch.Tensor, groups: list[Group], in_features: int) -> torch.Tensor:
    """Unpack and centre the codes of some columns: float16 (K, columns), rows in packed order."""
    words = words.contiguous()
    codes = torch.empty(in_features, words.shape[1], dtype=torch.float16, device=words.device)
    row = 0
    for bits, run in groupby(groups, key=lambda group: group.bits):
        members = list(run)
        rows = sum(group.rows for group in members)
        last = members[-1]
        packed = words[members[0].first_word : last.first_word + last.words]
        codes[row : row + rows] = unpack_codes(packed, bits) - (1 << (bits - 1))
        row += rows
    return codes


def _may_overflow(steps_GN: torch.Tensor, groups: list[Group]) -> bool:
    """Whether the largest code of some group times its largest step leaves float16."""
    codes_G = torch.tensor([1 << (group.bits - 1) for group in groups], device=steps_GN.device)
    largest_G = steps_GN.abs().amax(dim=1).float() * codes_G
    return bool((largest_G > torch.finfo(torch.float16).max).any())


def unpack_codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack the bit stream that runs down each column.

    Row r of a column occupies bits [r*bits, (r+1)*bits) of the column's words, lowest bit
    first; 3-, 5- and 6-bit fields straddle words.

    Args:
        words: int32 (R, N).
        bits: Field width.

    Returns:
        int16 (R * 32 / bits, N), values 0 .. 2**bits - 1.
    """
    unit_words = bits // math.gcd(bits, WORD_BITS)
    unit_rows = unit_words * WORD_BITS // bits
    units = words.reshape(-1, unit_words, words.shape[1])
    mask = (1 << bits) - 1
    codes = torch.empty(
        units.shape[0], unit_rows, words.shape[1], dtype=torch.int16, device=words.device
    )
    for row in range(unit_rows):
        word, offset = divmod(row * bits, WORD_BITS)
        value = units[:, word] >> offset
        kept = WORD_BITS - offset
        if kept < bits:
            # The shift is arithmetic: clear the copied sign bits before joining the next word.
            value = (value & ((1 << kept) - 1)) | (units[:, word + 1] << kept)
        codes[:, row] = value & mask
    return codes.flatten(0, 1)
