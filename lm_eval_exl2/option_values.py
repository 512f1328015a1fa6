"""Reads single values of model arguments, in whatever form the harness hands them over.

Each reader takes the argument's name and value and returns the value it stands for, None where
nothing was asked for, or raises an OptionError of one line.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable


def is_none(value: Any) -> bool:
    """Whether a value stands for nothing: None, or a string that says so."""
    return value is None or (isinstance(value, str) and value.lower() in ("none", "null", ""))


def text(name: str, value: Any) -> str | None:
    """Read text; a number that was meant as text is taken, a truth value is not."""
    if is_none(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise OptionError(f"{name}={value!r}: expected text")
    return str(value)


def flag(name: str, value: Any) -> bool | None:
    """Read a truth value."""
    if is_none(value):
        return None
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise OptionError(f"{name}={value!r}: expected True or False") from None


def count(name: str, value: Any) -> int | None:
    """Read a whole number of at least 1."""
    number = whole(name, value)
    if number is not None and number < 1:
        raise OptionError(f"{name}={value!r}: expected a whole number of at least 1")
    return number


def whole(name: str, value: Any) -> int | None:
    """Read a whole number."""
    if is_none(value):
        return None
    try:
        if not isinstance(value, bool) and int(value) == float(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise OptionError(f"{name}={value!r}: expected a whole number")


def positive(name: str, value: Any) -> float | None:
    """Read a finite number above 0."""
    if is_none(value):
        return None
    try:
        if not isinstance(value, bool) and 0 < float(value) < float("inf"):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise OptionError(f"{name}={value!r}: expected a positive number")


def gpu_split(name: str, value: Any) -> str | tuple[float, ...] | None:
    """Read GiB per card, as a list or a string of one, or `auto`."""
    if is_none(value) or str(value).lower() == "auto":
        return None if is_none(value) else "auto"
    is_list = isinstance(value, list | tuple)
    parts = cast("list[Any]", value if is_list else str(value).strip("[]()").split(","))
    try:
        sizes = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        sizes = ()
    if not sizes or min(sizes) < 0 or not max(sizes) > 0:
        raise OptionError(
            f"{name}={value!r}: expected GiB per card such as [20,24], or auto; in a string of "
            "model arguments write it in quotes or brackets"
        )
    return sizes


def choice(*allowed: str) -> Callable[[str, Any], str]:
    """Return a reader of one of several words, in any case."""

    def parse(name: str, value: Any) -> str:
        if str(value).lower() not in allowed:
            raise OptionError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
        return str(value).lower()

    return parse


def dtype(name: str, value: Any) -> str:
    """Read the name of a dtype, with or without `torch.`."""
    return choice("auto", "float32", "bfloat16", "float16")(name, str(value).removeprefix("torch."))


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Read an object, or JSON of one."""
    if is_none(value):
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        raise OptionError(f'{name}: expected a JSON object such as {{"key": "value"}}')
    return value  # pyright: ignore[reportUnknownVariableType]


def text_or_id(name: str, value: Any) -> str | int | None:
    """Read text, or a token id that arrived as text."""
    found = text(name, value)
    return int(found) if found is not None and found.isdigit() else found


def batch_size(name: str, value: Any) -> int | None:
    """Read a batch size; None stands for the token budget (1, `auto`, `auto:N`)."""
    word = str(value)
    if word.startswith("auto"):
        _, colon, schedule = word.partition(":")
        if word != "auto" and (not colon or not _is_number(schedule)):
            raise OptionError(f"{name}={value!r}: expected a whole number, auto or auto:N")
        return None
    number = count(name, value)
    return None if number in (None, 1) else number


def _is_number(word: str) -> bool:
    try:
        return float(word) > 0
    except ValueError:
        return False


def revision(name: str, value: Any) -> str | float | None:
    """Read a branch; the harness turns `6_5` into 65.0 before anyone can see it."""
    return value if isinstance(value, float) else text(name, value)


def tokenizer(name: str, value: Any) -> Any:
    """Read a name, or take a ready tokenizer object as it is, as `hf` does."""
    return value if hasattr(value, "decode") and not isinstance(value, str) else text(name, value)
