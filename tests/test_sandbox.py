"""The sandbox: verdicts on honest programs, what crosses, levels, and the end of the harness."""

import contextlib
import dataclasses
import os
import resource
import subprocess
import sys
import textwrap
import time
from functools import cache
from pathlib import Path

import pytest

from lm_eval_exl2.errors import SandboxError
from lm_eval_exl2.sandbox import Outcome, Program, Sandbox, launch, pool, self_test
from lm_eval_exl2.sandbox.bubblewrap import bubblewrap_command
from lm_eval_exl2.sandbox.judge import judge
from lm_eval_exl2.sandbox.runtime import find_runtime

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's"),
]


@cache
def sandbox():
    return Sandbox()


def judged(source, tests, **arguments):
    (verdict,) = sandbox().judge(
        [Program(textwrap.dedent(source), textwrap.dedent(tests), **arguments)]
    )
    return verdict


def outcome(source, tests, *names, **arguments):
    """What becomes of a program of which the tests use these names."""
    verdict = judged(source, tests, names=names, **arguments)
    assert verdict.outcome is not Outcome.SANDBOX_ERROR, verdict
    return verdict.outcome


ADD = "def add(a, b):\n    return a + b\n"


def test_a_right_program_passes_and_a_wrong_one_fails():
    assert outcome(ADD, "assert add(2, 3) == 5", "add") is Outcome.PASSED
    assert outcome(ADD, "assert add(2, 3) == 6", "add") is Outcome.FAILED


def test_verdicts_come_in_the_order_of_the_programs():
    programs = [Program(f"x = {n}", "assert x % 3 == 0", names=("x",)) for n in range(12)]
    verdicts = [verdict.outcome for verdict in sandbox().judge(programs)]
    assert verdicts == [Outcome.FAILED if n % 3 else Outcome.PASSED for n in range(12)]


def test_a_name_the_program_does_not_define_is_a_failure():
    assert outcome("", "assert add(2, 3) == 5", "add") is Outcome.FAILED


def test_exceptions_cross_as_the_nearest_builtin_one_with_their_arguments():
    source = """
        class Odd(KeyError): pass
        def find(key): raise Odd(key)
        def open_it(): raise OSError(2, 'no', 'file')
        def decode(): return b'\\xff'.decode()
        def leave(): raise SystemExit(0)
    """
    tests = """
        def error_of(function, *arguments):
            try:
                function(*arguments)
            except Exception as error:
                return error
        assert type(error_of(find, 'k')) is KeyError and str(error_of(find, 'k')) == "'k'"
        assert error_of(open_it).errno == 2 and type(error_of(open_it)) is FileNotFoundError
        assert type(error_of(decode)) is UnicodeDecodeError and error_of(decode).start == 0
        assert type(error_of(leave)) is RuntimeError and 'SystemExit' in str(error_of(leave))
    """
    assert outcome(source, tests, "find", "open_it", "decode", "leave") is Outcome.PASSED


def test_tests_reach_functions_classes_attributes_and_iterators():
    source = """
        counter = 7
        class Node:
            def __init__(self, key):
                self.key, self.left = key, None
            def __str__(self): return f'<{self.key}>'
            def __len__(self): return self.key
            def __getitem__(self, place): return place + self.key
        def keys(node): return [node.key] + (keys(node.left) if node.left else [])
        def evens(n): yield from range(0, n, 2)
        def adder(a): return lambda b: a + b
    """
    tests = """
        root = Node(3)
        root.left = Node(4)
        assert keys(root) == [3, 4]
        assert root.left.key == 4
        assert str(root) == '<3>' and len(root) == 3 and root[1] == 4
        assert list(evens(5)) == [0, 2, 4] and next(evens(5)) == 0 and 4 in evens(5)
        assert adder(2)(3) == 5
        assert counter == 7
        assert Node(1) != Node(1) and root == root
    """
    names = ("Node", "keys", "evens", "adder", "counter")
    assert outcome(source, tests, *names) is Outcome.PASSED


def test_types_and_slices_cross_as_what_they_are():
    source = """
        def without(items, kind): return [item for item in items if type(item) != kind]
        def kind_of(item): return type(item)
        class Row:
            def __getitem__(self, key): return [key.start, key.stop]
    """
    tests = """
        assert without((4, 7.7), int) == [7.7]
        assert kind_of(5) is int and kind_of(None) is type(None) and kind_of(5) != float
        assert Row()[1:3] == [1, 3]
    """
    assert outcome(source, tests, "without", "kind_of", "Row") is Outcome.PASSED


def test_an_object_is_no_number_to_the_tests():
    source = "class Half:\n    def __float__(self): return 0.5\ndef half(): return Half()"
    assert outcome(source, "import math\nassert math.fabs(half()) == 0.5", "half") is Outcome.FAILED


