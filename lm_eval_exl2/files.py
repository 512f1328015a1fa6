"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lm_eval_exl2.errors import OptionError


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, with Unix line ends.

    Raises:
        OptionError: The folder is missing or cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        raise OptionError(
            f"cannot write {str(path)!r}: {error.strerror}; give a folder that can be written to"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
