"""Who answers token requests: one engine in this process, or replicas that behave alike.

The adapter asks a `Computer` and need not know which. This module has the one that is here;
`replicas/replicated.py` has the other, whose replicas each hold one of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval_exl2 import generation, scoring
from lm_eval_exl2.engines.select import open_engine
from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.plan import Budget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lm_eval_exl2.checkpoint import Checkpoint
    from lm_eval_exl2.checkpoint.locate import Location
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


def open_computer(
    options: Options,
    checkpoint: Checkpoint,
    encoder: Encoder,
    location: Location,
    digest: Callable[[], str],
) -> Computer:
    """Load the model here, or have `data_parallel_size` replicas do so.

    Args:
        options: Of the run.
        checkpoint: Opened.
        encoder: Its tokenizer's.
        location: Where the checkpoint is here.
        digest: Of the checkpoint; read only where replicas must have the same one.

    Raises:
        Exl2EvalError: in one line, why the model cannot be loaded.
    """
    if options.data_parallel_size == 1:
        return OneProcess(open_engine(checkpoint, options), encoder, options)
    from lm_eval_exl2.replicas.replicated import open_replicas

    return open_replicas(
        options, location, digest(), describe=lambda request: describe_request(request, encoder)
    )


def describe_request(request: ScoreRequest | Prompt, encoder: Encoder) -> str:
    """Show a request to a reader: its number, its length and its end."""
    if isinstance(request, generation.Prompt):
        ids = request.token_ids
    else:
        ids = [*request.context_ids, *request.target_ids]
    text = encoder.decode(ids[-16:])
    return f"request {request.index}, {len(ids)} tokens ending in {text!r}"


def refuse_several_processes() -> None:
    """Refuse to do the same work in every process of `accelerate launch` or `torchrun`.

    The harness draws other few-shot examples on every rank, so splitting documents over ranks
    would also change scores.

    Raises:
        OptionError: a launcher has started several processes.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "0", "1"):
        raise OptionError(
            f"started by a launcher with {processes} processes, but exl2 runs in one; start "
            f"lm_eval without the launcher and give data_parallel_size={processes}"
        )
