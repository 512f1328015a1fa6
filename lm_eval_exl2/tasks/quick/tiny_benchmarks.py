"""The published error of the harness's `tinyBenchmarks` estimates, to stand beside their scores.

Those tasks estimate a full score from 100 documents and print no standard error. The error below
was measured over full-precision models of a leaderboard; for the difference between a checkpoint
and its quantized copy nobody has published one.
"""

import json
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_FILE: Final = Path(__file__).with_name("tiny_benchmarks.json")


class PublishedError(NamedTuple):
    """How far an estimate was off, on average over models."""

    error: float
    """Mean absolute error, as a share."""
    deviation: float
    """Its standard deviation over models."""
    metric: str
    """The metric that is the estimate."""


@cache
def published_errors() -> dict[str, PublishedError]:
    """All published errors, by task name."""
    read = json.loads(_FILE.read_text(encoding="utf-8"))["errors"]
    return {name: PublishedError(**each) for name, each in read.items()}


def beside(task: str) -> str | None:
    """A line to print beside a task's score; None for tasks that are no such estimate."""
    found = published_errors().get(task)
    if found is None:
        return None
    return (
        f"{task}: an estimate from 100 documents, off by {found.error * 100:.1f} points on average "
        "over full-precision models (arXiv 2402.14992); not validated for differences between a "
        "checkpoint and its quantized copy"
    )
