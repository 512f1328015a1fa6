"""Where and with what a measurement ran, recorded with every result."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "lm_eval", "tokenizers", "safetensors")


def environment(*more_packages: str) -> dict[str, Any]:
    """Return date, commit, machine and versions; packages that are absent are left out."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "versions": dict(filter(None, map(_version, (*PACKAGES, *more_packages)))),
    }


def _processor() -> str:
    """Return what the processor calls itself."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> tuple[str, str] | None:
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all, and print it as the last line on stdout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    print(json.dumps(result))
