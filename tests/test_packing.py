"""Round-to-nearest packing, judged by slow scalar code that shares nothing with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import relative_error

from lm_eval_exl2.checkpoint import decode
from lm_eval_exl2.checkpoint.packing import (
    WidthMix,
    important_rows_first,
    pack_codes,
    pack_linear,
    packed_bits,
)
from lm_eval_exl2.errors import ModelFormatError, OptionError

WIDTHS = (8, 6, 5, 4, 3, 2)


def bits_of_column(words, column):
    """All bits of a packed column as one integer, the first row lowest."""
    return sum((int(word) & 0xFFFFFFFF) << (32 * row) for row, word in enumerate(words[:, column]))


def scalar_steps(tensors):
    """Steps by group and column, computed number by number in numpy's float16."""
    scale = tensors["q_scale"].numpy()
    steps = np.zeros((scale.shape[0], scale.shape[1] * 8), np.float16)
    for group in range(steps.shape[0]):
        largest = np.float32(tensors["q_scale_max"][group]) * np.float32(1 / 256)
        for column in range(steps.shape[1]):
            code = (int(scale[group, column // 8]) & 0xFFFFFFFF) >> (4 * (column % 8)) & 15
            steps[group, column] = np.float16((code + 1) ** 2) * np.float16(largest)
    return steps


def scalar_unpack(tensors):
    """Codes, widths and group of every packed row, read bit by bit."""
    words, table = tensors["q_weight"], [int(v) & 0xFFFF for v in tensors["q_groups"]]
    ends = [*table[3::2], len(words)]
    codes, widths, groups = [], [], []
    for group, end in enumerate(ends):
        bits, start = table[2 * group], table[2 * group + 1]
        streams = [bits_of_column(words[start:end], column) for column in range(words.shape[1])]
        for row in range((end - start) * 32 // bits):
            codes.append([stream >> (row * bits) & ((1 << bits) - 1) for stream in streams])
            widths.append(bits)
            groups.append(group)
    return np.array(codes), np.array(widths), np.array(groups)


def gaussian(out_features, in_features, size=0.02):
    generator = torch.Generator().manual_seed(out_features)
    return torch.randn(out_features, in_features, generator=generator) * size


def test_codes_fill_words_from_the_lowest_bit():
    rows = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8], dtype=torch.int32).unsqueeze(1)
    assert pack_codes(rows, 4).tolist() == [[0x87654321 - (1 << 32)]]
    assert pack_codes(rows[:4], 8).tolist() == [[0x04030201]]
    threes = torch.zeros(32, 1, dtype=torch.int32)
    threes[10] = 0b101  # bits 30, 31 and 32: straddles the first two words
    assert pack_codes(threes, 3).tolist() == [[1 << 30], [1], [0]]


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_reads_back_bit_by_bit(bits):
    codes = torch.randint(0, 1 << bits, (64, 3), dtype=torch.int32)
    words = pack_codes(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (64 * bits // 32, 3)
    for column in range(3):
        stream = bits_of_column(words, column)
        read = [stream >> (row * bits) & ((1 << bits) - 1) for row in range(64)]
        assert read == codes[:, column].tolist()


MIXES = {
    "one width": [(4, 96, 32)],
    "two widths": [(5, 32, 32), (4, 64, 32)],
    "all widths": [(8, 32, 32), (6, 32, 32), (5, 32, 32), (4, 64, 64), (3, 32, 32), (2, 64, 16)],
    "short last group": [(3, 128, 64), (2, 96, 64)],
}


@pytest.mark.parametrize("plan", MIXES.values(), ids=MIXES.keys())
def test_a_scalar_reader_finds_the_nearest_codes(plan):
    in_features = sum(rows for _, rows, _ in plan)
    weight = gaussian(33, in_features)
    permutation = torch.randperm(in_features, generator=torch.Generator().manual_seed(5))
    tensors = pack_linear(weight, plan, permutation)
    codes, widths, groups = scalar_unpack(tensors)
    assert [int((widths == bits).sum()) for bits, _, _ in plan] == [rows for _, rows, _ in plan]
    steps = scalar_steps(tensors)[groups]
    zero = 1 << (widths - 1)
    original = weight.half().float().numpy().T[permutation.numpy()]
    wanted = np.rint(original / steps[:, :33].astype(np.float32)) + zero[:, None]
    assert np.array_equal(codes[:, :33], wanted.clip(0, 2 * zero[:, None] - 1))
    assert (codes[:, 33:] == zero[:, None]).all()
    inverse = tensors["q_invperm"].numpy()
    assert np.array_equal(inverse[permutation.numpy()], np.arange(in_features))
    values = (codes - zero[:, None]).astype(np.float16) * steps
    assert np.array_equal(decode(tensors).numpy(), values[inverse].T)


@settings(max_examples=25)
@given(
    bits=st.sampled_from(WIDTHS),
    size=st.sampled_from([1e-4, 0.02, 5.0, 3000.0]),
    tail=st.floats(0.3, 3.0),
    seed=st.integers(0, 999),
)
def test_errors_stay_within_half_a_step_unless_clamped(bits, size, tail, seed):
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(seed))
    weight = (weight.sign() * weight.abs() ** tail * size).clamp(-60000, 60000).half()
    tensors = pack_linear(weight, [(bits, 64, 32)])
    steps = torch.from_numpy(scalar_steps(tensors)).double().repeat_interleave(32, 0).t()
    decoded, original = decode(tensors).double(), weight.double()
    low, high = -(1 << (bits - 1)) * steps, ((1 << (bits - 1)) - 1) * steps
    clamped = original.clamp(low, high)
    rounding = decoded.abs() * 2**-11 + 2**-24  # of the product, to float16
    assert ((decoded - clamped).abs() <= steps / 2 + rounding).all()


# Measured once; the ratio of neighbours is what halving the step gives.
GAUSSIAN_ERROR = {8: 0.0059, 6: 0.0236, 5: 0.0473, 4: 0.0952, 3: 0.197, 2: 0.401}


@pytest.mark.parametrize("bits", WIDTHS)
def test_error_of_gaussian_weights_is_what_rounding_costs(bits):
    weight = gaussian(256, 256)
    tensors = pack_linear(weight, [(bits, 256, 32)], important_rows_first(weight))
    assert relative_error(decode(tensors).float(), weight) == pytest.approx(
        GAUSSIAN_ERROR[bits], rel=0.06
    )


@pytest.mark.parametrize(("out_features", "columns"), [(33, 64), (100, 128), (128, 128), (1, 32)])
def test_columns_are_padded_and_padding_decodes_to_zero(out_features, columns):
    tensors = pack_linear(gaussian(out_features, 64), [(4, 64, 64)])
    decoded = decode(tensors)
    assert decoded.shape == (columns, 64)
    assert not decoded[out_features:].any()


def test_weights_near_the_smallest_float16_keep_their_size():
    decoded = decode(pack_linear(torch.full((32, 32), 1e-5), [(8, 32, 32)]))
    assert (decoded / 1e-5 - 1).abs().max() < 0.3
    for value in (0.0, 1e-8):
        assert not decode(pack_linear(torch.full((32, 32), value), [(8, 32, 32)])).any()


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_largest_weights_float16_holds_decode_finite(bits):
    weight = torch.full((32, 32), -65504.0)
    weight[:, ::2] *= -0.5
    decoded = decode(pack_linear(weight, [(bits, 32, 32)])).float()
    assert relative_error(decoded, weight) < 0.5


def test_one_outlier_does_not_erase_the_other_columns():
    weight = gaussian(64, 64)
    weight[0] *= 1000
    decoded = decode(pack_linear(weight, [(6, 64, 32)])).float()
    # A scale code of 1 of 16 is the finest there is: 1/256 of the largest step of the group.
    assert relative_error(decoded[1:], weight[1:]) < 0.2


def test_wide_rows_hold_the_features_with_the_longest_weights():
    weight = gaussian(32, 128)
    weight[:, 100:] *= 5
    order = important_rows_first(weight)
    assert set(order[:28].tolist()) == set(range(100, 128))
    tensors = pack_linear(weight, [(8, 32, 32), (2, 96, 32)], order)
    errors = (decode(tensors).float() - weight).norm(dim=0) / weight.norm(dim=0)
    assert errors[100:].max() < 0.02 < 0.2 < errors[order[32:]].min()


@given(
    bits=st.floats(2, 8),
    sizes=st.lists(
        st.tuples(st.integers(1, 40).map(lambda n: n * 8), st.integers(1, 20)), min_size=1
    ),
)
def test_a_mix_meets_the_average_within_one_group_of_rows(bits, sizes):
    mix, total, weights = WidthMix(bits), 0, 0
    for out_features, blocks in sizes:
        plan = mix.plan(out_features, blocks * 32)
        assert sum(rows for _, rows, _ in plan) == blocks * 32
        assert [width for width, _, _ in plan] == sorted({w for w, _, _ in plan}, reverse=True)
        total += sum(width * rows * out_features for width, rows, _ in plan)
        weights += out_features * blocks * 32
    largest = max(out_features for out_features, _ in sizes) * 32
    between = 2 if bits > 6 else 1
    assert abs(total - bits * weights) <= between * largest


@pytest.mark.parametrize(
    "plan",
    [
        [(4, 32, 32)],
        [(4, 96, 32)],
        [(4, 32, 32), (5, 32, 32)],
        [(7, 64, 32)],
        [(4, 64, 24)],
        [(5, 16, 16), (4, 48, 16)],
        [(4, 48, 32), (3, 16, 32)],
        [(4, 64, 0)],
        [(4, 64, 32), (3, 0, 32)],
    ],
)
def test_plans_that_exllamav2_cannot_read_are_refused(plan):
    with pytest.raises(OptionError, match="plan"):
        pack_linear(gaussian(32, 64), plan)


def test_a_permutation_that_repeats_a_feature_is_refused():
    with pytest.raises(OptionError, match="permutation"):
        pack_linear(gaussian(32, 64), [(4, 64, 32)], torch.zeros(64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_float16_cannot_hold_are_refused(value):
    weight = gaussian(32, 64)
    weight[3, 4] = value
    with pytest.raises(ModelFormatError, match="float16"):
        pack_linear(weight, [(4, 64, 32)])


def test_packed_bits_leave_the_bias_out():
    tensors = pack_linear(gaussian(32, 64), [(4, 64, 32)])
    assert packed_bits({**tensors, "bias": torch.zeros(32)}) == packed_bits(tensors)
    assert packed_bits(tensors) == 64 * 32 * 4 + 2 * 32 * 4 + 2 * 16 + 2 * 32 + 64 * 32
