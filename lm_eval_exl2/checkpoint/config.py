"""What config.json says about a checkpoint: kind, sizes, and contradictions.

Reads the same keys as exllamav2 0.3.2 (`config.py`) and refuses what it or transformers would
misread in silence. Does not build a transformers config and loads no code of the checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from lm_eval_exl2.checkpoint.files import read_json
from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Names under which architectures store the same size; the first present one counts.
_SIZE_KEYS = {
    "hidden_size": ("hidden_size", "d_model", "n_embd"),
    "layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size", "n_inner"),
    "vocab_size": ("vocab_size",),
    "experts": ("num_local_experts", "num_experts"),
    "expert_size": ("moe_intermediate_size",),
}
# The same sizes in DBRX's nested configs.
_NESTED_KEYS = (
    ("attn_config", "kv_heads", "kv_n_heads"),
    ("ffn_config", "intermediate_size", "ffn_hidden_size"),
    ("ffn_config", "experts", "moe_num_experts"),
)
# Far beyond any model: a larger number is damage, and would be allocated for.
_LARGEST = {"layers": 1 << 12, "heads": 1 << 14, "kv_heads": 1 << 14, "experts": 1 << 14}
_LARGEST_SIZE = 1 << 24
# What both readers assume where a released config.json leaves a size out.
_DEFAULTS = {
    "Gemma3ForConditionalGeneration": {
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
    },
    "GPTBigCodeForCausalLM": {"kv_heads": 1},
}
_DEFAULT_THETA = 10_000.0
# One set of position-embedding keys per layer type, and the older name of each theta.
_THETA_OF_LAYER_TYPE = (
    ("full_attention", "rope_theta"),
    ("sliding_attention", "rope_local_base_freq"),
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the text model that its linear layers must agree with."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    experts: int
    """Number of experts; 0 for a dense model."""


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """The parts of config.json this package relies on."""

    raw: dict[str, Any]
    architecture: str
    sizes: Sizes

    @property
    def quantization(self) -> dict[str, Any]:
        """The quantization_config, empty when there is none."""
        return _object(self.raw.get("quantization_config")) or {}

    @property
    def text(self) -> dict[str, Any]:
        """The keys of the text model: the nested text_config where there is one."""
        return text_config(self.raw)


def text_config(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the nested text_config of a multimodal config, or the config itself."""
    return _object(raw.get("text_config")) or raw


def read_config(directory: Path) -> CheckpointConfig:
    """Read and check config.json.

    Raises:
        ModelFormatError: missing or malformed file, not exactly one architecture, a missing or
            absurd size, or position-embedding keys that contradict each other.
    """
    path = directory / "config.json"
    raw = read_json(path)
    names: object = raw.get("architectures")
    if not _is_one_name(names):
        raise ModelFormatError(
            f"{path}: architectures is {names!r:.80}, expected a list of one name"
        )
    architecture = str(raw["architectures"][0])
    for key in ("text_config", "quantization_config"):
        if raw.get(key) is not None and _object(raw[key]) is None:
            raise ModelFormatError(f"{path}: {key} is {raw[key]!r:.40}, expected an object")
    check_rope_keys(raw, str(path))
    return CheckpointConfig(raw, architecture, _read_sizes(raw, architecture, str(path)))


def _is_one_name(value: object) -> bool:
    if not isinstance(value, list):
        return False
    names = cast("list[object]", value)
    return len(names) == 1 and isinstance(names[0], str)


