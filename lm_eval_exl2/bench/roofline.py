"""How fast a device could run a checkpoint at best, and how much of that was reached. Pure.

Two roofs (Williams, Waterman and Patterson 2009): the bytes that must move, over the bandwidth;
the operations that must be done, over the rate of matrix multiplication. Both rates are measured
on the device (`device_rates`), not read from a data sheet; what must move and be done is counted
by `model_size`. The roof that is reached first is the bound.

An engine that decodes its weights into a wider type before it multiplies moves more bytes than are
stored; against stored bytes its share of the bandwidth is low for that reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from lm_eval_exl2.bench.model_size import ModelSize


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """What a device was measured to do."""

    device: str
    bytes_per_s: float
    """Read and written, by copying."""
    operations_per_s: dict[str, float] = field(default_factory=dict[str, float])
    """Floating-point operations of a matrix multiplication, by data type."""


class Reached(NamedTuple):
    """What was reached of what the device can do."""

    bound: str
    """"memory" or "compute": the lower roof."""
    best_tokens_per_s: float
    """Under that roof."""
    share: float
    """Of `best_tokens_per_s`."""
    bandwidth_share: float
    """Bytes that had to move per second, over the measured bandwidth."""
    compute_share: float
    """Operations that had to be done per second, over the measured rate."""


def reached_in_decoding(
    model: ModelSize,
    rates: DeviceRates,
    tokens_per_s: float,
    *,
    dtype: str,
    batch_size: int,
    length: int,
    value_bytes: float = 2.0,
) -> Reached:
    """Hold measured decoding against the device.

    Args:
        model: What was run.
        rates: Of the device.
        tokens_per_s: Measured, of all sequences together.
        dtype: Type of the multiplications, one of `rates`.
        batch_size: Sequences at a time.
        length: Tokens that a sequence sees, on average over the run.
        value_bytes: Of one number in the cache.

    Raises:
        OptionError: The type was not measured, or a number is not above 0.
    """
    _check(tokens_per_s=tokens_per_s, batch_size=batch_size, length=length)
    moved = model.bytes_per_step(batch_size, length, value_bytes=value_bytes) / batch_size
    done = model.operations_per_step(batch_size, length) / batch_size
    return _reached(rates, dtype, moved, done, tokens_per_s)


def reached_in_prefill(
    model: ModelSize,
    rates: DeviceRates,
    tokens_per_s: float,
    *,
    dtype: str,
    tokens: int,
    value_bytes: float = 2.0,
) -> Reached:
    """Hold the measured speed of reading one prompt against the device.

    Args:
        model: What was run.
        rates: Of the device.
        tokens_per_s: Measured: the prompt's tokens over its time.
        dtype: Type of the multiplications, one of `rates`.
        tokens: Of the prompt, computed at once.
        value_bytes: Of one number in the cache.

    Raises:
        OptionError: As for decoding.
    """
    _check(tokens_per_s=tokens_per_s, tokens=tokens)
    moved = model.bytes_of_prompt(tokens, value_bytes=value_bytes) / tokens
    done = model.operations_of_prompt(tokens) / tokens
    return _reached(rates, dtype, moved, done, tokens_per_s)


def _reached(
    rates: DeviceRates, dtype: str, moved: float, done: float, tokens_per_s: float
) -> Reached:
    """From the bytes and operations of one token."""
    if dtype not in rates.operations_per_s:
        known = ", ".join(rates.operations_per_s) or "none"
        raise OptionError(f"no rate of {dtype!r} was measured on {rates.device}, there are {known}")
    by_memory = rates.bytes_per_s / moved
    by_compute = rates.operations_per_s[dtype] / done
    best = min(by_memory, by_compute)
    return Reached(
        bound="memory" if by_memory <= by_compute else "compute",
        best_tokens_per_s=best,
        share=tokens_per_s / best,
        bandwidth_share=tokens_per_s / by_memory,
        compute_share=tokens_per_s / by_compute,
    )


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise OptionError(f"{name} is {value}, expected a number above 0")
