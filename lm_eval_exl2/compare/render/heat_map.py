"""Parts of a group by candidate, such as MMLU's subjects: a heat map of differences in points."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lm_eval_exl2.compare.render import svg
from lm_eval_exl2.compare.render.flips import FEW_DOCUMENTS, parts_sentence
from lm_eval_exl2.compare.render.words import count, is_known, number, p_value
from lm_eval_exl2.compare.results import Comparison, Part, UnitResult

CAPTION = (
    "Candidate minus baseline in points; orange is worse, blue is better. Hatched: fewer than "
    f"{FEW_DOCUMENTS} documents, or not significant (p of McNemar's exact test .05 or more, not "
    "adjusted). Framed: clearly worse, Holm-adjusted."
)
_NAMES, _CELL, _ROW, _TOP = 210, 64, 18, 52
_HATCH = "hatch"

Column = tuple[str, UnitResult]


def draw_all(comparison: Comparison) -> list[tuple[str, Markup]]:
    """One drawing for each group that has parts, with the group's name."""
    groups: dict[str, list[Column]] = {}
    for each in comparison.candidates:
        for unit in each.units:
            if unit.parts:
                groups.setdefault(unit.name, []).append((each.variant.label, unit))
    return [(name, _draw(name, place, found)) for place, (name, found) in enumerate(groups.items())]


def _draw(group: str, place: int, columns: Sequence[Column]) -> Markup:
    """A column per candidate, a row per part."""
    names = list(dict.fromkeys(part.name for _, unit in columns for part in unit.parts))
    cells = [{part.name: part for part in unit.parts} for _, unit in columns]
    points = [abs(_points(part)) for column in cells for part in column.values()]
    most = max([point for point in points if is_known(point)], default=0.0) or 1.0
    hatch = f"{_HATCH}-{place}"
    body = [_pattern(hatch), *_heads(columns)]
    for row, name in enumerate(names):
        top = _TOP + _ROW * row
        short = name.removeprefix(f"{group}_").replace("_", " ")
        short = short if len(short) <= 29 else f"{short[:28]}\N{HORIZONTAL ELLIPSIS}"
        body.append(svg.label(_NAMES - 6, top + 13, short, text_anchor="end", class_="name"))
        found = [(_left(at), column[name]) for at, column in enumerate(cells) if name in column]
        body += [_cell(part, left, top, most, hatch) for left, part in found]
    width, height = _NAMES + _CELL * len(columns) + 8, _TOP + _ROW * len(names) + 8
    says = f"differences by part of {group}: " + "; ".join(
        f"{label}, {parts_sentence(unit)}" for label, unit in columns
    )
    return svg.drawing(max(width, 300), height, "".join(body), says=says)


def _left(column: int) -> float:
    return _NAMES + _CELL * column


def _points(part: Part) -> float:
    return 100 * (part.candidate - part.baseline)


def _pattern(name: str) -> str:
    line = svg.element("path", d="M-1 1l2 -2M0 6l6 -6M5 7l2 -2", class_="hatch")
    units = {"patternUnits": "userSpaceOnUse"}
    return svg.element("defs", svg.element("pattern", line, id=name, width=6, height=6, **units))


def _heads(columns: Sequence[Column]) -> list[str]:
    parts: list[str] = []
    for place, (name, unit) in enumerate(columns):
        middle = _left(place) + _CELL / 2
        short = name if len(name) <= 9 else f"{name[:8]}\N{HORIZONTAL ELLIPSIS}"
        worse = sum(part.clearly_worse for part in unit.parts)
        head = svg.label(middle, 16, short, text_anchor="middle", class_="axis-title")
        text = f"{worse} of {len(unit.parts)}"
        parts.append(svg.element("g", svg.title(f"{name}: {parts_sentence(unit)}") + head))
        parts.append(svg.label(middle, 32, text, text_anchor="middle", class_="tick"))
        parts.append(svg.label(middle, 45, "worse", text_anchor="middle", class_="tick"))
    return parts


def _cell(part: Part, left: float, top: float, most: float, hatch: str) -> str:
    points = _points(part)
    at = {"x": left + 1, "y": top + 1, "width": _CELL - 2, "height": _ROW - 2}
    style = "h-worse" if points < 0 else "h-better"
    strength = f"{0.8 * min(1.0, abs(points) / most):.2f}" if is_known(points) else "0"
    says = f"{part.name}: {number(points, 1, sign=True)} points, {count(part.documents)} documents"
    parts = [
        svg.title(f"{says}, p {p_value(part.p)}"),
        svg.element("rect", class_=style, fill_opacity=strength, **at),
    ]
    if not is_significant(part):
        parts.append(svg.element("rect", fill=f"url(#{hatch})", **at))
    if part.clearly_worse:
        parts.append(svg.element("rect", class_="frame", **at))
    text = number(points, 1, sign=True)
    middle = left + _CELL / 2
    parts.append(svg.label(middle, top + 13, text, text_anchor="middle", class_="cell"))
    return svg.element("g", "".join(parts))


def is_significant(part: Part) -> bool:
    """Whether a cell is shown without hatching."""
    enough = part.documents >= FEW_DOCUMENTS
    return enough and (part.clearly_worse or (is_known(part.p) and part.p < 0.05))
