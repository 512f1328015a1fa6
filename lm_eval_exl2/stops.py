"""Finds stop strings in text that arrives in pieces.

A stop string may begin in one token and end in a later one. Standard library only; knows no
tokens. What is cut off afterwards is decided on the whole text, not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopScanner:
    """Watches one growing text for any of several strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Make a scanner; empty stop strings are ignored."""
        self._stops = [stop for stop in stops if stop]
        self._overlap = max((len(stop) for stop in self._stops), default=1) - 1
        self._tail = ""

    def feed(self, piece: str) -> bool:
        """Append text; return whether a stop string is complete in the text so far."""
        if not self._stops or not piece:
            return False
        window = self._tail + piece
        if any(stop in window for stop in self._stops):
            return True
        self._tail = window[-self._overlap :] if self._overlap else ""
        return False
