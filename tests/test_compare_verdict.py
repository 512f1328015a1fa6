"""What `compare` decides on hand-made runs, and which evidence it does not take."""

import json

import numpy as np
import pytest
from comparing import compare, pattern, runs
from run_files import Task, rights, write_run

from lm_eval_exl2.compare.guards import is_sampled
from lm_eval_exl2.errors import ComparisonError


def test_limited_runs_settle_nothing_unless_accepted(tmp_path):
    values = [1.0] * 2000
    folder = write_run(tmp_path, [Task("t", rights(values), original=5000)])
    (found,) = compare(folder, folder).candidates
    assert found.verdict.state == "inconclusive"
    assert "--limit takes the first documents" in found.verdict.explanation
    assert found.units[0].full_documents == 5000
    assert compare(folder, folder, accept_limited=True).candidates[0].verdict.state == "ship"


def test_quick_runs_can_refute_but_not_support(tmp_path):
    config = {"metadata": {"screening": "this size ..."}}

    def quick(name, right):
        values = [1.0] * right + [0.0] * (1000 - right)
        return write_run(tmp_path / name, [Task("q", rights(values), config=config)], model=name)

    base, same, worse = quick("a", 900), quick("b", 900), quick("c", 500)
    assert compare(base, same).candidates[0].verdict.state == "inconclusive"
    assert compare(base, worse).candidates[0].verdict.state == "do not ship"


def test_a_group_with_missing_tasks_is_partial_and_never_supported(tmp_path):
    tasks = [Task(f"mmlu_{at}", rights([1.0] * 900 + [0.0] * 100)) for at in range(3)]
    base = write_run(
        tmp_path / "a", tasks, model="base", groups={"mmlu": [t.name for t in tasks]},
        group_results={"mmlu": {"acc,none": 0.9}},
    )  # fmt: skip
    cand = write_run(tmp_path / "b", tasks[:1], model="cand")
    (found,) = compare(base, cand, profile="summarisation").candidates
    unit = found.units[0]
    assert (unit.documents, unit.baseline_documents, unit.full_documents) == (1000, 3000, 3000)
    assert unit.is_partial
    assert found.verdict.state == "inconclusive"
    assert "2 of 3 tasks of mmlu are missing" in found.verdict.explanation


def test_a_single_subject_is_not_the_benchmark_that_a_cap_means(tmp_path):
    folder = write_run(tmp_path, [Task("mmlu_anatomy", rights([1.0] * 900 + [0.0] * 100))])
    (found,) = compare(folder, folder, profile="summarisation").candidates
    assert found.verdict.state == "cannot compare"
    assert found.verdict.missing == ["mmlu"]


def test_clusters_reach_the_average_and_the_verdict(tmp_path):
    lost = np.zeros(1500)
    lost[:25] = 1  # one passage of 25 questions
    folders = []
    for name, values in (("base", np.ones(1500)), ("cand", 1 - lost)):
        rows = [
            {"metrics": {"acc": float(value)}, "doc": {"passage": at // 25, "number": at}}
            for at, value in enumerate(values)
        ]
        folders.append(write_run(tmp_path / name, [Task("t", rows)], model=name))
    (alone,) = compare(*folders, cluster="").candidates
    (together,) = compare(*folders).candidates
    assert alone.verdict.state == "acceptable with monitoring"
    assert together.verdict.state == "inconclusive"
    assert together.average.relative.upper >= together.units[0].relative.upper - 1e-9
    assert together.units[0].non_inferior_p is None


def test_the_average_of_one_skewed_task_is_bounded_as_the_task_is(tmp_path):
    before = np.linspace(0.3, 0.9, 125)
    after = before - np.where(np.arange(125) == 9, 0.8, np.linspace(0, 1e-4, 125))
    folders = [
        write_run(tmp_path / name, [Task("graded", rights([float(v) for v in values]))], model=name)
        for name, values in (("base", before), ("cand", np.clip(after, 0, 1)))
    ]
    (found,) = compare(*folders).candidates
    assert "BCa" in found.units[0].absolute.method
    assert found.average.absolute.upper >= found.units[0].absolute.upper - 1e-9


def test_a_candidate_whose_score_is_nan_is_refused(tmp_path):
    base, cand = runs(tmp_path, (900, 0, 0, 100), (80, 5, 5, 10))
    file = next(cand.rglob("results_*"))
    content = json.loads(file.read_text())
    content["results"]["task1"]["acc,none"] = float("nan")
    file.write_text(json.dumps(content))
    with pytest.raises(ComparisonError, match="acc is nan"):
        compare(base, cand)


def test_a_task_that_the_candidate_lacks_forbids_support(tmp_path):
    base, cand = runs(tmp_path, (900, 0, 0, 100), (900, 0, 0, 100))
    short = write_run(
        tmp_path / "s", [Task("task0", rights(pattern(900, 0, 0, 100)[1]))], model="s"
    )
    assert compare(base, cand).candidates[0].verdict.state == "ship"
    (found,) = compare(base, short).candidates
    assert found.verdict.state == "inconclusive"
    assert "task1 not compared" in found.verdict.explanation
    (found,) = compare(base, short, profile="mlperf-99").candidates
    assert found.verdict.state == "cannot compare"
    assert found.verdict.missing == ["task1"]


def test_a_run_killed_while_writing_is_compared_on_what_there_is(tmp_path):
    base, cand = runs(tmp_path, (900, 30, 0, 70))
    file = next(cand.rglob("samples_*"))
    file.write_bytes(file.read_bytes()[:-50])
    (found,) = compare(base, cand).candidates
    assert found.units[0].documents == 999
    assert found.units[0].is_partial
    assert any("ends in half a line" in each for each in found.units[0].warnings)


def test_either_sides_limit_leaves_everything_open(tmp_path):
    values = [1.0] * 2000
    full = write_run(tmp_path / "a", [Task("t", rights(values))], model="a")
    part = write_run(tmp_path / "b", [Task("t", rights(values), original=5000)], model="b")
    for one, other in ((full, part), (part, full)):
        assert compare(one, other).candidates[0].verdict.state == "inconclusive"


def test_a_candidate_that_is_not_settled_ends_the_sequence_too(tmp_path):
    def sized(name, right, bits):
        values = [1.0] * right + [0.0] * (400 - right)
        config = {"quantization_config": {"bits": bits}}
        return write_run(tmp_path / name, [Task("t", rights(values))], model=name, config=config)

    found = compare(
        sized("base", 390, 16), sized("large", 382, 6), sized("small", 390, 3)
    ).candidates
    assert [each.verdict.evidence for each in found] == ["not settled", "not settled"]
    assert "the sequence of tests ends there" in found[1].verdict.explanation


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        ({"do_sample": True, "temperature": 0.7}, True),
        ({"do_sample": True}, True),
        ({"temperature": 0.8}, True),
        ({"temperature": 0.0}, False),
        ({"do_sample": False, "temperature": 0.7}, False),
        ({"do_sample": True, "temperature": 0}, False),
        ({}, False),
    ],
)
def test_sampled_runs_are_recognised(given, sampled):
    assert is_sampled({"generation_kwargs": given}) == sampled


