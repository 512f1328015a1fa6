"""Names in EXL2 files from transformers' names: the way back from `architectures`.

Also says which modules exllamav2 quantizes. No tensors here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lm_eval_exl2.checkpoint.architectures import Architecture, linear_size
from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from lm_eval_exl2.checkpoint.config import Sizes

HEAD = "lm_head"
_ROUTER = "gate"
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
# The inverse of the renames of the GPT architectures, for names that start with "transformer.".
_GPT_STORED = (
    (r"^transformer\.wte\.", "model.embed_tokens."),
    (r"^transformer\.wpe\.", "model.wpe."),
    (r"^transformer\.ln_f\.", "model.norm."),
    (r"^transformer\.h\.", "model.layers."),
    (r"\.attn\.c_proj\.", ".self_attn.o_proj."),
    (r"\.attn\.", ".self_attn."),
)


# Where exllamav2 tells the text model's names from those of other parts.
_PREFIXED = (
    "Gemma3ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "LlavaForConditionalGeneration",
)


def file_prefix(architecture: Architecture) -> str:
    """Return what stands before every `stored_name` in an EXL2 file; empty for text models."""
    return "language_model." if architecture.name in _PREFIXED else ""


def stored_name(architecture: Architecture, name: str) -> str:
    """Return the name exllamav2 stores a tensor of transformers under, without `file_prefix`.

    Args:
        architecture: The model's.
        name: Full name with its last part (`.weight`), fused modules not yet split.

    Raises:
        ModelFormatError: `Architecture.target_name` would not lead back.
    """
    stored = target = architecture.text_name(name)
    if architecture.renames:
        # The first GPT-2 files were saved from the model without its head.
        if not target.startswith(("transformer.", f"{HEAD}.")):
            stored = target = f"transformer.{target}"
        for pattern, replacement in _GPT_STORED:
            stored = re.sub(pattern, replacement, stored)
    if architecture.target_name(stored) != target:
        raise ModelFormatError(f"{architecture.name}: {name} has no known name in EXL2 files")
    return stored


def split_parts(architecture: Architecture, module: str) -> tuple[str, ...]:
    """Return the modules a fused module is stored as, or the module itself."""
    parent, _, last = module.rpartition(".")
    parts = architecture.fused.get(last)
    return tuple(f"{parent}.{part}" for part in parts) if parts else (module,)


def layer_index(name: str) -> int | None:
    """Return the decoder layer a tensor or module belongs to, under either kind of name."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def is_linear(module: str, sizes: Sizes) -> bool:
    """Whether exllamav2 quantizes a module: linears of decoder layers and the head.

    Args:
        module: Name in an EXL2 file, split.
        sizes: The model's.
    """
    inside = module == HEAD or layer_index(module) is not None
    known = linear_size(module, sizes) is not None
    return inside and known and module.rpartition(".")[2] != _ROUTER
