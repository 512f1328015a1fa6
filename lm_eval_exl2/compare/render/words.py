"""Numbers and untrusted texts as readers see them.

A number that is absent, infinite or not a number is an en dash, never a figure.
"""

from __future__ import annotations

import math
import re
from typing import TypeGuard

from lm_eval_exl2.compare.results import Average, Bounds, Interval, UnitResult

ABSENT = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"

# Control characters (which could drive a terminal), marks that turn the direction of text, and
# halves of surrogate pairs (which no file can hold); newline and tab are kept.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def is_known(value: float | None) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return value is not None and math.isfinite(value)


def number(value: float | None, decimals: int = 2, *, sign: bool = False) -> str:
    """A number with a real minus sign; what rounds to zero has no sign."""
    if not is_known(value):
        return ABSENT
    text = f"{abs(value):,.{decimals}f}"
    if not text.strip("0.,"):
        return text
    return (_MINUS if value < 0 else "+" if sign else "") + text


def count(value: int | None) -> str:
    """A whole number."""
    return ABSENT if value is None else f"{value:,}"


def amount(value: float | None, *, sign: bool = False) -> str:
    """A drop or a difference: two decimals, one from 10 on."""
    return number(value, 1 if is_known(value) and abs(value) >= 10 else 2, sign=sign)


def limit(value: float | None, unit: str) -> str:
    """What a profile accepts, with the digits that the profile gives it."""
    return f"{value:g} {unit}" if is_known(value) else ABSENT


def with_unit(text: str, unit: str) -> str:
    """A formatted number and its unit; an absent one has none."""
    return text if text == ABSENT else f"{text} {unit}"


def p_value(p: float | None) -> str:
    """As .012 or < .001; p values that round to 1 are 1."""
    if not is_known(p):
        return ABSENT
    if p < 0.001:
        return "< .001"
    text = f"{p:.3f}"
    return "1" if text == "1.000" else text.lstrip("0")


def plural(number_of: int, noun: str) -> str:
    """As "1 document" or "2 documents"."""
    return f"{count(number_of)} {noun}{'s' * (number_of != 1)}"


def share(value: float | None, decimals: int = 1) -> str:
    """A share between 0 and 1 in per cent."""
    return ABSENT if not is_known(value) else f"{number(100 * value, decimals)} %"


def bits(value: float | None) -> str:
    """Bits per weight."""
    return number(value, 2)


_PREFIXES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(value: float | None) -> str:
    """Bytes, in decimal units."""
    if not is_known(value):
        return ABSENT
    for factor, unit in _PREFIXES:
        if value >= factor:
            return f"{number(value / factor, 2)} {unit}"
    return f"{number(value, 0)} B"


def is_share(unit: UnitResult) -> bool:
    """Whether a unit's scores lie between 0 and 1; BLEU and perplexities do not."""
    estimates = unit.baseline.estimate, unit.candidate.estimate
    return unit.kind != "perplexity" and all(not abs(each) > 1 for each in estimates)


def average_score(average: Average, value: float) -> str:
    """A mean of scores: per cent where both sides are shares."""
    return share(value, 2) if is_share_average(average) else number(value)


def is_share_average(average: Average) -> bool:
    """Whether both means lie between 0 and 1."""
    return not max(abs(average.baseline), abs(average.candidate)) > 1


def score(unit: UnitResult, value: float | None) -> str:
    """A score of a unit: per cent with one decimal, two from 1,000 documents on."""
    if is_share(unit):
        return share(value, 2 if unit.documents >= 1000 else 1)
    return number(value, 3 if unit.kind == "perplexity" else 2)


def score_interval(unit: UnitResult, value: Interval) -> str:
    """A score with its 95 % interval in brackets."""
    if is_share(unit):
        decimals = 2 if unit.documents >= 1000 else 1
        ends = [number(scaled(each, 100), decimals) for each in (value.lower, value.upper)]
    else:
        ends = [score(unit, each) for each in (value.lower, value.upper)]
    return bracketed(score(unit, value.estimate), ends)


def difference(unit: UnitResult) -> str:
    """Candidate minus baseline with its interval: points where scores are shares."""
    factor, name = (100, "points") if is_share(unit) else (1, "")
    values = unit.difference.estimate, unit.difference.lower, unit.difference.upper
    first, *ends = (amount(scaled(each, factor), sign=True) for each in values)
    return bracketed(with_unit(first, name).rstrip(), ends)


def drop(bounds: Bounds | None, unit: str) -> str:
    """A drop with its one-sided bounds in brackets."""
    if bounds is None:
        return ABSENT
    ends = [amount(bounds.lower), amount(bounds.upper)]
    return bracketed(with_unit(amount(bounds.estimate), unit), ends)


def bracketed(first: str, ends: list[str]) -> str:
    """An estimate and the two ends around it; no brackets where neither is known."""
    return first if set(ends) == {ABSENT} else f"{first} [{', '.join(ends)}]"


def scaled(value: float | None, factor: float) -> float | None:
    """A value times a factor; what is absent stays absent."""
    return None if value is None else value * factor


def left_of(whole: float, drop: float | None) -> float | None:
    """What a drop leaves of a whole; what is absent stays absent."""
    return None if drop is None else whole - drop


def visible(text: str) -> str:
    """Any text with its control characters, direction marks and lone surrogates spelled out."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def shorten(text: str, length: int = 300) -> str:
    """The beginning of a long text, and that it is one."""
    return text if len(text) <= length else f"{text[:length]} \N{HORIZONTAL ELLIPSIS}"


def listed(items: list[str], most: int = 3) -> str:
    """Some items in a sentence, and how many more there are."""
    shown, more = items[:most], len(items) - most
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
