"""Renders answers side by side as Markdown or HTML.

What a model wrote is data: nothing of it can become markup, a link or a script, and signs that
cannot be seen are spelled out. Standard library only.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_STYLE = (
    "body{font:15px/1.45 sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:2em}"
    "td,th{border:1px solid #bbb;padding:.5em;text-align:left;vertical-align:top}"
    "td{white-space:pre-wrap;overflow-wrap:anywhere}.fault{color:#a00;font-weight:bold}"
)


class Cell(NamedTuple):
    """A text and what is to be said about it."""

    text: str
    marks: tuple[str, ...] = ()
    """Faults, one line each."""


class Table(NamedTuple):
    """Rows of cells below a head; every row is as long as the head."""

    head: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]


def render_markdown(title: str, tables: Sequence[Table]) -> str:
    """Write tables in GitHub's Markdown; line breaks inside of a cell are `<br>`."""
    lines = [f"# {_escape_markdown(title)}"]
    for table in tables:
        lines += ["", _row(map(_escape_markdown, table.head)), _row("---" for _ in table.head)]
        lines += [_row(map(_markdown_cell, row)) for row in table.rows]
    return "\n".join(lines) + "\n"


def render_html(title: str, tables: Sequence[Table]) -> str:
    """Write tables as one HTML page that loads nothing and runs nothing."""
    heading = html.escape(_visible(title))
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{heading}</h1>\n"
        + "".join(map(_html_table, tables))
        + "</body>\n</html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(_visible(name))}</th>" for name in table.head)
    rows = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>\n" for row in table.rows)
    return f"<table>\n<tr>{head}</tr>\n{rows}</table>\n"


def _html_cell(cell: Cell) -> str:
    marks = "".join(
        f'\n<span class="fault">{html.escape(_visible(mark))}</span>' for mark in cell.marks
    )
    return f"<td>{html.escape(_visible(cell.text))}{marks}</td>"


def _markdown_cell(cell: Cell) -> str:
    marks = [f"**{_escape_markdown(mark)}**" for mark in cell.marks]
    return "<br>".join([_escape_markdown(cell.text), *marks])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape_markdown(text: str) -> str:
    """Every sign that Markdown, HTML or an automatic link could be made of, as an entity.

    The indentation of code is kept by blanks that do not break.
    """
    shown = re.sub(r"[^\w\s,;()'\"%?=.-]", lambda sign: f"&#{ord(sign[0])};", _visible(text))
    shown = re.sub(r"_", "&#95;", shown)
    shown = re.sub(r"(?i)\bwww\.", lambda start: f"{start[0][:-1]}&#46;", shown)
    shown = re.sub(r"(?m)^ +", lambda blanks: "&nbsp;" * len(blanks[0]), shown)
    return "<br>".join(shown.splitlines())


def _visible(text: str) -> str:
    """Control signs, such as those that reverse a line, and broken halves of signs, spelled out."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "".join(
        f"\\u{ord(sign):04x}" if sign != "\n" and unicodedata.category(sign)[0] == "C" else sign
        for sign in text
    )
