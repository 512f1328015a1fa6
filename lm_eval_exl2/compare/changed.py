"""Answers that changed: counted for a unit, listed with their documents, held against noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from lm_eval_exl2.compare import statistics
from lm_eval_exl2.compare.answers import Floats, Integers
from lm_eval_exl2.compare.flips import (
    Flips,
    NoiseLimit,
    find_flips,
    inside_noise,
    noise_limit,
)
from lm_eval_exl2.compare.results import Flip, FlipCounts, Interval
from lm_eval_exl2.compare.runs import Run
from lm_eval_exl2.compare.samples import FilterSamples, read_documents
from lm_eval_exl2.compare.scores import BINARY, kind_of
from lm_eval_exl2.compare.units import Library, Stratum, Unit, strata
from lm_eval_exl2.errors import TaskLeftOutError

_LONGEST = 600
"""Characters of a question or answer that are shown."""


class Noise(NamedTuple):
    """What two runs of the same checkpoint differ in, for one unit."""

    churn: Interval
    limit: NoiseLimit | None


def measure_noise(
    units: Sequence[Unit], runs: tuple[Run, Run], library: Library
) -> dict[str, Noise]:
    """Compare two runs of the same checkpoint.

    Returns:
        By unit, without those that one run lacks or whose answers are not right or wrong.

    Raises:
        ComparisonError: A task cannot be paired.
    """
    found: dict[str, Noise] = {}
    for unit in units:
        try:
            parts = strata(unit, *runs, library)
        except TaskLeftOutError:
            continue
        if kind_of(parts) != BINARY:
            continue
        each = [_flips(unit, part) for part in parts]
        changed = sum(one.changed for one in each)
        pairs = sum(one.pairs for one in each)
        ends = statistics.clopper_pearson_interval(changed, pairs)
        margins = [(_margins(unit, part, 0), _margins(unit, part, 1)) for part in parts]
        known = [(one, two) for one, two in margins if one is not None and two is not None]
        limit = None
        if known:
            limit = noise_limit(*(np.concatenate(side) for side in zip(*known, strict=True)))
        churn = Interval(changed / pairs, ends.lower, ends.upper, "Clopper-Pearson")
        found[unit.name] = Noise(churn, limit)
    return found


def count_flips(unit: Unit, parts: Sequence[Stratum], noise: Noise | None) -> FlipCounts:
    """Count what changed in a unit, with McNemar's test."""
    each = [_flips(unit, part) for part in parts]
    lost, gained, other = (sum(map(len, kind)) for kind in zip(*map(_by_kind, each), strict=True))
    known = any(part.baseline_samples.answers.any() for part in parts)
    pairs = sum(one.pairs for one in each)
    table = statistics.PairedCounts(0, lost, gained, max(pairs - lost - gained, 0))
    test = statistics.mcnemar(table)
    return FlipCounts(
        lost,
        gained,
        other if known else None,
        sum(one.changed for one in each) / pairs,
        test.exact,
        test.mid_p,
        test.smallest > 0.05,
        None if noise is None else noise.churn,
        None if noise is None else _inside(unit, parts, each, noise.limit),
    )


def list_flips(unit: Unit, parts: Sequence[Stratum], most: int) -> list[Flip]:
    """The first documents of each kind, as the harness logged them."""
    each = [_by_kind(_flips(unit, part)) for part in parts]
    shown: list[Flip] = []
    for at, kind in enumerate(_KINDS):
        left = most
        for part, kinds in zip(parts, each, strict=True):
            places = kinds[at][:left]
            shown += _read_flips(part, places, kind)
            left -= len(places)
    return shown


def write_flips(label: str, unit: Unit, parts: Sequence[Stratum]) -> Iterator[str]:
    """All flips of a unit as lines of JSON, nothing shortened."""
    for part in parts:
        for kind, places in zip(_KINDS, _by_kind(_flips(unit, part)), strict=True):
            for flip in _read_flips(part, places, kind, longest=None):
                yield json.dumps({"run": label, **asdict(flip)}, ensure_ascii=False)


_KINDS = ("lost", "gained", "other wrong")


def _by_kind(flips: Flips) -> tuple[Integers, Integers, Integers]:
    return flips.lost, flips.gained, flips.other_wrong


def _flips(unit: Unit, part: Stratum) -> Flips:
    return find_flips(part.baseline, part.candidate, _answers(unit, part))


def _answers(unit: Unit, part: Stratum) -> tuple[Integers, Integers]:
    sides = (
        (part.baseline_samples, part.at_baseline),
        (part.candidate_samples, part.at_candidate),
    )
    first, second = (_answers_of(samples, unit)[places] for samples, places in sides)
    return first, second


def _answers_of(samples: FilterSamples, unit: Unit) -> Integers:
    if samples.choices is None:
        return samples.answers
    by_length = unit.primary.metric == "acc_norm"
    return samples.choices.chosen_norm if by_length else samples.choices.chosen


def _margins(unit: Unit, part: Stratum, side: int) -> Floats | None:
    samples = (part.baseline_samples, part.candidate_samples)[side]
    places = (part.at_baseline, part.at_candidate)[side]
    if samples.choices is None:
        return None
    by_length = unit.primary.metric == "acc_norm"
    margins = samples.choices.margin_norm if by_length else samples.choices.margin
    return margins[places]


def _inside(
    unit: Unit, parts: Sequence[Stratum], each: Sequence[Flips], limit: NoiseLimit | None
) -> int | None:
    if limit is None:
        return None
    total = 0
    for part, flips in zip(parts, each, strict=True):
        margins = _margins(unit, part, 0)
        if margins is None:
            return None
        total += inside_noise(np.concatenate([flips.lost, flips.gained]), margins, limit)
    return total


def _read_flips(
    part: Stratum, places: Integers, kind: str, *, longest: int | None = _LONGEST
) -> Iterator[Flip]:
    if part.task.samples is None or part.candidate_task.samples is None:
        return
    here = part.baseline_samples.offsets[part.at_baseline[places]].tolist()
    there = part.candidate_samples.offsets[part.at_candidate[places]].tolist()
    pairs = zip(
        read_documents(part.task.samples, here),
        read_documents(part.candidate_task.samples, there),
        strict=True,
    )
    for first, second in pairs:
        question = str(first["arguments"]["gen_args_0"].get("arg_0", ""))
        texts = (str(first["target"]), _answer(first), _answer(second))
        # The end of a prompt is the question; its beginning are the examples.
        yield Flip(
            part.task.name,
            kind,
            int(first["doc_id"]),
            question if longest is None else question[-longest:],
            *(text if longest is None else text[:longest] for text in texts),
        )


def _answer(record: dict[str, Any]) -> str:
    given = record["filtered_resps"]
    if isinstance(given[0], list) and len(given) > 1:
        best = max(range(len(given)), key=lambda at: float(given[at][0]))
        arguments = list(record["arguments"].values())[best]
        return str(arguments.get("arg_1") or best)
    return given[0] if isinstance(given[0], str) else json.dumps(given[0], ensure_ascii=False)
