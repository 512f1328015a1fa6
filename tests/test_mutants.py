"""The changed solutions that the sandbox benchmark compares verdicts on."""

import ast
import json
from pathlib import Path

import mutants
import pytest

FILE = Path(__file__).parents[1] / "lm_eval_exl2/demo/data/humaneval_test.jsonl"
PROBLEMS = [json.loads(line) for line in FILE.read_text().splitlines()]


def passes(problem, source):
    """In this interpreter: the problems are this package's own."""
    try:
        exec(f"{source}\n{problem['test']}\ncheck({problem['entry_point']})", {})  # noqa: S102
    except Exception:  # noqa: BLE001 - whatever a wrong solution raises
        return False
    return True


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem["entry_point"])
def test_canonical_solutions_pass_and_wrong_ones_fail(problem):
    assert passes(problem, mutants.canonical(problem))
    assert not passes(problem, mutants.wrong(problem))


def test_mutants_differ_from_each_other_and_from_the_solution_and_repeat_with_the_seed():
    found = list(mutants.mutants(PROBLEMS, 60, seed=0))
    texts = [source for _, source in found]
    assert len(set(texts)) == 60
    solutions = {ast.unparse(ast.parse(mutants.canonical(problem))) for problem in PROBLEMS}
    assert not solutions & set(texts)
    assert list(mutants.mutants(PROBLEMS, 60, seed=0)) == found
