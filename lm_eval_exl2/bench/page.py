"""A run's report as one HTML page with its plots: nothing is loaded, every text is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from lm_eval_exl2.bench import plots, report
from lm_eval_exl2.compare import render
from lm_eval_exl2.compare.render.words import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_exl2.compare.results import Comparison


def to_html(document: Mapping[str, Any], comparison: Comparison | None = None) -> str:
    """Write the page.

    Args:
        document: Of `bench --json`.
        comparison: Of `compare --json`, for quality against speed.
    """
    folders = [Path(__file__).parent, Path(render.__file__).parent]  # the style is compare's
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_clean,
    )
    return environment.get_template("bench.html").render(
        head=list(report.head(document)),
        tables=list(report.tables(document)),
        figures=plots.figures(document, comparison),
    )


def _clean(value: object) -> object:
    """Texts without control characters; markup stays as it is."""
    return visible(value) if type(value) is str else value
