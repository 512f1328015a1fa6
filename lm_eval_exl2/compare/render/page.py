"""A report as one HTML page: nothing is loaded, nothing is run, every text is escaped."""

from __future__ import annotations

from pathlib import Path

import jinja2

from lm_eval_exl2.compare.render import plots, report
from lm_eval_exl2.compare.render.blocks import QUESTIONS, Block
from lm_eval_exl2.compare.render.words import visible
from lm_eval_exl2.compare.results import Comparison


def to_html(comparison: Comparison) -> str:
    """Write the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_clean,
    )
    found = report.build(comparison)
    return environment.get_template("page.html").render(
        comparison=comparison,
        report=found,
        lines=list(zip(QUESTIONS, found.lines, strict=True)),
        figures=plots.figures(comparison),
        kind=_kind,
        state_class=_state_class,
    )


def _clean(value: object) -> object:
    """Texts without control characters, units beside their numbers; markup stays as it is."""
    return visible(value).replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value


def _kind(block: Block) -> str:
    return type(block).__name__.lower()


def _state_class(cell: str) -> str:
    return plots.STATE_CLASSES.get(cell.partition(",")[0], "s-baseline")
