"""No program of the corpus passes without solving, reaches what is not its own, or hangs.

The corpus runs once per configuration, in a process of its own (`sandbox_corpus/run.py`); each test
looks at what became of one program there.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from sandbox_corpus import effects, fakes, robustness

from lm_eval_exl2.sandbox.inside import confine

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's"),
]
SCRIPT = Path(__file__).parent / "sandbox_corpus/run.py"
USER = 1234
PROGRAMS = [
    *(("fake", name) for name in (*fakes.FAKES, *fakes.AIMED)),
    *(("effect", name) for name in effects.EFFECTS),
    *(("robustness", name) for name in robustness.ROBUSTNESS),
]
# How this process would run it, and the others; only root can become them. By default the level
# runs that needs nothing installed; `make slow` runs them all.
CONFIGURATIONS = {
    "landlock": ["--level", "landlock"],
    "bubblewrap": ["--level", "bubblewrap"],
    "landlock-other-user": ["--level", "landlock", "--user", str(USER)],
    "bubblewrap-other-user": ["--level", "bubblewrap", "--user", str(USER)],
    "landlock-container": ["--level", "landlock", "--container"],
    "landlock-container-other-user": ["--level", "landlock", "--container", "--user", str(USER)],
}


def python_for(user):
    """This Python if that user may run it (it may lie in root's home), else the system's."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        code = "import sys; sys.exit(sys.version_info < (3, 11))"
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(
                [python, "-S", "-c", code],
                user=user,
                group=user,
                extra_groups=[],
                cwd="/",
                check=True,
            )
            return python
    return pytest.skip(f"user {user} may run no Python 3.11 on this machine")


@cache
def results(configuration):
    arguments = CONFIGURATIONS[configuration]
    if "bubblewrap" in arguments and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    if "landlock" in arguments and not confine.landlock_version():
        pytest.skip("this kernel has no Landlock")
    python = sys.executable
    if "--user" in arguments or "--container" in arguments:
        if os.geteuid():
            pytest.skip("only root can become another user")
        if "--user" in arguments:
            python = python_for(USER)
    done = subprocess.run(
        [python, "-B", str(SCRIPT), *arguments], capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    return document, {(each["kind"], each["name"]): each for each in document["programs"]}


def check(configuration, kind, name):
    found = results(configuration)[1][kind, name]
    assert not found["sandbox_error"], found
    assert not found.get("passed"), "it passed"
    assert not found.get("effect"), found
    assert not found.get("unexpected"), found
    assert not found.get("hang"), found


def test_the_corpus_is_large_enough():
    assert len(PROGRAMS) >= 60


@pytest.mark.parametrize(("kind", "name"), PROGRAMS, ids=lambda value: value)
@pytest.mark.parametrize(
    "configuration", ["landlock", pytest.param("bubblewrap", marks=pytest.mark.slow)]
)
def test_holds(configuration, kind, name):
    check(configuration, kind, name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), PROGRAMS, ids=lambda value: value)
@pytest.mark.parametrize("configuration", list(CONFIGURATIONS)[2:])
def test_holds_elsewhere(configuration, kind, name):
    check(configuration, kind, name)


@pytest.mark.parametrize(
    "configuration", ["landlock", pytest.param("bubblewrap", marks=pytest.mark.slow)]
)
def test_an_honest_program_passes_after_all_of_them_and_nothing_is_left(configuration):
    document = results(configuration)[0]
    assert set(document["honest_after"]) == {"passed"}
    assert document["leftovers"] == []
    assert document["level"] == configuration
