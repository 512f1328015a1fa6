"""Tiny models in the words of exllamav2: sizes its kernels can take, and a config it can read."""

import json
import random

import architecture_cases
import torch
from test_architectures import save

from lm_eval_exl2.checkpoint.writer import quantize_directory

# Grouped heads, an odd vocabulary; multiples of what the real kernels need.
SIZES = {
    **{"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 33},
    **{"max_position_embeddings": 512},
}
LENGTH = 512
# exllamav2 ignores the windows of some models, and a biased MLP is computed wrongly.
PLAIN = {"sliding_window": LENGTH, "use_sliding_window": False, "mlp_bias": False}
_RENAMED = {"rope_theta", "partial_rotary_factor"}


def random_model(monkeypatch, name, seed=1, **changes):
    """Make a random transformers model of an architecture, float32."""
    _, extras = architecture_cases.CASES[name]
    keys = {**extras, **SIZES, **{k: v for k, v in PLAIN.items() if k in extras}, **changes}
    with monkeypatch.context() as patch:
        patch.setitem(architecture_cases.CASES, name, (lambda _draw: dict(keys), {}))
        return architecture_cases.build(name, random.Random(seed))


def save_model(model, folder, *, bits=None):
    """Save a model, quantized if bits are given, with a config.json exllamav2 can read."""
    if bits is None:
        save(model, folder)
    else:
        save(model, folder / "source")
        quantize_directory(folder / "source", folder / "exl2", bits=bits, head_bits=8)
        folder = folder / "exl2"
    return use_old_keys(folder)


def use_old_keys(folder):
    """Rewrite config.json with the keys that transformers had before version 5."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    rope = content.pop("rope_parameters", None) or {}
    content |= {name: rope.pop(name) for name in _RENAMED & rope.keys()}
    if rope.get("rope_type", "default") != "default":
        content["rope_scaling"] = rope
    path.write_text(json.dumps(content))
    return folder


def load_model(exllamav2, folder, *, prepare=None, **settings):
    """Load a folder with exllamav2, attending causally.

    Args:
        exllamav2: The module.
        folder: Where the model is.
        prepare: Called with the config before loading.
        settings: Fields of the config.
    """
    config = exllamav2.ExLlamaV2Config()
    config.model_dir = str(folder)
    config.prepare()
    config.max_input_len = 256
    config.no_sdpa = True
    if config.arch.arch_string.startswith("Qwen3"):
        config.arch.lm.headnorm = "rmsnorm"
    for name, value in settings.items():
        setattr(config, name, value)
    if prepare is not None:
        prepare(config)
    model = exllamav2.ExLlamaV2(config)
    model.load()
    return model


def tokens(rows=2, length=20, vocabulary=33, seed=3):
    """Return random ids (rows, length)."""
    draw = random.Random(seed)
    return torch.tensor([[draw.randrange(vocabulary) for _ in range(length)] for _ in range(rows)])


@torch.inference_mode()
def transformers_logits(model, ids):
    """Return a transformers model's logits in float32."""
    model.set_attn_implementation("eager")
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def forward(model, ids, **arguments):
    """Return exllamav2's logits in float32, without the padding of the head."""
    return model.forward(ids, **arguments)[..., : model.config.vocab_size].float()
