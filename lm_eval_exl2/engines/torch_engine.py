"""The torch engine: transformers runs decoded weights, one packed row of tree positions a step.

Works on CPU, MPS and CUDA without exllamav2. Scoring forwards each tree position once, with the
open path's keys and values carried from chunk to chunk; the output head runs only where a target
follows, in pieces of bounded memory, and log-softmax is always float32.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, cast

import torch

from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.engines.decoding import decode_rows
from lm_eval_exl2.engines.torch_loading import load_model, resolve_device, resolve_dtype
from lm_eval_exl2.engines.tree_attention import (
    KeyValueBuffer,
    Step,
    TreeKeys,
    UsingStep,
    tree_blocks,
)
from lm_eval_exl2.errors import EngineMemoryError, ScoreError
from lm_eval_exl2.records import ChunkScores, EngineInfo, TokenCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lm_eval_exl2.checkpoint import Checkpoint
    from lm_eval_exl2.records import GeneratedToken, GenerateRequest, PackedChunk

# Logits of this many elements at a time: 64 MiB in float32.
_HEAD_ELEMENTS = 1 << 24


class TorchEngine:
    """Runs one checkpoint with transformers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        dtype: str = "auto",
        weight_memory: str = "decoded",
        trust_remote_code: bool = False,
        max_rows: int = 32,
        max_batch_tokens: int = 2048,
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: Opened and validated.
            device: `cpu`, `mps`, `cuda`, `cuda:N`; see `resolve_device` for the fallback.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            weight_memory: `decoded` at load; `packed` decodes at each use.
            trust_remote_code: Allow config code of the checkpoint to run.
            max_rows: Most sequences generated together.
            max_batch_tokens: Most prompt tokens per forward while generating.

        Raises:
            ModelFormatError: the checkpoint does not hold the model it claims.
            EngineMemoryError: the weights do not fit.
        """
        self.device = resolve_device(device)
        self._dtype = resolve_dtype(dtype, self.device)
        try:
            self.model: Any = load_model(
                checkpoint,
                self.device,
                self._dtype,
                packed=weight_memory == "packed",
                trust_remote_code=trust_remote_code,
            )
        except torch.OutOfMemoryError as error:
            raise EngineMemoryError(
                f"{checkpoint.directory} decoded to {self._dtype} does not fit on {self.device}; "
                "use dtype=float16 or bfloat16, or weight_memory=packed"
            ) from error
        self._config: Any = self.model.config
        self._max_rows = min(max_rows, max_batch_tokens)  # a step forwards one token per row
        self._max_batch_tokens = max_batch_tokens
        self.counts = TokenCounts()
        self.info = EngineInfo(
            name="torch",
            version=str(torch.__version__),
            device=str(self.device),
            dtype=str(self._dtype).removeprefix("torch."),
            attention="tree (scaled_dot_product_attention)",
            max_length=_trained_length(self._config),
            vocab_size=int(self._config.vocab_size),
            parameters=_count_parameters(self.model),
            position_limit=_position_limit(self._config),
        )
        self._buffer = KeyValueBuffer()
        self._keys = self.no_keys()

    # -- scoring ---------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, chunk: PackedChunk) -> ChunkScores:
        """See `Engine.score`."""
        if chunk.start == 0:
            self._buffer, self._keys = KeyValueBuffer(), self.no_keys()
        hidden_TE, keys = self.forward_tree(self._buffer, self._keys, chunk)
        scores = self.score_targets(hidden_TE, chunk.targets.offsets, chunk.targets.token_ids)
        # The last token of the chunk stays open if the next one continues below it.
        open_entries = keys.open_at(chunk.stop)
        self._buffer.keep(open_entries)
        self._keys = keys.select(open_entries)
        return scores

    @torch.inference_mode()
    def score_naively(self, token_ids: Sequence[int], targets: int) -> ChunkScores:
        """See `Engine.score_naively`: transformers' own masks and attention, logits everywhere."""
        ids = torch.tensor([list(token_ids)], device=self.device)
        implementation = self._config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits[0, -targets:].float()
        finally:
            self.model.set_attn_implementation(implementation)
        self.counts.forwarded += ids.shape[1] - 1
        logprobs = logits.log_softmax(-1).gather(1, ids[0, -targets:, None]).squeeze(1)
        is_argmax = logits.argmax(-1) == ids[0, -targets:]
        return ChunkScores(logprobs.double().tolist(), is_argmax.tolist())

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
        keys = keys.joined(own)
        step = Step([(buffer, slice(0, count))], list(tree_blocks(buffer, keys, own)))
        return self.forward(step, chunk.token_ids, own.depths), keys

    def forward(
        self, step: Step, token_ids: Sequence[int], positions: torch.Tensor
    ) -> torch.Tensor:
        """Forward the tokens of a step; return hidden states after the final norm (T, hidden)."""
        ids = torch.tensor([list(token_ids)], device=self.device)
        try:
            with UsingStep(step):
                hidden = self.model.base_model(
                    input_ids=ids, position_ids=positions.unsqueeze(0), use_cache=False
                ).last_hidden_state
        except torch.OutOfMemoryError as error:
            raise StepTooLargeError from error
        step.commit()
        self.counts.forwarded += len(token_ids)
        return hidden[0]

    def score_targets(
        self, hidden_TE: torch.Tensor, offsets: Sequence[int], token_ids: Sequence[int]
    ) -> ChunkScores:
        """Score targets from hidden states, running the head only where one follows."""
        logprobs: list[float] = []
        is_argmax: list[bool] = []
        rows = max(1, _HEAD_ELEMENTS // self.info.vocab_size)
        places = sorted(set(offsets))
        row_of = {place: row for row, place in enumerate(places)}
        wanted = [(row_of[place], token) for place, token in zip(offsets, token_ids, strict=True)]
        done = 0
        for first in range(0, len(places), rows):
            last = min(first + rows, len(places))
            part = [(row - first, token) for row, token in wanted[done:] if row < last]
            done += len(part)
            index = torch.tensor(places[first:last], device=self.device)
            logits_RV = self.logits(hidden_TE.index_select(0, index))
            pairs = torch.tensor(part, device=self.device)
            chosen = logits_RV[pairs[:, 0], pairs[:, 1]]
            totals = logits_RV.logsumexp(-1)[pairs[:, 0]]
            hits = logits_RV.argmax(-1)[pairs[:, 0]] == pairs[:, 1]
            logprobs.extend(cast("list[float]", (chosen.double() - totals.double()).tolist()))
            is_argmax.extend(cast("list[bool]", hits.tolist()))
        _check_finite(logprobs, self.info)
        return ChunkScores(logprobs, is_argmax)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (R, V), with the scales and caps of the architecture."""
        logits = self.model.get_output_embeddings()(hidden)
        if scale := getattr(self._config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scaling := getattr(self._config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        if cap := getattr(self._config, "final_logit_softcapping", None):  # Gemma 2, 3
            logits = torch.tanh(logits / cap) * cap
        return logits.float()

    # -- generation ------------------------------------------------------------------------

    def generate(
        self, requests: Iterable[GenerateRequest], is_finished: Callable[[int, int], bool]
    ) -> Iterator[GeneratedToken]:
        """See `Engine.generate`."""
        return decode_rows(
            self,
            requests,
            is_finished,
            max_rows=self._max_rows,
            max_batch_tokens=self._max_batch_tokens,
        )

    def close(self) -> None:
        """See `Engine.close`."""
        del self.model
        self._buffer, self._keys = KeyValueBuffer(), self.no_keys()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def no_keys(self) -> TreeKeys:
        """Return the entries of an empty buffer."""
        none = torch.empty(0, dtype=torch.long, device=self.device)
        return TreeKeys(none, none, none)


def _count_parameters(model: Any) -> int:
    """Count weights, those of packed layers included."""
    packed = sum(getattr(module, "parameter_count", 0) for module in model.modules())
    return packed + sum(parameter.numel() for parameter in model.parameters())


def _trained_length(config: Any) -> int:
    """Return the window the model was made for, in the order of names the harness looks in."""
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    found = [value for name in names if (value := getattr(config, name, None)) is not None]
    length = int(found[0]) if found else 2048
    limit = _position_limit(config)
    return length if limit is None else min(length, limit)


def _position_limit(config: Any) -> int | None:
    """Return how many positions give the same result for every sequence.

    Learned position tables end. Long-RoPE and dynamic scaling switch frequencies for a whole
    forward by its longest sequence, so a score would depend on what else is computed with it.
    """
    if config.model_type in ("gpt2", "gpt_bigcode"):
        return int(config.n_positions)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings")
        return int(original or config.original_max_position_embeddings)
    if rope.get("rope_type") == "dynamic":
        return int(config.max_position_embeddings)
    return None


def _check_finite(logprobs: Sequence[float], info: EngineInfo) -> None:
    """Refuse to report NaN or infinity as a score."""
    # NaN is the only value unequal to itself; a log-probability of -inf is no real one either.
    bad = sum(value != value or value in (float("inf"), float("-inf")) for value in logprobs)
    if bad:
        raise ScoreError(
            f"{bad} of {len(logprobs)} log-probabilities are NaN or infinite in {info.dtype} on "
            f"{info.device}; use dtype=float32, or check the checkpoint for damage"
        )
