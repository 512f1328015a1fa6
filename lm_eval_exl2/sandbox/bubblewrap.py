"""The command line of bubblewrap: no network, no other process, nothing writable, few files.

As root no user namespace is made: bubblewrap keeps only the right to change the user, and the
process inside changes to nobody itself (`inside/confine.py`). In a user namespace the kernel would
still take it for root, to whom limits on processes do not apply.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from lm_eval_exl2.sandbox.runtime import NOBODY, Runtime

_UNSHARE = ("ipc", "pid", "net", "uts", "cgroup-try")
_TOP_LEVEL = ("/lib", "/lib64")  # links on most systems, directories on some


def bubblewrap_command(executable: str, runtime: Runtime, *, as_root: bool) -> list[str]:
    """Everything before the interpreter's own arguments.

    Args:
        executable: Path of `bwrap`.
        runtime: What is to be visible.
        as_root: Whether this process is root.
    """
    command = [executable, *(f"--unshare-{kind}" for kind in _UNSHARE)]
    if as_root:
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    command += ["--die-with-parent", "--new-session", "--hostname", "sandbox"]
    command += _mounts(runtime)
    return [*command, "--dev-bind", os.devnull, os.devnull, "--remount-ro", "/", "--chdir", "/"]


def _mounts(runtime: Runtime) -> Iterator[str]:
    packages = (*runtime.libraries.values(), *runtime.shared)
    # Left to itself, bubblewrap gives parents of what it mounts the modes they have outside, and
    # nobody may not enter root's home.
    places = (*runtime.trees, *runtime.hidden, *runtime.files, *packages)
    for parent in sorted({str(parent) for place in places for parent in Path(place).parents}):
        yield from ("--dir", parent)
    for path in sorted(runtime.trees):
        if path in _TOP_LEVEL and Path(path).is_symlink():
            yield from ("--symlink", str(Path(path).readlink()), path)
        else:
            yield from ("--ro-bind", path, path)
    roots = [os.path.realpath(tree) + "/" for tree in runtime.trees]
    covered = [path for path in runtime.hidden if any(map(path.startswith, roots))]
    for path in covered:
        yield from ("--tmpfs", path)
    for path in (*runtime.files, *packages):
        yield from ("--ro-bind", path, path)
    for path in covered:
        yield from ("--remount-ro", path)
