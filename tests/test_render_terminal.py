"""The report on a terminal: its lines, narrow windows, hostile texts, and no rich at all."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from comparison_example import HOSTILE, changed, example

from lm_eval_exl2.compare.render import headline
from lm_eval_exl2.compare.render.markdown import to_markdown
from lm_eval_exl2.compare.render.terminal import print_report


def printed(comparison, **options):
    out = io.StringIO()
    print_report(comparison, out, **options)
    return out.getvalue()


def test_without_rich_the_markdown_is_printed(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert printed(example()) == to_markdown(example())


def test_standard_output_is_where_a_report_goes(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    print_report(example())
    assert capsys.readouterr().out == to_markdown(example())


def test_the_first_three_lines_answer():
    pytest.importorskip("rich")
    first = printed(example(), width=500).splitlines()[:3]
    for line, question, answer in zip(
        first, ("Worse?", "By how much?", "How sure?"), headline.lines(example()), strict=True
    ):
        assert line.rstrip() == f"{question} {answer}"


def test_no_line_is_wider_than_the_window_and_no_number_is_lost():
    pytest.importorskip("rich")
    wide, narrow = printed(example(), width=200), printed(example(), width=60)
    assert max(map(len, narrow.splitlines())) <= 60
    numbers = re.findall(r"\d[\d.,]*", wide)
    joined = " ".join(narrow.split())
    assert all(number in joined for number in numbers)


def test_what_is_folded_is_named_but_not_shown():
    pytest.importorskip("rich")
    text = printed(example(), width=200)
    assert "All 57 subjects of mmlu: in the Markdown and HTML reports" in text
    assert "Natalia" not in text


def test_texts_cannot_drive_the_terminal_or_its_markup():
    pytest.importorskip("rich")
    text = printed(changed(example(), str, f"{HOSTILE}[bold red]x[/] :smile:"), width=200)
    assert "\x1b" not in text
    assert "\\x1b[31m" in text
    assert "[bold red]x[/] :smile:" in " ".join(text.split())


def test_importing_the_reports_loads_no_harness_and_no_model():
    code = (
        "import sys\n"
        "from lm_eval_exl2.compare.render import "
        "from_json, junit, markdown, model_card, page, table, terminal\n"
        "print(sorted({'lm_eval', 'torch', 'transformers', 'datasets', 'rich', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
