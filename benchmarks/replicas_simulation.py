"""Deals a million requests to simulated replicas, for `replicas.py`."""

from __future__ import annotations

import random
import resource
import time
from array import array
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from simulated_replicas import Costs, Mishap, SimulatedReplicas, answer_of

from lm_eval_exl2.records import ScoreRequest
from lm_eval_exl2.replicas.cut import cut_scoring
from lm_eval_exl2.replicas.driving import Driver
from lm_eval_exl2.replicas.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Of the simulation: a subject's examples, its questions, four choices of three tokens each.
SUBJECT_TOKENS, QUESTION_TOKENS, CHOICES, CHOICE_TOKENS = 250, 200, 4, 3
QUESTIONS = 300  # of a subject
TOKENS_PER_S = 10_000.0


def requests_of(
    count: int, *, subject: int, question: int, per_subject: int, vocabulary: int, seed: int = 0
) -> list[ScoreRequest]:
    """Make multiple-choice requests: subjects share examples, four choices share a question.

    Token ids are random, so that two questions have next to nothing in common by chance.
    """
    randoms = random.Random(seed)

    def tokens(number: int) -> array[int]:
        return array("I", (randoms.randrange(vocabulary) for _ in range(number)))

    found: list[ScoreRequest] = []
    examples, context = array("I"), array("I")
    for index in range(count):
        if index % (CHOICES * per_subject) == 0:
            examples = tokens(subject)
        if index % CHOICES == 0:
            context = examples + tokens(question)
        found.append(ScoreRequest(index, context, [index % CHOICES, *tokens(CHOICE_TOKENS - 1)]))
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and what it returns."""
    began_s = time.perf_counter()
    found = work()
    return time.perf_counter() - began_s, found


def simulation(count: int, replicas: int, deaths: int) -> dict[str, Any]:
    """Deal requests to simulated replicas; every so many units one of them dies."""
    before_mib = _peak_mib()
    requests = requests_of(
        count,
        subject=SUBJECT_TOKENS,
        question=QUESTION_TOKENS,
        per_subject=QUESTIONS,
        vocabulary=32_000,
    )
    held_mib = _peak_mib()
    cut_s, units = timed(lambda: cut_scoring(requests))
    cut_mib = _peak_mib()
    randoms, every = random.Random(0), len(units) // (deaths + 1)
    dealt = 0

    def fate(*_given: Any) -> Mishap | None:
        nonlocal dealt
        dealt += 1
        is_fatal = deaths and dealt % every == 0 and dealt // every <= deaths
        return Mishap("dies", randoms.random()) if is_fatal else None

    simulated = SimulatedReplicas(Costs(tokens_per_s=TOKENS_PER_S), counts_real_time=True)
    simulated.fate = fate
    driver = Driver(simulated, replicas, Limits())
    driver.start()
    began_s = simulated.now()
    deal_s, wrong = timed(lambda: _count_wrong(driver.run(units), count))
    makespan_s = simulated.now() - began_s
    distinct = _distinct_tokens(count)
    forwarded = sum(unit.tokens for unit in units)
    driver_us = (cut_s + deal_s) / count * 1e6
    row = {
        "part": f"simulation, {deaths} deaths",
        "replicas": replicas,
        "requests": count,
        "units": len(units),
        "largest_unit_tokens": max(unit.tokens for unit in units),
        "tokens_forwarded": forwarded,
        "repeated_share": round(forwarded / distinct - 1, 4),
        "makespan_s": round(makespan_s, 2),
        "efficiency": round(distinct / TOKENS_PER_S / replicas / makespan_s, 4),
        "efficiency_with_cutting": round(
            distinct / TOKENS_PER_S / replicas / (makespan_s + cut_s), 4
        ),
        "wrong_answers": wrong,
        "cut_s": round(cut_s, 2),
        "deal_s": round(deal_s, 2),
        "requests_mib": round(held_mib - before_mib),
        "cut_adds_mib": round(cut_mib - held_mib),
        "dealing_adds_mib": round(_peak_mib() - cut_mib),
        "driver_us_per_request": round(driver_us, 2),
        "replicas_that_fill_the_driver": round(distinct / count / TOKENS_PER_S / (deal_s / count)),
    }
    print(row, flush=True)
    return row


def _distinct_tokens(count: int) -> int:
    """Return the distinct proper prefixes of `requests_of` where nothing is shared by chance."""
    questions = -(-count // CHOICES)
    subjects = -(-questions // QUESTIONS)
    choices = count * (CHOICE_TOKENS - 1)
    return subjects * SUBJECT_TOKENS + questions * QUESTION_TOKENS + choices


def _count_wrong(answers: Iterator[Any], count: int) -> int:
    """Return how many answers are lost, doubled or another request's."""
    seen = bytearray(count)
    wrong = 0
    for answer in answers:
        wrong += answer != answer_of(answer.index) or seen[answer.index]
        seen[answer.index] = 1
    return wrong + count - sum(seen)


def in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call something where no peak of memory is left from before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
