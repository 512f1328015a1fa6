"""Configs, positions and windows of every engine: what transformers itself computes."""

import random

import pytest
import torch
import transformers
from architecture_cases import CASES, MULTIMODAL_CASES, build
from test_architectures import save, text_config

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.engines import model_config
from lm_eval_exl2.engines.model_config import ConfigSettings, layer_windows
from lm_eval_exl2.engines.rope_tables import identity_table, make_table
from lm_eval_exl2.engines.torch_engine import TorchEngine
from lm_eval_exl2.errors import OptionError

LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 32},
}
ROPES = {
    "default": {"rope_theta": 1e4},
    "partial": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "linear": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": {
        **{"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0},
        **{"original_max_position_embeddings": 64},
    },
    "longrope": {
        **{"rope_theta": 1e4, "rope_type": "longrope", "original_max_position_embeddings": 32},
        **{"short_factor": [1.0 + i / 9 for i in range(16)], "long_factor": [3.0] * 16},
    },
}


def config_with(rope, **keys):
    return transformers.LlamaConfig(
        **{"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128},
        **{"rope_parameters": dict(rope), **keys},
    )


@pytest.mark.parametrize("name", ROPES)
def test_tables_are_those_of_transformers_for_every_kind_of_scaling(name):
    rope = ROPES[name]
    if name == "partial":
        from transformers.models.glm4.modeling_glm4 import Glm4RotaryEmbedding as Rotary

        config = transformers.Glm4Config(
            hidden_size=64, num_attention_heads=2, head_dim=32, rope_parameters=dict(rope)
        )
    else:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Rotary

        config = config_with(rope)
    positions = torch.arange(32)[None]
    cos, sin = Rotary(config)(torch.zeros(1, dtype=torch.float32), positions)
    table = make_table(config, 32, "halves")
    assert torch.equal(table.cos[0, 0], cos[0].half())
    assert torch.equal(table.sin[0, 0], sin[0].half())


def test_pairs_hold_each_frequency_twice_in_a_row():
    config = config_with(ROPES["default"])
    pairs, halves = make_table(config, 8, "pairs"), make_table(config, 8, "halves")
    half = halves.sin[..., :16]
    assert torch.equal(pairs.sin[..., 0::2], half)
    assert torch.equal(pairs.sin[..., 1::2], half)
    turned_by_nothing = identity_table(pairs)
    assert not turned_by_nothing.sin.any()
    assert (turned_by_nothing.cos == 1).all()


def test_layer_types_have_tables_of_their_own():
    config = text_config(build("Gemma3ForConditionalGeneration", random.Random(1)))
    full = make_table(config, 64, "halves", "full_attention")
    sliding = make_table(config, 64, "halves", "sliding_attention")
    assert not torch.equal(full.sin, sliding.sin)


@pytest.mark.parametrize("name", [*CASES, *MULTIMODAL_CASES])
def test_windows_are_those_of_transformers_layers(name):
    model = build(name, random.Random(1))
    attentions = [
        module
        for path, module in model.named_modules()
        if "layer_idx" in vars(module) and "vision" not in path and "visual" not in path
        if type(module).__name__.endswith("Attention")
    ]
    config = text_config(model)
    # Most keep the window on the module; the others read it from the config when called.
    expected = [
        getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))
        for module in attentions
    ]
    if config.model_type in ("llama", "gpt2", "gpt_bigcode", "granite", "glm4", "cohere", "gemma"):
        expected = [None] * len(attentions)
    assert layer_windows(config) == expected


def test_a_window_left_over_from_another_model_means_nothing():
    assert layer_windows(config_with(ROPES["default"], sliding_window=4096)) == [None]


def save_llama(folder, rope):
    config = config_with(rope, tie_word_embeddings=False)
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 8).half())
    save(model, folder)
    return model


def own_logits(folder, settings, ids):
    engine = TorchEngine(Checkpoint(folder), device="cpu", config=settings)
    return engine.naive_logits(ids), engine.info.details


@pytest.mark.parametrize("kind", ["default", "linear"])
def test_rope_scale_divides_positions_as_linear_scaling_does(tmp_path, kind):
    save_llama(tmp_path / "model", ROPES[kind])
    save_llama(tmp_path / "scaled", ROPES["linear"] | {"factor": 2.5})
    ids = list(range(1, 40))
    found, details = own_logits(tmp_path / "model", ConfigSettings(rope_scale=2.5), ids)
    expected, _ = own_logits(tmp_path / "scaled", model_config.UNCHANGED, ids)
    torch.testing.assert_close(found, expected)
    assert details == {"rope_scale": 2.5}


def test_rope_alpha_stretches_the_base_as_exllamav2_does(tmp_path):
    save_llama(tmp_path / "model", ROPES["default"])
    # exllamav2, rope.py: base *= alpha ** (head_dim / (head_dim - 2))
    stretched = {"rope_theta": 1e4 * 3.0 ** (32 / 30)}
    save_llama(tmp_path / "stretched", stretched)
    ids = list(range(1, 40))
    found, details = own_logits(tmp_path / "model", ConfigSettings(rope_alpha=3.0), ids)
    expected, _ = own_logits(tmp_path / "stretched", model_config.UNCHANGED, ids)
    torch.testing.assert_close(found, expected)
    assert details == {"rope_alpha": 3.0}


def test_positions_scaled_in_other_ways_cannot_be_changed(tmp_path):
    save_llama(tmp_path, LLAMA3)
    with pytest.raises(OptionError, match="cannot change llama3 positions"):
        own_logits(tmp_path, ConfigSettings(rope_scale=2.0), [1])


def test_learned_positions_cannot_be_scaled(tmp_path):
    save(build("GPT2LMHeadModel", random.Random(1)), tmp_path)
    with pytest.raises(OptionError, match="need a model with rotary positions"):
        own_logits(tmp_path, ConfigSettings(rope_alpha=2.0), [1])
