"""A checkpoint directory opened for reading: EXL2, 4-bit GPTQ, or unquantized.

Opening reads config.json, safetensors headers and the (tiny) group tables, and checks them
against each other; no weight is allocated before all of that agrees. Weights are then given out
one by one under transformers' names, decoded, trimmed of padding columns and with split
projections joined again. Builds no model.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from lm_eval_exl2.checkpoint import format as exl2
from lm_eval_exl2.checkpoint import gptq
from lm_eval_exl2.checkpoint.architectures import (
    HEAD_NORMS,
    find_architecture,
    folded_factor,
    linear_size,
)
from lm_eval_exl2.checkpoint.config import CheckpointConfig, read_config
from lm_eval_exl2.checkpoint.contents import (
    Kind,
    Linear,
    check_method,
    read_contents,
    recognise,
)
from lm_eval_exl2.checkpoint.files import TensorFiles, digest_files, find_shards
from lm_eval_exl2.checkpoint.modules import HEAD
from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["Checkpoint", "Kind", "Linear", "Weight"]

_PARTS = ("weight", "bias")
_DIGEST_NAMES = ("config.json", "generation_config.json")
_SHARED_NORMS = tuple(f"{name}.weight" for name in HEAD_NORMS)


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the transformers model and the stored modules or tensor it comes from."""

    name: str
    sources: tuple[str, ...]
    """Names of linear layers to join along their outputs, or of one plain tensor."""
    part: Literal["weight", "bias", "plain"]


@contextmanager
def _located(*where: Path | str) -> Generator[None]:
    """Say in an error's text where it was found."""
    try:
        yield
    except ModelFormatError as error:
        raise ModelFormatError(": ".join(map(str, (*where, error)))) from error


