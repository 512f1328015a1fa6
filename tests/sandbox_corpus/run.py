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
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

# ruff: noqa: E402, I001 - the two lines above make these importable
from sandbox_corpus import container, effects, fakes, robustness
from sandbox_corpus.surroundings import find_leftovers, surroundings

from lm_eval_exl2.sandbox import Outcome, Program, Sandbox
from lm_eval_exl2.sandbox.runtime import NOBODY

_LIMIT_S = 2.0
_HANG_S = 15.0
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
    sandbox = Sandbox(arguments.level, workers=_WORKERS)
    judged = _judge(Sandbox(arguments.level), further)
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
    programs = [
        Program(source, fakes.TESTS, fakes.HELPERS, ("add",)) for source in fakes.FAKES.values()
    ]
    verdicts = sandbox.judge(programs, limits_s=[_LIMIT_S] * len(programs))
    for name, verdict in zip(fakes.FAKES, verdicts, strict=True):
        yield _record("fake", name, verdict, passed=verdict.outcome is Outcome.PASSED)


def _run_robustness(sandbox):
    cases = robustness.ROBUSTNESS
    programs = [Program(source, robustness.TESTS) for source, _ in cases.values()]
    began = time.monotonic()
    verdicts = sandbox.judge(programs, limits_s=[_LIMIT_S] * len(programs))
    late = time.monotonic() - began > len(programs) * _HANG_S
    for (name, (_, allowed)), verdict in zip(cases.items(), verdicts, strict=True):
        unexpected = verdict.outcome.value not in allowed
        yield _record("robustness", name, verdict, unexpected=unexpected, hang=late)


def _run_effects(sandbox):
    with surroundings(NOBODY if os.geteuid() == 0 else None) as around:
        tests = f"assert attack({around.place()!r}) is not True, 'worked'"
        for name, source in effects.EFFECTS.items():
            (verdict,) = sandbox.judge([Program(source, tests)], limits_s=[_LIMIT_S])
            worked = "worked" in verdict.message
            changes = around.find_changes()
            yield _record("effect", name, verdict, effect=worked or bool(changes), changes=changes)


def _record(kind, name, verdict, **found):
    return {
        "kind": kind,
        "name": name,
        "outcome": verdict.outcome,
        "message": verdict.message,
        "seconds": round(verdict.seconds, 3),
        "sandbox_error": verdict.outcome is Outcome.SANDBOX_ERROR,
        **found,
    }


if __name__ == "__main__":
    main()
