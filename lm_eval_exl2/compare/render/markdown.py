"""A report as GitHub-flavoured Markdown; every text that is not ours is escaped."""

from __future__ import annotations

import html
import re

from lm_eval_exl2.compare.render import candidate, report
from lm_eval_exl2.compare.render.blocks import (
    QUESTIONS,
    Block,
    Bullets,
    Folded,
    Section,
    Table,
    Text,
)
from lm_eval_exl2.compare.render.words import visible
from lm_eval_exl2.compare.results import Comparison

# Not within: an underscore inside a word (gsm8k_cot), and brackets that no link can follow.
_SPECIAL = re.compile(r"[\\`*|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\](?=[(\[:])")
# At the beginning of a line these open a list, a heading, a line across or a box to tick.
_OPENING = re.compile(
    r"^(?:(\d+)(?=[.)](?:\s|$))|(?=[-+](?:[-\s]|$))|(?=#+(?:\s|$))|(?=\[[ xX]\]))"
)
_NO_MENTION = "@&#8203;"
"""A zero-width space behind @, which GitHub would take for a person."""


def to_markdown(comparison: Comparison) -> str:
    """The whole report; its first three lines say: worse or not, by how much, how sure."""
    found = report.build(comparison)
    sections = [*found.overview, *found.details, found.method]
    return "\n\n".join([_lines(found.lines), *map(write_section, sections)]) + "\n"


def step_summary(comparison: Comparison) -> str:
    """A short form for the summary page of a CI job: three lines, matrix, demands."""
    found = report.build(comparison)
    parts = [_lines(found.lines), write_table(report.matrix(comparison))]
    for each in comparison.candidates:
        if each.verdict.demands:
            parts += [f"### {escape(each.variant.label)}"]
            parts += [write_table(candidate.demands(comparison, each))]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Any text as one line that Markdown shows as it is: no markup, HTML, links or mentions."""
    text = html.escape(visible(text), quote=False)
    text = _SPECIAL.sub(lambda found: "\\" + found[0], text)
    text = text.replace("://", ":\\//").replace("www.", "www\\.").replace("@", _NO_MENTION)
    return text.replace("\n", "<br>").replace("\t", " ")


def _line(text: str) -> str:
    """A text that begins a line of its own."""
    return _OPENING.sub(r"\1\\", escape(text.lstrip()))


def _lines(lines: list[str]) -> str:
    pairs = zip(QUESTIONS, lines, strict=True)
    return "\n".join(f"- **{question}** {escape(line)}" for question, line in pairs)


def write_section(section: Section) -> str:
    """A heading and its blocks."""
    heading = f"{'#' * section.level} {_line(section.title)}"
    return "\n\n".join([heading, *map(_block, section.blocks)])


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return _line(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_line(item)}" for item in block.items)
    if isinstance(block, Folded):
        return _folded(block)
    return write_table(block)


def _folded(block: Folded) -> str:
    inner = "\n\n".join(map(_block, block.blocks))
    summary = html.escape(visible(block.summary))
    return f"<details><summary>{summary}</summary>\n\n{inner}\n\n</details>"


def write_table(table: Table) -> str:
    """A table and, below it, its caption."""
    rules = [":---" if place in table.left else "---:" for place in range(len(table.header))]
    rows = [_row(table.header), "| " + " | ".join(rules) + " |", *map(_row, table.rows)]
    caption = f"\n\n*{escape(table.caption)}*" if table.caption else ""
    return "\n".join(rows) + caption


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"
