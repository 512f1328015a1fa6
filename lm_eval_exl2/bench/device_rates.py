"""What a device really does: bytes copied and operations multiplied per second.

The bandwidth is that of copying a tensor onto another, both much larger than any cache, and counts
each byte once as read and once as written, as STREAM's Copy does; on a CPU the real traffic can be
half as much again, where a line is read before it is overwritten. The multiplication is of square
matrices. Of several tries the fastest counts: others were disturbed. Runs no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import torch

from lm_eval_exl2.bench.roofline import DeviceRates
from lm_eval_exl2.errors import OptionError

Clock = Callable[[], float]

COPY_BYTES: Final = 1 << 29
"""Of one tensor: beyond the last-level cache of servers (up to 384 MB) and of any GPU."""
MATMUL_SIZE: Final = {"cpu": 1024, "cuda": 8192}
_OTHER_SIZE: Final = 2048
_TRIES: Final = 5
_CALLS: Final = {"cuda": 20}
"""In one try, where a call is too short to be timed alone; elsewhere 1."""
_READ_AND_WRITTEN: Final = 2
_MULTIPLY_AND_ADD: Final = 2


def measure_device(
    device: torch.device | str,
    dtypes: Sequence[str] = ("float32",),
    *,
    copy_bytes: int = COPY_BYTES,
    matmul_size: int | None = None,
    clock: Clock = time.perf_counter,
) -> DeviceRates:
    """Measure a device: a few seconds, with as many threads as torch uses.

    Args:
        device: "cpu", "cuda", "cuda:1".
        dtypes: Data types of torch to multiply in, such as "float16".
        copy_bytes: Of the copied tensor; twice this much memory is taken.
        matmul_size: Rows and columns of the matrices; by default as suits the device.
        clock: Seconds from any start.

    Raises:
        OptionError: A data type is unknown, or the device does not multiply in it.
    """
    place = torch.device(device)
    size = matmul_size or MATMUL_SIZE.get(place.type, _OTHER_SIZE)
    return DeviceRates(
        device=str(place),
        bytes_per_s=copy_rate(place, copy_bytes, clock=clock),
        operations_per_s={name: matmul_rate(place, name, size, clock=clock) for name in dtypes},
    )


def copy_rate(device: torch.device, size_bytes: int, *, clock: Clock = time.perf_counter) -> float:
    """Bytes read and written per second by a copy of `size_bytes`."""
    # Not zeros: those are one page of the kernel's, which stays in the cache.
    source = torch.ones(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _fastest(lambda: target.copy_(source), device, clock)
    return _READ_AND_WRITTEN * size_bytes / seconds


def matmul_rate(
    device: torch.device, dtype: str, size: int, *, clock: Clock = time.perf_counter
) -> float:
    """Floating-point operations per second of a product of two `size` x `size` matrices.

    Raises:
        OptionError: The type is unknown, or the device does not multiply in it.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise OptionError(f"dtype {dtype!r}, expected one of torch's such as float16 or bfloat16")
    try:
        # Not ones: a card multiplies equal numbers faster, for it needs less power.
        left, right = (torch.randn(size, size).to(device, kind) for _ in range(2))
        seconds = _fastest(lambda: torch.mm(left, right), device, clock)
    except (RuntimeError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0]
        raise OptionError(f"no product in {dtype} on {device}: {said}") from error
    return _MULTIPLY_AND_ADD * size**3 / seconds


def _fastest(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds of a call in the fastest of several tries, after one that warms up."""
    calls = _CALLS.get(device.type, 1)
    times: list[float] = []
    for _ in range(1 + _TRIES):
        begin = clock()
        for _ in range(calls):
            work()
        _wait(device)
        times.append((clock() - begin) / calls)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
