"""Published scores: Newcombe's printed examples, refuted or open, never supported."""

import json
from argparse import ArgumentParser

import pytest
from comparing import pattern
from run_files import Task, choice, rights, write_run

from lm_eval_exl2.compare import command
from lm_eval_exl2.compare.statistics import unpaired_drop, unpaired_moments

HEADER = "task,metric,value,n,source\n"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998), table II, method 10
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
    ],
)
def test_unpaired_bounds_are_those_that_newcombe_printed(first, second, expected):
    shares = [part for won, of in (first, second) for part in (won / of, of)]
    assert unpaired_drop(*shares, 0.025) == pytest.approx(expected, abs=5.1e-5)
    swapped = unpaired_drop(*shares[2:], *shares[:2], 0.025)
    assert swapped == pytest.approx((-expected[1], -expected[0]), abs=5.1e-5)


def test_moments_of_independent_shares_add_their_variances():
    found = unpaired_moments(0.5, 100, 0.4, 400)
    assert found.baseline_variance == pytest.approx(0.25 / 104)
    share = 162 / 404
    assert found.drop_variance == pytest.approx(0.25 / 104 + share * (1 - share) / 404)
    assert found.covariance == found.baseline_variance
    assert unpaired_moments(1.0, 10, 1.0, 10).drop_variance > 0


def _compare(capsys, *words):
    parser = ArgumentParser()
    command.add_arguments(parser)
    code = command.run(parser.parse_args([str(word) for word in words]))
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def _published(tmp_path, text, name="published.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def _run(tmp_path, right, *, name="cand", documents=1000):
    values = [1.0] * right + [0.0] * (documents - right)
    return write_run(tmp_path / name, [Task("arc_easy", rights(values, "acc_norm"))], model=name)


@pytest.mark.parametrize(
    ("right", "code", "evidence"), [(900, 12, "not settled"), (400, 11, "refuted")]
)
def test_a_published_score_can_refute_and_never_support(tmp_path, capsys, right, code, evidence):
    scores = _published(tmp_path, f"{HEADER}arc_easy,acc_norm,0.9,1000000,the card\n")
    report = tmp_path / "report.json"
    run = _run(tmp_path, right)
    words = ("--baseline-scores", scores, run, "--json", report, "--quiet")
    assert _compare(capsys, *words)[0] == code
    (found,) = json.loads(report.read_text())["candidates"]
    assert found["verdict"]["evidence"] == evidence
    (unit,) = found["units"]
    assert unit["absolute"]["estimate"] == pytest.approx(90 - right / 10)
    assert unit["relative"]["estimate"] == pytest.approx((0.9 - right / 1000) / 0.009)
    assert unit["flips"] is None
    lower, upper = unpaired_drop(0.9, 1e6, right / 1000, 1000, 0.05)
    assert unit["absolute"]["lower"] == pytest.approx(100 * lower)
    assert unit["absolute"]["upper"] == pytest.approx(100 * upper)


def test_a_group_is_compared_by_its_own_rule(tmp_path, capsys):
    parts = [Task("mmlu_a", rights([1.0] * 30 + [0.0] * 10)), Task("mmlu_b", rights([1.0] * 10))]
    run = write_run(
        tmp_path / "cand", parts, groups={"mmlu": ["mmlu_a", "mmlu_b"]},
        group_results={"mmlu": {"acc,none": 0.8}},
    )  # fmt: skip
    yaml = "- {task: mmlu, metric: acc, value: 0.84, n: 14042, source: a paper}\n"
    report = tmp_path / "report.json"
    _compare(
        capsys,
        "--baseline-scores",
        _published(tmp_path, yaml, "scores.yaml"),
        run,
        "--json",
        report,
    )
    (unit,) = json.loads(report.read_text())["candidates"][0]["units"]
    assert unit["candidate"]["estimate"] == pytest.approx(0.8)
    assert (unit["rule"], unit["documents"], unit["baseline_documents"]) == ("micro", 50, 14042)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task,metric\narc_easy,acc_norm\n", "entry 1: value is missing"),
        (f"{HEADER}arc_easy,acc_norm,0.9,100,\n", "entry 1: source is missing"),
        (f"{HEADER}arc_easy,acc_norm,high,100,card\n", "must be numbers"),
        (f"{HEADER}arc_easy,acc_norm,0.9,0,card\n", "expected a score"),
        (HEADER, "holds no list"),
        (HEADER + "arc_easy,acc_norm,0.9,9,card\n" * 2, "several scores of arc_easy"),
        (f"{HEADER}arc_easy,acc_norm,90.1,100,card\n", "divide per cent by 100"),
        (f"{HEADER}gsm8k,exact_match,0.9,100,card\n", "cand has no exact_match of gsm8k"),
    ],
)
def test_a_file_that_says_too_little_is_one_clear_line(tmp_path, capsys, text, said):
    scores, run = _published(tmp_path, text), _run(tmp_path, 900)
    code, _, err = _compare(capsys, "--baseline-scores", scores, run)
    assert code in (2, 13)
    assert said in err
    assert err.count("\n") == 1


