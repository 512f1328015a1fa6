"""A replica without Ray: units answered in a thread, reports that show what became of them."""

import pickle
import subprocess
import sys
import threading
import time

import pytest
import torch

from lm_eval_exl2 import __version__
from lm_eval_exl2.computing import OneProcess
from lm_eval_exl2.engines.scripted import ScriptedEngine
from lm_eval_exl2.errors import EngineMemoryError, ModelFormatError, RequestError, ScoreError
from lm_eval_exl2.generation import Ending, Prompt, with_seeds
from lm_eval_exl2.options import parse_options
from lm_eval_exl2.records import ScoreRequest
from lm_eval_exl2.replicas import cut, replica
from lm_eval_exl2.replicas.cut import WorkUnit, cut_generation, cut_scoring
from lm_eval_exl2.replicas.driving import Driver, Event
from lm_eval_exl2.replicas.limits import Limits
from lm_eval_exl2.replicas.replica import Replica, Report

OPTIONS = parse_options({"pretrained": "demo"})
ENDING = Ending(frozenset({7}))
REQUESTS = [
    ScoreRequest(index, [index % 5, index % 3, 1], [index % 7, index // 50, 2])
    for index in range(300)
]


@pytest.fixture(autouse=True)
def quick_reports_of_small_units(monkeypatch):
    monkeypatch.setattr(replica, "REPORT_S", 0.005)
    monkeypatch.setattr(cut, "_LEAST_TOKENS", 60)
    monkeypatch.setattr(cut, "_LEAST_PROMPTS", 8)


class NoText:
    """Stands in for an Encoder: no token has a text."""

    def stream(self):
        return self

    def push(self, _token_id):
        return ""

    def is_special(self, token_id):
        return token_id == 7


def scripted(engine=None):
    """A replica with a scripted engine."""
    made = Replica()
    made.computer = OneProcess(engine or ScriptedEngine(), NoText(), OPTIONS)
    return made


class Threads:
    """Implements `Replicas` with replicas of this process."""

    def __init__(self, make=scripted):
        self.make = make
        self.events = []
        self.members = {}
        self.working = set()

    def now(self):
        return time.monotonic()

    def start(self, number):
        self.members[number] = self.make()
        self.events.append(Event(number))

    def give(self, number, ticket, unit):
        self.members[number].give(ticket, pickle.loads(pickle.dumps(unit)))
        self.working.add(number)

    def stop(self, number):
        self.working.discard(number)

    def wait(self, _timeout_s):
        events, self.events = self.events, []
        for number in sorted(self.working):
            report = pickle.loads(pickle.dumps(self.members[number].take()))
            if report.is_finished or report.fault or report.error:
                self.working.discard(number)
            events.append(Event(number, report))
        return events


def shared(units, count, make=scripted):
    driver = Driver(Threads(make), count, Limits())
    driver.start()
    return sorted(driver.run(units), key=lambda answer: answer.index)


def test_scores_of_units_on_1_2_and_4_replicas_are_those_of_the_whole_tree():
    whole = sorted(scripted().computer.score(REQUESTS), key=lambda score: score.index)
    units = cut_scoring(REQUESTS)
    assert len(units) > 4
    assert all(shared(units, count) == whole for count in (1, 2, 4))


def test_texts_of_units_on_1_2_and_4_replicas_are_those_of_one_call():
    prompts = [Prompt(i, [i % 4, i // 9], 6, 0, [], {}) for i in range(60)]
    prompts = with_seeds([*prompts, *(Prompt(60, [1], 0, 0, [], {}),)], 5)
    whole = sorted(scripted().computer.generate(prompts, ENDING), key=lambda answer: answer.index)
    units = cut_generation(prompts, ENDING)
    assert len(units) >= 4
    assert all(shared(units, count) == whole for count in (1, 2, 4))


@pytest.fixture(scope="module")
def opened(checkpoint):
    """A replica with a tiny model, and what it says of itself."""
    made = Replica()
    options = {"pretrained": str(checkpoint("bos")), "device": "cpu", "max_batch_tokens": 16}
    return made, made.open(parse_options(options))


def test_scores_of_a_model_are_bit_equal_for_1_2_and_4_replicas(opened):
    units = cut_scoring(REQUESTS)
    one, *more = [shared(units, count, lambda: Same(opened[0])) for count in (1, 2, 4)]
    assert more == [one, one]
    whole = sorted(opened[0].computer.score(REQUESTS), key=lambda score: score.index)
    for part, score in zip(one, whole, strict=True):
        assert part.logprob == pytest.approx(score.logprob, abs=1e-4)


class Same(Replica):
    """A replica with the model of another one; they take turns, as an engine has one user."""

    turn = threading.Lock()

    def __init__(self, other):
        super().__init__()
        self.computer = other.computer

    def _answers(self, unit):
        with self.turn:
            yield from super()._answers(unit)


def test_a_replica_says_what_it_has_opened(opened, exl2):
    _, about = opened
    lm = exl2("bos")
    assert about.digest == lm.checkpoint.digest()
    assert about.version == __version__
    assert (about.info.name, about.info.dtype) == (lm.engine.info.name, lm.engine.info.dtype)
    assert about.info.threads == torch.get_num_threads()
    assert pickle.loads(pickle.dumps(about)) == about


def test_a_checkpoint_that_is_not_there_is_an_error_of_one_line():
    with pytest.raises(ModelFormatError, match="is not a directory"):
        Replica().open(parse_options({"pretrained": "/nowhere/at/all"}))


def reports(made, unit, ticket=3):
    made.give(ticket, unit)
    found = [made.take()]
    while not (found[-1].is_finished or found[-1].fault or found[-1].error):
        found.append(made.take())
    return found


def unit(count=200):
    return WorkUnit(REQUESTS[:count], 0)


def test_reports_carry_every_answer_once_with_the_ticket_and_end_with_the_last():
    found = reports(scripted(), unit())
    indices = [answer.index for report in found for answer in report.answers]
    assert sorted(indices) == list(range(200))
    assert {report.ticket for report in found} == {3}
    assert [report.is_finished for report in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].counts.forwarded > 0


class Failing(ScriptedEngine):
    """Fails after some chunks."""

    def __init__(self, error, after):
        super().__init__()
        self.error = error
        self.after = after
        self.info = ScriptedEngine().info

    def score(self, chunk):
        self.after -= 1
        if self.after < 0:
            raise self.error
        return super().score(chunk)


def small_chunks(engine):
    made = scripted(engine)
    made.computer.budget = type(made.computer.budget)(20)
    return made


@pytest.mark.parametrize("error", [ScoreError("NaN"), RequestError("too long")])
def test_what_the_package_refuses_is_reported_as_an_error_behind_what_was_answered(error):
    found = reports(small_chunks(Failing(error, 3)), unit())
    assert (type(found[-1].error), str(found[-1].error)) == (type(error), str(error))
    assert not found[-1].fault
    assert any(report.answers for report in found)


@pytest.mark.parametrize(
    "error", [MemoryError("no\nroom"), EngineMemoryError("no room"), RuntimeError("CUDA error")]
)
def test_what_may_be_the_replicas_own_trouble_is_reported_as_a_fault(error):
    found = reports(small_chunks(Failing(error, 3)), unit())
    assert found[-1].error is None
    assert found[-1].fault == f"{type(error).__name__}: {error}".replace("\n", " ")


class Stuck(ScriptedEngine):
    """Moves when it is let go."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()

    def score(self, chunk):
        self.gate.wait(5)
        return super().score(chunk)


def test_reports_come_while_the_engine_stands_still_and_show_it():
    made = scripted(Stuck())
    made.give(1, unit(5))
    first, second = made.take(), made.take()
    assert first == second == Report(1, [], made.computer.counts)
    assert first.counts.forwarded == 0
    made.computer.engine.gate.set()
    assert reports_end(made).is_finished


@pytest.mark.slow
def test_a_process_ends_while_its_engine_hangs():
    code = """
import time
from types import SimpleNamespace
from lm_eval_exl2.records import TokenCounts
from lm_eval_exl2.replicas.cut import WorkUnit
from lm_eval_exl2.replicas.replica import Replica
made = Replica()
made.computer = SimpleNamespace(counts=TokenCounts(), score=lambda _: time.sleep(99))
made.give(1, WorkUnit([], 0))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def reports_end(made):
    while True:
        report = made.take()
        if report.is_finished:
            return report


def test_a_report_without_a_unit_is_refused():
    with pytest.raises(RuntimeError, match="without a unit"):
        scripted().take()


def test_a_replica_takes_one_unit_after_the_other():
    made = scripted()
    for ticket in (1, 2):
        assert reports(made, unit(30), ticket)[-1].ticket == ticket
