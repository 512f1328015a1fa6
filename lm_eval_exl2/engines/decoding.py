"""Token-by-token decoding of many prompts with an engine of trees.

Prompts start several at a time: their distinct positions are forwarded once, as a tree, and what
the last of them shares with the next ones is kept. Then every step forwards one token per
unfinished row as one packed row, without padding. A row that finishes leaves the step at once, and
waiting ones start when there is room for several. When memory runs out, half of the rows are put
back and go on later from what they have. Knows ids only, no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.engines.key_values import KeyValueBuffer
from lm_eval_exl2.engines.row_groups import Group, Row, make_step, retire, split_into_groups
from lm_eval_exl2.engines.sampling import make_sampler
from lm_eval_exl2.engines.tree_attention import TreeKeys
from lm_eval_exl2.errors import EngineMemoryError
from lm_eval_exl2.plan import Budget, Targets, next_chunk
from lm_eval_exl2.prefix_tree import build_tree
from lm_eval_exl2.records import GeneratedToken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lm_eval_exl2.engines.tree_engine import TreeEngine
    from lm_eval_exl2.prefix_tree import PrefixTree
    from lm_eval_exl2.records import GenerateRequest


# Waiting rows start when at least one in so many of the places is free.
_REFILL_SHARE = 4


def decode_rows(
    engine: TreeEngine,
    requests: Iterable[GenerateRequest | None],
    is_finished: Callable[[int, int], bool],
    *,
    max_rows: int,
    max_batch_tokens: int,
) -> Iterator[GeneratedToken]:
    """Continue all prompts; see `Engine.generate`."""
    batch = _Batch(engine, iter(requests), max_rows, max_batch_tokens)
    while batch.refill():
        yield from batch.choose(is_finished)
        batch.step()


class _Batch:
    """The rows that are being continued, and those that wait for room."""

    def __init__(
        self,
        engine: TreeEngine,
        waiting: Iterator[GenerateRequest | None],
        max_rows: int,
        max_batch_tokens: int,
    ) -> None:
        self._engine = engine
        self._waiting = waiting
        self._postponed: list[Row] = []
        self._max_rows = max_rows
        self._max_batch_tokens = max_batch_tokens
        self._kept_prompt = _KeptPrompt()
        self._rows: list[Row] = []
        self._groups: list[Group] = []
        self._logits: list[torch.Tensor] = []
        """Of the next token of every row, in the order of the rows."""

    def refill(self) -> bool:
        """Start waiting prompts once there is room for several; return whether any row is left."""
        room = self._max_rows - len(self._rows)
        # Each start is a forward of its own, so one row that leaves is no reason for it.
        if not self._rows or room >= max(1, self._max_rows // _REFILL_SHARE):
            self._start(self._next_rows(room))
        sizes = self._engine.counts.batch_sizes
        sizes["generate_until"] = max(sizes.get("generate_until", 0), len(self._rows))
        return bool(self._rows)

    def _next_rows(self, count: int) -> list[Row]:
        """Take up to so many rows, those that were put back first."""
        rows, self._postponed = self._postponed[:count], self._postponed[count:]
        for request in islice(self._waiting, count - len(rows)):
            if request is None:  # none waits now, more may come
                break
            rows.append(Row(make_sampler(request), list(request.prompt_ids)))
        return rows

    def _start(self, rows: list[Row]) -> None:
        """Forward the prompts of rows; those there is no memory for are put back."""
        while rows:
            try:
                found = _prefill(self._engine, rows, self._max_batch_tokens, self._kept_prompt)
                break
            except (StepTooLargeError, torch.OutOfMemoryError) as error:
                if len(rows) == 1 and not self._rows:
                    raise EngineMemoryError(
                        f"a prompt of {len(rows[0].token_ids)} tokens does not fit into memory; "
                        "use a smaller max_length"
                    ) from error
            rows = self._postpone(rows, len(rows) // 2)
            self._max_rows = max(1, len(self._rows) + len(rows))
        else:
            return
        self._rows += found.rows
        self._groups += found.groups
        self._logits.append(found.logits)

    def _postpone(self, rows: list[Row], kept: int) -> list[Row]:
        """Put rows back but the first few; return those."""
        self._postponed += rows[kept:]
        return rows[:kept]

    def choose(self, is_finished: Callable[[int, int], bool]) -> Iterator[GeneratedToken]:
        """Yield the next token of every row and let the finished ones leave."""
        unfinished: list[Row] = []
        tokens = _choose(self._engine, self._rows, torch.cat(self._logits))
        for row, token in zip(self._rows, tokens, strict=True):
            row.token_ids.append(token)
            row.produced += 1
            is_last = is_finished(row.request.index, token)
            is_last = is_last or row.produced >= row.request.max_new_tokens
            yield GeneratedToken(row.request.index, token, is_last)
            if not is_last:
                unfinished.append(row)
        self._rows = retire(self._groups, unfinished)

    def step(self) -> None:
        """Forward the last token of every row; half of them wait if memory does not suffice."""
        self._logits = []
        while self._rows:
            try:
                self._logits = [_step(self._engine, self._groups, self._rows)]
                return
            except StepTooLargeError as error:
                self._engine.counts.retried += len(self._rows)
                self._kept_prompt.forget()
                if len(self._rows) == 1:
                    raise EngineMemoryError(
                        f"decoding one sequence of {len(self._rows[0].token_ids)} tokens does not "
                        "fit into memory; use a smaller max_length or max_gen_toks"
                    ) from error
            self._max_rows = len(self._rows) // 2
            self._rows = retire(self._groups, self._postpone(self._rows, self._max_rows))


@dataclass(slots=True)
class _KeptPrompt:
    """Keys and values of the last prompt that was started, for the first of the next."""

    token_ids: Sequence[int] = ()
    buffer: KeyValueBuffer | None = None

    def take(self, engine: TreeEngine, tree: PrefixTree, limit: int) -> _Prompts:
        """Give out what the first prompt of a tree shares with the kept one.

        Args:
            engine: Knows the device.
            tree: Prompts in preorder; it begins with the whole of the first.
            limit: Most positions to give out.
        """
        shared = 0
        for known, token, depth in zip(self.token_ids, tree.tokens, tree.depths, strict=False):
            if shared == limit or known != token or depth != shared:
                break
            shared += 1
        buffer = self.buffer
        self.forget()
        if buffer is None or not shared:
            return _Prompts(KeyValueBuffer(), engine.no_keys())
        positions = torch.arange(shared, device=engine.device)
        buffer.keep(positions)
        ends = torch.tensor(list(tree.ends[:shared]), device=engine.device)
        return _Prompts(buffer, TreeKeys(positions, ends, positions))

    def keep(self, row: Row, prompts: _Prompts) -> None:
        """Keep a copy of one prompt, unless there is no memory for it."""
        keys = prompts.keys
        own = torch.nonzero((keys.positions <= row.leaf) & (row.leaf < keys.ends)).flatten()
        try:
            self.buffer, self.token_ids = prompts.buffer.copy_of(own), tuple(row.token_ids)
        except torch.OutOfMemoryError:
            self.forget()

    def forget(self) -> None:
        """Keep nothing."""
        self.buffer, self.token_ids = None, ()


class _Prompts(NamedTuple):
    """Prompt positions that have been forwarded."""

    buffer: KeyValueBuffer
    keys: TreeKeys


class _Started(NamedTuple):
    """Rows whose prompts have been forwarded."""

    rows: list[Row]
    groups: list[Group]
    logits: torch.Tensor
    """Of the first new token of every row (R, V)."""


@torch.inference_mode()
def _choose(engine: TreeEngine, rows: Sequence[Row], logits_RV: torch.Tensor) -> list[int]:
    """Choose every row's next token; the plain argmax of all rows is taken in one go."""
    highest, places = logits_RV.max(-1)  # NaN wins here, so one look finds any
    engine.check_finite(cast("list[float]", highest.tolist()))
    best = cast("list[int]", places.tolist())
    return [
        token
        if row.sampler.is_plain_greedy
        else row.sampler.choose(logits, row.token_ids, row.produced)
        for row, token, logits in zip(rows, best, logits_RV, strict=True)
    ]


