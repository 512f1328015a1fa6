"""Fresh installs: the four stock commands know our model and tasks. Minutes, so marked slow."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

COMMANDS = {
    "lm_eval": ["lm_eval"],
    "lm-eval run": ["lm-eval", "run"],
    "python -m lm_eval": ["python", "-m", "lm_eval"],
    "accelerate launch": [
        "accelerate", "launch", "--cpu", "--num_processes", "1", "-m", "lm_eval",
    ],
}  # fmt: skip
ARGUMENTS = [
    "--model", "exl2", "--model_args", "pretrained=demo", "--tasks", "exl2_demo_facts",
    "--limit", "8", "--device", "cpu",
]  # fmt: skip


def run(command, cwd, **variables):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **variables}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(request, tmp_path_factory):
    """A new virtual environment with the package installed one way."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    install = [binaries / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    if request.param == "wheel":
        built = run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], cwd=folder
        )
        assert built.returncode == 0, built.stderr
        target = [next(folder.glob("*.whl"))]
    else:
        target = ["-e", ROOT]
    installed = run([*install, *target, "accelerate"], cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return binaries, folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stock_command_runs_our_model_on_our_task(environment, name):
    binaries, folder = environment
    command = [binaries / COMMANDS[name][0], *COMMANDS[name][1:], *ARGUMENTS]
    done = run(command, cwd=folder, PATH=f"{binaries}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "exl2_demo_facts" in done.stdout
    assert "acc" in done.stdout


def test_built_in_models_stay_visible(environment):
    binaries, folder = environment
    done = run(
        [binaries / "lm_eval", "--model", "dummy", *ARGUMENTS[4:]], cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_switch_takes_the_model_away_and_the_module_command_brings_it_back(environment):
    binaries, folder = environment
    off = {"LM_EVAL_EXL2_NO_HOOK": "1"}
    without = run([binaries / "lm_eval", *ARGUMENTS], cwd=folder, **off)
    assert without.returncode != 0
    fallback = [binaries / "python", "-m", "lm_eval_exl2", *ARGUMENTS]
    assert run(fallback, cwd=folder, **off).returncode == 0


def test_uninstalling_leaves_nothing_behind(environment):
    binaries, folder = environment
    done = run([binaries / "python", "-m", "pip", "uninstall", "-qy", "lm-eval-exl2"], cwd=folder)
    assert done.returncode == 0, done.stderr
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    assert [path.name for path in site.glob("*exl2*") if path.suffix in (".pth", ".start")] == []
