"""Who answers token requests: one engine in this process, or replicas that behave alike.

The adapter asks a `Computer` and need not know which. This module has the one that is here;
`replicas/replicated.py` has the other, whose replicas each hold one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval_exl2 import generation, scoring
from lm_eval_exl2.plan import Budget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lm_eval_exl2.encode import Encoder
    from lm_eval_exl2.engines.base import Engine
    from lm_eval_exl2.generation import Continuation, Ending, Prompt
    from lm_eval_exl2.options import Options
    from lm_eval_exl2.records import EngineInfo, Score, ScoreRequest, TokenCounts


Pause = Callable[[], None]
"""Called where all that is known has been given out; may raise to end the work."""


def no_pause() -> None:
    """Go on."""


class Computer(Protocol):
    """Answers token requests."""

    @property
    def info(self) -> EngineInfo:
        """What computes, and how."""
        ...

    @property
    def counts(self) -> TokenCounts:
        """What was computed so far."""
        ...

    def score(
        self, requests: Sequence[ScoreRequest], between_steps: Pause = no_pause
    ) -> Iterator[Score]:
        """Score all requests, yielding each as soon as it is known; see `scoring.score`."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], ending: Ending, between_steps: Pause = no_pause
    ) -> Iterator[Continuation]:
        """Continue all prompts, which have their seeds; see `generation.generate`."""
        ...

    def status(self) -> str:
        """Return what a progress bar should say beside requests and tokens; may be empty."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what results should record beside the engine's own facts, as JSON values."""
        ...


class OneProcess:
    """Answers with an engine in this process, the whole prefix tree at once."""

    def __init__(self, engine: Engine, encoder: Encoder, options: Options) -> None:
        """Take a loaded engine.

        Args:
            engine: Computes.
            encoder: Turns tokens into text to look for stop strings in.
            options: Say how many sequences may share a forward.
        """
        self.engine = engine
        self.budget = Budget(
            engine.info.max_batch_tokens, options.batch_size or options.max_batch_size
        )
        self._encoder = encoder

    @property
    def info(self) -> EngineInfo:
        """See `Computer.info`."""
        return self.engine.info

    @property
    def counts(self) -> TokenCounts:
        """See `Computer.counts`."""
        return self.engine.counts

    def score(
        self, requests: Sequence[ScoreRequest], between_steps: Pause = no_pause
    ) -> Iterator[Score]:
        """See `Computer.score`."""
        return scoring.score(requests, self.engine, self.budget, between_steps)

    def generate(
        self, prompts: Sequence[Prompt], ending: Ending, between_steps: Pause = no_pause
    ) -> Iterator[Continuation]:
        """See `Computer.generate`."""
        return generation.generate(prompts, self.engine, self._encoder, ending, between_steps)

    def status(self) -> str:
        """See `Computer.status`."""
        return ""

    def facts(self) -> dict[str, Any]:
        """See `Computer.facts`."""
        return {}
