"""Damaged checkpoints are read or refused, nothing else; and a crash would be noticed."""

import random
import sys
from pathlib import Path

import damage_kinds
import pytest
import tiny

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import damage


def test_damaged_checkpoints_are_read_or_refused():
    result = damage.measure(count=75, seed=1)
    assert result["crashes"] == 0, result["details"]
    assert result["damaged_checkpoints_read"] == 75
    assert result["refused"] > 37
    assert result["accepted"] > 2


@pytest.mark.slow
def test_two_thousand_damaged_checkpoints_are_read_or_refused():
    result = damage.measure(count=2000)
    assert result["crashes"] == 0, result["details"]


@pytest.mark.slow
def test_a_checkpoint_of_ones_own_can_be_damaged(tmp_path):
    result = damage.measure(tiny.write_exl2(tmp_path / "mine"), count=5)
    assert result["accepted"] + result["refused"] == 5


def test_damage_is_the_same_for_the_same_seed():
    files = {"config.json": b"{}", "a.safetensors": bytes(100)}
    one, other = (damage_kinds.damaged(files, random.Random("seed")) for _ in range(2))
    assert one == other
    assert files == {"config.json": b"{}", "a.safetensors": bytes(100)}


READY = (
    "import json, os, sys, time; print(json.dumps({'outcome': 'ready', 'text': ''}), flush=True)"
)
FATES = {
    "raises": "; input(); raise KeyError",
    "ends": "; input(); os._exit(0)",
    "is killed": "; input(); os.kill(os.getpid(), 11)",
    "hangs": "; input(); time.sleep(60)",
    "prints rubbish": "; input(); sys.stdout.write('half a li'); sys.stdout.flush(); os._exit(0)",
}


@pytest.mark.slow
@pytest.mark.parametrize("fate", FATES)
def test_a_reader_that_does_not_answer_counts_as_a_crash(tmp_path, fate):
    worker = damage.Worker([sys.executable, "-c", READY + FATES[fate]], limit_s=0.5)
    outcome, text = worker.read(tmp_path)
    assert outcome == "crash"
    assert "no answer" in text
    assert worker.read(tmp_path)[0] == "crash"  # it was started anew
    worker.stop()


@pytest.mark.slow
def test_other_exceptions_and_large_allocations_count_as_crashes(tmp_path):
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; import damage, torch; "
        "from lm_eval_exl2.checkpoint import Checkpoint; "
        "Checkpoint.__init__ = lambda self, path: {torch.empty(1 << 30)}[path]; damage._work()"
    )
    folders = [str(Path(damage.__file__).parent), str(Path(tiny.__file__).parent)]
    worker = damage.Worker([sys.executable, "-c", program, *folders])
    outcome, text = worker.read(tmp_path)
    worker.stop()
    assert outcome == "crash"
    assert "memory" in text
