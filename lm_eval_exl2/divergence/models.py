"""The models of a run: found first, loaded one by one when their turn comes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.locate import locate
from lm_eval_exl2.checkpoint.summary import summarise
from lm_eval_exl2.engines.select import open_engine
from lm_eval_exl2.errors import ModelFormatError, OptionError
from lm_eval_exl2.options import parse_options
from lm_eval_exl2.tasks.model_files import load_model_files

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from lm_eval_exl2.engines.base import Engine

# Half a unit roundoff: the root mean square of what rounding to the type changes, within 20 %.
_ROUNDING: Final = {"BF16": 2.0**-9, "F16": 2.0**-12, "F32": 2.0**-25}
_BATCH_TOKENS: Final = 2048
# So that a second half holds a token to compare and its target.
_LEAST_WINDOW: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How every model of a run is loaded; None for what `--model exl2` does by default."""

    engine: str = "auto"
    device: str | None = None
    dtype: str = "auto"
    max_batch_tokens: int | None = None


class Model:
    """A checkpoint that was found, opened and has its tokenizer; no weights are loaded."""

    def __init__(self, name: str) -> None:
        """Find a model.

        Args:
            name: Directory, hub id, or `demo...`.

        Raises:
            Exl2EvalError: it cannot be used.
        """
        self.name = name
        location = locate(name)
        self.checkpoint = Checkpoint(location.directory)
        files = load_model_files({"pretrained": str(location.directory)})
        self.tokenizer: Any = files.tokenizer
        self.context: int | None = files.context
        self._commit = location.commit

    @cached_property
    def vocabulary(self) -> int:
        """Token ids the model has logits for, padding included."""
        return self.checkpoint.config.sizes.vocab_size

    @cached_property
    def digest(self) -> str:
        """Digest of weights and configs."""
        return self.checkpoint.digest()

    @cached_property
    def storage_type(self) -> str:
        """What values are rounded to, in safetensors' words: F16 behind quantized layers."""
        if self.checkpoint.kind != "unquantized":
            return "F16"
        return max(self.checkpoint.plain.values(), key=lambda tensor: tensor.elements).dtype

    @property
    def rounding(self) -> float:
        """Standard deviation of the noise that stands for rounding to the storage type.

        Raises:
            ModelFormatError: the type is none that weights are stored in.
        """
        if self.storage_type not in _ROUNDING:
            raise ModelFormatError(
                f"{self.name} stores {self.storage_type}, expected one of {', '.join(_ROUNDING)}; "
                "use --no-noise_floor"
            )
        return _ROUNDING[self.storage_type]

    def describe(self) -> dict[str, Any]:
        """Return the facts that identify it, as JSON values."""
        summary = summarise(self.checkpoint)
        return {
            "name": self.name,
            "commit": self._commit or None,
            "digest": self.digest,
            "kind": self.checkpoint.kind,
            "architecture": summary.architecture,
            "bits_layers": summary.bits_layers,
            "bits_head": summary.bits_head,
            "size_bytes": summary.size_bytes,
            "storage_type": self.storage_type,
            "vocabulary": self.vocabulary,
        }

    @contextmanager
    def loaded(self, settings: EngineSettings, window: int) -> Generator[Engine]:
        """Load the model for as long as the block lasts.

        Raises:
            Exl2EvalError: it cannot be computed.
        """
        options = parse_options(
            {
                "pretrained": str(self.checkpoint.directory),
                "engine": settings.engine,
                "device": settings.device,
                "dtype": settings.dtype,
                # Not what fits: the memory is shared with another model.
                "max_batch_tokens": settings.max_batch_tokens or min(window, _BATCH_TOKENS),
                "max_length": window,
            }
        )
        engine = open_engine(self.checkpoint, options)
        try:
            yield engine
        finally:
            engine.close()


def check_window(models: Sequence[Model], window: int) -> None:
    """Refuse windows that hold nothing, or that a model has no positions for.

    Raises:
        OptionError: naming the model.
    """
    if window < _LEAST_WINDOW:
        raise OptionError(f"--window {window}: expected at least {_LEAST_WINDOW} tokens")
    for model in models:
        if model.context is not None and window > model.context:
            raise OptionError(
                f"a window of {window} tokens is longer than the context of {model.name}, "
                f"{model.context}; give --window {model.context} or less"
            )
