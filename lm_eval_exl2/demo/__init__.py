"""The small EXL2 checkpoints behind `pretrained=demo`, and how they were made.

Finds the folders that ship with the package; does not load or make them (`train` makes them).
Standard library only.
"""

from pathlib import Path
from typing import Final

from lm_eval_exl2.errors import OptionError

GOOD_BITS: Final = 5.0
"""Bits per weight of the size whose scores stay close to fp16: `demo`."""
DAMAGED_BITS: Final = 2.5
"""Bits per weight of the size that was made too small, to show what a loss looks like."""

_CHECKPOINTS: Final = Path(__file__).parent / "checkpoints"
_FOLDERS: Final = {
    "demo": f"exl2-{GOOD_BITS}bpw",
    "demo-fp16": "fp16",
    f"demo-{GOOD_BITS}bpw": f"exl2-{GOOD_BITS}bpw",
    f"demo-{DAMAGED_BITS}bpw": f"exl2-{DAMAGED_BITS}bpw",
}


def demo_directory(name: str) -> Path:
    """Find a demo checkpoint by the name that stands in `pretrained=`.

    Args:
        name: `demo`, `demo-fp16` or `demo-<bits>bpw`.

    Returns:
        The checkpoint's folder.

    Raises:
        OptionError: There is no demo checkpoint of that name.
    """
    if name not in _FOLDERS:
        known = ", ".join(sorted(_FOLDERS))
        raise OptionError(f"no demo checkpoint is called {name!r}; there are: {known}")
    return _CHECKPOINTS / _FOLDERS[name]
