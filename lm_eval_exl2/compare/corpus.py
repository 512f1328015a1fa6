"""Corpus metrics: scores that no mean over documents gives, as functions of sums over documents.

The formulas are those of lm-evaluation-harness' aggregations: scikit-learn's `f1_score` and
`matthews_corrcoef`, the Brier score, sacrebleu's corpus scores with their defaults. A corpus can so
be drawn again thousands of times without reading a text twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
"""Documents by sufficient statistics."""


@dataclass(frozen=True, slots=True)
class CorpusMetric:
    """A corpus metric in two steps."""

    rows: Callable[[Sequence[Any]], Rows]
    """From the logged values, one per document: what is summed."""
    score: Callable[[Rows], float]
    """From the sums."""


def corpus_metric(name: str) -> CorpusMetric | None:
    """The metric of an aggregation's name; None if it is none of these."""
    if name == "f1":
        return CorpusMetric(_hits, _f1)
    if name == "matthews_corrcoef":
        return CorpusMetric(_confusion, _matthews)
    if name == "brier_score":
        return CorpusMetric(_squared_errors, _mean)
    return _sacrebleu(name) if name in _SACREBLEU else None


def _squared_errors(values: Sequence[Any]) -> Rows:
    """Of (gold, probabilities of the choices): the squared distance, and 1."""
    return np.array(
        [
            [sum((p - (at == gold)) ** 2 for at, p in enumerate(probabilities)), 1]
            for gold, probabilities in values
        ]
    )


def _mean(sums: Rows) -> float:
    return float(sums[0] / sums[1])


def _hits(values: Sequence[Any]) -> Rows:
    """True positives, false positives and false negatives of (gold, predicted) labels."""
    is_gold, is_predicted = (np.array(values) == 1).T
    both = [is_gold & is_predicted, ~is_gold & is_predicted, is_gold & ~is_predicted]
    return np.stack(both, axis=1).astype(np.float64)


def _f1(sums: Rows) -> float:
    """Of the label 1: 2 TP / (2 TP + FP + FN); 0 where nothing is 1."""
    right, *wrong = sums.tolist()
    return 2 * right / (2 * right + sum(wrong)) if sums.any() else 0.0


def _confusion(values: Sequence[Any]) -> Rows:
    """One-hot cells of the confusion matrix of (gold, predicted) labels."""
    labels, codes = np.unique(np.array(values), return_inverse=True)
    gold, predicted = codes.reshape(-1, 2).T
    cells = np.zeros((len(gold), len(labels), len(labels)))
    cells[np.arange(len(gold)), gold, predicted] = 1
    return cells.reshape(len(gold), -1)


def _matthews(sums: Rows) -> float:
    """Gorodkin's correlation of k labels (Comput. Biol. Chem. 28, 2004); 0 where undefined."""
    size = round(len(sums) ** 0.5)
    cells = sums.reshape(size, size)
    gold, predicted, total = cells.sum(axis=1), cells.sum(axis=0), cells.sum()
    above = np.trace(cells) * total - gold @ predicted
    below = np.sqrt((total**2 - predicted @ predicted) * (total**2 - gold @ gold))
    return float(above / below) if below else 0.0


_SACREBLEU = {"bleu": "BLEU", "chrf": "CHRF", "chrf++": "CHRF", "ter": "TER"}


def _sacrebleu(name: str) -> CorpusMetric:
    """By the steps of sacrebleu's own significance tests (`sacrebleu/significance.py`)."""
    import sacrebleu

    options = {"word_order": 2} if name == "chrf++" else {}
    metric: Any = getattr(sacrebleu, _SACREBLEU[name])(**options)

    def rows(values: Sequence[Any]) -> Rows:
        references, texts = zip(*values, strict=True)
        lists = [_as_list(each) for each in references]
        streams = list(zip(*lists, strict=True))  # as many references for each document
        return np.array(
            metric._extract_corpus_statistics([_as_list(each)[0] for each in texts], streams),
            np.float64,
        )

    def score(sums: Rows) -> float:
        return float(metric._compute_score_from_stats(sums).score)

    return CorpusMetric(rows, score)


def _as_list(value: Any) -> list[str]:
    return cast("list[str]", value) if isinstance(value, list) else [value]
