"""One call of the harness: a bar of finished requests, and a place to stop between two steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lm_eval_exl2.interrupts import StopSignals, resume_command

if TYPE_CHECKING:
    from lm_eval_exl2.computing import Computer
    from lm_eval_exl2.response_cache import ResponseCache


class Progress:
    """The bar of one call; use it in a `with` block."""

    def __init__(
        self, total: int, kind: str, computer: Computer, cache: ResponseCache, *, quiet: bool
    ) -> None:
        """Make a bar.

        Args:
            total: Requests to answer.
            kind: What the harness calls them.
            computer: What answers them.
            cache: Where finished requests are kept.
            quiet: Show nothing.
        """
        self._kind = kind
        self._computer = computer
        self._before = computer.counts.forwarded
        self._cache = cache
        self._total, self._done = total, 0
        self._bar: tqdm[Any] = tqdm(total=total, desc=f"Running {kind} requests", disable=quiet)
        self._signals = StopSignals()

    def __enter__(self) -> Progress:
        self._signals.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self._say()
        self._bar.close()
        self._signals.__exit__()
        self._cache.sync()
        self._signals.hand_on(self._farewell())

    def advance(self) -> None:
        """Count one finished request."""
        self._done += 1
        if self._bar.update(1):  # it was drawn: not each time, which would cost more than it tells
            self._say()

    def _say(self) -> None:
        if not self._bar.disable:
            tokens = self._computer.counts.forwarded - self._before
            said = filter(None, (f"{tokens} tokens", self._computer.status()))
            self._bar.set_postfix_str(", ".join(said), refresh=False)

    def between_steps(self) -> None:
        """End here if a signal asked for it; call it where all finished requests are kept.

        Raises:
            KeyboardInterrupt: the user pressed Ctrl-C.
        """
        if self._signals.received:
            self._bar.close()
            self._cache.sync()
            self._signals.hand_on(self._farewell())

    def _farewell(self) -> str:
        done = f"stopped after {self._done} of {self._total} {self._kind} requests"
        if self._cache.path is None:
            return f"{done}, none of them kept: with --use_cache PATH a run can be resumed"
        return f"{done}, kept in {self._cache.path}; to resume: {resume_command()}"
