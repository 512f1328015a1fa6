r"""Finds written equations such as `48/2 = 24` in a text and says which of them are false.

A rule, not a reader: an equation counts only if both sides are understood completely, and it is
false only if it is false however it can be read. Everything else is passed over: variables, powers,
roots, `of`, dates, ratios, remainders, sums of unlike units.

Tolerance: a result may be rounded to the digits that are written, to whole numbers as well
(10 / 3 = 3.33, 10 / 3 = 3), and decimals may be cut off (2 / 3 = 0.66).
"""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final

from lm_eval_exl2.tasks.maths.expressions import Token, evaluate, tokenize, unit_of_last_digit
from lm_eval_exl2.tasks.maths.surroundings import (
    OPERATORS,
    fold_units,
    may_begin,
    may_end,
    units_agree,
)

_ANNOTATION: Final = re.compile(r"<<([^<>\n]*)>>")
_LATEX: Final = (
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\[,;:! ]|\\(?:left|right)(?=[()])|\^(?:\\circ|\{\\circ\})"), ""),
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\boxed\{([^{}]*)\}"), r"\1"),
)
_BOLD: Final = re.compile(r"\*\*(?![\d(])|(?<![\d)])\*\*")
_LIST_NUMBER: Final = re.compile(r"^[ \t]*\d{1,2}[.)][ \t]+", re.MULTILINE)

_EXPRESSION: Final = frozenset({"number", "%", "(", ")", *OPERATORS})
_READINGS_OF_PER_CENT: Final = (Fraction(1, 100), Fraction(1))


def false_equations(text: str) -> list[str]:
    """The equations of a text that are false, as they stand there.

    Calculator annotations as in GSM8K (`<<48/2=24>>`) are read first, each for itself, then the
    text without them. LaTeX's signs of multiplication and division, simple fractions and boxes are
    read as what they show; an equation is given back in that form.
    """
    false: list[str] = []
    for part in (*_ANNOTATION.findall(text), _ANNOTATION.sub("", text)):
        for pattern, plain in (*_LATEX, (_BOLD, " "), (_LIST_NUMBER, "")):
            part = pattern.sub(plain, part)
        tokens = fold_units(tokenize(part))
        for left, right in _equations(tokens):
            if not _may_be_true(left, right):
                false.append(part[left[0].start : right[-1].end])
    return false


def _equations(tokens: Sequence[Token]) -> Iterator[tuple[Sequence[Token], Sequence[Token]]]:
    """Both sides of each equation whose sides have clear ends."""
    for place, token in enumerate(tokens):
        if token.kind != "=":
            continue
        left, right = _left_side(tokens, place), _right_side(tokens, place)
        if not (left and right and (_combines(left) or _combines(right))):
            continue
        end = place + len(right) + 1
        if units_agree(left, right, tokens[end] if end < len(tokens) else None):
            yield left, right


def _left_side(tokens: Sequence[Token], place: int) -> Sequence[Token] | None:
    first, depth = place, 0
    while first > 0 and tokens[first - 1].kind in _EXPRESSION:
        depth += {")": 1, "(": -1}.get(tokens[first - 1].kind, 0)
        if depth < 0:  # a bracket around the equation
            break
        first -= 1
    side, before = tokens[first:place], tokens[first - 1] if first else None
    if not side or depth > 0 or not may_begin(tokens, first):
        return None
    follows = before is not None and before.kind == "="
    if not _combines(side) and (side[-1].unit or not follows):
        return None  # "boxes of 4 = 5 * 4", "180 minutes = 180 / 60": about the words as well
    return side


def _combines(side: Sequence[Token]) -> bool:
    return sum(token.kind == "number" for token in side) > 1


def _right_side(tokens: Sequence[Token], place: int) -> Sequence[Token] | None:
    last, depth, closed = place, 0, place
    while last + 1 < len(tokens) and tokens[last + 1].kind in _EXPRESSION:
        depth += {"(": 1, ")": -1}.get(tokens[last + 1].kind, 0)
        if depth < 0:
            break
        last += 1
        if depth == 0:
            closed = last
    if depth > 0:  # "= 24 (as before)": ends before the bracket
        last = closed
    side = tokens[place + 1 : last + 1]
    return side if side and may_end(tokens, last) else None


def _may_be_true(left: Sequence[Token], right: Sequence[Token]) -> bool:
    """Whether some reading of an equation is true, or one side has no value."""
    lefts = [left]
    if left[0].kind == "-" and left[1:2] and left[0].end < left[1].start:
        lefts.append(left[1:])  # the mark of a list, not a sign
    understood = False
    for per_cent in _READINGS_OF_PER_CENT:
        for expression in lefts:
            value = evaluate(expression, per_cent=per_cent)
            for side in _readings_of_right(right):
                result = evaluate(side, per_cent=per_cent)
                if value is None or result is None:
                    continue
                understood = True
                if _is_close(value, result, side, per_cent):
                    return True
                if _is_close(result, value, expression, per_cent):  # "= 0.33 = 1/3"
                    return True
    return not understood


def _readings_of_right(right: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """The whole side; and its first number, as in "5 + 3 = 8 * 2 = 16"."""
    yield right
    end = 2 if right[0].kind == "-" else 1
    if right[end : end + 1] and right[end].kind == "%":
        end += 1
    if right[end : end + 1] and right[end].kind in OPERATORS:
        yield right[:end]


def _is_close(value: Fraction, result: Fraction, side: Sequence[Token], per_cent: Fraction) -> bool:
    """Whether a value is the result, or rounds or is cut off to the one number that is written."""
    numbers = [token for token in side if token.kind == "number"]
    if value == result or len(numbers) != 1 or {token.kind for token in side} & {"(", *"*/+"}:
        return value == result
    unit = unit_of_last_digit(numbers[0].text)
    if side[-1].kind == "%":
        unit *= per_cent
    error = abs(value) - abs(result) if value * result >= 0 else abs(value) + abs(result)
    return abs(error) <= unit / 2 or (unit < 1 and 0 < error < unit)
