"""The ways `damage.py` breaks a checkpoint: bytes, headers, tensors, config, index, files.

A checkpoint is a dict of file contents by name. Every kind of damage takes such a dict and a
random source, changes the dict and returns what it did, or None where it does not apply.
"""

import json

import torch
from damage_headers import (
    VALUES,
    change_dtype,
    change_offsets,
    change_shape,
    delete_entry,
    header_length,
    odd_metadata,
    rename_entry,
    some_shard,
    swap_entries,
)
from safetensors.torch import load, save

TORCH_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int16),
    *(torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64),
)
KEYS = (
    *("text_config", "rope_scaling", "rope_parameters", "head_dim", "num_experts", "n_embd"),
    *("num_local_experts", "moe_intermediate_size", "mlp_only_layers", "decoder_sparse_step"),
    *("attn_config", "ffn_config", "quantization_config", "partial_rotary_factor"),
)
ARCHITECTURES = (
    *("GPT2LMHeadModel", "MixtralForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
    *("Phi3ForCausalLM", "Gemma3ForConditionalGeneration", "LlavaForConditionalGeneration"),
    *("CohereForCausalLM", "DbrxForCausalLM", "NoSuchModel"),
)


def damaged(files, draw):
    """Return a damaged copy and a description of the damage."""
    files, done = dict(files), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        what = None
        while what is None:
            kind = draw.choice(KINDS)
            what = kind(files, draw)
        done.append(f"{kind.__name__}: {what}")
    return files, "; ".join(done)


# -- bytes -----------------------------------------------------------------------------------


def flip_bits(files, draw):
    name = draw.choice(sorted(files))
    content = bytearray(files[name])
    if not content:
        return None
    region = draw.choice((len(content), min(len(content), 3000), min(len(content), 9)))
    for _ in range(draw.choice((1, 1, 4, 32))):
        content[draw.randrange(region)] ^= 1 << draw.randrange(8)
    files[name] = bytes(content)
    return name


def truncate(files, draw):
    name = draw.choice(sorted(files))
    files[name] = files[name][: draw.randrange(len(files[name]) + 1)]
    return f"{name} to {len(files[name])}"


def append(files, draw):
    name = draw.choice(sorted(files))
    files[name] += draw.randbytes(draw.choice((1, 8, 1000)))
    return name


def overwrite(files, draw):
    name = draw.choice(sorted(files))
    start = draw.randrange(len(files[name]) + 1)
    length = draw.choice((1, 8, 64, 4096))
    middle = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    files[name] = files[name][:start] + middle + files[name][start + length :]
    return f"{name} from {start}"


# -- tensors ---------------------------------------------------------------------------------


def _with_tensors(files, draw, change):
    """Change the tensors of a file; it is saved as a valid file again."""
    name = some_shard(files, draw)
    try:
        tensors = {key: tensor.clone() for key, tensor in load(files[name]).items()}
        what = change(tensors, draw.choice(sorted(tensors)))
        files[name] = save(tensors)
    except Exception:  # noqa: BLE001 - damaged before, or a change torch cannot make
        return None
    return f"{name}: {what}"


def drop_tensor(files, draw):
    def change(tensors, name):
        del tensors[name]
        return name

    return _with_tensors(files, draw, change)


def add_tensor(files, draw):
    def change(tensors, name):
        new = draw.choice(
            (
                *("lm_head.weight", "model.layers.0.mlp.gate_proj.weight", "x.q_weight", "scales"),
                *("model.layers.0.self_attn.q_proj.bias", "model.layers.5.x", f"{name}.bias"),
                *("model.layers.0.mlp.up_proj.g_idx", "lm_head.q_perm", "model.norm.q_groups"),
            )
        )
        tensors[new] = tensors[draw.choice(sorted(tensors))].clone()
        return f"{new} like {name}"

    return _with_tensors(files, draw, change)


def cast_tensor(files, draw):
    def change(tensors, name):
        tensors[name] = tensors[name].to(draw.choice(TORCH_DTYPES))
        return f"{name} {tensors[name].dtype}"

    return _with_tensors(files, draw, change)


def reshape_tensor(files, draw):
    def change(tensors, name):
        tensor = tensors[name]
        options = (
            *(tensor.flatten(), tensor.unsqueeze(0), tensor[:-1], tensor[..., :-1], tensor[:0]),
            *(tensor.t(), tensor.repeat(2, *[1] * (tensor.dim() - 1)), tensor.flatten()[0]),
        )
        tensors[name] = draw.choice(options).clone().contiguous()
        return f"{name} {tuple(tensors[name].shape)}"

    return _with_tensors(files, draw, change)


def scramble_tensor(files, draw):
    def change(tensors, name):
        prefer = [key for key in sorted(tensors) if key.endswith(("q_groups", "g_idx", "invperm"))]
        name = draw.choice((name, *prefer[:3]))
        raw = tensors[name].view(torch.uint8).flatten()
        for _ in range(draw.choice((1, 2, 8, len(raw)))):
            raw[draw.randrange(len(raw))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        return name

    return _with_tensors(files, draw, change)


# -- config, index, files --------------------------------------------------------------------


def _with_config(files, change):
    try:
        config = json.loads(files["config.json"])
        what = change(config)
        files["config.json"] = json.dumps(config).encode(errors="surrogatepass")
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return None
    return what


def delete_key(files, draw):
    def change(config):
        key = draw.choice(sorted(config))
        del config[key]
        return key

    return _with_config(files, change)


def set_key(files, draw):
    def change(config):
        key = draw.choice((*sorted(config), *KEYS))
        config[key] = draw.choice(VALUES)
        return f"{key} = {config[key]!r:.40}"

    return _with_config(files, change)


def set_nested_key(files, draw):
    def change(config):
        key = draw.choice(("quantization_config", "text_config", "rope_parameters", "rope_scaling"))
        nested = config.setdefault(key, {})
        inner = draw.choice(
            (
                *("quant_method", "bits", "group_size", "desc_act", "checkpoint_format"),
                *("rope_type", "type", "rope_theta", "factor", "hidden_size", "full_attention"),
            )
        )
        nested[inner] = draw.choice((*VALUES, 2, 8, 128, "gptq_v2"))
        return f"{key}.{inner} = {nested[inner]!r:.40}"

    return _with_config(files, change)


def other_architecture(files, draw):
    def change(config):
        config["architectures"] = [draw.choice(ARCHITECTURES)]
        return config["architectures"][0]

    return _with_config(files, change)


def replace_config(files, draw):
    options = (b"", b"[]", b"null", b"{", b"[" * 10**5, b'"x"', b"\xff", b"{}", b"1" * 5000)
    files["config.json"] = draw.choice(options)
    return repr(files["config.json"][:20])


def edit_index(files, draw):
    shards = [name for name in sorted(files) if name.endswith(".safetensors")]
    names = (*shards, "../x.safetensors", "/x.safetensors", "none.safetensors", "", "x", "a\x00b")
    weight_map = {f"t{n}": draw.choice(names) for n in range(draw.randrange(4))}
    options = ({"weight_map": weight_map}, {"weight_map": draw.choice(VALUES)}, draw.choice(VALUES))
    text = json.dumps(draw.choice(options)).encode(errors="surrogatepass")
    files["model.safetensors.index.json"] = text
    return repr(text[:60])


def delete_file(files, draw):
    if len(files) == 1:
        return None
    name = draw.choice(sorted(files))
    del files[name]
    return name


def copy_file(files, draw):
    name = some_shard(files, draw)
    if name is None:
        return None
    new = draw.choice(
        (
            *("more.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"),
            *("output-00003-of-00002.safetensors", "consolidated.00.safetensors", "config.json"),
        )
    )
    files[new] = files[name]
    return f"{name} to {new}"


def swap_files(files, draw):
    one, other = draw.choice(sorted(files)), draw.choice(sorted(files))
    files[one], files[other] = files[other], files[one]
    return f"{one} and {other}"


KINDS = (
    *(flip_bits, flip_bits, truncate, append, overwrite),
    *(change_dtype, change_shape, change_offsets, swap_entries, rename_entry, delete_entry),
    *(odd_metadata, header_length),
    *(drop_tensor, add_tensor, cast_tensor, reshape_tensor, scramble_tensor, scramble_tensor),
    *(delete_key, set_key, set_key, set_nested_key, other_architecture, replace_config),
    *(edit_index, delete_file, copy_file, swap_files),
)
