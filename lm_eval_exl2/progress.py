"""A progress bar that counts finished requests and forwarded tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from lm_eval_exl2.records import TokenCounts


class Progress:
    """The bar of one call; use it in a `with` block."""

    def __init__(self, total: int, kind: str, counts: TokenCounts, *, quiet: bool) -> None:
        """Make a bar for `total` requests of a kind; a quiet one shows nothing."""
        self._counts = counts
        self._before = counts.forwarded
        self._bar: tqdm[Any] = tqdm(total=total, desc=f"Running {kind} requests", disable=quiet)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        """Count one finished request."""
        tokens = self._counts.forwarded - self._before
        self._bar.set_postfix_str(f"{tokens} tokens", refresh=False)
        self._bar.update(1)
