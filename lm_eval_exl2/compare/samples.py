"""A samples file of the harness -> what a comparison needs of each line, in a few bytes.

A run may have a million documents. Kept are digests, numbers and where the line stands; documents
are read again by their place when they are shown. Knows nothing of other runs.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from lm_eval_exl2.compare.answers import Choices, Floats, Integers, answer_of, as_choices, digest
from lm_eval_exl2.errors import ComparisonError

CLUSTER_FIELDS = ("source_id", "passage", "paragraph", "article", "context")
"""What several questions of a benchmark may share (HellaSwag, BoolQ, MultiRC, RACE, SQuAD)."""


@dataclass(frozen=True, slots=True, eq=False)
class FilterSamples:
    """The samples of one task behind one filter; all arrays have one entry per line."""

    doc_ids: Integers
    docs: Integers
    """The first 8 bytes of doc_hash; of target_hash below."""
    prompts: Integers
    """A digest of prompt_hash and all arguments: every choice, stops, sampling."""
    targets: Integers
    offsets: Integers
    """Where the line begins in the file, in bytes."""
    numbers: dict[str, Floats]
    """By metric: its value; NaN where a line has none or null."""
    pairs: dict[str, tuple[Floats, Floats]]
    """By metric whose values are two numbers, such as log-likelihood and words."""
    texts: dict[str, Any]
    """By metric whose values are something else: all of them, for corpus metrics."""
    choices: Choices | None
    """Of multiple-choice tasks."""
    answers: Integers
    """A digest of each answer: what was chosen, or the filtered text; 0 where there is none."""
    empty: int
    """Lines whose answer is an empty text."""
    clusters: Integers
    """A digest of what several documents may share; of a document without it, its own."""
    cluster_field: str
    """Its name in the documents; empty if they have none."""

    def __len__(self) -> int:
        return len(self.docs)


@dataclass(slots=True)
class _Columns:
    """What grows while a file is read."""

    doc_ids: array[int] = field(default_factory=lambda: array("q"))
    docs: array[int] = field(default_factory=lambda: array("q"))
    prompts: array[int] = field(default_factory=lambda: array("q"))
    targets: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    answers: array[int] = field(default_factory=lambda: array("q"))
    clusters: array[int] = field(default_factory=lambda: array("q"))
    cluster_field: str = ""
    values: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    numbers: dict[str, array[float]] = field(default_factory=dict[str, "array[float]"])
    choices: list[array[Any]] = field(
        default_factory=lambda: [array("q"), array("q"), array("q"), array("d"), array("d")]
    )
    empty: int = 0


class Read(NamedTuple):
    """A samples file."""

    filters: dict[str, FilterSamples]
    broken_lines: int
    """1 if the last line is only half there, as a killed run leaves it."""


def read_samples(
    path: Path, *, delimiter: str = " ", cluster_fields: Sequence[str] = CLUSTER_FIELDS
) -> Read:
    """Read a samples file in one pass.

    Args:
        path: `samples_<task>_<time>.jsonl`.
        delimiter: The task's target_delimiter, which stands before each choice.
        cluster_fields: Of a document; the first it has is what it shares with others.

    Raises:
        ComparisonError: The file cannot be read, or a line other than the last is damaged.
    """
    columns: dict[str, _Columns] = {}
    broken = 0
    for number, offset, line in _lines(path):
        if broken:
            raise ComparisonError(f"{path}: line {number - 1} is no sample; the file is damaged")
        try:
            record = json.loads(line)
            into, doc = columns.setdefault(str(record["filter"]), _Columns()), record["doc"]
            _add(into, record, offset, delimiter)
            _add_cluster(into, doc, cluster_fields)
        except (ValueError, KeyError, TypeError):
            broken = 1
    return Read({name: _freeze(each) for name, each in columns.items()}, broken)


def read_documents(path: Path, offsets: Iterator[int] | list[int]) -> Iterator[dict[str, Any]]:
    """The lines that begin at some places of a file, as the harness wrote them."""
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield json.loads(file.readline())


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, offset, line
                offset += len(line)
    except OSError as error:
        raise ComparisonError(f"{path} cannot be read: {error.strerror}") from error


def _add(into: _Columns, record: dict[str, Any], offset: int, delimiter: str) -> None:
    """Take over one line; raises KeyError, TypeError or ValueError before anything is kept."""
    digests = [
        int(record["doc_hash"][:16], 16) - 2**63,
        digest(f"{record['prompt_hash']}{record['arguments']!r}"),
        int(record["target_hash"][:16], 16) - 2**63,
    ]
    names: list[str] = record["metrics"]
    values = [record[name] for name in names]
    doc_id, answer = int(record["doc_id"]), answer_of(record, delimiter)
    rows = len(into.docs)
    into.doc_ids.append(doc_id)
    into.offsets.append(offset)
    for column, value in zip((into.docs, into.prompts, into.targets), digests, strict=True):
        column.append(value)
    into.answers.append(answer.digest)
    into.empty += answer.is_empty
    for column, value in zip(into.choices, answer.choice or (), strict=bool(answer.choice)):
        column.append(value)
    for name, value in zip(names, values, strict=True):
        _add_value(into, name, value, rows)


def _add_cluster(into: _Columns, doc: Any, fields: Sequence[str]) -> None:
    named = cast("dict[str, Any]", doc) if isinstance(doc, dict) else {}
    found = next((name for name in fields if name in named), "")
    into.cluster_field = into.cluster_field or found
    shared = str(named[found]) if found and named[found] is not None else ""
    # What is empty is not shared.
    into.clusters.append(digest(shared) if shared.strip() else into.docs[-1])


_NAN = float("nan")


def _add_value(into: _Columns, name: str, value: Any, rows: int) -> None:
    """Numbers go into an array; anything else makes the metric a list of values."""
    if name in into.values:
        column = into.values[name]
        column.extend([None] * (rows - len(column)))
        column.append(value)
        return
    numbers = into.numbers.setdefault(name, array("d"))
    numbers.extend([_NAN] * (rows - len(numbers)))
    if value is None or isinstance(value, int | float):
        numbers.append(_NAN if value is None else value)
    else:
        into.values[name] = [*into.numbers.pop(name), value]


def _freeze(columns: _Columns) -> FilterSamples:
    rows = len(columns.docs)
    numbers = {name: _pad(column, rows) for name, column in columns.numbers.items()}
    pairs: dict[str, tuple[Floats, Floats]] = {}
    texts: dict[str, Any] = {}
    for name, values in columns.values.items():
        full = [*values, *[None] * (rows - len(values))]
        if all(_is_pair(value) for value in full):
            both = np.array(full, dtype=np.float64)
            pairs[name] = both[:, 0].copy(), both[:, 1].copy()
        else:
            texts[name] = full
    has_choices = rows > 0 and len(columns.choices[0]) == rows
    return FilterSamples(
        *(np.frombuffer(column, np.int64) if rows else np.empty(0, np.int64)
          for column in (columns.doc_ids, columns.docs, columns.prompts, columns.targets,
                         columns.offsets)),
        numbers=numbers,
        pairs=pairs,
        texts=texts,
        choices=as_choices(columns.choices) if has_choices else None,
        answers=np.array(columns.answers, np.int64),
        empty=columns.empty,
        clusters=np.array(columns.clusters, np.int64),
        cluster_field=columns.cluster_field,
    )  # fmt: skip


def _pad(column: array[float], rows: int) -> Floats:
    column.extend([_NAN] * (rows - len(column)))
    return np.array(column, np.float64)


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    parts = cast("list[Any]", value)
    return len(parts) == 2 and all(isinstance(each, int | float) for each in parts)
