"""What the engines that compute share: trees of positions in, scores and tokens out.

An engine of this kind knows how to forward the tokens of a step with given positions and how to
turn hidden states into logits; everything between a chunk and its scores is here. Scoring
forwards each tree position once, with the open path's keys and values carried from chunk to
chunk; the output head runs only where a target follows, in pieces of bounded memory, and
log-softmax is always float32. Knows no model library.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, cast

import torch

from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.engines.decoding import decode_rows
from lm_eval_exl2.engines.key_values import KeyValueBuffer
from lm_eval_exl2.engines.rounding_noise import noisy
from lm_eval_exl2.engines.target_scores import HeadPart, score_targets
from lm_eval_exl2.engines.tile_attention import can_tile, make_calls
from lm_eval_exl2.engines.tree_attention import (
    QUERIES_PER_BLOCK,
    Block,
    Step,
    TreeKeys,
    tree_blocks,
)
from lm_eval_exl2.errors import EngineMemoryError, ScoreError
from lm_eval_exl2.records import ChunkScores, ChunkTargets, PackedChunk, TokenCounts
from lm_eval_exl2.tiles import TileCost, cut_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from lm_eval_exl2.engines.tree_runs import Runs
    from lm_eval_exl2.records import (
        DistributionRequest,
        EngineInfo,
        GeneratedToken,
        GenerateRequest,
    )

# Logits of this many elements at a time: 64 MiB in float32.
_HEAD_ELEMENTS = 1 << 24


class TreeEngine(ABC):
    """A model that computes packed rows of tree positions."""

    info: EngineInfo
    queries_per_block = QUERIES_PER_BLOCK
    """Tokens that are answered in one attention call."""
    tile_cost = TileCost(call=2000.0, pair=1.0, merge=5.0)
    """What attention by tiles costs, where the engine has it."""
    remedy = "use dtype=float32"
    """What helps against numbers that are not finite."""
    layer_modules: Sequence[Any]
    """The module that ends each layer; its `forward` returns hidden states."""

    def __init__(self, device: torch.device, *, max_rows: int, max_batch_tokens: int) -> None:
        """Start without any keys.

        Args:
            device: Where steps are described; the model may spread over more.
            max_rows: Most sequences generated together.
            max_batch_tokens: Most prompt tokens per forward while generating.
        """
        self.device = device
        self.counts = TokenCounts()
        self._max_rows = min(max_rows, max_batch_tokens)  # a step forwards one token per row
        self._max_batch_tokens = max_batch_tokens
        self._buffer = KeyValueBuffer()
        self._keys = self.no_keys()

    # -- what an engine adds ---------------------------------------------------------------

    @abstractmethod
    def forward(
        self,
        step: Step,
        token_ids: Sequence[int],
        positions: torch.Tensor,
        *,
        repeatable: bool = True,
    ) -> torch.Tensor:
        """Forward the tokens of a step; return hidden states after the final norm (T, hidden).

        Args:
            step: What each token may see and where its keys and values go; committed on success.
            token_ids: T tokens.
            positions: Position of each in its own sequence (T,).
            repeatable: Take only kernels that give the same result every time.

        Raises:
            StepTooLargeError: out of memory; nothing was committed.
        """

    @abstractmethod
    def logits(self, hidden: torch.Tensor, *, repeatable: bool = True) -> torch.Tensor:
        """Return float32 logits (R, V) with the scales and caps of the architecture."""

    def head_parts(self) -> Iterable[HeadPart]:
        """Return the head in parts that cover the vocabulary, in pieces of bounded memory."""
        vocabulary = self.info.vocab_size
        yield HeadPart(0, vocabulary, max(1, _HEAD_ELEMENTS // vocabulary), self.logits)

    @abstractmethod
    def naive_logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return float32 logits (T, V) of one sequence, forwarded alone as an ordinary row."""

    @abstractmethod
    def close(self) -> None:
        """See `Engine.close`."""

    @abstractmethod
    def use_streams(self) -> None:
        """Make this thread compute on the streams of the model."""

    def find_runs(self, keys: TreeKeys, queries: TreeKeys) -> Runs | None:
        """Cut a chunk into runs if the engine can answer them; see `tree_runs`."""
        return None

    # -- scoring ---------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, chunk: PackedChunk) -> ChunkScores:
        """See `Engine.score`."""
        self.use_streams()
        if chunk.start == 0:
            self._buffer, self._keys = KeyValueBuffer(), self.no_keys()
        before = self._buffer.length
        hidden_TE, keys = self.forward_tree(self._buffer, self._keys, chunk)
        try:
            scores = score_targets(hidden_TE, chunk.targets, self.head_parts())
        except torch.OutOfMemoryError as error:
            self._buffer.length = before
            self.counts.forwarded -= len(chunk.token_ids)
            raise StepTooLargeError from error
        self.check_finite(scores.logprobs)
        # The last token of the chunk stays open if the next one continues below it.
        open_entries = keys.open_at(chunk.stop)
        self._buffer.keep(open_entries)
        self._keys = keys.select(open_entries)
        return scores

    def forward_tree(
        self, buffer: KeyValueBuffer, keys: TreeKeys, chunk: PackedChunk
    ) -> tuple[torch.Tensor, TreeKeys]:
        """Forward a chunk behind what a buffer holds, and commit its keys and values.

        Returns:
            Hidden states after the final norm (T, hidden size), and the entries of the buffer.

        Raises:
            StepTooLargeError: out of memory; buffer and counts are as before.
        """
        count = len(chunk.token_ids)
        own = TreeKeys(
            torch.arange(chunk.start, chunk.stop, device=self.device),
            torch.tensor(list(chunk.ends), device=self.device),
            torch.tensor(list(chunk.depths), device=self.device),
        )
        kept, keys = keys, keys.joined(own)

        def make_blocks() -> list[Block]:
            return list(tree_blocks(buffer, keys, own, self.queries_per_block))

        step = Step([(buffer, slice(0, count))], make_blocks)
        step.runs = self.find_runs(keys, own)
        if can_tile(self.device):
            kept_ends = cast("list[int]", kept.ends.tolist())
            tiles = cut_tiles(kept_ends, chunk.start, chunk.depths, chunk.ends, self.tile_cost)
            step.tiles = make_calls(tiles, buffer, keys, count)
        return self.forward(step, chunk.token_ids, own.depths), keys

    def check_finite(self, logprobs: Sequence[float]) -> None:
        """Refuse to report NaN or infinity as a score.

        Raises:
            ScoreError: says how many, where they first appeared and what may help.
        """
        bad = sum(not math.isfinite(value) for value in logprobs)
        if bad:
            where = f" ({blame})" if (blame := self.blame()) else ""
            raise ScoreError(
                f"{bad} of {len(logprobs)} log-probabilities are NaN or infinite in "
                f"{self.info.dtype} on {self.info.device}{where}; {self.remedy}, or check the "
                "checkpoint for damage"
            )

    def blame(self) -> str:
        """Return where the last forward first went wrong, as far as the engine can tell."""
        return ""

    @torch.inference_mode()
    def score_naively(self, token_ids: Sequence[int], targets: int) -> ChunkScores:
        """See `Engine.score_naively`: one ordinary row, logits everywhere."""
        logits = self.naive_logits(token_ids[:-1])[-targets:]
        wanted = torch.tensor(list(token_ids[-targets:]), device=logits.device)
        logprobs = logits.log_softmax(-1).gather(1, wanted[:, None]).squeeze(1)
        is_argmax = logits.argmax(-1) == wanted
        return ChunkScores(
            cast("list[float]", logprobs.double().tolist()), cast("list[bool]", is_argmax.tolist())
        )

    # -- whole distributions ---------------------------------------------------------------

    @torch.inference_mode()
    def distributions(self, request: DistributionRequest) -> Iterator[torch.Tensor]:
        """See `Engine.distributions`."""
        self.use_streams()
        budget = request.max_tokens or self._max_batch_tokens
        with noisy(self.layer_modules, request.noise):
            hidden_TE = self._forward_alone(request.token_ids, budget)
        wanted_TE = hidden_TE[request.positions.start : request.positions.stop]
        return self._log_softmax(wanted_TE, request.vocabulary, request.rows)

    @torch.inference_mode()
    def _log_softmax(
        self, hidden_TE: torch.Tensor, vocabulary: int, rows: int
    ) -> Iterator[torch.Tensor]:
        for first in range(0, len(hidden_TE), rows):
            logits_RV = self.logits(hidden_TE[first : first + rows])
            yield logits_RV[:, :vocabulary].log_softmax(-1)

    def _forward_alone(self, token_ids: Sequence[int], budget: int) -> torch.Tensor:
        """Forward one sequence in chunks; return its hidden states (T, E)."""
        buffer, keys, found = KeyValueBuffer(), self.no_keys(), list[torch.Tensor]()
        length, start = len(token_ids), 0
        while start < length:
            places = range(start, min(start + budget, length))
            ids = token_ids[start : places.stop]
            none = ChunkTargets([], [])
            try:
                hidden_TE, keys = self.forward_tree(
                    buffer, keys, PackedChunk(start, ids, places, [length] * len(ids), none)
                )
            except StepTooLargeError as error:
                self.counts.retried += len(ids)
                if len(ids) == 1:
                    raise EngineMemoryError(
                        f"a forward of one token after {start} does not fit into memory; use a "
                        "smaller window or a device with more memory"
                    ) from error
                budget = len(ids) // 2
                continue
            found.append(hidden_TE)
            start = places.stop
        return torch.cat(found)

    # -- generation ------------------------------------------------------------------------

    def generate(
        self, requests: Iterable[GenerateRequest | None], is_finished: Callable[[int, int], bool]
    ) -> Iterator[GeneratedToken]:
        """See `Engine.generate`."""
        return decode_rows(
            self,
            requests,
            is_finished,
            max_rows=self._max_rows,
            max_batch_tokens=self._max_batch_tokens,
        )

    def forget(self) -> None:
        """See `Engine.forget`."""
        self._buffer, self._keys = KeyValueBuffer(), self.no_keys()

    def no_keys(self) -> TreeKeys:
        """Return the entries of an empty buffer."""
        none = torch.empty(0, dtype=torch.long, device=self.device)
        return TreeKeys(none, none, none)
