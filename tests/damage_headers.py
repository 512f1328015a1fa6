"""Damage to the header of a safetensors file that leaves it well-formed JSON.

Every kind takes a checkpoint (file contents by name) and a random source, changes the checkpoint
and returns what it did, or None where it does not apply.
"""

import json
import struct

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 33, 64, 4096, 10**6, 2**31, 2**63, 10**30, 10**400),
    *(0.5, -1.0, 1e308, float("nan"), float("inf"), "", "64", "exl2", "awq", "x" * 10_000),
    *("a\nb\x1b", "\ud800", [], [1], [[]], ["LlamaForCausalLM"], {}, {"a": 1}, {"rope_theta": 1}),
    *({"quant_method": "gptq", "bits": 8}, {"rope_type": "yarn", "factor": "x"}),
)
DTYPES = (
    *("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "BOOL"),
    *("F8_E4M3", "F8_E5M2", "C64", "F4", "X1", "", "f16"),
)


def some_shard(files, draw):
    return draw.choice([*(name for name in sorted(files) if name.endswith(".safetensors")), None])


def _with_header(files, draw, change):
    """Change the parsed header of a file, keeping its data."""
    name = some_shard(files, draw)
    try:
        (length,) = struct.unpack("<Q", files[name][:8])
        header = json.loads(files[name][8 : 8 + length])
        tensors = [each for each in sorted(header) if each != "__metadata__"]
        what = change(header, draw.choice(tensors))
    except (KeyError, ValueError, IndexError, TypeError, struct.error, AttributeError):
        return None  # no such file, or damaged before
    text = json.dumps(header).encode(errors="replace")
    text += b" " * draw.choice((0, -len(text) % 8))
    files[name] = struct.pack("<Q", len(text)) + text + files[name][8 + length :]
    return f"{name}: {what}"


def change_dtype(files, draw):
    def change(header, name):
        header[name]["dtype"] = draw.choice(DTYPES)
        return f"{name} {header[name]['dtype']}"

    return _with_header(files, draw, change)


def change_shape(files, draw):
    def change(header, name):
        shape = header[name]["shape"]
        options = (
            *([], [0], [2**62, 2], [-1], shape[::-1], [*shape, 1], shape[1:], [*shape, 0]),
            *([size * 2 for size in shape], [size // 2 for size in shape], [0.5], ["1"], None, 7),
        )
        header[name]["shape"] = draw.choice(options)
        return f"{name} {header[name]['shape']}"

    return _with_header(files, draw, change)


def change_offsets(files, draw):
    def change(header, name):
        start, end = header[name]["data_offsets"]
        options = (
            *([start, end + 4], [start + 4, end], [end, start], [0, 0], [start, 2**63], [-4, end]),
            *([start], [], None, [start + 0.5, end], ["0", "4"], [0, end - start], [2**64, 2**65]),
        )
        header[name]["data_offsets"] = draw.choice(options)
        return f"{name} {header[name]['data_offsets']}"

    return _with_header(files, draw, change)


def swap_entries(files, draw):
    def change(header, name):
        other = draw.choice(sorted(set(header) - {"__metadata__"}))
        header[name], header[other] = header[other], header[name]
        return f"{name} and {other}"

    return _with_header(files, draw, change)


def rename_entry(files, draw):
    def change(header, name):
        options = (
            *(name.replace("layers.0", "layers.1"), name.replace("layers.1", "layers.9999999")),
            *(name.replace("q_weight", "qweight"), name.replace("weight", "q_weight"), f"{name}.x"),
            *("", "a\nb", "lm_head.q_weight", name.upper(), name.replace("q_proj", "z_proj")),
            *(f"language_model.{name}", f"model.{name}", name.replace(".self_attn", "")),
        )
        new = draw.choice(options)
        header[new] = header.pop(name)
        return f"{name} to {new!r}"

    return _with_header(files, draw, change)


def delete_entry(files, draw):
    def change(header, name):
        del header[name]
        return name

    return _with_header(files, draw, change)


def odd_metadata(files, draw):
    def change(header, name):
        key = draw.choice(("__metadata__", name, "dtype"))
        header[key] = draw.choice(VALUES)
        return f"{key} {header[key]!r:.40}"

    return _with_header(files, draw, change)


def header_length(files, draw):
    name = some_shard(files, draw)
    if name is None or len(files[name]) < 8:
        return None
    length = draw.choice((0, 1, 7, 100, 10**6, 2**27, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
    files[name] = struct.pack("<Q", length) + files[name][8:]
    return f"{name} {length}"
