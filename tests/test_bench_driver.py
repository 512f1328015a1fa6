"""The one path of every measurement: times, order, arrivals into a running batch, ends."""

import threading
import time

import pytest
from bench_cases import Paced, Ticking, alone_texts, answered, check_joined, greedy, late_arrivals

from lm_eval_exl2.bench.driver import Driver
from lm_eval_exl2.bench.records import FINISHED, UNFINISHED
from lm_eval_exl2.engines.scripted import ScriptedEngine

PROMPTS = [[1, 2], [3], [2, 2, 2]]


def test_tokens_are_the_engines_and_each_has_its_time():
    found = answered(ScriptedEngine(), PROMPTS, clock=Ticking())
    assert [request.token_ids for request in found] == [tuple(greedy(p, 4)) for p in PROMPTS]
    assert [request.issued_s for request in found] == [1.0, 2.0, 3.0]
    times = [moment for request in found for moment in request.token_times_s]
    assert times == sorted(times)
    assert len(set(times)) == 12
    assert min(times) > 3.0
    assert [request.started for request in found] == [0, 1, 2]
    assert [request.prompt_tokens for request in found] == [2, 1, 3]


def test_an_end_token_ends_a_text_and_is_part_of_it():
    first, second = greedy([1, 2], 4), greedy([3], 4)
    end = first[1]
    found = answered(ScriptedEngine(), [[1, 2], [3]], end_ids=frozenset({end}))
    assert found[0].token_ids == tuple(first[: first.index(end) + 1])
    expected = second[: second.index(end) + 1] if end in second else second
    assert found[1].token_ids == tuple(expected)


def test_a_listener_hears_first_tokens_and_whole_requests():
    heard = []

    class Listener:
        def first_token(self, number, token_id):
            heard.append((number, token_id))

        def finished(self, request):
            heard.append((request.number, request.token_ids, request.outcome))

    answered(ScriptedEngine(), [[1, 2]], count=3, listener=Listener())
    ids = tuple(greedy([1, 2], 3))
    assert heard == [(0, ids[0]), (0, ids, FINISHED)]


def test_giving_up_keeps_what_was_produced_and_marks_it():
    driver = Driver(Paced(token_s=0.005), end_ids=frozenset())
    driver.submit(0, [1], 3)
    driver.submit(1, [2], 60)
    driver.submit(2, [3], 60)
    driver.close()
    driver.run(give_up_s=0.1)
    done, cut, never = driver.requests()
    assert (done.outcome, len(done.token_ids)) == (FINISHED, 3)
    assert cut.outcome == never.outcome == UNFINISHED
    assert 0 < len(cut.token_ids) < 60
    assert never.token_ids == ()
    assert never.started is None


def test_waiting_for_requests_that_never_come_ends_when_it_is_time():
    driver = Driver(ScriptedEngine(), end_ids=frozenset())
    driver.run(give_up_s=0.02)
    assert driver.requests() == []


def test_an_abort_from_another_thread_ends_the_wait():
    driver = Driver(ScriptedEngine(), end_ids=frozenset())
    threading.Timer(0.02, driver.abort).start()
    driver.run()
    assert driver.requests() == []


def test_what_an_engine_raises_passes_and_what_it_had_made_stays():
    class Broken(ScriptedEngine):
        def generate(self, requests, is_finished):
            for number, token in enumerate(super().generate(requests, is_finished)):
                if number == 2:
                    raise RuntimeError("out of order")
                yield token

    driver = Driver(Broken(), end_ids=frozenset())
    driver.submit(0, [1], 4)
    driver.close()
    with pytest.raises(RuntimeError, match="out of order"):
        driver.run()
    assert driver.requests()[0].token_ids == tuple(greedy([1], 2))
    assert driver.requests()[0].outcome == UNFINISHED


def test_arrivals_join_a_running_batch_of_the_torch_engine(exl2):
    engine = exl2("bos").engine
    prompts = [[5, 6, 7], [8, 9], [5, 6]]
    alone = alone_texts(engine, prompts, 12)
    check_joined(late_arrivals(engine, prompts, count=12), alone)


def test_the_clock_is_one_that_never_goes_back():
    before = time.perf_counter()
    (request,) = answered(ScriptedEngine(), [[1]])
    assert before < request.issued_s < request.token_times_s[0] < time.perf_counter()
