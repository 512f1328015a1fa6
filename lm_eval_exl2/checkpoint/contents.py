"""What the tensors of a checkpoint make up, checked against config.json and each other.

Sorts stored tensors into quantized linear layers and plain tensors. Of an EXL2 checkpoint every
module is checked for presence and size, so that nothing is missing, left over or misread; of the
other kinds as much as their names allow, the rest is up to transformers' loader. Reads nothing
but headers and the (tiny) group tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from lm_eval_exl2.checkpoint import format as exl2
from lm_eval_exl2.checkpoint import gptq
from lm_eval_exl2.checkpoint.architectures import BUFFERS, Architecture, linear_size
from lm_eval_exl2.checkpoint.modules import check_modules
from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_exl2.checkpoint.config import CheckpointConfig
    from lm_eval_exl2.checkpoint.files import StoredTensor, TensorFiles

Kind = Literal["exl2", "gptq", "unquantized"]

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_FLOATS = ("F16", "BF16", "F32", "F64")
_MARKERS = {"exl2": "q_weight", "gptq": "qweight"}
_DTYPES: dict[str, tuple[str, ...]] = {
    "q_weight": ("I32",),
    "q_invperm": ("I32",),
    "q_scale": ("I32",),
    "q_scale_max": ("F16",),
    "q_groups": ("I16",),
    "q_perm": ("I32", "I16"),
    "qweight": ("I32",),
    "qzeros": ("I32",),
    "scales": ("F16", "BF16", "F32"),
    "g_idx": ("I32", "I64"),
}
_PACKED_PARTS = {
    "exl2": exl2.TENSOR_NAMES + exl2.OPTIONAL_TENSOR_NAMES,
    "gptq": gptq.TENSOR_NAMES + gptq.OPTIONAL_TENSOR_NAMES,
    "unquantized": (),
}


@dataclass(frozen=True, slots=True)
class Linear:
    """One quantized linear layer as it is stored."""

    name: str
    out_features: int
    """Configured number of outputs; the file may hold padding columns behind them."""
    in_features: int
    columns: int
    groups: tuple[exl2.Group, ...]
    """EXL2 groups in packed order; empty for GPTQ."""
    tensors: dict[str, StoredTensor]
    """Stored tensors by short name, bias included."""


class Contents(NamedTuple):
    """The parts of a checkpoint by their stored names."""

    linears: dict[str, Linear]
    plain: dict[str, StoredTensor]


def recognise(names: Mapping[str, StoredTensor]) -> Kind:
    """Tell the kind from tensor names, as exllamav2 does (`module.py`)."""
    if any(name.endswith(".q_weight") for name in names):
        return "exl2"
    if any(name.endswith(".qweight") for name in names):
        return "gptq"
    return "unquantized"


def check_method(kind: Kind, config: CheckpointConfig) -> None:
    """Check that quantization_config agrees with what the files hold.

    Raises:
        ModelFormatError: another or an unsupported method.
    """
    method = config.quantization.get("quant_method")
    if kind == "gptq":
        gptq.check_quantization(config.quantization)
    elif kind == "exl2" and method not in (None, "exl2"):
        raise ModelFormatError(
            f"config.json says quant_method {method!r:.40}, but the files hold EXL2 tensors; "
            "remove quantization_config or correct it"
        )
    elif kind == "unquantized" and method is not None:
        raise ModelFormatError(
            f"config.json says quant_method {method!r:.40}, but the files hold no such tensors "
            "this package can read; expected exl2, gptq with 4 bits, or none"
        )


def read_contents(
    files: TensorFiles, kind: Kind, config: CheckpointConfig, architecture: Architecture
) -> Contents:
    """Sort and check all tensors of a checkpoint.

    Raises:
        ModelFormatError: a tensor is missing, surplus, or of a wrong dtype or shape.
    """
    contents = _Reader(files, kind, config, architecture).read()
    _check_layers(contents, config)
    if kind == "exl2":
        check_modules(contents.linears, contents.plain, config.sizes, architecture)
    return contents


class _Reader:
    """The sorting of one checkpoint's tensors."""

    def __init__(
        self, files: TensorFiles, kind: Kind, config: CheckpointConfig, architecture: Architecture
    ) -> None:
        self._files = files
        self._kind = kind
        self._config = config
        self._architecture = architecture
        self._parts = _PACKED_PARTS[kind]

    def read(self) -> Contents:
        stored = {name: t for name, t in self._files.tensors.items() if not self._is_ignored(name)}
        marker = f".{_MARKERS.get(self._kind)}"
        packed = sorted(name.removesuffix(marker) for name in stored if name.endswith(marker))
        layers: dict[str, dict[str, StoredTensor]] = {name: {} for name in packed}
        plain: dict[str, StoredTensor] = {}
        for name, tensor in stored.items():
            module, _, short = name.rpartition(".")
            is_part = module in layers and short in self._parts
            _check_dtype(name, tensor, _DTYPES.get(short, _FLOATS) if is_part else _FLOATS)
            if is_part:
                layers[module][short] = tensor
            elif module in layers:
                raise ModelFormatError(f"{name} belongs to a layer that is quantized")
            else:
                plain[name] = tensor
        self._check_unique(stored)
        linears = {name: self._check_linear(name, tensors) for name, tensors in layers.items()}
        return Contents(linears, plain)

    def _is_ignored(self, name: str) -> bool:
        ignored = self._architecture.ignored
        return bool(BUFFERS.search(name) or (ignored and re.search(ignored, name)))

    def _check_unique(self, stored: Mapping[str, StoredTensor]) -> None:
        """Check that no two stored names stand for the same tensor."""
        seen: dict[str, str] = {}
        for name in stored:
            text_name = self._architecture.text_name(name)
            if text_name in seen:
                raise ModelFormatError(f"{name} and {seen[text_name]} are the same tensor")
            seen[text_name] = name

    def _check_linear(self, name: str, tensors: dict[str, StoredTensor]) -> Linear:
        try:
            return self._read_linear(name, tensors)
        except ModelFormatError as error:
            raise ModelFormatError(f"{name}: {error}") from error

    def _read_linear(self, name: str, tensors: dict[str, StoredTensor]) -> Linear:
        shapes = {short: tensor.shape for short, tensor in tensors.items()}
        groups: list[exl2.Group] = []
        if self._kind == "exl2":
            sizes = exl2.check_shapes(shapes)
            in_features, columns = sizes.in_features, sizes.columns
            groups = exl2.read_groups(self._files.load(f"{name}.q_groups"), sizes)
        else:
            in_features, columns = gptq.check_shapes(shapes)
            if self._config.quantization.get("desc_act") and "g_idx" not in tensors:
                raise ModelFormatError("GPTQ with desc_act needs g_idx, which is missing")
        expected = self._expected_size(name)
        out_features = expected[0] if expected else columns
        padding = exl2.COLUMN_MULTIPLE if self._kind == "exl2" else 1
        padded = -(-out_features // padding) * padding
        if expected and (columns, in_features) != (padded, expected[1]):
            raise ModelFormatError(
                f"stored as {columns} x {in_features}, but config.json asks for "
                f"{expected[0]} x {expected[1]}"
            )
        bias = shapes.get("bias")
        if bias and bias not in ((columns,), (out_features,)):
            raise ModelFormatError(f"bias has shape {bias}, expected {(out_features,)}")
        return Linear(name, out_features, in_features, columns, tuple(groups), tensors)

    def _expected_size(self, name: str) -> tuple[int, int] | None:
        """Return (out_features, in_features) of a linear layer, None for an unknown name."""
        name, sizes = self._architecture.text_name(name), self._config.sizes
        parent, _, last = name.rpartition(".")
        parts = self._architecture.fused.get(last)
        if not parts:
            return linear_size(name, sizes)
        of_parts = [size for part in parts if (size := linear_size(f"{parent}.{part}", sizes))]
        return (sum(size[0] for size in of_parts), sizes.hidden_size)


def _check_dtype(name: str, tensor: StoredTensor, expected: tuple[str, ...]) -> None:
    if tensor.dtype not in expected:
        raise ModelFormatError(f"{name} is {tensor.dtype}, expected {' or '.join(expected)}")


def _check_layers(contents: Contents, config: CheckpointConfig) -> None:
    """Check that every decoder layer has the same tensors and none is surplus."""
    count = config.sizes.layers
    seen: dict[int, set[str]] = {index: set() for index in range(count)}
    for name in (*contents.linears, *_biases(contents), *contents.plain):
        match = _LAYER.search(name)
        if not match:
            continue
        index = int(match[1])
        if index >= count:
            raise ModelFormatError(f"{name} is beyond the {count} layers of config.json")
        seen[index].add(name[match.end() :])
    every: set[str] = set() if _layers_differ(config) else set[str]().union(*seen.values())
    for index, names in seen.items():
        missing = sorted(every - names)
        if missing or not names:
            what = missing[0] if names else "all tensors"
            raise ModelFormatError(f"layer {index} lacks {what}")


def _biases(contents: Contents) -> list[str]:
    linears = contents.linears.values()
    return [f"{linear.name}.bias" for linear in linears if "bias" in linear.tensors]


def _layers_differ(config: CheckpointConfig) -> bool:
    """Whether layers may legitimately differ in what they store (mixed dense and expert)."""
    text = config.text
    return bool(text.get("mlp_only_layers")) or text.get("decoder_sparse_step", 1) != 1
