"""Writes checkpoint directories: whole or not at all, tensors streamed into bounded shards.

Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

MAX_SHARD_BYTES = 2 << 30
"""Default limit of one file, and with it of the tensors held in memory."""

_WEIGHT_SUFFIXES = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz"),
}


@contextmanager
def new_directory(target: Path) -> Generator[Path]:
    """Provide a folder to write into; it becomes `target` only when the block ends well.

    Args:
        target: Must not exist or be empty; its parent must exist.

    Yields:
        An empty folder on the same file system.

    Raises:
        OptionError: the target holds something, is a file, or has no parent folder.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OptionError(f"{target} exists and is not an empty folder, choose another target")
    if not target.parent.is_dir():
        raise OptionError(f"{target.parent} is not a folder, create it first")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as outer:
        folder = Path(outer) / "new"
        folder.mkdir()
        yield folder
        if target.exists():
            target.rmdir()
        folder.rename(target)


class ShardWriter:
    """Collects tensors and writes a file whenever the next one would exceed the limit."""

    def __init__(self, folder: Path, stem: str, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        """Start writing.

        Args:
            folder: Where the files go.
            stem: `model` gives model.safetensors, or model-00001-of-00002.safetensors.
            max_shard_bytes: Limit per file; one larger tensor still gets a file of its own.

        Raises:
            OptionError: the limit is not positive.
        """
        if max_shard_bytes < 1:
            raise OptionError(f"max_shard_bytes is {max_shard_bytes}, expected 1 or more")
        self._folder = folder
        self._stem = stem
        self._limit = max_shard_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self.waiting_bytes = 0
        """Bytes of the tensors held in memory."""
        self._written: list[list[str]] = []
        self.total_bytes = 0
        """Bytes of all tensors so far."""

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over tensors by full name; they go to disk in this order.

        Raises:
            OSError: a file cannot be written.
        """
        for name, tensor in tensors.items():
            if self._waiting and self.waiting_bytes + tensor.nbytes > self._limit:
                self._flush()
            self._waiting[name] = tensor.contiguous().cpu()
            self.waiting_bytes += tensor.nbytes
            self.total_bytes += tensor.nbytes

    def finish(self) -> dict[str, str]:
        """Write the rest and give the files their final names.

        Returns:
            File name of each tensor.
        """
        self._flush()
        count = len(self._written)
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self._written):
            final = f"{self._stem}.safetensors"
            if count > 1:
                final = f"{self._stem}-{index + 1:05}-of-{count:05}.safetensors"
            self._part(index).rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        return weight_map

    def _part(self, index: int) -> Path:
        return self._folder / f"part-{index}"

    def _flush(self) -> None:
        path = self._part(len(self._written))
        path.touch()
        usual_mode = path.stat().st_mode
        try:
            # "format" is what transformers asks of a file's metadata.
            save_file(self._waiting, path, metadata={"format": "pt"})
            path.chmod(usual_mode)  # some releases of safetensors keep others from reading
        except SafetensorError as error:  # a full disk comes as this
            raise OSError(f"cannot write {path}: {error}") from error
        self._written.append(list(self._waiting))
        self._waiting, self.waiting_bytes = {}, 0


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers formats it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_other_files(source: Path, target: Path) -> None:
    """Copy what belongs to a checkpoint besides weights: tokenizer, templates, licence.

    Leaves out config.json, which the caller writes, weights of any format, their indices (they
    would name files that are not there), folders, and hidden files.
    """
    for path in sorted(source.iterdir()):
        skipped = (
            path.name == "config.json"
            or path.name.startswith(".")
            or path.name.endswith(".index.json")
            or path.suffix in _WEIGHT_SUFFIXES
        )
        if path.is_file() and not skipped:
            shutil.copyfile(path, target / path.name)
