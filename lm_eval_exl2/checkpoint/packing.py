"""Packs the weight of one linear layer into EXL2 tensors by rounding to the nearest code.

The twin of `format.decode`: codes are chosen against exactly the step the decoder will use, both
float16 roundings included, so what is packed is what is read. Scales follow exllamav2's
quantizer (0.3.2, `conversion/adaptivegptq.py`): 4-bit square-root codes below one float16
maximum per group, the maximum searched for the smallest sum of |error|**3.5.

Not a substitute for exllamav2's conversion: nothing is calibrated on data, no rounding error is
fed forward, and no width is chosen by measuring. At the same size its checkpoints are better.
Knows nothing of files or models.

Shape suffixes: K input features, N stored columns, G groups, R rows of one group.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from lm_eval_exl2.checkpoint.format import BIT_WIDTHS, COLUMN_MULTIPLE, WORD_BITS
from lm_eval_exl2.errors import ModelFormatError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

GROUP_ROWS = 32
"""Rows per group that `WidthMix` plans: the finest every width allows, best for plain rounding."""
MAX_IN_FEATURES = (1 << 16) - WORD_BITS
"""exllamav2 keeps its permutation in 16 bits."""

# Factors tried on a group's largest scale. exllamav2 tries 97 in the same range; the error is
# flat around its minimum, so a coarser grid finds the same scale for a quarter of the time.
_FACTORS = tuple(0.70 + 0.02 * index for index in range(26))
_SMALLEST_SCALE = 2.0**-16
"""Keeps every step above 0: the decoder rounds scales to multiples of a 256th of this."""
_CHUNK_ELEMENTS = 1 << 20
"""Weights worked on at once: few enough to stay in a processor's cache."""
_SEARCH_COLUMNS = 256
"""Columns that judge a group's scale: beyond a few hundred the verdict no longer changes."""
_PACKED = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")


class PackedGroups(NamedTuple):
    """Some packed groups of one width."""

    words: torch.Tensor
    scale_codes: torch.Tensor
    """uint8 (G, N), 1 to 16."""
    scale_max: torch.Tensor
    """float16 (G,)."""


class WidthMix:
    """Splits the rows of each layer between two neighbouring widths to meet an average.

    Rows come in groups, so a small layer alone may miss the average; what one layer has too
    much of is taken from the next, and a whole model comes out within one group of it.
    """

    def __init__(self, bits: float, group_rows: int = GROUP_ROWS) -> None:
        """Prepare for an average width.

        Args:
            bits: Average width of the codes, 2 to 8.
            group_rows: Rows per group; the input features of every layer are whole groups.

        Raises:
            OptionError: not between 2 and 8.
        """
        if not BIT_WIDTHS[-1] <= bits <= BIT_WIDTHS[0]:
            raise OptionError(f"bits is {bits}, expected a number from 2 to 8")
        self._wide = min(width for width in BIT_WIDTHS if width >= bits)
        self._narrow = max(width for width in BIT_WIDTHS if width <= bits)
        between = self._wide - self._narrow
        self._share = (bits - self._narrow) / between if between else 1.0
        self._group_rows = group_rows
        self._owed_weights = 0.0

    def plan(self, out_features: int, in_features: int) -> list[tuple[int, int, int]]:
        """Return (bits, rows, rows per group) for the next layer, wide rows first."""
        self._owed_weights += self._share * in_features * out_features
        groups = round(self._owed_weights / (out_features * self._group_rows))
        wide_rows = min(max(groups * self._group_rows, 0), in_features)
        self._owed_weights -= wide_rows * out_features
        split = ((self._wide, wide_rows), (self._narrow, in_features - wide_rows))
        return [(bits, rows, self._group_rows) for bits, rows in split if rows]


def important_rows_first(weight: torch.Tensor) -> torch.Tensor:
    """Order input features by the length of their weight vectors, longest first.

    A stand-in for exllamav2's order, which needs activations. Rows of similar length also
    share groups, which helps the scales.

    Args:
        weight: (out, in).

    Returns:
        int64 (in,): the feature that each packed row holds.
    """
    lengths = cast(
        "torch.Tensor",
        torch.linalg.vector_norm(weight, dim=0, dtype=torch.float32),  # pyright: ignore[reportUnknownMemberType]
    )
    return torch.sort(lengths, descending=True, stable=True).indices


