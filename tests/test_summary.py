"""The figures of a checkpoint, against numbers worked out by hand."""

import json

import pytest
from tiny_models import save_gemma3, save_gptq, save_model

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.files import TensorFiles
from lm_eval_exl2.checkpoint.summary import summarise
from lm_eval_exl2.checkpoint.writer import quantize_directory

# The linear layers of one decoder layer of the tiny Llama: (out, in).
LINEARS = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
LAYER_WEIGHTS = sum(n * k for n, k in LINEARS)
NORMS = 2 * 2 * 64 + 64
EMBEDDING = 100 * 64


def exl2_bits(out_features, in_features, code_bits):
    """Codes, scale codes, largest scales, group table and permutation, groups of 32 rows."""
    columns, groups = -(-out_features // 32) * 32, in_features // 32
    return in_features * columns * code_bits + groups * (4 * columns + 16 + 32) + 32 * in_features


@pytest.fixture(scope="module")
def exl2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exl2")
    save_model(folder / "source")
    quantize_directory(folder / "source", folder / "exl2", bits=4)
    return Checkpoint(folder / "exl2")


def test_figures_of_an_exl2_file_are_the_ones_worked_out_by_hand(exl2):
    summary = summarise(exl2)
    layer_bits = sum(exl2_bits(n, k, 4) for n, k in LINEARS)
    head_bits = exl2_bits(100, 64, 6)  # padded to 128 columns, which count as bits only
    parameters = 2 * LAYER_WEIGHTS + 2 * EMBEDDING + NORMS
    assert summary.bits_layers == pytest.approx(layer_bits / LAYER_WEIGHTS)
    assert summary.bits_head == pytest.approx(head_bits / EMBEDDING)
    assert summary.parameters == parameters
    total = 2 * layer_bits + head_bits + 16 * (EMBEDDING + NORMS)
    assert summary.bits_total == pytest.approx(total / parameters)
    assert summary.width_mix == ({4: 1.0}, {4: 1.0})
    assert (summary.architecture, summary.kind, summary.layers) == ("LlamaForCausalLM", "exl2", 2)
    assert summary.size_bytes == sum(
        path.stat().st_size for path in exl2.directory.glob("*.safetensors")
    )


def test_the_writer_records_the_same_figure_that_the_summary_finds(exl2):
    summary = summarise(exl2)
    assert summary.quantization["bits"] == pytest.approx(summary.bits_layers, abs=1e-4)


def test_a_mix_of_widths_is_given_as_shares_of_each_layer(tmp_path):
    save_model(tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=2.5)
    for mix in summarise(Checkpoint(tmp_path / "exl2")).width_mix:
        assert list(mix) == [3, 2]
        assert sum(mix.values()) == pytest.approx(1)
        assert mix[3] == pytest.approx(0.5, abs=0.1)


def test_a_tied_unquantized_model_has_no_head_figure(tmp_path):
    model = save_model(tmp_path, "GPT2LMHeadModel")
    summary = summarise(Checkpoint(tmp_path))
    assert summary.bits_head is None
    assert (summary.bits_layers, summary.bits_total) == (16, 16)
    assert summary.parameters == model.num_parameters()
    assert summary.width_mix == ({16: 1.0}, {16: 1.0})
    assert summary.quantization == {}


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Phi3ForCausalLM"])
def test_fused_modules_and_experts_count_before_and_after_quantization(architecture, tmp_path):
    model = save_model(tmp_path / "source", architecture)
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4)
    before = summarise(Checkpoint(tmp_path / "source"))
    after = summarise(Checkpoint(tmp_path / "exl2"))
    assert before.parameters == after.parameters == model.num_parameters()
    assert (before.bits_layers, before.bits_head) == (16, 16)
    assert after.bits_layers == pytest.approx(after.quantization["bits"], abs=1e-4)


def test_the_text_part_of_a_multimodal_file_is_what_counts(tmp_path):
    model = save_gemma3(tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4)
    before = summarise(Checkpoint(tmp_path / "source"))
    after = summarise(Checkpoint(tmp_path / "exl2"))
    assert before.parameters == model.model.language_model.num_parameters()
    assert before.width_mix == ({16: 1.0}, {16: 1.0})
    assert after.width_mix == ({4: 1.0}, {4: 1.0})
    assert after.parameters == before.parameters + EMBEDDING


def test_gptq_scales_zero_points_and_group_indices_count(tmp_path):
    save_gptq(tmp_path)
    summary = summarise(Checkpoint(tmp_path))
    bits = sum(4 * n * k + (k // 32) * (4 * n + 16 * n) + 32 * k for n, k in LINEARS)
    assert summary.kind == "gptq"
    assert summary.bits_layers == pytest.approx(bits / LAYER_WEIGHTS)
    assert summary.bits_head == 16
    assert summary.width_mix == ({4: 1.0}, {4: 1.0})


def test_biases_count_in_the_total_only(tmp_path):
    save_model(tmp_path / "source", "Qwen2ForCausalLM")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4)
    summary = summarise(Checkpoint(tmp_path / "exl2"))
    assert summary.bits_layers == pytest.approx(
        sum(exl2_bits(n, k, 4) for n, k in LINEARS) / LAYER_WEIGHTS
    )
    assert summary.parameters == (2 * LAYER_WEIGHTS + 2 * EMBEDDING + NORMS + 2 * (64 + 32 + 32))


def test_no_tensor_is_read(exl2, monkeypatch):
    monkeypatch.setattr(TensorFiles, "load", None)
    assert summarise(exl2).kind == "exl2"


def test_the_summary_is_plain_json(exl2):
    content = json.loads(json.dumps(summarise(exl2).as_dict()))
    assert content["bits_head"] == pytest.approx(summarise(exl2).bits_head)
    assert content["width_mix"] == [{"4": 1.0}, {"4": 1.0}]
