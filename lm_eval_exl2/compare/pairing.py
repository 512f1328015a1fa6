"""Two runs' samples of one task -> the same documents side by side.

A document is found again by its content and, where it occurs several times, by the number of the
occurrence. Everything else that must be equal is checked, not used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm_eval_exl2.compare.answers import Integers
from lm_eval_exl2.compare.samples import FilterSamples
from lm_eval_exl2.errors import ComparisonError


class Paired(NamedTuple):
    """Places of the documents that both runs have, in the baseline's order."""

    baseline: Integers
    candidate: Integers
    baseline_documents: int
    candidate_documents: int
    moved: int
    """Pairs whose doc_id differs: another order, or another selection."""
    prompts_differ: int
    """Pairs whose prompts differ; 0 unless pairing on the document alone was asked for."""

    @property
    def documents(self) -> int:
        """Number of pairs."""
        return len(self.baseline)

    @property
    def is_partial(self) -> bool:
        """Whether a run has documents that the other one lacks."""
        return not self.documents == self.baseline_documents == self.candidate_documents


def pair(
    task: str, baseline: FilterSamples, candidate: FilterSamples, *, by_document: bool = False
) -> Paired:
    """Pair two runs' samples behind the same filter.

    Args:
        task: For messages.
        baseline: One run.
        candidate: The other.
        by_document: Accept prompts that differ (other shots, chat template against raw text).

    Raises:
        ComparisonError: No common document, the same document with another target, or other
            prompts.
    """
    first, second = _keys(baseline.docs), _keys(candidate.docs)
    _, at_first, at_second = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    order = np.argsort(at_first)
    at_first, at_second = at_first[order], at_second[order]
    if not len(at_first):
        raise ComparisonError(
            f"{task}: the runs have no document in common ({len(baseline)} and {len(candidate)} "
            "documents); they were run on different data or selections"
        )
    targets = _count_different(baseline.targets, at_first, candidate.targets, at_second)
    if targets:
        raise ComparisonError(
            f"{task}: {targets} documents are the same but their targets differ; the task was "
            "changed between the runs"
        )
    prompts = _count_different(baseline.prompts, at_first, candidate.prompts, at_second)
    if prompts and not by_document:
        raise ComparisonError(
            f"{task}: {prompts} of {len(at_first)} prompts differ (other examples, chat template "
            "or system instruction), so the difference would not be the weights' alone; run both "
            "alike, or --pair doc"
        )
    moved = _count_different(baseline.doc_ids, at_first, candidate.doc_ids, at_second)
    return Paired(at_first, at_second, len(baseline), len(candidate), moved, prompts)


def _keys(docs: Integers) -> NDArray[np.void]:
    """Document digest and number of the occurrence, as one value that can be compared."""
    order = np.argsort(docs, kind="stable")
    ordered = docs[order]
    places = np.arange(len(docs))
    starts = np.r_[True, ordered[1:] != ordered[:-1]] if len(docs) else np.empty(0, bool)
    first_of_run = np.maximum.accumulate(np.where(starts, places, 0))
    occurrence = np.empty(len(docs), np.int64)
    occurrence[order] = places - first_of_run
    both = np.empty(len(docs), np.dtype([("doc", np.int64), ("occurrence", np.int64)]))
    both["doc"], both["occurrence"] = docs, occurrence
    return both


def _count_different(first: Integers, at: Integers, second: Integers, there: Integers) -> int:
    return int(np.count_nonzero(first[at] != second[there]))
