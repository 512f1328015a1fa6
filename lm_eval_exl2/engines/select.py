"""Chooses and opens the engine; imports torch and exllamav2 only when it is called."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.locate import locate
from lm_eval_exl2.engines import exllamav2_import
from lm_eval_exl2.engines.model_config import ConfigSettings
from lm_eval_exl2.errors import MissingDependencyError, OptionError

if TYPE_CHECKING:
    from lm_eval_exl2.engines.base import Engine
    from lm_eval_exl2.options import Options

logger = logging.getLogger(__name__)

# Options that only exllamav2's own kernels, caches and generator can act on.
_EXLLAMAV2_ONLY = (
    *("gpu_split", "cache_mode", "cache_size", "draft_model", "ngram_draft"),
    *("no_flash_attn", "no_xformers", "lora"),
)
_TORCH_BATCH_TOKENS = 2048


def open_engine(checkpoint: Checkpoint, options: Options) -> Engine:
    """Load a checkpoint with the engine the options ask for.

    `auto` means exllamav2 where there is a CUDA card and it imports, else torch, with one log
    line that says why. A model that exllamav2 cannot compute is an error, not a reason.

    Raises:
        Exl2EvalError: the checkpoint, an option or the memory does not allow it.
    """
    if options.engine == "exllamav2":
        if reason := _why_torch(options):
            raise OptionError(f"engine=exllamav2 does not go with {reason}; leave one of them out")
        return _open_exllamav2(checkpoint, options)
    reason = "engine=torch" if options.engine == "torch" else _why_torch(options)
    reason = reason or exllamav2_import.why_unavailable()
    if reason is None:
        try:
            return _open_exllamav2(checkpoint, options)
        except MissingDependencyError as error:
            reason = str(error)
    _refuse_foreign(options, reason)
    if options.engine == "auto":
        logger.info("engine torch: %s", reason)
    return _open_torch(checkpoint, options)


def _why_torch(options: Options) -> str | None:
    """Return which option asks for what only engine torch does, None if none does."""
    if options.device is not None and not options.device.startswith("cuda"):
        return f"device={options.device}"
    if options.dtype not in ("auto", "float16"):
        return f"dtype={options.dtype}"
    if options.weight_memory != "decoded":
        return f"weight_memory={options.weight_memory}"
    return None


def _refuse_foreign(options: Options, reason: str) -> None:
    """Refuse options of exllamav2 where engine torch is going to run."""
    for option in fields(options):
        value = getattr(options, option.name)
        if option.name in _EXLLAMAV2_ONLY and value != option.default:
            raise OptionError(
                f"{option.name}={value!r} needs engine=exllamav2, but here engine torch runs "
                f"({reason}); leave it out"
            )


def _open_exllamav2(checkpoint: Checkpoint, options: Options) -> Engine:
    exllamav2_import.import_exllamav2()  # before anything is found that only it would need
    from lm_eval_exl2.engines.exllamav2_engine import Exllamav2Engine
    from lm_eval_exl2.engines.exllamav2_generator import DRAFT_TOKENS
    from lm_eval_exl2.engines.exllamav2_settings import Exllamav2Settings, LoadSettings

    draft = None
    if options.draft_model is not None:
        draft = Checkpoint(locate(options.draft_model).directory)
    is_drafting = draft is not None or options.ngram_draft
    load = LoadSettings(
        device=_card(options.device),
        max_batch_tokens=options.max_batch_tokens,
        max_length=options.max_length,
        gpu_split=options.gpu_split,
        config=_config_settings(options),
        lora=None if options.lora is None else Path(options.lora),
        spare_positions=DRAFT_TOKENS + 1 if is_drafting else 0,
    )
    rows = options.batch_size or options.max_batch_size
    settings = Exllamav2Settings(
        load=load,
        no_flash_attn=options.no_flash_attn,
        no_xformers=options.no_xformers,
        cache_mode=options.cache_mode,
        cache_size=options.cache_size,
        draft=draft,
        ngram_draft=options.ngram_draft,
        **({} if rows is None else {"max_rows": rows}),
    )
    return Exllamav2Engine(checkpoint, settings)


def _card(device: str | None) -> int:
    """Return the number in `cuda:N`, 0 without one.

    Raises:
        OptionError: that is no number of a card here.
    """
    import torch

    number = (device or "cuda").removeprefix("cuda").removeprefix(":")
    count = torch.cuda.device_count()
    if number and not (number.isdigit() and int(number) < count):
        raise OptionError(
            f"device {device!r} not found, expected cuda or cuda:0 to cuda:{count - 1}"
        )
    return int(number or 0)


def _config_settings(options: Options) -> ConfigSettings:
    return ConfigSettings(
        trust_remote_code=options.trust_remote_code,
        rope_scale=options.rope_scale,
        rope_alpha=options.rope_alpha,
    )


def _open_torch(checkpoint: Checkpoint, options: Options) -> Engine:
    from lm_eval_exl2.engines.torch_engine import TorchEngine

    rows = options.batch_size or options.max_batch_size
    return TorchEngine(
        checkpoint,
        device=options.device,
        dtype=options.dtype,
        weight_memory=options.weight_memory,
        config=_config_settings(options),
        max_batch_tokens=options.max_batch_tokens or _TORCH_BATCH_TOKENS,
        **({} if rows is None else {"max_rows": rows}),
    )
