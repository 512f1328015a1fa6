"""Encoded requests -> score requests that fit the model: window, empty targets, vocabulary.

Truncation is the harness's own function, by the rule of its `hf` model. Forwards nothing.
"""
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from lm_eval.models.utils import truncate_tokens

from lm_eval_exl2.errors import RequestError
from lm_eval_exl2.records import ScoreRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lm_eval_exl2.encode import Encoded

logger = logging.getLogger(__name__)


class Fitted(NamedTuple):
    """Requests sorted by what they need."""

    wanted: list[ScoreRequest]
    empty: list[int]
    """Indices of requests with nothing to score: the empty product, probability one."""


def fit_window(requests: Sequence[Encoded], max_length: int) -> Fitted:
    """Cut contexts from the left so that every request fits the window.

    As in `hf`, the window holds max_length inputs, and the last target token is not one.

    Raises:
        RequestError: a target alone is longer than the window; what is scored is never cut.
    """
    fitted = Fitted([], [])
    cut = longest = 0
    for index, (_, context, target) in enumerate(requests):
        if not target:
            fitted.empty.append(index)
            continue
        if len(target) > max_length:
            raise RequestError(
                f"a continuation has {len(target)} tokens, but the window holds "
                f"{max_length}; raise max_length or drop the document"
            )
        # `+`, not `*`: ids of a protocol that must not be cut refuse it (tasks/token_requests.py).
        kept = truncate_tokens(context + target, max_length + 1, side="left")
        surplus = len(context) + len(target) - len(kept)
        cut, longest = cut + bool(surplus), max(longest, surplus)
        split = len(kept) - len(target)
        fitted.wanted.append(ScoreRequest(index, kept[:split], kept[split:]))
    if cut:
        logger.warning(
            "%d of %d requests exceed max_length=%d; up to %d tokens were cut from the left",
            cut,
            len(requests),
            max_length,
            longest,
        )
    return fitted


def check_ids(sequences: Iterable[Sequence[int]], vocabulary: int) -> None:
    """Refuse token ids the model has no embedding for.

    Raises:
        RequestError: naming the first such id.
    """
    for ids in sequences:
        if max(ids) >= vocabulary:
            raise RequestError(
                f"the tokenizer gives token {max(ids)}, but the model knows {vocabulary}; "
                "use the checkpoint's own tokenizer"
            )
