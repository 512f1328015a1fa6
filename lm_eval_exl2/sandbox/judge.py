"""One program against its tests: two processes, three pipes, one verdict.

    judge --------------- starts, waits, kills --------------
      |                                                     |
    checker (tests) --requests--> program's process         |
            <--replies--                                    |
      --verdict--> judge

The program's process has the ends of two pipes and nothing else. If a process does not come up,
that is a sandbox error and never a wrong answer.
"""

import contextlib
import os
import select
import subprocess
import time
from typing import Any, NamedTuple

from lm_eval_exl2.sandbox.inside.channel import receive
from lm_eval_exl2.sandbox.inside.main import READY
from lm_eval_exl2.sandbox.launch import Launcher
from lm_eval_exl2.sandbox.programs import Outcome, Program, Verdict

_START_S = 60.0  # a machine under heavy load; normally 0.05
_MAX_VERDICT_BYTES = 1 << 14


def judge(program: Program, launcher: Launcher, *, limit_s: float) -> Verdict:
    """Runs one program to its verdict; what is left of it then is killed.

    Args:
        program: What to run.
        launcher: How.
        limit_s: Most seconds for the program and its tests, without the start of the processes.
    """
    with contextlib.ExitStack() as stack:
        try:
            started = _start(program, launcher, limit_s, stack)
        except OSError as error:
            return Verdict(Outcome.SANDBOX_ERROR, f"could not start: {error}", 0.0)
        first = _receive(started.verdict, _START_S)
        if first != READY:
            reason = _reason_in(first) or "the processes did not start in time"
            return Verdict(Outcome.SANDBOX_ERROR, f"{reason}{_tail_of(started.errors)}", 0.0)
        began = time.monotonic()
        last = _receive(started.verdict, limit_s)
        seconds = time.monotonic() - began
    if last is None:
        return Verdict(Outcome.TIMED_OUT, f"no verdict within {limit_s:g} s", seconds)
    if not last:
        return Verdict(Outcome.SANDBOX_ERROR, "the process with the tests ended", seconds)
    outcome, _, message = last.decode("utf-8", "replace").partition("\n")
    return Verdict(Outcome(outcome), _one_line(message), seconds)


class _Started(NamedTuple):
    """Where the verdict comes from, and what went wrong before processes were confined."""

    verdict: int
    errors: int


def _start(
    program: Program, launcher: Launcher, limit_s: float, stack: contextlib.ExitStack
) -> _Started:
    """Starts both processes; `stack` ends them and closes what is theirs."""

    def pipe(owner: contextlib.ExitStack) -> tuple[int, int]:
        ends = os.pipe()
        for end in ends:
            owner.callback(os.close, end)
        return ends

    errors = os.memfd_create("errors")
    stack.callback(os.close, errors)
    verdict_in, verdict_end = os.pipe()
    stack.callback(os.close, verdict_in)
    processes: list[subprocess.Popen[bytes]] = []
    stack.callback(_end, processes)
    with contextlib.ExitStack() as inner:  # what only the processes keep
        inner.callback(os.close, verdict_end)
        requests_in, requests_out = pipe(inner)
        replies_in, replies_out = pipe(inner)
        worker: dict[str, Any] = {
            "role": "program",
            "source": program.source,
            "requests": requests_in,
            "replies": replies_out,
        }
        checker: dict[str, Any] = {
            "role": "tests",
            "tests": program.tests,
            "helpers": program.helpers,
            "names": list(program.names),
            "modules": list(program.modules),
            "requests": requests_out,
            "replies": replies_in,
            "verdict": verdict_end,
        }
        for job, ends in (
            (worker, (requests_in, replies_out)),
            (checker, (requests_out, replies_in, verdict_end)),
        ):
            processes.append(launcher.start(job, descriptors=ends, errors=errors, limit_s=limit_s))
    return _Started(verdict_in, errors)


def _end(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def _receive(descriptor: int, timeout_s: float) -> bytes | None:
    """One frame; empty if the other end was closed, None if nothing came in time."""
    waiting = select.poll()  # select() takes no descriptor above 1,023
    waiting.register(descriptor, select.POLLIN)
    if not waiting.poll(1000 * timeout_s):
        return None
    return receive(descriptor, _MAX_VERDICT_BYTES) or b""


def _reason_in(frame: bytes | None) -> str:
    if frame is None:
        return ""
    text = frame.decode("utf-8", "replace")
    return text.partition("\n")[2] or "a process ended before it was confined"


def _one_line(message: str) -> str:
    """Without line ends and what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in message).split())


def _tail_of(errors: int) -> str:
    """The last line that a process wrote before it was confined."""
    os.lseek(errors, 0, os.SEEK_SET)
    lines = os.read(errors, 1 << 16).decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""
