"""Bytes, operations and roofs, counted by hand; rates on a scripted clock."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from tiny_models import save_model
from transformers.pytorch_utils import Conv1D

import lm_eval_exl2
from lm_eval_exl2.bench.device_rates import copy_rate, matmul_rate, measure_device
from lm_eval_exl2.bench.model_size import ModelSize, size_of_model
from lm_eval_exl2.bench.roofline import DeviceRates, reached_in_decoding, reached_in_prefill
from lm_eval_exl2.checkpoint.reader import Checkpoint
from lm_eval_exl2.errors import ModelFormatError, OptionError

DEMO = Path(lm_eval_exl2.__file__).parent / "demo" / "checkpoints"

# 2 layers of 100 weights and a head of 30, in float16; 2 heads of 3, 1 of them for keys.
SMALL = ModelSize(
    dense_bytes=460,
    embedding_row_bytes=12,
    dense_weights=200,
    head_weights=30,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=3,
)


def test_a_step_reads_weights_once_and_keys_and_values_of_every_sequence():
    assert SMALL.kv_bytes_per_token(2) == 2 * 2 * 1 * 3 * 2  # keys and values, layers, head, bytes
    assert SMALL.bytes_per_step(1, 10) == 460 + 12 + 10 * 24
    assert SMALL.bytes_per_step(8, 10) == 460 + 8 * (12 + 10 * 24)
    assert SMALL.bytes_per_step(1, 10, value_bytes=1) == 460 + 12 + 10 * 12


def test_a_token_multiplies_and_adds_every_weight_and_attends_to_those_before():
    # Attention: scores and values, 2 operations each, for 2 layers, 2 heads, 3 numbers a head.
    assert SMALL.operations_per_step(1, 10) == 2 * 230 + 2 * 2 * 2 * 2 * 3 * 10
    assert SMALL.operations_per_step(4, 10) == 4 * SMALL.operations_per_step(1, 10)
    # A prompt of 4: 1 + 2 + 3 + 4 pairs; the head once.
    assert SMALL.operations_of_prompt(4) == 2 * (4 * 200 + 30) + 2 * 2 * 2 * 2 * 3 * 10
    assert SMALL.bytes_of_prompt(4) == 460 + 4 * (12 + 24)


def test_experts_count_as_often_as_they_are_met():
    mixture = replace(SMALL, expert_bytes=1600, expert_weights=800, expert_share=0.25)
    assert mixture.bytes_per_step(1, 1) == SMALL.bytes_per_step(1, 1) + 400
    # Two tokens miss a given expert with .75 x .75.
    assert mixture.bytes_per_step(2, 1) == SMALL.bytes_per_step(2, 1) + 1600 * 0.4375
    assert mixture.operations_per_step(1, 1) == SMALL.operations_per_step(1, 1) + 2 * 200
    assert mixture.operations_of_prompt(4) == SMALL.operations_of_prompt(4) + 4 * 2 * 200


def test_the_demo_is_counted_from_its_config():
    found = size_of_model(Checkpoint(DEMO / "fp16"))
    # Hidden 96, 4 layers, 4 heads of 32, 2 for keys, inner size 192, 1024 tokens.
    layer = 96 * 128 + 2 * 96 * 64 + 128 * 96 + 3 * 96 * 192
    assert found.dense_weights == 4 * layer
    assert found.head_weights == 96 * 1024
    norms = (2 * 4 + 1) * 96
    assert found.dense_bytes == 2 * (4 * layer + 96 * 1024 + norms)
    assert found.embedding_row_bytes == 2 * 96


@pytest.mark.parametrize("name", ["exl2-2.5bpw", "exl2-5.0bpw"])
def test_quantized_weights_count_as_they_are_stored_or_held(name):
    checkpoint = Checkpoint(DEMO / name)
    stored, plain = size_of_model(checkpoint), size_of_model(Checkpoint(DEMO / "fp16"))
    # All tensors of the file but the embedding; the header is no tensor.
    file = DEMO / name / "output.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert stored.dense_bytes == file.stat().st_size - header - 1024 * 96 * 2
    assert stored.dense_weights == plain.dense_weights
    held = size_of_model(checkpoint, weight_bytes=2)
    assert held == plain


def test_a_tied_head_reads_the_embedding_whole(tmp_path):
    save_model(tmp_path, tie_word_embeddings=True)
    checkpoint = Checkpoint(tmp_path)
    assert not checkpoint.has_own_head
    found, sizes = size_of_model(checkpoint), checkpoint.config.sizes
    assert found.head_weights == sizes.vocab_size * sizes.hidden_size
    everything = sum(tensor.elements for tensor in checkpoint.plain.values())
    assert size_of_model(checkpoint, weight_bytes=1).dense_bytes == everything


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("GPT2LMHeadModel", {}),
        ("CohereForCausalLM", {"use_qk_norm": True}),  # its norms are matrices, too
        ("Phi3ForCausalLM", {}),
        ("Gemma2ForCausalLM", {}),
    ],
)
def test_every_layout_has_the_weights_of_transformers_linear_layers(tmp_path, name, more):
    model = save_model(tmp_path, name, **more)
    linears = {
        path: module.weight.numel()
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    found = size_of_model(Checkpoint(tmp_path))
    assert found.head_weights == linears.pop("lm_head")
    assert found.dense_weights == sum(linears.values())


def test_experts_are_counted_apart_and_by_how_many_a_token_meets(tmp_path):
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    save_model(tmp_path, "MixtralForCausalLM", **experts)
    checkpoint = Checkpoint(tmp_path)
    sizes, found = checkpoint.config.sizes, size_of_model(checkpoint)
    each = 3 * sizes.hidden_size * sizes.intermediate_size
    assert found.expert_weights == sizes.layers * 4 * each
    assert found.expert_share == 0.5
    queries = sizes.hidden_size * sizes.heads * sizes.head_dim
    keys = sizes.hidden_size * sizes.kv_heads * sizes.head_dim
    router = sizes.hidden_size * 4
    assert found.dense_weights == sizes.layers * (2 * queries + 2 * keys + router)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_experts_per_tok": 2', '"unknown": 2'))
    with pytest.raises(ModelFormatError, match="num_experts_per_tok is None"):
        size_of_model(Checkpoint(tmp_path))


RATES = DeviceRates("card", bytes_per_s=712_000.0, operations_per_s={"float16": 7e6})


def test_the_lower_roof_is_the_bound():
    # 712 bytes and 940 operations a token at 10 tokens: 1,000 and 7,447 tokens a second.
    found = reached_in_decoding(SMALL, RATES, 250, dtype="float16", batch_size=1, length=10)
    assert (found.bound, found.best_tokens_per_s, found.share) == ("memory", 1000, 0.25)
    assert found.bandwidth_share == 0.25
    assert found.compute_share == pytest.approx(250 * 940 / 7e6)
    # 8 sequences share the weights: (460 + 8 x 252) / 8 bytes a token.
    found = reached_in_decoding(SMALL, RATES, 250, dtype="float16", batch_size=8, length=10)
    assert found.best_tokens_per_s == pytest.approx(712_000 / (2476 / 8))
    slow = replace(RATES, operations_per_s={"float16": 1900.0})
    found = reached_in_prefill(SMALL, slow, 2, dtype="float16", tokens=4)
    # 1,660 + 480 operations for 4 tokens.
    assert (found.bound, found.best_tokens_per_s) == ("compute", pytest.approx(1900 / 535))


def test_what_was_not_measured_cannot_be_shared_out():
    words = {"batch_size": 1, "length": 1}
    with pytest.raises(OptionError, match="no rate of 'float32' was measured on card"):
        reached_in_decoding(SMALL, RATES, 1, dtype="float32", **words)
    with pytest.raises(OptionError, match="tokens_per_s is 0"):
        reached_in_decoding(SMALL, RATES, 0, dtype="float16", **words)
    with pytest.raises(OptionError, match="tokens is 0"):
        reached_in_prefill(SMALL, RATES, 1, dtype="float16", tokens=0)


def ticks(*durations):
    """A clock on which tries take these seconds."""
    now, times = 0.0, []
    for each in durations:
        times += [now, now + each]
        now += each + 100
    return iter(times).__next__


def test_rates_are_those_of_the_fastest_try_and_the_first_only_warms_up():
    clock = ticks(0.1, 4.0, 2.0, 3.0, 5.0, 9.0)
    assert copy_rate(torch.device("cpu"), 1000, clock=clock) == 2 * 1000 / 2.0
    clock = ticks(0.1, 4.0, 2.0, 3.0, 5.0, 9.0)
    found = matmul_rate(torch.device("cpu"), "float32", 16, clock=clock)
    assert found == 2 * 16**3 / 2.0


def test_a_device_is_measured_in_every_type_that_was_asked_for():
    steps = count()
    found = measure_device(
        "cpu",
        ["float32", "float64"],
        copy_bytes=64,
        matmul_size=8,
        clock=lambda: float(next(steps)),
    )
    rates = {"float32": 1024.0, "float64": 1024.0}
    assert found == DeviceRates("cpu", bytes_per_s=128.0, operations_per_s=rates)


def test_this_machine_moves_more_than_a_megabyte_a_second():
    found = measure_device("cpu", copy_bytes=1 << 20, matmul_size=64)
    assert found.bytes_per_s > 1e6
    assert found.operations_per_s["float32"] > 1e6


@pytest.mark.parametrize("dtype", ["int8", "half a float", "nn"])
def test_a_type_that_is_no_floating_point_type_is_refused(dtype):
    with pytest.raises(OptionError, match=r"expected one of torch's"):
        matmul_rate(torch.device("cpu"), dtype, 8)
