"""Between transformers' words and the dynamic generator's: parameters in, tokens out.

Loads nothing of exllamav2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_exl2.records import PENALTIES, WARPERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

# transformers' name -> exllamav2's, where both compute the same in the same order (temperature,
# top-k, top-p, min-p; `ext_sampling.cpp`), and the value that switches it off there.
_SETTINGS: dict[str, tuple[str, float]] = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top_k", 0),
    "top_p": ("top_p", 0.0),
    "min_p": ("min_p", 0.0),
}


GREEDY = {"token_repetition_penalty": 1.0, "temperature": 1.0, "top_k": 1, "top_p": 0.0}
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
    plain = {"token_repetition_penalty": GREEDY["token_repetition_penalty"]}
    wanted: dict[str, Any] = dict(sampling)
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    if any(wanted.get(name) not in (None, neutral[name]) for name in PENALTIES):
        return None
    if not wanted.get("do_sample"):
        return dict(GREEDY)
    if any(wanted.get(name) is not None for name in set(WARPERS) - set(_SETTINGS)):
        return None
    if wanted.get("top_p") == 0:  # to transformers the most likely token, to exllamav2 no limit
        return None
    found = plain | dict(_SETTINGS.values())
    for name, (theirs, off) in _SETTINGS.items():
        value = wanted.get(name)
        found[theirs] = off if value is None or (name == "top_p" and value >= 1.0) else value
    # Below 0.01 exllamav2 takes the most likely token; transformers refuses 0 and negative values.
    return found if found["temperature"] >= 0.01 else None


def tokens_of(result: Mapping[str, Any]) -> list[int]:
    """Return all tokens of a streaming result, those held back at the end included."""
    parts: tuple[Mapping[str, Any], ...] = (result, result.get("held") or {})
    found: list[torch.Tensor] = [part["token_ids"] for part in parts if "token_ids" in part]
    return [int(token) for tokens in found for token in tokens.flatten()]
