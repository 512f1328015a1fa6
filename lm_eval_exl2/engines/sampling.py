"""Turns logits into the next token, in transformers' words and with its own processors.

Every request samples from a random stream of its own, so what it draws does not depend on what
runs beside it. No text, no stop strings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_exl2.errors import RequestError
from lm_eval_exl2.records import PENALTIES, WARPERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_exl2.records import GenerateRequest

# Values that switch a parameter off.
_NEUTRAL: dict[str, tuple[float | None, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "temperature": (None, 1.0),
    "top_k": (None, 0),
    "top_p": (None, 1.0),
    "min_p": (None, 0.0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}


@dataclass(slots=True)
class Sampler:
    """Chooses the tokens of one request."""

    request: GenerateRequest
    is_sampling: bool
    penalties: list[Any] = field(default_factory=list[Any])
    warpers: list[Any] = field(default_factory=list[Any])
    stream: torch.Generator | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the choice is the argmax of the raw logits."""
        return not self.is_sampling and not self.penalties and not self.request.min_new_tokens

    def choose(self, logits_V: torch.Tensor, token_ids: list[int], produced: int) -> int:
        """Return the next token.

        Args:
            logits_V: float32 logits.
            token_ids: Prompt and what has been produced so far.
            produced: How many of them were produced.
        """
        scores = logits_V.unsqueeze(0).cpu().clone()  # processors write in place
        ids = torch.tensor([token_ids])
        for penalty in self.penalties:
            scores = penalty(ids, scores)
        # Before the warpers, as in transformers: they must not keep these tokens alone.
        if produced < self.request.min_new_tokens and self.request.stop_ids:
            scores[0, list(self.request.stop_ids)] = float("-inf")
        for warper in self.warpers:
            scores = warper(ids, scores)
        if not self.is_sampling:
            return int(scores.argmax(-1))
        probabilities = scores.softmax(-1)
        return int(torch.multinomial(probabilities[0], 1, generator=self.stream))


def make_sampler(request: GenerateRequest) -> Sampler:
    """Build the sampler of a request.

    Raises:
        RequestError: a parameter is out of range.
    """
    wanted = request.sampling
    is_sampling = bool(wanted.get("do_sample"))
    penalties = _processors(wanted, PENALTIES)
    warpers = _processors(wanted, WARPERS) if is_sampling else []
    stream = None
    if is_sampling:
        stream = torch.Generator()
        stream.manual_seed(request.seed)
    return Sampler(request, is_sampling, penalties, warpers, stream)


def _processors(wanted: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    """Build the processors that are wanted and change anything."""
    return [
        _processor(name, wanted[name])
        for name in names
        if name in wanted and wanted[name] not in _NEUTRAL[name]
    ]


def _processor(name: str, value: Any) -> Any:
    import transformers as hf

    classes: Mapping[str, Any] = {
        "repetition_penalty": hf.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": hf.NoRepeatNGramLogitsProcessor,
        "temperature": hf.TemperatureLogitsWarper,
        "top_k": hf.TopKLogitsWarper,
        "top_p": hf.TopPLogitsWarper,
        "min_p": hf.MinPLogitsWarper,
        "typical_p": hf.TypicalLogitsWarper,
        "epsilon_cutoff": hf.EpsilonLogitsWarper,
        "eta_cutoff": hf.EtaLogitsWarper,
    }
    try:
        return classes[name](value)
    except (ValueError, TypeError) as error:
        raise RequestError(f"generation argument {name}={value!r}: {error}") from error
