"""The nouns of the sandbox: programs, outcomes, verdicts."""

import enum
from dataclasses import dataclass

# From the strictest to none; "none" is never chosen, only asked for.
LEVELS = ("bubblewrap", "landlock", "none")


class Outcome(enum.StrEnum):
    """What became of a program. Only `PASSED` is right, only `SANDBOX_ERROR` says nothing."""

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    REFUSED_OUTPUT = "refused output"
    SANDBOX_ERROR = "sandbox error"


@dataclass(frozen=True, slots=True)
class Program:
    """A program and the tests it must pass.

    Attributes:
        source: The program, run once as a module.
        tests: Code that raises if the program is wrong.
        helpers: Code that the tests may use beside the program, such as HumanEval's prompts.
        names: What the tests use of the program; nothing else of it reaches them.
        modules: Modules that the tests use if the program imported them; they get the real ones.
    """

    source: str
    tests: str
    helpers: str = ""
    names: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one program.

    Attributes:
        outcome: What became of it.
        message: Why, in one line; empty if it passed.
        seconds: Time from the moment both processes were confined.
    """

    outcome: Outcome
    message: str
    seconds: float
