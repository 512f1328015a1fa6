"""The safetensors files of a checkpoint directory: which tensors are where, read one at a time.

Only headers are read when a directory is opened; they are checked against the file's size by the
safetensors library before anything is allocated. Nothing here runs pickle or any code of the
checkpoint. An index may name files of its own directory only; links to files elsewhere are
followed, because the hub's cache is made of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from safetensors import SafetensorError, safe_open

from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import torch

INDEX_NAME = "model.safetensors.index.json"
_HASH_CHUNK_BYTES = 1 << 22
_NUMBERED = re.compile(r"(.*)-(\d{1,5})-of-(\d{1,5})\.safetensors")
# Mistral ships its own format, under this name, beside transformers'.
_DUPLICATE = "consolidated"


class StoredTensor(NamedTuple):
    """Where one tensor is and what its header says."""

    file: Path
    dtype: str
    """safetensors' name of the dtype, for example F16, BF16, I32."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelFormatError: the file is absent, unreadable, not JSON or not an object.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        content = json.loads(text) if text is not None else None
    except (OSError, RecursionError, ValueError) as error:
        raise ModelFormatError(f"{path} is not readable JSON: {_one_line(error)}") from error
    if text is None:
        raise ModelFormatError(f"{path} not found, expected a checkpoint directory")
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path} holds a {type(content).__name__}, expected an object")
    return cast("dict[str, Any]", content)


def _one_line(error: BaseException) -> str:
    """Return an error's text without line breaks and of bounded length."""
    return " ".join(str(error).split())[:200]


def find_shards(directory: Path) -> list[Path]:
    """Return the weight files of a directory, in order of name.

    An index names the files of an unquantized checkpoint. Quantizers copy the index of the
    original model along with the tokenizer, so an index none of whose files exist is ignored.

    Raises:
        ModelFormatError: no weight files, a file of the index is missing, or it names a file
            outside the directory.
    """
    present = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    index = directory / INDEX_NAME
    if index.is_file():
        named = _indexed_shards(index)
        existing = [path for path in named if path.is_file()]
        if existing and len(existing) < len(named):
            missing = sorted(path.name for path in set(named) - set(existing))
            raise ModelFormatError(f"{directory}: shard {missing[0]} of {index.name} is missing")
        if existing:
            return existing
    if not present:
        pickles = sorted(path.name for path in directory.glob("*.bin"))
        hint = f" ({pickles[0]} is a pickle, which is never loaded)" if pickles else ""
        raise ModelFormatError(f"{directory} has no .safetensors file{hint}")
    wanted = [path for path in present if not path.name.startswith(_DUPLICATE)] or present
    _check_numbers(wanted)
    return wanted


def _indexed_shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFormatError(f"{index} has no weight_map")
    names = {str(name) for name in cast("dict[str, object]", weight_map).values()}
    for name in sorted(names):
        if not name.endswith(".safetensors") or not _is_plain_file_name(name):
            raise ModelFormatError(
                f"{index} names the shard {name!r:.80}, expected a .safetensors file of the same "
                "directory"
            )
    return sorted(index.parent / name for name in names)


def _is_plain_file_name(name: str) -> bool:
    leaves = "/" in name or "\\" in name or name.startswith(".")
    return name.isprintable() and not leaves and len(name.encode()) < 256


def _check_numbers(shards: list[Path]) -> None:
    """Check that of shards numbered `-00001-of-00003` all three are there."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for path in shards:
        if match := _NUMBERED.fullmatch(path.name):
            found[match[1], match[3]].add(int(match[2]))
    for (stem, count), numbers in found.items():
        missing = set(range(1, int(count) + 1)) - numbers
        if missing:
            name = f"{stem}-{min(missing):0{len(count)}}-of-{count}.safetensors"
            raise ModelFormatError(f"{shards[0].parent}: shard {name} is missing")


class TensorFiles:
    """All tensors of a directory by name, loaded on demand.

    Files are memory-mapped by the safetensors library while they are open.
    """

    def __init__(self, shards: Iterable[Path]) -> None:
        """Read the headers of all shards.

        Raises:
            ModelFormatError: a damaged file, or a tensor that two shards contain.
        """
        self.shards = list(shards)
        self._open = {shard: _open_shard(shard) for shard in self.shards}
        self.tensors: dict[str, StoredTensor] = {}
        for shard, handle in self._open.items():
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle, not a mapping
                if not name.isprintable():
                    raise ModelFormatError(f"{shard} holds a tensor named {name!r:.80}")
                if name in self.tensors:
                    other = self.tensors[name].file.name
                    raise ModelFormatError(f"tensor {name} is in both {other} and {shard.name}")
                view = handle.get_slice(name)
                self.tensors[name] = StoredTensor(shard, view.get_dtype(), tuple(view.get_shape()))

    def load(self, name: str, device: str = "cpu") -> torch.Tensor:
        """Read one tensor."""
        stored = self.tensors[name]
        try:
            tensor = self._open[stored.file].get_tensor(name)
        except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise ModelFormatError(
                f"{stored.file}: cannot read {name}: {_one_line(error)}"
            ) from error
        return tensor.to(device)

    @property
    def bytes(self) -> int:
        """Size of all shards on disk, in bytes."""
        return sum(shard.stat().st_size for shard in self.shards)


def _open_shard(shard: Path) -> Any:
    try:
        return safe_open(str(shard), framework="pt")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ModelFormatError(
            f"{shard} is not a valid safetensors file ({_one_line(error)}); download it again"
        ) from error


def digest_files(files: Iterable[Path]) -> str:
    """Return a hexadecimal digest of names and contents, independent of where they are."""
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        total.update(path.name.encode() + b"\0")
        for chunk in _chunks(path):
            total.update(chunk)
    return total.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            yield chunk
