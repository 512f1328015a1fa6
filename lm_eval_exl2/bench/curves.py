"""Lines over two axes, as an SVG drawing in the colours of compare's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lm_eval_exl2.compare.render import svg
from lm_eval_exl2.compare.render.axes import Frame

COLOURS = 6
"""Classes `l0` to `l5` of the page; further lines begin again."""
_LEGEND_PX = 16


@dataclass(frozen=True, slots=True)
class Line:
    """Points from left to right, and the name in the legend."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Curves:
    """What a drawing of lines shows."""

    says: str
    """The whole in a sentence, for readers that cannot see it."""
    x_title: str
    y_title: str
    lines: Sequence[Line]
    marked: bool = False
    """Whether each point has a mark: measurements rather than a distribution."""
    width: int = 440
    height: int = 280


def draw(curves: Curves) -> Markup:
    """Draw axes, lines and a legend below."""
    frame = Frame(curves.width, curves.height)
    places = [point for line in curves.lines for point in line.points]
    x = frame.x_scale([across for across, _ in places])
    y = frame.y_scale([up for _, up in places])
    body = [frame.axes(x, y, x_title=curves.x_title, y_title=curves.y_title)]
    for number, line in enumerate(curves.lines):
        body += _line(line, number, x, y, marked=curves.marked)
        body.append(_legend(line.name, number, curves.height + _LEGEND_PX * number + 6))
    height = curves.height + _LEGEND_PX * len(curves.lines) + 6
    return svg.drawing(curves.width, height, "".join(body), says=curves.says)


def _line(line: Line, number: int, x: svg.Scale, y: svg.Scale, *, marked: bool) -> list[str]:
    colour = f"l{number % COLOURS}"
    path = "L".join(f"{x(across):.1f} {y(up):.1f}" for across, up in line.points)
    drawn = [svg.element("path", d=f"M{path}", class_=f"line {colour}")]
    if marked:
        drawn += [
            svg.element("circle", cx=x(across), cy=y(up), r=4, class_=f"mark {colour}")
            for across, up in line.points
        ]
    return drawn


def _legend(name: str, number: int, y: int) -> str:
    colour = f"line l{number % COLOURS}"
    stroke = svg.element("line", x1=10, x2=34, y1=y, y2=y, class_=colour)
    return stroke + svg.label(42, y + 4, name, class_="tick")
