"""Cuts a text into code, sentences and words, the same way for every metric.

Standard library only. English punctuation is assumed.
"""

import re
from typing import Final, NamedTuple

CLOSING: Final = "\"'\u201d\u2019)]}*_`"
"""What may stand behind the mark that ends a sentence."""
OPENING: Final = "\"'\u201c\u2018([{*_`"
"""What may stand before a sentence's first letter."""

_LIST_MARK: Final = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)]|#{1,6}|>)\s+")
# An end mark, what closes after it, a blank, and no small letter next.
_SENTENCE_END: Final = re.compile(
    rf"([.!?…]+)[{re.escape(CLOSING)}]*\s+(?=[{re.escape(OPENING)}]*[^\sa-z])"
)
_TOKEN: Final = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def word_set(text: str) -> frozenset[str]:
    """The words of a list that is written with blanks between them."""
    return frozenset(text.split())


_NO_END: Final = word_set(
    "e.g i.e vs cf ca approx fig mr mrs ms dr prof st jr sr u.s u.k a.m p.m b.c a.d"
)


class Parts(NamedTuple):
    """A text, taken apart at the fences of its code blocks."""

    prose: str
    """What is outside of code blocks."""
    code: str
    """What is inside."""
    is_open: bool
    """Whether the last code block is not closed."""


def split_code(text: str) -> Parts:
    """Separate fenced code blocks from prose.

    A fence is a line that begins with three backticks and has no others after them.
    """
    prose: list[str] = []
    code: list[str] = []
    is_inside = False
    for line in text.splitlines():
        mark = line.strip()
        if mark.startswith("```") and "`" not in mark.lstrip("`"):
            is_inside = not is_inside
        else:
            (code if is_inside else prose).append(line)
    return Parts("\n".join(prose), "\n".join(code), is_inside)


def words(text: str) -> list[str]:
    """What blanks separate and has a letter or a digit, as `wc -w` but without lone signs."""
    return [word for word in text.split() if any(map(str.isalnum, word))]


def tokens(text: str) -> list[str]:
    """Runs of letters and digits in small letters, apostrophes inside kept: to compare texts by."""
    return _TOKEN.findall(text.casefold())


def sentences(text: str) -> list[str]:
    """Sentences outside of code blocks; a line that ends without a mark is one as well.

    A full stop ends no sentence after a common abbreviation, after a single capital letter, or
    where a small letter follows. So a sentence that ends in "vitamin C." counts with the next one.
    """
    found: list[str] = []
    for line in split_code(text).prose.splitlines():
        found += _cut(_LIST_MARK.sub("", line))
    return [each for each in found if words(each)]


def _cut(line: str) -> list[str]:
    pieces: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(line):
        before = line[start : end.start()].split()
        last = before[-1].lstrip(OPENING) if before else ""
        is_initial = len(last) == 1 and last.isupper()
        if end[1] == "." and (is_initial or last.casefold() in _NO_END):
            continue
        pieces.append(line[start : end.end()].strip())
        start = end.end()
    return [*pieces, line[start:].strip()]
