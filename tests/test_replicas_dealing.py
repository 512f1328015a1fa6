"""Dealing and driving, in virtual time: whatever fails, each request is answered once."""

import logging

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated_replicas import KINDS, Costs, Mishap, SimulatedReplicas, answer_of

from lm_eval_exl2.errors import ReplicaError, ScoreError
from lm_eval_exl2.records import ScoreRequest, TokenCounts
from lm_eval_exl2.replicas.cut import WorkUnit
from lm_eval_exl2.replicas.dealing import Dealer, State
from lm_eval_exl2.replicas.driving import Driver, Event
from lm_eval_exl2.replicas.limits import Limits
from lm_eval_exl2.replicas.replica import Report


@pytest.fixture(autouse=True)
def silence(caplog):
    caplog.set_level(logging.ERROR, "lm_eval_exl2.replicas.driving")


def units_of(sizes):
    """Units of so many requests, numbered through, 10 tokens a request."""
    first, units = 0, []
    for size in sizes:
        requests = [ScoreRequest(index, [1], [2]) for index in range(first, first + size)]
        units.append(WorkUnit(requests, 10 * size))
        first += size
    return units


def drive(sizes, replicas, fate=None, *, limits=None, seed=0, **costs):
    """Run units on simulated replicas; return answers, driver and replicas."""
    simulated = SimulatedReplicas(Costs(**{"tokens_per_s": 10.0} | costs), seed=seed)
    if fate is not None:
        simulated.fate = fate
    driver = Driver(simulated, replicas, limits or Limits())
    driver.start()
    return list(driver.run(units_of(sizes))), driver, simulated


def everything(sizes, without=()):
    return [answer_of(index) for index in range(sum(sizes)) if index not in without]


def in_order(answers):
    return sorted(answers, key=lambda answer: answer.index)


class Poison:
    """Some requests kill or stall whoever takes them; nothing else goes wrong."""

    def __init__(self, *indices, kind="dies"):
        self.indices = set(indices)
        self.kind = kind

    def __call__(self, _replica, unit, _random):
        places = [p for p, each in enumerate(unit.requests) if each.index in self.indices]
        return Mishap(self.kind, places[0] / len(unit.requests)) if places else None


class Accidents:
    """Replicas fail at random, so often at most."""

    def __init__(self, most, kinds=KINDS):
        self.left = most
        self.kinds = kinds

    def __call__(self, _replica, _unit, random):
        if self.left and random.random() < 0.4:
            self.left -= 1
            return Mishap(random.choice(self.kinds), random.random())
        return None


sizes = st.lists(st.integers(1, 130), max_size=12)


@settings(max_examples=30)
@given(sizes, st.integers(1, 5), st.integers(0, 99))
@example([], 1, 0)
def test_every_request_is_answered_exactly_once(drawn, replicas, seed):
    answers, driver, _ = drive(drawn, replicas, seed=seed)
    assert in_order(answers) == everything(drawn)
    totals = driver.dealer.totals
    assert (totals.finished, totals.finished_tokens) == (len(drawn), 10 * sum(drawn))
    assert (totals.units, totals.tokens) == (len(drawn), 10 * sum(drawn))


@settings(max_examples=60)
@given(sizes, st.integers(1, 5), st.integers(0, 9999), st.integers(1, 6))
def test_deaths_hangs_silence_faults_and_repeats_lose_double_and_change_nothing(
    drawn, replicas, seed, most
):
    # With so many tries no accident can make a unit look guilty.
    limits = Limits(tries=10, strikes=10, stall_s=30.0)
    answers, driver, _ = drive(drawn, replicas, Accidents(most), limits=limits, seed=seed)
    assert in_order(answers) == everything(drawn)
    assert not driver.dealer.set_aside


@settings(max_examples=20)
@given(sizes.filter(any), st.integers(1, 4), st.data())
def test_a_request_that_kills_replicas_is_found_and_all_others_are_answered(drawn, replicas, data):
    guilty = data.draw(st.sets(st.integers(0, sum(drawn) - 1), min_size=1, max_size=3))
    kind = data.draw(st.sampled_from(["dies", "hangs", "is silent", "reports a fault"]))
    # Three deadly units in a row look like a broken replica, unless more strikes are allowed.
    limits = Limits(strikes=9, stall_s=30.0)
    answers, driver, _ = drive(drawn, replicas, Poison(*guilty, kind=kind), limits=limits)
    assert in_order(answers) == everything(drawn, without=guilty)
    assert {each.request.index for each in driver.dealer.set_aside} == guilty
    assert len(driver.dealer.set_aside) == len(guilty)