def test_arguments_are_copies():
    source = "def clear(items):\n    items.clear()\n    return items"
    tests = "items = [1]\nassert clear(items) == []\nassert items == [1]"
    assert outcome(source, tests, "clear") is Outcome.PASSED


def test_helpers_are_the_tests_own_except_for_the_names_given():
    helpers = "def double(n):\n    return 2 * n\n\ndef add(a, b):\n    pass\n"
    program = ADD + "def double(n):\n    return 0\n"
    tests = "assert add(1, 1) == double(1) == 2"
    assert outcome(program, tests, "add", helpers=helpers) is Outcome.PASSED


def test_a_module_that_the_program_imported_is_the_real_one_to_the_tests():
    def half(source):
        return outcome(source, "assert math.isclose(half(4), 2)", "half", modules=("math",))

    assert (
        half("import math\nmath.isclose = lambda *a: True\ndef half(n): return n") is Outcome.FAILED
    )
    assert half("import math\ndef half(n): return n / 2") is Outcome.PASSED
    assert half("def half(n): return n / 2") is Outcome.FAILED  # as if all ran as one program


@pytest.mark.parametrize("name", ["select", "sum"])
def test_a_function_named_like_a_module_or_a_builtin_is_the_programs(name):
    source = f"def {name}(items):\n    return items[0]"
    assert outcome(source, f"assert {name}([3, 4]) == 3", name) is Outcome.PASSED
    assert outcome(source, f"assert {name}([3, 4]) == 4", name) is Outcome.FAILED


def test_only_the_names_given_are_the_programs():
    source = "def sum(items): return 9\ndef isclose(a, b): return True\ndef f(): return [1, 2]"
    assert outcome(source, "assert sum(f()) == 3", "f") is Outcome.PASSED
    assert outcome(source, "assert isclose(f()[0], 3)", "f") is Outcome.FAILED


def test_a_message_that_cannot_be_printed_is_still_a_failure():
    source = "def count():\n    return 10 ** 6000"
    assert outcome(source, "assert count() == 1, count()", "count") is Outcome.FAILED


def test_tests_that_swallow_exceptions_do_not_hide_a_dead_program():
    tests = "try:\n    add(1, 2)\nexcept:\n    pass"
    assert outcome("import os\ndef add(a, b): os._exit(0)", tests, "add") is Outcome.FAILED


@cache
def sandbox_at(level):
    try:
        return Sandbox(level)
    except SandboxError as error:
        return pytest.skip(str(error))


@pytest.mark.parametrize("level", ["landlock", pytest.param("bubblewrap", marks=pytest.mark.slow)])
@pytest.mark.parametrize("library", ["numpy", "scipy.stats", "sympy", "mpmath"])
def test_libraries_can_be_imported_at_each_level(level, library):
    program = Program(
        f"import {library}\nname = {library}.__name__",
        f"assert name == {library!r}",
        names=("name",),
    )
    (verdict,) = sandbox_at(level).judge([program], limits_s=[60])
    assert verdict.outcome is Outcome.PASSED, verdict


@pytest.mark.parametrize("level", ["landlock", "bubblewrap"])
def test_other_packages_are_as_if_they_were_not_installed(level):
    source = """
        found = []
        for name in ("pandas", "torch", "lm_eval_exl2", "pytest"):
            try:
                __import__(name)
                found.append(name)
            except ModuleNotFoundError:
                pass
    """
    program = Program(textwrap.dedent(source), "assert found == []", names=("found",))
    (verdict,) = sandbox_at(level).judge([program])
    assert verdict.outcome is Outcome.PASSED, verdict


def test_numpy_scalars_are_numbers_to_the_tests():
    source = "import numpy as np\ndef total(x): return np.array(x).sum()"
    assert outcome(source, "assert total([1, 2]) == 3", "total") is Outcome.PASSED


def test_the_order_of_sets_is_the_same_in_every_run():
    source = "def letters(): return list(set('quantization'))"
    first, again = (
        judged(source, "raise ValueError(letters())", names=("letters",)) for _ in range(2)
    )
    assert "'q'" in first.message
    assert first.message == again.message


def test_what_the_tests_cannot_pass_is_refused():
    verdict = judged("def f(g): return g(1)", "assert f(lambda n: n) == 1", names=("f",))
    assert verdict.outcome is Outcome.REFUSED_OUTPUT
    assert "a function cannot cross" in verdict.message


def test_a_verdict_is_one_line_without_what_a_terminal_obeys():
    verdict = judged("", "raise ValueError('\\x1b[31m\\nred' + 'x' * 9999)")
    assert verdict.message.startswith("ValueError: [31m redxxx")
    assert len(verdict.message) < 600


