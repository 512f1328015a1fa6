"""What keeping answers takes of a run, timed inside the run itself; see resume.py."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlitedict import SqliteDict

from lm_eval_exl2.lm import Exl2LM
from lm_eval_exl2.response_cache import ResponseCache

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping


@contextmanager
def stopwatch(owner: type, names: tuple[str, ...]) -> Generator[list[float]]:
    """Collect the seconds of every outermost call of some methods of a class."""
    seconds: list[float] = []
    running = False

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal running
            if running:
                return function(*arguments, **options)
            running, start = True, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                running = False
                seconds.append(time.perf_counter() - start)

        return call

    own = {name: getattr(owner, name) for name in names}
    for name, function in own.items():
        setattr(owner, name, timed(function))
    try:
        yield seconds
    finally:
        for name, function in own.items():
            setattr(owner, name, function)


KEEPING = ("add_partial", "keep_score", "keep_text", "find_text", "find_score", "sync")
KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def cost(evaluate: Callable[[Path], Mapping[Any, Any]]) -> dict[str, float]:
    """Time, in one run, what keeping answers takes, and what the harness's own file takes.

    The harness reads its file before the model's calls and writes it after them.

    Args:
        evaluate: Does a whole evaluation with a cache at that path; returns its responses.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        stopwatch(ResponseCache, KEEPING) as keeping,
        stopwatch(Exl2LM, KINDS) as calls,
        stopwatch(SqliteDict, ("__contains__", "__getitem__", "__setitem__", "commit")) as harness,
    ):
        start = time.perf_counter()
        answers = sum(map(len, evaluate(Path(folder) / "cache").values()))
        seconds = time.perf_counter() - start
    return {
        "answers": answers,
        "run_seconds": seconds,
        "model_seconds": sum(calls),
        "keeping_seconds": sum(keeping),
        "keeping_share_of_model": sum(keeping) / sum(calls),
        "harness_seconds": sum(harness),
    }
