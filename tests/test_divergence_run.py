"""Whole runs on the demo checkpoints: the command, what it refuses, a cache for the baseline."""

import argparse
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from divergence_cases import CPU, NAMES, brute_force, engines, sources, windows

from lm_eval_exl2.divergence import command
from lm_eval_exl2.divergence.baseline_cache import (
    BaselineCache,
    _row_values,
    measure_cached,
    write_cache,
)
from lm_eval_exl2.divergence.measure import measure
from lm_eval_exl2.divergence.models import Model, check_window
from lm_eval_exl2.divergence.protocols import PROTOCOLS
from lm_eval_exl2.divergence.report import table
from lm_eval_exl2.divergence.run import Settings, run
from lm_eval_exl2.divergence.statistics import summarise
from lm_eval_exl2.errors import ComparisonError, EngineMemoryError, OptionError

QBENCH, LLAMA_CPP = PROTOCOLS["qbench"], PROTOCOLS["llama.cpp"]


@pytest.fixture
def run_demo(monkeypatch):
    """Run with the engines that are loaded already."""
    monkeypatch.setattr(Model, "loaded", lambda self, *_: nullcontext(engines()[self.name]))

    def start(**options):
        return run(Settings(baseline=NAMES[0], candidates=NAMES[1:], engine=CPU, **options))

    return start


def test_fewer_bits_are_further_away_and_noise_is_nearer_than_any(run_demo):
    document = run_demo(text="demo", window=64, rows=6)
    floor, batched, good, damaged = (
        entry["summary"]["kl"]["value"] for entry in document["noise"] + document["candidates"]
    )
    assert 0 < batched < floor < good < damaged
    assert document["noise"][0]["facts"] == {"storage_type": "F16", "scale": 2**-12, "seed": 1}
    assert document["candidates"][1]["facts"]["bits_layers"] < 3


def test_padding_of_the_vocabulary_is_left_out_of_both_distributions(run_demo, monkeypatch):
    cut = replace(windows(), ids=windows().ids[:2])
    real = max(max(ids) for ids in cut.ids) + 1  # as if all above were padding
    monkeypatch.setattr("lm_eval_exl2.divergence.run.real_vocabulary", lambda _tokenizer: real)
    document = run_demo(text="demo", window=64, rows=2, noise_floor=False)
    expected = brute_force(engines()[NAMES[0]], engines()[NAMES[2]], cut, vocabulary=real)
    found = document["candidates"][1]["summary"]["kl"]["value"]
    assert real < 1024
    assert document["protocol"]["vocabulary"] == real
    assert found == pytest.approx(expected.mean(), rel=1e-4)
    assert found != pytest.approx(
        brute_force(engines()[NAMES[0]], engines()[NAMES[2]], cut).mean(), rel=1e-4
    )
    monkeypatch.setattr("lm_eval_exl2.divergence.run.real_vocabulary", lambda _tokenizer: real - 1)
    with pytest.raises(ComparisonError, match=f"token id {real - 1}, .* {real - 1} tokens in"):
        run_demo(text="demo", window=64, rows=2)


# -- a cache in place of the baseline ----------------------------------------------------------


def cached(folder, top_k, protocol=QBENCH):
    cut = windows(protocol.name)
    baseline, candidate, _ = sources(cut)
    write_cache(folder, cut, baseline, top_k=top_k, key={"k": top_k}, facts={})
    records = measure_cached(cut, BaselineCache(folder, {"k": top_k}), candidate)
    (whole,) = measure(cut, protocol, baseline, [candidate])
    return records, whole