@torch.inference_mode()
def _prefill(
    engine: TreeEngine, wave: Sequence[Row], max_batch_tokens: int, kept_prompt: _KeptPrompt
) -> _Started:
    """Forward the distinct prompt positions of rows, in groups that share keys."""
    tree, tails = build_tree([row.token_ids for row in wave], [1] * len(wave))
    for row, tail in zip(wave, tails, strict=True):
        row.leaf = tail[0]
    rows = sorted(wave, key=lambda row: row.leaf)
    leaves = [row.leaf for row in rows]
    # The state of the first prompt's last token is needed, so that much is forwarded again.
    buffer, keys = kept_prompt.take(engine, tree, limit=leaves[0])
    hidden: list[torch.Tensor] = []
    budget, start = Budget(max_batch_tokens), len(keys.positions)
    while start < len(tree):
        chunk = next_chunk(tree, Targets(leaves, leaves), start, budget)
        try:
            states, keys = engine.forward_tree(buffer, keys, chunk)
        except StepTooLargeError:
            engine.counts.retried += len(chunk.token_ids)
            smaller = Budget(len(chunk.token_ids)).halved()
            if smaller is None:
                raise
            budget = smaller
            continue
        hidden.append(states[list(chunk.targets.offsets)])
        start = chunk.stop
    kept_prompt.keep(rows[-1], _Prompts(buffer, keys))
    groups = split_into_groups(rows, buffer, keys)
    return _Started(rows, groups, engine.logits(torch.cat(hidden)))


@torch.inference_mode()
def _step(engine: TreeEngine, groups: list[Group], rows: Sequence[Row]) -> torch.Tensor:
    """Forward the last token of every row; return logits (R, V)."""
    step = make_step(groups, engine.device)
    positions = torch.tensor([len(row.token_ids) - 1 for row in rows], device=engine.device)
    token_ids = [row.token_ids[-1] for row in rows]
    hidden = engine.forward(step, token_ids, positions, repeatable=False)
    return engine.logits(hidden, repeatable=False)
