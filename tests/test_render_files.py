"""CSV, JUnit, JSON and the model card's block: what other programs read."""

from __future__ import annotations

import csv
import io
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import yaml
from comparison_example import HOSTILE, changed, example
from comparison_mmlu import mmlu

from lm_eval_exl2.compare import policy
from lm_eval_exl2.compare.render.from_json import from_json, read_comparison
from lm_eval_exl2.compare.render.junit import to_junit
from lm_eval_exl2.compare.render.model_card import Registered, eval_results, to_card
from lm_eval_exl2.compare.render.table import to_csv
from lm_eval_exl2.compare.results import DemandResult, VerdictResult, to_json
from lm_eval_exl2.errors import ComparisonError


def read_csv(comparison):
    return list(csv.DictReader(io.StringIO(to_csv(comparison))))


def test_csv_has_one_row_per_candidate_and_task():
    rows = read_csv(example())
    assert [(row["candidate"], row["task"]) for row in rows] == [
        (label, task)
        for label in ("6.0bpw", "3.5bpw", "2.5bpw")
        for task in ("mmlu", "gsm8k", "winogrande", "exl2_wikitext2_ppl")
    ]


def test_csv_numbers_are_whole_and_can_be_read_back():
    unit, row = example().candidates[2].units[0], read_csv(example())[8]
    assert float(row["candidate_score"]) == unit.candidate.estimate
    assert float(row["relative_drop_percent_upper"]) == unit.relative.upper
    assert int(row["lost"]) == unit.flips.lost
    assert row["partial"] == "false"
    assert row["subjects_clearly_worse"] == "6"
    assert float(row["recovery_percent"]) == pytest.approx(
        100 * unit.candidate.estimate / unit.baseline.estimate
    )


def test_csv_keeps_ratios_of_perplexities_apart_from_differences():
    row = read_csv(example())[3]
    assert (row["difference"], row["perplexity_ratio"]) == ("", "1.0046")
    assert row["relative_drop_percent"] == ""


def test_csv_has_the_same_columns_in_every_row_and_no_column_twice():
    header, *rows = csv.reader(io.StringIO(to_csv(example())))
    assert len(set(header)) == len(header)
    assert {len(row) for row in rows} == {len(header)}


def test_csv_leaves_empty_what_is_no_number():
    for row in read_csv(changed(example(), float, math.nan)):
        assert "nan" not in [value.lower() for value in row.values()]
        assert row["candidate_score"] == ""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "a\nb,c\"d'"])
def test_csv_texts_are_no_formulas_and_stay_in_their_cells(text):
    rows = read_csv(changed(example(), str, text))
    assert len(rows) == 12
    assert {row["candidate"] for row in rows} <= {f"'{text}", text}
    assert not any(row["candidate"].startswith(("=", "+", "-", "@", "\t")) for row in rows)


def test_csv_of_nothing_is_empty():
    assert to_csv(example(candidates=[])) == ""


def cases(comparison, **options):
    """By candidate and case: what marks it."""
    root = ElementTree.fromstring(to_junit(comparison, **options).encode())
    found = {}
    for suite in root:
        for case in suite:
            marks = [mark.tag for mark in case if mark.tag != "system-out"]
            found[suite.get("name"), case.get("name")] = marks[0] if marks else "passed"
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
            assert int(suite.get(name)) == len(list(suite.iter(tag)))
    assert int(root.get("tests")) == len(found)
    assert int(root.get("failures")) == list(found.values()).count("failure")
    return found


def test_junit_has_a_case_per_demand_and_one_for_the_verdict():
    assert cases(example()) == {
        ("6.0bpw", "drop of average"): "passed",
        ("6.0bpw", "verdict"): "passed",
        ("3.5bpw", "drop of average"): "skipped",
        ("3.5bpw", "verdict"): "skipped",
        ("2.5bpw", "drop of average"): "failure",
        ("2.5bpw", "verdict"): "failure",
    }


def test_junit_fails_on_the_states_it_is_given_and_no_others():
    found = cases(example(), failing=[policy.INCONCLUSIVE])
    assert [each for each, mark in found.items() if mark == "failure"] == [
        ("3.5bpw", "drop of average"),
        ("3.5bpw", "verdict"),
    ]
    assert "failure" not in cases(example(), failing=[]).values()


def judged(state, demands=(), missing=(), evidence="not settled"):
    verdict = VerdictResult(state, state, evidence, "because", list(demands), list(missing))
    return [replace(example().candidates[0], verdict=verdict)]


def test_junit_skips_an_open_demand_beside_a_broken_one():
    demands = [
        DemandResult("average", 3, 4, 3.2, 4.8, False, "refuted"),
        DemandResult("gsm8k", 2, 1, -1, 3, True, "not settled"),
        DemandResult("mmlu", 3, 1, 0.5, 1.5, True, "supported"),
    ]
    found = cases(example(candidates=judged("do not ship", demands, evidence="refuted")))
    assert list(found.values()) == ["failure", "skipped", "passed", "failure"]


def test_junit_by_estimate_knows_only_holds_and_broken():
    demands = [
        DemandResult("a", 3, 4, 1, 7, False, "not settled"),
        DemandResult("b", 3, 1, -2, 4, True, "not settled"),
    ]
    candidates = judged("do not ship", demands)
    found = cases(example(candidates=candidates, decide_by="estimate"))
    assert list(found.values()) == ["failure", "passed", "failure"]


