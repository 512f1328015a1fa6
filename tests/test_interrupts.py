"""Signals: the step under way is finished, everything is kept, and the process ends as it would."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from lm_eval.api.model import CachingLM
from resumable import KINDS, evaluate, load, requests

from lm_eval_exl2 import cli
from lm_eval_exl2.interrupts import StopSignals, resume_command
from lm_eval_exl2.records import TokenCounts

ASKED = requests(8)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def lm(checkpoint):
    return load(checkpoint("plain"), tokens=5)


@pytest.fixture
def handlers():
    """The handlers there are, put back at the end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def end_of(work):
    """Do work in a process of its own; return the signal it died of, or its exit status."""
    process = os.fork()
    if not process:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            work()
        finally:
            os._exit(77)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def signal_at(lm, position, number=signal.SIGINT):
    """Let a signal come while the engine forwards the position with that number."""
    first = lm.engine.counts.forwarded

    class Counts(TokenCounts):
        def __setattr__(self, name, value):
            before = getattr(self, name, 0)
            super().__setattr__(name, value)
            if name == "forwarded" and before < first + position <= value:
                signal.raise_signal(number)

    lm.engine.counts = Counts(forwarded=first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [1, 11])
def test_a_stopped_call_keeps_what_is_finished_and_its_resumption_does_the_rest(
    lm, tmp_path, handlers, kind, position
):
    path = str(tmp_path / "cache_rank0.db")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = lm.engine.counts.forwarded
    expected = getattr(lm, kind)(ASKED[kind])
    total = lm.engine.counts.forwarded - start
    signal_at(lm, position)
    start = lm.engine.counts.forwarded
    with pytest.raises(KeyboardInterrupt, match=f"stopped after .* of {len(ASKED[kind])} ") as stop:
        getattr(CachingLM(lm, path), kind)(ASKED[kind])
    assert f"kept in {path[:-3]}.jsonl; to resume: {resume_command()}" in str(stop.value)
    assert lm.engine.counts.forwarded - start < total
    assert getattr(CachingLM(lm, path), kind)(ASKED[kind]) == expected
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_all_requests_of_the_finished_step_are_kept(lm, tmp_path, handlers):
    """Chunks of 5 tokens: the fourth one is not begun, what the three before it gave is there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cached = CachingLM(lm, str(tmp_path / "cache_rank0.db"))
    sizes = []
    score = lm.engine.score

    def watched(chunk):
        sizes.append(len(chunk.token_ids))
        if len(sizes) == 3:
            signal.raise_signal(signal.SIGINT)
        return score(chunk)

    lm.engine.score = watched
    try:
        with pytest.raises(KeyboardInterrupt) as stop:
            cached.loglikelihood(ASKED["loglikelihood"])
    finally:
        del lm.engine.score
    assert sizes == [5, 5, 5]
    kept = (tmp_path / "cache_rank0.jsonl").read_bytes().count(b"\n") - 1
    assert kept > 1
    assert f"stopped after {kept} of 16" in str(stop.value)


def test_a_signal_in_the_last_step_ends_the_call_after_it(lm, tmp_path, handlers):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = lm.engine.counts.forwarded
    lm.loglikelihood(ASKED["loglikelihood"])
    signal_at(lm, lm.engine.counts.forwarded - start)
    with pytest.raises(KeyboardInterrupt, match="stopped after 16 of 16"):
        CachingLM(lm, str(tmp_path / "cache_rank0.db")).loglikelihood(ASKED["loglikelihood"])


def test_without_a_cache_it_says_what_would_have_made_the_run_resumable(lm, handlers):
    from lm_eval.api.model import CacheHook

    signal.signal(signal.SIGINT, signal.default_int_handler)
    lm.set_cache_hook(CacheHook(None))
    signal_at(lm, 1)
    with pytest.raises(KeyboardInterrupt, match="none of them kept: with --use_cache PATH"):
        lm.loglikelihood(ASKED["loglikelihood"])


def test_a_process_ends_by_the_signal_it_got(lm, tmp_path, capfd):
    for number in SIGNALS:

        def work(number=number):
            signal_at(lm, 11, number)
            try:
                evaluate(lm, ASKED, tmp_path / f"{number}_rank0.db")
            except KeyboardInterrupt as stop:
                cli._die_interrupted(str(stop))

        assert end_of(work) == -number
        said = capfd.readouterr().err
        assert f"{number.name}: finishing the step under way; once more ends at once" in said
        assert "; to resume: " in said.splitlines()[-1]


def test_the_second_signal_ends_at_once(handlers):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.received is None
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def work():
        with StopSignals():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)

    assert end_of(work) == -signal.SIGTERM


def test_another_handler_gets_the_signal_between_two_steps_and_work_goes_on(handlers, capsys):
    got = []
    signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert not got
        signals.hand_on("what the user should know")
        assert got == [signal.SIGTERM]
    assert capsys.readouterr().err == "what the user should know\n"


def test_handlers_are_there_only_during_a_call_and_ignored_signals_stay_ignored(handlers):
    mine = lambda _number, _frame: None  # noqa: E731
    signal.signal(signal.SIGINT, mine)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) is not mine
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is mine


def test_other_threads_leave_the_handlers_alone(handlers):
    seen = []

    def work():
        with StopSignals():
            seen.append([signal.getsignal(number) for number in SIGNALS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [list(handlers.values())]


# -- the whole command ----------------------------------------------------------------------


def responses(folder):
    """Everything the model answered, by file and document."""
    return {
        (path.name.split("_20")[0], line["doc_id"]): line["resps"]
        for path in folder.rglob("samples_*.jsonl")
        for line in map(json.loads, path.read_text().splitlines())
    }


@pytest.mark.slow
@pytest.mark.parametrize("module", ["lm_eval", "lm_eval_exl2.cli"])
@pytest.mark.parametrize("number", SIGNALS)
def test_the_command_it_prints_ends_the_run_as_if_nothing_had_been(tmp_path, module, number):
    words = "run --model exl2 --model_args pretrained=demo --device cpu --tasks exl2_demo -s -o"
    command = [sys.executable, "-m", module, *words.split()]
    subprocess.run([*command, f"{tmp_path}/whole"], check=True, capture_output=True)
    command += [f"{tmp_path}/resumed", "--use_cache", f"{tmp_path}/c"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        journal = tmp_path / "c_rank0.jsonl"
        while not journal.exists() or journal.read_bytes().count(b"\n") < 20:
            time.sleep(0.02)
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == -number
    kept = journal.read_bytes().count(b"\n") - 1
    assert 0 < kept < 1500
    resume = said.rpartition("; to resume: ")[2].strip()
    assert shlex.split(resume) == command
    subprocess.run(resume, shell=True, check=True, capture_output=True)
    assert len(journal.read_bytes().splitlines()) == 1501
    whole, resumed = responses(tmp_path / "whole"), responses(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    texts = [key for key in whole if "arithmetic" in key[0]]
    assert [whole[key] for key in texts] == [resumed[key] for key in texts]
    for key in whole.keys() - set(texts):
        for (one,), (other,) in zip(whole[key], resumed[key], strict=True):
            score, wanted = (float(x if isinstance(x, str) else x[0]) for x in (one, other))
            assert score == pytest.approx(wanted, rel=1e-5, abs=1e-4)
