"""Tiny checkpoint directories written tensor by tensor, without transformers or the package.

The model is a Llama of two layers; what its weights are does not matter here, only that they
can be told apart.
"""

import json
import struct

import torch
from oracles import random_exl2, random_gptq
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
EXL2 = {"quantization_config": {"quant_method": "exl2", "version": "0.3.2", "bits": 4.0}}
GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}


def linear_sizes(config):
    """Every linear layer of the model: name -> (out_features, in_features)."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    sizes = {}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        sizes |= {
            f"{layer}.self_attn.q_proj": (queries, hidden),
            f"{layer}.self_attn.k_proj": (keys, hidden),
            f"{layer}.self_attn.v_proj": (keys, hidden),
            f"{layer}.self_attn.o_proj": (hidden, queries),
            f"{layer}.mlp.gate_proj": (inner, hidden),
            f"{layer}.mlp.up_proj": (inner, hidden),
            f"{layer}.mlp.down_proj": (hidden, inner),
        }
    return sizes | {"lm_head": (config["vocab_size"], hidden)}


def other_tensors(config, dtype=torch.float16):
    """The embedding and all norms."""
    hidden = config["hidden_size"]
    names = [f"model.layers.{i}" for i in range(config["num_hidden_layers"])]
    norms = [f"{name}.{n}_layernorm" for name in names for n in ("input", "post_attention")]
    generator = torch.Generator().manual_seed(2)
    tensors = {
        f"{name}.weight": torch.rand(hidden, generator=generator).to(dtype)
        for name in (*norms, "model.norm")
    }
    embedding = torch.randn(config["vocab_size"], hidden, generator=generator)
    return tensors | {"model.embed_tokens.weight": embedding.to(dtype)}


def exl2_tensors(config=CONFIG, *, bias=()):
    """All tensors of an EXL2 checkpoint; layers whose last name is in `bias` have one."""
    generator = torch.Generator().manual_seed(1)
    tensors = other_tensors(config)
    for name, (out_features, in_features) in linear_sizes(config).items():
        plan = [(5, 32)] + [(3, 32)] * (in_features // 32 - 1)
        columns = -(-out_features // 32) * 32
        layer = random_exl2(generator, plan, columns)
        if name.rpartition(".")[2] in bias:
            layer["bias"] = torch.rand(out_features, generator=generator).half()
        tensors |= {f"{name}.{short}": tensor for short, tensor in layer.items()}
    return tensors


def gptq_tensors(config=CONFIG, *, order="plain"):
    """All tensors of a GPTQ checkpoint with an unquantized head."""
    generator = torch.Generator().manual_seed(1)
    tensors = other_tensors(config)
    for name, (out_features, in_features) in linear_sizes(config).items():
        if name == "lm_head":
            tensors["lm_head.weight"] = torch.rand(out_features, in_features).half()
            continue
        layer = random_gptq(generator, in_features, out_features, 32, order=order)
        tensors |= {f"{name}.{short}": tensor for short, tensor in layer.items()}
    return tensors


def plain_tensors(config=CONFIG, dtype=torch.float16):
    """All tensors of an unquantized checkpoint."""
    generator = torch.Generator().manual_seed(1)
    linears = {
        f"{name}.weight": torch.randn(size, generator=generator).to(dtype)
        for name, size in linear_sizes(config).items()
    }
    return other_tensors(config, dtype) | linears


def write(folder, tensors, config, *, files=1, stem="output", index=False):
    """Write a checkpoint directory, its tensors dealt out to one or more files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    weight_map = {}
    for number in range(files):
        suffix = f"-{number + 1:05}-of-{files:05}" if files > 1 else ""
        file_name = f"{stem}{suffix}.safetensors"
        part = names[number::files]
        save_file({name: tensors[name].contiguous().clone() for name in part}, folder / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    if index:
        write_index(folder, weight_map)
    return folder


def write_exl2(folder, *, config=CONFIG, **options):
    """Write an EXL2 directory of one file."""
    return write(folder, exl2_tensors(config, **options), config | EXL2)


def write_index(folder, weight_map):
    """Write an index as transformers does."""
    content = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def read_header(path):
    """Return the parsed header of a safetensors file and the bytes behind it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path, header, data, *, length=None):
    """Write a safetensors file from a header (text, or anything JSON can hold) and its data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
