"""Keys and values of sequences, per layer, that grow step by step and lose what is done with.

Knows nothing of trees or attention. Layers may be on different devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Entries that rows of text have room for before their keys are moved.
_ROOM = 32


class KeyValueBuffer:
    """Keys and values of one set of sequences, per layer, in the order they were written."""

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind the committed entries; return all keys and values (1, G, length + T, D).

        Nothing counts as written until `commit`, so a step that fails leaves the buffer as it was.
        """
        used = self.length + keys.shape[2]
        stored = self._layers.get(layer)
        if stored is None or stored[0].shape[2] < used:
            stored = (self._grown(stored, 0, keys, used), self._grown(stored, 1, values, used))
            self._layers[layer] = stored
        stored[0][:, :, self.length : used] = keys
        stored[1][:, :, self.length : used] = values
        return stored[0][:, :, :used], stored[1][:, :, :used]

    def stored(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's committed keys and values (1, G, length, D)."""
        keys, values = self._layers[layer]
        return keys[:, :, : self.length], values[:, :, : self.length]

    def layers(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield layer, keys and values (1, G, length, D) of everything committed."""
        for layer in self._layers:
            yield layer, *self.stored(layer)

    def _grown(
        self,
        stored: tuple[torch.Tensor, torch.Tensor] | None,
        which: int,
        new: torch.Tensor,
        used: int,
    ) -> torch.Tensor:
        """Allocate room for at least `used` entries, growing by half, and copy what is there."""
        capacity = used if stored is None else max(used, stored[which].shape[2] * 3 // 2)
        grown = new.new_empty(new.shape[0], new.shape[1], capacity, new.shape[3])
        if stored is not None:
            grown[:, :, : self.length] = stored[which][:, :, : self.length]
        return grown

    def commit(self, count: int) -> None:
        """Make the last written `count` entries permanent."""
        self.length += count

    def keep(self, entries: torch.Tensor) -> None:
        """Keep only the given entries, in the given order."""
        if len(entries) == self.length and bool((entries[1:] > entries[:-1]).all()):
            return  # all of them
        for keys, values in self._layers.values():
            kept = entries.to(keys.device)  # layers may be on several cards
            keys[:, :, : len(entries)] = keys.index_select(2, kept)
            values[:, :, : len(entries)] = values.index_select(2, kept)
        self.length = len(entries)

    def copy_of(self, entries: torch.Tensor) -> KeyValueBuffer:
        """Return a new buffer with the given entries."""
        copy = KeyValueBuffer()
        copy.length = len(entries)
        copy._layers = {
            layer: (
                keys.index_select(2, entries.to(keys.device)),
                values.index_select(2, entries.to(keys.device)),
            )
            for layer, (keys, values) in self._layers.items()
        }
        return copy


class RowKeys:
    """Keys and values of a few rows, per layer, each row as long as it is.

    Rows that are done are no longer active; their places stay until `compact`.
    """

    def __init__(self, buffer: KeyValueBuffer, entries: Sequence[torch.Tensor]) -> None:
        """Copy what each row begins with.

        Args:
            buffer: Where it stands.
            entries: Of the buffer, for each row (its length,).
        """
        self.lengths = [len(part) for part in entries]
        self.active = list(range(len(entries)))
        self._places: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        capacity = max(self.lengths) + _ROOM
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer, keys, values in buffer.layers():
            self._layers[layer] = (
                _gathered(keys, entries, capacity),
                _gathered(values, entries, capacity),
            )

    @property
    def rows(self) -> int:
        """Number of rows, finished ones included."""
        return len(self.lengths)

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one entry behind each active row; return all keys and values (R, G, capacity, D).

        Nothing counts as written until `commit`, so a step that fails leaves the rows as they were.

        Args:
            layer: Number of the layer.
            keys: One per active row (1, G, active rows, D).
            values: Like `keys`.
        """
        stored = self._layers[layer]
        if max(self.lengths[slot] for slot in self.active) >= stored[0].shape[2]:
            stored = (_widened(stored[0]), _widened(stored[1]))
            self._layers[layer] = stored
        rows, places = self._next_places(keys.device)
        stored[0][rows, :, places] = keys[0].transpose(0, 1)
        stored[1][rows, :, places] = values[0].transpose(0, 1)
        return stored

    def _next_places(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where the next entries go, made once per step and device."""
        if device not in self._places:
            ends = [self.lengths[slot] for slot in self.active]
            self._places[device] = (
                torch.tensor(self.active, device=device),
                torch.tensor(ends, device=device),
            )
        return self._places[device]

    def commit(self, count: int) -> None:
        """Make the last written entries, one per active row, permanent."""
        for slot in self.active:
            self.lengths[slot] += 1
        self._places.clear()

    def stay(self, active: list[int]) -> None:
        """Let only the given rows go on."""
        self.active = active
        self._places.clear()

    def compact(self) -> None:
        """Give up the places of rows that are not active."""
        self._places.clear()
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = keys[self.active], values[self.active]
        self.lengths = [self.lengths[slot] for slot in self.active]
        self.active = list(range(len(self.lengths)))


def _gathered(stored: torch.Tensor, entries: Sequence[torch.Tensor], capacity: int) -> torch.Tensor:
    """Return (R, G, capacity, D) with each row's entries first, the rest zero."""
    _, groups, _, size = stored.shape
    gathered = stored.new_zeros(len(entries), groups, capacity, size)
    for row, part in zip(gathered, entries, strict=True):
        row[:, : len(part)] = stored[0].index_select(1, part.to(stored.device))
    return gathered


def _widened(stored: torch.Tensor) -> torch.Tensor:
    """Return the same with half as much room again, zero where nothing is written yet."""
    rows, groups, capacity, size = stored.shape
    widened = stored.new_zeros(rows, groups, capacity + capacity // 2 + 1, size)
    widened[:, :, :capacity] = stored
    return widened
