"""Does the sandbox hold, and does it judge as HF's code_eval does? Writes results/sandbox.json.

    python benchmarks/sandbox.py --data DATA [--code-eval CODE_EVAL] [--mbpp MBPP]

DATA is a folder laid out as on the hub, with `openai/openai_humaneval`. CODE_EVAL is a folder with
the metric's `execute.py` as it is on the hub (evaluate-metric/code_eval); without it verdicts are
not compared. MBPP is the data set's own file (`mbpp.jsonl`, 974 problems). Each row is one level of
the sandbox as one user: the corpus of `tests/sandbox_corpus`, all canonical solutions, as many
wrong ones, and mutants. Run it as root: only root can make the rows of another user and of a
container.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mutants
from environment import ROOT, environment, write_result

RESULT = Path(__file__).parent / "results" / "sandbox.json"
_SCRIPT = ROOT / "tests/sandbox_corpus/run.py"
_USER = 1234
_CODE_EVAL_S = 3.0  # its default time limit
_ROWS = [
    ("bubblewrap", "root", []),
    ("bubblewrap", "user", []),
    ("landlock", "root", []),
    ("landlock", "user", []),
    ("landlock", "root", ["--container"]),
    ("landlock", "user", ["--container"]),
]


def load_programs(data: Path, count: int) -> dict[str, list[dict[str, Any]]]:
    """Canonical, wrong and mutated solutions of HumanEval with their tests."""
    import pandas as pd

    (file,) = (data / "openai/openai_humaneval").rglob("test-*.parquet")
    problems: list[dict[str, Any]] = pd.read_parquet(file).to_dict("records")

    def program(problem: dict[str, Any], source: str) -> dict[str, Any]:
        name = problem["entry_point"]
        return {
            "source": source,
            "tests": f"{problem['test']}\ncheck({name})",
            "helpers": problem["prompt"],
            "names": [name],
        }

    return {
        "canonical": [program(each, mutants.canonical(each)) for each in problems],
        "wrong": [program(each, mutants.wrong(each)) for each in problems],
        "mutants": [program(*pair) for pair in mutants.mutants(problems, count, seed=0)],
    }


def judge_as_code_eval(folder: Path, programs: list[dict[str, Any]]) -> tuple[list[bool], float]:
    """What HF's code_eval says of programs, and how many it judges per second."""
    spec = importlib.util.spec_from_file_location("code_eval_execute", folder / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    def check(numbered: tuple[int, dict[str, Any]]) -> bool:
        number, each = numbered
        text = each["source"] + "\n" + each["tests"]
        return module.check_correctness(text, _CODE_EVAL_S, number, 0)["passed"]

    began = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
        passed = list(executor.map(check, enumerate(programs)))
    return passed, len(programs) / (time.perf_counter() - began)


def judge_mbpp(file: Path, code_eval: Path | None, count: int) -> dict[str, Any]:
    """MBPP's own solutions and mutants of them, as the programs that the task makes of them."""
    from lm_eval_exl2.sandbox import Sandbox
    from lm_eval_exl2.tasks.mbpp import make_program

    problems = [json.loads(line) for line in file.read_text().splitlines()]
    changed = list(mutants.mutants([_as_humaneval(each) for each in problems], count, seed=0))
    pairs = [(each, each["code"]) for each in problems] + changed
    sandbox = Sandbox()
    outcomes = [each.outcome for each in sandbox.judge([make_program(*pair) for pair in pairs])]
    references, passed = outcomes[: len(problems)], [each == "passed" for each in outcomes]
    numbers = [each["task_id"] for each in problems]
    found = {
        "level": sandbox.level,
        "problems": len(problems),
        "passed": references.count("passed"),
        "failing": [n for n, each in zip(numbers, references, strict=True) if each != "passed"],
        "mutants": len(changed),
    }
    if code_eval:
        plain = [
            {"source": source, "tests": make_program(problem, source).tests}
            for problem, source in changed
        ]
        peer, _ = judge_as_code_eval(code_eval, plain)
        agree = [a == b for a, b in zip(passed[len(problems) :], peer, strict=True)]
        disagreeing = zip(changed, agree, strict=True)
        found["mutants_passed"] = sum(peer)
        found["mutants_agreeing"] = sum(agree)
        found["mutants_disagreeing"] = [
            pair[0]["task_id"] for pair, same in disagreeing if not same
        ]
    return found


def _as_humaneval(problem: dict[str, Any]) -> dict[str, Any]:
    """The fields that mutants are made from."""
    functions = [n for n in ast.parse(problem["code"]).body if isinstance(n, ast.FunctionDef)]
    return problem | {
        "prompt": "",
        "canonical_solution": problem["code"],
        "entry_point": functions[-1].name,
    }


def python_of(user: str) -> str:
    """This Python, or the system's for a user who may not read this one."""
    if user == "root":
        return sys.executable
    real = os.path.realpath(sys.executable)
    try:
        subprocess.run([real, "-S", "-c", ""], user=_USER, cwd="/", check=True)
    except (PermissionError, subprocess.CalledProcessError):
        return "/usr/bin/python3"
    return real


def measure_row(level: str, user: str, flags: list[str], programs: Path) -> dict[str, Any]:
    """One level as one user."""
    words = [python_of(user), "-B", str(_SCRIPT), "--level", level, "--programs", str(programs)]
    words += flags + (["--user", str(_USER)] if user == "user" else [])
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{level} as {user}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def summarize(found: dict[str, Any], programs: dict[str, Any], peer: list[bool] | None) -> Any:
    """The row of the results file."""
    corpus = found["programs"]
    outcomes = found["judged"]["outcomes"]
    sizes = {name: len(part) for name, part in programs.items()}
    right = outcomes[: sizes["canonical"]]
    wrong = outcomes[sizes["canonical"] : sizes["canonical"] + sizes["wrong"]]
    changed = outcomes[sizes["canonical"] + sizes["wrong"] :]
    return {
        "python": found["python"],
        "programs": len(corpus),
        "fakes": sum(bool(each.get("passed")) for each in corpus),
        "effects": sum(bool(each.get("effect")) for each in corpus),
        "hangs": sum(bool(each.get("hang") or each.get("unexpected")) for each in corpus),
        "sandbox_errors": sum(each["sandbox_error"] for each in corpus)
        + outcomes.count("sandbox error"),
        "left_behind": len(found["leftovers"]),
        "canonical": sizes["canonical"],
        "canonical_passed": right.count("passed"),
        "wrong": sizes["wrong"],
        "wrong_failed": len(wrong) - wrong.count("passed"),
        "mutants": len(changed),
        "mutants_passed": changed.count("passed"),
        "mutants_agreeing": None
        if peer is None
        else sum((a == "passed") == b for a, b in zip(changed, peer, strict=True)),
        "programs_per_second": round(found["judged"]["canonical_per_second"], 1),
    }


def main() -> None:
    """Measure and write the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--code-eval", type=Path)
    parser.add_argument("--mbpp", type=Path)
    parser.add_argument("--mutants", type=int, default=500)
    args = parser.parse_args()
    where = environment()
    programs = load_programs(args.data, args.mutants)
    every = [each for part in programs.values() for each in part]
    peer: dict[str, Any] = {}
    mutants_of_peer: list[bool] | None = None
    if args.code_eval:
        passed, speed = judge_as_code_eval(args.code_eval, programs["canonical"])
        mutants_of_peer, _ = judge_as_code_eval(args.code_eval, programs["mutants"])
        peer = {
            "canonical_passed": sum(passed),
            "mutants_passed": sum(mutants_of_peer),
            "programs_per_second": round(speed, 1),
        }
    rows = []
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(every, file)
        file.flush()
        Path(file.name).chmod(0o644)
        for level, user, flags in _ROWS:
            found = measure_row(level, user, flags, Path(file.name))
            row = {"level": level, "user": user, "container": bool(flags)}
            rows.append({**row, **summarize(found, programs, mutants_of_peer)})
            print(rows[-1], file=sys.stderr)
    command = "python benchmarks/sandbox.py --data DATA"
    if args.code_eval:
        command += " --code-eval CODE_EVAL"
    if args.mbpp:
        command += " --mbpp MBPP"
    mbpp = judge_mbpp(args.mbpp, args.code_eval, args.mutants) if args.mbpp else {}
    found = {"rows": rows, "code_eval": peer, "mbpp": mbpp}
    write_result(RESULT, {**found, **where, "command": command})


if __name__ == "__main__":
    main()
