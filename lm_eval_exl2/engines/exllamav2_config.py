"""exllamav2's configuration of a checkpoint, written from what transformers says about it.

exllamav2 0.3.2 (`config.py`, `architecture.py`) does not read the keys that transformers 5 writes
(`rope_parameters`), keeps the first of several end tokens, fails on some valid combinations and
loads what it does not know as Llama. So it is given a folder of its own, with a config.json in
its words and links to the weights; what it would still get wrong is refused here.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_exl2.checkpoint import Checkpoint

REMEDY = "use engine=torch"

# What exllamav2 reads from config.json and transformers keeps under the same name.
_SAME_NAME = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings"),
    *("n_embd", "n_head", "n_layer", "n_inner", "n_positions"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "use_qk_norm"),
    *("query_pre_attn_scalar", "attention_multiplier", "attention_bias", "mlp_bias"),
    *("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling"),
    *("embedding_multiplier", "residual_multiplier"),
    *("num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size"),
)
# transformers' name of a setting -> exllamav2's (Starcoder 2).
_OTHER_NAME = {"norm_epsilon": "layer_norm_epsilon"}
_ACTIVATIONS = {
    "silu": ("silu", "swish"),
    # Both kinds of GELU are computed with tanh (`mlp.py`, `q_mlp_activation.cuh`).
    "gelu": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
}
# Found in the kernels (`q_matrix.cu`, `q_mlp.cu`, `head_norm.cu`): other sizes compute garbage.
_INPUT_MULTIPLE = 32
_INTERMEDIATE_MULTIPLE = 64
_HEAD_NORM_MULTIPLE = 64
_LARGEST_HEAD_NORM = 256
# exllamav2 insists on the settings of a vision tower, which is never loaded here: any will do.
_TOWER: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 64},
    **{"num_attention_heads": 1, "hidden_act": "silu", "patch_size": 14, "rope_theta": 10000},
    **{"embed_dim": 64, "mlp_ratio": 1, "num_heads": 1, "depth": 1, "spatial_merge_size": 2},
    **{"spatial_patch_size": 14, "fullatt_block_indexes": [0], "window_size": 112},
}
_PREPROCESSOR: dict[str, Any] = {
    **{"image_mean": [0.5], "image_std": [0.5], "resample": 3, "rescale_factor": 1.0},
    **{"patch_size": 14, "size": {}, "temporal_patch_size": 2, "merge_size": 2},
    **{"min_pixels": 1, "max_pixels": 1},
}
# Architecture -> model_type of the tower, and the image processor that must go with it.
_VISION = {
    "LlavaForConditionalGeneration": ("pixtral", "PixtralImageProcessor"),
    "Mistral3ForConditionalGeneration": ("pixtral", "PixtralImageProcessor"),
    "Qwen2VLForConditionalGeneration": ("qwen2", "Qwen2VLImageProcessor"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2.5", "Qwen2VLImageProcessor"),
}


class Limits(NamedTuple):
    """Sizes exllamav2 allocates for."""

    tokens: int
    """Most tokens per forward."""
    length: int
    """Most positions of a sequence."""


class Prepared(NamedTuple):
    """A configuration and the folder it must be loaded from, kept until the weights are read."""

    config: Any
    folder: TemporaryDirectory[str]


def make_config(
    exllamav2: Any, checkpoint: Checkpoint, text_config: Any, limits: Limits
) -> Prepared:
    """Build exllamav2's configuration for a checkpoint.

    Args:
        exllamav2: The imported module.
        checkpoint: Opened and validated.
        text_config: transformers' config of the text model, the one the other engine runs.
        limits: What to allocate for.

    Raises:
        ModelFormatError: exllamav2 cannot compute this model, or not correctly.
    """
    with ExitStack() as stack:
        folder = TemporaryDirectory(prefix="lm_eval_exl2-", ignore_cleanup_errors=True)
        stack.enter_context(folder)
        _fill(folder.name, checkpoint, translate(checkpoint, text_config))
        config = exllamav2.ExLlamaV2Config()
        config.model_dir = folder.name
        try:
            config.prepare()
        except (AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise refusal(checkpoint, str(error).strip().removeprefix("## ")) from error
        if config.arch.arch_string != checkpoint.architecture.name:
            raise refusal(checkpoint, "it would be loaded as Llama")
        if reason := find_obstacle(checkpoint, text_config, config):
            raise refusal(checkpoint, reason)
        stack.pop_all()  # all is well: the folder is the caller's now
    # Wide batches are many rows of few tokens: only the product counts (`model.py`).
    config.max_input_len = min(limits.tokens, 2048)
    config.max_batch_size = -(-limits.tokens // config.max_input_len)
    config.max_seq_len = limits.length
    # Its Qwen 3 subtracts the mean of each head, the model does not.
    if text_config.model_type in ("qwen3", "qwen3_moe"):
        config.arch.lm.headnorm = "rmsnorm"
    # Matrices above this size always take the kernel whose sums differ from run to run.
    config.max_dq_size = max(config.max_dq_size, _largest_matrix(checkpoint, text_config))
    return Prepared(config, folder)


def translate(checkpoint: Checkpoint, text_config: Any) -> dict[str, Any]:
    """Return a config.json in the words exllamav2 reads, flat, with what transformers settled."""
    found = {name: getattr(text_config, name, None) for name in _SAME_NAME}
    for theirs, ours in _OTHER_NAME.items():
        found[ours] = found[ours] or getattr(text_config, theirs, None)
    rope: Mapping[str, Any] = getattr(text_config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    found |= {
        "architectures": [checkpoint.architecture.name],
        "tie_word_embeddings": bool(text_config.tie_word_embeddings),
        "rope_theta": rope.get("rope_theta"),
        "partial_rotary_factor": rope.get("partial_rotary_factor"),
    }
    quantization = checkpoint.config.quantization
    if "checkpoint_format" in quantization:
        found["quantization_config"] = {"checkpoint_format": quantization["checkpoint_format"]}
    if vision := _VISION.get(checkpoint.architecture.name):
        found |= {"vision_config": _TOWER | {"model_type": vision[0]}, "vision_feature_layer": 0}
    return {name: value for name, value in found.items() if value is not None}


def find_obstacle(checkpoint: Checkpoint, text_config: Any, config: Any) -> str | None:
    """Return what exllamav2 would get silently wrong about a model, None if nothing is known.

    Args:
        checkpoint: Opened and validated.
        text_config: transformers' config of the text model.
        config: exllamav2's prepared config.
    """
    arch = config.arch.lm
    activation = next(
        value
        for name in ("hidden_activation", "hidden_act", "activation_function")
        if (value := getattr(text_config, name, None)) is not None
    )
    if activation not in _ACTIVATIONS[arch.mlp_act_func]:
        return f"it computes {arch.mlp_act_func} where config.json asks for {activation}"
    if arch.is_moe and getattr(text_config, "norm_topk_prob", True) is False:
        return "it always normalizes the weights of the chosen experts (norm_topk_prob is false)"
    size = config.head_dim
    if config.use_qk_norm and (size % _HEAD_NORM_MULTIPLE or size > _LARGEST_HEAD_NORM):
        return f"head_dim is {size}, and its head norm needs 64, 128, 192 or 256"
    return None if checkpoint.kind == "unquantized" else _find_obstacle_of_kernels(config)


def _find_obstacle_of_kernels(config: Any) -> str | None:
    arch = config.arch.lm
    if arch.mlp_bias:
        return "its kernels leave biases of a quantized MLP in the wrong order"
    if arch.attention_bias_o and config.scale_depth != 1:
        return "its kernels scale the output of attention but not its bias"
    sizes = {
        "hidden_size": (config.hidden_size, _INPUT_MULTIPLE),
        "intermediate_size": (config.intermediate_size, _INTERMEDIATE_MULTIPLE),
        "heads x head_dim": (config.num_attention_heads * config.head_dim, _INPUT_MULTIPLE),
        "key-value heads x head_dim": (
            config.num_key_value_heads * config.head_dim,
            _INPUT_MULTIPLE,
        ),
    }
    for name, (size, multiple) in sizes.items():
        if size % multiple:
            return f"{name} is {size}, and its kernels need a multiple of {multiple}"
    return None


def refusal(checkpoint: Checkpoint, reason: str) -> ModelFormatError:
    """Return the error that sends a model to the other engine."""
    return ModelFormatError(
        f"{checkpoint.directory}: exllamav2 cannot run this {checkpoint.architecture.name} "
        f"correctly: {reason}; {REMEDY}"
    )


def _largest_matrix(checkpoint: Checkpoint, text_config: Any) -> int:
    """Return the elements of the largest matrix with rows padded to what a comparison needs.

    `q_gemm.cu` reconstructs a matrix if in_features <= (max_dq_size / columns / 128) * 128.
    """
    head = (text_config.hidden_size, -(-text_config.vocab_size // 32) * 32)
    sizes = [(linear.in_features, linear.columns) for linear in checkpoint.linears.values()]
    return max(-(-rows // 128) * 128 * columns for rows, columns in [head, *sizes])


def _fill(folder: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Write config.json and link the files exllamav2 looks for beside it."""
    own = Path(folder)
    (own / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if vision := _VISION.get(checkpoint.architecture.name):
        settings = _PREPROCESSOR | {"image_processor_type": vision[1]}
        (own / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for path in checkpoint.shards:
        (own / path.name).symlink_to(path.resolve())
