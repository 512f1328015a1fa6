"""Tiny models saved by transformers, as every architecture's own class lays them out."""

import torch
import transformers

from lm_eval_exl2.checkpoint.architectures import ARCHITECTURES
from lm_eval_exl2.checkpoint.shards import write_json

_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 256}
_SPECIAL = {
    "MixtralForCausalLM": _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3MoeForCausalLM": _LLAMA
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "GPT2LMHeadModel": _GPT,
    "GPTBigCodeForCausalLM": _GPT,
}
_TOKENS = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def save_model(folder, architecture="LlamaForCausalLM", **overrides):
    """Save a model with large random weights in float16; return it."""
    model_class = getattr(transformers, ARCHITECTURES[architecture].model_class)
    sizes = _SPECIAL.get(architecture, _LLAMA)
    config = model_class.config_class(**{**sizes, **_TOKENS, "initializer_range": 0.2, **overrides})
    torch.manual_seed(0)
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros would hide a mistake
            parameter.data.normal_(std=0.1)
        parameter.data = parameter.data.half()  # `model.half()` would round position tables too
    model.save_pretrained(folder)
    return model


def save_gemma3(folder):
    """Save a multimodal Gemma 3 as transformers 5 does, with the smallest of vision towers."""
    vision = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 1, "image_size": 28, "patch_size": 14},
    }
    text = _LLAMA | _TOKENS | {"layer_types": ["sliding_attention", "full_attention"]}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).half().eval()
    model.save_pretrained(folder)
    return model


def save_gptq(folder, group_size=32):
    """Save a Llama of random 4-bit GPTQ layers."""
    from safetensors.torch import load_file, save_file

    model = save_model(folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)

    def words(*shape):
        return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32, generator=generator)

    for name in [name for name in tensors if "proj" in name]:
        out_features, in_features = tensors.pop(name).shape
        module = name.removesuffix(".weight")
        groups = in_features // group_size
        tensors |= {
            f"{module}.qweight": words(in_features // 8, out_features),
            f"{module}.qzeros": words(groups, out_features // 8),
            f"{module}.scales": torch.rand(groups, out_features, generator=generator).half() / 50,
            f"{module}.g_idx": torch.arange(in_features, dtype=torch.int32) // group_size,
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": group_size}
    write_json(
        folder / "config.json", model.config.to_dict() | {"quantization_config": quantization}
    )


def logits(model, length=20):
    """Return float32 logits of a fixed row of tokens."""
    ids = (torch.arange(length) * 7 % 97 + 3).unsqueeze(0)
    with torch.inference_mode():
        return model.float()(ids).logits


def relative_error(found, expected):
    """Return the size of the difference relative to what was expected."""
    return float((found - expected).norm() / expected.norm())
