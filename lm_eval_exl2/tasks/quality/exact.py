"""Whether an answer is the right one, where there is one. Standard library only.

Prompts with an exact answer ask to begin with it. So what counts is the first candidate in the
text: the first number where a number is right, or the first of the words that the prompt lists as
right or wrong. An explanation may follow; an answer that begins with something else is wrong.
"""

import re
from typing import Final

from lm_eval_exl2.tasks.quality.prompts import Prompt

_SMALL: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES: Final = (
    {word: value for value, word in enumerate(_SMALL)}
    | {word: 10 * value for value, word in enumerate(_TENS, 2)}
    | {
        f"{tens}-{_SMALL[unit]}": 10 * value + unit
        for value, tens in enumerate(_TENS, 2)
        for unit in range(1, 10)
    }
)
_MINUS: Final = "\u2212"
# Possessive, lest "19th" is read as 1. An ordinal is no number here, nor are the digits of "x3".
_DIGITS: Final = (
    rf"(?<![\w.])[-{_MINUS}]?(?:\d{{1,3}}(?:,\d{{3}})++(?!\d)|\d++)(?:\.\d++)?+"
    r"(?!st\b|nd\b|rd\b|th\b)"
)
_NUMBER_WORD: Final = (
    rf"\b(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_SMALL[1:10])}))?|{'|'.join(_SMALL)})\b"
)


def is_exact(prompt: Prompt, answer: str) -> bool:
    """Whether the first candidate in an answer is a right one; False where there is none."""
    candidate = first_candidate(prompt, answer)
    return candidate != "" and candidate in {_normalize(right) for right in prompt.answers}


def first_candidate(prompt: Prompt, answer: str) -> str:
    """The first number or listed word of an answer, in one spelling; empty where there is none.

    Numbers up to 99 may be written out. Case does not count.
    """
    listed = [word for word in (*prompt.answers, *prompt.others) if not _is_number(word)]
    patterns = [rf"(?<!\w){re.escape(word)}(?!\w)" for word in listed]
    if any(map(_is_number, prompt.answers)):
        patterns += [_DIGITS, _NUMBER_WORD]
    found = re.search("|".join(patterns), answer, re.IGNORECASE) if patterns else None
    return _normalize(found[0]) if found else ""


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", word) is not None


def _normalize(word: str) -> str:
    plain = word.casefold().replace(_MINUS, "-").replace(",", "")
    plain = str(_VALUES.get(plain.replace(" ", "-"), plain))
    return f"{float(plain):g}" if _is_number(plain) else plain
