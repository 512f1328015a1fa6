"""EXL2 directories: names, files, figures, and that a failure leaves nothing behind."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import logits, relative_error, save_gemma3, save_model

from lm_eval_exl2.checkpoint import Checkpoint, writer
from lm_eval_exl2.checkpoint.architectures import ARCHITECTURES
from lm_eval_exl2.checkpoint.export import dequantize_directory
from lm_eval_exl2.checkpoint.naming import stored_name
from lm_eval_exl2.checkpoint.writer import pack_linear, quantize_directory, quantized_config
from lm_eval_exl2.errors import ModelFormatError, OptionError

TEXT_MODELS = [name for name, item in ARCHITECTURES.items() if not item.text_names]


@pytest.mark.parametrize("architecture", TEXT_MODELS)
def test_every_architecture_keeps_its_tensors_and_its_logits(architecture, tmp_path):
    model = save_model(tmp_path / "source", architecture, initializer_range=0.05)
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=8, head_bits=8)
    source, target = Checkpoint(tmp_path / "source"), Checkpoint(tmp_path / "exl2")
    names = {weight.name for weight in source.weights()}
    assert {weight.name for weight in target.weights()} == names | {"lm_head.weight"}
    assert all(
        "experts" in n or "proj" in n or "c_fc" in n or n == "lm_head" for n in target.linears
    )
    dequantize_directory(tmp_path / "exl2", tmp_path / "decoded", dtype="float32")
    decoded = type(model).from_pretrained(tmp_path / "decoded")
    assert relative_error(logits(decoded), logits(model)) < 0.04


def test_names_are_the_ones_exllamav2_looks_for(tmp_path):
    save_model(tmp_path / "gpt2", "GPT2LMHeadModel")
    save_model(tmp_path / "phi3", "Phi3ForCausalLM")
    for name in ("gpt2", "phi3"):
        quantize_directory(tmp_path / name, tmp_path / f"{name}-exl2", bits=4)
    stored = load_file(tmp_path / "gpt2-exl2" / "output.safetensors")
    assert stored["model.layers.1.self_attn.k_proj.q_weight"].shape == (8, 64)
    assert stored["model.layers.1.mlp.c_fc.bias"].dtype == torch.float16
    assert {"model.wpe.weight", "model.layers.0.ln_1.bias", "model.norm.weight"} <= set(stored)
    stored = load_file(tmp_path / "phi3-exl2" / "output.safetensors")
    assert stored["model.layers.0.self_attn.v_proj.q_weight"].shape == (8, 32)
    assert stored["model.layers.0.mlp.up_proj.q_weight"].shape == (8, 128)
    assert not any("qkv" in name or "gate_up" in name for name in stored)


def test_old_gpt2_files_without_a_prefix_get_the_same_names():
    gpt2 = ARCHITECTURES["GPT2LMHeadModel"]
    for name in ("wte.weight", "h.3.attn.c_proj.bias", "h.0.mlp.c_proj.weight", "ln_f.bias"):
        assert stored_name(gpt2, name) == stored_name(gpt2, f"transformer.{name}")
    assert stored_name(gpt2, "h.3.attn.c_proj.bias") == "model.layers.3.self_attn.o_proj.bias"


def test_the_text_part_of_a_multimodal_model_is_written_under_exllamav2s_prefix(tmp_path):
    save_gemma3(tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=8, head_bits=8)
    stored = load_file(tmp_path / "exl2" / "output.safetensors")
    assert {name.split(".")[0] for name in stored} == {"language_model"}
    assert "language_model.model.layers.1.mlp.up_proj.q_weight" in stored
    assert "language_model.lm_head.q_weight" in stored
    source, target = Checkpoint(tmp_path / "source"), Checkpoint(tmp_path / "exl2")
    assert len(target.weights()) == len(source.plain) + 1
    assert len(target.linears) == 2 * 7 + 1


def test_a_tied_head_is_quantized_apart_and_the_embedding_stays(tmp_path):
    model = save_model(tmp_path / "source", tie_word_embeddings=True)
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=3, head_bits=8)
    target = Checkpoint(tmp_path / "exl2")
    embedding = model.get_input_embeddings().weight.detach()
    weights = {weight.name: target.load(weight) for weight in target.weights()}
    assert torch.equal(weights["model.embed_tokens.weight"], embedding)
    assert weights["lm_head.weight"].shape == embedding.shape
    assert 0 < relative_error(weights["lm_head.weight"].float(), embedding.float()) < 0.01


def test_routers_norms_and_embeddings_stay_unquantized(tmp_path):
    save_model(tmp_path / "source", "MixtralForCausalLM")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=2)
    plain = Checkpoint(tmp_path / "exl2").plain
    assert {name.rsplit(".", 2)[-2] for name in plain} == {
        *("embed_tokens", "gate", "norm", "input_layernorm", "post_attention_layernorm"),
    }
    assert {tensor.dtype for tensor in plain.values()} == {"F16"}


def test_measured_bits_count_codes_scales_tables_and_permutations(tmp_path):
    save_model(tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4.5)
    stored = load_file(tmp_path / "exl2" / "output.safetensors")
    layers = {
        name: tensor for name, tensor in stored.items() if ".q_" in name and "lm_head" not in name
    }
    weights = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    quantization = json.loads((tmp_path / "exl2" / "config.json").read_text())[
        "quantization_config"
    ]
    bits = sum(tensor.numel() * tensor.element_size() * 8 for tensor in layers.values())
    assert quantization["bits"] == pytest.approx(bits / weights, abs=1e-4)
    codes = sum(t.numel() * 32 for name, t in layers.items() if name.endswith("q_weight"))
    assert codes / weights == pytest.approx(4.5, abs=0.03)
    assert quantization["head_bits"] == 6
    assert quantization["calibration"]["dataset"] == "(none, round to nearest)"


def test_small_shards_hold_the_same_tensors_as_one_file(tmp_path):
    save_model(tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "one", bits=4)
    quantize_directory(tmp_path / "source", tmp_path / "many", bits=4, max_shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    count = len(files)
    assert count > 2
    assert files == [f"output-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    parts = [load_file(tmp_path / "many" / name) for name in files]
    assert all(sum(t.nbytes for t in part.values()) <= 20_000 for part in parts)
    whole = load_file(tmp_path / "one" / "output.safetensors")
    joined = {name: tensor for part in parts for name, tensor in part.items()}
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


def test_other_files_are_copied_but_no_weights_and_no_index(tmp_path):
    source = tmp_path / "source"
    save_model(source)
    for name in ("tokenizer.json", "README.md", "chat_template.jinja"):
        (source / name).write_text(name)
    for name in ("pytorch_model.bin", "model.safetensors.index.json", ".gitattributes"):
        (source / name).write_text('{"weight_map": {"a": "absent.safetensors"}}')
    (source / "folder").mkdir()
    quantize_directory(source, tmp_path / "exl2", bits=4)
    assert {path.name for path in (tmp_path / "exl2").iterdir()} == {
        *("tokenizer.json", "README.md", "chat_template.jinja", "generation_config.json"),
        *("config.json", "output.safetensors"),
    }


def test_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    save_model(tmp_path / "source")
    calls = iter(range(5))

    def interrupted(*arguments):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return pack_linear(*arguments)

    monkeypatch.setattr(writer, "pack_linear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4, max_shard_bytes=5000)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_target_that_holds_something_is_left_alone(tmp_path):
    save_model(tmp_path / "source")
    target = tmp_path / "exl2"
    target.mkdir()
    quantize_directory(tmp_path / "source", target, bits=4)  # empty: fine
    before = sorted((path.name, path.stat().st_mtime_ns) for path in target.iterdir())
    with pytest.raises(OptionError, match="exists"):
        quantize_directory(tmp_path / "source", target, bits=5)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in target.iterdir()) == before
    with pytest.raises(OptionError, match="create it first"):
        quantize_directory(tmp_path / "source", tmp_path / "no" / "exl2", bits=4)


@pytest.mark.parametrize("options", [{"bits": 1.9}, {"bits": 8.1}, {"bits": 4, "head_bits": 7}])
def test_widths_exl2_does_not_have_are_refused(options, tmp_path):
    with pytest.raises(OptionError, match="bits"):
        quantize_directory(tmp_path, tmp_path / "exl2", **options)


def test_a_quantized_source_is_refused(tmp_path):
    save_model(tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4)
    with pytest.raises(ModelFormatError, match="already"):
        quantize_directory(tmp_path / "exl2", tmp_path / "again", bits=4)


def test_sizes_that_contradict_the_config_are_refused(tmp_path):
    save_model(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 128', '"intermediate_size": 96'))
    with pytest.raises(ModelFormatError, match=r"config\.json asks for"):
        quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4)


def test_input_sizes_exl2_cannot_hold_are_refused_by_name(tmp_path):
    save_model(tmp_path / "source", intermediate_size=100)
    with pytest.raises(ModelFormatError, match=r"down_proj: 100 input features"):
        quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4)


def test_new_config_keys_are_repeated_under_the_names_exllamav2_reads():
    rope = {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5}
    config = quantized_config({"dtype": "bfloat16", "rope_parameters": rope}, 4.0, 6)
    assert config["torch_dtype"] == "bfloat16"
    assert config["rope_theta"] == 5e5
    assert config["partial_rotary_factor"] == 0.5
    assert config["rope_scaling"]["rope_type"] == "yarn"
    assert config["rope_scaling"]["factor"] == 4.0
    assert "type" not in config["rope_scaling"]  # exllamav2 refuses both spellings together
    plain = quantized_config({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, 4, 6)
    assert plain["rope_scaling"] is None


def test_longrope_repeats_the_original_length_where_exllamav2_looks():
    rope = {"rope_theta": 1e4, "rope_type": "longrope", "original_max_position_embeddings": 4096}
    config = quantized_config({"rope_parameters": rope}, 4.0, 6)
    assert config["original_max_position_embeddings"] == 4096


def test_starcoder2_says_its_norm_epsilon_in_the_word_exllamav2_reads():
    config = quantized_config({"norm_epsilon": 1e-5}, 4.0, 6)
    assert (config["norm_epsilon"], config["layer_norm_epsilon"]) == (1e-5, 1e-5)


def test_position_keys_per_layer_type_and_older_keys_stay_as_they_are():
    nested = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}
    assert quantized_config({"text_config": nested}, 4.0, 6)["text_config"] == nested
    older = {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    config = quantized_config(older, 4.0, 6)
    assert {key: config[key] for key in older} == older
