"""Between transformers' words and the dynamic generator's: parameters in, tokens out.

Loads nothing of exllamav2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_exl2.records import PENALTIES, WARPERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

# Parameters that mean the same to both, and the value that switches each off. Not among them are
# top-k and top-p: exllamav2 drops the token whose probability reaches top-p, which transformers
# keeps, and its top-k sometimes keeps one token more (`cpp/sampling.cpp`; its compiled sampler gave
# tokens probabilities up to 0.39 away from transformers').
_SAME_MEANING = {"temperature": 1.0, "min_p": 0.0}
_NEUTRAL: dict[str, tuple[float | None, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "top_k": (None, 0),
    "top_p": (None, 1.0),
}

GREEDY: dict[str, Any] = {
    "token_repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 1,
    "top_p": 0.0,
}
"""exllamav2's settings for the most likely token."""


class TokenTable:
    """Stands in for exllamav2's tokenizer: as many tokens, none of them with any text."""

    eos_token_id = -1

    def __init__(self, vocab_size: int) -> None:
        self._pieces = [""] * vocab_size

    def get_vocab_size(self) -> int:
        """Return the number of tokens that may be produced."""
        return len(self._pieces)

    def get_id_to_piece_list(self, _include_special_tokens: bool = False) -> list[str]:
        """Return the text of every token: none, so nothing is ever held back."""
        return self._pieces


def sampler_settings(sampling: Mapping[str, Any]) -> dict[str, Any] | None:
    """Translate sampling parameters, or return None where exllamav2 would sample otherwise.

    exllamav2's own defaults are temperature 0.8, top-k 50, top-p 0.8 and a repetition penalty of
    1.025, so everything is said.

    Args:
        sampling: transformers' names and values; empty for greedy decoding.
    """

    def asks_for(names: Iterable[str]) -> bool:
        return any(sampling.get(name) not in _NEUTRAL.get(name, (None,)) for name in names)

    if asks_for(PENALTIES):
        return None
    if not sampling.get("do_sample"):
        return dict(GREEDY)
    if asks_for(set(WARPERS) - set(_SAME_MEANING)):
        return None
    given = {name: sampling.get(name) for name in _SAME_MEANING}
    found = GREEDY | {"top_k": 0} | _SAME_MEANING
    found |= {name: value for name, value in given.items() if value is not None}
    # Below 0.01 exllamav2 takes the most likely token; transformers refuses 0 and negative values.
    return found if found["temperature"] >= 0.01 else None


def tokens_of(result: Mapping[str, Any]) -> list[int]:
    """Return all tokens of a streaming result, those held back at the end included."""
    parts: tuple[Mapping[str, Any], ...] = (result, result.get("held") or {})
    found: list[torch.Tensor] = [part["token_ids"] for part in parts if "token_ids" in part]
    return [int(token) for tokens in found for token in tokens.flatten()]
