"""JSON that `results.to_json` gave -> the records again, so a report needs no rerun."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, cast

from lm_eval_exl2.compare.results import FORMAT, Comparison
from lm_eval_exl2.errors import ComparisonError


def read_comparison(path: Path) -> Comparison:
    """Read a file.

    Raises:
        ComparisonError: It cannot be read, or is no comparison of this format.
    """
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ComparisonError(
            f"{path} cannot be read as JSON ({error}); expected a file that compare --json wrote"
        ) from error
    return from_json(found)


def from_json(found: object) -> Comparison:
    """Build the records from plain dicts, lists, numbers and texts.

    Raises:
        ComparisonError: It has another format, or a field is missing, unknown or of another type.
    """
    named = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    written = named.get("format")
    if written != FORMAT:
        raise ComparisonError(
            f"this is no comparison of format {FORMAT}: its format is {written!r:.60}; "
            "run compare again"
        )
    return _record(Comparison, named, "comparison")


Record = typing.TypeVar("Record")


def _record(kind: type[Record], found: object, where: str) -> Record:
    if not isinstance(found, dict):
        raise _wrong(where, "an object", found)
    values = cast("dict[str, object]", found)
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(cast("Any", kind))
    unknown = sorted(values.keys() - {field.name for field in fields})
    if unknown:
        raise ComparisonError(
            f"{where} has the unknown field {unknown[0]!r}; written by a newer version, or by hand"
        )
    missing = [
        field.name
        for field in fields
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ComparisonError(f"{where} lacks the field {missing[0]!r}; run compare again")
    return kind(
        **{name: _value(hints[name], each, f"{where}.{name}") for name, each in values.items()}
    )


def _value(kind: Any, found: object, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        known = [each for each in arguments if each is not types.NoneType]
        return None if found is None else _value(known[0], found, where)
    if origin is list:
        return [_value(arguments[0], each, f"{where}[]") for each in _of(list, found, where)]
    if origin is tuple:
        return _tuple(arguments, found, where)
    if origin is dict:
        items = _of(dict, found, where).items()
        return {str(name): _value(arguments[1], each, f"{where}.{name}") for name, each in items}
    if dataclasses.is_dataclass(kind):
        return _record(cast("type[Any]", kind), found, where)
    return _plain(kind, found, where)


def _tuple(arguments: tuple[Any, ...], found: object, where: str) -> tuple[Any, ...]:
    given = list(cast("tuple[object, ...]", found)) if isinstance(found, tuple) else found
    values = _of(list, given, where)
    if len(values) != len(arguments):
        raise _wrong(where, f"{len(arguments)} values", values)
    return tuple(_value(each, value, where) for each, value in zip(arguments, values, strict=True))


def _of(kind: type[Any], found: object, where: str) -> Any:
    if not isinstance(found, kind):
        raise _wrong(where, f"a {kind.__name__}", found)
    return found


def _plain(kind: type[Any], found: object, where: str) -> Any:
    if kind is float and isinstance(found, int) and not isinstance(found, bool):
        return float(found)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise _wrong(where, kind.__name__, found)
    return found


def _wrong(where: str, expected: str, found: object) -> ComparisonError:
    return ComparisonError(f"{where} is {found!r:.60}, expected {expected}; run compare again")
