"""Rows of text that are continued together: what they share is kept once, the rest per row.

Rows whose prompts were forwarded together make a wave. What several of them share is the wave's
trunk, read by all; everything else, the texts themselves included, belongs to one row. Rows are
kept in small groups, each one batch for attention. Knows ids and visibility, no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from lm_eval_exl2.engines.key_values import KeyValueBuffer, RowKeys
from lm_eval_exl2.engines.tile_attention import RowCall, TileCall, TileCalls, can_tile
from lm_eval_exl2.engines.tree_attention import Block, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_exl2.engines.sampling import Sampler
    from lm_eval_exl2.engines.tree_attention import TreeKeys
    from lm_eval_exl2.records import GenerateRequest

# Padding to the longest row of a group is wasted, calls for more groups are, too.
_GROUP_ROWS = 8
# Entries that a row would have to hold for itself, below which sharing is not worth a call.
_LEAST_SAVED = 128


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


class Shared(NamedTuple):
    """Entries of a trunk that the same rows see."""

    rows: range
    """Numbers of the rows within their wave."""
    keys: slice


@dataclass(slots=True)
class Trunk:
    """What rows of a wave share."""

    buffer: KeyValueBuffer
    shared: list[Shared]
    depths_K: torch.Tensor


@dataclass(slots=True)
class Group:
    """Neighbouring rows of a wave and what each holds for itself."""

    trunk: Trunk
    rows: list[Row]
    """One per row of `own`, those that are done included."""
    row_numbers: list[int]
    """Their numbers within the wave."""
    own: RowKeys
    prompt_depths: list[torch.Tensor]
    """Of the own entries that each row began with."""

    @property
    def active_rows(self) -> list[Row]:
        """Unfinished rows."""
        return [self.rows[slot] for slot in self.own.active]

    @property
    def numbers(self) -> list[int]:
        """Numbers of the unfinished rows within the wave."""
        return [self.row_numbers[slot] for slot in self.own.active]

    def retire(self, kept: set[int]) -> None:
        """Let rows go that are not among those with the given identities."""
        own = self.own
        own.stay([slot for slot in own.active if id(self.rows[slot]) in kept])
        # Giving up places costs a copy: worth it once half of them are of no use.
        if 0 < len(own.active) <= own.rows // 2:
            self.rows, self.row_numbers = self.active_rows, self.numbers
            self.prompt_depths = [self.prompt_depths[slot] for slot in own.active]
            own.compact()

    def call(self, tokens: slice) -> RowCall:
        """Return the attention of the active rows to what they hold, the new token included."""
        lengths = torch.tensor([length + 1 for length in self.own.lengths])
        longest = max(self.own.lengths[slot] for slot in self.own.active) + 1
        visible_RK = torch.arange(longest) < lengths[:, None]
        return RowCall(self.own, tokens, list(self.own.active), longest, visible_RK)

    def block(self, tokens: slice) -> Block:
        """Return the same and the trunk as one masked block."""
        trunk, active = self.trunk, self.own.active
        device = trunk.depths_K.device
        longest = max(self.own.lengths[slot] for slot in active) + 1
        trunk_AK = torch.zeros(len(active), len(trunk.depths_K), dtype=torch.bool, device=device)
        for rows, keys in trunk.shared:
            for place, number in enumerate(self.numbers):
                if number in rows:
                    trunk_AK[place, keys] = True
        own_ARK = torch.zeros(len(active), self.own.rows, longest, dtype=torch.bool, device=device)
        for place, slot in enumerate(active):
            own_ARK[place, slot, : self.own.lengths[slot] + 1] = True
        used = torch.nonzero(trunk_AK.any(0)).flatten()
        depths_K = torch.cat([trunk.depths_K[used], self._depths(longest).flatten()])
        positions = [len(row.token_ids) - 1 for row in self.active_rows]
        return Block(
            buffer=trunk.buffer,
            queries=tokens,
            keys=used,
            visible_QK=torch.cat([trunk_AK[:, used], own_ARK.flatten(1)], dim=1),
            distance_QK=torch.tensor(positions, device=device)[:, None] - depths_K,
            own=(self.own, longest),
        )

    def _depths(self, longest: int) -> torch.Tensor:
        """Return the depths of the first own entries of every row (rows, longest)."""
        columns = torch.arange(longest, device=self.trunk.depths_K.device)
        depths: list[torch.Tensor] = []
        for row, length, begun in zip(self.rows, self.own.lengths, self.prompt_depths, strict=True):
            # The new token is entry `length`; those before it follow each other down to the prompt.
            produced = len(row.token_ids) - 1 - length + columns[len(begun) :]
            depths.append(torch.cat([begun, produced])[:longest])
        return torch.stack(depths)


def split_into_groups(rows: Sequence[Row], buffer: KeyValueBuffer, keys: TreeKeys) -> list[Group]:
    """Split the forwarded prompts of a wave into its trunk and what each row holds for itself.

    Args:
        rows: In preorder of their leaves.
        buffer: Holds the prompts; not needed afterwards.
        keys: Entries of the buffer, in preorder.
    """
    leaves = torch.tensor([row.leaf for row in rows], device=keys.positions.device)[:, None]
    visible_RK = (keys.positions <= leaves) & (leaves < keys.ends)
    counts = cast("list[int]", visible_RK.sum(0).tolist())
    firsts = cast("list[int]", visible_RK.int().argmax(0).tolist())
    shared: list[Shared] = []
    kept: list[int] = []
    seen_by = list(zip(firsts, counts, strict=True))
    place = 0
    for (first, count), group in groupby(seen_by):
        length = sum(1 for _ in group)
        if (count - 1) * length >= _LEAST_SAVED:
            shared.append(Shared(range(first, first + count), slice(len(kept), len(kept) + length)))
            kept.extend(range(place, place + length))
        place += length
    in_trunk_K = torch.zeros(len(counts), dtype=torch.bool, device=keys.positions.device)
    in_trunk_K[kept] = True
    groups: list[Group] = []
    trunk_entries = torch.nonzero(in_trunk_K).flatten()
    trunk = Trunk(buffer.copy_of(trunk_entries), shared, keys.depths[trunk_entries])
    for first in range(0, len(rows), _GROUP_ROWS):
        some = list(rows[first : first + _GROUP_ROWS])
        entries = [
            torch.nonzero(visible_RK[first + number] & ~in_trunk_K).flatten()
            for number in range(len(some))
        ]
        own = RowKeys(buffer, entries)
        depths = [keys.depths[part] for part in entries]
        groups.append(Group(trunk, some, list(range(first, first + len(some))), own, depths))
    return groups


def make_step(groups: Sequence[Group], device: torch.device) -> Step:
    """Describe a forward of one token for every active row, in the order of their groups."""
    writes: list[tuple[RowKeys, slice]] = []
    first = 0
    for group in groups:
        writes.append((group.own, slice(first, first + len(group.own.active))))
        first = writes[-1][1].stop

    def make_blocks() -> list[Block]:
        return [group.block(tokens) for group, (_, tokens) in zip(groups, writes, strict=True)]

    reads = list({id(group.trunk): group.trunk.buffer for group in groups}.values())
    step = Step(writes, make_blocks, reads=reads)
    if can_tile(device):
        step.tiles = TileCalls(
            [group.call(tokens) for group, (_, tokens) in zip(groups, writes, strict=True)],
            _trunk_calls(groups),
            longest=max(len(row.token_ids) for group in groups for row in group.active_rows),
        )
    return step


def _trunk_calls(groups: Sequence[Group]) -> list[TileCall]:
    """Return a call for everything that rows share; the rows of a wave are neighbours."""
    calls: list[TileCall] = []
    first = 0
    for _, wave in groupby(groups, key=lambda group: id(group.trunk)):
        members = list(wave)
        numbers = [number for group in members for number in group.numbers]
        trunk = members[0].trunk
        for rows, keys in trunk.shared:
            places = [place for place, number in enumerate(numbers) if number in rows]
            if places:
                queries = slice(first + places[0], first + places[-1] + 1)
                calls.append(TileCall(trunk.buffer, queries, keys))
        first += len(numbers)
    return calls


@torch.inference_mode()
def retire(groups: list[Group], kept: Sequence[Row]) -> list[Row]:
    """Let finished rows leave; return the unfinished ones in the order of their groups."""
    still = {id(row) for row in kept}
    for group in groups:
        group.retire(still)
    groups[:] = [group for group in groups if group.own.active]
    return [row for group in groups for row in group.active_rows]
