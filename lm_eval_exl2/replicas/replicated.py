"""A `Computer` that has the work done by replicas.

Cuts requests, has the units answered and sums up what was computed. Ray is imported when it is
asked for.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lm_eval_exl2.computing import Pause, no_pause
from lm_eval_exl2.errors import MissingDependencyError, ReplicaError
from lm_eval_exl2.records import TokenCounts
from lm_eval_exl2.replicas.cut import cut_generation, cut_scoring
from lm_eval_exl2.replicas.dealing import State
from lm_eval_exl2.replicas.driving import Driver
from lm_eval_exl2.replicas.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lm_eval_exl2.checkpoint.locate import Location
    from lm_eval_exl2.generation import Continuation, Ending, Prompt
    from lm_eval_exl2.options import Options
    from lm_eval_exl2.records import EngineInfo, Score, ScoreRequest
    from lm_eval_exl2.replicas.cut import Answer, Request, WorkUnit
    from lm_eval_exl2.replicas.ray_replicas import RayReplicas

# Requests that are named in an error.
_NAMED = 3


class Replicated:
    """Answers with several replicas; see `open_replicas`."""

    def __init__(
        self,
        replicas: RayReplicas,
        count: int,
        *,
        describe: Callable[[Request], str],
        limits: Limits,
    ) -> None:
        """Start replicas and wait for them.

        Args:
            replicas: How they are reached.
            count: How many.
            describe: Shows a request to a reader.
            limits: How much failing is put up with.

        Raises:
            Exl2EvalError: they do not start, or do not hold the same model.
        """
        self.replicas = replicas
        self.driver = Driver(replicas, count, limits)
        self._describe = describe
        self._count = count
        self._began_s = 0.0
        self._forwarded_before = 0
        self.driver.start()

    @property
    def info(self) -> EngineInfo:
        """See `Computer.info`; where replicas differ in memory, the least."""
        infos = [about.info for about in self.replicas.abouts.values()]
        limits = [info.position_limit for info in infos if info.position_limit is not None]
        return replace(
            infos[0],
            max_batch_tokens=min(info.max_batch_tokens for info in infos),
            position_limit=min(limits, default=None),
        )

    @property
    def counts(self) -> TokenCounts:
        """See `Computer.counts`; the sum over replicas, those that died included."""
        total = TokenCounts()
        for counts in (each for kept in self.replicas.counts.values() for each in kept):
            for name in ("forwarded", "padding", "retried", "drafted", "accepted"):
                setattr(total, name, getattr(total, name) + getattr(counts, name))
            for kind, size in counts.batch_sizes.items():
                total.batch_sizes[kind] = max(total.batch_sizes.get(kind, 0), size)
        return total

    def score(
        self, requests: Sequence[ScoreRequest], between_steps: Pause = no_pause
    ) -> Iterator[Score]:
        """See `Computer.score`.

        Raises:
            ReplicaError: requests that kill replicas, when all others have been answered.
        """
        return cast("Iterator[Score]", self._run(cut_scoring(requests), between_steps))

    def generate(
        self, prompts: Sequence[Prompt], ending: Ending, between_steps: Pause = no_pause
    ) -> Iterator[Continuation]:
        """See `Computer.generate`, and `score` for errors."""
        units = cut_generation(prompts, ending)
        return cast("Iterator[Continuation]", self._run(units, between_steps))

    def status(self) -> str:
        """See `Computer.status`: replicas at work, units, speed and time left."""
        dealer, totals = self.driver.dealer, self.driver.dealer.totals
        at_work = len(dealer.replicas(State.IDLE, State.BUSY))
        said = f"{at_work} of {self._count} replicas, {totals.finished} of {totals.units} units"
        seconds = time.monotonic() - self._began_s
        speed = (self.counts.forwarded - self._forwarded_before) / max(seconds, 1e-9)
        if totals.finished_tokens:
            left_s = seconds * (totals.tokens / totals.finished_tokens - 1)
            minutes, rest = divmod(round(left_s), 60)
            said += f", {speed:,.0f} tokens/s, {minutes}:{rest:02d} left"
        return said

    def facts(self) -> dict[str, Any]:
        """See `Computer.facts`."""
        return {
            "data_parallel_size": self._count,
            "nodes": sorted({about.node for about in self.replicas.abouts.values()}),
            "replicas_restarted": self.driver.dealer.restarts,
        }

    def close(self) -> None:
        """End the replicas."""
        self.replicas.close()

    def _run(self, units: Sequence[WorkUnit], between_steps: Pause) -> Iterator[Answer]:
        self._began_s, self._forwarded_before = time.monotonic(), self.counts.forwarded
        yield from self.driver.run(units, between_steps)
        if kept := self.driver.dealer.set_aside:
            named = "; ".join(
                f"{self._describe(request)} (the last replica: {reason})"
                for request, reason in kept[:_NAMED]
            )
            raise ReplicaError(
                f"{len(kept)} requests end every replica that takes them and have no answer; all "
                f"others are answered (and in the response cache, with --use_cache): {named}"
            )


def open_replicas(
    options: Options, location: Location, digest: str, *, describe: Callable[[Request], str]
) -> Replicated:
    """Start `options.data_parallel_size` replicas on Ray.

    Args:
        options: Of the run. Folders are looked for under the same absolute path on each node, a
            repository of the hub at the commit that was found here.
        location: Where the checkpoint is here.
        digest: Of that checkpoint.
        describe: Shows a request to a reader.

    Raises:
        MissingDependencyError: Ray is not installed.
        Exl2EvalError: replicas do not start, or do not hold the same model.
    """
    try:
        from lm_eval_exl2.replicas.ray_replicas import RayReplicas
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingDependencyError(
            f"data_parallel_size={options.data_parallel_size} needs Ray, which is not installed: "
            "pip install 'lm-eval-exl2[ray]'"
        ) from error
    folders = {
        name: str(Path(value).expanduser().absolute())
        for name in ("pretrained", "tokenizer", "draft_model", "lora")
        if isinstance(value := getattr(options, name), str) and Path(value).expanduser().is_dir()
    }
    settled = replace(options, revision=location.commit or options.revision, **folders)
    replicas = RayReplicas(settled, digest)
    return Replicated(replicas, options.data_parallel_size, describe=describe, limits=Limits())
