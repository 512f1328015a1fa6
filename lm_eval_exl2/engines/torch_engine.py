"""The torch engine: transformers runs decoded weights, one packed row of tree positions a step.

Works on CPU, MPS and CUDA without exllamav2; the oracle of the engine that uses it. How trees are
walked and targets scored is `tree_engine`.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.engines.model_config import (
    UNCHANGED,
    ConfigSettings,
    position_limit,
    text_config,
    trained_length,
)
from lm_eval_exl2.engines.packed_linear import PackedLinear
from lm_eval_exl2.engines.rounding_noise import decoder_layers
from lm_eval_exl2.engines.target_scores import HeadPart
from lm_eval_exl2.engines.threads import set_threads
from lm_eval_exl2.engines.torch_loading import load_model, resolve_device, resolve_dtype
from lm_eval_exl2.engines.tree_attention import UsingStep
from lm_eval_exl2.engines.tree_engine import TreeEngine
from lm_eval_exl2.errors import EngineMemoryError
from lm_eval_exl2.records import EngineInfo
from lm_eval_exl2.tiles import TileCost

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lm_eval_exl2.checkpoint import Checkpoint
    from lm_eval_exl2.engines.tree_attention import Step

# Of the head on a CPU: logits that stay in its cache, 8 MiB in float32.
_CPU_HEAD_WIDTH = 4096
_CPU_HEAD_ELEMENTS = 1 << 21

# An attention call costs as much as so many pairs of queries and keys, heads of total size 1: 40
# microseconds at 25 billion of them a second. A tenth to ten times of it moves speed by a few
# percent at most (benchmarks/README.md, "Other plans"), so it is not measured at load: the same
# requests give the same plan every time.
_CALL_PAIRS = 1e6


class TorchEngine(TreeEngine):
    """Runs one checkpoint with transformers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        dtype: str = "auto",
        weight_memory: str = "decoded",
        config: ConfigSettings = UNCHANGED,
        max_rows: int = 64,
        max_batch_tokens: int = 2048,
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: Opened and validated.
            device: `cpu`, `mps`, `cuda`, `cuda:N`; see `resolve_device` for the fallback.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            weight_memory: `decoded` at load; `packed` decodes at each use.
            config: How to read config.json and what to change in it.
            max_rows: Most sequences generated together.
            max_batch_tokens: Most prompt tokens per forward while generating.

        Raises:
            ModelFormatError: the checkpoint does not hold the model it claims.
            EngineMemoryError: the weights do not fit.
        """
        super().__init__(
            resolve_device(device), max_rows=max_rows, max_batch_tokens=max_batch_tokens
        )
        self._dtype = resolve_dtype(dtype, self.device)
        text = text_config(checkpoint, config)
        try:
            self.model: Any = load_model(
                checkpoint, text, self.device, self._dtype, packed=weight_memory == "packed"
            )
        except torch.OutOfMemoryError as error:
            raise EngineMemoryError(
                f"{checkpoint.directory} decoded to {self._dtype} does not fit on {self.device}; "
                "use dtype=float16 or bfloat16, or weight_memory=packed"
            ) from error
        self._config: Any = self.model.config
        self.layer_modules = decoder_layers(self.model)
        self.tile_cost = _tile_cost(self._config)
        self.info = EngineInfo(
            name="torch",
            version=str(torch.__version__),
            device=str(self.device),
            dtype=str(self._dtype).removeprefix("torch."),
            attention="tree (scaled_dot_product_attention)",
            max_length=trained_length(self._config),
            vocab_size=int(self._config.vocab_size),
            parameters=_count_parameters(self.model),
            position_limit=position_limit(self._config),
            max_batch_tokens=max_batch_tokens,
            threads=set_threads() if self.device.type == "cpu" else None,
            details=config.details,
        )

    @torch.inference_mode()
    def naive_logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """See `TreeEngine.naive_logits`: transformers' own masks and attention."""
        ids = torch.tensor([list(token_ids)], device=self.device)
        implementation = self._config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            logits = self.model(input_ids=ids, use_cache=False).logits[0].float()
        finally:
            self.model.set_attn_implementation(implementation)
        self.counts.forwarded += len(token_ids)
        return logits

    def forward(
        self,
        step: Step,
        token_ids: Sequence[int],
        positions: torch.Tensor,
        *,
        repeatable: bool = True,
    ) -> torch.Tensor:
        """See `TreeEngine.forward`; every kernel here is repeatable."""
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

    def logits(self, hidden: torch.Tensor, *, repeatable: bool = True) -> torch.Tensor:
        """See `TreeEngine.logits`."""
        return self._finished(self.model.get_output_embeddings()(hidden))

    def head_parts(self) -> Iterable[HeadPart]:
        """See `TreeEngine.head_parts`; a packed head is decoded once for all of them."""
        if self.device.type != "cpu":
            yield from super().head_parts()
            return
        head = self.model.get_output_embeddings()
        weight_VE = head.decode(self._dtype) if isinstance(head, PackedLinear) else head.weight
        rows = max(1, _CPU_HEAD_ELEMENTS // _CPU_HEAD_WIDTH)
        for first in range(0, len(weight_VE), _CPU_HEAD_WIDTH):
            part = slice(first, min(first + _CPU_HEAD_WIDTH, len(weight_VE)))
            bias = None if head.bias is None else head.bias[part]

            def logits(
                hidden_RE: torch.Tensor,
                weight: torch.Tensor = weight_VE[part],
                bias: torch.Tensor | None = bias,
            ) -> torch.Tensor:
                return self._finished(F.linear(hidden_RE, weight, bias))

            yield HeadPart(first, part.stop - first, rows, logits)

    def _finished(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the scales and caps of the architecture to logits; return them in float32."""
        if scale := getattr(self._config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scaling := getattr(self._config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        if cap := getattr(self._config, "final_logit_softcapping", None):  # Gemma 2, 3
            logits = torch.tanh(logits / cap) * cap
        return logits.float()

    def use_streams(self) -> None:
        """See `TreeEngine.use_streams`: transformers computes on the thread's own."""

    def close(self) -> None:
        """See `Engine.close`."""
        del self.model
        self.forget()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _tile_cost(config: Any) -> TileCost:
    """Return what attention by tiles costs, in pairs of all heads."""
    heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return TileCost(call=_CALL_PAIRS / (heads * head_dim), pair=1.0, merge=5.0)


def _count_parameters(model: Any) -> int:
    """Count weights, those of packed layers included."""
    packed = sum(getattr(module, "parameter_count", 0) for module in model.modules())
    return packed + sum(parameter.numel() for parameter in model.parameters())
