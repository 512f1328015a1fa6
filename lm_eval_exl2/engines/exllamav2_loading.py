"""Loads a checkpoint with exllamav2: memory, cards, positions, windows, adapters.

Everything that must be right before the first token: how much room a forward gets, what each
layer may see, and where positions come from. Computes no scores.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lm_eval_exl2.engines import exllamav2_config
from lm_eval_exl2.engines.exllamav2_import import quiet_stdout
from lm_eval_exl2.engines.exllamav2_memory import choose_tokens, split_evenly
from lm_eval_exl2.engines.model_config import layer_windows, text_config, trained_length
from lm_eval_exl2.engines.rope_tables import RopeTable, identity_table, make_table
from lm_eval_exl2.errors import EngineMemoryError, ModelFormatError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lm_eval_exl2.checkpoint import Checkpoint
    from lm_eval_exl2.engines.exllamav2_engine import Exllamav2Engine
    from lm_eval_exl2.engines.exllamav2_settings import Exllamav2Settings, LoadSettings


MEMORY_REMEDY = (
    "use gpu_split=auto, a smaller max_batch_tokens or max_length, or a checkpoint of fewer bits"
)
_TESTED = 64  # tokens of the longest sequence of the self-test, and rows of its forwards


class Loaded(NamedTuple):
    """A loaded model and what it was loaded with."""

    model: Any
    text_config: Any
    tokens: int
    """Token budget of a forward."""
    length: int
    """Positions that requests may use; the tables may hold more."""
    loras: list[Any] | None


def load(exllamav2: Any, checkpoint: Checkpoint, settings: LoadSettings) -> Loaded:
    """Load weights, positions and adapters.

    Raises:
        ModelFormatError: exllamav2 cannot compute this model, or not correctly.
        EngineMemoryError: it does not fit; says how much is missing and what helps.
        OptionError: a split or an adapter that does not work.
    """
    text = text_config(checkpoint, settings.config)
    length = settings.max_length or trained_length(text)
    free = free_bytes(settings)
    tokens = choose_tokens(checkpoint, text, free, wanted=settings.max_batch_tokens, length=length)
    # However little was asked for, the self-test needs some room.
    tested = min(_TESTED, trained_length(text))
    limits = exllamav2_config.Limits(
        max(tokens, _TESTED), max(length + settings.spare_positions, tested)
    )
    config, folder = exllamav2_config.make_config(exllamav2, checkpoint, text, limits)
    with folder:
        model = exllamav2.ExLlamaV2(config)
        _set_windows(model, text)
        try:
            model.load(_split(settings, free))
        except (torch.OutOfMemoryError, AssertionError, ValueError, TypeError) as error:
            model.unload()
            gc.collect()
            if not _is_lack_of_memory(error):
                raise exllamav2_config.refusal(checkpoint, _first_line(error)) from error
            raise EngineMemoryError(
                f"{checkpoint.directory} does not fit: {_first_line(error)}; {MEMORY_REMEDY}"
            ) from error
    _set_positions(model, text, limits.length)
    loras = None
    if settings.lora is not None:
        loras = [_load_lora(exllamav2, model, settings.lora)]
        _permute_loras(model, checkpoint)
    return Loaded(model, text, tokens, length, loras)


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether a card was full, or the cards of a split (`model.py`, `set_device_map`)."""
    return isinstance(error, torch.OutOfMemoryError) or "Insufficient space" in str(error)


def free_bytes(settings: LoadSettings) -> list[int]:
    """Return the free memory of each card that may be used, in bytes, cards before it as 0."""
    if settings.gpu_split is None:
        return [0] * settings.device + [_free_on(settings.device)]
    count = torch.cuda.device_count()
    if not isinstance(settings.gpu_split, str) and len(settings.gpu_split) > count:
        raise OptionError(f"gpu_split names {len(settings.gpu_split)} cards, but there are {count}")
    return [_free_on(index) for index in range(count)]


def _free_on(index: int) -> int:
    return torch.cuda.mem_get_info(index)[0]


def _split(settings: LoadSettings, free: Sequence[int]) -> list[float]:
    """Return the GiB of weights per card that exllamav2 fills one after the other."""
    if settings.gpu_split is None:
        # Room for everything on the one card; those before it get nothing.
        return [0.0] * settings.device + [99999.0]
    if isinstance(settings.gpu_split, str):
        return split_evenly(free)
    return list(settings.gpu_split)


def attention_modules(model: Any) -> Iterator[Any]:
    """Yield the attention modules of a model in the order of its layers."""
    for module in model.modules:
        inner = getattr(module, "attn", module)  # parallel decoders hold one inside
        if hasattr(inner, "_attn_torch"):
            yield inner


