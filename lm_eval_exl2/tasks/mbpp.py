"""MBPP (Austin et al. 2021): a sentence and three assertions, tests of all that they name."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false

from typing import Any

from lm_eval.api.samplers import ContextSampler

from lm_eval_exl2.sandbox import Program
from lm_eval_exl2.tasks.programs import Document, ProgramTask


class Mbpp(ProgramTask):
    """The answer is the program; the tests reach every function and class that they name in it."""

    def program(self, document: Document, answer: str) -> Program:
        """The answer, with the problem's tests after its set-up code."""
        setup = document.get("test_setup_code") or ""
        return Program(source=answer, tests="\n".join([setup, *document["test_list"]]))

    def reference(self, document: Document) -> Program:
        """The problem's own code."""
        return self.program(document, document["code"])


class FromSecond(ContextSampler):
    """Examples from the split's second on: problems 2, 3 and 4, those of the harness's `mbpp`."""

    def sample(self, n: int, *_arguments: Any, **_named: Any) -> list[Document]:
        """The examples, the same for each document, marked as the task's templates expect."""
        return [{**example, "is_fewshot": True} for example in list(self.df)[1 : n + 1]]
