"""How fast prompts are answered, repeated: every repetition is logged, the first ones are not it.

Two ways of ending, both labelled: `fixed length` lets every text run to its limit and ignores the
end token, so that all checkpoints do the same work; `natural stop` ends where the model ends. Each
repetition starts without keys of earlier ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from lm_eval_exl2.bench import records
from lm_eval_exl2.bench.driver import Driver
from lm_eval_exl2.bench.journal import Journal
from lm_eval_exl2.bench.machine import Usage, metered
from lm_eval_exl2.bench.records import COMPLETE, INTERRUPTED, shifted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_exl2.bench.data import BenchPrompt
    from lm_eval_exl2.bench.records import TimedRequest
    from lm_eval_exl2.engines.base import Engine

FIXED_LENGTH: Final = "fixed length, end token ignored"
NATURAL_STOP: Final = "natural stop"
LEAST_REPETITIONS: Final = 5
WARM_UPS: Final = 1
"""Repetitions before those that count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBenchSettings:
    """How prompts are answered."""

    max_new_tokens: int
    repetitions: int = LEAST_REPETITIONS
    """Besides the warm-up."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end a text; none for the fixed length."""
    together: bool = False
    """All prompts at once, as one batch; else one after the other."""

    @property
    def ending(self) -> str:
        """What ends a text."""
        return NATURAL_STOP if self.end_ids else FIXED_LENGTH


class Median(NamedTuple):
    """A figure over repetitions."""

    median: float
    deviation: float
    """Sample standard deviation."""
    values: list[float]
    """In the order of the repetitions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """All prompts answered once."""

    batches: list[list[TimedRequest]]
    """What ran together; times in seconds since the repetition began."""
    prompt_tokens_forwarded: int
    """Fewer than the prompts have, where these share beginnings."""
    usage: Usage

    @property
    def requests(self) -> list[TimedRequest]:
        """All of them."""
        return [request for batch in self.batches for request in batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBench:
    """A prompt bench of one checkpoint and one way of ending."""

    outcome: str
    """`complete`, or `interrupted` before all repetitions were made."""
    ending: str
    together: bool
    """Whether all prompts ran as one batch; else one after the other."""
    warm_ups: list[Repetition]
    """Not part of any figure."""
    repetitions: list[Repetition]
    figures: dict[str, Median]
    """By the names of `FIGURES`; a figure that some repetition lacks is left out."""


_Measure = Callable[[Repetition], float | None]


def run_prompt_bench(
    engine: Engine,
    prompts: Sequence[BenchPrompt],
    settings: PromptBenchSettings,
    *,
    journal: Journal,
    clock: Callable[[], float] = time.perf_counter,
) -> PromptBench:
    """Answer prompts again and again.

    Args:
        engine: Answers.
        prompts: What is answered in every repetition.
        settings: How.
        journal: Gets every request of those that count.
        clock: Seconds.
    """
    warm_ups: list[Repetition] = []
    found: list[Repetition] = []
    outcome = COMPLETE
    try:
        for _ in range(WARM_UPS):
            warm_ups.append(_repeat(engine, prompts, settings, Journal(None), clock))
        for _ in range(settings.repetitions):
            found.append(_repeat(engine, prompts, settings, journal, clock))
    except KeyboardInterrupt:
        outcome = INTERRUPTED
    return PromptBench(
        outcome=outcome,
        ending=settings.ending,
        together=settings.together,
        warm_ups=warm_ups,
        repetitions=found,
        figures=figures_of(found),
    )


def _repeat(
    engine: Engine,
    prompts: Sequence[BenchPrompt],
    settings: PromptBenchSettings,
    journal: Journal,
    clock: Callable[[], float],
) -> Repetition:
    places = range(len(prompts))
    batches: list[list[TimedRequest]] = []
    forwarded = engine.counts.forwarded
    with metered(engine.info.device) as meter:
        for batch in [places] if settings.together else [[place] for place in places]:
            engine.forget()
            driver = Driver(engine, end_ids=settings.end_ids, clock=clock)
            for place in batch:
                driver.submit(place, prompts[place].token_ids, settings.max_new_tokens)
            driver.close()
            driver.run()
            batches.append(driver.requests())
            for request in batches[-1]:
                journal.add(request)
    start_s = batches[0][0].issued_s
    batches = [
        [replace(shifted(each, start_s), number=each.sample) for each in batch] for batch in batches
    ]
    produced = sum(len(each.token_ids) - 1 for batch in batches for each in batch)
    return Repetition(
        batches=batches,
        # Of the last token of a text nothing is computed.
        prompt_tokens_forwarded=engine.counts.forwarded - forwarded - produced,
        usage=meter.usage,
    )


def figures_of(repetitions: Sequence[Repetition]) -> dict[str, Median]:
    """Return median and deviation of every figure that all repetitions have."""
    found: dict[str, Median] = {}
    for name, measure in FIGURES.items():
        values = [value for each in repetitions if (value := measure(each)) is not None]
        if values and len(values) == len(repetitions):
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            found[name] = Median(statistics.median(values), deviation, values)
    return found


def _decode_rate(repetition: Repetition) -> float | None:
    tokens, seconds = 0, 0.0
    for batch in repetition.batches:
        begin_s = max(request.token_times_s[0] for request in batch)
        later = [moment for each in batch for moment in each.token_times_s if moment > begin_s]
        tokens += len(later)
        seconds += max(later, default=begin_s) - begin_s
    return tokens / seconds if seconds else None


def _prefill_rate(repetition: Repetition) -> float | None:
    waits = [
        max(each.token_times_s[0] for each in batch) - batch[0].issued_s
        for batch in repetition.batches
    ]
    return repetition.prompt_tokens_forwarded / sum(waits) if sum(waits) else None


def _median(measure: Callable[[TimedRequest], float | None]) -> _Measure:
    def of(repetition: Repetition) -> float | None:
        found = [value for each in repetition.requests if (value := measure(each)) is not None]
        return statistics.median(found) if found else None

    return of


def _energy(repetition: Repetition) -> float | None:
    card = repetition.usage.card
    return card.energy_j if card else None


FIGURES: Final[dict[str, _Measure]] = {
    # Tokens after the last prompt of a batch has its first one, per second.
    "decode_tokens_per_s": _decode_rate,
    # Prompt tokens computed per second until the last first token of a batch.
    "prefill_tokens_per_s": _prefill_rate,
    # All output tokens per second of the whole repetition.
    "total_tokens_per_s": lambda each: records.system_rate(each.requests),
    "ttft_s": _median(records.time_to_first_token),
    "tpot_s": _median(records.time_per_output_token),
    "end_to_end_s": _median(records.end_to_end),
    "output_tokens": lambda each: sum(len(request.token_ids) for request in each.requests),
    "memory_peak_bytes": lambda each: each.usage.memory_peak_bytes,
    "cpu_utilisation": lambda each: each.usage.cpu_utilisation,
    "card_memory_peak_bytes": lambda each: each.usage.card and each.usage.card.memory_peak_bytes,
    "card_utilisation": lambda each: each.usage.card and each.usage.card.utilisation,
    "energy_j": _energy,
}
