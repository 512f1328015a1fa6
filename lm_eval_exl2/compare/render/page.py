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
    found = report.build(comparison)
    return template("page.html").render(
        comparison=comparison,
        report=found,
        lines=list(zip(QUESTIONS, found.lines, strict=True)),
        figures=plots.figures(comparison),
    )


def template(name: str, *folders: Path) -> jinja2.Template:
    """A page that may use the blocks and the style that are here.

    Args:
        name: Of the file.
        folders: Where it is, unless it is here.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_clean,
    )
    return environment.get_template(name, globals={"kind": _kind, "state_class": _state_class})


def _clean(value: object) -> object:
    """Texts without control characters, units beside their numbers; markup stays as it is."""
    return visible(value).replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value


def _kind(block: Block) -> str:
    return type(block).__name__.lower()


def _state_class(cell: str) -> str:
    return plots.STATE_CLASSES.get(cell.partition(",")[0], "s-baseline")
