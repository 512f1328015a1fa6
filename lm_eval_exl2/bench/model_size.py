"""A checkpoint's headers -> the bytes and operations that a token costs. Reads no weight.

Counted for one decoding step of a batch: the bytes of every weight once (of an embedding that is
not the head as well, one row per sequence), the keys and values of each sequence once. For a
prompt: two operations per weight of a linear layer and token, the head for the last token only,
and attention over the tokens before. Not counted: activations, norms, softmax, and windows that
let a layer see less. Experts of a mixture count as often as uniform routing would choose them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lm_eval_exl2.checkpoint.naming import HEAD, layer_index
from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval_exl2.checkpoint.config import CheckpointConfig
    from lm_eval_exl2.checkpoint.files import StoredTensor
    from lm_eval_exl2.checkpoint.reader import Checkpoint

_BYTES: Final = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
_TOKENS, _POSITIONS = ("embed_tokens", "wte"), ("wpe",)
_KEY_AND_VALUE: Final = 2
_MULTIPLY_AND_ADD: Final = 2
_QUERIES_BY_KEYS_AND_WEIGHTS_BY_VALUES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What a checkpoint costs, in bytes and weights."""

    dense_bytes: float
    """What each step reads whole: layers without experts, norms, head."""
    expert_bytes: float = 0.0
    """Of all experts."""
    embedding_row_bytes: float
    """Of one token's row in each embedding."""
    dense_weights: int
    """Of the linear layers, without experts and head."""
    expert_weights: int = 0
    head_weights: int
    expert_share: float = 1.0
    """Experts that a token meets, over all of them."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def kv_bytes_per_token(self, value_bytes: float) -> float:
        """Bytes of one token's keys and values in all layers.

        Args:
            value_bytes: Of one number; 2 in float16.
        """
        return _KEY_AND_VALUE * self.layers * self.kv_heads * self.head_dim * value_bytes

    def bytes_per_step(self, batch_size: int, length: int, *, value_bytes: float = 2.0) -> float:
        """Bytes read by one decoding step.

        Args:
            batch_size: Sequences that get one token each.
            length: Tokens that each of them sees.
            value_bytes: Of one number in the cache.
        """
        each = self.embedding_row_bytes + length * self.kv_bytes_per_token(value_bytes)
        return self._weight_bytes(batch_size) + batch_size * each

    def operations_per_step(self, batch_size: int, length: int) -> float:
        """Floating-point operations of one decoding step; arguments as for the bytes."""
        linear = self._weights_per_token() + self.head_weights
        return batch_size * (_MULTIPLY_AND_ADD * linear + self._attention(length))

    def bytes_of_prompt(self, tokens: int, *, value_bytes: float = 2.0) -> float:
        """Bytes moved for one prompt that is computed at once: weights, its keys and values."""
        each = self.embedding_row_bytes + self.kv_bytes_per_token(value_bytes)
        return self._weight_bytes(tokens) + tokens * each

    def operations_of_prompt(self, tokens: int) -> float:
        """Floating-point operations of one prompt: token t attends to t tokens, itself included."""
        linear = tokens * self._weights_per_token() + self.head_weights
        return _MULTIPLY_AND_ADD * linear + self._attention(tokens * (tokens + 1) // 2)

    def _weight_bytes(self, tokens: int) -> float:
        met = 1 - (1 - self.expert_share) ** tokens
        return self.dense_bytes + met * self.expert_bytes

    def _weights_per_token(self) -> float:
        return self.dense_weights + self.expert_share * self.expert_weights

    def _attention(self, pairs: int) -> int:
        """Operations of attention over pairs of a query and a key."""
        products = _QUERIES_BY_KEYS_AND_WEIGHTS_BY_VALUES * _MULTIPLY_AND_ADD
        return products * self.layers * self.heads * self.head_dim * pairs


def size_of_model(checkpoint: Checkpoint, *, weight_bytes: float | None = None) -> ModelSize:
    """Count a checkpoint.

    Args:
        checkpoint: Opened; only its headers are used.
        weight_bytes: Bytes of one number as an engine holds it in memory, such as 2 where it
            decodes to float16; None counts what is stored.

    Raises:
        ModelFormatError: A mixture of experts does not say how many a token meets.
    """
    parts = _parts(checkpoint)
    if weight_bytes is not None:
        parts = [part.held(weight_bytes) for part in parts]
    heads = [part for part in parts if part.place == "head"]
    tables = [part for part in parts if part.place in ("tokens", "positions")]
    if not checkpoint.has_own_head:
        heads = [part for part in parts if part.place == "tokens"]
    dense = [part for part in parts if part.place == "dense"]
    experts = [part for part in parts if part.place == "expert"]
    sizes = checkpoint.config.sizes
    return ModelSize(
        dense_bytes=_bytes(dense) + _bytes(heads),
        expert_bytes=_bytes(experts),
        embedding_row_bytes=sum(part.bytes / part.rows for part in tables),
        dense_weights=_weights(dense),
        expert_weights=_weights(experts),
        head_weights=_weights(heads),
        expert_share=_expert_share(checkpoint.config) if experts else 1.0,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A linear layer or any other tensor."""

    place: str
    """"tokens", "positions", "head", "expert" or "dense"."""
    bytes: float
    numbers: int
    """Numbers it stands for, biases included."""
    weights: int
    """Those that are multiplied with each token."""
    rows: int

    def held(self, weight_bytes: float) -> _Part:
        return _Part(self.place, self.numbers * weight_bytes, self.numbers, self.weights, self.rows)


