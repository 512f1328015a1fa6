"""What a report is made of: plain texts in blocks, not yet escaped for any form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """One paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: list[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells."""

    header: list[str]
    rows: list[list[str]]
    caption: str = ""
    left: tuple[int, ...] = (0,)
    """Columns that hold words, set to the left; numbers are set to the right."""
    states: int | None = None
    """The column that holds verdicts, where a form can colour them."""


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that a reader opens, or that a short form leaves out."""

    summary: str
    blocks: list[Text | Bullets | Table]


Block = Text | Bullets | Table | Folded


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: list[Block]
    level: int = 2


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a report says, in its order."""

    lines: list[str]
    """The first three: worse or not, by how much, how sure."""
    overview: list[Section]
    details: list[Section]
    method: Section


QUESTIONS = ("Worse?", "By how much?", "How sure?")
"""What each of the first three lines answers."""
