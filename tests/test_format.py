"""Decoding of single layers: against exllamav2's own results and against scalar twins."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import exl2_weight, gptq_weight, random_exl2, random_gptq, random_plan
from safetensors import safe_open

from lm_eval_exl2.checkpoint import decode, gptq
from lm_eval_exl2.checkpoint import format as exl2
from lm_eval_exl2.errors import ModelFormatError

GOLDEN = Path(__file__).parent / "data" / "exl2_golden.safetensors"
with safe_open(str(GOLDEN), framework="pt") as _file:
    CASES = json.loads(_file.metadata()["cases"])

# Every width alone, all together, groups of 16 for two bits, a short last group.
PLANS = [
    *([(bits, 128), (bits, 32)] for bits in exl2.BIT_WIDTHS),
    [(2, 16), (2, 16), (2, 64)],
    [(bits, 32) for bits in exl2.BIT_WIDTHS],
    [(8, 32), (6, 64), (6, 32), (3, 128), (2, 16), (2, 16)],
]


def same_bits(found, expected):
    return torch.equal(found.view(torch.int16), expected.view(torch.int16))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(plan=((4, 32), (3, 32)), columns=32, **options):
    return random_exl2(generator(), list(plan), columns, **options)


# -- EXL2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['name']}-{case['bits']}")
def test_golden_layers_decode_to_what_exllamav2_reconstructs(case):
    with safe_open(str(GOLDEN), framework="pt") as file:
        tensors = {name: file.get_tensor(f"{case['name']}.{name}") for name in exl2.TENSOR_NAMES}
        expected = file.get_tensor(f"{case['name']}.expected_weight")
    assert same_bits(decode(tensors, case["prescale"]), expected)


def test_the_scalar_twin_agrees_with_exllamav2_too():
    case = CASES[4]
    with safe_open(str(GOLDEN), framework="pt") as file:
        tensors = {name: file.get_tensor(f"{case['name']}.{name}") for name in exl2.TENSOR_NAMES}
        expected = file.get_tensor(f"{case['name']}.expected_weight")
    assert same_bits(torch.from_numpy(exl2_weight(tensors, case["prescale"])), expected)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("permuted", [True, False], ids=["permuted", "in-order"])
def test_every_width_equals_the_scalar_twin(plan, permuted):
    tensors = layer(plan, permuted=permuted)
    assert same_bits(decode(tensors), torch.from_numpy(exl2_weight(tensors)))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    blocks=st.integers(1, 2),
    permuted=st.booleans(),
    largest=st.sampled_from([0.5, 0.01, 2.0**-14, 2.0**-19]),
    prescale=st.sampled_from([1.0, 0.2236, 1 / 16, 12.0]),
)
def test_random_layers_equal_the_scalar_twin_bit_for_bit(seed, blocks, permuted, largest, prescale):
    plan = random_plan(random.Random(seed), max_groups=4)
    tensors = random_exl2(generator(seed), plan, 32 * blocks, permuted=permuted, largest=largest)
    expected = torch.from_numpy(exl2_weight(tensors, prescale))
    assert same_bits(decode(tensors, prescale), expected)


def test_wide_layers_are_decoded_in_blocks_without_a_seam(monkeypatch):
    tensors = layer([(5, 64), (2, 32)], columns=160)
    whole = decode(tensors)
    monkeypatch.setattr(exl2, "_BLOCK_ELEMENTS", 1)
    assert same_bits(decode(tensors), whole)


def test_stored_q_perm_and_bias_do_not_change_the_weight():
    tensors = layer()
    more = tensors | {"q_perm": torch.zeros(64, dtype=torch.int32), "bias": torch.ones(32)}
    assert same_bits(decode(more), decode(tensors))


def test_a_padding_code_decodes_to_zero():
    tensors = layer([(4, 32)])
    tensors["q_weight"][:, 7] = torch.tensor(0x88888888 - 2**32, dtype=torch.int64).int()
    assert not decode(tensors)[7].any()


def table(*values):
    return torch.tensor(values, dtype=torch.int16)


BROKEN_LAYERS = {
    "EXL2 tensors missing: q_scale": {"q_scale": None},
    "q_weight has shape (56,), expected 2-d": {"q_weight": torch.zeros(56, dtype=torch.int32)},
    "empty layer": {"q_weight": torch.zeros(0, 32, dtype=torch.int32)},
    "q_weight has 40 columns": {"q_weight": torch.zeros(7, 40, dtype=torch.int32)},
    "lists 60 input features, expected a multiple of 32": {
        "q_invperm": torch.arange(60, dtype=torch.int32)
    },
    "lists 65536 input features, expected a multiple of 32 below 65536": {
        "q_invperm": torch.arange(65536, dtype=torch.int32)
    },
    "q_scale has shape (3, 4), expected (2, 4)": {"q_scale": torch.zeros(3, 4, dtype=torch.int32)},
    "q_groups has shape (6,), expected (4,)": {"q_groups": table(4, 0, 3, 4, 2, 7)},
    "q_groups starts at packed row 1": {"q_groups": table(4, 1, 3, 4)},
    "unknown width 7": {"q_groups": table(7, 0, 3, 4)},
    "width 4 after 3": {"q_groups": table(3, 0, 4, 3)},
    "spans packed rows 0 to 3, expected a multiple of 32 rows of 4 bits": {
        "q_groups": table(4, 0, 3, 3)
    },
    "spans packed rows 4 to 4": {"q_weight": torch.zeros(4, 32, dtype=torch.int32)},
    "spans packed rows 4 to 2": {"q_weight": torch.zeros(2, 32, dtype=torch.int32)},
    "groups hold 64 rows, but q_invperm lists 96": {
        "q_invperm": torch.arange(96, dtype=torch.int32)
    },
    "q_weight is torch.int64": {"q_weight": torch.zeros(7, 32, dtype=torch.int64)},
    "q_scale_max is torch.float32": {"q_scale_max": torch.ones(2)},
    "not a permutation": {"q_invperm": torch.zeros(64, dtype=torch.int32)},
    "q_scale_max holds NaN": {"q_scale_max": torch.tensor([1.0, float("nan")]).half()},
}


@pytest.mark.parametrize("message", BROKEN_LAYERS)
def test_a_layer_that_contradicts_itself_is_refused(message):
    changed = layer() | BROKEN_LAYERS[message]
    with pytest.raises(ModelFormatError) as caught:
        decode({name: tensor for name, tensor in changed.items() if tensor is not None})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_beyond_float16_are_refused_but_unused_codes_are_not():
    tensors = layer([(4, 32)])
    tensors["q_scale"] = torch.full((1, 4), -1, dtype=torch.int32)  # the largest steps
    tensors["q_scale_max"] = torch.tensor([30000.0]).half()
    tensors["q_weight"] = torch.full((4, 32), 0x77777777, dtype=torch.int32)  # code -1 everywhere
    assert decode(tensors).unique().tolist() == [-30000.0]
    tensors["q_weight"][0, 0] = 0
    with pytest.raises(ModelFormatError, match="overflow float16"):
        decode(tensors)


# -- GPTQ ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["none", "zero", "plain", "random"])
@pytest.mark.parametrize("zero_offset", [0, 1], ids=["gptq_v2", "gptq"])
@pytest.mark.parametrize(("in_features", "group_size"), [(64, 32), (96, 64), (64, 64)])
def test_gptq_layers_equal_the_scalar_twin(order, zero_offset, in_features, group_size):
    tensors = random_gptq(generator(), in_features, 40, group_size, order=order)
    expected = torch.from_numpy(gptq_weight(tensors, group_size, zero_offset))
    found = gptq.decode(tensors, group_size=group_size, zero_offset=zero_offset)
    assert same_bits(found, expected)


def test_gptq_scales_of_other_float_types_are_rounded_to_float16_first():
    tensors = random_gptq(generator(), 32, 16, 32)
    tensors["scales"] = tensors["scales"].float() * 1.0001
    expected = torch.from_numpy(gptq_weight(tensors, 32, 1))
    assert same_bits(gptq.decode(tensors), expected)


def test_wide_gptq_layers_are_decoded_in_blocks_without_a_seam(monkeypatch):
    tensors = random_gptq(generator(), 64, 80, 32, order="random")
    whole = gptq.decode(tensors)
    monkeypatch.setattr(gptq, "_BLOCK_ELEMENTS", 1)
    assert same_bits(gptq.decode(tensors), whole)


BROKEN_GPTQ = {
    "GPTQ tensors missing: qzeros": {"qzeros": None},
    "must be 2-d and not empty": {"scales": torch.zeros(2, 0).half()},
    "columns disagree": {"scales": torch.zeros(2, 24).half()},
    "qzeros has shape (1, 2), expected (2, 2)": {"qzeros": torch.zeros(1, 2, dtype=torch.int32)},
    "g_idx has shape (32,), expected (64,)": {"g_idx": torch.zeros(32, dtype=torch.int32)},
    "g_idx points at group 5, but there are 2": {"g_idx": torch.full((64,), 5)},
    "g_idx points at group -1": {"g_idx": torch.full((64,), -1)},
    "g_idx is torch.float16": {"g_idx": torch.zeros(64).half()},
    "2 groups of 64 do not make 64": {"g_idx": torch.zeros(64, dtype=torch.int32)},
    "must be int32": {"qweight": torch.zeros(8, 16, dtype=torch.int64)},
    "GPTQ scales are torch.int32": {"scales": torch.zeros(2, 16, dtype=torch.int32)},
    "NaN or infinity": {"scales": torch.full((2, 16), float("inf")).half()},
}


@pytest.mark.parametrize("message", BROKEN_GPTQ)
def test_a_gptq_layer_that_contradicts_itself_is_refused(message):
    changed = random_gptq(generator(), 64, 16, 32, order="plain") | BROKEN_GPTQ[message]
    with pytest.raises(ModelFormatError) as caught:
        gptq.decode({name: t for name, t in changed.items() if t is not None})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "awq"}, "'awq' with 4 bits"),
        ({"bits": 8}, "'gptq' with 8 bits"),
        ({"bits": "4"}, "with '4' bits"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"group_size": "32"}, "group_size is '32'"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": True}, "group_size is True"),
    ],
)
def test_other_quantizations_are_refused(quantization, message):
    with pytest.raises(ModelFormatError) as caught:
        gptq.check_quantization(quantization)
    assert message in str(caught.value)
