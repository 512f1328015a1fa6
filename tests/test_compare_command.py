"""`lm-eval-exl2 compare`: exit codes, wrong usage, and the files it writes."""

import json

import pytest
import yaml
from comparing import compare, pattern, runs
from run_files import Task, rights, write_run

from lm_eval_exl2.cli import main
from lm_eval_exl2.compare.results import to_json


def run(capsys, *words):
    code = main(["compare", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


STATES = [
    ((900, 0, 0, 100), 0, "ship"),
    ((1960, 36, 0, 4), 0, "acceptable with monitoring"),
    ((1900, 80, 0, 20), 10, "marginal"),
    ((700, 200, 0, 100), 11, "do not ship"),
    ((9, 1, 0, 0), 12, "inconclusive"),
]


@pytest.mark.parametrize(("table", "code", "state"), STATES)
def test_the_exit_code_says_the_state(tmp_path, capsys, table, code, state):
    folders = runs(tmp_path, table)
    report = tmp_path / "c.json"
    found, out, _ = run(capsys, *folders, "--json", report)
    assert found == code
    assert json.loads(report.read_text())["candidates"][0]["verdict"]["state"] == state
    assert state in out


def test_which_states_fail_and_which_candidate_counts_can_be_chosen(tmp_path, capsys):
    bad = runs(tmp_path / "bad", (700, 200, 0, 100))
    good = write_run(
        tmp_path / "good", [Task("task0", rights(pattern(900, 0, 0, 100)[0]))], model="good"
    )
    assert run(capsys, *bad, good, "--quiet")[0] == 11
    assert run(capsys, *bad, good, "--quiet", "--fail-on", "marginal")[0] == 0
    assert run(capsys, *bad, good, "--quiet", "--gate", "cand")[0] == 11
    assert run(capsys, *bad, good, "--quiet", "--gate", "good")[0] == 12  # behind a failure


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fail-on", "bad"], "--fail-on 'bad', expected some of ship"),
        (["--fail-on", "ship"], "has exit code 0 and cannot fail"),
        (["--gate", "x"], "--gate 'x' is 0 candidates, there are cand"),
        (["--profile", "x"], "no profile 'x'"),
        (["--primary", "a.yaml"], "no table of primary metrics"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path, capsys, words, said):
    code, out, err = run(capsys, *runs(tmp_path, (9, 1, 0, 0)), *words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_runs_that_cannot_be_compared_are_one_line_and_exit_code_13(tmp_path, capsys):
    base, cand = runs(tmp_path, (9, 1, 0, 0))
    code, _, err = run(capsys, base, tmp_path / "missing")
    assert code == 13
    assert err == f"cannot compare: {tmp_path / 'missing'} is neither a folder nor a results file\n"
    other = write_run(
        tmp_path / "o", [Task("task0", [{"metrics": {"acc": 1.0}, "question": "new"}])]
    )
    assert "no document in common" in run(capsys, base, other)[2]
    changed = next(cand.rglob("results_*"))
    changed.write_text(changed.read_text().replace('"acc,none": 0.9', '"acc,none": 0.8'))
    code, out, _ = run(capsys, base, cand)
    assert code == 13
    assert "no known rule gives acc = 0.8" in " ".join(out.split())
    assert run(capsys)[0] == 2


def test_every_report_is_written_and_can_be_made_again_from_json(tmp_path, capsys, monkeypatch):
    folders = runs(tmp_path, (900, 30, 10, 60), names=["gsm8k"], metric="exact_match")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    kinds = ("markdown", "html", "csv", "junit", "model-card")
    first, again = (
        [word for kind in kinds for word in (f"--{kind}", str(tmp_path / f"{name}.{kind}"))]
        for name in ("first", "again")
    )
    run(capsys, *folders, *first, "--json", tmp_path / "c.json")
    run(capsys, "--from-json", tmp_path / "c.json", *again, "--quiet")
    for kind in kinds:
        text = (tmp_path / f"first.{kind}").read_text()
        assert "cand" in text
        assert text == (tmp_path / f"again.{kind}").read_text()
    assert "cand" in (tmp_path / "summary.md").read_text()


def test_all_flips_can_be_had_as_json_lines(tmp_path, capsys):
    file = tmp_path / "flips.jsonl"
    run(capsys, *runs(tmp_path, (50, 30, 10, 10)), "--quiet", "--flips", "2", "--flips-file", file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["lost"] * 30 + ["gained"] * 10
    assert lines[0] == {
        "run": "cand",
        "task": "task0",
        "kind": "lost",
        "doc_id": 50,
        "question": "task0 50",
        "target": "0",
        "baseline": "text",
        "candidate": "text",
    }


def test_two_runs_of_one_model_are_told_apart_by_their_folders(tmp_path, capsys):
    first, second = (write_run(tmp_path / name, [Task("t", rights([1]))]) for name in ("x", "y"))
    report = tmp_path / "c.json"
    run(capsys, first, second, "--json", report, "--quiet")
    found = json.loads(report.read_text())
    labels = found["baseline"]["label"], found["candidates"][0]["variant"]["label"]
    assert labels == (f"{tmp_path.name}/x", f"{tmp_path.name}/y")


def test_a_comparison_is_plain_json(tmp_path):
    text = json.dumps(to_json(compare(*runs(tmp_path, (5, 1, 1, 3)))), allow_nan=False)
    assert json.loads(text)["format"] == 1


def test_eval_results_are_of_one_full_benchmark_run(tmp_path, capsys):
    before, after = pattern(1000, 119, 100, 100)
    base, cand, other = (
        write_run(tmp_path / name, [Task("gsm8k", rights(values, "exact_match"))], model=name)
        for name, values in (("base", before), ("cand", after), ("other", after))
    )
    path = tmp_path / "results.yaml"
    run(capsys, base, cand, "--eval-results", path)
    (entry,) = yaml.safe_load(path.read_text())
    assert entry["dataset"] == {"id": "openai/gsm8k", "task_id": "gsm8k"}
    assert entry["value"] == pytest.approx(100 * 1100 / 1319, abs=0.005)
    code, out, err = run(capsys, base, cand, other, "--eval-results", path)
    assert (code, out, "name one by --gate" in err) == (2, "", True)
    code, _, err = run(capsys, *runs(tmp_path, (9, 1, 0, 0)), "--eval-results", path)
    assert (code, "no full run of a benchmark" in err) == (2, True)
