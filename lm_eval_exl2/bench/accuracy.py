"""Runs of a generative task -> MLPerf's accuracy gate and, beside it, how alike the texts are.

Puts together what `answers` reads, `rouge` scores, and `gate` and `agreement` decide; the two
decisions know nothing of each other. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import chain
from typing import Any, Final

import numpy as np

from lm_eval_exl2 import __version__
from lm_eval_exl2.bench.agreement import Agreement, compare_answers
from lm_eval_exl2.bench.answers import Answers, find_task, read_answers
from lm_eval_exl2.bench.gate import Gate, Measured, cannot_judge, judge
from lm_eval_exl2.bench.rouge import BY_SENTENCE, by_sentence, has_words, rouge_by_document
from lm_eval_exl2.bench.rules import CHARACTERS, TOKENS, Rule
from lm_eval_exl2.compare.runs import Run
from lm_eval_exl2.errors import OptionError

FORMAT: Final = 1
"""Raised when a field of the JSON changes its meaning."""

Tokenize = Callable[[Sequence[str]], list[list[int]]]
"""Texts to token ids, without special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a user can choose."""

    rule: Rule
    ratio: Fraction = Fraction(99, 100)
    tokenize: Tokenize | None = None
    tasks: Sequence[str] = ()
    """The first has the references; the others count for the answers' length only."""
    reference: str | None = None
    by_document: bool = False
    accept_limited: bool = False
    """Count what would not be settled (`--limit`, missing documents, sampling) as evidence."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What was found."""

    baseline: str | None
    candidate: str
    tasks: list[str]
    unit: str
    """What lengths are counted in: "tokens" or "characters"."""
    gate: Gate
    agreement: Agreement | None
    """None without a run of a baseline."""
    notes: list[str]
    lm_eval_exl2_version: str = __version__
    format: int = FORMAT


def to_json(found: Accuracy) -> dict[str, Any]:
    """As plain dicts, lists, numbers and texts."""
    return asdict(found)


def measure_accuracy(candidate: Run, baseline: Run | None, choices: Choices) -> Accuracy:
    """Measure a candidate.

    Args:
        candidate: Its run.
        baseline: The run it is compared with; may be missing where the rule has published scores.
        choices: See there.

    Raises:
        ComparisonError: The runs cannot be paired, or their files are damaged.
        OptionError: A choice contradicts the rule or the runs.
        MissingDependencyError: The rule needs sentences and their splitter is not there.
    """
    rule, unit = choices.rule, _unit(choices)
    if baseline is None and not rule.is_published:
        raise OptionError(
            f"rule {rule.name} has no published scores; give a run of the baseline as well"
        )
    runs = [candidate] if baseline is None else [candidate, baseline]
    tasks = list(choices.tasks) or [find_task(runs)]
    read = _read(tasks, candidate, baseline, choices)
    # What a baseline lacks must not shorten a run that published scores judge.
    judged = _read(tasks, candidate, None, choices) if rule.is_published and baseline else read
    return Accuracy(
        baseline=None if baseline is None else baseline.label,
        candidate=candidate.label,
        tasks=tasks,
        unit=unit,
        gate=_gate(judged, choices, unit),
        agreement=_agreement(read[0], choices),
        notes=_notes(read[0], rule),
    )


def _read(
    tasks: Sequence[str], candidate: Run, baseline: Run | None, choices: Choices
) -> list[Answers]:
    return [
        read_answers(
            task,
            candidate,
            baseline,
            reference=choices.reference,
            by_document=choices.by_document,
            with_references=not number,
        )
        for number, task in enumerate(tasks)
    ]


def _open(read: Sequence[Answers], choices: Choices) -> list[str]:
    """Why these answers certify nothing."""
    if choices.accept_limited:
        return []
    return list(dict.fromkeys(chain(*(each.not_settled for each in read))))


def _unit(choices: Choices) -> str:
    rule = choices.rule
    if rule.unit == TOKENS and choices.tokenize is None:
        raise OptionError(
            f"rule {rule.name} counts tokens; name the model's tokenizer: --tokenizer DIR"
        )
    return rule.unit or (CHARACTERS if choices.tokenize is None else TOKENS)


def _gate(read: Sequence[Answers], choices: Choices, unit: str) -> Gate:
    first, rule = read[0], choices.rule
    lacking = sum(not each for each in first.references)
    if lacking:
        reason = f"{lacking:,} of {len(first.references):,} documents have no reference text"
        return cannot_judge(rule, choices.ratio, reason, documents=len(first.references))
    if BY_SENTENCE in rule.kinds:
        first = _in_sentences(first)
        read = [first, *map(_in_sentences, read[1:])]
    candidate = _measure(first, first.candidate, [each.candidate for each in read], choices, unit)
    baseline = None
    if first.baseline is not None:
        texts = [each.baseline or [] for each in read]
        baseline = _measure(first, first.baseline, texts, choices, unit)
    return judge(
        rule, choices.ratio, candidate, baseline, unit=unit, not_settled=_open(read, choices)
    )


def _in_sentences(answers: Answers) -> Answers:
    return replace(
        answers,
        references=[tuple(by_sentence(each)) for each in answers.references],
        candidate=by_sentence(answers.candidate),
        baseline=None if answers.baseline is None else by_sentence(answers.baseline),
    )


def _measure(
    answers: Answers,
    texts: Sequence[str],
    counted: Sequence[Sequence[str]],
    choices: Choices,
    unit: str,
) -> Measured:
    """ROUGE of one task's answers, length of all tasks'."""
    every = list(chain(*counted))
    if unit == TOKENS and choices.tokenize is not None:
        lengths = [len(each) for each in choices.tokenize(every)]
    else:
        lengths = [len(each.strip()) for each in every]
    scores = rouge_by_document(answers.references, texts, choices.rule.kinds)
    return Measured(scores, np.array(lengths, np.int64))


def _agreement(answers: Answers, choices: Choices) -> Agreement | None:
    if answers.baseline is None:
        return None
    pieces = None
    if choices.tokenize is not None:
        pieces = choices.tokenize(answers.baseline), choices.tokenize(answers.candidate)
    return compare_answers(
        answers.baseline,
        answers.candidate,
        unit=CHARACTERS if pieces is None else TOKENS,
        pieces=pieces,
        not_settled="; ".join(_open([answers], choices)),
    )


def _notes(answers: Answers, rule: Rule) -> list[str]:
    found: list[str] = []
    unseen = sum(bool(each) and not any(map(has_words, each)) for each in answers.references)
    if unseen:
        found.append(
            f"{unseen:,} references hold nothing that ROUGE sees (letters a to z, digits): these "
            "documents score 0 whatever is answered"
        )
    sides = [("candidate", answers.candidate), ("baseline", answers.baseline or [])]
    for side, texts in sides:
        empty = sum(not text.strip() for text in texts)
        if empty:
            found.append(f"{empty:,} answers of the {side} are empty")
    if rule.is_published and answers.baseline is not None:
        found.append(
            f"the gate holds the candidate against the published scores of {rule.name}; the run "
            "of the baseline is used for the agreement alone"
        )
    return found
