"""Starts one confined process at a level of the sandbox."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_exl2.sandbox import bundle
from lm_eval_exl2.sandbox.bubblewrap import bubblewrap_command
from lm_eval_exl2.sandbox.runtime import NOBODY, Runtime

MEMORY_BYTES = 1 << 30
_THREADS = 256
_DESCRIPTORS = 64
# No hash seed from -I, which would also drop it from the environment that we make ourselves.
_PYTHON_FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")


@dataclass(frozen=True, slots=True)
class Launcher:
    """How processes are started at one level.

    Attributes:
        level: One of `programs.LEVELS`.
        runtime: The interpreter and what it may read.
        as_root: Whether this process is root; if so, the others become nobody.
        threads: Most processes and threads that the user who runs programs may have, including
            those that run already.
        readable: `runtime` in Landlock's words.
    """

    level: str
    runtime: Runtime
    as_root: bool = field(default_factory=lambda: os.geteuid() == 0)
    threads: int = field(default_factory=lambda: _count_threads() + _THREADS)
    readable: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "readable", _readable_paths(self.runtime))

    def start(
        self, job: dict[str, Any], *, descriptors: tuple[int, ...], errors: int, limit_s: float
    ) -> "subprocess.Popen[bytes]":
        """Starts a process.

        Args:
            job: For `inside/main.py`, without the confinement.
            descriptors: What the process inherits beside its standard files.
            errors: Descriptor for what goes wrong before the process is confined.
            limit_s: Most seconds of processor time.

        Raises:
            OSError: bubblewrap or the interpreter could not be started.
        """
        standard_input = bundle.open_input({**job, "confinement": self._confinement(limit_s)})
        command = [self.runtime.python, *_PYTHON_FLAGS, "-c", bundle.LOADER]
        if self.level == "bubblewrap":
            executable = shutil.which("bwrap") or "bwrap"
            command = [
                *bubblewrap_command(executable, self.runtime, as_root=self.as_root), *command
            ]  # fmt: skip
        try:
            return subprocess.Popen(
                command,
                stdin=standard_input,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=descriptors,
                env=self.runtime.environment,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(standard_input)

    def _confinement(self, limit_s: float) -> dict[str, Any]:
        isolated = self.level != "none"
        return {
            "limits": {
                "RLIMIT_AS": MEMORY_BYTES,
                "RLIMIT_CPU": int(limit_s) + 2,
                "RLIMIT_FSIZE": 0,
                "RLIMIT_CORE": 0,
                "RLIMIT_NOFILE": _DESCRIPTORS,
                "RLIMIT_NPROC": self.threads,
            },
            "parent": None if self.level == "bubblewrap" else os.getpid(),
            "user": NOBODY if self.as_root and isolated else None,
            "landlock": self.readable if self.level == "landlock" else None,
            "seccomp": isolated,
            "paths": list(self.runtime.paths),
            "libraries": self.runtime.libraries,
        }


def _readable_paths(runtime: Runtime) -> dict[str, list[str]]:
    """What Landlock is told, in the form that `inside/confine.py` takes."""
    trees = list(runtime.visible_trees())
    return {
        "trees": [path for path in trees if Path(path).is_dir()],
        "files": [*(path for path in trees if not Path(path).is_dir()), *runtime.files],
        # The import system lists these. Landlock's rules hold for all below: where packages lie
        # inside the standard library's directory, their names can be seen, and no more.
        "listed": list(runtime.paths),
        "written": [os.devnull],
    }


def _count_threads() -> int:
    """Threads of the user who will run programs, which the kernel counts together with ours."""
    user = NOBODY if os.geteuid() == 0 else os.getuid()
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == user:
                count += sum(1 for _ in (process / "task").iterdir())
        except OSError:  # it ended meanwhile
            continue
    return count