def test_few_skewed_values_are_no_support(tmp_path):
    """With bounds that are known to be too narrow there."""
    random = np.random.default_rng(1)
    before = random.random(40)
    after = before - np.where(np.arange(40) == 7, 0.2, 1e-6)
    folders = [
        write_run(tmp_path / name, [Task("graded", rights([float(v) for v in values]))], model=name)
        for name, values in (("base", before), ("cand", after))
    ]
    (found,) = compare(*folders).candidates
    assert "too skewed" in found.units[0].difference.method
    assert found.verdict.evidence == "not settled"
    assert "too skewed for so few documents" in found.verdict.explanation


def test_candidates_go_from_most_bits_to_least_and_nothing_is_supported_behind_a_failure(tmp_path):
    def sized(name, right, bits):
        values = [1.0] * right + [0.0] * (2000 - right)
        return write_run(
            tmp_path / name,
            [Task("t", rights(values))],
            model=name,
            config={"quantization_config": {"bits": bits}},
        )

    base = sized("base", 1600, 16)
    folders = [sized("small", 1600, 2.5), sized("large", 1600, 6), sized("middle", 1500, 4)]
    found = compare(base, *folders).candidates
    assert [each.variant.label for each in found] == ["large", "middle", "small"]
    assert [each.verdict.state for each in found] == ["ship", "do not ship", "inconclusive"]
    assert "middle, which has more bits, is not supported" in found[2].verdict.explanation


def test_what_only_one_run_has_is_named(tmp_path):
    base = write_run(
        tmp_path / "a", [Task("t", rights([1] * 9)), Task("u", rights([1]))], model="base"
    )
    cand = write_run(
        tmp_path / "b", [Task("t", rights([1] * 9)), Task("v", rights([1]))], model="cand"
    )
    (found,) = compare(base, cand).candidates
    assert found.not_compared == {
        "u": "u was not run with cand",
        "v": "v was not run with base",
    }
    lonely = write_run(tmp_path / "c", [Task("v", rights([1]))], model="lonely")
    with pytest.raises(ComparisonError, match="nothing of lonely can be compared"):
        compare(base, lonely)


def test_the_leaderboards_average_is_printed_where_all_its_tasks_were_run(tmp_path):
    counted = [
        ("exl2_quick_mmlu", "acc", "none", 0.6),
        ("exl2_quick_hellaswag", "acc_norm", "none", 0.8),
        ("exl2_quick_arc_challenge", "acc_norm", "none", 0.5),
        ("exl2_quick_winogrande", "acc", "none", 0.7),
        ("exl2_quick_truthfulqa", "acc", "none", 0.4),
        ("exl2_quick_gsm8k", "exact_match", "strict-match", 0.3),
    ]
    tasks = [
        Task(
            name, rights([1.0] * round(10 * score) + [0.0] * (10 - round(10 * score)), metric), key
        )
        for name, metric, key, score in counted
    ]
    folder = write_run(tmp_path / "a", tasks, model="six")
    fewer = write_run(tmp_path / "b", tasks[1:], model="five")
    notes = compare(folder, fewer).notes
    assert "six: average of Open LLM Leaderboard v1 (quick runs): 55.00" in notes
    assert not any(note.startswith("five: average") for note in notes)


def test_an_estimate_from_few_documents_has_its_published_error_beside_it(tmp_path):
    folder = write_run(tmp_path, [Task("tinyMMLU", rights([1.0] * 70 + [0.0] * 30, "acc_norm"))])
    found = compare(folder, folder)
    assert any(note.startswith("tinyMMLU: an estimate") for note in found.notes)
    assert found.candidates[0].verdict.state == "inconclusive"


def test_settings_that_differ_are_listed(tmp_path):
    base = write_run(
        tmp_path / "a", [Task("t", rights([1]))], model="a", config={"model_dtype": "torch.float16"}
    )
    cand = write_run(
        tmp_path / "b",
        [Task("t", rights([1]), version=2.0)],
        model="b",
        config={"model_dtype": "float32"},
    )
    rows = dict(compare(base, cand).unequal_settings)
    assert rows == {"model_dtype": ["float16", "float32"], "version of t": ["1.0", "2.0"]}
