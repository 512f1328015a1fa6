"""Slow, scalar decoders of EXL2 and 4-bit GPTQ layers, and random valid layers to try them on.

Every code is read on its own from the description of the file format, with Python integers for
the bit streams and numpy's float16 and float32 for the roundings. They share no
code and no idea with the package's decoders: agreement bit for bit means something.
"""

import numpy as np
import torch

WIDTHS = (8, 6, 5, 4, 3, 2)
WORD = 32


def half(value):
    """Round a number or an array to the nearest float16, ties to even."""
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(np.float16)


def exl2_weight(tensors, prescale=1.0):
    """Decode an EXL2 layer: float16 array (columns, in_features)."""
    words = tensors["q_weight"].tolist()
    scales = tensors["q_scale"].tolist()
    columns = len(words[0])
    packed = []  # one float16 row for each packed row
    for group, (bits, first, end) in enumerate(_group_bounds(tensors)):
        # exllamav2: w["q_scale_max"] *= prescale / 256, computed in float32, stored in float16
        largest = half(
            np.float32(tensors["q_scale_max"][group].item()) * np.float32(prescale / 256)
        )
        steps = np.array([_step(scales[group], column, largest) for column in range(columns)])
        streams = [_stream(words[first:end], column) for column in range(columns)]
        for row in range((end - first) * WORD // bits):
            codes = [(stream >> row * bits) % 2**bits - 2 ** (bits - 1) for stream in streams]
            packed.append(half(np.array(codes, np.float32) * steps.astype(np.float32)))
    weight = np.empty((columns, len(packed)), np.float16)
    for feature, row in enumerate(tensors["q_invperm"].tolist()):
        weight[:, feature] = packed[row]
    return weight


def _group_bounds(tensors):
    """Width, first word and end of every group."""
    table = [value % 65536 for value in tensors["q_groups"].tolist()]
    starts = [*table[1::2], len(tensors["q_weight"])]
    return [(bits, starts[i], starts[i + 1]) for i, bits in enumerate(table[0::2])]


def _step(scale_row, column, largest):
    """Step of one column: (code + 1) squared times the group's largest scale, in float16."""
    nibble = scale_row[column // 8] % 2**WORD >> 4 * (column % 8) & 0xF
    return half(np.float32((nibble + 1) ** 2) * np.float32(largest))


def _stream(words, column):
    """The words of a column as one little-endian integer."""
    return sum(row[column] % 2**WORD << WORD * index for index, row in enumerate(words))


def gptq_weight(tensors, group_size, zero_offset):
    """Decode a 4-bit GPTQ layer: float16 array (columns, in_features)."""
    qweight, qzeros = tensors["qweight"].tolist(), tensors["qzeros"].tolist()
    scales = tensors["scales"].half().tolist()
    columns, in_features = len(qweight[0]), 8 * len(qweight)
    groups = [feature // group_size for feature in range(in_features)]
    if "g_idx" in tensors and any(tensors["g_idx"].tolist()):
        groups = tensors["g_idx"].tolist()
    weight = np.empty((columns, in_features), np.float16)
    for feature in range(in_features):
        group = groups[feature]
        for column in range(columns):
            code = qweight[feature // 8][column] % 2**WORD >> 4 * (feature % 8) & 0xF
            zero = qzeros[group][column // 8] % 2**WORD >> 4 * (column % 8) & 0xF
            step = np.float32(scales[group][column])
            weight[column, feature] = half(np.float32(code - zero - zero_offset) * step)
    return weight


def random_words(generator, *shape):
    """Random int32: every bit pattern is a valid set of codes."""
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, generator=generator)


def random_exl2(generator, plan, columns, *, permuted=True, largest=0.01):
    """Make the tensors of one valid EXL2 layer.

    Args:
        generator: Source of randomness.
        plan: Width and rows of each group, wide first.
        columns: Stored columns, a multiple of 32.
        permuted: Whether rows are stored in a random order.
        largest: Scale of the group scales; below 2**-16 they become subnormal.
    """
    table, first = [], 0
    for bits, rows in plan:
        table += [bits, first]
        first += rows * bits // WORD
    in_features = sum(rows for _, rows in plan)
    order = torch.arange(in_features)
    if permuted:
        order = torch.randperm(in_features, generator=generator)
    scale_max = (torch.rand(len(plan), generator=generator) + 0.5) * largest
    return {
        "q_weight": random_words(generator, first, columns),
        "q_invperm": order.int(),
        "q_scale": random_words(generator, len(plan), columns // 8),
        "q_scale_max": scale_max.half(),
        "q_groups": torch.tensor(table, dtype=torch.int16),
    }


def random_gptq(generator, in_features, columns, group_size, *, order="none"):
    """Make the tensors of one valid 4-bit GPTQ layer; `order` is none, zero, plain or random."""
    groups = -(-in_features // group_size)
    tensors = {
        "qweight": random_words(generator, in_features // 8, columns),
        "qzeros": random_words(generator, groups, columns // 8),
        "scales": (torch.rand(groups, columns, generator=generator) * 0.02).half(),
    }
    group_of = torch.arange(in_features) // group_size
    if order == "random":
        group_of = group_of[torch.randperm(in_features, generator=generator)]
    if order != "none":
        tensors["g_idx"] = (group_of * 0 if order == "zero" else group_of).int()
    return tensors


def random_plan(random, max_groups=6):
    """Draw widths and rows of groups: descending widths, mixed group sizes, rows % 32 == 0."""
    widths = sorted(random.choice(WIDTHS) for _ in range(random.randint(1, max_groups)))[::-1]
    plan = [(bits, random.choice((32, 32, 64, 128))) for bits in widths]
    bits, rows = plan[-1]
    if bits == 2 and random.random() < 0.5:  # two bits alone may come in groups of 16
        plan[-1:] = [(2, 16)] * (rows // 16)
    return plan
