"""The Markdown report: golden text, and nothing in a document becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from comparison_example import DATA, HOSTILE, changed, example, gsm8k
from comparison_mmlu import mmlu
from hypothesis import example as given_example
from hypothesis import given
from hypothesis import strategies as some

from lm_eval_exl2.compare.render.markdown import escape, step_summary, to_markdown
from lm_eval_exl2.compare.results import Bounds

markdown_it = pytest.importorskip("markdown_it", reason="the parser that rich brings")
PARSER = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])

BARE = replace(
    example().candidates[0], units=[], average=None, flips=[], not_compared={}, warnings=[]
)
MARKUP = some.text(alphabet="ab1 _*`~|[]()!<>&#-+=.:/\\\n\t@$^{}\"'", max_size=30)


def plain_text(tokens):
    """What a reader sees; raises at anything that is more than text."""
    found = []
    for token in tokens:
        if token.type == "html_inline":
            assert token.content == "<br>", token.content
            found.append("\n")
        else:
            assert token.type in ("text", "text_special"), token.type
            found.append(token.content)
    return "".join(found)


def read_back(text):
    return text.replace("@\u200b", "@")


@given(MARKUP)
def test_any_text_in_a_cell_is_read_back_as_it_was(text):
    tokens = PARSER.parse(f"| a | b |\n| --- | --- |\n| {escape(text)} | x |\n")
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4, "the text broke out of its cell"
    assert read_back(plain_text(cells[2].children)).split() == text.split()


@given(MARKUP)
@given_example("# a")
@given_example("- a")
@given_example("+")
@given_example("12) a")
@given_example("---")
@given_example("    code")
def test_any_text_in_a_list_is_one_item_and_nothing_else(text):
    written = to_markdown(example(candidates=[BARE], notes=[f"x{text}", text]))
    begin = written.index("smaller and better.*") + 20
    tokens = PARSER.parse(written[begin : written.index("## 6.0bpw: ship")])
    kinds = [token.type for token in tokens if not token.type.endswith("_close")]
    expected = ["bullet_list_open"] + ["list_item_open", "paragraph_open", "inline"] * 2
    if not text.strip():
        expected = expected[:-2]
    assert kinds == expected
    shown = [plain_text(token.children) for token in tokens if token.type == "inline"]
    assert read_back(shown[0]).split() == f"x{text}".split()


@pytest.mark.parametrize(
    "text", ["https://evil.example", "www.evil.example", "@maintainer", "![x](http://e)", "[a]: b"]
)
def test_no_text_becomes_a_link_or_a_mention(text):
    shown = escape(text)
    assert not re.search(r"://|www\.|@\w|(?<!\\)\][(:]", shown)


def test_the_report_is_the_golden_one():
    expected = (DATA / "comparison.md").read_text(encoding="utf-8")
    assert to_markdown(example()) == expected, "python tests/comparison_example.py writes it again"


def test_the_first_three_lines_answer():
    first = to_markdown(example()).splitlines()[:3]
    assert [line.split("**")[1] for line in first] == ["Worse?", "By how much?", "How sure?"]


def test_unequal_settings_stand_above_the_matrix_and_this_above_the_details():
    text = to_markdown(example())
    places = [
        text.index(f"\n## {name}")
        for name in ("Unequal settings", "Decision matrix", "6.0bpw: ship", "Method")
    ]
    assert places == sorted(places)


def test_every_table_has_as_many_cells_in_each_row():
    hostile = changed(example(), str, HOSTILE)
    for text in (to_markdown(example()), to_markdown(hostile), step_summary(hostile)):
        for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
            rows = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
            assert len(set(rows)) == 1, table


def test_hostile_texts_everywhere_bring_no_html_but_ours():
    text = to_markdown(changed(example(), str, HOSTILE))
    assert set(re.findall(r"<[^>]*>", text)) == {
        "<br>", "<details>", "</details>", "<summary>", "</summary>",
    }  # fmt: skip
    assert "\x1b" not in text


def test_no_number_that_is_none_is_shown_as_one():
    for value in (float("nan"), float("inf")):
        text = to_markdown(changed(example(), float, value))
        assert not re.search(r"\b(nan|inf)\b", text, flags=re.IGNORECASE)


def test_the_report_says_what_the_statistics_were():
    text = to_markdown(example())
    for said in (
        "The question is non-inferiority at one-sided 5 %",
        "Tango score", "Wilson", "linear contrast", "Holm",
        "intersection-union", "fixed sequence", "TOST",
    ):  # fmt: skip
        assert said in text


def test_each_part_of_a_task_is_reported():
    text = to_markdown(example())
    for said in (
        "fewer than 6 lost and gained: cannot reach p &lt; .05",
        "6 of 57 subjects clearly worse",
        "57 have fewer than 50 documents",
        "flexible-extract beside strict-match",
        "no full set of this task can",
        "winogrande: the baseline's interval includes chance",
        "not compared: truthfulqa_mc2, only the baseline has samples",
        "412 of 1,319",
        "gsm8k cannot settle anything: --limit took the first 412 documents",
        "winogrande cannot support, only refute: a quick run screens",
        "1.0046 [1.0031, 1.0061]",
        "3.10 % [2.24 %, 4.18 %]",
    ):
        assert said in text, said


def test_recovery_has_the_bounds_of_the_drop_even_where_one_is_zero():
    first = example().candidates[0]
    unit = replace(first.units[1], relative=Bounds(0.4, 0.0, 1.9, "score"))
    text = to_markdown(example(candidates=[replace(first, units=[unit])]))
    assert "99.6 % [98.1, 100.0]" in text


def test_scores_that_are_no_shares_are_averaged_as_they_are():
    first = example().candidates[0]
    average = replace(first.average, baseline=31.25, candidate=30.5)
    text = to_markdown(example(candidates=[replace(first, average=average)]))
    assert "31.25 to 30.50" in text
    assert "3,125" not in text


def test_why_there_is_no_average_is_said():
    first = example().candidates[0]
    only = replace(first, average=None, units=first.units[2:3])
    text = to_markdown(example(candidates=[only]))
    assert "There is no average:\n\n- winogrande: the baseline's interval includes chance" in text


def test_the_method_is_silent_about_a_sequence_of_one():
    one = example(candidates=example().candidates[:1])
    assert "fixed sequence" not in to_markdown(one)


def test_averages_over_different_tasks_are_called_so():
    first, second, third = example().candidates
    average = third.average
    assert average is not None
    said = "averages are over different tasks"
    assert said not in to_markdown(example())
    other = changed(third, str, "same")  # every unit is named alike, so the average's are, too
    assert said in to_markdown(example(candidates=[first, second, other]))


def test_the_summary_of_a_job_is_short_and_begins_with_the_answer():
    text = step_summary(example())
    assert text.splitlines()[:3] == to_markdown(example()).splitlines()[:3]
    assert "| 3.5bpw | 4.08 GB |" in text
    assert text.count("Demands of profile general") == 3
    assert len(text) < 5000


def test_a_report_without_anything_optional_has_no_empty_section():
    text = to_markdown(example(candidates=[BARE], unequal_settings=[], notes=[]))
    headings = re.findall(r"^#+ .*", text, flags=re.MULTILINE)
    assert headings == ["## Decision matrix", "## 6.0bpw: ship", "## Method"]


def test_the_same_comparison_is_the_same_text():
    assert to_markdown(example()) == to_markdown(example())
    assert mmlu(0.01) == mmlu(0.01)
    assert gsm8k(0.7, (1, 0, 2)) == gsm8k(0.7, (1, 0, 2))
