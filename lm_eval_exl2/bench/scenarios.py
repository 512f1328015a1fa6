"""One LoadGen scenario against one engine: what it asks, what came of it, LoadGen's own verdict.

Offline (everything at once), SingleStream (one after the other), Server (Poisson arrivals, limits
on latencies), MultiStream (several at a time). Shorter than MLPerf demands and never submitted:
no run of this is a valid MLPerf result.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lm_eval_exl2.bench import loadgen
from lm_eval_exl2.bench.driver import Driver
from lm_eval_exl2.bench.early_stopping import Verdict, judge
from lm_eval_exl2.bench.loadgen_log import (
    LoadGenError,
    LoadGenLog,
    LoadGenSample,
    LoadGenSummary,
    read_log,
)
from lm_eval_exl2.bench.loadgen_process import LoadGenProcess
from lm_eval_exl2.bench.machine import Usage, metered
from lm_eval_exl2.bench.records import (
    COMPLETE,
    FAILED,
    INTERRUPTED,
    TimedRequest,
    shifted,
    time_per_output_token,
    time_to_first_token,
)
from lm_eval_exl2.bench.summary import LoadSummary, summarise
from lm_eval_exl2.errors import Exl2EvalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lm_eval_exl2.bench.data import BenchPrompt
    from lm_eval_exl2.bench.journal import Journal
    from lm_eval_exl2.bench.profiles import Profile
    from lm_eval_exl2.engines.base import Engine

GIVEN_UP: Final = "given up"
"""Of a run beyond capacity, or that simply takes too long; followed by the limit."""
_KIND: Final = "generate_until"
OFFICIAL_S: Final = 600.0
"""Least duration of a valid MLPerf run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioSettings:
    """What is asked for."""

    scenario: str
    """`Offline`, `SingleStream`, `Server` or `MultiStream`."""
    profile: Profile
    max_new_tokens: int
    duration_s: float
    """Least duration; Offline answers every prompt once instead, however long it takes."""
    give_up_s: float
    """A run that takes longer is ended; what has not finished is marked."""
    qps: float = 1.0
    """Server: arrivals per second."""
    streams: int = 8
    """MultiStream: prompts per query."""
    seed: int = 1
    """Of LoadGen's order and schedule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioRun:
    """What came of it."""

    settings: ScenarioSettings
    label: str
    outcome: str
    """`complete`, `given up after ... s`, `interrupted`, or `failed: ...`."""
    requests: list[TimedRequest]
    """In the order of issue; times in seconds since the first arrival."""
    summary: LoadSummary
    limits: dict[str, Verdict]
    """Server: `ttft` and `tpot` against the profile, by our own times."""
    loadgen: LoadGenSummary | None
    """None unless LoadGen's test ran to its end."""
    told: list[LoadGenSample]
    """What LoadGen was told of each request; times as those of `requests`."""
    prompt_tokens_forwarded: int
    """Fewer than the prompts have, where these share beginnings."""
    most_rows: int
    """Sequences that the engine continued together, at most."""
    usage: Usage


