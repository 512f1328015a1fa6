"""Result folders of the harness -> the answers of one or two runs, with references.

An answer is the whole text as the model wrote it (`resps`), before filters cut numbers out of it.
Documents are paired as `compare` pairs them: by content, whatever their order, and only where the
prompts and targets are the same. Computes no scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from lm_eval_exl2.compare.guards import is_sampled
from lm_eval_exl2.compare.pairing import Paired, pair
from lm_eval_exl2.compare.runs import Run, TaskRun
from lm_eval_exl2.compare.samples import FilterSamples, read_documents, read_samples
from lm_eval_exl2.errors import ComparisonError, OptionError

_GENERATIVE: Final = "generate_until"


@dataclass(frozen=True, slots=True)
class Answers:
    """What is known of each document; all lists in one order."""

    task: str
    references: list[tuple[str, ...]]
    """Empty where a document has none."""
    candidate: list[str]
    baseline: list[str] | None
    not_settled: list[str]
    """Why these answers certify nothing."""


def find_task(runs: Sequence[Run]) -> str:
    """The one task with written answers that all runs have.

    Raises:
        OptionError: There is none, or more than one.
    """
    first, *others = runs
    found = [
        name
        for name, task in first.tasks.items()
        if task.config.get("output_type") == _GENERATIVE
        and all(name in other.tasks for other in others)
    ]
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise OptionError(f"tasks with written answers in every run: {names}; name one: --tasks")
    return found[0]


def read_answers(
    task: str,
    candidate: Run,
    baseline: Run | None,
    *,
    reference: str | None = None,
    by_document: bool = False,
    with_references: bool = True,
) -> Answers:
    """Read and pair a task's answers.

    Args:
        task: Its name.
        candidate: What is judged.
        baseline: What it is compared with, if there is such a run.
        reference: The field of the documents that holds the reference text, or a list of several;
            by default the task's target.
        by_document: Accept prompts that differ.
        with_references: Whether there must be any; without, `references` is empty.

    Raises:
        ComparisonError: A run lacks the task or its samples, documents cannot be paired, or a
            document has not exactly one answer.
        OptionError: The documents have no such field, or a target is a list.
    """
    side = _Side(candidate, task)
    if baseline is None:
        records = side.records(side.samples.offsets.tolist())
        answers = [_answer(each, task) for each in records]
        references = [_references(each, reference, task) for each in records if with_references]
        return Answers(task, references, answers, None, side.not_settled(records))
    other = _Side(baseline, task)
    paired = pair(task, other.samples, side.samples, by_document=by_document)
    ours = side.records(side.samples.offsets[paired.candidate].tolist())
    theirs = other.records(other.samples.offsets[paired.baseline].tolist())
    open_ = [*side.not_settled(ours), *other.not_settled(theirs), *_partial(paired)]
    return Answers(
        task,
        [_references(each, reference, task) for each in theirs if with_references],
        [_answer(each, task) for each in ours],
        [_answer(each, task) for each in theirs],
        open_,
    )


class _Side:
    """One run's samples of a task."""

    def __init__(self, run: Run, task: str) -> None:
        if task not in run.tasks:
            raise ComparisonError(f"{task} was not run with {run.label}; it has {_names(run)}")
        self._label = run.label
        self._task: TaskRun = run.tasks[task]
        if self._task.samples is None:
            raise ComparisonError(
                f"{task}: no samples beside {self._task.file}; run lm_eval with --log_samples"
            )
        self._file = self._task.samples
        read = read_samples(self._file)
        self._broken = read.broken_lines
        if not read.filters:
            raise ComparisonError(f"{self._file} holds no samples")
        # Filters repeat the same answers; the first one stands for all.
        self.samples: FilterSamples = next(iter(read.filters.values()))

    def records(self, offsets: list[int]) -> list[dict[str, Any]]:
        return list(read_documents(self._file, offsets))

    def not_settled(self, records: Sequence[dict[str, Any]]) -> list[str]:
        """Why this run certifies nothing."""
        found: list[str] = []
        if self._broken:
            found.append(f"the samples of {self._label} end in half a line")
        if self._task.limited:
            found.append(f"{self._label} was run with --limit or --samples")
        if any(is_sampled({"generation_kwargs": _settings(each)}) for each in records):
            found.append(f"answers of {self._label} were drawn at random, not greedy")
        return found


def _names(run: Run) -> str:
    return ", ".join(run.tasks)


def _partial(paired: Paired) -> list[str]:
    if not paired.is_partial:
        return []
    return [
        f"only {paired.documents:,} documents are in both runs, of {paired.baseline_documents:,} "
        f"and {paired.candidate_documents:,}"
    ]


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """How a text was generated: the second argument of the request."""
    requests = cast("dict[str, dict[str, Any]]", record["arguments"])
    given = [each.get("arg_1") for each in requests.values()]
    return cast("dict[str, Any]", given[0]) if given and isinstance(given[0], dict) else {}


def _answer(record: dict[str, Any], task: str) -> str:
    given: Any = record["resps"]
    if len(given) != 1 or len(given[0]) != 1 or not isinstance(given[0][0], str):
        raise ComparisonError(
            f"{task}: document {record['doc_id']} has not exactly one written answer; expected a "
            "task of type generate_until without repeats"
        )
    return given[0][0]


def _references(record: dict[str, Any], field: str | None, task: str) -> tuple[str, ...]:
    if field is None:
        return _of_target(record["target"], task)
    if field not in record["doc"]:
        raise OptionError(
            f"{task}: no field {field!r} in the documents, there are {', '.join(record['doc'])}"
        )
    value: Any = record["doc"][field]
    texts = cast("list[Any]", value) if isinstance(value, list) else [value]
    return tuple(str(each) for each in texts if each is not None and str(each).strip())


def _of_target(target: str, task: str) -> tuple[str, ...]:
    # The harness writes a list of targets as Python would print it.
    if target.startswith(("['", '["')) and target.endswith(("']", '"]')):
        raise OptionError(
            f"{task}: a target is a list, {target[:40]}...; name the field of the documents that "
            "holds the texts: --reference FIELD"
        )
    return (target,) if target.strip() else ()
