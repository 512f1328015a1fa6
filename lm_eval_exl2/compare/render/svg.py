"""Drawings as SVG text: elements, escaped texts, and axes. Colours are classes of the page."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from markupsafe import Markup

from lm_eval_exl2.compare.render.words import visible

Attribute = str | float


def element(name: str, content: str = "", /, **attributes: Attribute) -> str:
    """An element; `content` is SVG already, attributes are escaped here.

    Args:
        name: Of the element.
        content: What is inside.
        **attributes: `class_` is class; other underscores are hyphens.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def _attribute(value: Attribute) -> str:
    if isinstance(value, str):
        return html.escape(visible(value))
    return f"{round(value, 1) + 0:g}"


def label(x: float, y: float, words: str, **attributes: Attribute) -> str:
    """A text; the words are escaped."""
    return element("text", html.escape(visible(words)), x=x, y=y, **attributes)


def title(words: str) -> str:
    """What a pointer over the surrounding element shows."""
    return element("title", html.escape(visible(words)))


def drawing(width: float, height: float, body: str, *, says: str) -> Markup:
    """A whole drawing.

    Args:
        width: In pixels, at most; a narrow window scales it down.
        height: In pixels.
        body: Elements.
        says: What it shows, for readers that cannot see it.
    """
    return Markup(
        element(
            "svg",
            body,
            viewBox=f"0 0 {width:g} {height:g}",
            width=width,
            height=height,
            role="img",
            aria_label=says,
        )
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers to pixels, with round ticks."""

    low: float
    high: float
    first: float
    last: float
    step: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Round values within the range."""
        begin = math.ceil(self.low / self.step - 1e-9)
        return [place * self.step for place in range(begin, self._last_tick() + 1)]

    def _last_tick(self) -> int:
        return math.floor(self.high / self.step + 1e-9)

    def tick_text(self, value: float) -> str:
        """A tick with as many decimals as the steps need."""
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        text = f"{abs(value):,.{decimals}f}"
        return ("\N{MINUS SIGN}" if value < 0 and text.strip("0.,") else "") + text


def scale(values: list[float], first: float, last: float, *, most_ticks: int = 5) -> Scale:
    """A scale that holds all values with some air around them."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or max(abs(high), 1) * 0.05
    low, high = low - air, high + air
    return Scale(low, high, first, last, _round_step((high - low) / most_ticks))


def _round_step(least: float) -> float:
    power = 10 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
