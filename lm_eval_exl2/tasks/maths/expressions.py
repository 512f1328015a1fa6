"""Exact values of written arithmetic: numbers, + - * /, brackets, per cent. Pure mathematics.

Text becomes tokens, tokens become a value by recursive descent; nothing is ever executed. What is
not fully understood has no value (`None`) rather than a guess.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

# No honest sum is longer; keeps nesting far from the recursion limit.
_MOST_TOKENS: Final = 60
_MOST_DIGITS: Final = 20
_TIME_OF_DAY: Final = re.compile(r"0\d")

_TOKEN: Final = re.compile(
    r"""
    (?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
  | (?P<blank>[^\S\n]+|[$€£°])         # currencies and degrees say nothing about a value
  | (?P<other>[<>!:=~]=|=[>=~<]|\\[A-Za-z]+|\\.|\n)
  | (?P<operator>[-+*/()%=\u00d7\u00f7\u2212\u2013\u00b7\u22c5\u2217])
  | (?P<word>[^\W\d_]+)
  | (?P<rest>.)
    """,
    re.VERBOSE,
)
# Times, divided by, minus, an en dash used as minus, two dots and a star used as times.
_PLAIN: Final = str.maketrans("\u00d7\u00f7\u2212\u2013\u00b7\u22c5\u2217", "*/--***")


class Token(NamedTuple):
    """A piece of text that is a number, an operator, a word or anything else."""

    kind: str
    """"number", "word", "other", or the operator itself: one of + - * / ( ) % ="""
    text: str
    start: int
    end: int
    unit: str = ""
    """What a number is a number of, where another module has put it here."""


def tokenize(text: str) -> list[Token]:
    """Cut a text into tokens; blanks and currency signs are left out.

    What begins with 0 and a digit (0130) or has more than 20 digits is no number here.
    """
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, piece = match.lastgroup or "rest", match.group()
        if kind == "blank":
            continue
        if kind == "operator":
            kind = piece.translate(_PLAIN)
        if kind == "rest" or (kind == "number" and not _is_plain(piece)):
            kind = "other"
        tokens.append(Token(kind, piece, match.start(), match.end()))
    return tokens


def _is_plain(number: str) -> bool:
    return len(number) <= _MOST_DIGITS and not _TIME_OF_DAY.match(number)


def evaluate(tokens: Sequence[Token], *, per_cent: Fraction) -> Fraction | None:
    """The exact value of an expression.

    Args:
        tokens: All tokens of the expression, and no others.
        per_cent: What a % sign multiplies by: 1/100, or 1 where it is only a unit.

    Returns:
        The value, or None if these tokens are no expression, divide by zero, are more than 60, or
        mean different things to different readers: two numbers side by side, 2 / 1 / 4, a bracket
        after a number beside a division (6 / 2(1+2)), or 50 + 10%.
    """
    kinds = {token.kind for token in tokens}
    if len(tokens) > _MOST_TOKENS or (kinds & {"+", "-"} and _mixes_per_cent(tokens)):
        return None
    try:
        return _Parser(tokens, per_cent, implied="/" not in kinds).parse()
    except (_NotUnderstoodError, ZeroDivisionError):
        return None


def unit_of_last_digit(number: str) -> Fraction:
    """What one more in the last written digit would add: 1/100 for "3.14", 1 for "3"."""
    return Fraction(1, 10 ** len(number.partition(".")[2]))


def _mixes_per_cent(tokens: Sequence[Token]) -> bool:
    numbers = sum(token.kind == "number" for token in tokens)
    return 0 < sum(token.kind == "%" for token in tokens) < numbers


class _NotUnderstoodError(Exception):
    """These tokens are no expression."""


class _Parser:
    """One expression; its methods follow the grammar, each from the next token on."""

    def __init__(self, tokens: Sequence[Token], per_cent: Fraction, *, implied: bool) -> None:
        self._tokens = tokens
        self._per_cent = per_cent
        self._implied = implied
        self._place = 0

    def parse(self) -> Fraction:
        value = self._sum()
        if self._place < len(self._tokens):
            raise _NotUnderstoodError
        return value

    def _next(self) -> str:
        return self._tokens[self._place].kind if self._place < len(self._tokens) else ""

    def _take(self) -> Token:
        if self._place == len(self._tokens):
            raise _NotUnderstoodError
        self._place += 1
        return self._tokens[self._place - 1]

    def _sum(self) -> Fraction:
        value = self._product()
        while self._next() in ("+", "-"):
            sign = 1 if self._take().kind == "+" else -1
            value += sign * self._product()
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while True:
            match self._next():
                case "*":
                    self._take()
                    value *= self._signed()
                case "/":
                    self._take()
                    value /= self._signed()
                    if self._next() == "/":
                        raise _NotUnderstoodError
                case "(" if self._implied:
                    value *= self._signed()
                case _:
                    return value

    def _signed(self) -> Fraction:
        if self._next() == "-":
            self._take()
            return -self._amount()
        return self._amount()

    def _amount(self) -> Fraction:
        token = self._take()
        if token.kind == "number":
            value = Fraction(Decimal(token.text.replace(",", "")))
        elif token.kind == "(":
            value = self._sum()
            if self._take().kind != ")":
                raise _NotUnderstoodError
        else:
            raise _NotUnderstoodError
        if self._next() == "%":
            self._take()
            value *= self._per_cent
        return value
