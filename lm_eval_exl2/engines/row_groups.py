"""Rows of text that are continued together, in groups that share keys and values.

Rows whose prompts share most of their keys stay in a group that holds those keys once; others get
one each. Knows ids and visibility, no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_exl2.engines.key_values import KeyValueBuffer
    from lm_eval_exl2.engines.sampling import Sampler
    from lm_eval_exl2.engines.tree_attention import TreeKeys
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


def split_into_groups(rows: Sequence[Row], buffer: KeyValueBuffer, keys: TreeKeys) -> list[Group]:
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
                rows=list(rows[low:high]),
                buffer=buffer.copy_of(used) if len(bounds) > 2 else buffer,
                visible_RK=visible_RK[low:high][:, used],
                depths_K=keys.depths[used],
                active=list(range(high - low)),
            )
        )
    return groups


@torch.inference_mode()
def retire(groups: list[Group], kept: Sequence[Row]) -> list[Row]:
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
