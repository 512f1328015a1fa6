"""What a checkpoint holds, in numbers, from file headers and group tables alone.

No weight is read or decoded.

**Bits per weight**, as every figure of this package means it:

- *Stored bits* of a linear layer are all bits its file spends on the weight: packed codes,
  scales (and GPTQ zero points), group table, permutation. Padding columns count as bits. The
  bias does not count. An unquantized linear layer has 16 or 32 bits per weight.
- *Weights* of a linear layer are in x out features as configured, without padding.
- `bits_layers`: stored bits / weights over the linear layers of all decoder layers. The router of
  a mixture of experts is not quantized and not counted.
- `bits_head`: the same of the output head; None where the head is the embedding.
- `bits_total`: bits of every stored tensor of the text model - embedding, norms, biases and
  router included - divided by `parameters`, the number of values they stand for. A head stored
  beside the embedding it was copied from counts as parameters of its own.

exllamav2's `bits` in config.json is the target it was given for the decoder layers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.checkpoint.naming import is_linear, layer_index, split_parts, stored_name

if TYPE_CHECKING:
    from lm_eval_exl2.checkpoint.files import StoredTensor
    from lm_eval_exl2.checkpoint.reader import Checkpoint, Kind, Linear

_DTYPE_BITS = {"F64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16}
_GPTQ_BITS = 4


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers of one checkpoint; bits per weight as the module defines them."""

    architecture: str
    kind: Kind
    layers: int
    bits_layers: float
    bits_head: float | None
    bits_total: float
    parameters: int
    size_bytes: int
    """Size of the weight files, headers included."""
    width_mix: tuple[dict[int, float], ...]
    """For each decoder layer: width in bits -> share of its linear weights, wide first."""
    quantization: dict[str, Any]
    """quantization_config of config.json; empty when there is none."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


class _Count:
    """Bits and weights of some linear layers."""

    def __init__(self) -> None:
        self.bits = 0
        self.weights = 0
        self.widths: Counter[int] = Counter()

    def add(self, bits: int, widths: Counter[int]) -> None:
        self.bits += bits
        self.weights += widths.total()
        self.widths += widths

    @property
    def mix(self) -> dict[int, float]:
        return {width: n / self.weights for width, n in sorted(self.widths.items(), reverse=True)}


def summarise(checkpoint: Checkpoint) -> Summary:
    """Count a checkpoint; see the module for what the figures mean."""
    layers = [_Count() for _ in range(checkpoint.config.sizes.layers)]
    head = _Count()
    bits = parameters = 0
    for linear in checkpoint.linears.values():
        stored = _stored_bits(linear)
        widths = _widths(linear)
        bits += stored
        parameters += widths.total()
        if "bias" in linear.tensors:
            bits += _bits(linear.tensors["bias"])
            parameters += linear.out_features
        _place(linear.name, layers, head).add(stored, widths)
    for name, tensor in checkpoint.plain.items():
        bits += _bits(tensor)
        parameters += tensor.elements
        if _is_plain_linear(checkpoint, name):
            widths = Counter({_DTYPE_BITS[tensor.dtype]: tensor.elements})
            _place(name, layers, head).add(_bits(tensor), widths)
    weights = sum(layer.weights for layer in layers)
    return Summary(
        architecture=checkpoint.config.architecture,
        kind=checkpoint.kind,
        layers=len(layers),
        bits_layers=sum(layer.bits for layer in layers) / weights if weights else 0.0,
        bits_head=head.bits / head.weights if head.weights else None,
        bits_total=bits / parameters,
        parameters=parameters,
        size_bytes=checkpoint.bytes,
        width_mix=tuple(layer.mix for layer in layers),
        quantization=checkpoint.config.quantization,
    )


def _place(name: str, layers: list[_Count], head: _Count) -> _Count:
    """Return where a linear layer counts."""
    index = layer_index(name)
    return head if index is None else layers[index]


def _bits(tensor: StoredTensor) -> int:
    return tensor.elements * _DTYPE_BITS[tensor.dtype]


def _stored_bits(linear: Linear) -> int:
    return sum(_bits(tensor) for short, tensor in linear.tensors.items() if short != "bias")


def _widths(linear: Linear) -> Counter[int]:
    """Count the weights of a quantized layer by width."""
    if not linear.groups:
        return Counter({_GPTQ_BITS: linear.in_features * linear.out_features})
    widths: Counter[int] = Counter()
    for group in linear.groups:
        widths[group.bits] += group.rows * linear.out_features
    return widths


def _is_plain_linear(checkpoint: Checkpoint, name: str) -> bool:
    """Whether an unquantized tensor is the weight of a linear layer or of the head."""
    if not name.endswith(".weight"):
        return False
    architecture = checkpoint.architecture
    if checkpoint.kind == "exl2":
        stored = architecture.text_name(name)
    else:
        stored = stored_name(architecture, name)
    parts = split_parts(architecture, stored.removesuffix(".weight"))
    return all(is_linear(part, checkpoint.config.sizes) for part in parts)
