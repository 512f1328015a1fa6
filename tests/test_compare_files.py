"""From result folders to paired values: what is read, what is paired, what is refused."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import TIME, Task, choice, rights, write_run

from lm_eval_exl2.compare.pairing import pair
from lm_eval_exl2.compare.primary import find_primary, read_table
from lm_eval_exl2.compare.recompute import recompute
from lm_eval_exl2.compare.runs import read_run
from lm_eval_exl2.compare.samples import read_documents, read_samples
from lm_eval_exl2.compare.units import Library, check_group, find_units, strata
from lm_eval_exl2.errors import ComparisonError, OptionError, TaskLeftOutError


def read(folder, task="t", filter_name="none"):
    run = read_run(folder)
    return run.tasks[task], read_samples(run.tasks[task].samples).filters[filter_name]


# -- samples -------------------------------------------------------------------------------------


def test_a_line_is_kept_as_numbers_and_read_again_by_its_place(tmp_path):
    rows = [
        {"metrics": {"acc": value, "ppl": [-value, 3]}, "question": f"Ü{value}"} for value in (1, 0)
    ]
    task, samples = read(write_run(tmp_path, [Task("t", rows, scores={"ppl": 1.0})]))
    assert samples.numbers["acc"].tolist() == [1, 0]
    assert [part.tolist() for part in samples.pairs["ppl"]] == [[-1, 0], [3, 3]]
    again = list(read_documents(task.samples, samples.offsets[::-1].tolist()))
    assert [each["doc"]["question"] for each in again] == ["Ü0", "Ü1"]


def test_metrics_that_some_lines_lack_are_missing_there(tmp_path):
    rows = [
        {"metrics": {"acc": 1}},
        {"metrics": {"acc": 0, "exact": 1}},
        {"metrics": {"acc": None}},
    ]
    _, samples = read(write_run(tmp_path, [Task("t", rows, scores={"acc": 0.5})]))
    assert samples.numbers["acc"].tolist()[:2] == [1, 0]
    assert np.isnan(samples.numbers["acc"][2])
    assert np.isnan(samples.numbers["exact"]).tolist() == [True, False, True]


def test_choices_are_decided_by_log_likelihood_and_per_character(tmp_path):
    rows = [choice([-1.0, -1.5, -4.0], 0), choice([-1.0, -2.5, -0.5], 1)]
    _, samples = read(write_run(tmp_path, [Task("t", rows)]))
    assert samples.choices.chosen.tolist() == [0, 2]
    # Choices have 1, 2 and 3 characters: -1, -.75, -1.33; -1, -1.25, -.167.
    assert samples.choices.chosen_norm.tolist() == [1, 2]
    assert samples.choices.margin.tolist() == pytest.approx([0.5, -2.0])
    assert samples.choices.margin_norm.tolist() == pytest.approx([-0.25, -1.25 + 0.5 / 3])


def test_a_delimiter_that_a_chat_template_left_out_is_not_taken_off(tmp_path):
    row = choice([-1.0, -1.5, -4.0], 0)
    for each in row["arguments"].values():
        each["arg_1"] = each["arg_1"].strip()
    _, samples = read(write_run(tmp_path, [Task("t", [row])]))
    assert samples.choices.chosen_norm.tolist() == [1]
    assert samples.choices.margin_norm.tolist() == pytest.approx([-0.25])


def test_half_a_line_at_the_end_is_left_out_and_counted(tmp_path):
    folder = write_run(tmp_path, [Task("t", rights([1, 0, 1]))])
    file = next(folder.rglob("samples_*"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    found = read_samples(file)
    assert len(found.filters["none"]) == 2
    assert found.broken_lines == 1


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    file = tmp_path / "samples_t.jsonl"
    good = json.dumps(Task("t", rights([1])).samples()[0])
    for bad in ("{", "[]", "{}", '{"filter": "none"}', "null"):
        file.write_text(f"{good}\n{bad}\n{good}\n")
        with pytest.raises(ComparisonError, match="line 2 is no sample"):
            read_samples(file)


def test_an_empty_file_has_no_samples(tmp_path):
    (tmp_path / "s.jsonl").write_text("")
    assert read_samples(tmp_path / "s.jsonl").filters == {}
    with pytest.raises(ComparisonError, match="cannot be read"):
        read_samples(tmp_path / "missing.jsonl")


# -- runs ----------------------------------------------------------------------------------------


def test_the_newest_results_count_for_each_task(tmp_path):
    write_run(
        tmp_path, [Task("a", rights([0])), Task("b", rights([1]))], time="2026-01-01T00-00-00.1"
    )
    write_run(tmp_path, [Task("a", rights([1]))], time="2026-01-02T00-00-00.1")
    run = read_run(tmp_path)
    assert {name: task.time for name, task in run.tasks.items()} == {
        "a": "2026-01-02T00-00-00.1",
        "b": "2026-01-01T00-00-00.1",
    }
    assert list(run.settings) == ["2026-01-02T00-00-00.1", "2026-01-01T00-00-00.1"]
    older = read_run(tmp_path, time="2026-01-01")
    assert older.tasks["a"].time == "2026-01-01T00-00-00.1"
    with pytest.raises(ComparisonError, match=r"no results of 2025 .* there are 2026-01-02"):
        read_run(tmp_path, time="2025")


def test_folders_that_are_no_run_are_refused(tmp_path):
    with pytest.raises(ComparisonError, match="neither a folder nor"):
        read_run(tmp_path / "missing")
    with pytest.raises(ComparisonError, match="--output_path"):
        read_run(tmp_path)
    write_run(tmp_path, [Task("a", rights([0]))], model="one")
    write_run(tmp_path, [Task("a", rights([0]))], model="two")
    with pytest.raises(ComparisonError, match="several models, name one: one, two"):
        read_run(tmp_path)
    assert read_run(tmp_path / "two").label == "two"
    (tmp_path / "two" / f"results_{TIME}.json").write_text('{"results": ')
    with pytest.raises(ComparisonError, match="cannot be read as JSON"):
        read_run(tmp_path / "two")
    (tmp_path / "two" / f"results_{TIME}.json").write_text("{}")
    with pytest.raises(ComparisonError, match="no results file"):
        read_run(tmp_path / "two")


def test_results_of_two_checkpoints_in_one_folder_are_refused(tmp_path):
    for time, bits in (("2026-01-01T00-00-00.1", 8), ("2026-01-02T00-00-00.1", 2)):
        config = {"quantization_config": {"bits": bits}}
        write_run(tmp_path, [Task(f"t{bits}", rights([1]))], time=time, config=config)
    with pytest.raises(ComparisonError, match=r"several checkpoints .quantization_config differs"):
        read_run(tmp_path)
    assert list(read_run(tmp_path, time="2026-01-02").tasks) == ["t2"]


def test_a_limited_run_is_known_as_one(tmp_path):
    run = read_run(write_run(tmp_path, [Task("a", rights([0, 1]), original=50)]))
    assert run.tasks["a"].limited
    assert run.tasks["a"].documents == 50


# -- pairing ---------------------------------------------------------------------------------------


def samples_of(tmp_path, name, rows):
    return read(write_run(tmp_path / name, [Task("t", rows)]))[1]


def test_documents_are_paired_by_content_whatever_their_order(tmp_path):
    rows = [{"metrics": {"acc": at % 2}, "question": f"q{at}"} for at in range(6)]
    first = samples_of(tmp_path, "a", rows)
    second = samples_of(tmp_path, "b", rows[::-1])
    found = pair("t", first, second)
    assert first.docs[found.baseline].tolist() == second.docs[found.candidate].tolist()
    assert found.baseline.tolist() == list(range(6))
    assert found.moved == 6
    assert not found.is_partial


def test_documents_that_occur_twice_are_paired_in_their_order(tmp_path):
    rows = [{"metrics": {"acc": 1}, "question": name} for name in "abaab"]
    first, second = samples_of(tmp_path, "a", rows), samples_of(tmp_path, "b", rows[:4])
    found = pair("t", first, second)
    assert found.baseline.tolist() == found.candidate.tolist() == [0, 1, 2, 3]
    assert found.is_partial


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_pairs_are_those_of_counting(first, second):
    """Brute force: the k-th occurrence here with the k-th occurrence there."""

    def keys(names):
        return [(name, names[:at].count(name)) for at, name in enumerate(names)]

    one, two = keys(first), keys(second)
    expected = [(at, two.index(key)) for at, key in enumerate(one) if key in two]

    class Samples:
        def __init__(self, names):
            self.docs = np.array([ord(name) for name in names], np.int64)
            self.doc_ids = self.prompts = self.targets = np.zeros(len(names), np.int64)

        def __len__(self):
            return len(self.docs)

    if not expected:
        with pytest.raises(ComparisonError, match="no document in common"):
            pair("t", Samples(first), Samples(second))
        return
    found = pair("t", Samples(first), Samples(second))
    assert list(zip(found.baseline.tolist(), found.candidate.tolist(), strict=True)) == expected


def test_other_prompts_are_refused_unless_asked_for(tmp_path):
    first = samples_of(tmp_path, "a", rights([1, 0]))
    second = samples_of(tmp_path, "b", [{"metrics": {"acc": 1}, "prompt": "chat"}, *rights([0])])
    with pytest.raises(ComparisonError, match=r"1 of \d prompts differ .* --pair doc"):
        pair("t", first, second)
    assert pair("t", first, second, by_document=True).prompts_differ == 1


def test_whatever_else_was_asked_is_part_of_the_prompt(tmp_path):
    def asked(name, **arguments):
        rows = rights([1], arguments={"gen_args_0": {"arg_0": "t 0", "arg_1": arguments}})
        return samples_of(tmp_path, name, rows)

    first, second = asked("a", max_gen_toks=1024), asked("b", max_gen_toks=16)
    with pytest.raises(ComparisonError, match="1 of 1 prompts differ"):
        pair("t", first, second)


def test_other_targets_are_refused(tmp_path):
    first = samples_of(tmp_path, "a", rights([1, 0]))
    second = samples_of(tmp_path, "b", rights([1, 0], target="5"))
    with pytest.raises(ComparisonError, match="2 documents are the same but their targets differ"):
        pair("t", first, second)


# -- recompute ---------------------------------------------------------------------------------


def scored(tmp_path, values, score, metric="m", aggregation=None):
    config = (
        {"metric_list": [{"metric": metric, "aggregation": aggregation}]} if aggregation else {}
    )
    rows = [{"metrics": {metric: value}} for value in values]
    task, samples = read(
        write_run(tmp_path, [Task("t", rows, config=config, scores={metric: score})])
    )
    return recompute(task, samples, metric, "none")


PAIRS = [[-2.0, 1], [-6.0, 3]]


@pytest.mark.parametrize(
    ("values", "score", "aggregation", "kind"),
    [
        ([1, 0, 1, 1], 0.75, "mean", "mean"),
        ([1, 0, 1, 1], 0.75, None, "mean"),
        ([0.5, None, 1], 0.75, None, "mean"),
        ([-1.0, -3.0], math.exp(2), "perplexity", "loss"),
        (PAIRS, math.exp(2), "weighted_perplexity", "loss"),
        (PAIRS, 2 / math.log(2), "bits_per_byte", "bits"),
        ([[2.0, 1], [6.0, 3]], math.exp(2), None, "loss"),  # exl2_wikitext2_ppl
        # Two hits, one false positive, one false negative: 2 * 2 / (2 * 2 + 1 + 1).
        ([[1, 1], [1, 1], [0, 1], [1, 0], [0, 0]], 2 / 3, "f1", "corpus"),
        # (TP TN - FP FN) / sqrt(3 * 3 * 2 * 2) = (2 * 1 - 1 * 1) / 6.
        ([[1, 1], [1, 1], [0, 1], [1, 0], [0, 0]], 1 / 6, "matthews_corrcoef", "corpus"),
        # (.2^2 + .2^2 + .3^2 + .3^2) / 2
        ([[0, [0.8, 0.2]], [1, [0.3, 0.7]]], 0.13, "brier_score", "corpus"),
        # One substitution and one deletion in 6 words.
        ([["a b c", "a x c"], ["d e f", "d e"]], 100 / 3, "ter", "corpus"),
    ],
)
def test_scores_are_computed_again(tmp_path, values, score, aggregation, kind):
    found = scored(tmp_path, values, score, aggregation=aggregation)
    assert found.rule.kind == kind
    assert found.score == pytest.approx(score, abs=1e-12)


def test_a_score_that_its_samples_do_not_give_is_refused(tmp_path):
    with pytest.raises(ComparisonError, match=r"m is 0\.76 .* but its samples give 0\.75"):
        scored(tmp_path, [1, 0, 1, 1], 0.76, aggregation="mean")
    with pytest.raises(ComparisonError, match=r"is 0\.7500001"):
        scored(tmp_path / "b", [1, 0, 1, 1], 0.7500001, aggregation="mean")
    with pytest.raises(ComparisonError, match=r"its samples give 0\.75"):
        scored(tmp_path / "c", [1, 0, 1, 1], 0.76)


def test_a_task_in_no_table_is_only_left_out_when_no_rule_gives_its_score(tmp_path):
    rows = [{"metrics": {"m": value}} for value in [1, 0, 1, 1]]
    task, samples = read(write_run(tmp_path, [Task("t", rows, scores={"m": 0.76})]))
    with pytest.raises(TaskLeftOutError, match="no known rule gives m"):
        recompute(task, samples, "m", "none", must_agree=False)


def test_a_function_as_metric_has_the_aggregation_that_its_only_line_names(tmp_path):
    listed = {"metric_list": [{"metric": "def pass_at_k(): ...", "aggregation": "mean"}]}
    rows = rights([1, 0, 1, 1], "pass@1")
    task, samples = read(
        write_run(tmp_path, [Task("t", rows, config=listed, scores={"pass@1": 0.9})])
    )
    with pytest.raises(ComparisonError, match=r"its samples give 0\.75"):
        recompute(task, samples, "pass@1", "none", must_agree=False)


def test_a_score_by_another_rule_than_the_declared_one_is_refused(tmp_path):
    with pytest.raises(ComparisonError, match="its samples give -2"):
        scored(tmp_path, [-1.0, -3.0], math.exp(2), aggregation="mean")


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    for at, score in enumerate((float("nan"), "N/A")):
        with pytest.raises(ComparisonError, match="not a score") as caught:
            scored(tmp_path / str(at), [1, 0], score, aggregation="mean")
        # NaN means a broken model; a metric without a number is only left out.
        assert isinstance(caught.value, TaskLeftOutError) == (score == "N/A")


# -- what counts -------------------------------------------------------------------------------


def primary(name, **results):
    values = {key.replace("__", ","): 0.5 for key in results}
    better = dict.fromkeys((key.split(",")[0] for key in values), True)
    return find_primary(name, values, better, read_table())


def test_the_table_names_the_metric_that_counts():
    assert primary("hellaswag", acc__none=1, acc_norm__none=1)[:2] == ("acc_norm", "none")
    assert primary("mmlu", acc__none=1).benchmark == "mmlu"
    assert primary("mmlu_anatomy", acc__none=1).benchmark == "mmlu_anatomy"
    assert primary("mbpp_plus", pass_at_1__none=1)[::3] == ("pass_at_1", "mbpp")
    assert primary("lambada_openai", perplexity__none=1, acc__none=1).metric == "acc"
    found = find_primary(
        "gsm8k",
        {"alias": "x", "exact_match,strict-match": 1, "exact_match,flexible-extract": 1},
        {"exact_match": True},
        read_table(),
    )
    assert found[:4] == ("exact_match", "strict-match", "flexible-extract", "gsm8k")
    unlisted = primary("mine", f1__none=1, acc__none=1)
    assert unlisted[:2] == ("f1", "none")
    assert not unlisted.is_listed
    values = {"bleu,none": 31.5, "ppl,none": 0.5, "acc,none": 0.5}
    better = {"bleu": True, "ppl": False, "acc": True}
    assert find_primary("mine", values, better, []).metric == "acc"  # rather a share


def test_the_table_can_be_overridden(tmp_path):
    table = read_table(overrides=["mine=acc"])
    found = find_primary("mine", {"f1,none": 1, "acc,none": 1}, {"f1": True, "acc": True}, table)
    assert found.metric == "acc"
    with pytest.raises(OptionError, match="expected TASK=METRIC"):
        read_table(overrides=["mine"])
    (tmp_path / "table.yaml").write_text("- {tasks: x}")
    with pytest.raises(OptionError, match="no table of primary metrics"):
        read_table(tmp_path / "table.yaml")


def grouped(tmp_path, score, **more):
    tasks = [Task("mmlu_a", rights([1, 1, 1, 0])), Task("mmlu_b", rights([0, 0]))]
    return write_run(
        tmp_path,
        [*tasks, Task("other", rights([1]))],
        groups={"mmlu": ["mmlu_x"], "mmlu_x": ["mmlu_a", "mmlu_b"], "plain": ["other"]},
        group_results={"mmlu": {"acc,none": score}, "mmlu_x": {"acc,none": score}},
        **more,
    )


def test_where_both_rules_give_the_baselines_score_the_candidates_decides(tmp_path):
    def equal(name, small, score):
        tasks = [Task("g_a", rights([1, 1, 0, 0])), Task("g_b", rights(small))]
        return read_run(
            write_run(
                tmp_path / name,
                tasks,
                model=name,
                groups={"g": ["g_a", "g_b"]},
                group_results={"g": {"acc,none": score}},
            )
        )

    library = Library()
    baseline = equal("base", [1, 0], 0.5)
    (unit,) = find_units(baseline, read_table(), library)
    assert (unit.rule, unit.other_rules) == ("micro", ("macro",))
    assert check_group(unit, equal("micro", [0, 0], 2 / 6), library).rule == "micro"
    assert check_group(unit, equal("macro", [0, 0], 0.25), library).rule == "macro"
    with pytest.raises(ComparisonError, match="put together from different runs"):
        check_group(unit, equal("neither", [0, 0], 0.3), library)


@pytest.mark.parametrize(("score", "rule"), [(0.5, "micro"), (0.375, "macro")])
def test_a_group_counts_once_by_its_own_rule(tmp_path, score, rule):
    units = find_units(read_run(grouped(tmp_path, score)), read_table(), Library())
    assert [(unit.name, unit.tasks, unit.rule) for unit in units] == [
        ("mmlu", ("mmlu_a", "mmlu_b"), rule),
        ("other", ("other",), "mean"),
    ]


def test_a_group_whose_score_does_not_follow_from_its_tasks_is_refused(tmp_path):
    with pytest.raises(ComparisonError, match=r"mmlu: acc is 0\.6, but its 2 tasks give 0\.5"):
        find_units(read_run(grouped(tmp_path, 0.6)), read_table(), Library())


def test_tasks_of_a_group_that_the_candidate_lacks_are_left_out(tmp_path):
    baseline = read_run(grouped(tmp_path / "a", 0.5))
    candidate = read_run(write_run(tmp_path / "b", [Task("mmlu_a", rights([1, 0, 1, 0]))]))
    library = Library()
    units = find_units(baseline, read_table(), library)
    (only,) = strata(units[0], baseline, candidate, library)
    assert only.task.name == "mmlu_a"
    assert (only.baseline.tolist(), only.candidate.tolist()) == ([1, 1, 1, 0], [1, 0, 1, 0])
    with pytest.raises(ComparisonError, match="other was not run with"):
        strata(units[1], baseline, candidate, library)


def test_documents_without_a_value_on_either_side_are_not_compared(tmp_path):
    rows = [{"metrics": {"acc": value}} for value in (1, None, 0, 1)]
    first = read_run(write_run(tmp_path / "a", [Task("t", rows, scores={"acc": 2 / 3})]))
    second = read_run(write_run(tmp_path / "b", [Task("t", rights([0, 1, 0, 1]))]))
    library = Library()
    (unit,) = find_units(first, read_table(), library)
    (only,) = strata(unit, first, second, library)
    assert (only.baseline.tolist(), only.candidate.tolist()) == ([1, 0, 1], [0, 0, 1])


def test_documents_keep_their_values_whatever_the_order_and_whoever_lacks_one(tmp_path):
    def run(name, values):
        rows = [
            {"metrics": {"acc": value}, "doc": {"number": number}, "question": str(number)}
            for number, value in values.items()
        ]
        known = [value for value in values.values() if value is not None]
        task = Task("t", rows, scores={"acc": sum(known) / len(known)})
        return read_run(write_run(tmp_path / name, [task]))

    first = run("a", {0: 0.0, 1: 0.1, 2: None, 3: 0.3, 4: 0.4})
    second = run("b", {4: 0.94, 2: 0.92, 3: None, 1: 0.91, 0: 0.90})
    library = Library()
    (unit,) = find_units(first, read_table(), library)
    (only,) = strata(unit, first, second, library)
    assert only.baseline.tolist() == [0.0, 0.1, 0.4]
    assert only.candidate.tolist() == [0.90, 0.91, 0.94]


def test_a_task_in_two_groups_counts_once(tmp_path):
    tasks = [Task("a", rights([1, 0])), Task("b", rights([1, 1]))]
    groups = {"first": ["a", "b"], "second": ["b"]}
    scores = {"first": {"acc,none": 0.75}, "second": {"acc,none": 1.0}}
    run = read_run(write_run(tmp_path, tasks, groups=groups, group_results=scores))
    assert [unit.name for unit in find_units(run, read_table(), Library())] == ["first"]


def test_a_run_without_samples_says_what_to_do(tmp_path):
    folder = write_run(tmp_path, [Task("t", rights([1]))])
    next(folder.rglob("samples_*")).unlink()
    run = read_run(folder)
    (unit,) = find_units(run, read_table(), Library())
    with pytest.raises(ComparisonError, match="--log_samples"):
        strata(unit, run, run, Library())
