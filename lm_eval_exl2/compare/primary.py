"""Which metric of a task counts, and under which name policies know the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lm_eval_exl2.errors import ComparisonError, OptionError

SHIPPED = Path(__file__).with_name("primary.yaml")
_KEYS = {"task", "metric", "filter", "beside", "benchmark"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table."""

    task: str
    """A pattern with * and ?."""
    metric: str
    filter: str = ""
    """Empty: the only filter, or the first."""
    beside: str = ""
    """Another filter whose score is shown next to it."""
    benchmark: str = ""


class Primary(NamedTuple):
    """What counts for a task."""

    metric: str
    filter: str
    beside: str
    benchmark: str
    is_listed: bool
    """Whether the table names it; otherwise it is the task's first metric."""


def read_table(path: Path = SHIPPED, *, overrides: Sequence[str] = ()) -> list[Line]:
    """Read the table, `TASK=METRIC[,FILTER]` before it.

    Raises:
        OptionError: The file or an override cannot be understood.
    """
    first = [_override(text) for text in overrides]
    try:
        rows: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [*first, *(Line(**row) for row in rows)]
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise OptionError(
            f"{path} is no table of primary metrics ({error}); expected a list of "
            f"{{{', '.join(sorted(_KEYS))}}}"
        ) from error


def _override(text: str) -> Line:
    task, equals, rest = text.partition("=")
    metric, _, filter_name = rest.partition(",")
    if not (task and equals and metric):
        raise OptionError(f"--primary {text!r}, expected TASK=METRIC or TASK=METRIC,FILTER")
    return Line(task=task, metric=metric, filter=filter_name)


def find_primary(
    name: str,
    results: Mapping[str, Any],
    higher_is_better: Mapping[str, bool],
    table: Sequence[Line],
) -> Primary:
    """What counts for a task or group: the first line that fits and whose metric it has.

    Args:
        name: Of the task or group.
        results: Its values by "metric,filter".
        higher_is_better: By metric; those that are not named are no scores.
        table: Lines in their order.

    Raises:
        ComparisonError: There is no metric at all.
    """
    measured = _measured(results)
    fitting = [line for line in table if fnmatchcase(name, line.task)]
    benchmark = next((line.benchmark for line in fitting if line.benchmark), name)
    for line in fitting:
        filters = [filter_name for metric, filter_name in measured if metric == line.metric]
        chosen = line.filter if line.filter in filters else next(iter(filters), None)
        if chosen is not None:
            beside = line.beside if line.beside in filters else ""
            return Primary(line.metric, chosen, beside, benchmark, True)
    scores = [
        (metric, filter_name) for metric, filter_name in measured if metric in higher_is_better
    ]
    # Rather a share than a perplexity, whatever comes first.
    scores.sort(key=lambda pair: not _is_share(results[",".join(pair)], higher_is_better[pair[0]]))
    for metric, filter_name in scores:
        return Primary(metric, filter_name, "", benchmark, False)
    raise ComparisonError(f"{name} has no metric that says whether higher is better")


def _is_share(score: Any, higher_is_better: bool) -> bool:
    return higher_is_better and isinstance(score, int | float) and 0 <= score <= 1


def _measured(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Metrics and filters, in the task's own order."""
    names = [name.partition(",") for name in results if "," in name]
    return [(metric, name) for metric, _, name in names if not metric.endswith("_stderr")]
