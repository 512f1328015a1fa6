"""MBPP (Austin et al. 2021): a sentence and three assertions, tests of all that they name."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false

import ast
import sys
from typing import Any

from lm_eval.api.samplers import ContextSampler

from lm_eval_exl2.sandbox import Program
from lm_eval_exl2.tasks.programs import Document, ProgramTask


class Mbpp(ProgramTask):
    """The answer is the program; the tests reach every function and class that they name in it."""

    def program(self, document: Document, answer: str) -> Program:
        """The answer, with the problem's tests after its set-up code."""
        return make_program(document, answer)

    def reference(self, document: Document) -> Program:
        """The problem's own code."""
        return make_program(document, document["code"])


def make_program(document: Document, answer: str) -> Program:
    """An answer with its problem's tests, which take from it what they take from the reference."""
    tests = "\n".join([document.get("test_setup_code") or "", *document["test_list"]])
    names, modules = _names_defined_by(document["code"])
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    return Program(
        source=answer,
        tests=tests,
        names=tuple(sorted(names & used)),
        modules=tuple(sorted(modules & used)),
    )


def _names_defined_by(code: str) -> tuple[set[str], set[str]]:
    """Global names of some code, and which modules of the standard library it imports.

    A builtin's name counts, too: problem 126 asks for a function `sum`.
    """
    names, modules = set[str](), set[str]()
    for node in ast.parse(code).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.Import(names=imported):
                modules |= {each.name for each in imported if each.asname is None}
            case _:
                continue
    return names, modules & sys.stdlib_module_names


class FromSecond(ContextSampler):
    """Examples from the split's second on: problems 2, 3 and 4, those of the harness's `mbpp`."""

    def sample(self, n: int, *_arguments: Any, **_named: Any) -> list[Document]:
        """The examples, the same for each document, marked as the task's templates expect."""
        return [{**example, "is_fewshot": True} for example in list(self.df)[1 : n + 1]]
