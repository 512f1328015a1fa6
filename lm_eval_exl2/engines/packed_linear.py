"""Linear layers that stay packed and decode their weight at every call.

Saves memory at the price of decoding once per forward. The result is the same weight, bit for
bit, as decoding at load gives. Mixture-of-experts layers are not linear modules in transformers
and cannot stay packed this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lm_eval_exl2.checkpoint import Checkpoint, Weight


class PackedLinear(nn.Module):
    """A linear layer without parameters; its packed tensors are attached after loading."""

    def __init__(self, name: str) -> None:
        """Make an empty layer that is called `name` in the model."""
        super().__init__()
        self.name = name
        self.bias: torch.Tensor | None = None
        self.parameter_count = 0
        self._checkpoint: Checkpoint
        self._parts: list[tuple[str, dict[str, torch.Tensor]]] = []

    def attach(
        self, checkpoint: Checkpoint, weight: Weight, bias: torch.Tensor | None, device: str
    ) -> None:
        """Load the packed tensors of the layer.

        Args:
            checkpoint: Where they come from.
            weight: Which stored layers make up this one.
            bias: The layer's bias in the computing dtype, if it has one.
            device: Where packed tensors and decoded weights live.
        """
        self._checkpoint, self.bias = checkpoint, bias
        self.parameter_count = 0 if bias is None else bias.numel()
        for name in weight.sources:
            linear = checkpoint.linears[name]
            tensors = checkpoint.load_packed(name, device)
            tensors.pop("bias", None)
            self._parts.append((name, tensors))
            self.parameter_count += linear.out_features * linear.in_features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Decode the weight and apply it."""
        return F.linear(input, self.decode(input.dtype), self.bias)

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight (out, in)."""
        parts = [self._checkpoint.decode_packed(name, tensors) for name, tensors in self._parts]
        weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        return weight.to(dtype)


def packed_class(model_class: Any, names: Iterable[str]) -> Any:
    """Return a subclass of a transformers model whose named linear layers are packed.

    The layers are replaced while transformers builds the model on the meta device, so their
    unpacked weights are never allocated. The subclass keeps the name of its parent, by which
    transformers finds the model's conversions.
    """
    wanted = set(names)

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        for name, module in list(self.named_modules()):
            if name in wanted:
                parent, _, last = name.rpartition(".")
                if not _is_linear(module):
                    raise TypeError(f"{name} is a {type(module).__name__}, no linear layer")
                setattr(self.get_submodule(parent), last, PackedLinear(name))

    return type(model_class.__name__, (model_class,), {"__init__": build})


def _is_linear(module: nn.Module) -> bool:
    """Whether a module computes input times weight plus bias (GPT-2's Conv1D does, transposed)."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
