"""Builds a transformers model from an opened checkpoint.

Weights are decoded to what exllamav2's kernels see and then loaded by transformers itself, so
that its own conversions (fused experts and the like) apply. Anything left over or missing after
that is an error. Only the text part of a multimodal checkpoint is built.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_exl2.engines.packed_linear import packed_class
from lm_eval_exl2.engines.tree_attention import ATTENTION_NAME, register
from lm_eval_exl2.errors import ModelFormatError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lm_eval_exl2.checkpoint import Checkpoint, Weight

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_device(device: str | None) -> torch.device:
    """Return the device to run on, with the fallback of the harness's `hf` model.

    The harness always passes `cuda:0` unless told otherwise; without such a card that means
    the best device there is.

    Raises:
        OptionError: the name is no device name at all.
    """
    try:
        wanted = torch.device(device or "cuda")
    except RuntimeError as error:
        raise OptionError(f"device {device!r} is unknown, expected cpu, mps, cuda or cuda:N") from (
            error
        )
    if wanted.type == "cuda" and torch.cuda.is_available():
        if (wanted.index or 0) >= torch.cuda.device_count():
            raise OptionError(f"device {device} not found, there are {torch.cuda.device_count()}")
        return wanted
    if wanted.type in ("cuda", "mps"):
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    return wanted


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in; `auto` is float32 on CPU, float16 elsewhere.

    Raises:
        OptionError: not one of auto, float32, bfloat16, float16.
    """
    name = dtype.removeprefix("torch.")
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in _DTYPES:
        raise OptionError(f"dtype {dtype!r} is unknown, expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load_model(
    checkpoint: Checkpoint,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    packed: bool = False,
) -> Any:
    """Load all weights and return the model in evaluation mode.

    Args:
        checkpoint: Opened and validated.
        config: transformers' config of the text model.
        device: Where the model runs.
        dtype: What it computes in.
        packed: Keep quantized layers packed and decode them at every call.

    Raises:
        ModelFormatError: tensors are missing, left over or of the wrong shape.
        OptionError: this checkpoint cannot stay packed.
    """
    register()
    weights = {weight.name: weight for weight in checkpoint.weights()}
    kept = _packed_modules(checkpoint, weights.values()) if packed else {}
    skipped = {f"{module}.{part}" for module in kept for part in ("weight", "bias")}
    state = {name: checkpoint.load(w) for name, w in weights.items() if name not in skipped}
    wanted_class = packed_class(model_class(checkpoint), kept) if kept else model_class(checkpoint)
    with _QuietTransformers():
        model, report = wanted_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            output_loading_info=True,
        )
    _check_report(checkpoint, report)
    for module, weight in kept.items():
        stored_bias = weights.get(f"{module}.bias")
        bias = checkpoint.load(stored_bias, str(device)).to(dtype) if stored_bias else None
        model.get_submodule(module).attach(checkpoint, weight, bias, str(device))
    return model.to(device).eval()


def _packed_modules(checkpoint: Checkpoint, weights: Iterable[Weight]) -> dict[str, Weight]:
    """Return the modules that can stay packed, by their name in the model."""
    if checkpoint.kind == "unquantized":
        raise OptionError("weight_memory=packed needs a quantized checkpoint; leave it out")
    if checkpoint.config.sizes.experts:
        raise OptionError(
            "weight_memory=packed is not available for mixture-of-experts models; leave it out"
        )
    return {
        weight.name.removesuffix(".weight"): weight
        for weight in weights
        if weight.part == "weight" and all(s in checkpoint.linears for s in weight.sources)
    }


def model_class(checkpoint: Checkpoint) -> Any:
    """Return the transformers class that runs a checkpoint's text model."""
    import transformers

    return getattr(transformers, checkpoint.architecture.model_class)


def _check_report(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    """Turn transformers' loading report into an error unless everything matched."""
    where = checkpoint.directory
    missing: Iterable[str] = report["missing_keys"]
    unexpected: Iterable[str] = report["unexpected_keys"]
    if missing:
        raise ModelFormatError(f"{where}: tensor {sorted(missing)[0]} is missing")
    if report["mismatched_keys"]:
        name, found, expected = sorted(report["mismatched_keys"])[0]
        raise ModelFormatError(
            f"{where}: {name} has shape {tuple(found)}, expected {tuple(expected)}"
        )
    if unexpected:
        raise ModelFormatError(
            f"{where}: tensor {sorted(unexpected)[0]} is not part of a "
            f"{checkpoint.architecture.model_class}"
        )


class _QuietTransformers:
    """Silence transformers' loading report and progress bar: `_check_report` reads the report."""

    def __enter__(self) -> None:
        from transformers.utils import logging as hf_logging

        self._level = hf_logging.get_verbosity()
        self._had_bar = hf_logging.is_progress_bar_enabled()
        hf_logging.set_verbosity(logging.CRITICAL)
        hf_logging.disable_progress_bar()

    def __exit__(self, *_error: object) -> None:
        from transformers.utils import logging as hf_logging

        hf_logging.set_verbosity(self._level)
        if self._had_bar:
            hf_logging.enable_progress_bar()
