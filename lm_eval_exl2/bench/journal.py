"""Every request on disk as soon as it is finished, so that a killed run leaves what it had.

A file of JSON lines, only ever appended to: a `run` line at the start of each run, a `request` line
per request, an `end` line at the end of each run, and `complete` as the last line of all. A file
without that last line is of a process that was killed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TextIO

from lm_eval_exl2.bench.records import TimedRequest
from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COMPLETE: Final = "complete"


class JournalRun(NamedTuple):
    """One run as a journal has it."""

    facts: dict[str, Any]
    requests: list[TimedRequest]
    outcome: str | None
    """None if the run never ended."""


class Journal:
    """Appends lines to a file until its block ends; without a file it does nothing."""

    def __init__(self, path: Path | None) -> None:
        """Create the file.

        Raises:
            OptionError: it holds a run that was killed, or cannot be created.
        """
        self._file: TextIO | None = None
        if path is None:
            return
        if path.exists() and _holds_requests(path) and not is_complete(path):
            raise OptionError(
                f"{path} holds the requests of a run that was killed; report them with "
                f"--from_requests {path}, then delete the file or give another --json"
            )
        try:
            self._file = path.open("w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise OptionError(f"cannot write {str(path)!r}: {error.strerror}") from error

    def start_run(self, facts: Mapping[str, Any]) -> None:
        """Write that a run begins, and what is known of it."""
        self._append({"line": "run", **facts})

    def add(self, request: TimedRequest) -> None:
        """Write one request."""
        self._append({"line": "request", **asdict(request)})

    def end_run(self, outcome: str) -> None:
        """Write how a run ended."""
        self._append({"line": "end", "outcome": outcome})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_others: object) -> None:
        """Write that nothing is missing, unless something failed."""
        if kind is None:
            self._append({"line": COMPLETE})
        if self._file:
            self._file.close()

    def _append(self, content: Mapping[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(content) + "\n")
            self._file.flush()


def _holds_requests(path: Path) -> bool:
    return any(run.requests for run in read_journal(path))


def is_complete(path: Path) -> bool:
    """Return whether the process that wrote a journal came to its end."""
    *_, last = path.read_text(encoding="utf-8").splitlines() or [""]
    return last == json.dumps({"line": COMPLETE})


def read_journal(path: Path) -> list[JournalRun]:
    """Read what a journal holds; a last line that was cut off is left out.

    Raises:
        OptionError: it cannot be read, or is no journal.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {path}: {error}") from error
    runs: list[JournalRun] = []
    for line in lines:
        if not line.endswith("\n"):
            break
        try:
            content: dict[str, Any] = json.loads(line)
            kind = content.pop("line")
            if kind == "run":
                runs.append(JournalRun(content, [], None))
            elif kind == "request":
                runs[-1].requests.append(_request(content))
            elif kind == "end":
                runs[-1] = runs[-1]._replace(outcome=content["outcome"])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise OptionError(f"{path} is not a file of requests: {line.strip()[:60]!r}") from error
    return runs


def _request(content: dict[str, Any]) -> TimedRequest:
    ids, times = (tuple(content.pop(name)) for name in ("token_ids", "token_times_s"))
    return TimedRequest(**content, token_ids=ids, token_times_s=times)
