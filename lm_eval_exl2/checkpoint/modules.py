"""Which modules an EXL2 checkpoint must hold, may hold, and in which sizes.

exllamav2 names all architectures alike, so an EXL2 file can be checked in full before any of it
is decoded: nothing missing, nothing left over, every shape as config.json asks for. Quantized
layers have had their sizes checked before. No tensors here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lm_eval_exl2.checkpoint.architectures import HEAD_NORMS, Architecture, linear_size
from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lm_eval_exl2.checkpoint.config import Sizes
    from lm_eval_exl2.checkpoint.files import StoredTensor

HEAD = "lm_head"
_EMBEDDING = "model.embed_tokens"
_POSITIONS = "model.wpe"
_FINAL_NORM = "model.norm"

_Role = Literal["linear", "norm", "head norm", "embedding"]


def check_modules(
    linears: Collection[str],
    plain: Mapping[str, StoredTensor],
    sizes: Sizes,
    architecture: Architecture,
) -> None:
    """Check the modules of an EXL2 checkpoint against those of its architecture.

    Args:
        linears: Stored names of the quantized layers.
        plain: All other tensors by stored name.
        sizes: What config.json says.
        architecture: Which modules there are.

    Raises:
        ModelFormatError: a module is missing, surplus, of a wrong size, or not quantized where
            exllamav2 always quantizes.
    """
    roles = _roles(sizes, architecture)
    present: set[str] = set()
    for name in linears:
        module = architecture.text_name(name)
        if _role(roles, module, name, architecture) != "linear":
            raise ModelFormatError(f"{name} is quantized, but is no linear layer")
        present.add(module)
    for name, tensor in plain.items():
        module, _, short = architecture.text_name(name).rpartition(".")
        known = module if short in ("weight", "bias") else name
        role = _role(roles, known, name, architecture)
        if role == "linear" and architecture.transposed and module != HEAD:
            raise ModelFormatError(f"{name} is not quantized, which exllamav2 never writes")
        _check_shape(name, tensor, _allowed_shapes(role, module, short, sizes))
        if short == "weight":
            present.add(module)
    optional = {HEAD, *_optional(sizes, architecture)}
    for module in roles:
        if module not in present and module not in optional:
            raise ModelFormatError(f"{module} is missing")


def _roles(sizes: Sizes, architecture: Architecture) -> dict[str, _Role]:
    """Return every module the architecture may hold."""
    roles: dict[str, _Role] = {_EMBEDDING: "embedding"}
    if architecture.positions:
        roles[_POSITIONS] = "embedding"
    linears = sorted(architecture.layer_linears(sizes.experts))
    for index in range(sizes.layers):
        layer = f"model.layers.{index}"
        roles |= {f"{layer}.{each}": "linear" for each in linears}
        roles |= {f"{layer}.{each}": "norm" for each in architecture.norms}
        if architecture.head_norms != "none":
            roles |= {f"{layer}.{each}": "head norm" for each in HEAD_NORMS}
    roles[_FINAL_NORM], roles[HEAD] = "norm", "linear"
    return roles


def _optional(sizes: Sizes, architecture: Architecture) -> set[str]:
    if architecture.head_norms != "per head":
        return set()
    return {f"model.layers.{i}.{each}" for i in range(sizes.layers) for each in HEAD_NORMS}


def _role(roles: Mapping[str, _Role], module: str, name: str, architecture: Architecture) -> _Role:
    try:
        return roles[module]
    except KeyError:
        raise ModelFormatError(f"{name} is not part of a {architecture.name}") from None


def _allowed_shapes(
    role: _Role, module: str, short: str, sizes: Sizes
) -> set[tuple[int, ...]] | None:
    """Return the shapes a plain tensor may have; None where any number of rows is fine."""
    is_weight, hidden = short == "weight", sizes.hidden_size
    if role == "linear":
        size = linear_size(module, sizes)
        return {size if is_weight else size[:1]} if size else set()
    if role == "norm":
        return {(hidden,)}
    if role == "head norm":
        heads = sizes.heads if module.endswith("q_norm") else sizes.kv_heads
        return {(sizes.head_dim,), (heads, sizes.head_dim)}
    return {(sizes.vocab_size, hidden)} if module == _EMBEDDING else None


def _check_shape(name: str, tensor: StoredTensor, allowed: set[tuple[int, ...]] | None) -> None:
    if allowed is not None and tensor.shape not in allowed:
        expected = " or ".join(str(shape) for shape in sorted(allowed)) or "nothing of that name"
        raise ModelFormatError(f"{name} has shape {tensor.shape}, expected {expected}")
