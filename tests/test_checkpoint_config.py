"""config.json: sizes that make sense, and no two position embeddings in one file."""

import json

import pytest
import tiny

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.architectures import ARCHITECTURES, REFUSED, find_architecture
from lm_eval_exl2.checkpoint.config import check_rope_keys, read_config
from lm_eval_exl2.errors import ModelFormatError


def refusal(folder, **changes):
    """Return the error text of a config with some keys changed (...: removed)."""
    config = {k: v for k, v in (tiny.CONFIG | changes).items() if v is not ...}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError) as caught:
        read_config(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    assert len(text) < 600
    return text


BAD_KEYS = {
    "architectures is None": {"architectures": ...},
    "architectures is 'LlamaForCausalLM', expected a list": {"architectures": "LlamaForCausalLM"},
    "architectures is ['LlamaForCausalLM', 'X']": {"architectures": ["LlamaForCausalLM", "X"]},
    "architectures is [], expected a list of one name": {"architectures": []},
    "architectures is [7]": {"architectures": [7]},
    "gives no hidden_size / d_model / n_embd": {"hidden_size": ...},
    "gives no num_hidden_layers": {"num_hidden_layers": 0},
    "gives no vocab_size": {"vocab_size": None},
    "gives no intermediate_size": {"intermediate_size": ...},
    "hidden_size is '64'": {"hidden_size": "64"},
    "hidden_size is 64.0": {"hidden_size": 64.0},
    "hidden_size is True": {"hidden_size": True},
    "hidden_size is -64": {"hidden_size": -64},
    "vocab_size is 2147483647, expected a whole number up to": {"vocab_size": 2**31 - 1},
    "num_hidden_layers is 1000000": {"num_hidden_layers": 1_000_000},
    "num_attention_heads is [2]": {"num_attention_heads": [2]},
    "2 attention heads cannot share 3 key-value heads": {"num_key_value_heads": 3},
    "text_config is [], expected an object": {"text_config": []},
    "quantization_config is 'exl2', expected an object": {"quantization_config": "exl2"},
    "num_hidden_layers is 1" + "0" * 38: {"num_hidden_layers": 10**400},
}


@pytest.mark.parametrize("message", BAD_KEYS)
def test_impossible_keys_are_refused(tmp_path, message):
    assert message in refusal(tmp_path, **BAD_KEYS[message])


def test_sizes_come_under_every_name_exllamav2_reads(tmp_path):
    config = {
        **{"architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 3, "n_head": 4},
        **{"vocab_size": 100, "n_inner": None},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = read_config(tmp_path).sizes
    assert (sizes.hidden_size, sizes.layers, sizes.heads, sizes.kv_heads) == (64, 3, 4, 4)
    assert (sizes.head_dim, sizes.intermediate_size, sizes.experts) == (16, 256, 0)


def test_sizes_of_a_multimodal_model_are_those_of_its_text_model(tmp_path):
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "hidden_size": 9999,
        "text_config": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read_config(tmp_path)
    assert found.text["hidden_size"] == found.sizes.hidden_size == 64
    # Released Gemma 3 configs leave these to the reader.
    assert (found.sizes.heads, found.sizes.kv_heads, found.sizes.head_dim) == (8, 4, 256)
    assert found.sizes.vocab_size == 262_208


def test_the_size_of_experts_counts_only_where_there_are_experts(tmp_path):
    config = tiny.CONFIG | {"moe_intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path).sizes.intermediate_size == 96
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_experts": 4}))
    assert read_config(tmp_path).sizes.intermediate_size == 32


@pytest.mark.parametrize("name", ["FalconForCausalLM", "", "x" * 1000, "a\nb"])
def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path, name):
    folder = tiny.write_exl2(tmp_path)
    (folder / "config.json").write_text(json.dumps(tiny.CONFIG | {"architectures": [name]}))
    with pytest.raises(ModelFormatError, match="is not supported, expected one of") as caught:
        Checkpoint(folder)
    text = str(caught.value)
    assert "LlamaForCausalLM" in text
    assert str(folder) in text
    assert "\n" not in text


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_exllamav2_loads_is_refused_with_the_reason(name):
    assert name not in ARCHITECTURES
    with pytest.raises(ModelFormatError) as caught:
        find_architecture(name)
    assert REFUSED[name] in str(caught.value)


def test_a_text_model_of_another_kind_is_refused(tmp_path):
    text = tiny.CONFIG | {"model_type": "llama"}
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text}
    tiny.write(tmp_path, tiny.exl2_tensors(), config)
    with pytest.raises(ModelFormatError, match="is 'llama', expected 'mistral'"):
        Checkpoint(tmp_path)


# -- position embeddings ---------------------------------------------------------------------

LINEAR = {"rope_type": "linear", "factor": 2.0}
NEW = {"rope_type": "default", "rope_theta": 10000.0}
LAYERED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope_theta": 10000},
        {"rope_parameters": None},
        {"rope_parameters": NEW},
        {"rope_theta": 10000, "rope_parameters": NEW},
        {"rope_theta": 10000, "rope_scaling": None, "rope_parameters": NEW},
        {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": LINEAR},
        {
            "rope_scaling": LINEAR,
            "rope_theta": 5e5,
            "rope_parameters": LINEAR | {"rope_theta": 5e5},
        },
        {"rope_scaling": {"type": "mrope"}, "rope_parameters": NEW},
        {"rope_theta": 1e6, "rope_local_base_freq": 10000, "rope_parameters": LAYERED},
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_parameters": LAYERED},
        {"rope_parameters": {"full_attention": None}},
    ],
)
def test_old_and_new_position_keys_may_agree(keys):
    check_rope_keys(keys, "config.json")
    check_rope_keys({"text_config": keys}, "config.json")


CONTRADICTIONS = {
    "rope_theta is 500000 but rope_parameters says 10000.0": {
        "rope_theta": 500000,
        "rope_parameters": NEW,
    },
    "rope_scaling is 'default' but rope_parameters says 'linear'": {
        "rope_scaling": None,
        "rope_parameters": LINEAR,
    },
    "rope_scaling is 'yarn' but rope_parameters says 'default'": {
        "rope_scaling": {"type": "yarn"},
        "rope_parameters": NEW,
    },
    "rope_scaling has factor = 4 but rope_parameters has 2.0": {
        "rope_scaling": {"type": "linear", "factor": 4},
        "rope_parameters": LINEAR,
    },
    "rope_theta = 500000.0, which readers of rope_scaling miss": {
        "rope_scaling": LINEAR,
        "rope_parameters": LINEAR | {"rope_theta": 500000.0},
    },
    "rope_theta is 10000 but rope_parameters says 1000000.0": {
        "rope_theta": 10000,
        "rope_parameters": LAYERED,
    },
    "rope_local_base_freq is 1 but rope_parameters says 10000.0": {
        "rope_local_base_freq": 1,
        "rope_parameters": LAYERED,
    },
    "rope_scaling is 'default' but rope_parameters says 'linear'; readers": {
        "rope_scaling": {},
        "rope_parameters": LAYERED,
    },
    "but rope_parameters says 10000.0; readers would disagree": {
        "rope_theta": 10**400,
        "rope_parameters": NEW,
    },
    "rope_theta is 'ten' but": {"rope_theta": "ten", "rope_parameters": NEW},
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_position_keys_that_contradict_each_other_are_refused(message):
    with pytest.raises(ModelFormatError) as caught:
        check_rope_keys(CONTRADICTIONS[message], "config.json")
    assert message in str(caught.value)
