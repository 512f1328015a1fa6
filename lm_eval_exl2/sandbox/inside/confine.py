"""Confines the process it runs in, for good: limits, another user, Landlock, system calls.

Runs before anything of the program or its tests is read. Whatever cannot be set raises, and the
process ends before it said that it is ready.
"""

# pyright: basic

import ctypes
import os
import resource
import signal
import struct
import sys

from . import seccomp

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION, _LANDLOCK_PATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 1, 1 << 2, 1 << 3
_RIGHTS = {
    "trees": _READ_FILE | _READ_DIRECTORY,
    "files": _READ_FILE,
    "listed": _READ_DIRECTORY,
    "written": _READ_FILE | _WRITE_FILE,
}
# Rights on files per version of Landlock: 13 of them, then to link elsewhere, truncate, ioctl.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NETWORK_SINCE, _NETWORK_RIGHTS = 4, 0b11
_SCOPES_SINCE, _SCOPES = 6, 0b11

_libc = ctypes.CDLL(None, use_errno=True)


def confine(settings: dict) -> None:
    """Applies what `settings` asks for.

    Args:
        settings: `limits` (name of a resource -> value), `parent` (process that must still live, or
            None), `user` (number of the user to become, or None), `landlock` (None, or the paths
            that may be read: `trees`, `files`, `listed`, and `written`), `seccomp` (bool), `paths`
            (directories of the standard library), `libraries` (other packages -> directory).

    Raises:
        OSError: The kernel refused.
    """
    # Made before the user changes: nobody could not open what lies in root's home.
    ruleset = None if settings["landlock"] is None else _make_ruleset(settings["landlock"])
    libraries = dict(settings["libraries"])
    sys.path[:] = settings["paths"]
    sys.meta_path.append(_Libraries(libraries))
    if settings["user"] is not None:
        if ruleset is not None:
            _reach_modules_by_descriptor(libraries)
        _become(settings["user"])
    if settings["parent"] is not None:  # a change of the user would undo it
        _die_with_parent(settings["parent"])
    if ruleset is not None or settings["seccomp"]:
        _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if ruleset is not None:
        _call(_libc.syscall, _LANDLOCK_RESTRICT, ruleset, 0)
        os.close(ruleset)
    if settings["seccomp"]:
        _restrict_calls()
    # Last: a process that may not write a file could not say what went wrong before.
    for name, value in settings["limits"].items():
        _limit(getattr(resource, name), value)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _die_with_parent(parent: int) -> None:
    _call(_libc.prctl, _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        raise OSError("the process that started this one is gone")


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # Changing the user made /proc/self unreadable to this very process.
    _call(_libc.prctl, _PR_SET_DUMPABLE, 1, 0, 0, 0)


class _Libraries:
    """Finds a few packages by name, so that their neighbours need not even be listed."""

    def __init__(self, places: dict[str, str]):
        self._places = places

    def find_spec(self, name, path=None, target=None):
        """What the import system asks; None for every other module."""
        place = self._places.get(name)
        if place is None:
            return None
        import importlib.util  # rarely needed, and slow to import

        return importlib.util.spec_from_file_location(
            name, f"{place}/__init__.py", submodule_search_locations=[place]
        )


def _reach_modules_by_descriptor(libraries: dict[str, str]) -> None:
    """Keeps module directories reachable for a user who may not enter their parents (/root)."""
    reached = {}
    for path in (*sys.path, *libraries.values()):
        if os.path.isdir(path):  # noqa: PTH112 - pathlib is slow to import
            descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
            reached[path] = f"/proc/self/fd/{descriptor}"
    # The longest first: lib-dynload lies inside the directory of the standard library.
    prefixes = sorted(reached, key=len, reverse=True)

    def moved(path):
        for prefix in prefixes:
            if path == prefix or path.startswith(prefix + "/"):
                return reached[prefix] + path[len(prefix) :]
        return path

    sys.path[:] = [moved(path) for path in sys.path]
    for module in list(sys.modules.values()):
        if isinstance(getattr(module, "__path__", None), list):
            module.__path__ = [moved(path) for path in module.__path__]
    libraries.update({name: moved(path) for name, path in libraries.items()})
    sys.path_importer_cache.clear()


def landlock_version() -> int:
    """Version of the kernel's Landlock interface; 0 if there is none."""
    return max(0, _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION))


def _make_ruleset(paths: dict) -> int:
    """Descriptor of a Landlock ruleset that forbids all it knows except reading these paths."""
    version = landlock_version()
    if not version:
        raise OSError("this kernel has no Landlock")
    handled = [(1 << _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]) - 1]
    if version >= _NETWORK_SINCE:
        handled.append(_NETWORK_RIGHTS)
    if version >= _SCOPES_SINCE:
        handled.append(_SCOPES)
    data = struct.pack(f"={len(handled)}Q", *handled)
    size = ctypes.c_size_t(len(data))
    ruleset = _call(_libc.syscall, _LANDLOCK_CREATE, ctypes.create_string_buffer(data), size, 0)
    for kind, rights in _RIGHTS.items():
        for path in paths[kind]:
            _allow(ruleset, path, rights)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH)
    except FileNotFoundError:
        return
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
    _call(_libc.syscall, _LANDLOCK_ADD, ruleset, _LANDLOCK_PATH, rule, 0)
    os.close(descriptor)


def _restrict_calls() -> None:
    instructions = seccomp.build_filter(os.uname().machine, os.getpid())
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = ctypes.create_string_buffer(
        struct.pack("@HP", len(instructions) // 8, ctypes.addressof(buffer))
    )
    _call(_libc.prctl, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)


def _call(function, *arguments) -> int:
    result = function(*arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
