"""What may stand before, after and between the numbers of an expression in a text.

Decides where an expression begins and ends, so that no part of a longer one is taken for the whole.
"""

from collections.abc import Sequence
from typing import Final

from lm_eval_exl2.tasks.maths.expressions import Token

OPERATORS: Final = frozenset("+-*/")

_FRACTIONS: Final = (
    "half halves third thirds quarter quarters fourth fourths fifth fifths tenth tenths percent "
    "percentage percents"
)
_SCALES: Final = (
    "dozen dozens hundred hundreds thousand thousands million billion trillion cent cents"
)
_OPERATIONS: Final = (
    "of times plus minus less more divided multiplied over mod modulo remainder squared cubed "
    "choose"
)
_FUNCTIONS: Final = (
    "sqrt root log ln sin cos tan max min gcd lcm twice double triple thrice negative"
)
_LABELS: Final = (
    "day days week weeks month months year years step part case number chapter page pages question "
    "problem example item level grade room point"
)
_CONJUNCTIONS: Final = (
    "because since so then thus hence therefore which that is are was were gives means if as or "
    "but where when while with"
)
# After these words, what follows is only a part of what is meant, or a label ("day 1").
_OPEN_BEFORE: Final = frozenset(
    f"{_FRACTIONS} {_SCALES} {_OPERATIONS} {_FUNCTIONS} {_LABELS} by per than and".split()
)
# Before these words, what was written is only a part of what is meant.
_OPEN_AFTER: Final = frozenset(f"{_FRACTIONS} {_SCALES} {_OPERATIONS} and to than".split())
# Of those, these end it where nothing is counted after them: "= 5 more trees", "= 24 times a year".
_OPEN_BEFORE_NUMBERS: Final = frozenset({"more", "less", "times"})
_NO_UNITS: Final = _OPEN_AFTER | frozenset(["a", *_CONJUNCTIONS.split()])
# "a total of 3 + 4": what counts is the word before.
_JOINTS: Final = frozenset({"of", "and", "by"})
_MOST_UNIT_WORDS: Final = 3
_LATEX_BEFORE: Final = frozenset(
    {"\\\\", "\\(", "\\[", "\\quad", "\\qquad", "\\Rightarrow", "\\implies", "\\to"}
)
_LATEX_AFTER: Final = _LATEX_BEFORE | {"\\)", "\\]", "\\text", "\\mbox", "\\textbf", "\\end"}
_PUNCTUATION: Final = frozenset(".,:;?\"'\u201c\u201d\u2018\u2019")


def fold_units(tokens: Sequence[Token]) -> list[Token]:
    """Moves units between numbers into the numbers; an x between two numbers becomes a `*`.

    "5 apples + 3 apples = 8", "$10/hour * 5 hours = $50": up to three words after a number, or a
    slash and words, where an operator or an equals sign follows.
    """
    folded: list[Token] = []
    place = 0
    while place < len(tokens):
        token = tokens[place]
        if token.text in ("x", "X") and _is_times(folded, tokens[place + 1 : place + 2]):
            token = token._replace(kind="*")
        folded.append(token)
        place += 1
        if token.kind in ("number", "%", ")"):
            end = _end_of_unit(tokens, place)
            unit = " ".join(word.text for word in tokens[place:end] if word.kind == "word")
            folded[-1] = token._replace(unit=unit)
            place = end
    return folded


def may_begin(tokens: Sequence[Token], first: int) -> bool:
    """Whether nothing before this place belongs to the expression that begins there."""
    if first == 0:
        return True
    before, token = tokens[first - 1], tokens[first]
    earlier = tokens[first - 2] if first > 1 else before
    touches = before.end == token.start
    if before.kind == "word":
        if before.text in _JOINTS and earlier.kind not in ("number", "%", ")"):
            before = earlier
        return not (touches or token.kind in OPERATORS or _is_open(before, _OPEN_BEFORE))
    if before.text in _PUNCTUATION:  # 2:30, "14, 400", ". 84"
        cut = touches or (before.text == "," and len(token.text) == 3)
        return not ((cut and earlier.kind == "number") or earlier.kind in OPERATORS)
    if before.kind == "(":  # one that is closed later, or never
        return earlier.kind not in OPERATORS
    return before.kind == "=" or before.text in {*"\n[&\u2192\u21d2", *_LATEX_BEFORE}


def may_end(tokens: Sequence[Token], last: int) -> bool:
    """Whether nothing after this place belongs to the expression that ends there."""
    if last + 1 == len(tokens):
        return True
    after = tokens[last + 1]
    later = tokens[last + 2] if last + 2 < len(tokens) else after
    touches = tokens[last].end == after.start
    if after.kind == "word":
        if after.text in _OPEN_BEFORE_NUMBERS:
            return not touches and later.kind != "number" and later.text != "than"
        return not (touches or _is_open(after, _OPEN_AFTER))
    if after.text in _PUNCTUATION:
        return not (touches and later.kind == "number" and after.end == later.start)
    if after.kind == "(":  # "= 24 (as before)", not "= 24(x + 1)" nor "= 24 (x + 1)"
        return later.kind == "word" and not (touches or _is_open(later, _OPEN_BEFORE))
    return after.kind in ("=", ")") or after.text in {*"\n]&#\u2014", *_LATEX_AFTER}


def units_agree(left: Sequence[Token], right: Sequence[Token], after: Token | None) -> bool:
    """Whether a sum adds like to like: "3 hours + 30 minutes = 3.5 hours" does not."""
    units = {token.unit.split()[0] for token in (*left, *right) if token.unit}
    if not units or not {"+", "-"} & {token.kind for token in (*left[1:], *right[1:])}:
        return True
    if after is not None and after.kind == "word":
        units.add(after.text)
    return len({unit.lower().removesuffix("s") for unit in units}) == 1


def _end_of_unit(tokens: Sequence[Token], place: int) -> int:
    """Where the unit that begins at a place ends; the place itself if there is none."""
    end = place
    for _ in range(_MOST_UNIT_WORDS):
        first = end + 1 if tokens[end : end + 1] and tokens[end].kind == "/" else end
        words = tokens[first : first + 1]
        if not words or words[0].kind != "word" or _is_open(words[0], _NO_UNITS):
            break
        end = first + 1
    follows = tokens[end : end + 2]
    if len(follows) < 2 or follows[1].kind not in ("number", "(", "-"):
        return place
    is_operator = follows[0].kind in OPERATORS or follows[0].kind == "="
    return end if is_operator or follows[0].text in ("x", "X") else place


def _is_times(before: Sequence[Token], after: Sequence[Token]) -> bool:
    return bool(before and after) and (
        before[-1].kind in ("number", "%", ")") and after[0].kind in ("number", "(")
    )


def _is_open(word: Token, words: frozenset[str]) -> bool:
    """Whether a token is a word that may be a variable, or is one of those."""
    if word.kind != "word":
        return False
    return word.text.lower() in words or (len(word.text) == 1 and word.text not in ("a", "I"))
