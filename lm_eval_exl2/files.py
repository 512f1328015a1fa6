"""Files that are written whole or not at all, and damaged ones that are moved out of the way."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from lm_eval_exl2.errors import OptionError

logger = logging.getLogger(__name__)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, with Unix line ends.

    Raises:
        OptionError: The folder is missing or cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name and an empty file
        partial.replace(path)
    except OSError as error:
        raise OptionError(
            f"cannot write {str(path)!r}: {error.strerror}; give a folder that can be written to"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `*.damaged`, never over another one, with one warning.

    Raises:
        OSError: It cannot be renamed.
    """
    target = path.with_name(f"{path.name}.damaged")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{number}.damaged")
    path.rename(target)
    logger.warning("%s is not as it was written; kept as %s and made anew", path, target.name)
    return target