def test_what_is_left_of_a_unit_is_expected_to_take_its_share():
    """Else the last of many requests would look as long as all of them, and so like a hang."""
    limits = Limits(strikes=9, stall_s=30.0)
    answers, driver, _ = drive([1, 90], 1, Poison(89), limits=limits)
    assert in_order(answers) == everything([1, 90], without={89})
    assert driver.dealer.totals.finished_tokens == driver.dealer.totals.tokens == 910


def test_finding_one_request_in_a_thousand_takes_about_ten_restarts():
    _, driver, _ = drive([1000], 2, Poison(999))
    assert driver.dealer.restarts <= 14
    (found,) = driver.dealer.set_aside
    assert (found.request.index, found.reason) == (999, "its process died")


def test_a_unit_is_first_done_again_whole_and_by_another_replica():
    seen = []

    def fate(replica, unit, _random):
        seen.append((replica, [each.index for each in unit.requests]))
        return Mishap("dies", 0.1) if len(seen) == 1 else None

    # The one that failed is back long before the other is free, and yet is passed over.
    answers, _, _ = drive([40, 30], 2, fate, start_s=0.1)
    assert in_order(answers) == everything([40, 30])
    first, _, again = seen
    assert again[1] == first[1] == list(range(40))
    assert again[0] != first[0]


def test_units_are_dealt_largest_first_to_whoever_is_idle():
    dealt = []

    def fate(_replica, unit, _random):
        dealt.append(len(unit.requests))

    drive([1, 30, 5, 20, 2], 2, fate)
    assert dealt == [30, 20, 5, 2, 1]


def test_a_broken_replica_is_given_up_and_the_others_do_its_work():
    def fate(replica, _unit, _random):
        return Mishap("dies", 0.0) if replica == 1 else None

    answers, driver, _ = drive([5] * 20, 3, fate, start_s=1.0)
    assert in_order(answers) == everything([5] * 20)
    assert driver.dealer.replicas(State.RETIRED) == [1]
    assert not driver.dealer.set_aside


def test_a_run_whose_replicas_all_fail_ends_and_says_why():
    with pytest.raises(ReplicaError, match=r"no replica is left.*its process died"):
        drive([5] * 20, 2, lambda *_: Mishap("dies", 0.0), limits=Limits(tries=9))


def test_a_run_that_gets_nowhere_ends():
    limits = Limits(failures_in_a_row=9, strikes=99, set_aside=99)
    with pytest.raises(ReplicaError, match="failed 10 times without finishing a unit"):
        drive([500], 2, lambda *_: Mishap("dies", 0.0), limits=limits)


def test_a_run_in_which_many_requests_kill_ends():
    with pytest.raises(ReplicaError, match="more than 2 requests end replicas"):
        drive([8, 8], 2, Poison(*range(0, 16, 2)), limits=Limits(set_aside=2))


def test_answers_that_came_before_the_end_of_a_run_are_passed_on():
    simulated = SimulatedReplicas(Costs(tokens_per_s=10.0))
    simulated.fate = Poison(20)
    driver, found = Driver(simulated, 1, Limits(strikes=1)), []
    driver.start()
    with pytest.raises(ReplicaError):
        found.extend(driver.run(units_of([40])))
    assert in_order(found) == everything([20])


class Stub:
    """Replicas whose events are written down beforehand."""

    def __init__(self, *batches):
        self.batches = [[Event(0)], *batches]
        self.log = []
        self.time = 0.0

    def now(self):
        return self.time

    def start(self, replica):
        self.log.append(("start", replica))

    def give(self, replica, ticket, unit):
        self.log.append(("give", replica))
        self.ticket = ticket

    def stop(self, replica):
        self.log.append(("stop", replica))

    def wait(self, timeout_s):
        self.time += timeout_s
        batch = self.batches.pop(0) if self.batches else []
        return [each(self.ticket) if callable(each) else each for each in batch]


def stubbed(*batches, limits=None):
    stub = Stub(*batches)
    driver = Driver(stub, 1, limits or Limits())
    driver.start()
    return stub, driver


def report(indices, *, tokens=1, **more):
    return lambda ticket: Event(
        0, Report(ticket, [answer_of(i) for i in indices], TokenCounts(forwarded=tokens), **more)
    )


