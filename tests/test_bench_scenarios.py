"""LoadGen itself against a scripted engine: verdict, figures, cheats, ends of every kind.

Each test of LoadGen takes a third of a second and more: one of each kind is in the default suite.
"""

import signal
import sys
from dataclasses import replace

import bench_cheats
import pytest
from bench_cases import NO_JOURNAL, PROMPTS, Paced, greedy, settings, timed

from lm_eval_exl2.bench import honesty, loadgen_agreement
from lm_eval_exl2.bench.loadgen_log import LoadGenError, parse_summary, read_log
from lm_eval_exl2.bench.loadgen_process import LoadGenProcess
from lm_eval_exl2.bench.records import COMPLETE, FINISHED, UNFINISHED
from lm_eval_exl2.bench.scenarios import (
    GIVEN_UP,
    Reporter,
    label,
    loadgen_settings,
    run_scenario,
)
from lm_eval_exl2.errors import EngineMemoryError, MissingDependencyError


def run(scenario, engine=None, *, end_ids=frozenset(), make_reporter=Reporter, **changes):
    return run_scenario(
        engine or Paced(),
        PROMPTS,
        settings(scenario, **changes),
        end_ids=end_ids,
        journal=NO_JOURNAL,
        make_reporter=make_reporter,
    )


def check_agreement(found, figures):
    """Our figures are LoadGen's: exactly on its times, within a stall of the machine on ours."""
    as_told = [
        replace(
            request,
            scheduled_s=sample.scheduled_s,
            token_times_s=evenly(sample.first_token_s, sample.last_token_s, sample.token_count),
        )
        for request, sample in zip(found.requests, found.told, strict=True)
    ]
    exact = loadgen_agreement.compare(replace(found, requests=as_told))
    assert len(exact) == figures
    for each in exact:
        # It prints rates with two to six digits.
        assert each.ours == pytest.approx(each.loadgen, rel=1e-3, abs=2e-6), each.name
    for each in loadgen_agreement.compare(found):
        if "latency" in each.name:  # the word of a token reaches LoadGen after we had it
            assert -0.001 < each.loadgen - each.ours < 1.0, each.name


def evenly(first, last, count):
    return [first + place * (last - first) / (count - 1) for place in range(count)]


