"""Asks a sandbox, before anything runs in it, whether it holds.

A program tries to read a file and a secret, to connect, to start a process, to signal its starter,
to write; another is right and must pass, a third is wrong and must fail. A level that fails one of
these is not used.
"""

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lm_eval_exl2.sandbox.judge import judge
from lm_eval_exl2.sandbox.launch import Launcher
from lm_eval_exl2.sandbox.programs import Outcome, Program

_LIMIT_S = 20.0
_SECRET = "LM_EVAL_EXL2_SANDBOX_CANARY"

_RIGHT = Program("def double(n):\n    return 2 * n\n", "assert double(21) == 42", names=("double",))
_WRONG = Program("def double(n):\n    return n\n", "assert double(21) == 42", names=("double",))
# Every attempt says whether it worked; the tests compare with what must be the case.
_ATTEMPTS = """
import os

def worked(attempt, *arguments):
    try:
        return attempt(*arguments) not in (None, False, -1)
    except Exception:
        return False

def read(path):
    with open(path) as file:
        return file.read()

def write(path):
    with open(path, "w") as file:
        return file.write("x")

def connect(port):
    import socket
    return socket.create_connection(("127.0.0.1", port), 1)

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    return child

def signal(process):
    os.kill(process, 0)
    return True

def attempts(canary, folder, port, process, secret):
    return {
        "read a file": worked(read, canary),
        "write a file": worked(write, folder + "/written"),
        "see the environment": secret in os.environ,
        "connect": worked(connect, port),
        "start a process": worked(fork),
        "signal another process": worked(signal, process),
        "import the standard library": worked(__import__, "decimal"),
    }
"""


def find_leaks(launcher: Launcher) -> list[str]:
    """What is wrong with a level, one phrase each; empty if it holds."""
    leaks = []
    for name, program, expected in (
        ("a right program", _RIGHT, Outcome.PASSED),
        ("a wrong program", _WRONG, Outcome.FAILED),
    ):
        verdict = judge(program, launcher, limit_s=_LIMIT_S)
        if verdict.outcome is Outcome.SANDBOX_ERROR:
            return [verdict.message]
        if verdict.outcome is not expected:
            leaks.append(f"{name} {verdict.outcome} ({verdict.message})")
    return [*leaks, *_try_attempts(launcher)]


def _try_attempts(launcher: Launcher) -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="lm_eval_exl2_") as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        # Readable and writable for everyone, so that only the sandbox can be in the way.
        Path(folder).chmod(0o777)
        canary = Path(folder) / "canary"
        canary.write_text(secrets.token_hex(8))
        canary.chmod(0o666)
        port = server.getsockname()[1]
        arguments = (str(canary), folder, port, os.getpid(), _SECRET)
        os.environ[_SECRET] = "visible"
        try:
            yield from _judge_attempts(launcher, arguments)
        finally:
            del os.environ[_SECRET]
        if (Path(folder) / "written").exists():
            yield "a program can write files"


def _judge_attempts(launcher: Launcher, arguments: tuple[object, ...]) -> Iterator[str]:
    expected = {
        "read a file": False,
        "write a file": False,
        "see the environment": False,
        "connect": False,
        "start a process": False,
        "signal another process": False,
        "import the standard library": True,
    }
    # One test per attempt, so that the message names the one that failed.
    tests = f"seen = attempts(*{arguments!r})\n" + "".join(
        f"assert seen[{name!r}] is {value}, {name!r}\n" for name, value in expected.items()
    )
    verdict = judge(Program(_ATTEMPTS, tests, names=("attempts",)), launcher, limit_s=_LIMIT_S)
    if verdict.outcome is not Outcome.PASSED:
        yield f"the self-test's attempts: {verdict.outcome} ({verdict.message})"