def _object(value: object) -> dict[str, Any] | None:
    """Return a JSON object as it is, anything else as None."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _read_sizes(raw: dict[str, Any], architecture: str, where: str) -> Sizes:
    text = text_config(raw)
    found = {name: _read_size(text, name, keys, where) for name, keys in _SIZE_KEYS.items()}
    for nested, name, key in _NESTED_KEYS:
        part = _object(text.get(nested))
        if found[name] is None and part is not None:
            found[name] = _read_size(part, name, (key,), where)
    for name, default in _DEFAULTS.get(architecture, {}).items():
        found[name] = default if found[name] is None else found[name]
    if found["intermediate_size"] is None and architecture.startswith("GPT"):
        found["intermediate_size"] = 4 * (found["hidden_size"] or 0)
    needed = ("hidden_size", "layers", "heads", "vocab_size", "intermediate_size")
    for name in needed:
        if not found[name]:
            keys = " / ".join(_SIZE_KEYS[name])
            raise ModelFormatError(f"{where} gives no {keys}, expected a positive whole number")
    size = {name: value or 0 for name, value in found.items()}
    kv_heads = size["kv_heads"] or size["heads"]
    if size["heads"] % kv_heads:
        raise ModelFormatError(
            f"{where}: {size['heads']} attention heads cannot share {kv_heads} key-value heads"
        )
    return Sizes(
        hidden_size=size["hidden_size"],
        layers=size["layers"],
        heads=size["heads"],
        kv_heads=kv_heads,
        head_dim=size["head_dim"] or size["hidden_size"] // size["heads"],
        intermediate_size=(size["experts"] and size["expert_size"]) or size["intermediate_size"],
        vocab_size=size["vocab_size"],
        experts=size["experts"],
    )


def _read_size(part: Mapping[str, Any], name: str, keys: tuple[str, ...], where: str) -> int | None:
    """Read the first of some keys that is given."""
    largest = _LARGEST.get(name, _LARGEST_SIZE)
    for key in keys:
        value: object = part.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
            raise ModelFormatError(
                f"{where}: {key} is {value!r:.40}, expected a whole number up to {largest}"
            )
        return value
    return None


def check_rope_keys(raw: dict[str, Any], where: str) -> None:
    """Refuse a config whose old and new position-embedding keys disagree.

    transformers 5 writes `rope_parameters`; exllamav2 and older releases read `rope_theta` and
    `rope_scaling`. Where both are present and differ, two readers would run two models.

    Raises:
        ModelFormatError: naming both values.
    """
    text = text_config(raw)
    new = _object(text.get("rope_parameters"))
    if new is None:
        return
    by_layer_type = {key: each for key, value in new.items() if (each := _object(value))}
    if not by_layer_type:
        _compare_theta(text.get("rope_theta"), new, where)
        _compare_scaling(text, new, where)
        _check_theta_survives(text, new, where)
        return
    for layer_type, older_key in _THETA_OF_LAYER_TYPE:
        each = by_layer_type.get(layer_type, {})
        _compare_theta(text.get(older_key), each, where, older_key)
        if layer_type == "full_attention" and each:
            _compare_scaling(text, each, where)


def _compare_theta(
    old: object, new: Mapping[str, Any], where: str, older_key: str = "rope_theta"
) -> None:
    if _differ(old, new.get("rope_theta")):
        raise ModelFormatError(
            f"{where}: {older_key} is {old!r:.40} but rope_parameters says "
            f"{new['rope_theta']!r:.40}; readers would disagree, correct one of them"
        )


def _compare_scaling(text: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    if "rope_scaling" not in text:
        return
    old = _object(text["rope_scaling"]) or {}
    # `rope_scaling: null` beside a scaled rope_parameters is how the trap looks in practice.
    if _rope_type(old) != _rope_type(new):
        raise ModelFormatError(
            f"{where}: rope_scaling is {_rope_type(old)!r:.40} but rope_parameters says "
            f"{_rope_type(new)!r:.40}; readers would disagree, correct one of them"
        )
    for key, value in old.items():
        if key not in ("type", "rope_type") and key in new and _differ(value, new[key]):
            raise ModelFormatError(
                f"{where}: rope_scaling has {key} = {value!r:.40} but rope_parameters has "
                f"{new[key]!r:.40}; readers would disagree, correct one of them"
            )


def _check_theta_survives(text: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    """Refuse a theta that only `rope_parameters` holds beside a filled `rope_scaling`.

    transformers reads rope_scaling instead of rope_parameters, not together with it.
    """
    old = _object(text.get("rope_scaling")) or {}
    lost = old and "rope_theta" not in old and "rope_theta" not in text
    if lost and _differ(_DEFAULT_THETA, new.get("rope_theta")):
        raise ModelFormatError(
            f"{where}: rope_parameters has rope_theta = {new['rope_theta']!r:.40}, which readers "
            "of rope_scaling miss; add rope_theta beside rope_scaling"
        )


def _rope_type(rope: Mapping[str, Any]) -> object:
    kind: object = rope.get("rope_type") or rope.get("type") or "default"
    # For text the three axes of `mrope` coincide: it is the default rotation.
    return "default" if kind == "mrope" else kind


def _differ(old: object, new: object) -> bool:
    """Whether two values are both given and unequal, numbers compared as numbers."""
    if old is None or new is None:
        return False
    if isinstance(old, int | float) and isinstance(new, int | float):
        try:
            return not math.isclose(old, new, rel_tol=1e-9)
        except OverflowError:  # an integer that no float can hold
            return old != new
    return old != new
