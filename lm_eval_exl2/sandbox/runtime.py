"""The Python that sandboxed processes run, and the few paths they may read for it.

What may be read: the standard library, shared libraries, time zones, and the packages of
`LIBRARIES`, which answers to programming tasks import. Everything else installed beside them is
hidden, this package and its demo solutions first of all.
"""

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("numpy", "scipy", "sympy", "mpmath")
NOBODY = 65534

_SYSTEM_TREES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero")
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    # The order of sets of strings, and so a verdict, must not differ between runs.
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a sandboxed process needs of this machine.

    Attributes:
        python: The interpreter, not a link to it.
        trees: Directories and files that may be read, with what is below them.
        hidden: Directories below `trees` that may not.
        libraries: Packages that may be read although they lie in a hidden directory.
        files: Single files that may be read.
        paths: `sys.path` inside.
        environment: Environment variables inside.
    """

    python: str
    trees: tuple[str, ...]
    hidden: tuple[str, ...]
    libraries: tuple[str, ...]
    files: tuple[str, ...]
    paths: tuple[str, ...]
    environment: dict[str, str]

    def visible_trees(self) -> Iterator[str]:
        """Trees with the hidden directories cut out, for a kernel that can only allow."""
        for tree in self.trees:
            yield from _without(tree, self.hidden)
        yield from self.libraries


def find_runtime() -> Runtime:
    """Describes the Python that runs this."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    standard = os.path.realpath(sysconfig.get_path("stdlib"))
    own = os.path.join(os.path.realpath(sys.base_prefix), "lib")  # noqa: PTH118 - plain strings
    libraries = tuple(_find_libraries())
    parents = tuple(dict.fromkeys(os.path.dirname(path) for path in libraries))  # noqa: PTH120
    environment = dict(_ENVIRONMENT)
    if "LD_LIBRARY_PATH" in os.environ:  # some interpreters find their own library by it
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return Runtime(
        python=python,
        trees=tuple(dict.fromkeys(path for path in (*_SYSTEM_TREES, own, standard) if _is(path))),
        hidden=tuple(_hidden_directories()),
        libraries=libraries,
        files=tuple(path for path in (*_SYSTEM_FILES, python) if _is(path)),
        paths=(standard, f"{standard}/lib-dynload", *parents),
        environment=environment,
    )


def _is(path: str) -> bool:
    return Path(path).exists()


def _hidden_directories() -> Iterator[str]:
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    places |= {str(Path(__file__).parents[1])}
    places |= {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    yield from sorted(os.path.realpath(place) for place in places if place)


def _find_libraries() -> Iterator[str]:
    """Directories of the packages in `LIBRARIES` that are installed, and of their own libraries."""
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue
        place = os.path.realpath(next(iter(spec.submodule_search_locations)))
        yield place
        if _is(f"{place}.libs"):
            yield f"{place}.libs"


def _without(tree: str, hidden: tuple[str, ...]) -> Iterator[str]:
    """The largest subtrees of a tree that contain no hidden directory."""
    real = os.path.realpath(tree)
    if real in hidden:
        return
    if not any(place.startswith(real + "/") for place in hidden):
        yield tree
        return
    with os.scandir(tree) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_symlink() or not entry.is_dir():
                yield entry.path
            else:
                yield from _without(entry.path, hidden)
