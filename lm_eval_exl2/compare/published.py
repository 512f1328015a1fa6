"""A file of published scores -> records. What it takes to compare with them is in `unpaired.py`."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from lm_eval_exl2.errors import OptionError

_FIELDS = ("task", "metric", "value", "n", "source")


@dataclass(frozen=True, slots=True)
class Published:
    """A score that somebody published."""

    task: str
    metric: str
    filter: str
    """Empty: the task's only filter, or the first."""
    value: float
    """As the harness writes it: a share, not per cent."""
    documents: int
    source: str


def read_published(path: Path) -> list[Published]:
    """Read a CSV file with a header, or YAML or JSON with a list of the same fields.

    The fields are task, metric (or "metric,filter"), value, n (documents) and source.

    Raises:
        OptionError: The file or a line cannot be understood.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows: Any = (
            list(csv.DictReader(io.StringIO(text)))
            if path.suffix == ".csv"
            else yaml.safe_load(text)
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError, csv.Error) as error:
        raise OptionError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise OptionError(f"{path} holds no list of {', '.join(_FIELDS)}")
    entries = enumerate(cast("list[Any]", rows), 1)
    found = [_published(row, f"{path}, entry {number}") for number, row in entries]
    tasks = [each.task for each in found]
    if repeated := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise OptionError(f"{path} has several scores of {', '.join(repeated)}; keep one of each")
    return found


def _published(row: Any, where: str) -> Published:
    named = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    missing = [name for name in _FIELDS if not str(named.get(name) or "").strip()]
    if missing and not (missing == ["value"] and named.get("value") == 0):
        raise OptionError(f"{where}: {missing[0]} is missing, expected {', '.join(_FIELDS)}")
    try:
        value, documents = float(named["value"]), int(named["n"])
    except (TypeError, ValueError) as error:
        raise OptionError(f"{where}: value and n must be numbers ({error})") from error
    if not math.isfinite(value) or documents < 1:
        raise OptionError(f"{where}: found value {value} of n {documents}, expected a score")
    metric, _, filter_name = str(named["metric"]).partition(",")
    source = " ".join(str(named["source"]).split())
    return Published(str(named["task"]), metric, filter_name, value, documents, source)
