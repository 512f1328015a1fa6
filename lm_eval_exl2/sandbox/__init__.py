"""Runs model-written programs against tests, so that neither pass nor effect can be had by force.

Two confined processes per program: one has the program, the other the tests. Arguments and exact
builtin values cross between them (`inside/values.py`), and the verdict leaves on a pipe that the
program's process does not have. So what a program can do to be called right is to answer right.

    program -> judge -> launch (bubblewrap | landlock | none) -> two processes (inside/) -> verdict

`Sandbox` (`pool.py`) is the way in. Standard library only.
"""

from lm_eval_exl2.sandbox.pool import Measured, Sandbox
from lm_eval_exl2.sandbox.programs import LEVELS, Outcome, Program, Verdict

__all__ = ["LEVELS", "Measured", "Outcome", "Program", "Sandbox", "Verdict"]
