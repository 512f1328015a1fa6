"""What the programs of the corpus could reach, and whether one of them did."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NAP = "86399"  # nobody else sleeps that long


class Surroundings:
    """A secret file, sockets that listen, a process of the same user; remembers how they were."""

    def __init__(self, folder: Path, user: int | None) -> None:
        self._folder = folder
        folder.chmod(0o777)
        self._canary = folder / "canary"
        self._canary.write_text(secrets.token_hex(16))
        self._canary.chmod(0o666)
        self._home = folder / "home"
        (self._home / ".cache/huggingface").mkdir(parents=True)
        (self._home / ".cache/huggingface/token").write_text("hf_secret")
        self._sockets = [
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(type=socket.SOCK_DGRAM),
            socket.socket(socket.AF_UNIX),
            socket.socket(socket.AF_UNIX),
        ]
        tcp, udp, unix, abstract = self._sockets
        udp.bind(("127.0.0.1", 0))
        unix.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        abstract.bind("\0" + folder.name)
        for listening in (unix, abstract):
            listening.listen()
        for each in self._sockets:
            each.setblocking(False)
        # Of the user that programs run as, so that only the sandbox protects it.
        self._bystander = subprocess.Popen(
            ["/bin/sleep", "3600"], **({} if user is None else {"user": user, "group": user})
        )
        self._tcp, self._udp = tcp.getsockname()[1], udp.getsockname()[1]
        self.secret = secrets.token_hex(8)
        os.environ["HF_TOKEN"] = self.secret
        self._signals: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: self._signals.append(number))
        self._before = self._observe()

    def place(self) -> dict[str, object]:
        """What an attack is told."""
        return {
            "canary": str(self._canary),
            "folder": str(self._folder),
            "home": str(self._home),
            "harness": str(Path(__file__).parents[2]),
            "package": str(Path(sys.modules["lm_eval_exl2"].__path__[0])),
            "secret": self.secret,
            "starter": os.getpid(),
            "bystander": self._bystander.pid,
            "tcp": self._tcp,
            "udp": self._udp,
            "unix": str(self._folder / "socket"),
            "abstract": self._folder.name,
            "nap": NAP,
        }

    def find_changes(self) -> list[str]:
        """What is not as it was, each named once."""
        now = self._observe()
        changes = [name for name in now if now[name] != self._before[name]]
        self._before = now
        return changes

    def close(self) -> None:
        self._bystander.kill()
        self._bystander.wait()
        for each in self._sockets:
            each.close()

    def _observe(self) -> dict[str, object]:
        state = self._canary.stat() if self._canary.exists() else None
        bystander = Path(f"/proc/{self._bystander.pid}")
        return {
            "files": sorted(str(path) for path in self._folder.rglob("*")),
            "secret file": state
            and (state.st_mode, state.st_mtime, state.st_uid, state.st_size, state.st_nlink),
            "shared memory": sorted(os.listdir("/dev/shm")),  # noqa: PTH208
            "connections": [self._arrived(each) for each in self._sockets],
            "bystander": self._bystander.poll() is None
            and (
                (bystander / "limits").read_text(),
                (bystander / "stat").read_text().split()[17:19],
                os.sched_getaffinity(self._bystander.pid),
                os.sched_getscheduler(self._bystander.pid),
            ),
            "signals": list(self._signals),
            "System V": [
                Path("/proc/sysvipc", kind).read_text() for kind in ("shm", "msg", "sem")
            ],
        }  # fmt: skip

    @staticmethod
    def _arrived(each: socket.socket) -> bool:
        with contextlib.suppress(BlockingIOError):
            if each.type == socket.SOCK_DGRAM:
                each.recv(10)
            else:
                each.accept()
            return True
        return False


@contextlib.contextmanager
def surroundings(user: int | None) -> Iterator[Surroundings]:
    """Surroundings whose bystander is a process of `user` (None: of this one)."""
    with tempfile.TemporaryDirectory(prefix="lm_eval_exl2_corpus_") as folder:
        around = Surroundings(Path(folder), user)
        try:
            yield around
        finally:
            around.close()


def find_leftovers() -> list[str]:
    """Processes that a program left behind; those just killed get a moment to go."""
    deadline = time.monotonic() + 5.0
    while (left := list(_processes())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _processes() -> Iterator[str]:
    """Sandboxed processes, and naps they started, that are ours or have no starter any more.

    Those of other tests that run beside this one have a living starter further up.
    """
    commands, parents = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            number = int(process.name)
            parents[number] = int((process / "stat").read_text().rpartition(") ")[2].split()[1])
            commands[number] = (process / "cmdline").read_bytes()
    marked = {
        number
        for number, command in commands.items()
        if NAP.encode() in command or b"package.main.run(read())" in command
    }
    for number in marked:
        above = parents[number]
        while above in marked:
            above = parents[above]
        if above in (0, 1, os.getpid()):
            yield f"{number}: {commands[number][:60]!r}"
