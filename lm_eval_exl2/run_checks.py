"""`lm-eval-exl2 run`: what must be there before the harness starts, and what after it.

The harness opens its response cache after the model has been loaded, looks at the output folder
when everything is computed, and only logs a warning if nothing could be saved. Reads the words of
the command line and files; neither the harness nor a model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from lm_eval_exl2.cache_guard import is_damaged, set_aside_cache
from lm_eval_exl2.errors import CacheWriteError, OptionError, ResultsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

MIN_FREE_BYTES = 64 << 20
"""Room that a run must find where it writes; the samples of MMLU take three times as much."""
_AGAIN = "mend that and run again, with --use_cache nothing is computed twice"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a run will write."""

    output: Path | None
    """The harness's --output_path."""
    cache: Path | None
    """The harness's file for --use_cache."""


def read_places(words: Sequence[str]) -> Places:
    """Find the places in the command line of the harness or in the file of its `--config`.

    What the harness would not understand is left for it to refuse.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for short, name in (("-o", "--output_path"), ("-c", "--use_cache"), ("-C", "--config")):
        parser.add_argument(short, name)
    try:
        given, _ = parser.parse_known_args(list(words))
    except argparse.ArgumentError:
        return Places(None, None)
    configured = _read_config(given.config) if given.config else {}
    output = given.output_path or configured.get("output_path")
    cache = given.use_cache or configured.get("use_cache")
    rank = os.environ.get("LOCAL_RANK", "0")
    return Places(
        Path(output) if output else None, Path(f"{cache}_rank{rank}.db") if cache else None
    )


def _read_config(name: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def check_before(places: Places) -> None:
    """Check that results and cache can be written; a damaged cache file is set aside.

    Raises:
        OptionError: no folder, no permission or no room for the results.
        CacheWriteError: the same for the cache.
    """
    if places.output is not None:
        _check_folder(_folder_of(places.output), "--output_path")
    if places.cache is None:
        return
    _check_folder(places.cache.parent, "--use_cache")
    try:
        if places.cache.exists() and is_damaged(places.cache):
            set_aside_cache(places.cache)
    except (sqlite3.Error, OSError) as error:
        raise CacheWriteError(
            f"cannot use the response cache {places.cache}: {error}; give another path to "
            "--use_cache"
        ) from error


def _folder_of(output: Path) -> Path:
    return output.parent if output.suffix == ".json" else output


def _check_folder(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OptionError(
            f"{option}: cannot write to {folder}: {error.strerror}; give another path"
        ) from error
    if free < MIN_FREE_BYTES:
        raise OptionError(
            f"{option}: {free >> 20} MiB are free in {folder}, expected at least "
            f"{MIN_FREE_BYTES >> 20}; make room or give another path"
        )


def results_files(places: Places) -> set[Path]:
    """Return the results files that are in the output folder now."""
    if places.output is None:
        return set()
    if places.output.suffix == ".json":
        return set(places.output.parent.glob(f"{places.output.stem}_*.json"))
    return set(places.output.glob("*/results_*.json"))


def check_after(places: Places, before: AbstractSet[Path]) -> None:
    """Check that the harness has saved the results, and the samples if it was asked to.

    Args:
        places: Where it should have.
        before: The results files there were before.

    Raises:
        ResultsError: nothing new is there, or it is not whole.
    """
    if places.output is None:
        return
    new = results_files(places) - before
    if not new:
        raise ResultsError(
            f"the harness could not save the results to {places.output}, its warning above says "
            f"why; {_AGAIN}"
        )
    for path in new:
        for broken in _broken_files(path):
            raise ResultsError(f"{broken} is missing or not whole, is the disk full? {_AGAIN}")


def _broken_files(results: Path) -> Iterator[Path]:
    """Yield those of a results file and its samples that are missing or end too early."""
    try:
        content = json.loads(results.read_bytes())
    except ValueError:
        yield results
        return
    date = results.stem.rpartition("_")[2]
    for task in content.get("task_hashes", {}):  # empty unless samples were asked for
        samples = results.with_name(f"samples_{task}_{date}.jsonl")
        try:
            if not _is_whole(samples):
                yield samples
        except OSError:
            yield samples


def _is_whole(samples: Path) -> bool:
    """Return whether the last of the JSON lines is one."""
    last = b"{}\n"
    with samples.open("rb") as lines:
        for line in lines:
            last = line
    try:
        json.loads(last)
    except ValueError:
        return False
    return last.endswith(b"\n")
