"""The stock harness knows our model and tasks, and nothing else changes for it."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest

from lm_eval_exl2 import plugin


def run_python(code: str, **variables: str) -> str:
    """Run code in a clean interpreter; the hook is installed by the code, not by site."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_neither_torch_nor_the_harness():
    code = (
        "import sys, lm_eval_exl2, lm_eval_exl2.plugin, lm_eval_exl2.options, lm_eval_exl2.plan,"
        " lm_eval_exl2.prefix_tree, lm_eval_exl2.records, lm_eval_exl2.stops, lm_eval_exl2.cli,"
        " lm_eval_exl2.scoring, lm_eval_exl2.tiles, lm_eval_exl2.engines.scripted\n"
        "heavy = ['torch', 'transformers', 'lm_eval', 'ray', 'exllamav2', 'numpy']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert run_python(code, LM_EVAL_EXL2_NO_HOOK="1").strip() == "[]"


def test_the_hook_itself_imports_only_the_standard_library():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import lm_eval_exl2.plugin; lm_eval_exl2.plugin.install_hook()\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'lm_eval_exl2'}))"
    )
    assert run_python(code, LM_EVAL_EXL2_NO_HOOK="").strip() == "[]"


HOOKED = (
    "import sys, lm_eval_exl2.plugin as plugin\n"
    "plugin.install_hook()\n"
    "from lm_eval.api.registry import get_model, model_registry\n"
    "from lm_eval.tasks import TaskManager\n"
)


def test_the_stock_registry_finds_our_model_beside_the_built_in_ones():
    code = HOOKED + (
        "print(get_model('dummy').__name__, 'hf' in model_registry, 'vllm' in model_registry)\n"
        "print(get_model('exl2').__module__, get_model('exl2').__name__)"
    )
    expected = ["DummyLM True True", "lm_eval_exl2.lm Exl2LM"]
    assert run_python(code, LM_EVAL_EXL2_NO_HOOK="").split("\n")[:2] == expected


def test_the_hook_leaves_the_import_system_as_it_was_once_both_modules_are_loaded():
    code = HOOKED + (
        "import lm_eval.models\n"
        "print([type(f).__module__ for f in sys.meta_path if 'exl2' in type(f).__module__])"
    )
    assert run_python(code, LM_EVAL_EXL2_NO_HOOK="").strip() == "[]"


def test_an_environment_variable_switches_the_hook_off():
    code = HOOKED + "import lm_eval.models; print('exl2' in model_registry)"
    assert run_python(code, LM_EVAL_EXL2_NO_HOOK="1").strip() == "False"


@pytest.mark.slow
def test_a_harness_with_plug_in_loading_is_left_to_its_entry_points():
    code = (
        "import lm_eval.api.registry as registry\n"
        "registry.load_plugins = lambda: None\n"
        + HOOKED
        + "import lm_eval.models; print('exl2' in model_registry)"
    )
    assert run_python(code, LM_EVAL_EXL2_NO_HOOK="").strip() == "False"


@pytest.mark.slow
def test_importing_our_class_first_keeps_the_built_in_models():
    code = (
        "import lm_eval_exl2.lm\n"
        "from lm_eval.api.registry import get_model\n"
        "print(get_model('dummy').__name__, get_model('exl2').__name__)"
    )
    assert run_python(code, LM_EVAL_EXL2_NO_HOOK="1").strip() == "DummyLM Exl2LM"


def test_our_task_folder_holds_task_files():
    assert list(plugin.task_configs_path().glob("**/*.yaml"))


@pytest.fixture
def scanned(tmp_path):
    """Return a function that tells which folders a task index scans with our folder added."""

    class TaskIndex:
        @staticmethod
        def build(paths, **_options):
            return list(paths)

    module = types.ModuleType("fake_index")
    module.TaskIndex = TaskIndex
    module.__file__ = str(tmp_path / "tasks" / "_index.py")
    plugin._add_task_folder(module)
    plugin._add_task_folder(module)
    return TaskIndex.build


def test_our_tasks_come_right_after_the_default_ones_so_that_a_users_folder_wins(scanned, tmp_path):
    default, mine = tmp_path / "tasks", tmp_path / "mine"
    assert scanned([default, mine]) == [default, plugin.task_configs_path(), mine]


def test_leaving_out_the_default_tasks_leaves_out_ours(scanned, tmp_path):
    assert scanned([tmp_path / "mine"]) == [tmp_path / "mine"]


def test_the_hook_is_installed_once(monkeypatch):
    monkeypatch.delenv(plugin.NO_HOOK_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = len([f for f in sys.meta_path if isinstance(f, plugin._Finder)])
    plugin.install_hook()
    plugin.install_hook()
    after = len([f for f in sys.meta_path if isinstance(f, plugin._Finder)])
    assert after == max(1, before)