def _parts(checkpoint: Checkpoint) -> list[_Part]:
    return [*_quantized(checkpoint), *_plain(checkpoint)]


def _quantized(checkpoint: Checkpoint) -> Iterator[_Part]:
    for linear in checkpoint.linears.values():
        weights = linear.in_features * linear.out_features
        numbers = weights + ("bias" in linear.tensors) * linear.out_features
        stored = sum(map(_stored, linear.tensors.values()))
        module = checkpoint.architecture.text_name(linear.name)
        yield _Part(_place(module), stored, numbers, weights, linear.out_features)


def _plain(checkpoint: Checkpoint) -> Iterator[_Part]:
    for name, tensor in checkpoint.plain.items():
        module = checkpoint.architecture.text_name(name).removesuffix(".weight")
        # Norms of queries and keys may have a row per head; no token is multiplied by them.
        is_linear = len(tensor.shape) > 1 and not module.endswith("norm")
        weights = tensor.elements if is_linear else 0
        place = _place(module.removesuffix(".bias"))
        rows = tensor.shape[0] if tensor.shape else 1
        yield _Part(place, _stored(tensor), tensor.elements, weights, rows)


def _place(module: str) -> str:
    last = module.rpartition(".")[2]
    if layer_index(module) is None and last in _TOKENS:
        return "tokens"
    if layer_index(module) is None and last in _POSITIONS:
        return "positions"
    if last == HEAD:
        return "head"
    return "expert" if ".experts." in module else "dense"


def _stored(tensor: StoredTensor) -> int:
    return tensor.elements * _BYTES[tensor.dtype]


def _bytes(parts: list[_Part]) -> float:
    return sum(part.bytes for part in parts)


def _weights(parts: list[_Part]) -> int:
    return sum(part.weights for part in parts)


def _expert_share(config: CheckpointConfig) -> float:
    chosen = config.text.get("num_experts_per_tok")
    if not isinstance(chosen, int) or not 0 < chosen <= config.sizes.experts:
        raise ModelFormatError(
            f"num_experts_per_tok is {chosen!r:.40}, expected how many of the "
            f"{config.sizes.experts} experts a token meets"
        )
    return chosen / config.sizes.experts
