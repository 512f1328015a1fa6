r"""What an answer's text says the result is, and when two results are the same.

Used by filters of the task files (`function: custom`): each takes the answers of all documents and
gives one text per answer, empty where nothing was found.
"""

import re
import string
from collections.abc import Iterable, Sequence
from typing import Final

_BOX: Final = re.compile(r"\\(?:boxed|fbox)\s*")


def normal_form(
    text: str,
    *,
    regexes_to_ignore: Iterable[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> str:
    """What the harness's `exact_match` compares: two texts match if these are equal.

    Args:
        text: An extracted answer, or a document's.
        regexes_to_ignore: Patterns to remove, one after the other.
        ignore_case: Whether to make letters small.
        ignore_punctuation: Whether to remove ASCII punctuation.
        ignore_numbers: Whether to remove digits.
    """
    for pattern in regexes_to_ignore:
        text = re.sub(pattern, "", text)
    if ignore_case:
        text = text.lower()
    removed = string.punctuation * ignore_punctuation + string.digits * ignore_numbers
    return text.translate(str.maketrans("", "", removed))


def between_dollars(answers: Iterable[Sequence[str]], _documents: object) -> list[list[str]]:
    """What stands between the first and the last dollar sign; the whole text if there are not two.

    The rule of the harness's `hendrycks_math500`.
    """
    return [[_between_dollars(text) for text in given] for given in answers]


def last_box(answers: Iterable[Sequence[str]], _documents: object) -> list[list[str]]:
    r"""The content of the last `\boxed{...}` or `\fbox{...}` that is closed."""
    return [[_last_box(text) for text in given] for given in answers]


def _between_dollars(text: str) -> str:
    first, last = text.find("$"), text.rfind("$")
    return text if first == last else text[first + 1 : last]


def _last_box(text: str) -> str:
    for box in reversed(list(_BOX.finditer(text))):
        content = _in_braces(text[box.end() :])
        if content is not None:
            return content
    return ""


def _in_braces(text: str) -> str | None:
    """The content of the braces that a text begins with; None if there are none or none closed."""
    depth = 0
    for brace in re.finditer(r"(?<!\\)[{}]", text) if text.startswith("{") else ():
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[1 : brace.start()]
    return None
