"""What was evaluated and how: the window that counts, and the facts recorded with results.

Pure translation of options, engine and checkpoint into values; loads nothing.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lm_eval_exl2 import __version__
from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from lm_eval_exl2.checkpoint import Checkpoint
    from lm_eval_exl2.checkpoint.locate import Location
    from lm_eval_exl2.options import Options
    from lm_eval_exl2.records import EngineInfo, TokenCounts

logger = logging.getLogger(__name__)


def resolve_window(options: Options, info: EngineInfo) -> int:
    """Return the context window: the one asked for, else the model's.

    Raises:
        OptionError: more was asked for than the model has positions for.
    """
    if options.max_length is None:
        return info.max_length
    limit = info.position_limit
    if limit is not None and options.max_length > limit:
        raise OptionError(
            f"max_length={options.max_length} is more than the {limit} positions this model can "
            "compute; lower it"
        )
    if options.max_length > info.max_length:
        logger.warning(
            "max_length=%d is more than the %d tokens the model was made for",
            options.max_length,
            info.max_length,
        )
    return options.max_length


def answer_settings(
    options: Options, info: EngineInfo, window: int, think_end: str | int | None
) -> dict[str, str]:
    """Return the settings that change answers without showing in a request, by name."""
    settings = {
        "engine": info.name,
        "dtype": info.dtype,
        **info.details,
        "max_length": window,
        "max_gen_toks": options.max_gen_toks,
        "truncation": options.truncation,
        "truncation_side": options.truncation_side,
        "think_end_token": think_end,
        "skip_special_tokens": options.skip_special_tokens,
        "seed": options.seed,
        "lm_eval_exl2": __version__,
    }
    return {name: str(value) for name, value in settings.items()}


def describe(
    options: Options, checkpoint: Checkpoint, info: EngineInfo, location: Location, digest: str
) -> dict[str, Any]:
    """Return the facts that identify a result, as JSON values."""
    quantization = checkpoint.config.quantization
    return {
        "model_num_parameters": info.parameters,
        "model_dtype": info.dtype,
        "model_revision": str(options.revision),
        "model_sha": location.commit,
        "checkpoint_digest": digest,
        "checkpoint_kind": checkpoint.kind,
        "checkpoint_bytes": checkpoint.bytes,
        "quantization_config": quantization or None,
        "architecture": checkpoint.architecture.name,
        "engine": info.name,
        "engine_version": info.version,
        "engine_device": info.device,
        "attention": info.attention,
        "threads": info.threads,
        "weight_memory": options.weight_memory,
        "max_batch_tokens": info.max_batch_tokens,
        "seed": options.seed,
        "lm_eval_exl2_version": __version__,
        "torch_version": version("torch"),
        "transformers_version": version("transformers"),
        **info.details,
    }


def describe_counts(counts: TokenCounts) -> dict[str, int]:
    """Return how many positions were forwarded, repeated after lack of memory, and drafted."""
    found = {"tokens_forwarded": counts.forwarded, "tokens_retried": counts.retried}
    if counts.drafted:
        found |= {
            "draft_tokens_proposed": counts.drafted,
            "draft_tokens_accepted": counts.accepted,
        }
    return found
