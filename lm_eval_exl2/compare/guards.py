"""Signs that a score measures something else than the model: said, never corrected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_eval_exl2.compare.answers import Choices, Integers
from lm_eval_exl2.compare.samples import FilterSamples


def chance_of_unit(tasks: Sequence[tuple[Choices | None, int]]) -> float | None:
    """What guessing reaches on average; None where the answers of any task are not chosen.

    Args:
        tasks: Choices of each and how many of its documents count.
    """
    known = [
        (float(np.mean(1 / choices.choices)), size)
        for choices, size in tasks
        if choices is not None
    ]
    if len(known) < len(tasks):
        return None
    return sum(chance * size for chance, size in known) / max(sum(size for _, size in known), 1)


def warnings_of(samples: FilterSamples, places: Integers, score: float) -> list[str]:
    """What is strange about one run's answers.

    Args:
        samples: Of the task.
        places: Those that are compared.
        score: Their score.
    """
    found: list[str] = []
    if samples.choices is not None and len(places) >= 20:
        chosen = samples.choices.chosen[places]
        if _all_equal(chosen):
            found.append(f"all {len(places)} answers are choice {int(chosen[0]) + 1}")
    elif samples.choices is None and samples.empty:
        found.append(f"{samples.empty} of {len(samples)} answers are empty")
    elif len(places) >= 20 and samples.answers.any() and _all_equal(samples.answers[places]):
        found.append(f"all {len(places)} answers are the same text")
    if not np.isfinite(score):
        found.append(f"the score is {score}")
    return found


def _all_equal(answers: Integers) -> bool:
    return len(np.unique(answers)) == 1


def is_sampled(config: dict[str, Any]) -> bool:
    """Whether answers were drawn at random, so that a second run differs by itself."""
    given: dict[str, Any] = config.get("generation_kwargs") or {}
    temperature = given.get("temperature")
    if given.get("do_sample") is None:
        return bool(temperature)
    return bool(given["do_sample"]) and temperature != 0
