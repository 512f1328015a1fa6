"""Chooses and opens the engine; imports torch only when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval_exl2.checkpoint import Checkpoint
    from lm_eval_exl2.engines.base import Engine
    from lm_eval_exl2.options import Options


def open_engine(checkpoint: Checkpoint, options: Options) -> Engine:
    """Load a checkpoint with the engine the options ask for.

    Raises:
        Exl2EvalError: the checkpoint, an option or the memory does not allow it.
    """
    from lm_eval_exl2.engines.torch_engine import TorchEngine

    rows = options.batch_size or options.max_batch_size
    arguments = {} if rows is None else {"max_rows": rows}
    return TorchEngine(
        checkpoint,
        device=options.device,
        dtype=options.dtype,
        weight_memory=options.weight_memory,
        trust_remote_code=options.trust_remote_code,
        max_batch_tokens=options.max_batch_tokens,
        **arguments,
    )
