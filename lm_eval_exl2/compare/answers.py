"""What a run answered in one sample: a text, or which of several choices. Pure."""

from __future__ import annotations

import hashlib
import json
from array import array
from typing import Any, NamedTuple, cast

import numpy as np

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Integers = np.ndarray[tuple[int], np.dtype[np.int64]]


class Choices(NamedTuple):
    """How a multiple-choice question was decided, by log-likelihood and by it per character."""

    choices: Integers
    """How many there were."""
    chosen: Integers
    chosen_norm: Integers
    margin: Floats
    """Of the right choice over the best other one, in nats; NaN where the key is not known."""
    margin_norm: Floats


class Answer(NamedTuple):
    """What one sample answers."""

    digest: int
    """Of the filtered text, or the number of the choice; 0 where there is no answer."""
    is_empty: bool
    choice: tuple[int, int, int, float, float] | None
    """A row of `Choices`."""


def answer_of(record: dict[str, Any], delimiter: str) -> Answer:
    """Read a sample's answer.

    Args:
        record: A line of a samples file.
        delimiter: The task's target_delimiter, which stands before each choice.

    Raises:
        KeyError, TypeError or ValueError: It is no sample.
    """
    given = record["filtered_resps"]
    scores = _log_likelihoods(given)
    if scores is not None and len(scores) > 1:
        arguments = list(record["arguments"].values())[: len(scores)]
        asked = _asked(arguments)
        lengths = _lengths(arguments[:asked], delimiter)
        choice = _choose(scores[:asked], lengths, str(record["target"]))
        return Answer(choice[1], False, choice)
    if scores is not None:  # one continuation: nothing was chosen
        return Answer(0, False, None)
    text = given[0] if len(given) == 1 else given
    if not isinstance(text, str):
        text = json.dumps(text)
    return Answer(digest(text), not text.strip(), None)


def digest(text: str) -> int:
    """8 bytes that stand for a text."""
    found = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, signed=True)


def as_choices(columns: list[array[Any]]) -> Choices:
    """The columns of `Answer.choice`, gathered."""
    counts, chosen, chosen_norm = (np.array(column, np.int64) for column in columns[:3])
    margin, margin_norm = (np.array(column, np.float64) for column in columns[3:])
    return Choices(counts, chosen, chosen_norm, margin, margin_norm)


def _log_likelihoods(given: Any) -> list[float] | None:
    """Of pairs (log-likelihood, greedy), which the harness writes as texts; None if others."""
    if not all(isinstance(each, list) and len(cast("list[Any]", each)) == 2 for each in given):
        return None
    try:
        return [float(logprob) for logprob, _ in given]
    except (TypeError, ValueError):
        return None


def _asked(arguments: list[dict[str, Any]]) -> int:
    """How many of the arguments are choices.

    For acc_mutual_info the harness asks for each choice once more behind an empty context; those
    are not choices of their own.
    """
    half, odd = divmod(len(arguments), 2)
    first, second = arguments[:half], arguments[half:]
    if odd or any(each.get("arg_0") for each in second):
        return len(arguments)
    is_repeated = [each.get("arg_1") for each in first] == [each.get("arg_1") for each in second]
    return half if is_repeated and any(each.get("arg_0") for each in first) else len(arguments)


def _lengths(arguments: list[dict[str, Any]], delimiter: str) -> list[int]:
    """Characters of each choice, as the harness counts them for acc_norm."""
    texts = [each.get("arg_1") or "" for each in arguments]
    # A chat template leaves the delimiter out.
    cut = len(delimiter) if all(text.startswith(delimiter) for text in texts) else 0
    return [max(len(text) - cut, 1) for text in texts]


def _choose(
    scores: list[float], lengths: list[int], target: str
) -> tuple[int, int, int, float, float]:
    by_length = [score / length for score, length in zip(scores, lengths, strict=True)]
    right = int(target) if target.isdigit() and int(target) < len(scores) else None
    return (
        len(scores),
        scores.index(max(scores)),
        by_length.index(max(by_length)),
        _margin(scores, right),
        _margin(by_length, right),
    )


def _margin(scores: list[float], right: int | None) -> float:
    if right is None:
        return float("nan")
    return scores[right] - max(score for at, score in enumerate(scores) if at != right)
