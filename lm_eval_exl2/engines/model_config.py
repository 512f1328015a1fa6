"""What transformers says about a checkpoint's text model: the one truth for every engine.

Engines that do not run transformers are configured from this, too, so that both compute the same
model. Holds no weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.errors import ModelFormatError, OptionError

if TYPE_CHECKING:
    from lm_eval_exl2.checkpoint import Checkpoint

# Models whose transformers code looks at `sliding_window`: in the layers that `layer_types` calls
# sliding, or in all.
_WINDOW_BY_LAYER = (
    *("qwen2", "qwen3", "gemma2", "gemma3_text", "cohere2", "qwen2_vl_text", "qwen2_5_vl_text"),
)
_WINDOW_EVERYWHERE = ("mistral", "mixtral", "qwen3_moe", "starcoder2", "phi3")


@dataclass(frozen=True, slots=True)
class ConfigSettings:
    """What a user may say about reading and changing a model's config."""

    trust_remote_code: bool = False
    """Allow config code of the checkpoint to run."""
    rope_scale: float | None = None
    """Divide positions by this, in place of the checkpoint's own linear scaling."""
    rope_alpha: float | None = None
    """Stretch the base of the frequencies (NTK), as exllamav2's `rope_alpha` does."""

    @property
    def details(self) -> dict[str, float]:
        """What of it changes scores, for the results."""
        found = {"rope_scale": self.rope_scale, "rope_alpha": self.rope_alpha}
        return {name: value for name, value in found.items() if value is not None}


UNCHANGED = ConfigSettings()


def text_config(checkpoint: Checkpoint, settings: ConfigSettings = UNCHANGED) -> Any:
    """Return the transformers config of the text model.

    A head that is stored apart from the embedding stays apart, also where the original model
    tied the two: after quantization they are no longer equal.

    Args:
        checkpoint: Opened and validated.
        settings: How to read it and what to change.

    Raises:
        ModelFormatError: transformers cannot read config.json.
        OptionError: positions of this model are scaled in a way that cannot be changed.
    """
    import transformers

    loader: Any = transformers.AutoConfig
    try:
        config: Any = loader.from_pretrained(
            checkpoint.directory, trust_remote_code=settings.trust_remote_code
        )
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as error:
        message = str(error).strip().splitlines()[0]
        raise ModelFormatError(f"{checkpoint.directory}/config.json: {message}") from error
    # Whether head and embedding are one is said by the whole model's config, not the text part's.
    tied = bool(getattr(config, "tie_word_embeddings", False)) and not checkpoint.has_own_head
    config = copy.deepcopy(getattr(config, "text_config", None) or config)
    config.tie_word_embeddings = tied
    # Ours is a plain model by now; transformers would look for a quantizer of its own.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if settings.details:
        _change_positions(config, settings.rope_scale, settings.rope_alpha)
    return config


def _change_positions(config: Any, scale: float | None, alpha: float | None) -> None:
    """Apply exllamav2's two position options (`device.py`, `rope.py`) to a config."""
    rope: dict[str, Any] | None = getattr(config, "rope_parameters", None)
    if not rope:
        raise OptionError("rope_scale and rope_alpha need a model with rotary positions")
    kinds: dict[str, Any] = rope if "full_attention" in rope else {"": rope}
    for layer_type, parameters in kinds.items():
        if parameters.get("rope_type", "default") not in ("default", "linear"):
            raise OptionError(
                f"rope_scale and rope_alpha cannot change {parameters['rope_type']} positions; "
                "leave them out"
            )
        if alpha is not None:
            size = getattr(config, "head_dim", None)
            size = size or config.hidden_size // config.num_attention_heads
            size = int(size * parameters.get("partial_rotary_factor", 1.0))
            parameters["rope_theta"] *= alpha ** (size / (size - 2))
        if scale is not None and layer_type != "sliding_attention":
            parameters |= {"rope_type": "linear", "factor": scale}


def layer_windows(config: Any) -> list[int | None]:
    """Return the sliding window of every layer, None for layers that see everything."""
    window = getattr(config, "sliding_window", None)
    if config.model_type in _WINDOW_BY_LAYER:
        return [window if kind == "sliding_attention" else None for kind in config.layer_types]
    if config.model_type in _WINDOW_EVERYWHERE:
        return [window] * config.num_hidden_layers
    # A key left over from another model means nothing to one without windows.
    return [None] * config.num_hidden_layers


def trained_length(config: Any) -> int:
    """Return the window the model was made for, in the order of names the harness looks in."""
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    found = [value for name in names if (value := getattr(config, name, None)) is not None]
    length = int(found[0]) if found else 2048
    limit = position_limit(config)
    return length if limit is None else min(length, limit)


def position_limit(config: Any) -> int | None:
    """Return how many positions give the same result for every sequence.

    Learned position tables end. Long-RoPE and dynamic scaling switch frequencies for a whole
    forward by its longest sequence, so a score would depend on what else is computed with it.
    """
    if config.model_type in ("gpt2", "gpt_bigcode"):
        return int(config.n_positions)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings")
        return int(original or config.original_max_position_embeddings)
    if rope.get("rope_type") == "dynamic":
        return int(config.max_position_embeddings)
    return None
