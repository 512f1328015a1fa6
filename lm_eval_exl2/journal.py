"""An append-only file of finished answers that a kill at any moment leaves readable.

One line per answer, `checksum json`, written by a single system call. So a kill between two lines
loses nothing, a line that a full disk or a power cut left half written is recognised and dropped,
and a damaged byte costs the answer it is in and no other; in a database it could cost the file.
Written lines are forced to the disk every 256 answers or five seconds. Knows no harness and no
requests: keys are strings, what they stand for is the caller's business.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import weakref
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from lm_eval_exl2.errors import CacheMismatchError, CacheWriteError
from lm_eval_exl2.files import set_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

MAX_UNSYNCED = 256
"""Most answers that are written but not yet forced to the disk."""
SYNC_INTERVAL_S = 5.0


@dataclass(slots=True)
class _Content:
    """What a journal holds."""

    answers: dict[str, Any] = field(default_factory=dict[str, Any])
    found: dict[str, str] = field(default_factory=dict[str, str])
    """Fingerprint by name, empty where its line is missing or damaged."""
    digests: set[str] = field(default_factory=set[str])
    """Of the fingerprints that answers were written under."""
    damaged: int = 0
    """Lines that are not what was written."""
    whole_bytes: int = 0
    """Up to the end of the last line that was finished."""
    has_torn_end: bool = False
    """Whether a line that was not finished follows."""


class Journal:
    """The journal at a path, read when it is opened and appended to afterwards."""

    def __init__(
        self,
        path: Path,
        fingerprint: Mapping[str, str],
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read a journal and open it for appending, with the fingerprint as its first line.

        Args:
            path: The file; it need not exist.
            fingerprint: Name and value of everything the answers depend on.
            clock_s: Seconds on a clock that does not go back.

        Raises:
            CacheMismatchError: it holds answers under another fingerprint; names both.
            CacheWriteError: the file cannot be opened or written.
        """
        self.path = path
        self._digest = _digest(fingerprint)
        self._clock_s = clock_s
        self._unsynced = 0
        self._synced_at_s = clock_s()
        try:
            content = self._read()
            _check(path, content, fingerprint, self._digest)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise _write_error(path, error) from error
        weakref.finalize(self, os.close, self._file)
        if content.has_torn_end:
            os.ftruncate(self._file, content.whole_bytes)
        if not content.found:
            self._write(_line({"fingerprint": dict(fingerprint)}))
        self.answers: Mapping[str, Any] = content.answers
        """Answers by key as they were when the journal was opened."""
        if content.damaged:
            logger.warning(
                "%d damaged lines of %s are dropped; their requests are computed again",
                content.damaged,
                path,
            )

    def append(self, key: str, answer: Any) -> None:
        """Write one answer: text, a number, or a tuple of numbers and booleans.

        Raises:
            CacheWriteError: the disk is full or the file cannot be written; what was written
                before stays whole.
        """
        self._write(_line([self._digest, key, answer]))
        self._unsynced += 1
        overdue = self._clock_s() - self._synced_at_s >= SYNC_INTERVAL_S
        if overdue or self._unsynced >= MAX_UNSYNCED:
            self.sync()

    def sync(self) -> None:
        """Force what was written to the disk.

        Raises:
            CacheWriteError: the disk refuses.
        """
        self._synced_at_s = self._clock_s()
        if not self._unsynced:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _write_error(self.path, error) from error
        self._unsynced = 0

    def _read(self) -> _Content:
        """Read the file; one that holds nothing but damage is moved out of the way."""
        try:
            content = _parse(self.path.read_bytes())
        except FileNotFoundError:
            return _Content()
        if content.damaged and not content.digests and not content.found:
            set_aside(self.path)
            return _Content()
        return content

    def _write(self, line: bytes) -> None:
        """Append a line whole or not at all."""
        size = os.fstat(self._file).st_size
        rest = line
        try:
            while rest:  # a disk that is nearly full takes a part, and then fails
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            os.ftruncate(self._file, size)
            raise _write_error(self.path, error) from error


def _check(path: Path, content: _Content, fingerprint: Mapping[str, str], digest: str) -> None:
    """Compare fingerprints: by name where the line that has the names is there."""
    for name, value in fingerprint.items() if content.found else ():
        if content.found.get(name) != value:
            raise _mismatch(path, name, content.found.get(name), value)
    if others := content.digests - {digest}:
        raise _mismatch(path, "fingerprint", min(others), digest)


def _mismatch(path: Path, name: str, found: object, wanted: object) -> CacheMismatchError:
    return CacheMismatchError(
        f"the response cache {path} was made with {name} {_short(found)}, but this run has "
        f"{_short(wanted)}; give another path to --use_cache"
    )


def _parse(raw: bytes) -> _Content:
    """Read all lines; what follows the last line end was never finished."""
    *lines, torn = raw.split(b"\n")
    content = _Content(whole_bytes=len(raw) - len(torn), has_torn_end=bool(torn))
    for line in lines:
        value = _value(line)
        if value is None:
            content.damaged += 1
        elif isinstance(value, dict):
            content.found = value["fingerprint"]
        else:
            digest, key, answer = value
            content.digests.add(digest)
            content.answers[key] = _as_given(answer)
    return content


def _as_given(answer: Any) -> Any:
    """Return an answer as it was before JSON: it has lists for tuples."""
    return tuple(cast("list[Any]", answer)) if isinstance(answer, list) else answer


def _line(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _value(line: bytes) -> Any:
    """Return what a line holds, None for one that is not as it was written."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text) or not text:
        return None
    return json.loads(text)


def _digest(fingerprint: Mapping[str, str]) -> str:
    content = json.dumps(dict(fingerprint), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _write_error(path: Path, error: OSError) -> CacheWriteError:
    return CacheWriteError(
        f"cannot write the response cache {path}: {error.strerror or error}; finished requests "
        "before this are kept, make room or give another path to --use_cache"
    )
