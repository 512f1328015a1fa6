"""The nouns of the package: requests, steps and scores, as frozen records.

Token ids and positions only; no text, no tensors, no harness types.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Sampling parameters by transformers' names, in its order of application (5.x,
# `GenerationMixin._get_logits_processor`): penalties count for greedy decoding, too.
PENALTIES = ("repetition_penalty", "no_repeat_ngram_size")
WARPERS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Ask for log P(target_ids | context_ids)."""

    index: int
    """Place of the answer in the caller's list."""
    context_ids: Sequence[int]
    """At least one token to condition on."""
    target_ids: Sequence[int]
    """At least one token to score."""


@dataclass(frozen=True, slots=True)
class Score:
    """Answer to a `ScoreRequest`."""

    index: int
    logprob: float
    """Natural logarithm, summed over the target."""
    is_greedy: bool
    """Whether every target token is the most likely one at its place."""


class ChunkTargets(NamedTuple):
    """Tokens to score inside a chunk."""

    offsets: Sequence[int]
    """Positions within the chunk whose next-token distribution is wanted, ascending; a position
    that several targets follow is listed several times."""
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A run of tree positions in preorder, to be forwarded as one packed row of T tokens."""

    start: int
    """Preorder position of the first token; 0 starts a new tree."""
    token_ids: Sequence[int]
    depths: Sequence[int]
    """Position of each token in its own sequence."""
    ends: Sequence[int]
    """One past the last preorder position below each token."""
    targets: ChunkTargets

    @property
    def stop(self) -> int:
        """One past the preorder position of the last token."""
        return self.start + len(self.token_ids)


class ChunkScores(NamedTuple):
    """Log-probability and argmax flag of every target of a chunk, in the order of its targets."""

    logprobs: Sequence[float]
    is_argmax: Sequence[bool]


class RoundingNoise(NamedTuple):
    """Multiplicative noise after every layer; see `engines/rounding_noise.py`."""

    scale: float
    """Standard deviation, relative to an element."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributionRequest:
    """Ask for whole next-token distributions along one sequence."""

    token_ids: Sequence[int]
    positions: range
    """Consecutive positions; the distribution at one is of the token that follows it."""
    vocabulary: int
    """Distributions are over the token ids below this."""
    rows: int
    """Positions per piece; the last one may have fewer."""
    max_tokens: int | None = None
    """Most tokens per forward; None for the engine's own budget."""
    noise: RoundingNoise | None = None


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One token of one request, as it is produced."""

    index: int
    token_id: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Ask for a continuation of a prompt."""

    index: int
    prompt_ids: Sequence[int]
    max_new_tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Sampling parameters in transformers' words; empty for greedy decoding."""
    seed: int = 0
    """Seed of this request's own random stream; unused when decoding greedily."""
    min_new_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the text; never produced before `min_new_tokens`."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and how it computes; recorded with every result."""

    name: str
    version: str
    device: str
    dtype: str
    attention: str
    max_length: int
    """Tokens the model was made for."""
    vocab_size: int
    parameters: int
    max_batch_tokens: int = 2048
    """Tokens per forward that it has room for."""
    position_limit: int | None = None
    """Most positions it can compute at all; None where positions can be extrapolated."""
    threads: int | None = None
    """Of a CPU; None elsewhere."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings that change answers."""


@dataclass(slots=True)
class TokenCounts:
    """What was computed, counted where it is computed."""

    forwarded: int = 0
    """Positions that entered the model's layers, repeats included, padding excluded."""
    padding: int = 0
    retried: int = 0
    """Positions of steps that ran out of memory and were repeated."""
    drafted: int = 0
    """Tokens a draft model or n-grams proposed."""
    accepted: int = 0
    """Proposed tokens that were what the model itself chose."""
    batch_sizes: dict[str, int] = field(default_factory=dict[str, int])
    """Largest number of sequences per forward, by kind of request."""