class Checkpoint:
    """A validated checkpoint; tensors are read when asked for."""

    def __init__(self, directory: Path) -> None:
        """Open and validate.

        Args:
            directory: Folder with config.json and safetensors files.

        Raises:
            ModelFormatError: with what was found, what was expected and where.
        """
        self.directory = directory
        self.config: CheckpointConfig = read_config(directory)
        with _located(directory):
            self.architecture = find_architecture(self.config.architecture)
            self.architecture.check_text_model(self.config.text)
        self._files = TensorFiles(find_shards(directory))
        self.kind: Kind = recognise(self._files.tensors)
        with _located(directory):
            check_method(self.kind, self.config)
            contents = read_contents(self._files, self.kind, self.config, self.architecture)
        self.linears = contents.linears
        """Quantized linear layers by stored name."""
        self.plain = contents.plain
        """All other tensors by stored name."""
        with _located(directory):
            self._weights = self._list_weights()

    # -- what is in it ---------------------------------------------------------------------

    @property
    def shards(self) -> list[Path]:
        """The weight files."""
        return self._files.shards

    @property
    def bytes(self) -> int:
        """Size of the weight files in bytes."""
        return self._files.bytes

    def digest(self) -> str:
        """Return a digest of the weight files and configs: equal only for equal checkpoints."""
        configs = [self.directory / name for name in _DIGEST_NAMES]
        return digest_files([*self._files.shards, *(path for path in configs if path.is_file())])

    @property
    def has_own_head(self) -> bool:
        """Whether the output head is stored apart from the embedding.

        A quantized head is always stored on its own, also for models that tie the two.
        """
        stored = (*self.linears, *self.plain)
        names = {self.architecture.text_name(name) for name in stored}
        return bool(names & {HEAD, f"{HEAD}.weight"})

    def weights(self) -> list[Weight]:
        """List the tensors of the transformers model, in the order of their names."""
        return list(self._weights)

    def _list_weights(self) -> list[Weight]:
        joined: dict[str, dict[int, str]] = {}
        direct: list[Weight] = []
        for name in (*self.linears, *self._plain_modules()):
            target = self._target(name)
            fused = self.architecture.fused_into(target) if self.kind == "exl2" else None
            if fused:
                joined.setdefault(fused[0], {})[fused[1]] = name
            else:
                direct.extend(self._weights_of(target, (name,)))
        for target, parts in joined.items():
            direct.extend(self._weights_of(target, tuple(parts[i] for i in sorted(parts))))
        taken = {f"{module}.{part}" for module in self._plain_modules() for part in _PARTS}
        direct.extend(
            Weight(self._target(name), (name,), "plain") for name in self.plain if name not in taken
        )
        return sorted(direct, key=lambda weight: weight.name)

    def _target(self, name: str) -> str:
        if self.kind == "exl2":
            return self.architecture.target_name(name)
        return self.architecture.text_name(name)

    def _plain_modules(self) -> list[str]:
        """Unquantized linear layers of an EXL2 file whose names a fused module takes over."""
        if self.kind != "exl2" or not (self.architecture.fused or self.architecture.transposed):
            return []
        modules = {name.removesuffix(".weight") for name in self.plain if name.endswith(".weight")}
        return sorted(m for m in modules if linear_size(m, self.config.sizes) and m != HEAD)

    def _weights_of(self, target: str, sources: tuple[str, ...]) -> list[Weight]:
        found = [Weight(f"{target}.weight", sources, "weight")]
        biased = [name for name in sources if self._has_bias(name)]
        if biased and len(biased) != len(sources):
            raise ModelFormatError(f"of {', '.join(sources)} only {biased[0]} has a bias")
        if biased:
            found.append(Weight(f"{target}.bias", sources, "bias"))
        return found

    def _has_bias(self, name: str) -> bool:
        linear = self.linears.get(name)
        return "bias" in linear.tensors if linear else f"{name}.bias" in self.plain

    # -- reading ---------------------------------------------------------------------------

    def load(self, weight: Weight, device: str = "cpu") -> torch.Tensor:
        """Read one tensor of the transformers model, decoded where it is quantized.

        Raises:
            ModelFormatError: the stored tensors decode to nothing sensible.
        """
        if weight.part == "plain":
            return self._load_plain(weight.sources[0], device)
        if weight.part == "bias":
            return torch.cat([self._load_bias(name, device) for name in weight.sources])
        parts = [self.load_linear(name, device) for name in weight.sources]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        turned = self.architecture.transposed and weight.sources != (HEAD,)
        return whole.t().contiguous() if turned else whole

    def load_linear(self, name: str, device: str = "cpu") -> torch.Tensor:
        """Decode one linear layer to (out, in), padding columns trimmed."""
        if name not in self.linears:
            return self._files.load(f"{name}.weight", device)
        return self.decode_packed(name, self.load_packed(name, device))

    def load_packed(self, name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Read the stored tensors of one quantized layer by short name."""
        return {
            short: self._files.load(f"{name}.{short}", device)
            for short in self.linears[name].tensors
        }

    def decode_packed(self, name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Decode tensors that `load_packed` has read, padding columns trimmed."""
        linear = self.linears[name]
        with _located(self.directory, name):
            if linear.groups:
                factor = self._folded_factor(name)
                weight = exl2.decode(tensors, factor)[: linear.out_features]
                return weight if factor == 1.0 else (weight.float() / factor).half()
            quantization = self.config.quantization
            return gptq.decode(
                tensors,
                group_size=quantization.get("group_size", -1),
                zero_offset=gptq.zero_offset(quantization),
            )[: linear.out_features]

    def _folded_factor(self, name: str) -> float:
        text_name = self.architecture.text_name(name)
        return folded_factor(self.architecture.name, text_name, self.config.text)

    def _load_bias(self, name: str, device: str) -> torch.Tensor:
        bias = self._files.load(f"{name}.bias", device)
        linear = self.linears.get(name)
        return bias[: linear.out_features] if linear else bias

    def _load_plain(self, name: str, device: str) -> torch.Tensor:
        tensor = self._files.load(name, device)
        shared = self.kind == "exl2" and self.architecture.head_norms == "shared"
        if not (shared and name.endswith(_SHARED_NORMS) and tensor.dim() == 2):
            return tensor
        # exllamav2 stores the row that all heads share once per head (`headnorm.py`).
        if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
            raise ModelFormatError(
                f"{self.directory}: {name} differs between heads, expected equal rows"
            )
        return tensor[0].contiguous()
