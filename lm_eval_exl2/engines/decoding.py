"""Token-by-token decoding of many prompts with an engine of trees.

Prompts are taken in waves. The wave's distinct prompt positions are forwarded once, as a tree;
then every step forwards one token per unfinished row as one packed row, without padding. Rows
whose prompts share most of their keys stay together in a group that holds those keys once. A
row that finishes leaves the step at once. When memory runs out, half of the rows are put back
and continue in a later wave from what they have. Knows ids only, no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING, cast

import torch

from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.engines.key_values import KeyValueBuffer
from lm_eval_exl2.engines.sampling import Sampler, make_sampler
from lm_eval_exl2.engines.tree_attention import Block, Step, TreeKeys
from lm_eval_exl2.errors import EngineMemoryError
from lm_eval_exl2.plan import Budget, Targets, next_chunk
from lm_eval_exl2.prefix_tree import build_tree
from lm_eval_exl2.records import GeneratedToken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lm_eval_exl2.engines.tree_engine import TreeEngine
    from lm_eval_exl2.records import GenerateRequest

# A group attends rows x keys; it is split when that exceeds this multiple of what its rows need.
_WASTE_LIMIT = 2.0


@dataclass(slots=True)
class Row:
    """One request while it is being continued."""

    sampler: Sampler
    token_ids: list[int]
    """Prompt and produced tokens; the last one has not been forwarded yet."""
    produced: int = 0
    leaf: int = 0
    """Preorder position of the last token the wave began with."""

    @property
    def request(self) -> GenerateRequest:
        """The request this row answers."""
        return self.sampler.request


@dataclass(slots=True)
class Group:
    """Rows that share a buffer of keys and values."""

    rows: list[Row]
    buffer: KeyValueBuffer
    visible_RK: torch.Tensor
    """Which buffer entries each row may see."""
    depths_K: torch.Tensor
    active: list[int] = field(default_factory=list[int])
    """Numbers of unfinished rows."""

    def extend(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Add one entry per active row, visible to that row alone.

        Returns:
            Visibility of all entries and their distance, each (active rows, entries).
        """
        device = self.visible_RK.device
        new_R_A = torch.zeros(len(self.rows), len(self.active), dtype=torch.bool, device=device)
        new_R_A[self.active, range(len(self.active))] = True
        positions = [len(self.rows[number].token_ids) - 1 for number in self.active]
        depths_A = torch.tensor(positions, device=device)
        self.visible_RK = torch.cat([self.visible_RK, new_R_A], dim=1)
        self.depths_K = torch.cat([self.depths_K, depths_A])
        return self.visible_RK[self.active], depths_A[:, None] - self.depths_K

    def undo(self) -> None:
        """Take back the entries of the last `extend`."""
        kept = len(self.depths_K) - len(self.active)
        self.visible_RK, self.depths_K = self.visible_RK[:, :kept], self.depths_K[:kept]

    def compact(self) -> None:
        """Drop entries that no active row can see."""
        used = torch.nonzero(self.visible_RK[self.active].any(0)).flatten()
        self.buffer.keep(used)
        self.visible_RK, self.depths_K = self.visible_RK[:, used], self.depths_K[used]


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
    while True:
        room = max_rows - len(postponed)
        fresh = [
            Row(make_sampler(request), list(request.prompt_ids))
            for request in islice(waiting, max(0, room))
        ]
        wave = [*postponed[:max_rows], *fresh]
        postponed = postponed[max_rows:]
        if not wave:
            return
        for result in _decode_wave(engine, wave, is_finished, max_batch_tokens):
            if isinstance(result, GeneratedToken):
                yield result
            else:
                postponed.append(result)
                max_rows = max(1, min(max_rows, len(wave) // 2))


def _decode_wave(
    engine: TreeEngine,
    wave: Sequence[Row],
    is_finished: Callable[[int, int], bool],
    max_batch_tokens: int,
) -> Iterator[GeneratedToken | Row]:
    """Yield the tokens of a wave, and the rows there turns out to be no memory for."""
    while True:
        try:
            rows, groups, logits = _prefill(engine, wave, max_batch_tokens)
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
        rows = _retire(groups, kept)
        while rows:
            try:
                logits = _step(engine, groups, rows)
                break
            except StepTooLargeError as error:
                engine.counts.retried += len(rows)
                if len(rows) == 1:
                    raise EngineMemoryError(
                        f"decoding one sequence of {len(rows[0].token_ids)} tokens does not fit "
                        "into memory; use a smaller max_length or max_gen_toks"
                    ) from error
            half = len(rows) // 2
            yield from rows[half:]
            rows = _retire(groups, rows[:half])


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
    engine: TreeEngine, wave: Sequence[Row], max_batch_tokens: int
) -> tuple[list[Row], list[Group], torch.Tensor]:
    """Forward the distinct prompt positions of a wave; return rows, groups and first logits."""
    tree, tails = build_tree([row.token_ids for row in wave], [1] * len(wave))
    for row, tail in zip(wave, tails, strict=True):
        row.leaf = tail[0]
    rows = sorted(wave, key=lambda row: row.leaf)
    buffer, keys = KeyValueBuffer(), engine.no_keys()
    leaves = [row.leaf for row in rows]
    hidden: list[torch.Tensor] = []
    budget, start = Budget(max_batch_tokens), 0
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
    groups = _split_into_groups(rows, buffer, keys)
    return rows, groups, engine.logits(torch.cat(hidden))


def _split_into_groups(rows: list[Row], buffer: KeyValueBuffer, keys: TreeKeys) -> list[Group]:
    """Group neighbouring rows as long as their shared buffer stays mostly useful to each."""
    leaves = torch.tensor([row.leaf for row in rows], device=keys.positions.device)[:, None]
    visible_RK = (keys.positions <= leaves) & (leaves < keys.ends)
    own = cast("list[int]", visible_RK.sum(1).tolist())
    bounds, first = [0], 0
    union = visible_RK[0]
    for number in range(1, len(rows)):
        joined = union | visible_RK[number]
        cost = int(joined.sum()) * (number + 1 - first)
        if cost > _WASTE_LIMIT * sum(own[first : number + 1]):
            bounds.append(number)
            first, joined = number, visible_RK[number]
        union = joined
    bounds.append(len(rows))
    groups: list[Group] = []
    for low, high in pairwise(bounds):
        used = torch.nonzero(visible_RK[low:high].any(0)).flatten()
        groups.append(
            Group(
                rows=rows[low:high],
                buffer=buffer.copy_of(used) if len(bounds) > 2 else buffer,
                visible_RK=visible_RK[low:high][:, used],
                depths_K=keys.depths[used],
                active=list(range(high - low)),
            )
        )
    return groups


@torch.inference_mode()
def _retire(groups: list[Group], kept: list[Row]) -> list[Row]:
    """Let finished rows leave; return the unfinished ones in the order of their groups."""
    still = {id(row) for row in kept}
    for group in groups:
        before = len(group.active)
        group.active = [n for n in group.active if id(group.rows[n]) in still]
        # Compacting costs a copy: worth it once half of the rows are gone.
        if group.active and len(group.active) <= before // 2:
            group.compact()
    groups[:] = [group for group in groups if group.active]
    return [group.rows[number] for group in groups for number in group.active]


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
