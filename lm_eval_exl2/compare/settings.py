"""How runs were made: what they should share and do not, and how large each model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from lm_eval_exl2.compare.runs import Run

# What makes the variants variants; differences here are the subject, not a disturbance.
_SUBJECT: Final = {
    *("pretrained", "checkpoint_digest", "checkpoint_kind", "checkpoint_bytes", "model_sha"),
    *("quantization_config", "model_num_parameters", "model_revision", "revision"),
}
# Differ between runs without meaning anything.
_IDLE: Final = {
    *("date", "total_evaluation_time_seconds", "git_hash", "upper_git_hash", "start_time"),
    *("end_time", "batch_sizes", "use_cache", "model_name", "model_name_sanitized", "model_args"),
    *("model_source", "tokens_forwarded", "tokens_retried", "generations_at_limit", "nodes"),
    *("replicas_restarted", "chat_template", "system_instruction"),
}


class Unequal(NamedTuple):
    """A setting that is not the same in all runs."""

    name: str
    values: list[str]
    """By run, in their order; "-" where a run does not say."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a checkpoint is."""

    bits_per_weight: float | None
    checkpoint_bytes: int | None
    parameters: int | None


def unequal_settings(runs: Sequence[Run]) -> list[Unequal]:
    """Settings that at least two runs name differently, apart from the checkpoint itself."""
    return _unequal([_flatten(run) for run in runs])


def mixed_versions(run: Run) -> list[Unequal]:
    """Versions that differ between the results files of one run."""
    files = map(_flatten_one, run.settings.values())
    return _unequal([{name: each[name] for name in each if "version" in name} for each in files])


def _unequal(described: Sequence[dict[str, str]]) -> list[Unequal]:
    names = sorted({name for each in described for name in each})
    rows = [Unequal(name, [each.get(name, "-") for each in described]) for name in names]
    return [row for row in rows if len(set(row.values) - {"-"}) > 1]


def size_of(run: Run) -> Size:
    """Bits per weight and bytes, as far as the results say.

    Bits are those of the quantization's own config, else of the checkpoint's file size and
    parameters, else of the data type.
    """
    config: dict[str, Any] = run.newest.get("config", {})
    quantization: dict[str, Any] = config.get("quantization_config") or {}
    size, parameters = config.get("checkpoint_bytes"), config.get("model_num_parameters")
    bits = quantization.get("bits")
    if bits is None and size and parameters:
        bits = 8 * size / parameters
    if bits is None:
        bits = _BITS.get(str(config.get("model_dtype", "")).removeprefix("torch."))
    return Size(None if bits is None else float(bits), size, parameters)


_BITS: Final = {"float16": 16, "bfloat16": 16, "float32": 32}


def _flatten(run: Run) -> dict[str, str]:
    found = _flatten_one(run.newest)
    for name, task in run.tasks.items():
        found[f"version of {name}"] = str(task.version)
        found[f"examples of {name}"] = str(task.shots)
    return found


def _flatten_one(settings: dict[str, Any]) -> dict[str, str]:
    config = cast("dict[str, Any]", settings.get("config") or {})
    arguments = config.get("model_args")
    named = cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else {}
    parts = {**{key: settings[key] for key in settings if key != "config"}, **config, **named}
    return {
        name: str(value).removeprefix("torch.")  # hf and exl2 spell data types differently
        for name, value in parts.items()
        if value is not None and name not in _SUBJECT | _IDLE
    }
