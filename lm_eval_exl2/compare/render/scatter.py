"""Scores against size, as points with whiskers: an SVG drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from lm_eval_exl2.compare.render import svg
from lm_eval_exl2.compare.render.axes import Frame
from lm_eval_exl2.compare.render.words import ABSENT, is_known, number


@dataclass(frozen=True, slots=True)
class Point:
    """One variant in a plot."""

    name: str
    x: float
    y: float
    lower: float | None
    upper: float | None
    class_: str
    """Of the page's styles: the colour of a state."""
    on_front: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """What a drawing of points shows."""

    says: str
    """The whole in a sentence, for readers that cannot see it."""
    x_title: str
    y_title: str
    points: Sequence[Point]
    baseline: Point | None
    """Drawn as a diamond and as a line across."""
    accepted: float | None = None
    """Another line across: the worst that is accepted."""
    width: int = 440
    height: int = 280
    named: bool = True
    """Whether names stand beside the points."""


def draw(plot: Plot) -> Markup:
    """Draw points, whiskers, names and axes."""
    all_points = [*plot.points, *([plot.baseline] if plot.baseline else [])]
    heights = [end for each in all_points for end in (each.y, each.lower, each.upper)]
    lines = [plot.accepted]
    frame = Frame(plot.width, plot.height)
    x = frame.x_scale([each.x for each in all_points])
    y = frame.y_scale([each for each in [*heights, *lines] if is_known(each)])
    body = [
        frame.axes(x, y, x_title=plot.x_title, y_title=plot.y_title),
        *_across(plot, frame, y),
        *(_point(each, x, y) for each in plot.points),
    ]
    if plot.baseline:
        body.append(_diamond(plot.baseline, x, y))
    if plot.named:
        body += _names(all_points, x, y, plot.width)
    return svg.drawing(plot.width, plot.height, "".join(body), says=plot.says)


def _across(plot: Plot, frame: Frame, y: svg.Scale) -> list[str]:
    found = [(plot.baseline and plot.baseline.y, "baseline"), (plot.accepted, "accepted")]
    return [
        svg.element(
            "line", x1=frame.left, x2=frame.right, y1=y(at), y2=y(at), class_=f"across {name}"
        )
        for at, name in found
        if is_known(at)
    ]


def _point(point: Point, x: svg.Scale, y: svg.Scale) -> str:
    kind = "dot front" if point.on_front else "dot"
    mark = svg.element("circle", cx=x(point.x), cy=y(point.y), r=5, class_=kind)
    return _group(point, _whisker(point, x, y) + mark)


def _diamond(point: Point, x: svg.Scale, y: svg.Scale) -> str:
    across, up = x(point.x), y(point.y)
    corners = f"M{across:.1f} {up - 6:.1f}l6 6l-6 6l-6 -6z"
    return _group(point, _whisker(point, x, y) + svg.element("path", d=corners, class_="dot front"))


def _group(point: Point, body: str) -> str:
    ends = [number(each) if is_known(each) else ABSENT for each in (point.lower, point.upper)]
    says = f"{point.name}: {number(point.y)} [{', '.join(ends)}]"
    return svg.element("g", svg.title(says) + body, class_=point.class_)


def _whisker(point: Point, x: svg.Scale, y: svg.Scale) -> str:
    if not (is_known(point.lower) and is_known(point.upper)):
        return ""
    at, low, high = x(point.x), y(point.lower), y(point.upper)
    path = f"M{at:.1f} {low:.1f}V{high:.1f}M{at - 4:.1f} {low:.1f}h8M{at - 4:.1f} {high:.1f}h8"
    return svg.element("path", d=path, class_="whisker")


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        """Whether two boxes share a place."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def _names(points: Sequence[Point], x: svg.Scale, y: svg.Scale, width: int) -> list[str]:
    """Names beside the points, each at the first place where it meets no mark or other name."""
    taken = [_mark_box(each, x, y) for each in points]
    drawn: list[str] = []
    for point in points:
        at, up = x(point.x), y(point.y)
        name = point.name if len(point.name) <= 24 else f"{point.name[:23]}\N{HORIZONTAL ELLIPSIS}"
        box = _free_place(at, up, 6.6 * len(name), taken, width)
        taken.append(box)
        drawn.append(svg.label(box.left, box.bottom - 3, name, class_="name"))
    return drawn


def _mark_box(point: Point, x: svg.Scale, y: svg.Scale) -> _Box:
    heights = [y(each) for each in (point.y, point.lower, point.upper) if is_known(each)]
    return _Box(x(point.x) - 6, min(heights) - 6, x(point.x) + 6, max(heights) + 6)


def _free_place(at: float, up: float, wide: float, taken: Sequence[_Box], width: int) -> _Box:
    right = _Box(at + 9, up - 8, at + 9 + wide, up + 6)
    left = replace(right, left=at - 9 - wide, right=at - 9)
    places = [
        replace(side, top=side.top + shift, bottom=side.bottom + shift)
        for shift in (-9, 11, -23, 25, -37, 39)
        for side in (right, left)
        if side.left >= 0 and side.right <= width - 4
    ]
    free = [each for each in places if not any(each.meets(other) for other in taken)]
    return next(iter([*free, *places, right]))
