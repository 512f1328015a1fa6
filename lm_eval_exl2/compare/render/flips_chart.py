"""Changed answers by task: bars to both sides of a line, one drawing per candidate."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from lm_eval_exl2.compare.render import svg
from lm_eval_exl2.compare.render.words import count, share
from lm_eval_exl2.compare.results import CandidateResult, Comparison, FlipCounts, UnitResult

_WIDTH, _NAMES, _ROW, _TOP = 440, 156, 26, 46
_LEFT, _RIGHT = 46, 96
"""Room for the numbers at the ends of the bars."""
_LEGEND = (("f-lost", "lost"), ("f-gained", "gained"), ("f-other", "other wrong"))


def draw(comparison: Comparison) -> list[Markup]:
    """One drawing per candidate with changed answers, all on the same scale."""
    found = [(each, _flips(each)) for each in comparison.candidates]
    shares = [_shares(*row) for _, rows in found for row in rows]
    if not shares:
        return []
    most = [max(side) for side in zip(*shares, strict=True)]
    pixels = (_WIDTH - _NAMES - _LEFT - _RIGHT) / (sum(most) or 1)
    line = _Line(_NAMES + _LEFT + most[0] * pixels, pixels)
    return [_draw(each, rows, line) for each, rows in found if rows]


class _Line(NamedTuple):
    """Where the bars begin."""

    x: float
    pixels: float
    """Per share of 1."""


Row = tuple[UnitResult, FlipCounts]


def _flips(candidate: CandidateResult) -> list[Row]:
    pairs = [(unit, unit.flips) for unit in candidate.units]
    return [(unit, flips) for unit, flips in pairs if flips is not None and unit.documents]


def _shares(unit: UnitResult, flips: FlipCounts) -> tuple[float, float]:
    """To the left and to the right of the line."""
    right = flips.gained + (flips.other_wrong or 0)
    return flips.lost / unit.documents, right / unit.documents


def _draw(candidate: CandidateResult, rows: list[Row], line: _Line) -> Markup:
    height = _TOP + _ROW * len(rows) + 8
    body = [svg.label(8, 14, candidate.variant.label, class_="axis-title")]
    for place, (style, name) in enumerate(_LEGEND):
        x = _NAMES + 90 * place
        body.append(svg.element("rect", x=x, y=25, width=10, height=10, class_=style))
        body.append(svg.label(x + 15, 34, name, class_="tick"))
    body += [_row(*row, _TOP + _ROW * place, line) for place, row in enumerate(rows)]
    ends = {"x1": line.x, "x2": line.x, "y1": _TOP - 2, "y2": height - 8}
    body.append(svg.element("line", class_="axis", **ends))
    says = f"answers that changed with {candidate.variant.label}, by task"
    return svg.drawing(_WIDTH, height, "".join(body), says=says)


def _row(unit: UnitResult, flips: FlipCounts, top: float, line: _Line) -> str:
    middle, pixels = line.x, line.pixels / unit.documents
    lost, gained = flips.lost * pixels, flips.gained * pixels
    other = (flips.other_wrong or 0) * pixels
    at = {"y": top + 4, "height": _ROW - 8}
    name = unit.name if len(unit.name) <= 21 else f"{unit.name[:20]}\N{HORIZONTAL ELLIPSIS}"
    right = " + ".join(
        count(each) for each in (flips.gained, flips.other_wrong) if each is not None
    )
    says = f"{unit.name}: {share(flips.churn, 2)} of {count(unit.documents)} documents changed"
    parts = [
        svg.title(says),
        svg.label(_NAMES - 4, top + _ROW / 2 + 4, name, text_anchor="end", class_="name"),
        svg.element("rect", x=middle - lost, width=lost, class_="f-lost", **at),
        svg.element("rect", x=middle, width=gained, class_="f-gained", **at),
        svg.element("rect", x=middle + gained, width=other, class_="f-other", **at),
        _count(middle - lost - 4, top, count(flips.lost), "end"),
        _count(middle + gained + other + 4, top, right, "start"),
    ]
    return svg.element("g", "".join(parts))


def _count(x: float, top: float, text: str, anchor: str) -> str:
    return svg.label(x, top + _ROW / 2 + 4, text, text_anchor=anchor, class_="tick")
