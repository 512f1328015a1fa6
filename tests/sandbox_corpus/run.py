"""Runs the corpus at one level and prints what became of each program as JSON.

    python tests/sandbox_corpus/run.py --level landlock [--user 1234] [--container]

`--user` makes this process another user first, `--container` gives it what a default container has:
Docker's capabilities, and no namespaces or mounts.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

# ruff: noqa: E402, I001 - the two lines above make these importable
from sandbox_corpus import container, effects, fakes, robustness
from sandbox_corpus.surroundings import find_leftovers, surroundings

from lm_eval_exl2.sandbox import Outcome, Program, Sandbox
from lm_eval_exl2.sandbox.runtime import NOBODY

_LIMIT_S = 6.0
_NEVER_ENDS_S = 1.0
_GRACE_S = 10.0
_TIMED = 164  # canonical solutions of HumanEval come first
_WORKERS = 6  # most of the time a program that does not end is waited for
_HONEST = Program("def add(a, b):\n    return a + b\n", fakes.TESTS, fakes.HELPERS, ("add",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--level", default="auto")
    parser.add_argument("--user", type=int)
    parser.add_argument("--container", action="store_true")
    parser.add_argument("--programs", type=Path, help="JSON list of further programs to judge")
    arguments = parser.parse_args()
    if arguments.container:
        container.enter()
    if arguments.user is not None:
        os.setgroups([])
        os.setresgid(arguments.user, arguments.user, arguments.user)
        os.setresuid(arguments.user, arguments.user, arguments.user)
    if arguments.level == "none":
        parser.error("the corpus is not run without a sandbox: it would do what it tries")
    further = json.loads(arguments.programs.read_text()) if arguments.programs else []
    sandbox = Sandbox(arguments.level)
    judged = _judge(sandbox, further)
    programs = [*_run_fakes(sandbox), *_run_robustness(sandbox), *_run_effects(sandbox)]
    honest = sandbox.judge([_HONEST] * 4)
    print(
        json.dumps(
            {
                **sandbox.describe(),
                "programs": programs,
                "judged": judged,
                "honest_after": [verdict.outcome for verdict in honest],
                "leftovers": find_leftovers(),
            }
        )
    )


def _judge(sandbox, further):
    """Outcomes of the programs of a benchmark, and how many of those that pass took a second."""
    programs = [Program(**{**each, "names": tuple(each["names"])}) for each in further]
    began = time.monotonic()
    first = sandbox.judge(programs[:_TIMED])
    seconds = time.monotonic() - began
    verdicts = first + sandbox.judge(programs[_TIMED:])
    return {
        "outcomes": [verdict.outcome for verdict in verdicts],
        "canonical_per_second": len(first) / seconds if first else None,
    }


def _run_fakes(sandbox):
    cases = {name: (source, fakes.TESTS, fakes.HELPERS) for name, source in fakes.FAKES.items()}
    cases |= fakes.AIMED
    programs = [Program(*case, names=("add",)) for case in cases.values()]
    for name, (verdict, hang) in zip(cases, _judge_each(sandbox, programs), strict=True):
        yield _record("fake", name, verdict, hang, passed=verdict.outcome is Outcome.PASSED)


def _run_robustness(sandbox):
    cases = robustness.ROBUSTNESS
    programs = [
        Program(source, robustness.TESTS, names=("attack",)) for source, _ in cases.values()
    ]
    # What never ends is waited for as briefly as possible, what must fail has time to.
    limits = [
        _NEVER_ENDS_S if "timed out" in allowed else _LIMIT_S for _, allowed in cases.values()
    ]
    found = _judge_each(sandbox, programs, limits)
    for (name, (_, allowed)), (verdict, hang) in zip(cases.items(), found, strict=True):
        unexpected = verdict.outcome.value not in allowed
        yield _record("robustness", name, verdict, hang, unexpected=unexpected)


def _run_effects(sandbox):
    with surroundings(NOBODY if os.geteuid() == 0 else None) as around:
        tests = f"assert attack({around.place()!r}) is not True, 'worked'"
        for name, source in effects.EFFECTS.items():
            program = Program(source, tests, names=("attack",))
            ((verdict, hang),) = _judge_each(sandbox, [program])
            worked = "worked" in verdict.message
            changes = around.find_changes()
            effect = worked or bool(changes)
            yield _record("effect", name, verdict, hang, effect=effect, changes=changes)


def _judge_each(sandbox, programs, limits=None):
    """Verdicts, and whether one came later than its limit and the start of two processes explain."""
    limits = limits or [_LIMIT_S] * len(programs)

    def judge(program, limit_s):
        began = time.monotonic()
        (verdict,) = sandbox.judge([program], limits_s=[limit_s])
        return verdict, time.monotonic() - began > limit_s + _GRACE_S

    with ThreadPoolExecutor(_WORKERS) as executor:
        return list(executor.map(judge, programs, limits))


def _record(kind, name, verdict, hang, **found):
    return {
        "kind": kind,
        "name": name,
        "outcome": verdict.outcome,
        "message": verdict.message,
        "seconds": round(verdict.seconds, 3),
        "sandbox_error": verdict.outcome is Outcome.SANDBOX_ERROR,
        "hang": hang,
        **found,
    }


if __name__ == "__main__":
    main()