def test_what_needs_samples_of_the_baseline_is_refused(tmp_path, capsys):
    scores, run = _published(tmp_path, f"{HEADER}arc_easy,acc_norm,0,9,card\n"), _run(tmp_path, 9)
    code, _, err = _compare(capsys, "--baseline-scores", scores, run, "--adjacent")
    assert (code, "--adjacent needs a BASELINE" in err) == (2, True)
    assert _compare(capsys, "--baseline-scores", scores)[0] == 2
    # A published score of 0 has no relative drop.
    assert _compare(capsys, "--baseline-scores", scores, run)[0] == 13


def test_a_published_score_at_chance_has_no_relative_drop(tmp_path, capsys):
    rows = [choice([-1.0, -2.0, -3.0, -4.0], 0, "acc_norm") for _ in range(20)]
    run = write_run(tmp_path / "cand", [Task("arc_easy", rows)])
    scores = _published(tmp_path, f"{HEADER}arc_easy,acc_norm,0.3,100,a card\n")
    report = tmp_path / "report.json"
    code, *_ = _compare(capsys, "--baseline-scores", scores, run, "--json", report)
    (found,) = json.loads(report.read_text())["candidates"]
    assert found["units"][0]["left_out"] == "the baseline's interval reaches chance (25%)"
    assert (found["units"][0]["relative"], found["average"], code) == (None, None, 13)


def test_clusters_widen_what_a_published_score_can_say(tmp_path, capsys):
    rows = [
        {"metrics": {"acc_norm": float(at < 300)}, "doc": {"passage": at // 10, "number": at}}
        for at in range(500)
    ]
    run = write_run(tmp_path / "cand", [Task("arc_easy", rows)])
    scores = _published(tmp_path, f"{HEADER}arc_easy,acc_norm,0.6,5000,a card\n")
    report = tmp_path / "report.json"
    _compare(capsys, "--baseline-scores", scores, run, "--json", report)
    (unit,) = json.loads(report.read_text())["candidates"][0]["units"]
    # 50 passages of 10 questions with the same answer each: 50 units (49 degrees of freedom).
    of = 50 * 49 / 50 * 500 / 499
    lower, upper = unpaired_drop(0.6, 10 * of, 0.6, of, 0.05)
    assert unit["absolute"]["lower"] == pytest.approx(100 * lower)
    assert unit["absolute"]["upper"] == pytest.approx(100 * upper)


def test_the_whole_table_of_counts_is_not_needed_for_the_score(tmp_path, capsys):
    before, after = pattern(700, 100, 50, 150)
    base, cand = (
        write_run(tmp_path / name, [Task("arc_easy", rights(values, "acc_norm"))], model=name)
        for name, values in (("base", before), ("cand", after))
    )
    paired, alone = tmp_path / "paired.json", tmp_path / "alone.json"
    scores = _published(tmp_path, f"{HEADER}arc_easy,acc_norm,0.8,1000,our own run\n")
    _compare(capsys, base, cand, "--json", paired, "--quiet")
    _compare(capsys, "--baseline-scores", scores, cand, "--json", alone, "--quiet")
    one, two = (
        json.loads(path.read_text())["candidates"][0]["units"][0] for path in (paired, alone)
    )
    assert one["absolute"]["estimate"] == pytest.approx(two["absolute"]["estimate"])
    assert one["relative"]["upper"] < two["relative"]["upper"]


def test_a_mean_of_tasks_is_as_precise_as_its_smallest_task_allows(tmp_path, capsys):
    parts = [
        Task("m_a", rights([1.0] * 6 + [0.0] * 4)),
        Task("m_b", rights([1.0] * 900 + [0.0] * 100)),
    ]
    run = write_run(
        tmp_path / "cand", parts, groups={"m": ["m_a", "m_b"]},
        group_results={"m": {"acc,none": 0.75}},
    )  # fmt: skip
    report = tmp_path / "report.json"
    scores = _published(tmp_path, f"{HEADER}m,acc,0.8,1000000,a paper\n")
    _compare(capsys, "--baseline-scores", scores, run, "--json", report, "--quiet")
    (unit,) = json.loads(report.read_text())["candidates"][0]["units"]
    # Two tasks of weight 1/2: the variance of n documents with 1/n = (1/10 + 1/1000) / 4. The
    # published score is a mean of the same tasks, so as much is lost of its documents.
    documents = 4 / (1 / 10 + 1 / 1000)
    lower, _ = unpaired_drop(0.8, 1e6 * documents / 1010, 0.75, documents, 0.05)
    assert unit["rule"] == "macro"
    assert unit["absolute"]["lower"] == pytest.approx(100 * lower)
