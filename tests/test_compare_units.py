"""What counts, and what is only shown: quick runs, scores without pairs, choices asked twice."""

import pytest
from comparing import compare
from run_files import Task, choice, rights, write_run

from lm_eval_exl2.compare.render.from_json import from_json
from lm_eval_exl2.compare.render.markdown import to_markdown
from lm_eval_exl2.compare.results import to_json

SCREENING = {"metadata": {"screening": "this size ..."}}


def _values(right, documents):
    return rights([1.0] * right + [0.0] * (documents - right), "exact_match")


def _gsm8k(folder, model, *, quick, full):
    tasks = [
        Task("exl2_quick_gsm8k", _values(quick, 200), filter="strict-match", config=SCREENING),
        Task("gsm8k", _values(full, 1000), filter="strict-match"),
    ]
    return write_run(folder / model, tasks, model=model)


@pytest.mark.parametrize("drop", ["relative", "absolute"])
def test_a_quick_run_does_not_count_beside_the_benchmark_it_is_a_part_of(tmp_path, drop):
    base = _gsm8k(tmp_path, "base", quick=180, full=900)
    cand = _gsm8k(tmp_path, "cand", quick=20, full=900)
    (found,) = compare(base, cand, profile="math-tutor", drop=drop).candidates
    assert found.average.units == ["gsm8k"]
    assert found.average.left_out == {"exl2_quick_gsm8k": "gsm8k counts, which it is a part of"}
    assert [each.name for each in found.verdict.demands] == ["average", "gsm8k"]
    assert found.verdict.state == "ship"


def test_a_score_whose_rule_is_not_known_is_shown_without_pairs(tmp_path):
    config = {"metric_list": [{"metric": "acc_norm", "aggregation": "<function agg_gpirt>"}]}

    def run(name, estimate, right):
        tiny = Task(
            "tinyMMLU",
            rights([1.0] * 70 + [0.0] * 30, "acc_norm"),
            config=config,
            scores={"acc_norm": estimate},
        )
        full = Task("t", rights([1.0] * right + [0.0] * (1000 - right)))
        return write_run(tmp_path / name, [tiny, full], model=name)

    (found,) = compare(run("base", 0.62, 900), run("cand", 0.41, 900)).candidates
    (alone,) = found.scores_only
    assert (alone.name, alone.metric) == ("tinyMMLU", "acc_norm")
    assert (alone.baseline, alone.candidate) == (0.62, 0.41)
    assert alone.published_error == 0.016  # arXiv 2402.14992, gp-IRT, MMLU
    assert "no known rule gives acc_norm = 0.62" in alone.reason
    assert found.average.units == ["t"]
    assert found.verdict.state == "ship"


def test_a_group_whose_rule_is_not_known_falls_to_its_tasks(tmp_path):
    tasks = [Task("a", rights([1.0, 0.0]), scores={"acc": 0.3}), Task("b", rights([1.0] * 20))]
    folder = write_run(
        tmp_path, tasks, groups={"g": ["a", "b"]}, group_results={"g": {"acc,none": 0.65}}
    )
    (found,) = compare(folder, folder).candidates
    assert [unit.name for unit in found.units] == ["b"]
    assert [each.name for each in found.scores_only] == ["a"]


def test_choices_asked_again_without_context_are_no_choices(tmp_path):
    row = choice([-3.0, -1.0, -2.0, -4.0], right=1)
    again = {
        f"gen_args_{at + 4}": {**each, "arg_0": ""}
        for at, each in enumerate(row["arguments"].values())
    }
    # Without the context the last choice is by far the likeliest: it was not chosen for that.
    row["filtered_resps"] = [*row["filtered_resps"], *([str(at - 9.0), "False"] for at in range(4))]
    row["filtered_resps"][-1][0] = "-0.5"
    row["arguments"] |= again
    folder = write_run(tmp_path, [Task("t", [row] * 40)])
    (found,) = compare(folder, folder).candidates[0].units
    assert found.chance == pytest.approx(1 / 4)
    assert "all 40 answers are choice 2" in found.warnings[0]


def test_answers_that_ended_at_the_limit_are_named(tmp_path):
    config = {"generations_at_limit": {"t": 3}}
    base = write_run(tmp_path / "a", [Task("t", rights([1.0] * 9))], model="a", config=config)
    other = write_run(tmp_path / "b", [Task("t", rights([1.0] * 9))], model="b")
    found = compare(base, other)
    assert "a: 3 answers of t ended at max_gen_toks, by no stop" in found.notes
    assert not any(name == "generations_at_limit" for name, _ in found.unequal_settings)


def test_each_candidate_can_be_compared_with_the_next_larger_one(tmp_path):
    def run(name, bits, right):
        rows = rights([1.0] * right + [0.0] * (1000 - right))
        config = {"quantization_config": {"bits": bits}}
        return write_run(tmp_path / name, [Task("t", rows)], model=name, config=config)

    base, small, large = run("base", 16, 900), run("small", 2.4, 810), run("large", 4.0, 891)
    assert compare(base, small, large).steps == []
    found = compare(base, small, large, adjacent=True)
    (step,) = found.steps
    assert (step.larger, step.smaller) == ("large", "small")
    assert step.average.relative.estimate == pytest.approx(100 * 81 / 891)
    (alone,) = compare(large, small).candidates
    assert (step.average, step.state) == (alone.average, alone.verdict.state)
    assert from_json(to_json(found)) == found
    assert "Step by step" in to_markdown(found)


def test_a_candidate_without_samples_of_a_task_is_not_excused(tmp_path):
    tasks = [Task("a", rights([1.0] * 1000)), Task("b", rights([1.0] * 1000))]
    base = write_run(tmp_path / "a", tasks, model="a")
    cand = write_run(tmp_path / "b", tasks, model="b")
    next(cand.rglob("samples_b_*")).unlink()
    (found,) = compare(base, cand).candidates
    assert found.scores_only == []
    assert "no samples beside" in found.not_compared["b"]
    assert found.verdict.state == "inconclusive"


def test_what_all_documents_share_and_what_is_empty_makes_no_clusters(tmp_path):
    def run(name, context):
        lost = {3, 4, 5} if name == "cand" else set()
        rows = [
            {"metrics": {"acc": float(at not in lost)}, "doc": {"context": context, "n": at}}
            for at in range(60)
        ]
        return write_run(tmp_path / f"{name}{context}", [Task("t", rows)], model=name)

    for context in ("", None, "the same for all"):
        folders = run("base", context), run("cand", context)
        (unit,) = compare(*folders).candidates[0].units
        assert unit.design_effect is None
        assert unit.absolute.upper < 20
    (asked,) = compare(*folders, cluster="context").candidates[0].units
    assert asked.absolute.upper == pytest.approx(100)  # one cluster bounds nothing
