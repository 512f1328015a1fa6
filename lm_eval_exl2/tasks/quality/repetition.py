"""Finds loops: text that repeats itself as a damaged model does. Standard library only.

Only exact repeats count. "Day 1: up 3. Day 2: up 3." is none, for its numbers differ; so a loop
that counts is not found here.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from lm_eval_exl2.tasks.quality.text import sentences, split_code, tokens

LONGEST_UNIT: Final = 100
"""Longest repeated unit that is looked for, in words."""

# A unit of up to 20 signs, 8 times or more; rulers such as "-----" are Markdown.
_SIGNS: Final = re.compile(r"([^\s]{1,20}?)\1{7,}")
_RULER: Final = frozenset("-=_*#|:~+")


def find_repetition(text: str) -> str:
    """Find the unit that a text repeats.

    A text repeats itself if one of these holds:
    1. A unit of words stands at least 3 times in a row and covers at least 8 words, or it has at
       least 8 words and stands twice in a row. A unit of numbers and single letters only, and any
       unit inside of a code block, must stand 3 times and cover 24.
    2. The same sentence or line, of at least two words (one of them longer than a letter), occurs
       3 times, outside of code blocks.
    3. A unit of up to 20 signs without blanks stands at least 8 times in a row and covers 16 signs,
       40 if it is made of digits. Rulers ("-----") do not count.

    Returns:
        The unit, or an empty text.
    """
    parts = split_code(text)
    return (
        _find_words(tokens(parts.prose), is_code=False)
        or _find_words(tokens(parts.code), is_code=True)
        or _find_line(parts.prose)
        or _find_signs(text)
    )


def _find_words(found: Sequence[str], *, is_code: bool) -> str:
    for size in range(1, min(LONGEST_UNIT, len(found) // 2) + 1):
        same = 0
        for place in range(len(found) - size):
            same = same + 1 if found[place] == found[place + size] else 0
            unit = found[place + 1 : place + 1 + size]
            if same and _is_loop(unit, same + size, is_code=is_code):
                return " ".join(unit)
    return ""


def _is_loop(unit: Sequence[str], span: int, *, is_code: bool) -> bool:
    """Whether `span` words, each equal to the one a unit before it, are a loop."""
    is_strict = is_code or not any(len(word) > 1 and not word.isdigit() for word in unit)
    is_thrice = span >= 3 * len(unit) and span >= (24 if is_strict else 8)
    is_twice = span >= 2 * len(unit) and len(unit) >= 8 and not is_strict
    return is_thrice or is_twice


def _find_line(prose: str) -> str:
    pieces = (" ".join(tokens(each)) for line in prose.splitlines() for each in sentences(line))
    for piece, times in Counter(pieces).items():
        parts = piece.split()
        if times >= 3 and len(parts) >= 2 and any(len(part) > 1 for part in parts):
            return piece
    return ""


def _find_signs(text: str) -> str:
    for found in _SIGNS.finditer(text):
        unit = found[1]
        least = 40 if unit.isdigit() else 16
        if len(found[0]) >= least and not _RULER.issuperset(unit):
            return unit
    return ""
