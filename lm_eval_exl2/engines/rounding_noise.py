"""Noise of the size of rounding after every layer: what a storage type leaves open.

The method of exllamav3's `eval/qbench`: each element of the hidden state is multiplied by 1 + e,
where e is normal with a standard deviation of half a unit roundoff. Knows no model library: a
layer is anything whose `forward` returns hidden states, alone or first in a tuple.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from lm_eval_exl2.records import RoundingNoise


@contextmanager
def noisy(layers: Sequence[Any], noise: RoundingNoise | None) -> Generator[None]:
    """Add noise to what layers return, as long as the block lasts.

    Args:
        layers: The module that ends each layer.
        noise: Size and seed; None for none. Equal seeds give equal noise for equal steps.
    """
    if noise is None:
        yield
        return
    generators: dict[torch.device, torch.Generator] = {}
    for layer in layers:
        layer.forward = _with_noise(layer.forward, noise, generators)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is seen again


def last_modules(modules: Iterable[Any]) -> list[Any]:
    """Return the last of the modules that carry each `layer_idx`, as exllamav2's do."""
    numbers = ((getattr(module, "layer_idx", None), module) for module in modules)
    return list({number: module for number, module in numbers if number is not None}.values())


def decoder_layers(model: Any) -> list[Any]:
    """Return the layers of a transformers model."""
    count = int(model.config.num_hidden_layers)
    lists = (part for part in model.base_model.children() if isinstance(part, torch.nn.ModuleList))
    return next(list(part) for part in lists if len(part) == count)


def _with_noise(forward: Any, noise: RoundingNoise, generators: dict[Any, torch.Generator]) -> Any:
    def changed(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        if isinstance(output, tuple):
            states, *others = cast("tuple[Any, ...]", output)
            return (_multiplied(states, noise, generators), *others)
        return _multiplied(output, noise, generators)

    return changed


def _multiplied(
    states: torch.Tensor, noise: RoundingNoise, generators: dict[Any, torch.Generator]
) -> torch.Tensor:
    device = states.device
    if device not in generators:
        generators[device] = torch.Generator(device).manual_seed(noise.seed)
    errors = torch.randn(states.shape, generator=generators[device], device=device)
    return (states.float() * (1.0 + noise.scale * errors)).to(states.dtype)