class Reporter:
    """Tells LoadGen what the engine produced, and the journal what is finished."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.process: LoadGenProcess | None = None
        """Set before the first token."""

    def first_token(self, number: int, token_id: int) -> None:
        """See `Listener.first_token`."""
        if self.process:
            self.process.first_token(number, token_id)

    def finished(self, request: TimedRequest) -> None:
        """See `Listener.finished`."""
        if self.process:
            self.process.done(request.number, len(request.token_ids), request.token_ids)
        self._journal.add(request)


def run_scenario(
    engine: Engine,
    prompts: Sequence[BenchPrompt],
    settings: ScenarioSettings,
    *,
    end_ids: frozenset[int],
    journal: Journal,
    make_reporter: Callable[[Journal], Reporter] = Reporter,
) -> ScenarioRun:
    """Run one scenario.

    Args:
        engine: Answers; it starts without keys of earlier requests.
        prompts: At least one; LoadGen chooses among them.
        settings: What is asked for.
        end_ids: Tokens that end a text.
        journal: Gets every finished request.
        make_reporter: Makes what tells LoadGen.

    Raises:
        MissingDependencyError: LoadGen is not installed.
    """
    reporter = make_reporter(journal)
    driver = Driver(engine, end_ids=end_ids, listener=reporter)
    engine.forget()
    engine.counts.batch_sizes.pop(_KIND, None)
    forwarded = engine.counts.forwarded
    told: list[LoadGenSample] = []
    summary = None
    before_s = _clock_offset()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        meter = stack.enter_context(metered(engine.info.device))
        process = reporter.process = LoadGenProcess(
            loadgen_settings(settings, len(prompts), folder),
            issue=lambda sample: driver.submit(
                sample, prompts[sample].token_ids, settings.max_new_tokens
            ),
            flush=driver.close,
            lost=driver.abort,
        )
        stack.callback(process.stop)
        outcome, log = _answer(driver, process, folder, settings.give_up_s)
        if log is not None:
            summary, told = log.summary, log.samples
    offset_s = (before_s + _clock_offset()) / 2
    requests, told = _aligned(driver.requests(), told, offset_s)
    return ScenarioRun(
        settings=settings,
        label=label(settings.duration_s),
        outcome=outcome,
        requests=requests,
        summary=summarise(requests),
        limits=_limits(requests, settings, outcome),
        loadgen=summary,
        told=told,
        # Of the last token of a text nothing is computed, unless the text was given up.
        prompt_tokens_forwarded=engine.counts.forwarded
        - forwarded
        - sum(max(0, len(request.token_ids) - 1) for request in requests),
        most_rows=engine.counts.batch_sizes.get(_KIND, 1),
        usage=meter.usage,
    )


def label(duration_s: float) -> str:
    """Say what a run is not."""
    why = "duration shortened" if duration_s < OFFICIAL_S else "neither submitted nor audited"
    return f"LoadGen, not a valid MLPerf run ({why})"


def loadgen_settings(settings: ScenarioSettings, samples: int, folder: Path) -> loadgen.Settings:
    """Translate into LoadGen's words."""
    is_offline = settings.scenario == "Offline"
    return loadgen.Settings(
        scenario=settings.scenario,
        samples=samples,
        folder=str(folder),
        min_duration_ms=round(settings.duration_s * 1000),
        # Offline, one query holds all samples, however few it expects; elsewhere the duration
        # decides.
        min_query_count=samples if is_offline else 1,
        ttft_latency_ns=round(settings.profile.ttft_s * 1e9),
        tpot_latency_ns=round(settings.profile.tpot_s * 1e9),
        target_qps=samples / settings.duration_s / 2 if is_offline else settings.qps,
        samples_per_query=settings.streams,
        seed=settings.seed,
    )


class _Answered(NamedTuple):
    outcome: str
    log: LoadGenLog | None = None


def _answer(driver: Driver, process: LoadGenProcess, folder: Path, give_up_s: float) -> _Answered:
    """Compute until the test is over, one way or another; say which."""
    try:
        driver.run(give_up_s=give_up_s)
        if not process.is_lost and not all(each.is_measured for each in driver.requests()):
            return _Answered(f"{GIVEN_UP} after {give_up_s:g} s")
        process.wait()
        log = read_log(folder)
        answers, queries = len(log.samples), len(driver.requests())
        if answers != queries:
            raise LoadGenError(f"LoadGen's logs have {answers} answers to {queries} queries")
        return _Answered(COMPLETE, log)
    except KeyboardInterrupt:
        return _Answered(INTERRUPTED)
    except Exl2EvalError as error:
        return _Answered(f"{FAILED}{type(error).__name__}: {error}")


def _clock_offset() -> float:
    """Return the system's clock, which LoadGen's trace shows, less the one of the driver.

    Of several looks the one counts between whose two readings least time has passed.
    """
    looks = [(time.perf_counter(), time.time(), time.perf_counter()) for _ in range(16)]
    before_s, system_s, after_s = min(looks, key=lambda look: look[2] - look[0])
    return system_s - (before_s + after_s) / 2


def _aligned(
    requests: list[TimedRequest], told: list[LoadGenSample], offset_s: float
) -> tuple[list[TimedRequest], list[LoadGenSample]]:
    """Take the schedule from LoadGen and count all times from the first arrival."""
    if told:
        requests = [
            replace(request, scheduled_s=sample.scheduled_s - offset_s)
            for request, sample in zip(requests, told, strict=True)
        ]
    start_s = min((request.arrival_s for request in requests), default=0.0)
    return [shifted(request, start_s) for request in requests], [
        replace(
            sample,
            scheduled_s=sample.scheduled_s - offset_s - start_s,
            issued_s=sample.issued_s - offset_s - start_s,
            first_token_s=None
            if sample.first_token_s is None
            else sample.first_token_s - offset_s - start_s,
            last_token_s=sample.last_token_s - offset_s - start_s,
        )
        for sample in told
    ]


def _limits(
    requests: Sequence[TimedRequest], settings: ScenarioSettings, outcome: str
) -> dict[str, Verdict]:
    """Hold a Server run against the profile; what was given up is beyond every limit."""
    if settings.scenario != "Server" or not outcome.startswith((COMPLETE, GIVEN_UP)):
        return {}
    ttft = [
        float("inf") if (found := time_to_first_token(request)) is None else found
        for request in requests
    ]
    measured = [request for request in requests if request.is_measured]
    tpot = [each for each in map(time_per_output_token, measured) if each is not None]
    return {
        "ttft": judge(ttft, settings.profile.ttft_s),
        "tpot": judge(tpot, settings.profile.tpot_s),
    }
