"""An engine without a model: next-token distributions computed from the prefix by hashing.

For tests of everything above the engines and for dry runs (`pretrained` weights are never read).
It keeps the same promises as a real engine and checks that callers keep theirs: chunks arrive in
preorder without gaps, and every token's prefix is known when it is forwarded.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.records import (
    ChunkScores,
    EngineInfo,
    GeneratedToken,
    GenerateRequest,
    PackedChunk,
    TokenCounts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import torch

    from lm_eval_exl2.records import DistributionRequest


def scripted_logits(prefix: Sequence[int], vocab_size: int) -> list[float]:
    """Return pseudo-random logits that depend on the whole prefix and nothing else."""
    seed = hashlib.sha256(",".join(map(str, prefix)).encode()).digest()
    stream = hashlib.shake_256(seed).digest(2 * vocab_size)
    return [
        int.from_bytes(stream[2 * token : 2 * token + 2], "big") / 8192
        for token in range(vocab_size)
    ]


class ScriptedEngine:
    """Answers like a model whose logits are `scripted_logits`."""

    def __init__(
        self, *, vocab_size: int = 8, max_length: int = 64, capacity: int | None = None
    ) -> None:
        """Make an engine.

        Args:
            vocab_size: Number of token ids.
            max_length: Longest sequence.
            capacity: Most tokens per step before it reports to be out of memory.
        """
        self.info = EngineInfo(
            "scripted", "1", "none", "float64", "none", max_length, vocab_size, 0
        )
        self.counts = TokenCounts()
        self._capacity = capacity
        self._path: list[tuple[int, int]] = []  # (end, token) of the open ancestors
        self._expected_start = 0

    def score(self, chunk: PackedChunk) -> ChunkScores:
        """See `Engine.score`."""
        if self._capacity is not None and len(chunk.token_ids) > self._capacity:
            raise StepTooLargeError
        if chunk.start == 0:
            self._path, self._expected_start = [], 0
        if chunk.start != self._expected_start:
            raise AssertionError(f"chunk starts at {chunk.start}, not {self._expected_start}")
        wanted: dict[int, list[int]] = {offset: [] for offset in chunk.targets.offsets}
        for offset in range(len(chunk.token_ids)):
            self._advance(chunk, offset)
            if offset in wanted:
                wanted[offset] = [token for _, token in self._path]
        self._expected_start = chunk.stop
        self.counts.forwarded += len(chunk.token_ids)
        pairs = [
            self._score(wanted[offset], token)
            for offset, token in zip(chunk.targets.offsets, chunk.targets.token_ids, strict=True)
        ]
        return ChunkScores([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def score_naively(self, token_ids: Sequence[int], targets: int) -> ChunkScores:
        """See `Engine.score_naively`."""
        first = len(token_ids) - targets
        pairs = [
            self._score(token_ids[:place], token_ids[place])
            for place in range(first, len(token_ids))
        ]
        return ChunkScores([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def distributions(self, request: DistributionRequest) -> Iterator[torch.Tensor]:
        """See `Engine.distributions`; noise multiplies the logits, its only layer."""
        import torch

        ids = request.token_ids
        rows = [scripted_logits(ids[: p + 1], self.info.vocab_size) for p in request.positions]
        self.counts.forwarded += len(ids)
        logits = torch.tensor(rows, dtype=torch.float32)
        if request.noise is not None:
            generator = torch.Generator().manual_seed(request.noise.seed)
            logits *= 1.0 + request.noise.scale * torch.randn(logits.shape, generator=generator)
        logprobs = logits[:, : request.vocabulary].log_softmax(-1)
        starts = range(0, len(rows), request.rows)
        return (logprobs[start : start + request.rows] for start in starts)

    def generate(
        self, requests: Iterable[GenerateRequest | None], is_finished: Callable[[int, int], bool]
    ) -> Iterator[GeneratedToken]:
        """See `Engine.generate`; greedy, one request after the other."""
        for request in requests:
            if request is None:
                raise AssertionError("no request was being continued, so None may not come")
            ids = list(request.prompt_ids)
            for number in range(request.max_new_tokens):
                logits = scripted_logits(ids, self.info.vocab_size)
                self.counts.forwarded += 1 if number else len(ids)
                token = logits.index(max(logits))
                ids.append(token)
                last = number + 1 == request.max_new_tokens
                last = is_finished(request.index, token) or last
                yield GeneratedToken(request.index, token, last)
                if last:
                    break

    def forget(self) -> None:
        """Do nothing: no keys or values are kept."""

    def close(self) -> None:
        """Do nothing: there is no memory to free."""

    def _advance(self, chunk: PackedChunk, offset: int) -> None:
        """Move to a token: close the subtrees that ended, check that its ancestors are open."""
        while self._path and self._path[-1][0] <= chunk.start + offset:
            self._path.pop()
        if len(self._path) != chunk.depths[offset]:
            raise AssertionError(f"position {chunk.start + offset} lacks some of its ancestors")
        self._path.append((chunk.ends[offset], chunk.token_ids[offset]))

    def _score(self, prefix: Sequence[int], token: int) -> tuple[float, bool]:
        logits = scripted_logits(prefix, self.info.vocab_size)
        total = math.log(math.fsum(math.exp(value) for value in logits))
        return logits[token] - total, logits.index(max(logits)) == token
