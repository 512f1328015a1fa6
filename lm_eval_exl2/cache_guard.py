"""Makes the harness's response cache say what the journal beside it says.

The harness keys cached answers by request alone, checks none of them, and gives one answer to
every repeat of a request. The journal has checksums, fingerprints and repeats; this module brings
the harness's SQLite file (sqlitedict's table) in line with it before anything is read from it.
A file with anything in it that the journal does not confirm is set aside, never deleted.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.errors import CacheMismatchError, CacheWriteError
from lm_eval_exl2.files import set_aside

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_CREATE = "CREATE TABLE IF NOT EXISTS unnamed (key TEXT PRIMARY KEY, value BLOB)"


def restore(cache: Any, answers: Mapping[str, Any], own: Collection[str]) -> None:
    """Bring an open cache in line with a journal.

    Args:
        cache: The harness's SqliteDict.
        answers: What the harness may read, by the harness's key.
        own: Keys whose answers the harness writes, too, but must not read back.

    Raises:
        CacheMismatchError: the cache holds answers and the journal none.
        CacheWriteError: the cache cannot be written.
    """
    path = Path(cache.filename)
    rows = {key: bytes(cache.encode(answer)) for key, answer in answers.items()}
    try:
        damaged = is_damaged(path)
        if not damaged and not _holds_others(path, rows, own):
            _fill(path, rows, own)
            return
        if not damaged and not rows and not own:
            raise CacheMismatchError(
                f"the response cache {path} holds answers of unknown origin; delete it or "
                "give another path to --use_cache"
            )
        cache.close()
        set_aside_cache(path)
        _fill(path, rows, own)
        cache.__enter__()  # opens it again
    except (sqlite3.Error, OSError) as error:
        raise CacheWriteError(
            f"cannot write the response cache {path}: {error}; make room or give another path to "
            "--use_cache"
        ) from error


def is_damaged(path: Path) -> bool:
    """Return whether a file that exists is not a whole SQLite database.

    Raises:
        sqlite3.OperationalError: it cannot be read for another reason.
    """
    with closing(sqlite3.connect(path)) as connection:
        try:
            return connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]
        except sqlite3.OperationalError:  # locked, no permission
            raise
        except sqlite3.DatabaseError:
            return True


def set_aside_cache(path: Path) -> None:
    """Rename a database and what a killed process left beside it.

    Raises:
        OSError: it cannot be renamed.
    """
    set_aside(path)
    rollback = path.with_name(f"{path.name}-journal")
    if rollback.exists():  # SQLite would apply it to the next file of that name
        set_aside(rollback)


def _holds_others(path: Path, rows: Mapping[str, bytes], own: Collection[str]) -> bool:
    """Return whether any row is neither confirmed by the journal nor written for a repeat."""
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes  # a damaged key may be no text
        found = connection.execute("SELECT key, value FROM unnamed")
        keys = ((key.decode("ascii", "replace"), value) for key, value in found)
        return any(rows.get(key) != value and key not in own for key, value in keys)


def _fill(path: Path, rows: Mapping[str, bytes], own: Collection[str]) -> None:
    """Add the rows that are missing and take out those of repeats, all or nothing."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(_CREATE)
        connection.executemany("INSERT OR IGNORE INTO unnamed VALUES (?, ?)", rows.items())
        connection.executemany("DELETE FROM unnamed WHERE key = ?", ((key,) for key in own))
