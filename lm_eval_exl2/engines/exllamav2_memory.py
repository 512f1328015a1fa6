"""How many tokens a forward of exllamav2 may take, from the memory that is free.

exllamav2 allocates its scratch space for the largest forward when it loads, so the budget has to
be known before. Estimates from the sizes of its buffers (`attn.py`, `mlp.py`, `linear.py` of
0.3.2) and of the keys and values a step holds; a step that still runs out is halved by the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_exl2.errors import EngineMemoryError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_exl2.checkpoint import Checkpoint

GIB = 1 << 30
_USUAL_LENGTH = 4096  # of what is kept from step to step
# Budgets that are tried, largest first: beyond 8,192 tokens a forward gains nothing.
_BUDGETS = (8192, 4096, 2048, 1024, 512, 256)
# Rows of a forward are a dimension of a CUDA grid (`rope.cu`, `head_norm.cu`).
_MOST_TOKENS = 65535
_HALF = 2  # bytes of a float16
# CUDA's own context, cuBLAS' workspace and what allocation in blocks leaves unused.
_RESERVE = 768 << 20
_LOGITS = 192 << 20  # a piece of 64 MiB in float32, its float16 original and log-softmax
# A buffer of keys and values that grows is copied: old and new exist together.
_GROWTH = 2.5


def choose_tokens(
    checkpoint: Checkpoint,
    text_config: Any,
    free: Sequence[int],
    *,
    wanted: int | None,
    length: int,
) -> int:
    """Return the token budget of a forward.

    Args:
        checkpoint: Opened and validated.
        text_config: transformers' config of the text model.
        free: Free bytes of each card.
        wanted: The user's own number; taken as it is, but refused if the weights do not fit.
        length: Longest sequence in tokens.

    Raises:
        OptionError: more than its kernels can count.
        EngineMemoryError: says how much is missing and which options help.
    """
    if wanted and wanted > _MOST_TOKENS:
        raise OptionError(f"max_batch_tokens={wanted}: exllamav2 takes at most {_MOST_TOKENS}")
    fixed = checkpoint.bytes + _RESERVE + _LOGITS + _reconstruction_bytes(checkpoint, text_config)
    fixed += 2 * _HALF * length * _head_size(text_config)  # sines and cosines
    available, cards = sum(free), sum(1 for amount in free if amount)

    def needed_for(tokens: int) -> int:
        kept = min(length, _USUAL_LENGTH) * key_value_bytes(text_config)
        return fixed + kept + cards * forward_bytes(text_config, tokens)

    fitting = [tokens for tokens in _BUDGETS if needed_for(tokens) <= available]
    tokens = wanted or max(fitting, default=_BUDGETS[-1])
    # A budget of the user's own is taken as it is; what cannot be done without is the weights.
    needed = fixed if wanted else needed_for(tokens)
    if needed > available:
        raise EngineMemoryError(
            f"{checkpoint.directory} needs about {needed / GIB:.1f} GiB, but {available / GIB:.1f} "
            f"GiB are free on {cards} card(s): {(needed - available) / GIB:.1f} GiB are missing; "
            "use gpu_split=auto with several cards, a smaller max_length, or a checkpoint of "
            "fewer bits"
        )
    return tokens


def split_evenly(free: Sequence[int]) -> list[float]:
    """Return the GiB of weights for each card that leave a like share of every card free."""
    return [max(0.0, (amount - _RESERVE) * 0.8 / GIB) for amount in free]


def key_value_bytes(text_config: Any) -> int:
    """Return the bytes of keys and values of one token in all layers, in float16."""
    heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    return 2 * _HALF * text_config.num_hidden_layers * heads * _head_size(text_config)


def forward_bytes(text_config: Any, tokens: int) -> int:
    """Return the bytes a forward takes beside the weights.

    Scratch space and activations, keys and values of its tokens, and the masks of its attention,
    one row for each query head of a key-value head.
    """
    heads = text_config.num_attention_heads
    repeats = heads // (getattr(text_config, "num_key_value_heads", None) or heads)
    masks = _HALF * repeats * tokens * tokens
    return tokens * _bytes_per_token(text_config) + masks


def _bytes_per_token(text_config: Any) -> int:
    hidden = text_config.hidden_size
    inner = getattr(text_config, "intermediate_size", None) or 4 * hidden
    heads = text_config.num_attention_heads
    attention = max(heads * _head_size(text_config), hidden)
    scratch = _HALF * max(attention, hidden + 2 * max(hidden, inner))
    activations = _HALF * (4 * hidden + 4 * attention)
    return scratch + activations + int(_GROWTH * key_value_bytes(text_config))


def _head_size(text_config: Any) -> int:
    size = getattr(text_config, "head_dim", None)
    return size or text_config.hidden_size // text_config.num_attention_heads


def _reconstruction_bytes(checkpoint: Checkpoint, text_config: Any) -> int:
    """Return the bytes of the largest matrix that is reconstructed in float16."""
    if checkpoint.kind == "unquantized":
        return 0
    head = text_config.hidden_size * text_config.vocab_size
    sizes = (linear.in_features * linear.columns for linear in checkpoint.linears.values())
    return _HALF * max([head, *sizes])