SLOW = pytest.mark.slow
SCENARIOS = [
    "Server",
    *(pytest.param(n, marks=SLOW) for n in ("Offline", "SingleStream", "MultiStream")),
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_runs_and_our_figures_are_loadgens(scenario):
    found = run(scenario)
    assert "mlperf_loadgen" not in sys.modules  # it ran in another process
    assert found.outcome == COMPLETE
    assert found.label == "LoadGen, not a valid MLPerf run (duration shortened)"
    assert found.loadgen.verdict == "INVALID"
    assert found.loadgen.reasons
    for request in found.requests:
        prompt = PROMPTS[request.sample]
        assert request.outcome == FINISHED
        assert list(request.token_ids) == greedy(prompt.token_ids, 6)
        # The schedule is LoadGen's, the issue ours, a moment later; both by one clock.
        assert -0.001 < request.issued_s - request.scheduled_s < 1.0
    check_agreement(found, {"Offline": 8, "Server": 17}.get(scenario, 15))
    checks = [
        honesty.check_first_token(found.requests, found.told),
        honesty.check_counts(found.requests, found.told),
        honesty.check_prompts(found.requests, found.told),
        honesty.check_order(found.requests, rows=found.most_rows),
    ]
    assert all(check.passed for check in checks), checks
    assert (set(found.limits) == {"ttft", "tpot"}) == (scenario == "Server")


@SLOW
def test_offline_asks_for_every_prompt_once():
    found = run("Offline")
    assert sorted(request.sample for request in found.requests) == list(range(len(PROMPTS)))


@SLOW
def test_server_latencies_count_from_the_schedule():
    # About 7 ms each, so at 400 a second most of them wait.
    found = run("Server", qps=400.0)
    assert found.outcome == COMPLETE
    waits = [request.token_times_s[0] - request.arrival_s for request in found.requests]
    assert waits[-1] > 5 * waits[0]
    assert not any(request.issued_s < request.scheduled_s - 0.001 for request in found.requests)


CHEATS = [
    ("SingleStream", bench_cheats.EarlyFirstToken, "check_first_token"),
    ("Offline", bench_cheats.WrongCount, "check_counts"),
    pytest.param("Offline", bench_cheats.EarlyFirstToken, "check_first_token", marks=SLOW),
    pytest.param("SingleStream", bench_cheats.OtherText, "check_counts", marks=SLOW),
]


@pytest.mark.parametrize(("scenario", "reporter", "check"), CHEATS)
def test_a_cheating_report_is_caught_by_what_loadgen_was_told(scenario, reporter, check):
    found = run(scenario, make_reporter=reporter)
    assert found.outcome == COMPLETE
    assert not getattr(honesty, check)(found.requests, found.told).passed


@SLOW
def test_a_made_up_first_token_is_not_the_models():
    found = run("SingleStream", bench_cheats.MadeUpFirstToken(Paced()))
    assert honesty.check_first_token(found.requests, found.told).passed  # it is what was reported
    assert not honesty.check_greedy(found.requests, PROMPTS, Paced()).passed


@SLOW
@pytest.mark.parametrize("cheat", [bench_cheats.SecondEnd, bench_cheats.GoesOnAfterTheEnd])
def test_going_on_behind_the_end_is_caught(cheat):
    end_ids = frozenset(greedy(prompt.token_ids, 2)[1] for prompt in PROMPTS)
    honest = run("Offline", end_ids=end_ids)
    checked = {"end_ids": end_ids, "max_new_tokens": 6}
    assert honesty.check_end(honest.requests, **checked).passed
    found = run("Offline", cheat(Paced()), end_ids=end_ids)
    assert not honesty.check_end(found.requests, **checked).passed


@SLOW
def test_answering_short_queries_first_is_caught():
    found = run("Offline", bench_cheats.ShortestFirst(Paced()))
    assert found.outcome == COMPLETE
    assert not honesty.check_order(found.requests, rows=found.most_rows).passed


@SLOW
def test_load_beyond_capacity_ends_in_time_and_keeps_what_was_done():
    found = run("Server", Paced(token_s=0.01), qps=2000.0, give_up_s=2.0)
    assert found.outcome == f"{GIVEN_UP} after 2 s"
    assert found.loadgen is None
    assert found.summary.finished > 0
    assert found.summary.unfinished > 10
    assert {request.outcome for request in found.requests} == {FINISHED, UNFINISHED}
    assert loadgen_agreement.compare(found) == []
    assert found.limits["ttft"].over > 10  # what never came is beyond every limit


@SLOW
def test_an_engine_that_fails_ends_the_run_and_says_why():
    class Full(Paced):
        def generate(self, requests, is_finished):
            for number, token in enumerate(super().generate(requests, is_finished)):
                if number == 8:
                    raise EngineMemoryError("no room for another token; use a smaller max_length")
                yield token

    found = run("Offline", Full())
    assert found.outcome == (
        "failed: EngineMemoryError: no room for another token; use a smaller max_length"
    )
    assert (found.summary.finished, found.loadgen) == (1, None)
    assert [len(request.token_ids) for request in found.requests[:3]] == [6, 2, 0]


@SLOW
def test_loadgen_dying_ends_the_run_and_says_how():
    class Killer(Reporter):
        def finished(self, request):
            super().finished(request)
            if request.number == 1:
                self.process._process.send_signal(signal.SIGSEGV)

    found = run("SingleStream", make_reporter=Killer)
    assert found.outcome.startswith(
        "failed: LoadGenError: LoadGen's process ended by signal SIGSEGV"
    )
    assert found.summary.finished >= 2


@SLOW
def test_an_interruption_keeps_what_was_done_and_leaves_no_process():
    processes = []

    class Interrupted(Reporter):
        def finished(self, request):
            super().finished(request)
            processes.append(self.process._process)
            if request.number == 2:
                raise KeyboardInterrupt

    found = run("SingleStream", make_reporter=Interrupted)
    assert found.outcome == "interrupted"
    assert found.summary.finished == 3
    assert processes[0].poll() is not None


def test_one_token_counts_for_nothing_in_loadgens_rates():
    # It takes a single token for none (results.cc of 6.0.17), so our figure beside it does, too.
    requests = [timed([1.0]), timed([1.0, 2.0, 3.0, 4.0], number=1)]
    assert loadgen_agreement.rates(requests, "Offline") == {
        "Samples per second": 0.5,
        "Tokens per second": 1.0,
    }


def test_without_loadgen_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr("lm_eval_exl2.bench.loadgen_process.find_spec", lambda _name: None)
    wanted = loadgen_settings(settings("Offline"), 3, tmp_path)
    with pytest.raises(MissingDependencyError, match="pip install mlcommons-loadgen"):
        LoadGenProcess(wanted, issue=print, flush=print, lost=print)


def test_a_run_of_ten_minutes_is_no_valid_mlperf_run_either():
    assert label(600.0) == "LoadGen, not a valid MLPerf run (neither submitted nor audited)"


SUMMARY = """\
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Completed samples per second    : 28.33
Result is : INVALID
  Performance constraints satisfied : Yes
  Early stopping satisfied: NO
TPOT Early Stopping Result:
 * Would need to run at least 452 more queries,
 with the run being successful if every additional
 query were under latency.

================================================
Additional Stats
================================================
99.00 percentile latency (ns)   : 10543492

================================================
Test Parameters Used
================================================
target_qps : 40
"""


def test_the_summary_is_read_verdict_figures_and_reasons():
    found = parse_summary(SUMMARY, ["a runtime error"])
    assert found.verdict == "INVALID"
    assert found.figures == {
        "Completed samples per second": 28.33,
        "99.00 percentile latency (ns)": 10543492.0,
    }
    assert found.reasons == [
        "Early stopping satisfied: NO",
        "Would need to run at least 452 more queries, with the run being successful if every "
        "additional query were under latency.",
        "a runtime error",
    ]


def test_a_summary_without_a_verdict_is_no_summary():
    with pytest.raises(ValueError, match="no verdict"):
        parse_summary(SUMMARY.replace("Result is : INVALID", ""))


def test_logs_that_are_missing_are_an_error_in_one_line(tmp_path):
    with pytest.raises(LoadGenError, match="not those of a finished LoadGen test"):
        read_log(tmp_path)
