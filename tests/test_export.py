"""Decoded directories run in stock transformers and hold exactly the decoded weights."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import logits, save_gemma3, save_gptq, save_model

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.export import decoded_config, dequantize_directory
from lm_eval_exl2.checkpoint.shards import ShardWriter
from lm_eval_exl2.checkpoint.writer import quantize_directory
from lm_eval_exl2.errors import ModelFormatError, OptionError


@pytest.fixture
def exl2(tmp_path):
    save_model(tmp_path / "source", tie_word_embeddings=True)
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=3.5)
    return tmp_path / "exl2"


def decoded(directory):
    checkpoint = Checkpoint(directory)
    return {weight.name: checkpoint.load(weight) for weight in checkpoint.weights()}


@pytest.mark.parametrize(
    "architecture",
    ["LlamaForCausalLM", "GPT2LMHeadModel", "Phi3ForCausalLM", "Glm4ForCausalLM"],
)
def test_stock_transformers_gives_the_logits_of_the_decoded_weights(architecture, tmp_path):
    model = save_model(tmp_path / "source", architecture)
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=2.5)
    dequantize_directory(tmp_path / "exl2", tmp_path / "decoded")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "decoded")
    assert exported.dtype == torch.float16
    # The original model, head untied, given the decoded weights one by one.
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    model.load_state_dict(decoded(tmp_path / "exl2"), strict=True)
    assert torch.equal(logits(exported), logits(model))


def test_a_mixture_of_experts_is_loaded_with_nothing_missing_or_left_over(tmp_path):
    save_model(tmp_path / "source", "MixtralForCausalLM")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4)
    dequantize_directory(tmp_path / "exl2", tmp_path / "decoded")
    _, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "decoded", output_loading_info=True
    )
    assert not any(report.values())


def test_the_text_part_of_a_multimodal_model_becomes_a_text_model(tmp_path):
    save_gemma3(tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4)
    dequantize_directory(tmp_path / "exl2", tmp_path / "decoded")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "decoded", output_loading_info=True
    )
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert not any(report.values())
    assert torch.isfinite(logits(model)).all()


def test_gptq_is_decoded_too_and_its_tied_or_separate_head_kept(tmp_path):
    save_gptq(tmp_path / "gptq")
    dequantize_directory(tmp_path / "gptq", tmp_path / "decoded", dtype="float32")
    stored = load_file(tmp_path / "decoded" / "model.safetensors")
    expected = decoded(tmp_path / "gptq")
    assert stored.keys() == expected.keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert all(torch.equal(stored[name], expected[name].float()) for name in stored)


def test_the_config_no_longer_speaks_of_quantization_or_tying(exl2, tmp_path):
    dequantize_directory(exl2, tmp_path / "decoded", dtype="bfloat16")
    config = json.loads((tmp_path / "decoded" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["tie_word_embeddings"] is False
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")


def test_a_nested_text_config_is_untied_as_well():
    raw = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}}
    config = decoded_config(raw, "float16", has_own_head=True)
    assert config["text_config"]["tie_word_embeddings"] is False
    assert raw["text_config"]["tie_word_embeddings"] is True
    tied = decoded_config(raw, "float16", has_own_head=False)
    assert tied["tie_word_embeddings"] is True


def test_shards_stay_within_the_limit_and_the_index_names_every_tensor(exl2, tmp_path):
    dequantize_directory(exl2, tmp_path / "one")
    dequantize_directory(exl2, tmp_path / "many", max_shard_bytes=40_000)
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name in set(index["weight_map"].values()):
        part = load_file(tmp_path / "many" / name)
        assert sum(tensor.nbytes for tensor in part.values()) <= 40_000
        assert {index["weight_map"][key] for key in part} == {name}
        assert all(torch.equal(part[key], whole[key]) for key in part)
    one, many = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
        for name in ("one", "many")
    )
    assert torch.equal(logits(one), logits(many))


def test_no_more_than_one_shard_is_held_in_memory(tmp_path):
    writer = ShardWriter(tmp_path, "model", max_shard_bytes=1000)
    for index in range(20):
        writer.add({f"tensor-{index}": torch.zeros(100)})
        assert writer.waiting_bytes <= 1000
    writer.add({"larger than a shard": torch.zeros(1000)})
    assert set(load_file(tmp_path / writer.finish()["larger than a shard"])) == {
        "larger than a shard"
    }


def test_tokenizer_files_are_copied(exl2, tmp_path):
    dequantize_directory(exl2, tmp_path / "decoded")
    assert (tmp_path / "decoded" / "tokenizer.json").read_text() == "{}"


def test_interruption_leaves_nothing_behind(exl2, tmp_path, monkeypatch):
    load, calls = Checkpoint.load, iter(range(10))

    def interrupted(self, weight, device="cpu"):
        if next(calls) == 8:
            raise KeyboardInterrupt
        return load(self, weight, device)

    monkeypatch.setattr(Checkpoint, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dequantize_directory(exl2, tmp_path / "decoded", max_shard_bytes=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exl2", "source"]


def test_a_disk_that_is_full_is_an_oserror_that_leaves_nothing_behind(exl2, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_arguments, **_options):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("lm_eval_exl2.checkpoint.shards.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        dequantize_directory(exl2, tmp_path / "decoded")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exl2", "source"]


def test_bad_arguments_are_refused_before_anything_is_written(exl2, tmp_path):
    with pytest.raises(ModelFormatError, match="not quantized"):
        dequantize_directory(tmp_path / "source", tmp_path / "decoded")
    with pytest.raises(OptionError, match="int8"):
        dequantize_directory(exl2, tmp_path / "decoded", dtype="int8")
    with pytest.raises(OptionError, match="max_shard_bytes"):
        dequantize_directory(exl2, tmp_path / "decoded", max_shard_bytes=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exl2", "source"]
