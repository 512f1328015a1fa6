"""Log-probabilities of single tokens from hidden states, without all logits at once.

The head runs only where a target follows. Its vocabulary may come in parts: what is kept between
them is, per row, the highest logit, where it was, and the sum of exponentials below it (the
online softmax of Milakov and Gimelshein, arXiv:1805.02867). So the logits of a few hundred rows
and a few thousand tokens stay in a CPU's cache, and memory is bounded whatever the vocabulary.

Shapes: T tokens of a step, R rows with targets, P targets, E hidden size, W tokens of a part.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from lm_eval_exl2.records import ChunkScores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lm_eval_exl2.records import ChunkTargets


class HeadPart(NamedTuple):
    """The output head for some neighbouring tokens of the vocabulary."""

    first: int
    """Id of the first one."""
    width: int
    """How many (W)."""
    rows: int
    """Most rows at a time."""
    logits: Callable[[torch.Tensor], torch.Tensor]
    """Hidden states (R, E) to float32 logits (R, W), scales and caps applied."""


class _Rows:
    """What has been seen of each row's distribution."""

    def __init__(self, rows: int, targets: int, device: torch.device) -> None:
        self.highest_R = torch.full((rows,), -torch.inf, device=device)
        self.place_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.sum_R = torch.zeros(rows, device=device)
        """Of exp(logit - highest)."""
        self.chosen_P = torch.zeros(targets, device=device)

    def see(self, rows: slice, first: int, logits_RW: torch.Tensor) -> None:
        """Take in the logits of some tokens; they are overwritten."""
        before_R = self.highest_R[rows]
        part_R, place_R = logits_RW.max(-1)  # the first one where several are equal
        highest_R = torch.maximum(before_R, part_R)
        sum_R = logits_RW.sub_(highest_R[:, None]).exp_().sum(-1)
        self.sum_R[rows] = self.sum_R[rows] * (before_R - highest_R).exp() + sum_R
        is_higher_R = part_R > before_R
        self.place_R[rows] = torch.where(is_higher_R, place_R + first, self.place_R[rows])
        self.highest_R[rows] = highest_R


@torch.inference_mode()
def score_targets(
    hidden_TE: torch.Tensor, targets: ChunkTargets, parts: Iterable[HeadPart]
) -> ChunkScores:
    """Score the targets of a step.

    Args:
        hidden_TE: Hidden states after the final norm.
        targets: P wanted (position, next token) pairs, ascending by position.
        parts: Of the head, covering the vocabulary in order.

    Returns:
        For every target its log-probability (float32 logits, the rest in float64) and whether it
        is the most likely token, the first of several that are equally likely.
    """
    if not targets.offsets:
        return ChunkScores([], [])
    device = hidden_TE.device
    places = sorted(set(targets.offsets))
    row_of = {place: row for row, place in enumerate(places)}
    row_numbers = [row_of[place] for place in targets.offsets]
    rows_P = torch.tensor(row_numbers, device=device)
    tokens_P = torch.tensor(list(targets.token_ids), device=device)
    hidden_RE = hidden_TE.index_select(0, torch.tensor(places, device=device))
    seen = _Rows(len(places), len(row_numbers), device)
    for part in parts:
        for first in range(0, len(places), part.rows):
            rows = slice(first, min(first + part.rows, len(places)))
            logits_RW = part.logits(hidden_RE[rows])
            own = slice(bisect_left(row_numbers, rows.start), bisect_left(row_numbers, rows.stop))
            columns = tokens_P[own] - part.first
            is_here = (columns >= 0) & (columns < part.width)
            found = logits_RW[rows_P[own] - first, columns.clamp(0, part.width - 1)]
            seen.chosen_P[own] = torch.where(is_here, found, seen.chosen_P[own])
            seen.see(rows, part.first, logits_RW)
    # float64 on the CPU: some devices have none.
    totals_R = seen.highest_R.cpu().double() + seen.sum_R.cpu().double().log()
    logprobs_P = seen.chosen_P.cpu().double() - totals_R[rows_P.cpu()]
    is_argmax_P = seen.place_R[rows_P] == tokens_P
    return ChunkScores(
        cast("list[float]", logprobs_P.tolist()), cast("list[bool]", is_argmax_P.tolist())
    )
