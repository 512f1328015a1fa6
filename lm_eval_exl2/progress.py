"""A progress bar that counts finished requests and forwarded tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from lm_eval_exl2.computing import Computer


class Progress:
    """The bar of one call; use it in a `with` block."""

    def __init__(self, total: int, kind: str, computer: Computer, *, quiet: bool) -> None:
        """Make a bar for `total` requests of a kind; a quiet one shows nothing."""
        self._computer = computer
        self._before = computer.counts.forwarded
        self._bar: tqdm[Any] = tqdm(total=total, desc=f"Running {kind} requests", disable=quiet)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        self._say()
        self._bar.close()

    def advance(self) -> None:
        """Count one finished request."""
        if self._bar.update(1):  # it was drawn: not each time, which would cost more than it tells
            self._say()

    def _say(self) -> None:
        if not self._bar.disable:
            tokens = self._computer.counts.forwarded - self._before
            said = filter(None, (f"{tokens} tokens", self._computer.status()))
            self._bar.set_postfix_str(", ".join(said), refresh=False)
