"""What benchmarks/gpu_check.sh runs on a card works, as far as it can be tried without one.

Kernels are simulated, times mean nothing; a step that would fail on a card for a mistake of ours
fails here first. The conversion by exllamav2's own converter needs a card and is not tried.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import simulated_exllamav2
import torch

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.config import Sizes
from lm_eval_exl2.demo import demo_directory
from lm_eval_exl2.engines import exllamav2_import
from lm_eval_exl2.engines.torch_engine import TorchEngine
from lm_eval_exl2.errors import ScoreError

# What runs on a card is tried over simulated kernels: some seconds.
pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu_check(monkeypatch):
    """The script as a module, on a machine whose card is simulated."""
    simulated_exllamav2.install(monkeypatch)
    monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("gpu_check", BENCHMARKS / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_passes_its_self_test_on_every_path(gpu_check):
    found = gpu_check.check_attention(demo_directory("demo"))
    assert set(found["self-test passed on"].values()) == {"tree (scaled_dot_product_attention)"}


def test_logits_are_compared_with_the_torch_engines_and_recorded(gpu_check, tmp_path):
    folder = demo_directory("demo")
    found = gpu_check.compare_logits(folder, tmp_path / "golden.safetensors")
    assert found["root_mean_square"] < 0.01
    assert found["same_most_likely_token"] > 0.9
    from safetensors.torch import load_file

    golden = load_file(tmp_path / "golden.safetensors")
    oracle = TorchEngine(Checkpoint(folder), device="cpu")
    expected = oracle.naive_logits(golden["ids"].tolist())
    assert (golden["logits"].float() - expected).abs().max() < 0.1 * expected.std()


@pytest.mark.slow
def test_repetition_is_measured(gpu_check):
    found = gpu_check.measure_repetition(demo_directory("demo"))
    assert found == {
        **{"scores_repeated": 1.0, "largest_score_difference": 0.0, "texts_repeated": 1.0}
    }


@pytest.mark.parametrize("flash_attn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_drafts_change_is_measured_where_there_are_pages(gpu_check, monkeypatch, flash_attn):
    simulated_exllamav2.install(monkeypatch, flash_attn=flash_attn)
    found = gpu_check.measure_drafting(demo_directory("demo"))
    if flash_attn:
        assert found["texts_alike"] > 0.5
        assert found["largest_margin_where_they_part"] < 0.01
        assert 0 < found["drafts_accepted"] < 1
    else:
        assert "flash-attn" in found["not applicable"]


def test_speed_is_measured_on_a_synthetic_checkpoint(gpu_check, tmp_path, monkeypatch):
    shape = gpu_check.synthetic.Shape(Sizes(128, 1, 2, 1, 64, 128, 320, 0), 1024)
    monkeypatch.setitem(gpu_check.synthetic.SHAPES, "tiny", shape)
    args = argparse.Namespace(shape="tiny", bits=4.0, questions=3, rows=2, new_tokens=4)
    found = gpu_check.measure_synthetic(args, tmp_path)
    assert found["scoring_tokens_per_s"] > 0
    assert found["generated_tokens_per_s"] > 0
    assert found["rows"] == 2


def test_a_step_that_fails_is_a_result_and_stops_nothing(gpu_check, tmp_path):
    def fail():
        raise ScoreError("self-test failed\nbecause")

    found = gpu_check.run_step("a step", fail, tmp_path)
    assert (found["outcome"], found["reason"]) == ("failed", "self-test failed")
    assert "ScoreError" in (tmp_path / "a_step.log").read_text()
    assert gpu_check.run_step("nothing said", lambda: {}["x"], tmp_path)["outcome"] == "failed"
    assert gpu_check.run_step("another", lambda: {"x": 1}, tmp_path)["outcome"] == "passed"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_without_a_card_nothing_passes_and_that_is_written_down(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_check.py", "--output", tmp_path, "--shape", "bench-70m"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "gpu_none.json").read_text()) == result
    outcomes = {name: check["outcome"] for name, check in result["checks"].items()}
    assert outcomes.pop("build") == "failed"
    assert set(outcomes.values()) == {"not run"}
    assert "no CUDA card" in result["checks"]["build"]["reason"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("gpu_none.json", "gpu_conversions.tar.gz", "gpu_logs.tar.gz"),
    }
