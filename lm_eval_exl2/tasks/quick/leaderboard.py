"""What the first Open LLM Leaderboard counted, read from results of the stock tasks or quick runs.

Pure: takes the `results` of a results file. Each task counts with one metric, and the average is
the plain mean of the six, nothing rescaled (the second leaderboard rescales, this one did not).
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from lm_eval_exl2.errors import RequestError

# The task names of `exl2_leaderboard_v1` and the metric and filter that count.
LEADERBOARD_V1: Final = {
    "arc_challenge": "acc_norm,none",
    "hellaswag": "acc_norm,none",
    "mmlu": "acc,none",
    "truthfulqa_mc2": "acc,none",
    "winogrande": "acc,none",
    "gsm8k": "exact_match,strict-match",
}
QUICK: Final = {
    "exl2_quick_arc_challenge": "acc_norm,none",
    "exl2_quick_hellaswag": "acc_norm,none",
    "exl2_quick_mmlu": "acc,none",
    "exl2_quick_truthfulqa": "acc,none",
    "exl2_quick_winogrande": "acc,none",
    "exl2_quick_gsm8k": "exact_match,strict-match",
}
_MMLU: Final = "mmlu"
_SUBJECTS: Final = 57
# Groups of subjects: their scores are means already.
_MMLU_GROUPS: Final = {
    f"{_MMLU}_{name}" for name in ("stem", "other", "social_sciences", "humanities")
}


class Average(NamedTuple):
    """Scores that count, between 0 and 1."""

    scores: dict[str, float]
    """By task."""
    average: float
    """Their plain mean."""


def average(
    results: Mapping[str, Mapping[str, object]], counted: Mapping[str, str] = LEADERBOARD_V1
) -> Average:
    """The leaderboard's average.

    MMLU counts as the mean over its 57 subjects, as the leaderboard had it; the harness's own
    `mmlu` row weights subjects by size.

    Args:
        results: From a results file: metrics by task.
        counted: Which metric of which task counts.

    Raises:
        RequestError: A task, a subject or a metric is missing.
    """
    missing: list[str] = []
    scores: dict[str, float] = {}
    for task, metric in counted.items():
        names = _subjects(results) if task == _MMLU else [task]
        found = [results.get(name, {}).get(metric) for name in names]
        values = [float(value) for value in found if isinstance(value, int | float)]
        if not values or len(values) < len(names):
            missing.append(f"{task} ({metric})")
            continue
        scores[task] = sum(values) / len(values)
    if missing:
        raise RequestError(
            f"no average: {', '.join(missing)} missing from the results; it is the mean of "
            f"{len(counted)} tasks, so run all of them"
        )
    return Average(scores, sum(scores.values()) / len(scores))


def _subjects(results: Mapping[str, object]) -> list[str]:
    """Names of MMLU's subjects in some results; none unless all are there."""
    names = [name for name in results if name.startswith(f"{_MMLU}_") and name not in _MMLU_GROUPS]
    return names if len(names) == _SUBJECTS else []
