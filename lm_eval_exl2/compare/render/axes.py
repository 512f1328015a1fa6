"""The frame of a plot: where its two axes lie, their ticks and titles, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_exl2.compare.render import svg


@dataclass(frozen=True, slots=True)
class Frame:
    """A drawing with room for titles and ticks around the plot; pixels."""

    width: int
    height: int
    left: int = 52
    top: int = 26

    @property
    def right(self) -> int:
        """End of the horizontal axis."""
        return self.width - 14

    @property
    def bottom(self) -> int:
        """Where the horizontal axis lies."""
        return self.height - 40

    def x_scale(self, values: Sequence[float]) -> svg.Scale:
        """A horizontal scale that holds all values."""
        return svg.scale(list(values), self.left, self.right)

    def y_scale(self, values: Sequence[float]) -> svg.Scale:
        """An upright scale that holds all values."""
        return svg.scale(list(values), self.bottom, self.top)

    def axes(self, x: svg.Scale, y: svg.Scale, *, x_title: str, y_title: str) -> str:
        """Lines, ticks and titles."""
        parts = [svg.label(8, 14, y_title, class_="axis-title")]
        for tick in y.ticks():
            at = y(tick)
            parts.append(
                svg.element("line", x1=self.left, x2=self.right, y1=at, y2=at, class_="grid")
            )
            text = y.tick_text(tick)
            parts.append(svg.label(self.left - 6, at + 4, text, text_anchor="end", class_="tick"))
        for tick in x.ticks():
            text, below = x.tick_text(tick), self.bottom + 16
            parts.append(svg.label(x(tick), below, text, text_anchor="middle", class_="tick"))
        parts.append(
            svg.element(
                "line", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom, class_="axis"
            )
        )
        middle, below = (self.left + self.right) / 2, self.bottom + 33
        title = svg.label(middle, below, x_title, text_anchor="middle", class_="axis-title")
        return "".join([*parts, title])
