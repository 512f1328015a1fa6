"""What a user may say about the exllamav2 engine, in its own words; no torch, no checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.checkpoint.files import digest_files
from lm_eval_exl2.engines.model_config import ConfigSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lm_eval_exl2.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What a user may say about loading."""

    device: int = 0
    """Number of the first card."""
    max_batch_tokens: int | None = None
    """Tokens per forward; None finds what fits."""
    max_length: int | None = None
    """Positions to allocate for; None for what the model was made for."""
    gpu_split: str | Sequence[float] | None = None
    """GiB of weights per card, `auto`, or None for one card."""
    config: ConfigSettings = field(default_factory=ConfigSettings)
    lora: Path | None = None
    """Folder of an adapter."""
    spare_positions: int = 0
    """Positions beyond the window that drafts may reach."""


@dataclass(frozen=True, slots=True)
class Exllamav2Settings:
    """What a user may say about this engine."""

    load: LoadSettings = field(default_factory=LoadSettings)
    max_rows: int = 32
    """Most sequences generated together."""
    no_flash_attn: bool = False
    no_xformers: bool = False
    cache_mode: str = "FP16"
    """How keys and values are kept: FP16, or rounded as Q8, Q6 or Q4."""
    cache_size: int | None = None
    """Tokens the paged generator keeps keys and values of; None for what fits."""
    draft: Checkpoint | None = None
    """Checkpoint that proposes tokens."""
    ngram_draft: bool = False
    """Propose tokens by repeating what the text said before."""

    @property
    def details(self) -> dict[str, Any]:
        """What of it results should carry, as JSON values."""
        found: dict[str, Any] = {
            "cache_mode": self.cache_mode,
            "gpu_split": self.load.gpu_split,
            "lora": None if self.load.lora is None else str(self.load.lora),
            "draft_model": None if self.draft is None else str(self.draft.directory),
            "ngram_draft": self.ngram_draft or None,
            **self.load.config.details,
        }
        if self.load.lora is not None:  # scores depend on what is in the folder, not on its name
            found["lora_digest"] = digest_files(self.load.lora.glob("adapter_*"))
        return {name: value for name, value in found.items() if value is not None}
