"""HumanEval's solutions, right, wrong and changed at random: programs whose verdict is compared."""

from __future__ import annotations

import ast
import copy
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# What a right solution returns, in a list: no test of HumanEval accepts that.
_WRONG = "\n\ndef _wrong(function):\n    return lambda *arguments: [function(*arguments)]\n\n"

_OPERATORS: dict[type[ast.AST], list[type[ast.AST]]] = {
    ast.Add: [ast.Sub, ast.Mult],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Add, ast.Pow],
    ast.Div: [ast.FloorDiv, ast.Mult],
    ast.FloorDiv: [ast.Div],
    ast.Mod: [ast.FloorDiv],
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.GtE],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
}


def canonical(problem: dict[str, Any]) -> str:
    """The problem's own solution."""
    return problem["prompt"] + problem["canonical_solution"]


def wrong(problem: dict[str, Any]) -> str:
    """A solution that is wrong on purpose."""
    name = problem["entry_point"]
    return canonical(problem) + f"{_WRONG}{name} = _wrong({name})\n"


def mutants(problems: Sequence[dict[str, Any]], count: int, *, seed: int) -> Iterator[Any]:
    """`count` pairs of a problem and its solution with one thing changed, no two alike."""
    chosen = random.Random(seed)
    seen: set[str] = set()
    for number in range(100 * count):
        problem = problems[number % len(problems)]
        source = _mutate(canonical(problem), problem["entry_point"], chosen)
        if source is not None and source not in seen:
            seen.add(source)
            yield problem, source
        if len(seen) == count:
            return


def _mutate(source: str, name: str, chosen: random.Random) -> str | None:
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    body = next(function for function in functions if function.name == name)
    nodes = [node for node in ast.walk(body) if _changes(node)]
    if not nodes:
        return None
    node = chosen.choice(nodes)
    chosen.choice(_changes(node))()
    return ast.unparse(ast.fix_missing_locations(tree))


def _changes(node: ast.AST) -> list[Any]:
    """What can be done to a node, as functions that do it in place."""

    def replace(field: str, value: Any) -> Any:
        return lambda: setattr(node, field, value)

    changes = []
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        changes = [replace("op", kind()) for kind in _OPERATORS.get(type(node.op), [])]
    elif isinstance(node, ast.Compare):
        others = _OPERATORS.get(type(node.ops[0]), [])
        changes = [replace("ops", [kind(), *node.ops[1:]]) for kind in others]
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        changes = [replace("value", node.value + 1), replace("value", node.value - 1)]
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        changes = [replace("value", not node.value)]
    elif isinstance(node, ast.Return) and node.value is not None:
        changes = [replace("value", None), replace("value", copy.deepcopy(_NOTHING))]
    elif isinstance(node, ast.If | ast.While):
        changes = [replace("test", ast.UnaryOp(ast.Not(), node.test))]
    elif isinstance(node, ast.For) and len(node.body) > 1:
        changes = [replace("body", node.body[:-1])]
    return changes


_NOTHING = ast.List([], ast.Load())
