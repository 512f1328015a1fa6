"""How many threads a CPU may really use.

PyTorch starts one per processor it sees. A container may see all processors of its machine and be
allowed the time of two; threads beyond that wait for each other and cost several times the speed.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")


def set_threads(root: Path = _CGROUPS) -> int:
    """Take no more threads than the container's quota allows; return how many are used.

    What the user says by OMP_NUM_THREADS, or has set in PyTorch to less, stands.

    Args:
        root: Where Linux shows the limits of this process's control group.
    """
    allowed = _quota(root)
    if allowed is not None and "OMP_NUM_THREADS" not in os.environ:
        wanted = max(1, math.floor(allowed))
        if wanted < torch.get_num_threads():
            torch.set_num_threads(wanted)
    return torch.get_num_threads()


def _quota(root: Path) -> float | None:
    """Return the processors' worth of time that is allowed, None without a limit.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and, for version 1,
    Documentation/scheduler/sched-bwc.rst.
    """
    try:
        if (file := root / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            folder = root / "cpu"
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no limit is told, or "max"
        return None
