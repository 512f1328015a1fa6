"""This side of LoadGen's process: queries come in on a thread, answers go out.

Knows no engine: what to do with a query is the caller's.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lm_eval_exl2.bench import loadgen
from lm_eval_exl2.bench.loadgen_log import LoadGenError
from lm_eval_exl2.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_END_S: Final = 60.0
"""How long LoadGen may take to write its logs."""


class LoadGenProcess:
    """A LoadGen test that is running."""

    def __init__(
        self,
        settings: loadgen.Settings,
        *,
        issue: Callable[[int], object],
        flush: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        """Start the test.

        Args:
            settings: For LoadGen.
            issue: Called with the place of a prompt, on a thread of its own, query by query.
            flush: Called once no more queries come.
            lost: Called if the process ends before the test does.

        Raises:
            MissingDependencyError: LoadGen is not installed.
        """
        if find_spec("mlperf_loadgen") is None:
            raise MissingDependencyError(
                "scenarios need MLCommons LoadGen, which is not installed: "
                "pip install mlcommons-loadgen (or lm-eval-exl2[bench]); the prompt bench works "
                "without, leave --scenario out"
            )
        self._issue, self._flush, self._lost = issue, flush, lost
        self._has_ended = False
        self.is_lost = False
        """Whether the process ended before the test did."""
        self._said = Path(settings.folder, "stderr.txt").open("w+")  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                str(Path(loadgen.__file__).resolve()),
            ],  # alone, so it starts fast
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            bufsize=1,
            cwd=settings.folder,  # LoadGen reads an audit.config that lies where it starts
        )
        self._send(settings.to_line())
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, number = line.partition(" ")
            if word == "issue":
                self._issue(int(number))
            elif word == "flush\n":
                self._flush()
            elif word == "end\n":
                self._has_ended = True
        if not self._has_ended:
            self.is_lost = True
            self._lost()

    def first_token(self, number: int, token_id: int) -> None:
        """Tell LoadGen of the first token of a query."""
        self._send(f"first {number} 1 {token_id}\n")

    def done(self, number: int, count: int, token_ids: Sequence[int]) -> None:
        """Tell LoadGen that a query has been answered.

        Args:
            number: Of the query, in the order of issue.
            count: Of output tokens.
            token_ids: They.
        """
        self._send(f"done {number} {count} {','.join(map(str, token_ids))}\n")

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: `lost` says so
            self._process.stdin.write(line)

    def wait(self) -> None:
        """Wait until LoadGen has written its logs.

        Raises:
            LoadGenError: it ended otherwise, or does not end.
        """
        self._reader.join(_END_S)
        if self._reader.is_alive():
            raise LoadGenError(f"LoadGen still waits {_END_S:.0f} s after the last answer")
        status = self._process.wait()
        if not self._has_ended:
            self._said.seek(0)
            said = " ".join(self._said.read().split()[-30:])
            how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with {status}"
            raise LoadGenError(f"LoadGen's process ended {how} before its test did: {said or '-'}")

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._said.close()
