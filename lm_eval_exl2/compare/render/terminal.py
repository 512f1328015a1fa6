"""A report on a terminal, with rich where it is installed; folded parts are named, not shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from lm_eval_exl2.compare import policy
from lm_eval_exl2.compare.render import report
from lm_eval_exl2.compare.render.blocks import (
    QUESTIONS,
    Block,
    Bullets,
    Folded,
    Section,
    Table,
    Text,
)
from lm_eval_exl2.compare.render.markdown import to_markdown, write_section
from lm_eval_exl2.compare.render.words import ABSENT, visible
from lm_eval_exl2.compare.results import Comparison

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {
    policy.SHIP: "bold green",
    policy.ACCEPTABLE: "green",
    policy.MARGINAL: "bold yellow",
    policy.DO_NOT_SHIP: "bold red",
    policy.INCONCLUSIVE: "bold cyan",
    policy.CANNOT_COMPARE: "bold magenta",
}


def print_report(
    comparison: Comparison, file: TextIO | None = None, *, width: int | None = None
) -> None:
    """Print the report; without rich its Markdown.

    Args:
        comparison: What to show.
        file: Where to; standard output if it is not given.
        width: Columns; those of the terminal if it is not given.
    """
    console = _console(file, width)
    if console is None:
        (file or sys.stdout).write(to_markdown(comparison))
        return
    found = report.build(comparison)
    for question, line in zip(QUESTIONS, found.lines, strict=True):
        _print(console, f"{question} ", line)
    for section in [*found.overview, *found.details, found.method]:
        _section(console, section)


def print_sections(
    sections: Sequence[Section], file: TextIO | None = None, *, width: int | None = None
) -> None:
    """Print sections of any report; without rich their Markdown. Arguments as above."""
    console = _console(file, width)
    if console is None:
        (file or sys.stdout).write("\n\n".join(map(write_section, sections)) + "\n")
        return
    for section in sections:
        _section(console, section)


def _console(file: TextIO | None, width: int | None) -> Console | None:
    """None where rich is not installed."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def _print(console: Console, strong: str, text: str, *, style: str = "") -> None:
    from rich.text import Text as RichText

    console.print(RichText.assemble((visible(strong), "bold"), (visible(text), style)))


def _section(console: Console, section: Section) -> None:
    console.print()
    _print(console, section.title if section.level == 2 else f"  {section.title}", "")
    for block in section.blocks:
        _block(console, block)


def _block(console: Console, block: Block) -> None:
    if isinstance(block, Text):
        _print(console, "", block.text)
    elif isinstance(block, Bullets):
        for item in block.items:
            _print(console, "- ", item)
    elif isinstance(block, Folded):
        _print(console, "", f"{block.summary}: in the Markdown and HTML reports", style="dim")
    else:
        _table(console, block)


def _table(console: Console, table: Table) -> None:
    from rich import box
    from rich.cells import cell_len
    from rich.measure import Measurement
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(table.header):
        side = "left" if place in table.left else "right"
        # A heading may take several lines, a cell may not.
        parts = [*name.split(), *(row[place] for row in table.rows)]
        widest = max((cell_len(visible(part)) for part in parts), default=1)
        shown.add_column(RichText(visible(name)), justify=side, overflow="fold", max_width=widest)
    for row in table.rows:
        cells = [RichText(visible(cell)) for cell in row]
        if table.states is not None:
            cells[table.states].stylize(_STYLES.get(row[table.states].partition(",")[0], ""))
        shown.add_row(*cells)
    unlimited = console.options.update_width(10_000)
    if Measurement.get(console, unlimited, shown).maximum <= console.width:
        console.print(shown)
    else:
        _rows(console, table)
    if table.caption:
        _print(console, "", table.caption, style="dim")


def _rows(console: Console, table: Table) -> None:
    """A table that is too wide, row by row."""
    for first, *cells in table.rows:
        named = zip(table.header[1:], cells, strict=True)
        _print(
            console,
            f"- {first}: ",
            "; ".join(f"{name} {cell}" for name, cell in named if cell not in ("", ABSENT)),
        )
