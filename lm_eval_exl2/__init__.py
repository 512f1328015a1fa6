"""Evaluate EXL2-quantized language models with the stock lm-evaluation-harness.

Importing this package loads neither torch nor the harness: the class behind `--model exl2`
is fetched on first use as `lm_eval_exl2.Exl2LM`.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Exl2LM", "__version__"]

if TYPE_CHECKING:
    from lm_eval_exl2.lm import Exl2LM


def __getattr__(name: str) -> Any:
    """Import `Exl2LM` when it is first asked for (PEP 562)."""
    if name == "Exl2LM":
        from lm_eval_exl2.lm import Exl2LM

        return Exl2LM
    raise AttributeError(f"module 'lm_eval_exl2' has no attribute {name!r}")
