"""What `compare` finds in hand-made runs: scores, drops, tests, flips."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from comparing import compare, pattern, runs
from run_files import Task, choice, rights, write_run

from lm_eval_exl2.compare import statistics
from lm_eval_exl2.compare.results import to_json
from lm_eval_exl2.errors import ComparisonError


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
    # The baseline alone: mean .65, sd .2081666.
    assert unit.baseline.lower == pytest.approx(0.65 - 3.182446 * 0.2081666 / 2, abs=1e-6)


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
    assert unit.absolute.lower < 25 < unit.absolute.upper
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
    (alone,) = compare(*folders, cluster="").candidates[0].units
    (together,) = compare(*folders).candidates[0].units  # a usual name needs no option
    assert compare(*folders, cluster="passage").candidates[0].units == [together]
    assert alone.design_effect is None
    assert together.design_effect == pytest.approx(5, rel=0.1)
    assert together.absolute.upper > alone.absolute.upper
    assert together.absolute.lower <= alone.absolute.lower
    assert together.relative.upper > alone.relative.upper
    assert together.difference.lower < alone.difference.lower
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
    # By the normal distribution (1.645 + .842)^2 x .06 / .0222^2 = 753: flips are whole, so more.
    assert unit.documents_needed == statistics.documents_needed(0.06, 0.03 * 0.74) > 753
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


def test_perplexities_are_divided_by_each_runs_own_counts(tmp_path):
    folders = []
    for name, loss, words in (("base", 6.0, 3), ("cand", 8.0, 4)):
        rows = [{"metrics": {"word_perplexity": [-loss, words]}} for _ in range(5)]
        task = Task("wikitext", rows, scores={"word_perplexity": math.exp(loss / words)},
                    higher={"word_perplexity": False})  # fmt: skip
        folders.append(write_run(tmp_path / name, [task, Task("t", rights([1] * 9))], model=name))
    assert compare(*folders).candidates[0].units[0].difference.estimate == pytest.approx(1)


def test_windows_of_one_text_are_compared_as_neighbours(tmp_path):
    random = np.random.default_rng(4)
    losses = random.normal(1500, 100, (2, 80))
    losses[1] = losses[0] + np.repeat(random.normal(5, 20, 20), 4)  # by articles of 4 windows
    folders = []
    for name, values in zip(("base", "cand"), losses, strict=True):
        rows = [
            {
                "metrics": {
                    "perplexity": [float(loss), 511],
                    "perplexity_stderr": [float(loss), 511, 512 * at],
                }
            }
            for at, loss in enumerate(values)
        ]
        score = math.exp(values.mean() / 511)
        task = Task(
            "exl2_wikitext2_ppl", rows, scores={"perplexity": score, "perplexity_stderr": 0.1},
            higher={"perplexity": False, "perplexity_stderr": False},
        )  # fmt: skip
        folders.append(write_run(tmp_path / name, [task], model=name))
    found = compare(*folders).candidates[0].units[0].difference
    given = (losses[0], losses[1], np.full(80, 511))
    expected = statistics.perplexity_ratio(*given, starts=np.arange(80) * 512, alpha=0.025).bounds
    assert (found.lower, found.upper) == pytest.approx(tuple(expected))
    alone = statistics.perplexity_ratio(*given, alpha=0.025).bounds
    assert expected.lower < alone.lower < alone.upper < expected.upper


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
    (other, _) = found.candidates[0].units
    assert (other.difference.lower, other.absolute) == (None, None)  # no points, no zero events
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
