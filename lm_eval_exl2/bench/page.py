"""A run's report as one HTML page with its plots: nothing is loaded, every text is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.bench import plots, report
from lm_eval_exl2.compare.render.page import template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_exl2.compare.results import Comparison


def to_html(document: Mapping[str, Any], comparison: Comparison | None = None) -> str:
    """Write the page.

    Args:
        document: Of `bench --json`.
        comparison: Of `compare --json`, for quality against speed.
    """
    return template("bench.html", Path(__file__).parent).render(
        sections=report.sections(document), figures=plots.figures(document, comparison)
    )