def test_what_the_model_refuses_is_not_tried_again_and_ends_the_run_behind_the_other_answers():
    stub, driver = stubbed([report([0, 1])], [report([2], error=ScoreError("NaN"))])
    found = []
    with pytest.raises(ScoreError, match="NaN"):
        found.extend(driver.run(units_of([5])))
    assert in_order(found) == everything([3])
    assert stub.log == [("start", 0), ("give", 0), ("stop", 0)]


def test_a_report_about_a_unit_that_was_taken_back_is_ignored():
    def stale(_ticket):
        return Event(0, Report(-1, [answer_of(0)], TokenCounts(), is_finished=True))

    stub, driver = stubbed([stale], [report([0], is_finished=True)])
    assert [answer.index for answer in driver.run(units_of([1]))] == [0]
    assert stub.log == [("start", 0), ("give", 0)]


def test_a_replica_whose_counter_stands_still_is_stopped_and_one_that_moves_is_not():
    moving = [[report([], tokens=n)] for n in range(1, 40)]
    still = [[report([], tokens=40)] for _ in range(12)]
    again = [[Event(0)], [report([0], is_finished=True)]]
    stub, driver = stubbed(*moving, *still, *again, limits=Limits(stall_s=10.0))
    assert len(list(driver.run(units_of([1])))) == 1
    assert stub.log == [("start", 0), ("give", 0), ("stop", 0), ("start", 0), ("give", 0)]
    assert driver.dealer.last_failure == "no progress for too long"


def test_a_long_pause_that_ended_well_makes_room_for_longer_ones():
    dealer = Dealer(1, Limits(stall_s=10.0, stall_pauses=4.0))
    dealer.starting(0, 0.0)
    dealer.started(0)
    dealer.begin(units_of([2]))
    dealer.assign(0.0)
    assert dealer.stalled(10.0) == []
    assert dealer.stalled(10.1) == [0]
    dealer.progress(0, 5, [], 9.0)
    assert dealer.stalled(9.0 + 36.0) == []
    assert dealer.stalled(9.0 + 36.1) == [0]


def test_a_replica_that_does_not_come_up_is_stopped():
    stub = Stub()
    stub.batches = []
    driver = Driver(stub, 1, Limits(start_s=5.0, strikes=2))
    with pytest.raises(ReplicaError, match="no progress"):
        driver.start()
    assert stub.log == [("start", 0), ("stop", 0), ("start", 0), ("stop", 0)]
    assert 10.0 <= stub.time <= 13.0


def test_a_replica_that_cannot_open_the_checkpoint_ends_the_start_at_once():
    stub = Stub()
    stub.batches = [[Event(0, error=ReplicaError("another checkpoint"))]]
    with pytest.raises(ReplicaError, match="another checkpoint"):
        Driver(stub, 1, Limits()).start()
    assert stub.log == [("start", 0)]


def test_one_replica_that_cannot_be_started_is_an_error_before_the_run():
    stub = Stub([Event(1, failure="no room")], [Event(1, failure="no room")])
    driver = Driver(stub, 2, Limits(strikes=2))
    with pytest.raises(ReplicaError, match="replica 1 cannot be started: no room"):
        driver.start()


def test_a_caller_that_stops_listening_stops_the_replicas_and_can_run_again():
    simulated = SimulatedReplicas(Costs(tokens_per_s=10.0))
    driver = Driver(simulated, 2, Limits())
    driver.start()
    run = driver.run(units_of([100, 100, 100]))
    next(run)
    run.close()
    assert driver.dealer.replicas(State.STOPPED) == [0, 1]
    assert in_order(driver.run(units_of([7, 7]))) == everything([7, 7])
    assert simulated.starts == 4


def test_new_work_is_given_before_the_caller_takes_its_time_with_the_answers():
    stub, driver = stubbed([report([0], is_finished=True)], [report([1], is_finished=True)])
    run = driver.run(units_of([1, 1]))
    next(run)
    assert stub.log.count(("give", 0)) == 2
    assert [answer.index for answer in run] == [1]


def test_a_unit_that_ends_without_all_its_answers_is_done_again():
    stub, driver = stubbed(
        [report([0], is_finished=True)], [Event(0)], [report([0, 1], is_finished=True)]
    )
    assert [answer.index for answer in driver.run(units_of([2]))] == [0, 1]
    assert stub.log[1:] == [("give", 0), ("stop", 0), ("start", 0), ("give", 0)]
