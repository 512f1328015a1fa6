"""SIGINT and SIGTERM while requests are answered: the step under way is finished first.

The first signal is only noted; whoever does the work asks `StopSignals` between two steps whether
one has come and then hands it on to whatever handled it before, so a process ends as it would have
ended anyway (exit status 130 or 143). A second signal is handed on at once. Handlers are set in
the main thread only, where Python runs them, and only inside the `with` block; a signal that is
ignored stays ignored.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

_STDERR = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Holds back signals that end the process; use it in a `with` block."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self.received: signal.Signals | None = None
        """The signal that has come and was not handed on yet."""

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None: set by code that is not Python's, and could not be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_error: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def hand_on(self, text: str) -> None:
        """Hand on the signal that has come, to the handler there was before.

        Args:
            text: What the user should know: the text of the KeyboardInterrupt, where that is what
                the signal does; else it is written to stderr first.

        Raises:
            KeyboardInterrupt: the signal is SIGINT and nobody else handles it.
        """
        number = self.received
        if number is None:
            return
        self.received = None
        self.__exit__()
        if signal.getsignal(number) is signal.default_int_handler:
            raise KeyboardInterrupt(text)
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        signal.raise_signal(number)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            self.received = None
            self.__exit__()
            signal.raise_signal(number)
            return
        self.received = signal.Signals(number)
        note = f"\n{self.received.name}: finishing the step under way; once more ends at once\n"
        with suppress(OSError):  # not by way of sys.stderr: it may be in the middle of a line
            os.write(_STDERR, note.encode())


def resume_command() -> str:
    """Return the command line of this process, to be given again."""
    return shlex.join(sys.orig_argv)
