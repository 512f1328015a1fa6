"""Token-by-token decoding of many prompts with an engine of trees.

Prompts are taken in waves. The wave's distinct prompt positions are forwarded once, as a tree, and
what its last prompt shares with the next wave is kept for it; then every step forwards one token
per unfinished row as one packed row, without padding. A row that finishes leaves the step at
once. When memory runs out, half of the rows are put back and continue in a later wave from what
they have. Knows ids only, no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.engines.key_values import KeyValueBuffer
from lm_eval_exl2.engines.row_groups import Row, retire, split_into_groups
from lm_eval_exl2.engines.sampling import make_sampler
from lm_eval_exl2.engines.tree_attention import Block, Step, TreeKeys
from lm_eval_exl2.errors import EngineMemoryError
from lm_eval_exl2.plan import Budget, Targets, next_chunk
from lm_eval_exl2.prefix_tree import build_tree
from lm_eval_exl2.records import GeneratedToken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lm_eval_exl2.engines.row_groups import Group
    from lm_eval_exl2.engines.tree_engine import TreeEngine
    from lm_eval_exl2.prefix_tree import PrefixTree
    from lm_eval_exl2.records import GenerateRequest


def decode_rows(
    engine: TreeEngine,
    requests: Iterable[GenerateRequest],
    is_finished: Callable[[int, int], bool],
    *,
    max_rows: int,
    max_batch_tokens: int,
) -> Iterator[GeneratedToken]:
    """Continue all prompts, wave by wave; see `Engine.generate`."""
    waiting = iter(requests)
    postponed: list[Row] = []
    kept = _KeptPrompt()
    while True:
        fresh = islice(waiting, max(0, max_rows - len(postponed)))
        rows = [Row(make_sampler(request), list(request.prompt_ids)) for request in fresh]
        wave = [*postponed[:max_rows], *rows]
        postponed = postponed[max_rows:]
        if not wave:
            return
        for result in _decode_wave(engine, wave, is_finished, max_batch_tokens, kept):
            if isinstance(result, GeneratedToken):
                yield result
            else:
                postponed.append(result)
                max_rows = max(1, min(max_rows, len(wave) // 2))


@dataclass(slots=True)
class _KeptPrompt:
    """Keys and values of the last prompt of a wave, for the first of the next."""

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


def _decode_wave(
    engine: TreeEngine,
    wave: Sequence[Row],
    is_finished: Callable[[int, int], bool],
    max_batch_tokens: int,
    kept_prompt: _KeptPrompt,
) -> Iterator[GeneratedToken | Row]:
    """Yield the tokens of a wave, and the rows there turns out to be no memory for."""
    while True:
        try:
            rows, groups, logits = _prefill(engine, wave, max_batch_tokens, kept_prompt)
            break
        except (StepTooLargeError, torch.OutOfMemoryError) as error:
            if len(wave) == 1:
                raise EngineMemoryError(
                    f"a prompt of {len(wave[0].token_ids)} tokens does not fit into memory; use a "
                    "smaller max_length"
                ) from error
        half = len(wave) // 2
        yield from wave[half:]
        wave = wave[:half]
    sizes = engine.counts.batch_sizes
    sizes["generate_until"] = max(sizes.get("generate_until", 0), len(rows))
    while rows:
        kept: list[Row] = []
        for row, token in zip(rows, _choose(engine, rows, logits), strict=True):
            row.token_ids.append(token)
            row.produced += 1
            is_last = is_finished(row.request.index, token)
            is_last = is_last or row.produced >= row.request.max_new_tokens
            yield GeneratedToken(row.request.index, token, is_last)
            if not is_last:
                kept.append(row)
        rows = retire(groups, kept)
        while rows:
            try:
                logits = _step(engine, groups, rows)
                break
            except StepTooLargeError as error:
                engine.counts.retried += len(rows)
                kept_prompt.forget()
                if len(rows) == 1:
                    raise EngineMemoryError(
                        f"decoding one sequence of {len(rows[0].token_ids)} tokens does not fit "
                        "into memory; use a smaller max_length or max_gen_toks"
                    ) from error
            half = len(rows) // 2
            yield from rows[half:]
            rows = retire(groups, rows[:half])


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
) -> tuple[list[Row], list[Group], torch.Tensor]:
    """Forward the distinct prompt positions of a wave; return rows, groups and first logits."""
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
    groups = split_into_groups(rows, buffer, keys)
    kept_prompt.keep(rows[-1], _Prompts(buffer, keys))
    return rows, groups, engine.logits(torch.cat(hidden))


@torch.inference_mode()
def _step(engine: TreeEngine, groups: list[Group], rows: Sequence[Row]) -> torch.Tensor:
    """Forward the last token of every row; return logits (R, V)."""
    step = Step([], [])
    first = 0
    for group in groups:
        tokens = slice(first, first + len(group.active))
        visible, distance = group.extend()
        step.writes.append((group.buffer, tokens))
        step.blocks.append(Block(group.buffer, tokens, None, visible, distance))
        first = tokens.stop
    positions = torch.tensor([len(row.token_ids) - 1 for row in rows], device=engine.device)
    token_ids = [row.token_ids[-1] for row in rows]
    try:
        hidden = engine.forward(step, token_ids, positions, repeatable=False)
    except StepTooLargeError:
        for group in groups:
            group.undo()
        raise
    return engine.logits(hidden, repeatable=False)
