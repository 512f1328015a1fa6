"""The exllamav2 engine: its CUDA kernels on the trees of `tree_engine`.

exllamav2's modules are called one by one, the tokens of a step as rows of length 1: its RoPE takes
an offset per row, so tokens may stand at any position, and everything else treats rows alike.
Attention is ours (`exllamav2_attention`). The final norm and the head run only where a target
follows. It computes in float16; what its small-batch kernels would make different from run to run
is avoided where scores are made.
"""

from __future__ import annotations

import gc
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lm_eval_exl2.checkpoint.summary import summarise
from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.engines.exllamav2_attention import KeyValueRounding, LayerAttention
from lm_eval_exl2.engines.exllamav2_generator import PagedGenerator, why_not_paged, without_own
from lm_eval_exl2.engines.exllamav2_import import exllamav2_version, import_exllamav2, quiet_stdout
from lm_eval_exl2.engines.exllamav2_loading import MEMORY_REMEDY, attention_modules, load
from lm_eval_exl2.engines.exllamav2_runs import RUN_ATTENTION, available_runs
from lm_eval_exl2.engines.exllamav2_settings import Exllamav2Settings
from lm_eval_exl2.engines.model_config import position_limit, trained_length
from lm_eval_exl2.engines.rounding_noise import last_modules
from lm_eval_exl2.engines.self_test import branch_logits, check_attention, check_causality
from lm_eval_exl2.engines.tree_attention import UsingStep
from lm_eval_exl2.engines.tree_engine import TreeEngine
from lm_eval_exl2.engines.tree_runs import find_runs
from lm_eval_exl2.errors import EngineMemoryError, OptionError, RequestError
from lm_eval_exl2.records import EngineInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lm_eval_exl2.checkpoint import Checkpoint
    from lm_eval_exl2.engines.tree_attention import Step, TreeKeys
    from lm_eval_exl2.engines.tree_runs import Runs
    from lm_eval_exl2.records import GeneratedToken, GenerateRequest

# Up to 32 rows take a kernel that adds up with float16 atomics, in any order (`q_gemm.cu`).
_REPEATABLE_ROWS = 33
# Up to 4 rows take a kernel that, with 128 experts, asks only the first row which experts it needs
# and leaves those of the others out (`q_mlp.cu`, `moe_mlp.py`).
_EXPERT_ROWS = 5