def _set_windows(model: Any, text: Any) -> None:
    """Give every layer transformers' sliding window; exllamav2 ignores some."""
    windows = layer_windows(text)
    for module in attention_modules(model):
        module.sliding_window = windows[module.layer_idx] or 0


def _set_positions(model: Any, text: Any, length: int) -> None:
    """Give every card transformers' sines and cosines, and every layer its kind of them."""
    style = model.config.arch.lm.rope_style.name
    if style == "NONE":
        return
    tables = _tables(text, length, "pairs" if style == "GPTJ" else "halves")
    kinds = list(tables)
    for module in attention_modules(model):
        kind: str = text.layer_types[module.layer_idx] if len(kinds) > 1 else kinds[0]
        module.rope_index = kinds.index(kind)
    for index, context in enumerate(model.device_context):
        if context is not None:
            context = model.get_device_context(index, scratch=False)
            device = context.sin[0].device
            context.sin = [table.sin.to(device) for table in tables.values()]
            context.cos = [table.cos.to(device) for table in tables.values()]


def _tables(text: Any, length: int, layout: Any) -> dict[str, RopeTable]:
    """Return the tables by layer type, one under any name where all layers are alike."""
    sliding, full = "sliding_attention", "full_attention"
    if full in text.rope_parameters:
        return {kind: make_table(text, length, layout, kind) for kind in (full, sliding)}
    table = make_table(text, length, layout)
    if text.model_type == "cohere2":  # its full-attention layers know no positions
        return {sliding: table, full: identity_table(table)}
    return {"all": table}


def _load_lora(exllamav2: Any, model: Any, folder: Path) -> Any:
    from importlib import import_module

    if reason := _why_no_lora(model.config):
        raise OptionError(f"lora={folder}: exllamav2 {reason}; merge the adapter before quantizing")
    adapter: Any = import_module(f"{exllamav2.__name__}.lora").ExLlamaV2Lora
    try:
        found = adapter.from_directory(model, str(folder))
    except (ValueError, KeyError, AssertionError, OSError, TypeError) as error:
        raise OptionError(
            f"lora={folder}: {_first_line(error).removeprefix('## Error: ')}; expected a folder "
            "with adapter_config.json and adapter_model.safetensors of a matching model"
        ) from error
    if found.bias_ignored:
        raise ModelFormatError(f"lora={folder}: biases of an adapter are not computed; merge it")
    return found


def _why_no_lora(config: Any) -> str | None:
    """Return what exllamav2 gets wrong about adapters of a model, None if nothing is known."""
    arch = config.arch.lm
    if arch.is_moe:
        return "has no kernels for adapters of experts"
    if arch.parallel_decoder_blocks:
        return "ignores adapters of parallel decoder layers"  # `update_loras` never visits them
    if arch.keys["norm_1_post"]:
        return "adds adapters behind the norm that follows a layer"
    if config.scale_depth != 1:
        return "does not scale adapters with the residual multiplier"
    return None


def _permute_loras(model: Any, checkpoint: Checkpoint) -> None:
    """Put adapters of quantized MLPs into the order its kernels compute them in.

    exllamav2 drops the permutation of a down projection and permutes the columns of gate and up
    instead (`mlp.py`, `linear.py`: unmap), but leaves adapters of all three as they were.
    """
    for module in model.modules:
        if not hasattr(module, "down_proj"):
            continue
        down = module.down_proj
        stored = checkpoint.linears.get(down.key)
        if not stored or "q_invperm" not in stored.tensors:
            continue
        order = checkpoint.load_packed(down.key)["q_invperm"].argsort()
        for name, tensor in down.lora_a_tensors.items():
            down.lora_a_tensors[name] = tensor[order.to(tensor.device)].contiguous()
        for linear in filter(None, (module.gate_proj, module.up_proj)):
            for name, tensor in linear.lora_b_tensors.items():
                linear.lora_b_tensors[name] = tensor[:, order.to(tensor.device)].contiguous()
    model.update_loras()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


def load_draft(engine: Exllamav2Engine, settings: Exllamav2Settings) -> Any:
    """Load the model that proposes tokens.

    Raises:
        OptionError: it does not speak of the same tokens, or has attention that cannot be paged.
    """
    assert settings.draft is not None
    window = engine.model.config.max_seq_len
    same = replace(settings.load, max_length=window, spare_positions=0, lora=None)
    with quiet_stdout():
        loaded = load(engine.exllamav2, settings.draft, same)
    reason = None
    if loaded.text_config.vocab_size != engine.info.vocab_size:
        reason = (
            f"has {loaded.text_config.vocab_size} tokens and the model {engine.info.vocab_size}; "
            "expected a smaller model of the same family"
        )
    elif any(module.sliding_window for module in attention_modules(loaded.model)):
        reason = "has sliding windows, which cannot be paged; use another"
    if reason:
        loaded.model.unload()
        raise OptionError(f"draft_model {reason}")
    return loaded.model
