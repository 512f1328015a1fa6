"""What a measurement takes of the machine: processor time, memory, and a card's where it tells.

Utilisation and energy of a card come from NVML (package nvidia-ml-py), which counts everything that
runs on the card, not this process alone. What cannot be read is None, with the reason beside it.
"""

from __future__ import annotations

import resource
import statistics
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Generator

_PERIOD_S: Final = 0.05
_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardUsage:
    """What NVML says of a card."""

    utilisation: float | None
    """Mean share of time in which a kernel ran; None if it was never asked."""
    energy_j: float | None
    """None where the driver does not count."""
    memory_peak_bytes: int
    """Of this process's tensors, by PyTorch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a block of code took."""

    wall_s: float
    cpu_s: float
    """Processor time of all threads of this process."""
    memory_peak_bytes: int
    memory_peak_since: str
    """`start of the measurement`, or `start of the process` where it cannot be reset."""
    card: CardUsage | None
    why_no_card: str

    @property
    def cpu_utilisation(self) -> float:
        """Processors that were busy on average."""
        return self.cpu_s / self.wall_s if self.wall_s else 0.0


class Meter:
    """Holds the usage once the block has ended."""

    usage: Usage


@contextmanager
def metered(device: str) -> Generator[Meter]:
    """Measure a block of code.

    Args:
        device: What the engine computes on, in PyTorch's words.
    """
    meter = Meter()
    since = _reset_memory_peak()
    card, why_no_card = _open_card(device)
    cpu_s, begin_s = time.process_time(), time.perf_counter()
    try:
        yield meter
    finally:
        wall_s = time.perf_counter() - begin_s
        meter.usage = Usage(
            wall_s=wall_s,
            cpu_s=time.process_time() - cpu_s,
            memory_peak_bytes=_memory_peak(),
            memory_peak_since=since,
            card=card.close() if card else None,
            why_no_card=why_no_card,
        )


def _reset_memory_peak() -> str:
    """Let the system forget the highest memory of this process, where it can (proc(5))."""
    try:
        _RESET.write_text("5")
    except OSError:
        return "start of the process"
    return "start of the measurement"


def _memory_peak() -> int:
    """Return the most memory of this process, in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _open_card(device: str) -> tuple[_Card | None, str]:
    if not device.startswith("cuda"):
        return None, f"computed on {device}"
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        return None, "nvidia-ml-py is not installed"
    try:
        return _Card(nvml, int(device.partition(":")[2] or 0)), ""
    except nvml.NVMLError as error:
        return None, f"NVML: {error}"


class _Card:
    """Asks a card how busy it is, from a thread, until it is closed."""

    def __init__(self, nvml: Any, number: int) -> None:
        import torch

        nvml.nvmlInit()
        self._nvml, self._number = nvml, number
        # NVML counts all cards, PyTorch those that CUDA_VISIBLE_DEVICES leaves.
        cuda: Any = torch.cuda
        uuid = str(cuda.get_device_properties(number).uuid)
        self._handle: Any = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self._shares: list[float] = []
        self._energy_j = self._read_energy()
        torch.cuda.reset_peak_memory_stats(number)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _read_energy(self) -> float | None:
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
        except self._nvml.NVMLError:
            return None

    def _watch(self) -> None:
        while not self._is_over.wait(_PERIOD_S):
            try:
                rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
            except self._nvml.NVMLError:  # a card or driver that does not tell
                return
            self._shares.append(rates.gpu / 100)

    def close(self) -> CardUsage:
        """Stop asking; return what was found."""
        import torch

        self._is_over.set()
        self._thread.join()
        before, after = self._energy_j, self._read_energy()
        self._nvml.nvmlShutdown()
        return CardUsage(
            utilisation=statistics.fmean(self._shares) if self._shares else None,
            energy_j=None if before is None or after is None else after - before,
            memory_peak_bytes=torch.cuda.max_memory_allocated(self._number),
        )
