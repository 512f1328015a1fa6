"""Keys and values of sequences, per layer, that grow step by step and lose what is done with.

Knows nothing of trees or attention. Layers may be on different devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
