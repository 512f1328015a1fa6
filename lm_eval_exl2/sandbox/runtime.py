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
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")
_PACKAGES = ("site-packages", "dist-packages", "python3*/site-packages", "python3*/dist-packages")
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
        libraries: Packages that may be imported although they lie in a hidden directory, by name.
        shared: Directories with those packages' own shared libraries.
        files: Single files that may be read.
        paths: `sys.path` inside.
        environment: Environment variables inside.
    """

    python: str
    trees: tuple[str, ...]
    hidden: tuple[str, ...]
    libraries: dict[str, str]
    shared: tuple[str, ...]
    files: tuple[str, ...]
    paths: tuple[str, ...]
    environment: dict[str, str]

    def visible_trees(self) -> Iterator[str]:
        """Trees with the hidden directories cut out, for a kernel that can only allow."""
        for tree in self.trees:
            yield from _without(tree, self.hidden)
        yield from (*self.libraries.values(), *self.shared)


def find_runtime() -> Runtime:
    """Describes the Python that runs this."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    standard = os.path.realpath(sysconfig.get_path("stdlib"))
    own = os.path.join(os.path.realpath(sys.base_prefix), "lib")  # noqa: PTH118 - plain strings
    libraries = dict(_find_libraries())
    shared = [f"{place}.libs" for place in libraries.values()]
    trees = tuple(dict.fromkeys(path for path in (*_SYSTEM_TREES, own, standard) if _is(path)))
    environment = dict(_ENVIRONMENT)
    if "LD_LIBRARY_PATH" in os.environ:  # some interpreters find their own library by it
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return Runtime(
        python=python,
        trees=trees,
        hidden=tuple(_hidden_directories(trees)),
        libraries=libraries,
        shared=tuple(path for path in shared if _is(path)),
        files=tuple(path for path in (*_SYSTEM_FILES, python) if _is(path)),
        paths=(standard, f"{standard}/lib-dynload"),
        environment=environment,
    )


def _is(path: str) -> bool:
    return Path(path).exists()


def _hidden_directories(trees: tuple[str, ...]) -> Iterator[str]:
    """This package, and all installed ones: also those of the interpreter behind an environment."""
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    places |= {str(Path(__file__).parents[1])}
    places |= {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    places |= {
        str(found) for tree in trees for kind in _PACKAGES for found in Path(tree).glob(kind)
    }
    yield from sorted({os.path.realpath(place) for place in places if place})


def _find_libraries() -> Iterator[tuple[str, str]]:
    """Names and directories of the packages in `LIBRARIES` that are installed."""
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            yield name, os.path.realpath(next(iter(spec.submodule_search_locations)))


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
            if entry.is_symlink():
                continue  # its target is in a tree by itself, or none of the program's business
            if entry.is_dir():
                yield from _without(entry.path, hidden)
            else:
                yield entry.path
