"""The score of some samples, by the metric's own rule; and whether a results file agrees.

A score is used only after it has been computed again from the samples. What is not known by name
is tried: a metric whose mean is its score is a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from lm_eval_exl2.compare.answers import Floats, Integers
from lm_eval_exl2.compare.corpus import CorpusMetric, corpus_metric
from lm_eval_exl2.compare.runs import TaskRun
from lm_eval_exl2.compare.samples import FilterSamples
from lm_eval_exl2.errors import ComparisonError, TaskLeftOutError, UnknownRuleError

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Rule:
    """How a metric's values become its score."""

    name: str
    kind: str
    """"mean", "loss" (a perplexity: exp of a mean loss), "bits", or "corpus"."""
    score: Callable[[Any], float]
    """From the values: an array of numbers, two arrays (loss and weight), or, of a corpus metric,
    documents by what is summed."""


def _mean(values: Floats) -> float:
    return float(values.mean())


def _weighted_loss(values: tuple[Floats, Floats]) -> float:
    loss, weight = values
    return math.fsum(loss) / math.fsum(weight)


MEAN = Rule("mean", "mean", _mean)
_RULES = {
    "mean": MEAN,
    "nanmean": MEAN,
    "perplexity": Rule("perplexity", "loss", lambda values: math.exp(-_mean(values))),
    "weighted_perplexity": Rule(
        "weighted_perplexity", "loss", lambda values: math.exp(-_weighted_loss(values))
    ),
    "bits_per_byte": Rule(
        "bits_per_byte", "bits", lambda values: -_weighted_loss(values) / math.log(2)
    ),
}
# Of this package's exl2_wikitext2_ppl: loss instead of log-likelihood.
_LOSS_PER_TARGET = Rule("loss per target", "loss", lambda values: math.exp(_weighted_loss(values)))


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A metric whose score was found again."""

    rule: Rule
    values: Any
    """All values of the run, as the rule takes them."""
    present: Integers
    """Places of the samples that have a value."""
    score: float


def recompute(
    task: TaskRun,
    samples: FilterSamples,
    metric: str,
    filter_name: str,
    *,
    must_agree: bool = True,
    is_partial: bool = False,
) -> Recomputed:
    """Compute a metric's score from its samples and compare it with the results file.

    Args:
        task: What the results file says.
        samples: Of the task behind the filter.
        metric: Its name.
        filter_name: The filter's.
        must_agree: Refuse a score that no known rule gives; otherwise only this task is left out.
        is_partial: Samples are missing, so that the written score cannot be theirs.

    Raises:
        ComparisonError: The score is NaN, or its samples give another one.
        TaskLeftOutError: There is no score, or (UnknownRuleError) no known rule gives it.
    """
    written = task.results.get(f"{metric},{filter_name}")
    if not isinstance(written, int | float):
        raise TaskLeftOutError(f"{task.name}: {metric} is {written!r} in {task.file}, not a score")
    if not math.isfinite(written):
        raise ComparisonError(f"{task.name}: {metric} is {written} in {task.file}, not a score")
    declared = _declared(task.config, metric)
    corpus = corpus_metric(declared)
    if corpus is not None:
        values, present = _corpus_values(samples, metric, corpus)
        rules = [_corpus_rule(declared, corpus)]
    else:
        values, present = _values(samples, metric)
        rules = [_RULES[declared]] if declared in _RULES else _candidates(values)
    for rule in rules:
        score = rule.score(values)
        agrees = math.isclose(score, written, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        if agrees or (is_partial and (len(rules) == 1 or rule is MEAN)):
            return Recomputed(rule, values, present, score)
    if declared in _RULES or corpus is not None or must_agree:
        raise ComparisonError(
            f"{task.name}: {metric} is {written} in {task.file.name}, but its samples give "
            f"{rules[0].score(values)}; the files do not belong together or were changed"
        )
    raise UnknownRuleError(
        f"{task.name}: no known rule gives {metric} = {written} from its samples "
        f"(aggregation {declared or 'not named'}), so it cannot be compared in pairs"
    )


def take(values: Any, places: Integers) -> Any:
    """Some of a metric's values."""
    if isinstance(values, tuple):
        return tuple(part[places] for part in cast("tuple[Floats, Floats]", values))
    return values[places]


def _values(samples: FilterSamples, metric: str) -> tuple[Any, Integers]:
    if metric in samples.pairs:
        return samples.pairs[metric], np.arange(len(samples))
    if metric in samples.numbers:
        numbers = samples.numbers[metric]
        present = np.flatnonzero(~np.isnan(numbers))
        if len(present):
            return numbers[present], present
    raise TaskLeftOutError(f"the samples hold no numbers for {metric}")


def _declared(config: dict[str, Any], metric: str) -> str:
    listed: list[dict[str, Any]] = config.get("metric_list") or []
    for each in listed:
        # A function is written as its code or as "<function name at ...>".
        if each.get("metric") == metric or len(listed) == 1:
            return str(each.get("aggregation") or _DEFAULTS.get(metric, ""))
    return ""


# Of the harness' registry, for metrics whose lines name no aggregation.
_DEFAULTS = {
    **{name: name for name in ("f1", "bleu", "chrf", "chrf++", "ter", "brier_score")},
    "mcc": "matthews_corrcoef",
}


def _corpus_rule(name: str, metric: CorpusMetric) -> Rule:
    def score(rows: Any) -> float:
        return metric.score(rows.sum(axis=0))

    return Rule(name, "corpus", score)


def _corpus_values(
    samples: FilterSamples, metric: str, corpus: CorpusMetric
) -> tuple[Any, Integers]:
    if metric in samples.pairs:
        given: Sequence[Any] = np.stack(samples.pairs[metric], axis=1).astype(int).tolist()
    else:
        given = samples.texts.get(metric, ())
    present = [at for at, value in enumerate(given) if value is not None]
    if not present:
        raise TaskLeftOutError(f"the samples hold no values for {metric}")
    return corpus.rows([given[at] for at in present]), np.array(present)


def _candidates(values: Any) -> list[Rule]:
    if isinstance(values, tuple):
        return [_LOSS_PER_TARGET, _RULES["weighted_perplexity"], _RULES["bits_per_byte"]]
    return [MEAN, _RULES["perplexity"]]