@pytest.mark.parametrize("protocol", [QBENCH, LLAMA_CPP], ids=lambda protocol: protocol.name)
def test_a_cache_of_all_tokens_gives_the_same_numbers(tmp_path, protocol):
    records, whole = cached(tmp_path / "cache", 1024, protocol)
    for found, expected in zip(records, whole, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert np.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_a_cache_of_few_tokens_bounds_divergence_from_below_and_keeps_the_rest(tmp_path):
    records, whole = cached(tmp_path / "cache", 4)
    found, expected = summarise(records), summarise(whole)
    assert 0.3 * expected.kl.value < found.kl.value < expected.kl.value
    for one, other in zip(records, whole, strict=True):
        assert (one.kl <= other.kl + 1e-13).all()
    for name in ("agreement", "delta_p", "perplexity", "perplexity_ratio", "baseline_perplexity"):
        assert getattr(found, name) == getattr(expected, name)


def test_a_run_over_a_cache_names_its_bound_and_a_second_one_uses_it(
    run_demo, tmp_path, monkeypatch
):
    folder = tmp_path / "cache"
    first = run_demo(text="demo", window=64, rows=3, sequential=folder, top_k=8)
    assert {e["kl"] for e in first["candidates"]} == {
        "KL_top 8(baseline || candidate), a lower bound of KL"
    }
    assert sorted(path.name for path in folder.iterdir()) == [
        *("log_norms.npy", "log_tails.npy", "logprobs.npy", "meta.json"),
        *("target_logprobs.npy", "token_ids.npy"),
    ]
    monkeypatch.setattr("lm_eval_exl2.divergence.run.write_cache", None)  # not called again
    second = run_demo(text="demo", window=64, rows=3, sequential=folder, top_k=8)
    assert second == first
    with pytest.raises(OptionError, match=r"a baseline with other tokens, positions"):
        run_demo(text="demo", window=32, rows=3, sequential=folder, top_k=8)


def test_a_cache_is_written_whole_or_not_at_all(tmp_path):
    cut = windows()
    baseline, _, _ = sources(cut)

    def failing(number):
        if number == 2:
            raise EngineMemoryError("full")
        return baseline(number)

    with pytest.raises(EngineMemoryError):
        write_cache(tmp_path / "cache", cut, failing, top_k=4, key={}, facts={})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_cache_is_not_touched(run_demo, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OptionError, match="exists and is no cache"):
        run_demo(text="demo", window=64, rows=3, sequential=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_cache_begins_with_the_first_of_equally_likely_tokens_and_holds_none_twice():
    piece = torch.zeros(3, 40)
    piece[1, [5, 9, 30, 31]] = 1.0
    piece[2, 7] = 2.0
    for top_k in (1, 2, 6):
        found = _row_values(piece.log_softmax(-1), torch.tensor([1, 2]), top_k)
        assert found["token_ids"][:, 0].tolist() == [0, 5, 7]
        assert [len(set(row)) for row in found["token_ids"].tolist()] == [top_k] * 3
        kept = found["logprobs"].double().sub(found["log_norms"][:, None]).exp().sum(-1)
        assert (kept + found["log_tails"].exp()).tolist() == pytest.approx([1.0] * 3, abs=1e-12)


# -- what a run refuses, and how it shows ------------------------------------------------------


def test_model_diff_and_a_cache_are_refused(run_demo):
    with pytest.raises(OptionError, match="cannot be bounded"):
        run_demo(text="demo", protocol="model_diff", sequential="anywhere")


@pytest.mark.parametrize("error", [EngineMemoryError("full"), torch.OutOfMemoryError("full")])
def test_models_that_do_not_fit_together_are_told_what_holds_one_at_a_time(
    run_demo, monkeypatch, error
):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr("lm_eval_exl2.divergence.run._compare", fail)
    with pytest.raises(EngineMemoryError, match="use --sequential FOLDER, which holds one model"):
        run_demo(text="demo", window=64, rows=2, noise_floor=False)


def test_windows_longer_than_a_context_or_too_short_are_refused(run_demo):
    with pytest.raises(OptionError, match="2048 tokens is longer than the context of demo-fp16"):
        run_demo(text="demo")
    with pytest.raises(OptionError, match="expected at least 4"):
        check_window([], 3)


def parse(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_prints_a_table_and_writes_every_number(tmp_path, capsys):
    file = tmp_path / "found.json"
    words = ["--text", "demo", "--window", "64", "--rows", "3", "--device", "cpu"]
    arguments = parse("demo-fp16", "demo-2.5bpw", *words, "--json", str(file))
    assert arguments.command(arguments) == 0
    printed, document = capsys.readouterr().out, json.loads(file.read_text())
    assert printed.splitlines() == list(table(document))
    assert "KL(baseline || candidate), in nats" in printed
    assert "demo-2.5bpw (2.92)" in printed
    assert "arXiv 2606.19558" in printed
    assert document["baseline"]["digest"] == Model("demo-fp16").digest
    assert document["settings"]["candidates"] == ["demo-2.5bpw"]
    assert document["candidates"][0]["summary"]["positions"] == 192
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_the_command_refuses_a_json_file_in_no_folder_before_it_runs(tmp_path):
    arguments = parse("absent-a", "absent-b", "--json", str(tmp_path / "no" / "found.json"))
    with pytest.raises(OptionError, match="there is no such folder"):
        command.run(arguments)


@pytest.mark.parametrize("words", [["a"], ["a", "b", "--window", "0"], ["a", "b", "--rows", "x"]])
def test_wrong_usage_ends_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*words)
    assert end.value.code == 2
    assert "error" in capsys.readouterr().err


def test_a_report_of_a_model_that_gives_nothing_shows_no_numbers(run_demo):
    document = run_demo(text="demo", window=64, rows=3)
    summary = document["candidates"][0]["summary"]
    for name in ("kl", "delta_p", "perplexity", "perplexity_ratio"):
        summary[name] = dict.fromkeys(summary[name])
    summary["median"] = summary["delta_p_rms"] = None
    lines = {line[:20].strip(): line for line in table(document)}
    assert " - " in lines["mean ± se"]
    assert " - " in lines["perplexity ratio"]


def test_imports_of_the_command_stay_light():
    code = (
        "import sys, lm_eval_exl2.divergence.command\n"
        "loaded = {'torch', 'lm_eval', 'transformers', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