def test_a_harness_with_many_open_files_can_judge():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1200
    if hard != resource.RLIM_INFINITY and hard < wanted + 100:
        pytest.skip("no process may open that many files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 100), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(wanted):
            stack.enter_context(open(os.devnull))  # noqa: PTH123
        assert outcome("x = 1", "assert x == 1", "x") is Outcome.PASSED


def test_no_descriptor_is_left_open_even_if_there_are_too_few():
    launcher = launch.Launcher("none", find_runtime())
    program = Program("x = 1", "assert x == 1", names=("x",))
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    free = [number for number in range(1000) if str(number) not in before]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes = set()
    try:
        for limit in free[:20]:  # none, one, two, ... descriptors to be had
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            outcomes.add(judge(program, launcher, limit_s=5.0).outcome)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert Outcome.SANDBOX_ERROR in outcomes
    assert outcomes <= {Outcome.SANDBOX_ERROR, Outcome.PASSED}
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_time_limit_is_four_times_the_reference_and_at_least_four_seconds():
    slow = Program("import time\ntime.sleep(1.2)\nx = 1", "assert x == 1", names=("x",))
    fast = Program("x = 1", "assert x == 1", names=("x",))
    limits, verdicts = sandbox().measure([slow, fast])
    assert 4.5 <= limits[0] < 60  # its sleep of 1.2 s may begin a little before the clock
    assert limits[1] == pool.MIN_LIMIT_S
    assert [verdict.outcome for verdict in verdicts] == [Outcome.PASSED] * 2


def test_a_process_that_does_not_start_is_a_sandbox_error():
    runtime = find_runtime()
    missing = dataclasses.replace(runtime, python="/no/such/python")
    verdict = judge(Program("", ""), launch.Launcher("none", missing), limit_s=1.0)
    assert verdict.outcome is Outcome.SANDBOX_ERROR
    assert "/no/such/python" in verdict.message


def test_the_self_test_notices_a_sandbox_that_does_not_hold():
    leaks = self_test.find_leaks(launch.Launcher("none", find_runtime()))
    assert any("read a file" in leak for leak in leaks)
    assert any("write files" in leak for leak in leaks)


def test_no_level_at_all_is_refused_with_the_reasons(monkeypatch):
    monkeypatch.setattr(pool, "find_leaks", lambda launcher: [f"{launcher.level} leaks"])
    monkeypatch.setattr(pool, "_missing", lambda level: "")
    with pytest.raises(SandboxError, match=r"bubblewrap leaks.*landlock leaks.*confirm_run_unsafe"):
        Sandbox()
    with pytest.raises(SandboxError, match="expected auto, bubblewrap"):
        Sandbox("docker")


def test_none_is_never_chosen_and_only_asked_for():
    assert sandbox().level != "none"
    open_sandbox = Sandbox("none")
    assert open_sandbox.level == "none"
    program = Program("x = 1", "assert x == 1", names=("x",))
    assert open_sandbox.judge([program])[0].outcome is Outcome.PASSED


def test_root_keeps_only_the_right_to_become_nobody_in_bubblewrap():
    command = bubblewrap_command("bwrap", find_runtime(), as_root=True)
    kept = [command[place + 1] for place, word in enumerate(command) if word == "--cap-add"]
    assert kept == ["CAP_SETUID", "CAP_SETGID"]
    assert "--unshare-user" in bubblewrap_command("bwrap", find_runtime(), as_root=False)
    assert "--proc" not in command


@pytest.mark.parametrize("level", ["landlock", "bubblewrap"])
def test_nothing_is_left_after_the_harness_is_killed(level):
    sandbox_at(level)
    code = (
        "from lm_eval_exl2.sandbox import *\n"
        f"Sandbox({level!r}).judge([Program('while True: pass', '')] * 4, limits_s=[600] * 4)"
    )
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 60
            while len(spinning := find_spinning(process.pid)) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            process.kill()
    assert len(spinning) >= 2
    deadline = time.monotonic() + 10
    while any(map(exists, spinning)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(exists, spinning))


def exists(process):
    return Path(f"/proc/{process}").exists()


def find_spinning(parent):
    """Processes below one that have used the processor for a fifth of a second."""
    rows = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, rest = stat.read_text().split(" (", 1)
            fields = rest.rpartition(") ")[2].split()
            rows.append((int(pid), int(fields[1]), int(fields[11]) / os.sysconf("SC_CLK_TCK")))
    below = {parent}
    for _ in range(4):
        below |= {pid for pid, ppid, _ in rows if ppid in below}
    return [pid for pid, _, seconds in rows if pid in below - {parent} and seconds > 0.2]
