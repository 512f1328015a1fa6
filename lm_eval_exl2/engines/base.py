"""What every engine offers, and the error that makes a caller try a smaller step.

Engines know tensors and memory. They know nothing of requests' meaning, text or the harness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import torch

    from lm_eval_exl2.records import (
        ChunkScores,
        DistributionRequest,
        EngineInfo,
        GeneratedToken,
        GenerateRequest,
        PackedChunk,
        TokenCounts,
    )


class StepTooLargeError(Exception):
    """A step ran out of memory; nothing was kept of it, so a smaller one may follow."""


class Engine(Protocol):
    """A loaded model that answers steps."""

    info: EngineInfo
    counts: TokenCounts

    def score(self, chunk: PackedChunk) -> ChunkScores:
        """Forward one chunk and score its targets.

        Chunks of a tree come in preorder without gaps; the keys and values that later chunks
        need are kept until a chunk with start 0 begins another tree.

        Raises:
            StepTooLargeError: out of memory; the chunk may be cut smaller and repeated.
            ScoreError: the model produced NaN or infinity.
        """
        ...

    def score_naively(self, token_ids: Sequence[int], targets: int) -> ChunkScores:
        """Forward one whole sequence alone and score its last tokens: the slow twin of `score`.

        Args:
            token_ids: Context and target.
            targets: How many of the last tokens to score.
        """
        ...

    def distributions(self, request: DistributionRequest) -> Iterator[torch.Tensor]:
        """Forward one sequence and give whole next-token distributions.

        The sequence is forwarded at the call; the output head runs as pieces are taken.

        Returns:
            Float32 log-probabilities (positions of the piece, vocabulary), piece by piece.
            Values that are not finite are given as they are.

        Raises:
            EngineMemoryError: not even one token fits.
        """
        ...

    def generate(
        self, requests: Iterable[GenerateRequest | None], is_finished: Callable[[int, int], bool]
    ) -> Iterator[GeneratedToken]:
        """Continue prompts, yielding tokens as they are produced.

        Args:
            requests: Pulled as room becomes free; similar prompts should be neighbours. None says
                that no request waits now and more may come: go on with what is being continued
                and ask again. It may only be given while something is.
            is_finished: Called with (index, token id) for every token, in order; True ends that
                request.
        """
        ...

    def forget(self) -> None:
        """Drop keys and values of earlier requests, so that none serves a later one."""
        ...

    def close(self) -> None:
        """Free memory. The engine cannot be used afterwards."""
        ...