class Exllamav2Engine(TreeEngine):
    """Runs one checkpoint with exllamav2's kernels."""

    queries_per_block = 512  # on a card, few large attention calls beat many small ones
    remedy = "use engine=torch, which computes in float32 on a CPU"

    def __init__(self, checkpoint: Checkpoint, settings: Exllamav2Settings | None = None) -> None:
        """Load an opened checkpoint and test its attention.

        Raises:
            MissingDependencyError: exllamav2 does not work here.
            ModelFormatError: it cannot compute this model correctly.
            EngineMemoryError: the model does not fit.
            ScoreError: the self-test failed.
        """
        self._settings = settings = settings or Exllamav2Settings()
        self.exllamav2 = import_exllamav2()
        with quiet_stdout():
            loaded = load(self.exllamav2, checkpoint, settings.load)
        self.model: Any = loaded.model
        self.loras = loaded.loras
        self.text_config: Any = loaded.text_config
        self._positions = loaded.length
        self._head: Any = self.model.modules[self.model.head_layer_idx]
        super().__init__(
            torch.device(self._head.device()),
            max_rows=settings.max_rows,
            max_batch_tokens=loaded.tokens,
        )
        self._finite: list[torch.Tensor] = []
        config = self.model.config
        self.has_many_experts: bool = config.num_experts == 128
        """Whether a kernel for few rows leaves experts out."""
        self.attention = available_runs(self.exllamav2.attn, settings)
        run, softcap = RUN_ATTENTION.get(self.attention or ""), config.attn_logit_softcapping
        self.layer_modules = last_modules(self.model.modules)
        self.layers = [LayerAttention(m, softcap, run) for m in attention_modules(self.model)]
        self.info = EngineInfo(
            name="exllamav2",
            version=exllamav2_version(),
            device=str(self.device),
            dtype="float16",
            attention=f"tree ({self.attention or 'scaled_dot_product_attention'})",
            max_length=min(trained_length(self.text_config), loaded.length),
            vocab_size=int(self.text_config.vocab_size),
            parameters=summarise(checkpoint).parameters,
            position_limit=position_limit(self.text_config),
            max_batch_tokens=loaded.tokens,
            details=settings.details,
        )
        self.use_streams()
        try:
            self._test_itself()
        except (torch.OutOfMemoryError, StepTooLargeError) as error:
            raise EngineMemoryError(
                f"{checkpoint.directory} leaves no room for a forward; {MEMORY_REMEDY}"
            ) from error
        self._paged: PagedGenerator | None = None
        self._not_paged = why_not_paged(self)
        if self._not_paged is not None and (settings.draft is not None or settings.ngram_draft):
            raise OptionError(
                f"drafting needs paged attention, and {self._not_paged}; leave it out"
            )

    def _test_itself(self) -> None:
        """Refuse to go on if attention is not what it should be; see `self_test`."""
        check_attention(self.layers, self.device, self.attention)
        promised, self._positions = self._positions, self.model.config.max_seq_len
        longest = self.longest_row
        check_causality(self.naive_logits, partial(branch_logits, self), self.info, longest)
        self._positions = promised
        self.counts.forwarded = self.counts.padding = 0
        # Rounding makes small differences large, so it comes after that test.
        if self._settings.cache_mode != "FP16":
            mode = self._settings.cache_mode
            rounding = KeyValueRounding(self.exllamav2, self.model, mode, self._room)
            for layer in self.layers:
                layer.rounding = rounding
            check_attention(self.layers, self.device, self.attention)

    # -- forwards --------------------------------------------------------------------------

    def forward(
        self,
        step: Step,
        token_ids: Sequence[int],
        positions: torch.Tensor,
        *,
        repeatable: bool = True,
    ) -> torch.Tensor:
        """See `TreeEngine.forward`."""
        count = len(token_ids)
        self.check_position(int(positions.max()))
        padding = max(0, self._least_rows(repeatable=repeatable) - count)
        ids = torch.tensor([*token_ids, *([0] * padding)])[:, None]
        offsets = F.pad(positions.to("cpu", torch.int32), (0, padding))[:, None]
        try:
            with UsingStep(step):
                hidden = self._run(ids, offsets, watch=repeatable)
        except torch.OutOfMemoryError as error:
            raise StepTooLargeError from error
        step.commit()
        self.counts.forwarded += count
        self.counts.padding += padding
        return hidden[:count, 0]

    @property
    def _room(self) -> int:
        """Rows that kernels have scratch space for."""
        return self.model.config.max_input_len * self.model.config.max_batch_size

    @property
    def longest_row(self) -> int:
        """Most tokens that can be forwarded as one ordinary row."""
        return min(self._positions, self._room)

    def _least_rows(self, *, repeatable: bool) -> int:
        """Return how many rows a forward must have at least; the rest is padding."""
        if repeatable:
            return _REPEATABLE_ROWS
        return _EXPERT_ROWS if self.has_many_experts else 1

    def check_position(self, last: int) -> None:
        """Refuse to read past the tables of positions, which no kernel checks.

        Raises:
            RequestError: the position is not in them.
        """
        if last >= self._positions:
            raise RequestError(
                f"position {last} is beyond the {self._positions} positions that were loaded; use "
                "a larger max_length"
            )

    def _run(
        self, ids_BQ: torch.Tensor, offsets_B1: torch.Tensor | None = None, *, watch: bool = False
    ) -> torch.Tensor:
        """Run all modules up to the final norm; return its output (B, Q, hidden size)."""
        attention: Any = self.exllamav2.attn.ExLlamaV2Attention
        params = attention.Params(*ids_BQ.shape, 0, None, offsets_B1)
        move: Any = self.exllamav2.compat.safe_move_tensor
        state: Any = ids_BQ
        self._finite = []
        for module in self.model.modules[: self.model.head_layer_idx]:
            if module.device_idx is not None and module.device_idx >= 0:
                state = move(state, module.device_idx)
            state = module.forward(
                state, cache=None, attn_params=params, past_len=0, loras=self.loras
            )
            if watch:
                self._finite.append(torch.isfinite(state).all())
        return state

    def logits(self, hidden: torch.Tensor, *, repeatable: bool = True) -> torch.Tensor:
        """See `TreeEngine.logits`."""
        count = hidden.shape[0]
        if repeatable and count < _REPEATABLE_ROWS:
            hidden = F.pad(hidden, (0, 0, 0, _REPEATABLE_ROWS - count))
        logits = self._head.forward(hidden.contiguous(), loras=self.loras)
        # What lies beyond the vocabulary is padding of the matrix.
        logits = logits[:count, : self.info.vocab_size].float()
        if cap := self.model.config.final_logit_softcapping:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.inference_mode()
    def naive_logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """See `TreeEngine.naive_logits`: tokens at the positions they come in."""
        count = len(token_ids)
        if count > self._room:
            raise EngineMemoryError(
                f"{count} tokens in one row are more than max_batch_tokens={self._room}; raise it"
            )
        self.check_position(count - 1)
        # Behind the end nothing is seen: causal attention makes this padding harmless.
        padding = max(0, _REPEATABLE_ROWS - count)
        padding = padding if count + padding <= self.model.config.max_seq_len else 0
        self.use_streams()
        hidden = self._run(torch.tensor([[*token_ids, *([0] * padding)]]))
        self.counts.forwarded += count
        return self.logits(hidden[0, :count])

    def blame(self) -> str:
        """Return where the last forward first became NaN or infinite."""
        if not self._finite:  # nobody watched
            return ""
        for module, is_finite in zip(self.model.modules, self._finite, strict=False):
            if not bool(is_finite):
                return f"first in {module.name} of {module.key}"
        return "first in the output head"

    def find_runs(self, keys: TreeKeys, queries: TreeKeys) -> Runs | None:
        """See `TreeEngine.find_runs`."""
        return find_runs(keys, queries) if self.attention else None

    def use_streams(self) -> None:
        """See `TreeEngine.use_streams`: exllamav2's streams, so that nothing is read too early."""
        self.exllamav2.device.set_device_streams()

    # -- generation ------------------------------------------------------------------------

    def generate(
        self, requests: Iterable[GenerateRequest | None], is_finished: Callable[[int, int], bool]
    ) -> Iterator[GeneratedToken]:
        """See `Engine.generate`."""
        self.use_streams()
        if self._not_paged is not None:
            yield from self.decode(requests, is_finished)
            return
        own: list[GenerateRequest] = []
        paged = without_own(requests, own)
        if (first := next(paged, None)) is not None:
            self._paged = self._paged or PagedGenerator(self, self._settings)
            yield from self._paged.generate(chain([first], paged), is_finished)
        if own:
            self._close_pages()
            yield from self.decode(own, is_finished)

    def decode(
        self, requests: Iterable[GenerateRequest | None], is_finished: Callable[[int, int], bool]
    ) -> Iterator[GeneratedToken]:
        """Continue prompts with our own decoding, whatever else is there."""
        return super().generate(requests, is_finished)

    def forget(self) -> None:
        """See `Engine.forget`."""
        super().forget()
        if self._paged is not None:
            self._paged.forget()

    def _close_pages(self) -> None:
        """Give back the memory of the paged generator, which takes most of it."""
        if self._paged is not None:
            self._paged.close()
            self._paged = None

    def close(self) -> None:
        """See `Engine.close`."""
        self._close_pages()
        self.forget()
        self.layers = []
        for lora in self.loras or []:
            lora.unload()
        self.model.unload()
        del self.model, self._head
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