def pack_linear(
    weight: torch.Tensor,
    plan: Sequence[tuple[int, int, int]],
    permutation: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Pack a weight; round to nearest, see the module's warning on quality.

    Args:
        weight: (out, in), any float dtype; `in` a multiple of 32.
        plan: (bits, rows, rows per group) per width, in packed order, wide to narrow. Only the
            last group of the layer may be shorter than its run says.
        permutation: The input feature each packed row holds; None keeps the order.

    Returns:
        The five stored tensors by short name. Columns are padded to a multiple of 32; the
        padding decodes to 0.

    Raises:
        OptionError: the plan or the permutation does not fit the weight.
        ModelFormatError: the weight is not finite in float16 or EXL2 cannot hold its shape.
    """
    weight_KN = _prepare(weight)
    in_features = weight_KN.shape[0]
    _check_plan(plan, in_features)
    order = torch.arange(in_features) if permutation is None else permutation.long().cpu()
    if not torch.equal(order.sort().values, torch.arange(in_features)):
        raise OptionError(f"the permutation does not list each of {in_features} features once")
    parts: list[PackedGroups] = []
    table: list[int] = []
    words = 0
    for bits, rows in _chunks(plan, weight_KN.shape[1]):
        first, count, group_rows = rows
        chosen = order[first : first + count].to(weight.device)
        part = quantize_groups(
            weight_KN[chosen].reshape(count // group_rows, group_rows, -1).float(), bits
        )
        parts.append(part)
        for _ in range(count // group_rows):
            table += [bits, words]
            words += group_rows * bits // WORD_BITS
    scale_codes = torch.cat([part.scale_codes for part in parts])
    return {
        "q_weight": torch.cat([part.words for part in parts]),
        "q_invperm": order.argsort().int().to(weight.device),
        "q_scale": pack_scale_codes(scale_codes),
        "q_scale_max": torch.cat([part.scale_max for part in parts]),
        "q_groups": pack_group_table(table).to(weight.device),
    }


def packed_bits(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the stored bits of one packed layer: codes, scales, group table, permutation."""
    return sum(8 * tensors[name].nbytes for name in _PACKED)


def _prepare(weight: torch.Tensor) -> torch.Tensor:
    """Return float16 (in, padded out), checked."""
    out_features, in_features = weight.shape
    if in_features % WORD_BITS or not 0 < in_features <= MAX_IN_FEATURES:
        raise ModelFormatError(
            f"{in_features} input features, EXL2 holds multiples of 32 up to {MAX_IN_FEATURES}"
        )
    weight_KN = weight.detach().half().t()
    if not torch.isfinite(weight_KN).all():
        raise ModelFormatError("the weight holds NaN, infinity or values beyond float16")
    return torch.nn.functional.pad(weight_KN, (0, -out_features % COLUMN_MULTIPLE))


def _check_plan(plan: Sequence[tuple[int, int, int]], in_features: int) -> None:
    widths = [bits for bits, _, _ in plan]
    if sum(rows for _, rows, _ in plan) != in_features or min(rows for _, rows, _ in plan) < 1:
        raise OptionError(f"plan {list(plan)} does not cover {in_features} input features")
    if widths != sorted(widths, reverse=True) or not set(widths) <= set(BIT_WIDTHS):
        raise OptionError(f"plan {list(plan)}: widths must be of {BIT_WIDTHS}, wide to narrow")
    for index, (bits, rows, group_rows) in enumerate(plan):
        least = 16 if bits == 2 else 32
        short = rows % group_rows if group_rows > 0 else 1
        if group_rows % least or short % least or (short and index < len(plan) - 1):
            raise OptionError(
                f"plan {list(plan)}: {rows} rows of {bits} bits are no whole groups of "
                f"{group_rows} (a multiple of {least})"
            )


def _chunks(
    plan: Sequence[tuple[int, int, int]], columns: int
) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Yield bits and (first row, rows, rows per group) of pieces small enough to work on."""
    first = 0
    for bits, rows, group_rows in plan:
        whole = rows // group_rows
        step = max(1, _CHUNK_ELEMENTS // (group_rows * columns))
        for start in range(0, whole, step):
            count = min(step, whole - start) * group_rows
            yield bits, (first + start * group_rows, count, group_rows)
        rest = rows % group_rows
        if rest:
            yield bits, (first + rows - rest, rest, rest)
        first += rows


def quantize_groups(weight_GRN: torch.Tensor, bits: int) -> PackedGroups:
    """Quantize groups of equal size: choose scales, round, pack.

    Args:
        weight_GRN: float32.
        bits: Width of the codes.
    """
    scale_max, squares_GN = _search_scales(weight_GRN, bits)
    codes_GRN = _round(weight_GRN, _steps(squares_GN, scale_max), bits)
    words = pack_codes(codes_GRN.flatten(0, 1).int(), bits)
    return PackedGroups(words, squares_GN.sqrt().to(torch.uint8), scale_max)


def _search_scales(weight_GRN: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest scale of each group, float16 (G,), and squared codes, float16 (G, N)."""
    base_GN = (weight_GRN.abs().amax(dim=1) + 1e-12) / (((1 << bits) - 1) / 2)
    largest_G = base_GN.amax(dim=1).clamp_min(_SMALLEST_SCALE)
    codes_GN = (16 * (base_GN / largest_G[:, None]).sqrt()).round().clamp(1, 16)
    squares_GN = (codes_GN**2).half()
    stride = -(-weight_GRN.shape[2] // _SEARCH_COLUMNS)
    judged_GRN, judged_squares_GN = weight_GRN[..., ::stride], squares_GN[:, ::stride]
    best_G, best_error_G = largest_G.half(), torch.full_like(largest_G, math.inf)
    # The lowest code times the largest step must stay finite.
    limit = torch.finfo(torch.float16).max / (1 << (bits - 1))
    for factor in _FACTORS:
        candidate_G = (largest_G * factor).clamp_max(limit).half()
        steps_GN = _steps(judged_squares_GN, candidate_G)
        rounded = _round(judged_GRN, steps_GN, bits).sub_(1 << (bits - 1)).mul_(steps_GN[:, None])
        # Relative to the group's scale: the power of a tiny error must not underflow.
        error = rounded.sub_(judged_GRN).div_(largest_G[:, None, None]).abs_()
        error_G = error.pow(3).mul_(error.sqrt_()).sum(dim=(1, 2))
        better_G = error_G < best_error_G
        best_G = torch.where(better_G, candidate_G, best_G)
        best_error_G = torch.where(better_G, error_G, best_error_G)
    return best_G, squares_GN


def _steps(squares_GN: torch.Tensor, scale_max_G: torch.Tensor) -> torch.Tensor:
    """Return the decoder's step, rounded to float16 twice, as float32 (G, N)."""
    return (squares_GN * (scale_max_G * (1 / 256))[:, None]).float()


def _round(weight_GRN: torch.Tensor, steps_GN: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the nearest codes as float32, 0 to 2**bits - 1."""
    zero = 1 << (bits - 1)
    return (weight_GRN / steps_GN[:, None]).round_().add_(zero).clamp_(0, 2 * zero - 1)


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes into one bit stream per column, lowest bit first.

    Args:
        codes: int32 (rows, N), 0 to 2**bits - 1, rows filling whole 32-bit words.
        bits: Field width.

    Returns:
        int32 (rows * bits / 32, N).
    """
    rows, columns = codes.shape
    group_rows = WORD_BITS // math.gcd(bits, WORD_BITS)
    units = codes.reshape(rows // group_rows, group_rows, columns)
    shape = (units.shape[0], group_rows * bits // WORD_BITS, columns)
    words = torch.zeros(shape, dtype=torch.int64, device=codes.device)
    for row in range(group_rows):
        word, offset = divmod(row * bits, WORD_BITS)
        field = units[:, row].long() << offset
        words[:, word] |= field & 0xFFFFFFFF
        if offset + bits > WORD_BITS:
            words[:, word + 1] |= field >> WORD_BITS
    return _as_int32(words).flatten(0, 1)


def pack_scale_codes(codes_GN: torch.Tensor) -> torch.Tensor:
    """Pack scale codes 1 to 16 of every group and column: int32 (G, N / 8)."""
    shifts = torch.arange(0, WORD_BITS, 4, device=codes_GN.device)
    nibbles = codes_GN.long().sub(1).reshape(len(codes_GN), -1, 8)
    return _as_int32(torch.sum(nibbles << shifts, dim=2))


def pack_group_table(table: Sequence[int]) -> torch.Tensor:
    """Store bits and first packed row of each group as int16 that are read as unsigned."""
    return torch.tensor(table, dtype=torch.int32).to(torch.int16)


def _as_int32(words: torch.Tensor) -> torch.Tensor:
    """Reinterpret unsigned 32-bit values held in int64 as int32."""
    return ((words ^ (1 << 31)) - (1 << 31)).int()