@pytest.mark.parametrize(("failing", "mark"), [([], "skipped"), (["cannot compare"], "failure")])
def test_junit_names_what_is_missing(failing, mark):
    found = cases(example(candidates=judged("cannot compare", missing=["gsm8k"])), failing=failing)
    assert found == {("6.0bpw", "drop of gsm8k"): mark, ("6.0bpw", "verdict"): mark}


def test_junit_holds_any_text():
    text = f"{HOSTILE}\x00\ud800\uffff]]><!--"
    found = changed(example(), str, text)
    root = ElementTree.fromstring(to_junit(found).encode())
    assert "<script>alert(1)</script>" in root[0].get("name")


def test_json_comes_back_as_the_same_records(tmp_path):
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(to_json(example())), encoding="utf-8")
    assert read_comparison(path) == example()
    assert from_json(to_json(example())) == example(), "without a file in between"


def test_json_of_another_format_is_refused():
    for found in ({**to_json(example()), "format": 2}, {}, [], None, "text"):
        with pytest.raises(ComparisonError, match="no comparison of format 1"):
            from_json(found)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ["candidates", 0, "units", 1, "documents"],
            "many",
            r"units\[\]\.documents is 'many', exp",
        ),
        (["candidates", 0, "units", 1, "documents"], 1.5, "expected int"),
        (["candidates", 0, "units", 1, "documents"], True, "expected int"),
        (["candidates", 0, "units", 0, "macro"], [0.5], "expected 2 values"),
        (["candidates", 0, "units", 0, "baseline"], None, "expected an object"),
        (["candidates", 0, "not_compared"], [], "expected a dict"),
        (["baseline", "label"], None, "expected str"),
        (["accepts"], "3", "expected float"),
        (["surprise"], 1, "unknown field 'surprise'"),
    ],
)
def test_json_that_does_not_fit_is_one_line_that_says_where(path, value, message):
    found = to_json(example())
    *way, last = path
    place = found
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(ComparisonError, match=message) as error:
        from_json(found)
    assert "\n" not in str(error.value)


def test_json_without_a_needed_field_is_refused_and_without_an_optional_one_is_not():
    found = to_json(example())
    del found["candidates"][0]["units"][0]["warnings"]
    assert from_json(found) == example()
    del found["candidates"][0]["variant"]
    with pytest.raises(ComparisonError, match="lacks the field 'variant'"):
        from_json(found)


def test_a_file_that_is_no_json_is_one_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{", encoding="utf-8")
    for each in (path, tmp_path / "missing.json"):
        with pytest.raises(ComparisonError, match="cannot be read as JSON"):
            read_comparison(each)


def card_rows(comparison):
    lines = [line for line in to_card(comparison).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_card_has_the_columns_of_exl2_cards():
    header, _, baseline, *candidates = card_rows(example())
    assert header == [
        *("Quant", "Weights", "Perplexity, exl2_wikitext2_ppl"),
        *("mmlu acc", "gsm8k exact_match", "winogrande acc", "Recovery"),
    ]
    assert baseline[:3] == ["fp16 (16.00 bpw)", "16.06 GB", "5.472 [5.310, 5.640]"]
    assert [row[0] for row in candidates] == [
        f"{bits}bpw ({bits}0 bpw)" for bits in ("6.0", "3.5", "2.5")
    ]


def test_the_card_gives_recovery_with_the_bounds_of_the_drop():
    drop = example().candidates[2].average.relative
    shown = [f"{100 - value:.1f}" for value in (drop.estimate, drop.upper, drop.lower)]
    assert card_rows(example())[4 + 1][-1] == f"{shown[0]} % [{shown[1]}, {shown[2]}]"


def test_the_card_says_where_only_a_part_was_measured():
    assert "(412 of 1,319 documents)" in card_rows(example())[4][4]


def test_the_card_has_a_dash_where_a_task_is_missing():
    first, second, _ = example().candidates
    without = replace(second, units=second.units[1:], average=None)
    row = card_rows(example(candidates=[first, without]))[4]
    assert (row[3], row[-1]) == ("\N{EN DASH}", "\N{EN DASH}")


def test_eval_results_hold_full_runs_of_registered_benchmarks_only():
    full, part, _ = example().candidates
    assert yaml.safe_load(eval_results(full)) == [
        {
            "dataset": {"id": "openai/gsm8k", "task_id": "gsm8k"},
            "value": 74.9,
            "notes": "6.00 bpw, lm-evaluation-harness task gsm8k, exact_match, strict-match, "
            "1319 documents",
            "date": "2026-11-02",
        }
    ]
    assert eval_results(part) == ""
    assert eval_results(replace(full, units=[mmlu(0.001)])) == ""


def test_eval_results_take_other_benchmarks_by_name_and_no_date_that_is_not_sure():
    full = example().candidates[0]
    several = replace(full, variant=replace(full.variant, times=["2026-11-02T1", "2026-11-03T1"]))
    found = yaml.safe_load(eval_results(several, {"mmlu": Registered("cais/mmlu", "mmlu")}))
    assert [each["dataset"]["id"] for each in found] == ["cais/mmlu"]
    assert "date" not in found[0]
    odd = replace(full, variant=replace(full.variant, times=["yesterday"]))
    assert "date" not in yaml.safe_load(eval_results(odd))[0]


def test_no_form_shows_a_number_that_is_none():
    found = changed(example(), float, math.nan)
    for text in (to_card(found), to_junit(found), eval_results(found.candidates[0])):
        assert "nan" not in text.lower().replace("natalia", "")
