"""Decodes a quantized checkpoint into an ordinary Hugging Face directory.

What comes out holds the weights as exllamav2's kernels see them, under transformers' names, so
any tool that reads unquantized checkpoints can run the quantized model. Decoding loses nothing
in float16; a smaller file is not the aim. Of a multimodal model only the text part is written.
One shard is held in memory at a time.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_exl2.checkpoint.config import text_config
from lm_eval_exl2.checkpoint.files import INDEX_NAME
from lm_eval_exl2.checkpoint.reader import Checkpoint
from lm_eval_exl2.checkpoint.shards import (
    MAX_SHARD_BYTES,
    ShardWriter,
    copy_other_files,
    new_directory,
    write_json,
)
from lm_eval_exl2.errors import ModelFormatError, OptionError

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def dequantize_directory(
    source: Path,
    target: Path,
    *,
    dtype: str = "float16",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the decoded version of an EXL2 or GPTQ checkpoint.

    Args:
        source: Folder of the quantized checkpoint.
        target: Folder to create, whole or not at all.
        dtype: Of all weights written. float16 and float32 are exact; bfloat16 rounds.
        max_shard_bytes: Limit of one weight file, and of the tensors held in memory.

    Raises:
        OptionError: an unknown dtype, or a target that exists.
        ModelFormatError: the source is damaged or not quantized.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    checkpoint = Checkpoint(source)
    if checkpoint.kind == "unquantized":
        raise ModelFormatError(f"{source} is not quantized, there is nothing to decode")
    with new_directory(target) as folder:
        shards = ShardWriter(folder, "model", max_shard_bytes)
        for weight in checkpoint.weights():
            shards.add({weight.name: checkpoint.load(weight).to(DTYPES[dtype])})
        weight_map = shards.finish()
        if len(set(weight_map.values())) > 1:
            metadata = {"total_size": shards.total_bytes}
            write_json(folder / INDEX_NAME, {"metadata": metadata, "weight_map": weight_map})
        raw = _text_model_config(checkpoint)
        config = decoded_config(raw, dtype, checkpoint.has_own_head)
        write_json(folder / "config.json", config)
        copy_other_files(source, folder)


def _text_model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the config of what is written: of a multimodal model only the text part."""
    if not checkpoint.architecture.text_names:
        return checkpoint.config.raw
    import transformers

    library: Any = transformers  # its annotations are incomplete
    name = checkpoint.architecture.model_class
    config = library.AutoConfig.from_pretrained(checkpoint.directory).get_text_config()
    # Without an image Qwen2-VL's text model is a Qwen2; only the class says which type that is.
    model_type = getattr(library, name).config_class.model_type
    return {**config.to_dict(), "architectures": [name], "model_type": model_type}


def decoded_config(raw: dict[str, Any], dtype: str, has_own_head: bool) -> dict[str, Any]:
    """Return config.json of the decoded checkpoint.

    Args:
        raw: config.json of the source; not changed.
        dtype: Name of the dtype of the weights.
        has_own_head: Whether a head is stored. It was quantized apart from the embedding, so
            the two are no longer equal and must not be tied again.
    """
    config = copy.deepcopy(raw)
    config.pop("quantization_config", None)
    for part in (config, text_config(config)):
        # Both spellings: transformers 5 reads the first, older releases the second.
        part["dtype"] = part["torch_dtype"] = dtype
        if has_own_head:
            part["tie_word_embeddings"] = False
    return config
