"""Quantizes a checkpoint directory to EXL2 by rounding to the nearest code.

**Not a substitute for exllamav2's calibrated conversion**: no data is seen, so at equal size its
checkpoints are clearly better. This exists for tests, demos and machines without a GPU, and
gives files that exllamav2 and this package load like any other EXL2 checkpoint.

Names and layout are exllamav2's (0.3.2, `conversion/compile.py`): Llama-like names, fused
projections split, the output head always quantized on its own, everything else float16. Of a
multimodal model only the text part is written. The packing of one layer is in `packing`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_exl2.checkpoint.architectures import linear_size
from lm_eval_exl2.checkpoint.config import text_config
from lm_eval_exl2.checkpoint.format import BIT_WIDTHS
from lm_eval_exl2.checkpoint.naming import (
    HEAD,
    file_prefix,
    is_linear,
    split_parts,
    stored_name,
)
from lm_eval_exl2.checkpoint.packing import (
    GROUP_ROWS,
    WidthMix,
    important_rows_first,
    pack_linear,
    packed_bits,
)
from lm_eval_exl2.checkpoint.reader import Checkpoint, Weight
from lm_eval_exl2.checkpoint.shards import (
    MAX_SHARD_BYTES,
    ShardWriter,
    copy_other_files,
    new_directory,
    write_json,
)
from lm_eval_exl2.errors import ModelFormatError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["pack_linear", "quantize_directory", "quantized_config"]

_EMBEDDING = "model.embed_tokens.weight"


def quantize_directory(
    source: Path,
    target: Path,
    *,
    bits: float,
    head_bits: int = 6,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write an EXL2 version of an unquantized checkpoint; see the module's warning on quality.

    Args:
        source: Folder with config.json and safetensors files.
        target: Folder to create, whole or not at all.
        bits: Average width of the codes of the decoder layers, 2 to 8. A fraction mixes two
            neighbouring widths. Scales and permutations come on top (about 0.15 bits for large
            layers); what they add up to is written to the new config.json.
        head_bits: Width of the output head's codes.
        max_shard_bytes: Limit of one weight file, and of the tensors held in memory.

    Raises:
        OptionError: a width that EXL2 does not have, or a target that exists.
        ModelFormatError: the source is damaged, quantized already, or cannot be held by EXL2.
    """
    mix = WidthMix(bits)
    if head_bits not in BIT_WIDTHS:
        raise OptionError(f"head_bits is {head_bits}, expected one of {BIT_WIDTHS}")
    checkpoint = Checkpoint(source)
    if checkpoint.kind != "unquantized":
        raise ModelFormatError(f"{source} is quantized ({checkpoint.kind}) already")
    with new_directory(target) as folder:
        shards = ShardWriter(folder, "output", max_shard_bytes)
        work = _Work(checkpoint, mix, head_bits)
        prefix = file_prefix(checkpoint.architecture)
        for tensors in work.tensors():
            shards.add({f"{prefix}{name}": tensor for name, tensor in tensors.items()})
        shards.finish()
        config = quantized_config(checkpoint.config.raw, work.measured_bits, head_bits)
        write_json(folder / "config.json", config)
        copy_other_files(source, folder)


