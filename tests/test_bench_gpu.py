"""What bench_gpu.py runs on a card works, as far as it can be tried without one.

Kernels are simulated, so times mean nothing; a mistake of ours fails here first.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import simulated_exllamav2

from lm_eval_exl2.checkpoint.config import Sizes
from lm_eval_exl2.engines import exllamav2_import

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load_script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCHMARKS / "bench_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    """The script, and a tiny synthetic checkpoint on a machine whose card is simulated."""
    simulated_exllamav2.install(monkeypatch)
    monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)
    script = load_script(monkeypatch)
    shape = script.synthetic.Shape(Sizes(128, 1, 2, 1, 64, 128, 320, 0), 1024)
    monkeypatch.setitem(script.synthetic.SHAPES, "tiny", shape)
    args = argparse.Namespace(shape="tiny", bits=4.0, dry_run=False, batches=[1, 3])
    args.prompt_tokens, args.new_tokens, args.repetitions = 12, 4, 2
    return script, args, script.checkpoint(args, tmp_path)


@pytest.mark.slow
def test_every_batch_size_is_measured_beside_exllamav2s_own(checkpoint):
    script, args, folder = checkpoint
    alone, together = script.measure(args, folder)
    assert (alone["batch"], together["batch"]) == (1, 3)
    for row in (alone, together):
        figures = row["ours"]["figures"]
        assert figures["output_tokens"]["median"] == 4 * row["batch"]
        assert len(figures["decode_tokens_per_s"]["values"]) == 2
        forwarded = [each["prompt_tokens_forwarded"] for each in row["ours"]["repetitions"]]
        assert forwarded == [12 * row["batch"]] * 2  # prompts share nothing
        loop = row["exllamav2"]["loop"]
        assert loop["prefill_tokens_per_s"]["median"] > 0
        assert len(loop["decode_tokens_per_s"]["values"]) == 2
    assert alone["exllamav2"]["dynamic generator"]["decode_tokens_per_s"]["median"] > 0
    assert "paged" in together["exllamav2"]["dynamic generator"]["not run"].lower()


@pytest.mark.slow
def test_a_dry_run_needs_no_card(monkeypatch, tmp_path, capsys):
    script = load_script(monkeypatch)
    words = ["--dry-run", "--output", str(tmp_path), "--prompt-tokens", "8", "--new-tokens", "3"]
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *words, "--batches", "1", "2"])
    script.main()
    result = json.loads((tmp_path / "bench_gpu_dry.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert [row["batch"] for row in result["rows"]] == [1, 2]
    assert {row["exllamav2"] for row in result["rows"]} == {"not run: no card"}
    for row in result["rows"]:
        assert row["ours"]["figures"]["output_tokens"]["values"] == [3 * row["batch"]] * 5
