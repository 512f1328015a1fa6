"""From what a user writes after `pretrained=` to a directory on this machine.

A folder is used as it is; `demo` names come from the package; anything else is a hub id, whose
files are downloaded without pickles. Loads nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval_exl2.demo import demo_directory
from lm_eval_exl2.errors import ModelFormatError, OptionError

logger = logging.getLogger(__name__)

# Weights other than safetensors are never loaded, so they are not downloaded either.
_UNWANTED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.pkl"]


class Location(NamedTuple):
    """Where a checkpoint is and which commit of the hub it comes from."""

    directory: Path
    commit: str
    """Commit hash for a hub download, empty for a local folder."""


def locate(
    pretrained: str, *, revision: str | float | None = "main", subfolder: str = ""
) -> Location:
    """Find a checkpoint, downloading it if it is on the hub.

    Args:
        pretrained: Directory, `demo...`, or hub id.
        revision: Branch, tag or commit; a number is what the harness makes of names like `6_5`.
        subfolder: Folder inside the directory or repository.

    Raises:
        ModelFormatError: neither a directory nor a reachable repository.
        OptionError: an unknown demo name, or a revision that cannot be told from its number.
    """
    path = Path(pretrained).expanduser()
    if path.is_dir():
        return Location(_inside(path, subfolder), "")
    if pretrained == "demo" or pretrained.startswith("demo-"):
        return Location(demo_directory(pretrained), "")
    if pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1:
        raise ModelFormatError(f"{pretrained} is not a directory")
    snapshot = _download(pretrained, _revision_name(pretrained, revision), subfolder)
    return Location(_inside(snapshot, subfolder), snapshot.name)


def _inside(directory: Path, subfolder: str) -> Path:
    inner = directory / subfolder
    if not inner.is_dir():
        raise ModelFormatError(f"{directory} has no folder {subfolder}")
    return inner


def _revision_name(repository: str, revision: str | float | None) -> str:
    """Return the branch name; recover it when the harness turned it into a number."""
    if not isinstance(revision, float):
        return str(revision or "main")
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repository)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
    except _hub_failures():
        names = []
    matching = [name for name in names if _as_number(name) == revision]
    if len(matching) != 1:
        raise OptionError(
            f"revision arrived as the number {revision}, which branch is meant? "
            "Quote it: revision='6_5'"
        )
    logger.info("revision %s is taken to mean branch %s", revision, matching[0])
    return matching[0]


def _as_number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None


def _download(repository: str, revision: str, subfolder: str) -> Path:
    import huggingface_hub

    hub: Any = huggingface_hub
    try:
        return Path(
            hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[f"{subfolder}/*"] if subfolder else None,
                ignore_patterns=_UNWANTED,
            )
        )
    except _hub_failures() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFormatError(
            f"{repository} (revision {revision}) is neither a directory nor a repository that "
            f"can be downloaded: {reason}"
        ) from error


def _hub_failures() -> tuple[type[Exception], ...]:
    """What the hub's client raises where a repository cannot be had."""
    from huggingface_hub import errors

    # Without a connection that is the HTTP library's own error, whichever library it is.
    connection: type[Exception] = vars(errors)["HTTPError"]
    return (
        connection,
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
    )
