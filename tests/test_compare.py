"""`compare` from folders to states, reports and exit codes, on hand-made runs."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from run_files import Task, choice, rights, write_run

from lm_eval_exl2.cli import main
from lm_eval_exl2.compare import statistics
from lm_eval_exl2.compare.comparing import Choices, compare_runs
from lm_eval_exl2.compare.guards import is_sampled
from lm_eval_exl2.compare.policy import read_profile
from lm_eval_exl2.compare.primary import read_table
from lm_eval_exl2.compare.results import to_json
from lm_eval_exl2.compare.runs import read_run
from lm_eval_exl2.errors import ComparisonError


def compare(*folders, profile="general", drop=None, noise=None, **choices):
    baseline, *candidates = (read_run(folder) for folder in folders)
    chosen = Choices(table=read_table(), profile=read_profile(profile, drop=drop), **choices)
    noisy = None if noise is None else tuple(read_run(folder) for folder in noise)
    return compare_runs(baseline, candidates, chosen, noise=noisy)


def pattern(both, lost, gained, neither):
    """Right and wrong of baseline and candidate, with these counts."""
    baseline = [1.0] * (both + lost) + [0.0] * (gained + neither)
    candidate = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return baseline, candidate


def runs(tmp_path, *tables, names=None, metric="acc", **more):
    """Two runs with one task per table of counts."""
    names = names or [f"task{at}" for at in range(len(tables))]
    sides = zip(*(pattern(*table) for table in tables), strict=True)
    return [
        write_run(
            tmp_path / side,
            [Task(name, rights(values, metric)) for name, values in zip(names, each, strict=True)],
            model=side,
            **more,
        )
        for side, each in zip(("base", "cand"), sides, strict=True)
    ]


# -- what is found ---------------------------------------------------------------------------------


def test_scores_drops_and_flips_of_one_task_by_hand(tmp_path):
    (found,) = compare(*runs(tmp_path, (700, 40, 20, 240))).candidates
    (unit,) = found.units
    assert (unit.baseline.estimate, unit.candidate.estimate) == (0.74, 0.72)
    assert unit.difference.estimate == pytest.approx(-0.02)
    assert unit.absolute.estimate == pytest.approx(2.0)
    assert unit.relative.estimate == pytest.approx(100 * 0.02 / 0.74)
    assert (unit.flips.lost, unit.flips.gained) == (40, 20)
    assert unit.flips.mcnemar_p == pytest.approx(0.0134887, abs=1e-6)  # scipy: binomtest(20, 60)
    assert unit.documents == 1000
    assert found.average.baseline == 0.74
    assert found.average.relative.estimate == pytest.approx(unit.relative.estimate)


def test_a_run_against_itself_lost_nothing_and_is_supported_only_where_zero_events_allow(tmp_path):
    few, many = (runs(tmp_path / str(n), (n // 2, 0, 0, n // 2)) for n in (100, 1000))
    (small,) = compare(few[0], few[0]).candidates
    (large,) = compare(many[0], many[0]).candidates
    for found in (small, large):
        assert found.average.relative.estimate == 0
        assert found.flips == []
        assert found.units[0].difference.lower < 0 < found.units[0].difference.upper
    assert small.verdict.state == "inconclusive"
    assert large.verdict.state == "ship"


def test_swapping_the_runs_negates_the_difference(tmp_path):
    folders = runs(tmp_path, (70, 9, 4, 17), (50, 3, 8, 39))
    (there,), (back,) = (compare(*each).candidates for each in (folders, folders[::-1]))
    for one, other in zip(there.units, back.units, strict=True):
        assert one.difference.estimate == pytest.approx(-other.difference.estimate)
        assert one.difference.lower == pytest.approx(-other.difference.upper)
        assert (one.flips.lost, one.flips.gained) == (other.flips.gained, other.flips.lost)


def test_the_average_is_that_of_the_published_matrix_or_nearly(tmp_path):
    """0.8, 2.5 and 1.5 are printed; no definition gives all three."""
    scores = {
        "fp16": (412, 654, 762),
        "int8": (405, 651, 759),
        "g128": (389, 640, 751),
        "g64": (398, 647, 755),
    }
    for name, values in scores.items():
        tasks = [
            Task(f"t{at}", rights([1.0] * right + [0.0] * (1000 - right)))
            for at, right in enumerate(values)
        ]
        write_run(tmp_path / name, tasks, model=name)
    found = compare(*(tmp_path / name for name in scores))
    drops = {each.variant.label: each.average.relative.estimate for each in found.candidates}
    assert drops["int8"] == pytest.approx(0.711, abs=1e-3)
    assert drops["g128"] == pytest.approx(2.626, abs=1e-3)
    assert drops["g64"] == pytest.approx(1.532, abs=1e-3)


def test_a_micro_group_is_pooled_and_a_macro_group_weighs_tasks(tmp_path):
    first = [pattern(30, 10, 0, 60), pattern(8, 0, 2, 0)]
    for side in (0, 1):
        tasks = [Task(f"mmlu_{at}", rights(table[side])) for at, table in enumerate(first)]
        scores = [np.mean(table[side]) for table in first]
        for rule, score in (
            ("micro", np.mean(first[0][side] + first[1][side])),
            ("macro", np.mean(scores)),
        ):
            write_run(
                tmp_path / rule / str(side),
                tasks,
                model=f"m{side}",
                groups={"mmlu": ["mmlu_0", "mmlu_1"]},
                group_results={"mmlu": {"acc,none": float(score)}},
            )
    micro, macro = (
        compare(tmp_path / rule / "0", tmp_path / rule / "1").candidates[0].units[0]
        for rule in ("micro", "macro")
    )
    assert (micro.rule, macro.rule) == ("micro", "macro")
    assert micro.baseline.estimate == pytest.approx(48 / 110)
    assert micro.difference.estimate == pytest.approx(-8 / 110)
    assert micro.macro == pytest.approx(((0.4 + 0.8) / 2, (0.3 + 1.0) / 2))
    assert macro.difference.estimate == pytest.approx((-0.1 + 0.2) / 2)
    assert [(part.name, part.lost, part.gained) for part in micro.parts] == [
        ("mmlu_0", 10, 0),
        ("mmlu_1", 0, 2),
    ]
    assert [part.clearly_worse for part in micro.parts] == [True, False]


def test_perplexities_are_a_ratio_and_no_part_of_the_average(tmp_path):
    config = {"metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity"}]}
    folders = []
    for name, losses in (("base", [4.0, 9.0, 5.0]), ("cand", [4.4, 9.6, 5.6])):
        rows = [{"metrics": {"word_perplexity": [-loss, 3]}} for loss in losses]
        score = math.exp(sum(losses) / 9)
        task = Task(
            "wikitext", rows, config=config, scores={"word_perplexity": score},
            higher={"word_perplexity": False},
        )  # fmt: skip
        folders.append(write_run(tmp_path / name, [task, Task("t", rights([1] * 9))], model=name))
    (found,) = compare(*folders, noise=folders).candidates  # which has nothing to say about it
    unit = found.units[0]
    assert unit.kind == "perplexity"
    assert unit.baseline.estimate == pytest.approx(math.exp(2))
    assert unit.difference.estimate == pytest.approx(math.exp(1.6 / 9))
    assert unit.difference.lower < unit.difference.estimate < unit.difference.upper
    assert found.average.units == ["t"]
    assert found.average.left_out == {"wikitext": "a perplexity"}


def test_graded_scores_get_t_and_no_flips(tmp_path):
    folders = [
        write_run(tmp_path / name, [Task("truthfulqa_mc2", rights(values))], model=name)
        for name, values in (("base", [0.9, 0.4, 0.7, 0.6]), ("cand", [0.8, 0.4, 0.5, 0.7]))
    ]
    (unit,) = compare(*folders).candidates[0].units
    assert unit.kind == "graded"
    assert unit.flips is None
    # Paired t by hand: mean .05, sd .1290994, t(3, .975) = 3.182446.
    half = 3.182446 * 0.1290994 / 2
    assert unit.difference.estimate == pytest.approx(-0.05)
    assert unit.difference.lower <= -0.05 - half + 1e-6
    assert unit.difference.upper >= -0.05 + half - 1e-6


def test_tasks_at_chance_or_near_zero_are_left_out_by_name(tmp_path):
    def questions(right, total):
        return [choice([0.0, -1.0, -1.0, -1.0], 0 if at < right else 1) for at in range(total)]

    tasks = [
        Task("guessed", questions(26, 100)),
        Task("known", questions(80, 100)),
        Task("zero", rights([0.0] * 99 + [1.0])),
    ]
    folder = write_run(tmp_path, tasks)
    (found,) = compare(folder, folder).candidates
    assert found.average.units == ["known"]
    assert found.average.left_out["guessed"] == "the baseline's interval reaches chance (25%)"
    assert found.average.left_out["zero"] == "the baseline's score is below 5%"
    assert any("all 100 answers are choice 1" in each for each in found.units[0].warnings)


def test_answers_that_are_all_the_same_are_suspicious_where_there_are_answers(tmp_path):
    texts = [{"metrics": {"m": 0.5}, "filtered_resps": ["same"]} for _ in range(20)]
    single = [{"metrics": {"acc": 1.0}, "filtered_resps": [["-0.5", "True"]]} for _ in range(20)]
    folder = write_run(tmp_path, [Task("generated", texts), Task("lambada", single)])
    (found,) = compare(folder, folder).candidates
    said = {unit.name: " ".join(unit.warnings) for unit in found.units}
    assert "all 20 answers are the same text" in said["generated"]
    assert "answers" not in said["lambada"]
    assert found.units[1].flips.other_wrong is None


def test_lower_is_better_turns_the_drop_around(tmp_path):
    folders = [
        write_run(
            tmp_path / name,
            [Task("t", rights(values, "error"), higher={"error": False})],
            model=name,
        )
        for name, values in (("base", [0, 0, 0, 1]), ("cand", [0, 0, 1, 1]))
    ]
    (unit,) = compare(*folders).candidates[0].units
    assert unit.absolute.estimate == pytest.approx(25)
    assert unit.left_out == "lower is better"


def test_wrong_answers_that_become_other_wrong_answers_are_churn(tmp_path):
    def rows(*answers):
        return [
            {"metrics": {"m": float(text == "a")}, "filtered_resps": [text]} for text in answers
        ]

    base = write_run(tmp_path / "a", [Task("t", rows("a", "b", "c", "a", "d"))], model="base")
    cand = write_run(tmp_path / "b", [Task("t", rows("a", "x", "c", "e", "a"))], model="cand")
    flips = compare(base, cand).candidates[0].units[0].flips
    assert (flips.lost, flips.gained, flips.other_wrong) == (1, 1, 1)
    assert flips.churn == pytest.approx(3 / 5)
    assert flips.too_few
    shown = compare(base, cand).candidates[0].flips
    assert [(each.kind, each.baseline, each.candidate) for each in shown] == [
        ("lost", "a", "e"),
        ("gained", "d", "a"),
        ("other wrong", "b", "x"),
    ]


def test_flips_inside_the_noise_are_those_with_small_margins(tmp_path):
    def questions(margins):
        return [choice([margin, 0.0], 0) for margin in margins]

    base = [0.01, 0.5, 2.0, -0.01, 1.0]
    folders = [
        write_run(tmp_path / name, [Task("t", questions(margins))], model=name)
        for name, margins in (
            ("base", base),
            ("cand", [-0.1, -0.5, 2.0, 0.1, 1.0]),
            ("again", [0.02, 0.48, 2.01, 0.01, 1.0]),
        )
    ]
    flips = (
        compare(folders[0], folders[1], noise=(folders[0], folders[2])).candidates[0].units[0].flips
    )
    assert (flips.lost, flips.gained) == (2, 1)
    assert flips.noise_churn.estimate == pytest.approx(1 / 5)
    assert flips.inside_noise == 2  # margins .01 and -.01; the noise reaches .02
    plain = compare(folders[0], folders[1]).candidates[0].units[0].flips
    assert plain.noise_churn is plain.inside_noise is None


def test_documents_of_one_passage_count_as_one_cluster(tmp_path):
    rng = np.random.default_rng(0)
    lost = np.repeat(rng.random(60) < 0.1, 5)
    folders = []
    for name, values in (("base", np.ones(300)), ("cand", 1.0 - lost)):
        rows = [
            {"metrics": {"acc": float(value)}, "doc": {"passage": at // 5, "number": at}}
            for at, value in enumerate(values)
        ]
        folders.append(write_run(tmp_path / name, [Task("t", rows)], model=name))
    (alone,) = compare(*folders).candidates[0].units
    (together,) = compare(*folders, cluster="passage").candidates[0].units
    assert together.design_effect == pytest.approx(5, rel=0.1)
    assert together.absolute.upper > alone.absolute.upper
    assert together.absolute.lower <= alone.absolute.lower
    with pytest.raises(ComparisonError, match="no field 'text' in passage, number"):
        compare(*folders, cluster="text")


def test_gsm8k_shows_its_other_filter_beside(tmp_path):
    folder = write_run(
        tmp_path, [Task("gsm8k", rights([1, 0, 1, 1], "exact_match"), filter="strict-match")]
    )
    file = next(folder.rglob("results_*"))
    content = json.loads(file.read_text())
    content["results"]["gsm8k"]["exact_match,flexible-extract"] = 0.8
    file.write_text(json.dumps(content))
    (unit,) = compare(folder, folder).candidates[0].units
    assert unit.beside == ("flexible-extract", 0.8, 0.8)


def test_a_reordered_run_compares_as_the_same(tmp_path):
    values = {f"q{at}": (float(at % 3 > 0), float(at % 4 > 0)) for at in range(200)}

    def written(name, side, order):
        rows = [{"metrics": {"acc": values[key][side]}, "question": key} for key in order]
        return write_run(tmp_path / name, [Task("t", rows)], model=name)

    keys = list(values)
    base, same = written("base", 0, keys), written("cand", 1, keys)
    shuffled = written("mixed", 1, [keys[at * 7 % 200] for at in range(200)])
    (one,), (two,) = (compare(base, each).candidates for each in (same, shuffled))
    assert one.units[0].flips == two.units[0].flips
    assert one.units[0].relative == two.units[0].relative
    assert "documents have another doc_id" in two.units[0].warnings[0]


def test_the_bounds_are_those_of_the_statistics_at_their_levels(tmp_path):
    table = statistics.PairedCounts(700, 40, 20, 240)
    (unit,) = compare(*runs(tmp_path, (700, 40, 20, 240))).candidates[0].units
    two_sided = statistics.drop_interval(table, 0.95)
    assert unit.difference.lower == pytest.approx(-two_sided.upper)
    assert unit.difference.upper == pytest.approx(-two_sided.lower)
    absolute = statistics.drop_bounds(table, 0.05)
    assert (unit.absolute.lower, unit.absolute.upper) == pytest.approx(
        (100 * absolute.lower, 100 * absolute.upper)
    )
    relative = statistics.drop_bounds(table, 0.05, relative=True)
    assert (unit.relative.lower, unit.relative.upper) == pytest.approx(
        (100 * relative.lower, 100 * relative.upper)
    )
    assert unit.non_inferior_p == pytest.approx(
        statistics.score_test(table, 0.03, relative=True).below
    )
    assert unit.tost_p == pytest.approx(statistics.equivalence_p(table, 0.03, relative=True))
    assert unit.certify_probability == pytest.approx(
        statistics.certification_power(1000, 0.06, 0.03 * 0.74)
    )
    points = compare(*runs(tmp_path, (700, 40, 20, 240)), profile="general", drop="absolute")
    assert points.candidates[0].verdict.demands[0].estimate == pytest.approx(2.0)
    assert points.candidates[0].units[0].non_inferior_p == pytest.approx(
        statistics.score_test(table, 0.03).below
    )


def test_a_cap_is_the_margin_of_its_tasks_tests(tmp_path):
    folders = runs(tmp_path, (700, 40, 20, 240), names=["gsm8k"], metric="exact_match")
    table = statistics.PairedCounts(700, 40, 20, 240)
    (unit,) = compare(*folders, profile="math-tutor").candidates[0].units
    expected = statistics.score_test(table, 0.02, relative=True).below
    assert unit.non_inferior_p == pytest.approx(expected)


def test_perplexities_have_95_percent_intervals_of_the_paired_log_ratio(tmp_path):
    losses = np.array([[4.0, 9.0, 5.0, 7.0], [4.4, 9.6, 5.6, 7.1]])
    folders = []
    for name, values in zip(("base", "cand"), losses, strict=True):
        rows = [{"metrics": {"perplexity": [float(loss), 3]}} for loss in values]
        score = math.exp(values.sum() / 12)
        task = Task(
            "wikitext2_ppl", rows, scores={"perplexity": score}, higher={"perplexity": False}
        )
        folders.append(write_run(tmp_path / name, [task, Task("t", rights([1] * 9))], model=name))
    unit = compare(*folders).candidates[0].units[0]
    steps = (losses[1] - losses[0]) / 3
    half = scipy.stats.t.isf(0.025, 3) * steps.std(ddof=1) / 2
    assert math.log(unit.difference.lower) == pytest.approx(steps.mean() - half)
    assert math.log(unit.difference.upper) == pytest.approx(steps.mean() + half)


def test_groups_of_graded_tasks_follow_their_rule(tmp_path):
    random = np.random.default_rng(5)
    sides = {0: [random.random(30), random.random(90)]}
    sides[1] = [values - random.random(len(values)) * 0.1 for values in sides[0]]
    found = {}
    for rule in ("micro", "macro"):
        folders = []
        for side, parts in sides.items():
            scores = [values.mean() for values in parts]
            score = np.concatenate(parts).mean() if rule == "micro" else np.mean(scores)
            tasks = [
                Task(f"g_{at}", rights([float(v) for v in values]))
                for at, values in enumerate(parts)
            ]
            folders.append(
                write_run(
                    tmp_path / rule / str(side), tasks, model=f"m{side}",
                    groups={"g": ["g_0", "g_1"]}, group_results={"g": {"acc,none": float(score)}},
                )
            )  # fmt: skip
        (found[rule],) = compare(*folders).candidates[0].units
    drops = [sides[0][at] - sides[1][at] for at in (0, 1)]
    shares = {"micro": (0.25, 0.75), "macro": (0.5, 0.5)}
    for rule, weights in shares.items():
        unit = found[rule]
        drop = sum(w * d.mean() for w, d in zip(weights, drops, strict=True))
        error = (
            sum(w**2 * d.var(ddof=1) / len(d) for w, d in zip(weights, drops, strict=True)) ** 0.5
        )
        assert unit.kind == "graded"
        assert unit.absolute.estimate == pytest.approx(100 * drop)
        half = 100 * scipy.stats.t.isf(0.05, 119) * error
        assert unit.absolute.upper - unit.absolute.estimate == pytest.approx(half)


def test_lower_is_better_has_no_flips_and_no_tests(tmp_path):
    folders = [
        write_run(tmp_path / n, [Task("t", rights(v, "error"), higher={"error": False})], model=n)
        for n, v in (("base", [0] * 90 + [1] * 10), ("cand", [0] * 50 + [1] * 50))
    ]
    unit = compare(*folders).candidates[0].units[0]
    assert unit.flips is unit.non_inferior_p is unit.relative is None
    assert unit.absolute.estimate == pytest.approx(40)


def test_scores_on_another_scale_are_no_part_of_the_average(tmp_path):
    tasks = [Task("bleu_task", rights([31.0, 40.0], "bleu")), Task("t", rights([1.0, 0.0]))]
    folder = write_run(tmp_path, tasks)
    found = compare(folder, folder)
    assert found.candidates[0].average.units == ["t"]
    said = found.candidates[0].average.left_out["bleu_task"]
    assert said == "its values are not between 0 and 1"
    json.dumps(to_json(found), allow_nan=False)  # equal values bound nothing there


def test_graded_scores_know_no_chance(tmp_path):
    row = choice([0.0, -1.0, -1.0, -1.0], 0)
    rows = [{**row, "metrics": {"acc": 0.2 + at / 100}} for at in range(20)]
    folder = write_run(tmp_path, [Task("truthfulqa_mc2", rows)])
    (unit,) = compare(folder, folder).candidates[0].units
    assert unit.chance is None
    assert unit.left_out == ""


# -- what is decided -------------------------------------------------------------------------------


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
    lost = np.zeros(3000)
    lost[:50] = 1  # one passage of 50 questions
    folders = []
    for name, values in (("base", np.ones(3000)), ("cand", 1 - lost)):
        rows = [
            {"metrics": {"acc": float(value)}, "doc": {"passage": at // 50, "number": at}}
            for at, value in enumerate(values)
        ]
        folders.append(write_run(tmp_path / name, [Task("t", rows)], model=name))
    (alone,) = compare(*folders).candidates
    (together,) = compare(*folders, cluster="passage").candidates
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


# -- the command -----------------------------------------------------------------------------------


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
    code, _, err = run(capsys, base, cand)
    assert code == 13
    assert "acc = 0.8" in err
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
