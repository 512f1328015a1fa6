"""A random tiny model of every architecture, and where an EXL2 file keeps each of its weights.

The names are written down here a second time, from exllamav2's `architecture.py`, so that a
mistake in the package's own table does not cancel out.
"""

import re

import torch
import transformers

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 32},
}
MROPE = {"type": "mrope", "mrope_section": [4, 6, 6]}
WINDOW = {"sliding_window": 8}


def own_head_dim(draw):
    """Sizes of a model whose heads need not make up the hidden size."""
    heads = draw.choice((2, 4))
    return _sizes(draw, draw.choice((64, 96)), heads) | {"head_dim": draw.choice((32, 64))}


def derived_head_dim(draw):
    """Sizes of a model with hidden_size / heads as head dimension."""
    return _sizes(draw, 64 * draw.choice((1, 2)), 2)


def qwen_vl_sizes(draw):
    """Sizes with a head dimension of 32, which MROPE divides."""
    return _sizes(draw, 64, 2)


def _sizes(draw, hidden, heads):
    return {
        "hidden_size": hidden,
        "intermediate_size": draw.choice((64, 96, 160)),
        "num_hidden_layers": draw.choice((2, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice((1, heads)),
        "vocab_size": draw.choice((33, 100, 128)),
        "max_position_embeddings": 64,
    }


def gpt_sizes(draw):
    """Sizes under GPT-2's names."""
    return {
        **{"n_embd": 64, "n_head": draw.choice((2, 4)), "n_layer": 2, "n_positions": 64},
        **{"n_inner": draw.choice((None, 96)), "vocab_size": draw.choice((33, 100))},
    }


# Sizes, and whatever sets an architecture apart from Llama.
CASES = {
    "LlamaForCausalLM": (
        own_head_dim,
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    ),
    "MistralForCausalLM": (own_head_dim, WINDOW),
    "MixtralForCausalLM": (own_head_dim, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen2ForCausalLM": (
        derived_head_dim,
        WINDOW | {"tie_word_embeddings": True, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "Qwen3ForCausalLM": (own_head_dim, {"tie_word_embeddings": True}),
    "Qwen3MoeForCausalLM": (
        own_head_dim,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "GemmaForCausalLM": (own_head_dim, {"hidden_activation": "gelu_pytorch_tanh"}),
    "Gemma2ForCausalLM": (
        own_head_dim,
        WINDOW
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
        | {"query_pre_attn_scalar": 48},
    ),
    "Starcoder2ForCausalLM": (derived_head_dim, WINDOW | {"use_bias": True}),
    "CohereForCausalLM": (derived_head_dim, {"logit_scale": 0.25, "use_qk_norm": True}),
    "Cohere2ForCausalLM": (
        own_head_dim,
        WINDOW | {"logit_scale": 0.25, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "GraniteForCausalLM": (
        derived_head_dim,
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.3, "logits_scaling": 4.0}
        | {"attention_multiplier": 0.1, "attention_bias": True, "mlp_bias": True},
    ),
    "Phi3ForCausalLM": (
        derived_head_dim,
        WINDOW | {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "Glm4ForCausalLM": (
        own_head_dim,
        {"attention_bias": True}
        | {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "GPT2LMHeadModel": (gpt_sizes, {}),
    "GPTBigCodeForCausalLM": (gpt_sizes, {"multi_query": True}),
}

_PIXTRAL = {"head_dim": 32, "image_size": 28, "patch_size": 14, "model_type": "pixtral"}
_VISION = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
    **{"num_attention_heads": 1, "image_size": 28, "patch_size": 14},
}
_QWEN_VISION = {"depth": 1, "num_heads": 2, "patch_size": 14}
# The text config's extras, its model_type, the vision config.
MULTIMODAL_CASES = {
    "Gemma3ForConditionalGeneration": (
        own_head_dim,
        WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
        "gemma3_text",
        _VISION | {"model_type": "siglip_vision_model"},
    ),
    "Mistral3ForConditionalGeneration": (own_head_dim, {}, "mistral", _VISION | _PIXTRAL),
    "LlavaForConditionalGeneration": (own_head_dim, {}, "mistral", _VISION | _PIXTRAL),
    "Qwen2VLForConditionalGeneration": (
        qwen_vl_sizes,
        {"rope_scaling": MROPE, "rope_theta": 1e6},
        "qwen2_vl_text",
        _QWEN_VISION | {"embed_dim": 32, "hidden_size": 64, "model_type": "qwen2_vl_vision"},
    ),
    "Qwen2_5_VLForConditionalGeneration": (
        qwen_vl_sizes,
        {"rope_scaling": MROPE, "rope_theta": 1e6},
        "qwen2_5_vl_text",
        _QWEN_VISION
        | {"hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64}
        | {"fullatt_block_indexes": [0], "model_type": "qwen2_5_vl_vision"},
    ),
}


def build(name, draw):
    """Make a model with random weights of which every kind matters, exact in float16."""
    model_class = getattr(transformers, name)
    if name in CASES:
        sizes, extras = CASES[name]
        keys = sizes(draw) | TOKENS | extras
        if "layer_types" in keys:
            keys["num_hidden_layers"] = len(keys["layer_types"])
        config = model_class.config_class(**keys)
    else:
        sizes, extras, model_type, vision = MULTIMODAL_CASES[name]
        text = sizes(draw) | TOKENS | extras | {"model_type": model_type}
        if "layer_types" in text:
            text["num_hidden_layers"] = len(text["layer_types"])
        config = model_class.config_class(text_config=text, vision_config=vision)
    torch.manual_seed(draw.randrange(1000))
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or min(parameter.shape) == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)  # norms and biases
            else:
                parameter.normal_(std=0.1)
            parameter.copy_(parameter.half())
    return model


def text_part(name):
    """Strip what transformers puts before the text model of a multimodal model."""
    return re.sub(r"^model\.language_model\.", "model.", name)


def is_text(name):
    """Whether a parameter belongs to the text model."""
    return not re.search(r"vision_tower|multi_modal_projector|visual", name)


def stored_linears(name, config):
    """Where the linear weight of a transformers parameter is in an EXL2 file.

    Args:
        name: Parameter name inside the text model.
        config: The text model's config.

    Returns:
        For each slice of the parameter's leading axis (one, or one per expert) the EXL2 modules
        whose outputs follow each other in it; None for a parameter that is not quantized.
    """
    if name == "lm_head.weight":
        return [["lm_head"]]
    match = re.match(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.*)$", name)
    if not match:
        return None
    layer, rest = f"model.layers.{match[1]}", match[2]
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    qkv = [f"{attention}.{letter}_proj" for letter in "qkv"]
    gpt = name.startswith("transformer.")
    table = {
        "self_attn.qkv_proj.weight": [qkv],
        "attn.c_attn.weight": [qkv],
        "attn.c_proj.weight": [[f"{attention}.o_proj"]],
        "mlp.gate_up_proj.weight": [[f"{mlp}.gate_proj", f"{mlp}.up_proj"]],
    }
    table |= {f"self_attn.{n}_proj.weight": [[f"{attention}.{n}_proj"]] for n in "qkvo"}
    table |= {f"mlp.{n}_proj.weight": [[f"{mlp}.{n}_proj"]] for n in ("gate", "up", "down")}
    table |= {f"mlp.{n}.weight": [[f"{mlp}.{n}"]] for n in ("c_fc", "c_proj")}
    experts = _expert_names(layer, config)
    table["mlp.experts.gate_up_proj"] = [[gate, up] for gate, up, _ in experts]
    table["mlp.experts.down_proj"] = [[down] for _, _, down in experts]
    assert not gpt or "self_attn" not in rest
    return table.get(rest)


def _expert_names(layer, config):
    if hasattr(config, "num_local_experts") and config.model_type == "mixtral":
        moe = f"{layer}.block_sparse_moe.experts"
        return [[f"{moe}.{e}.{w}" for w in ("w1", "w3", "w2")] for e in range(4)]
    parts = ("gate_proj", "up_proj", "down_proj")
    return [[f"{layer}.mlp.experts.{e}.{part}" for part in parts] for e in range(4)]


def plain_name(name, config):
    """Where a parameter that is not quantized is in an EXL2 file: embedding, norm, router."""
    rules = (
        (r"^transformer\.wte\.", "model.embed_tokens."),
        (r"^transformer\.wpe\.", "model.wpe."),
        (r"^transformer\.ln_f\.", "model.norm."),
        (r"^transformer\.h\.", "model.layers."),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    if config.model_type == "mixtral":
        name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
    return name
