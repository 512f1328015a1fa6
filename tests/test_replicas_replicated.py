"""Replicas put together: what they are, what they counted, what is said of a deadly request."""

import subprocess
import sys

import pytest

from lm_eval_exl2.checkpoint.locate import Location
from lm_eval_exl2.errors import MissingDependencyError, ReplicaError
from lm_eval_exl2.generation import Ending, Prompt
from lm_eval_exl2.options import parse_options
from lm_eval_exl2.records import EngineInfo, Score, ScoreRequest, TokenCounts
from lm_eval_exl2.replicas import cut
from lm_eval_exl2.replicas.driving import Event
from lm_eval_exl2.replicas.limits import Limits
from lm_eval_exl2.replicas.replica import About, Report
from lm_eval_exl2.replicas.replicated import Replicated, open_replicas


class Instant:
    """Stands in for RayReplicas: units are answered at once, but for a request that kills."""

    def __init__(self, deadly=()):
        self.deadly = set(deadly)
        self.events = []
        self.abouts = {}
        self.counts = {}
        self.time = 0.0

    def now(self):
        return self.time

    def start(self, replica):
        info = EngineInfo("scripted", "1", "cpu", "float32", "none", 64, 8, 0, 100 * (replica + 1))
        self.abouts[replica] = About(f"node{replica}", 1, "1", "d", info)
        self.counts.setdefault(replica, []).append(TokenCounts())
        self.events.append(Event(replica))

    def give(self, replica, ticket, unit):
        self.time += 1.0
        counts = self.counts[replica][-1]
        counts.forwarded += unit.tokens
        counts.batch_sizes["loglikelihood"] = replica + 3
        if self.deadly & {request.index for request in unit.requests}:
            self.events.append(Event(replica, failure="its process died"))
            return
        answers = [Score(request.index, -1.0, True) for request in unit.requests]
        self.events.append(Event(replica, Report(ticket, answers, counts, is_finished=True)))

    def stop(self, replica):
        pass

    def wait(self, _timeout_s):
        events, self.events = self.events, []
        return events

    def close(self):
        pass


REQUESTS = [ScoreRequest(index, [index % 7, index], [1]) for index in range(100)]


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(cut, "_LEAST_TOKENS", 20)


def replicated(replicas, count=2):
    return Replicated(replicas, count, describe=lambda r: f"request {r.index}", limits=Limits())


def test_counts_are_summed_over_replicas_and_the_largest_batch_is_kept():
    computer = replicated(Instant())
    assert sorted(score.index for score in computer.score(REQUESTS)) == list(range(100))
    assert computer.counts.forwarded == sum(unit.tokens for unit in cut.cut_scoring(REQUESTS))
    assert computer.counts.batch_sizes == {"loglikelihood": 4}


def test_the_engine_of_replicas_has_the_budget_of_the_smallest_one():
    computer = replicated(Instant())
    assert computer.info.max_batch_tokens == 100
    assert (computer.info.name, computer.info.position_limit) == ("scripted", None)


def test_what_is_recorded_names_size_nodes_and_restarts():
    computer = replicated(Instant(deadly=[5]))
    with pytest.raises(ReplicaError):
        list(computer.score(REQUESTS))
    facts = computer.facts()
    assert (facts["data_parallel_size"], facts["nodes"]) == (2, ["node0", "node1"])
    assert facts["replicas_restarted"] >= 2


def test_a_request_that_kills_is_named_when_all_others_have_been_answered():
    found = []
    text = r"^1 requests end every replica .* request 5 \(the last replica: its process died\)$"
    with pytest.raises(ReplicaError, match=text):
        found.extend(replicated(Instant(deadly=[5])).score(REQUESTS))
    assert sorted(score.index for score in found) == [i for i in range(100) if i != 5]


def test_prompts_are_shared_like_requests():
    prompts = [Prompt(index, [index], 5, 0, [], {}) for index in range(80)]
    found = replicated(Instant()).generate(prompts, Ending(frozenset()))
    assert sorted(answer.index for answer in found) == list(range(80))


def test_the_progress_shows_replicas_units_speed_and_time_left():
    computer = replicated(Instant())
    run = computer.score(REQUESTS)
    next(run)
    words = computer.status()
    units = len(cut.cut_scoring(REQUESTS))
    assert words.startswith(f"2 of 2 replicas, 2 of {units} units, ")
    assert words.endswith(" left")
    assert "tokens/s" in words


def test_without_ray_the_option_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "lm_eval_exl2.replicas.ray_replicas", raising=False)
    options = parse_options({"pretrained": "demo", "data_parallel_size": 2})
    with pytest.raises(MissingDependencyError, match=r"pip install 'lm-eval-exl2\[ray\]'"):
        open_replicas(options, Location(None, ""), "", describe=str)


def test_ray_is_not_imported_with_the_rest():
    code = "import lm_eval_exl2.replicas.replicated, sys; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
