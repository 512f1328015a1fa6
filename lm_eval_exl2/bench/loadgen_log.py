"""Reads what LoadGen wrote: its verdict, its figures, and what it was told of every sample."""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lm_eval_exl2.errors import Exl2EvalError

if TYPE_CHECKING:
    from pathlib import Path

_LINE: Final = re.compile(r"^\s*(?P<name>[^:*]+?)\s*:\s*(?P<value>\S.*?)\s*$")
_ORIGIN: Final = re.compile(r'^"ts":([\d.]+),$', re.MULTILINE)
_PREFIX: Final = "mlperf_log_"


class LoadGenError(Exl2EvalError, RuntimeError):
    """LoadGen did not run to its end, or wrote something else than expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadGenSummary:
    """LoadGen's own summary."""

    verdict: str
    """`VALID` or `INVALID`, as it says."""
    figures: dict[str, float]
    """Every number by LoadGen's name for it."""
    reasons: list[str]
    """What it says is not satisfied, recommends and found wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadGenSample:
    """What LoadGen knows of one sample; seconds since the Unix epoch."""

    sample: int
    scheduled_s: float
    issued_s: float
    first_token_s: float | None
    """None if it was never told."""
    last_token_s: float
    first_ids: tuple[int, ...] | None
    """None where LoadGen does not keep them (Offline)."""
    token_ids: tuple[int, ...]
    token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadGenLog:
    """Everything read from a folder of logs."""

    summary: LoadGenSummary
    samples: list[LoadGenSample]
    """In the order of issue."""
    errors: list[str]
    """Of its detail log."""


def read_log(folder: Path) -> LoadGenLog:
    """Read the logs of a test that ran to its end.

    Raises:
        LoadGenError: a file is missing or damaged.
    """
    try:
        errors = _errors((folder / f"{_PREFIX}detail.txt").read_text())
        summary = parse_summary((folder / f"{_PREFIX}summary.txt").read_text(), errors)
        trace = (folder / f"{_PREFIX}trace.json").read_text()
        accuracy = json.loads((folder / f"{_PREFIX}accuracy.json").read_text())
        return LoadGenLog(summary=summary, samples=_samples(trace, accuracy), errors=errors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadGenError(
            f"the logs in {folder} are not those of a finished LoadGen test "
            f"({type(error).__name__}: {error}); run it again"
        ) from error


def parse_summary(text: str, errors: list[str] | None = None) -> LoadGenSummary:
    """Read `mlperf_log_summary.txt`.

    Args:
        text: Of the file.
        errors: Of the detail log, which the summary only counts.

    Raises:
        ValueError: it holds no verdict.
    """
    figures: dict[str, float] = {}
    reasons: list[str] = []
    verdict = ""
    for line in text.partition("Test Parameters Used")[0].splitlines():
        if line.lstrip().startswith("*"):
            reasons.append(line.strip(" *"))
        elif reasons and line.startswith(" ") and ":" not in line:  # the sentence goes on
            reasons[-1] += f" {line.strip()}"
        elif found := _LINE.match(line):
            name, value = found["name"], found["value"]
            if name == "Result is":
                verdict = value
            elif value == "NO":
                reasons.append(f"{name}: {value}")
            else:
                _add_number(figures, name, value)
    if verdict not in ("VALID", "INVALID"):
        raise ValueError(f"no verdict in the summary, {verdict!r}")
    return LoadGenSummary(verdict=verdict, figures=figures, reasons=[*reasons, *(errors or [])])


def _add_number(figures: dict[str, float], name: str, value: str) -> None:
    try:
        figures[name] = float(value)
    except ValueError:  # a word, such as the scenario's
        return


def _errors(detail: str) -> list[str]:
    found: list[str] = []
    for line in detail.splitlines():
        entry: dict[str, Any] = json.loads(line.partition(" ")[2])
        if entry["metadata"]["is_error"]:
            found.append(str(entry["value"]))
    return list(dict.fromkeys(found))


def _samples(trace: str, accuracy: list[dict[str, Any]]) -> list[LoadGenSample]:
    """Join times (trace) and answers (accuracy log) of every sample."""
    (origin_us,) = map(float, _ORIGIN.findall(trace))
    whole = {event["args"]["sample_seq"]: event for event in _events(trace, "Sample")}
    first_ns = {e["args"]["sample_seq"]: e["args"]["complete_ns"] for e in _events(trace, "Token")}
    # In the Server scenario only the schedule says whose first token it was.
    by_schedule = {
        event["ts"]: event["args"]["issue_delay"] + event["args"]["issue_to_done"]
        for event in _events(trace, "Token_Latency")
    }
    found: list[LoadGenSample] = []
    for answer in sorted(accuracy, key=lambda each: each["seq_id"]):
        event = whole[answer["seq_id"]]
        scheduled_s = (origin_us + event["ts"]) / 1e6
        first = first_ns.get(answer["seq_id"], by_schedule.get(event["ts"]))
        arguments = event["args"]
        found.append(
            LoadGenSample(
                sample=answer["qsl_idx"],
                scheduled_s=scheduled_s,
                issued_s=scheduled_s + arguments["issue_start_ns"] / 1e9,
                first_token_s=None if first is None else scheduled_s + first / 1e9,
                last_token_s=scheduled_s + arguments["complete_ns"] / 1e9,
                first_ids=_ids(answer["token_data"]) if "token_data" in answer else None,
                token_ids=_ids(answer["data"]),
                token_count=answer["token_count"],
            )
        )
    return found


def _events(trace: str, name: str) -> list[dict[str, Any]]:
    """Return the events of a name that say something.

    Line by line: others hold messages whose quotes are not escaped, so the file is no JSON.
    """
    start = f'{{"name":"{name}",'
    lines = (line.rstrip(", ") for line in trace.splitlines() if line.startswith(start))
    return [event for event in map(json.loads, lines) if "args" in event]


def _ids(hexadecimal: str) -> tuple[int, ...]:
    """Return the token ids that were handed over as 32-bit numbers."""
    ids = array("i")
    ids.frombytes(bytes.fromhex(hexadecimal))
    return tuple(ids)