class _Work:
    """One quantization in progress."""

    def __init__(self, checkpoint: Checkpoint, mix: WidthMix, head_bits: int) -> None:
        self._checkpoint = checkpoint
        self._mix = mix
        self._head_bits = head_bits
        self._stored_bits = 0
        self._weights = 0

    @property
    def measured_bits(self) -> float:
        """Bits per weight of the decoder layers so far, everything stored counted."""
        return self._stored_bits / max(self._weights, 1)

    def tensors(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield what the EXL2 files hold, a few tensors at a time, without the file's prefix."""
        plain, architecture = self._checkpoint.plain, self._checkpoint.architecture
        sizes = self._checkpoint.config.sizes
        names = {name: stored_name(architecture, name) for name in plain}
        if f"{HEAD}.weight" not in names.values():
            yield self._quantize_head(names)
        for name, stored in names.items():
            module, _, part = stored.rpartition(".")
            parts = split_parts(architecture, module)
            if not all(is_linear(each, sizes) for each in parts):
                yield {stored: self._half(name)}
            elif part == "weight":
                bias = f"{name.removesuffix('weight')}bias"
                yield from self._quantize(name, parts, bias if bias in plain else None)

    def _quantize_head(self, names: dict[str, str]) -> dict[str, torch.Tensor]:
        """Quantize the head of a tied model, which is its embedding."""
        for name, stored in names.items():
            if stored == _EMBEDDING:
                return self._pack(HEAD, self._load(name))
        raise ModelFormatError(
            f"{self._checkpoint.directory} has neither {HEAD}.weight nor {_EMBEDDING}"
        )

    def _quantize(
        self, name: str, parts: tuple[str, ...], bias_name: str | None
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Quantize one module of the source, split into its parts."""
        weight = self._load(name)
        if self._checkpoint.architecture.transposed and parts != (HEAD,):
            weight = weight.t()
        rows = [self._size(part)[0] for part in parts]
        if weight.shape[0] != sum(rows):
            raise ModelFormatError(
                f"{self._checkpoint.directory}: {name} has {weight.shape[0]} outputs, "
                f"but config.json asks for {sum(rows)}"
            )
        bias = self._half(bias_name) if bias_name else None
        first = 0
        for part, count in zip(parts, rows, strict=True):
            tensors = self._pack(part, weight[first : first + count])
            if bias is not None:
                # exllamav2 checks the bias against the padded number of columns.
                padding = (0, tensors[f"{part}.q_weight"].shape[1] - count)
                piece = bias[first : first + count]
                tensors[f"{part}.bias"] = torch.nn.functional.pad(piece, padding)
            yield tensors
            first += count

    def _pack(self, module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pack the weight of one linear and count its bits."""
        if tuple(weight.shape) != self._size(module):
            raise ModelFormatError(
                f"{self._checkpoint.directory}: {module} has shape {tuple(weight.shape)}, "
                f"but config.json asks for {self._size(module)}"
            )
        out_features, in_features = weight.shape
        is_head = module == HEAD
        plan = [(self._head_bits, in_features, GROUP_ROWS)]
        if not is_head:
            plan = self._mix.plan(out_features, in_features)
        try:
            tensors = pack_linear(weight, plan, important_rows_first(weight))
        except ModelFormatError as error:
            raise ModelFormatError(f"{self._checkpoint.directory}: {module}: {error}") from error
        if not is_head:
            self._stored_bits += packed_bits(tensors)
            self._weights += weight.numel()
        return {f"{module}.{short}": tensor for short, tensor in tensors.items()}

    def _size(self, module: str) -> tuple[int, int]:
        size = linear_size(module, self._checkpoint.config.sizes)
        if size is None:
            raise ModelFormatError(f"{module} is no linear layer this package knows")
        return size

    def _load(self, name: str) -> torch.Tensor:
        return self._checkpoint.load(Weight(name, (name,), "plain"))

    def _half(self, name: str) -> torch.Tensor:
        tensor = self._load(name).half()
        if not torch.isfinite(tensor).all():
            raise ModelFormatError(
                f"{self._checkpoint.directory}: {name} holds NaN, infinity or values beyond float16"
            )
        return tensor


def quantized_config(raw: dict[str, Any], bits: float, head_bits: int) -> dict[str, Any]:
    """Return config.json of the quantized checkpoint.

    Adds quantization_config as exllamav2 writes it, and the older names of keys that
    transformers 5 renamed: exllamav2 reads only those and falls back to defaults in silence.
    One set of position-embedding keys per layer type has no older name and stays as it is.

    Args:
        raw: config.json of the source; not changed.
        bits: Measured bits per weight of the decoder layers.
        head_bits: Width of the output head.
    """
    config = copy.deepcopy(raw)
    for part in (config, text_config(config)):
        if "dtype" in part:
            part.setdefault("torch_dtype", part["dtype"])
        rope = part.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            _add_older_rope_keys(part, rope)  # pyright: ignore[reportUnknownArgumentType]
    if "norm_epsilon" in config:  # Starcoder2: exllamav2 asks for GPT-2's word
        config.setdefault("layer_norm_epsilon", config["norm_epsilon"])
    config["quantization_config"] = {
        "quant_method": "exl2",
        "version": "0.3.2",
        "bits": round(bits, 4),
        "head_bits": head_bits,
        "calibration": {"rows": 0, "length": 0, "dataset": "(none, round to nearest)"},
    }
    return config


def _add_older_rope_keys(part: dict[str, Any], rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "type")}
    part.setdefault("rope_theta", rope["rope_theta"])
    part.setdefault("rope_scaling", None if kind == "default" else scaling | {"rope_type": kind})
    # These two exllamav2 reads from the top level only.
    if "partial_rotary_factor" in rope:
        part.setdefault("partial_rotary_factor", rope["partial_rotary_factor"])
    if kind == "longrope" and "original_max_position_embeddings" in rope:
        length = rope["original_max_position_embeddings"]
        part.setdefault("original_max_position_embeddings", length)
