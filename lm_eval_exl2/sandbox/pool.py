"""Many programs, some at a time: chooses the level once and hands out verdicts in order."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from lm_eval_exl2.errors import SandboxError
from lm_eval_exl2.sandbox.inside import confine, seccomp
from lm_eval_exl2.sandbox.judge import judge
from lm_eval_exl2.sandbox.launch import MEMORY_BYTES, Launcher
from lm_eval_exl2.sandbox.programs import LEVELS, Outcome, Program, Verdict
from lm_eval_exl2.sandbox.runtime import find_runtime
from lm_eval_exl2.sandbox.self_test import find_leaks

MIN_LIMIT_S = 4.0
_REFERENCE_FACTOR = 4.0
_REFERENCE_LIMIT_S = 60.0


class Sandbox:
    """A level that passed its self-test, and as many places as this process may use cores."""

    def __init__(self, level: str = "auto", *, workers: int | None = None):
        """Chooses and tests a level.

        Args:
            level: One of `LEVELS`, or "auto": the first of them, without "none", that holds here.
            workers: Programs at a time; default: the cores this process may use.

        Raises:
            SandboxError: No level, or not this one, holds on this machine.
        """
        self._launcher = _choose_launcher(level)
        self._workers = workers or len(os.sched_getaffinity(0))

    @property
    def level(self) -> str:
        """The level in use."""
        return self._launcher.level

    def describe(self) -> dict[str, Any]:
        """What a reader of the results must know about how programs were run."""
        return {
            "level": self.level,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "memory_bytes": MEMORY_BYTES,
            "as_root": self._launcher.as_root,
        }

    def judge(
        self,
        programs: Sequence[Program],
        *,
        limits_s: Sequence[float] | None = None,
        on_verdict: Callable[[], object] = lambda: None,
    ) -> list[Verdict]:
        """Runs programs.

        Args:
            programs: What to run.
            limits_s: Seconds for each; default `MIN_LIMIT_S`.
            on_verdict: Called after each verdict, from any thread.

        Returns:
            A verdict for each, in order. A sandbox error is tried once more before it stands.
        """
        limits = [MIN_LIMIT_S] * len(programs) if limits_s is None else limits_s

        def run(program: Program, limit_s: float) -> Verdict:
            verdict = judge(program, self._launcher, limit_s=limit_s)
            if verdict.outcome is Outcome.SANDBOX_ERROR:
                verdict = judge(program, self._launcher, limit_s=limit_s)
            on_verdict()
            return verdict

        # The kernel ends a process when the thread that started it ends: these outlive theirs.
        with ThreadPoolExecutor(self._workers, thread_name_prefix="sandbox") as executor:
            try:
                return list(executor.map(run, programs, limits))
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise

    def measure(self, references: Sequence[Program]) -> "Measured":
        """Runs right solutions to know how long each task may take here.

        Args:
            references: For each task, a program known to be right, with the tests.
        """
        verdicts = self.judge(references, limits_s=[_REFERENCE_LIMIT_S] * len(references))
        seconds = [verdict.seconds for verdict in verdicts]
        return Measured([max(MIN_LIMIT_S, _REFERENCE_FACTOR * each) for each in seconds], verdicts)


class Measured(NamedTuple):
    """Seconds to allow each task: four times what its reference took, at least four."""

    limits_s: list[float]
    verdicts: list[Verdict]


def _choose_launcher(level: str) -> Launcher:
    if level not in ("auto", *LEVELS):
        raise SandboxError(
            f"sandbox level {level!r} is unknown; expected auto, {', '.join(LEVELS)}"
        )
    if sys.platform != "linux":
        raise SandboxError(
            f"model-written programs run only on Linux, this is {sys.platform}; run "
            "this task on Linux, for instance in a container"
        )
    runtime = find_runtime()
    reasons: list[str] = []
    for name in LEVELS[:-1] if level == "auto" else (level,):
        launcher = Launcher(name, runtime)
        if name == "none":
            return launcher
        reason = _missing(name) or "; ".join(find_leaks(launcher))
        if not reason:
            return launcher
        reasons.append(f"{name}: {reason}")
    raise SandboxError(
        f"no sandbox for model-written programs holds on this machine ({' | '.join(reasons)}). "
        "Install bubblewrap, use a kernel with Landlock (5.13 or later), or accept the risk with "
        """--metadata '{"sandbox":"none"}' and --confirm_run_unsafe_code"""
    )


def _missing(level: str) -> str:
    """Why a level cannot work here, as far as that is known without trying it."""
    machine = platform.machine()
    if not seccomp.supports(machine):
        return f"no table of system calls for {machine}; there is one for x86_64 and aarch64"
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    if level == "landlock" and not confine.landlock_version():
        return "this kernel has no Landlock, or it is switched off"
    return ""
