"""Makes the stock harness know `--model exl2` and the `exl2_*` tasks.

Harness releases up to 0.4.13 look up no plug-ins. A one-line `.pth` file (`.start` from Python
3.15 on, PEP 829) calls `install_hook` when the interpreter starts; it adds a finder to
`sys.meta_path` that reacts to two module names only, lets the normal machinery load them, and
then registers a lazy placeholder for the model and adds our task folder behind the default one.
Releases with plug-in support read the entry point group `lm_eval.models`; for those the hook
leaves the models alone.

The hook imports nothing when installed, removes itself when both modules are loaded, and is
switched off by the environment variable `LM_EVAL_EXL2_NO_HOOK=1`.
This module does not import the harness at import time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

NO_HOOK_VARIABLE = "LM_EVAL_EXL2_NO_HOOK"
MODEL_NAME = "exl2"
# The registry upgrades a placeholder to the class only if it is exactly module:name.
MODEL_TARGET = "lm_eval_exl2.lm:Exl2LM"


def task_configs_path() -> Path:
    """Return the folder with the task YAMLs: inside an installed package, beside a checkout."""
    package = Path(__file__).parent
    inside = package / "task_configs"
    return inside if inside.is_dir() else package.parent / "task_configs"


def install_hook() -> None:
    """Install the import hook once, unless it is switched off. Called at interpreter start."""
    if os.environ.get(NO_HOOK_VARIABLE) or any(isinstance(f, _Finder) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())


def register() -> None:
    """Register the model and the tasks now, importing the harness; works without any hook."""
    import lm_eval.models
    import lm_eval.tasks._index

    _register_model(lm_eval.models)
    _add_task_folder(lm_eval.tasks._index)


def _register_model(_module: ModuleType) -> None:
    """Put a lazy placeholder into the registry, after the built-in models are in it."""
    from lm_eval.api import registry

    if hasattr(registry, "load_plugins"):
        return
    if MODEL_NAME not in registry.model_registry:
        registry.model_registry.register(MODEL_NAME, target=MODEL_TARGET)


def _add_task_folder(module: ModuleType) -> None:
    """Make the task index scan our folder right after the harness's own tasks.

    Our folder is added only where the default tasks are scanned, so `include_defaults=False`
    keeps its meaning and a user's `--include_path`, which comes later, still wins.
    """
    index: Any = module.TaskIndex
    build: Callable[..., Any] = index.build
    if hasattr(build, "__wrapped__"):
        return
    default_folder = Path(str(module.__file__)).parent

    def build_with_exl2_tasks(paths: Iterable[Path], **options: Any) -> Any:
        folders = list(paths)
        own = task_configs_path()
        if default_folder in folders and own not in folders:
            folders.insert(folders.index(default_folder) + 1, own)
        return build(folders, **options)

    build_with_exl2_tasks.__wrapped__ = build  # type: ignore[attr-defined]
    index.build = staticmethod(build_with_exl2_tasks)


_AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "lm_eval.models": _register_model,
    "lm_eval.tasks._index": _add_task_folder,
}


class _Finder:
    """Runs an action right after each module of `_AFTER_IMPORT` has been loaded."""

    def __init__(self) -> None:
        self._waiting = dict(_AFTER_IMPORT)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the ordinary spec of a module we wait for, with our action appended."""
        if name not in self._waiting:
            return None
        action = self._waiting.pop(name)
        if not self._waiting:
            sys.meta_path.remove(self)
        import importlib.util

        # With the name out of the waiting list, this search passes us by.
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        load = loader.exec_module

        def load_then_act(module: ModuleType) -> None:
            load(module)
            action(module)

        loader.exec_module = load_then_act
        return spec
