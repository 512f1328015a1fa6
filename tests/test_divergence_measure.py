"""Two models along a text, against transformers' own forwards; noise; kernels of exllamav2.

The checkpoints are real trained models in float16 and two EXL2 sizes; see `demo/README.md`.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import simulated_exllamav2
import torch
import torch.nn.functional as F
from divergence_cases import NAMES, brute_force, engines, sources, split, windows
from tiny_models import save_gemma3, save_model

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.divergence import measure as measuring
from lm_eval_exl2.divergence.measure import Layout, engine_source, measure
from lm_eval_exl2.divergence.models import EngineSettings, Model
from lm_eval_exl2.divergence.protocols import PROTOCOLS
from lm_eval_exl2.divergence.statistics import summarise
from lm_eval_exl2.engines import exllamav2_import, tree_engine
from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.engines.scripted import ScriptedEngine
from lm_eval_exl2.engines.torch_engine import TorchEngine
from lm_eval_exl2.errors import EngineMemoryError, ModelFormatError
from lm_eval_exl2.records import DistributionRequest, RoundingNoise

QBENCH = PROTOCOLS["qbench"]


@pytest.mark.parametrize("protocol", ["qbench", "llama.cpp"])
@pytest.mark.parametrize("names", [NAMES[:2], NAMES[::2], NAMES[:2][::-1]], ids=str)
def test_divergence_is_brute_force_over_transformers_own_logits(protocol, names):
    cut = windows(protocol)
    first, second = (engine_source(engines()[n], cut, Layout(1024, 25)) for n in names)
    (records,) = measure(cut, PROTOCOLS[protocol], first, [second])
    found = np.concatenate([record.kl for record in records])
    expected = brute_force(*(engines()[name] for name in names), cut)
    assert (np.abs(found - expected) <= 1e-7 + 1e-3 * expected).all()
    assert summarise(records).kl.value == pytest.approx(expected.mean(), rel=1e-4)


def test_tokens_that_follow_get_the_probabilities_that_the_scores_of_a_row_have():
    cut = windows()
    (records,) = measure(cut, QBENCH, *split(sources(cut)[:2]))
    for ids, record in zip(cut.ids, records, strict=True):
        for name, values in zip(NAMES, (record[3], record[4]), strict=False):
            expected = engines()[name].score_naively(ids, 63).logprobs
            assert values.tolist() == pytest.approx(list(expected), abs=1e-4)


def test_a_model_against_itself_is_0_up_to_rounding():
    cut = windows()
    source = engine_source(engines()[NAMES[0]], cut, Layout(1024, 25))
    (records,) = measure(cut, QBENCH, source, [source])
    found = summarise(records)
    assert max(abs(found.largest), abs(found.smallest)) < 1e-15
    assert found.agreement[0].value == 1.0
    assert found.perplexity_ratio.value == 1.0


def test_the_size_of_pieces_changes_nothing_but_rounding():
    cut = windows()
    (one,) = measure(cut, QBENCH, *split(sources(cut, rows=7)[:2]))
    (other,) = measure(cut, QBENCH, *split(sources(cut, rows=64)[:2]))
    for first, second in zip(one, other, strict=True):
        assert [len(part) for part in first] == [64, 64, 63, 63, 63]
        assert np.allclose(first.kl, second.kl, rtol=1e-4, atol=1e-9)


def test_values_that_are_not_finite_are_counted_where_they_were_injected():
    cut = windows()
    baseline, candidate, _ = sources(cut, rows=64)

    def damaged(number):
        (piece,) = candidate(number)
        piece = piece.clone()
        piece[5, 9] = [math.nan, math.inf, -math.inf, 0.0][number]  # 0.0: a probability of 1
        return iter([piece.log_softmax(-1)])

    (records,) = measure(cut, QBENCH, baseline, [damaged])
    assert [int((~np.isfinite(r.kl)).sum()) for r in records] == [1, 1, 1, 0]
    found = summarise(records)
    assert (found.positions, found.non_finite) == (256, 3)
    assert math.isfinite(found.kl.value)


def test_model_diff_is_the_other_direction_with_its_epsilon():
    cut = windows()
    (records,) = measure(cut, PROTOCOLS["model_diff"], *split(sources(cut)[::2]))
    for ids, record in zip(cut.ids, records, strict=True):
        base, other = (engines()[n].naive_logits(ids).double().softmax(-1) for n in NAMES[::2])
        expected = F.kl_div((base + 1e-10).log(), other, reduction="none").sum(-1)
        assert record.kl.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-7)
        tops = (x[:-1].topk(5).indices for x in (base, other))
        in_order = [(a == b).tolist() for a, b in zip(*tops, strict=True)]
        expected = [next((k for k in range(5) if not row[k]), 5) for row in in_order]
        assert record.agreeing.tolist() == expected


def test_pieces_have_bounded_memory_and_fit_every_engine():
    small, large = ScriptedEngine(), ScriptedEngine()
    assert measuring.choose_layout(1 << 17, [small, large]).rows == 64
    assert measuring.choose_layout(100, [small, large]).rows == small.info.max_batch_tokens
    assert measuring.choose_layout(1 << 30, [small]).rows == 1


def ask(engine, ids):
    request = {"positions": range(len(ids)), "vocabulary": 1024, "rows": 64}
    return torch.cat(list(engine.distributions(DistributionRequest(token_ids=ids, **request))))


def test_a_forward_that_does_not_fit_is_halved_until_it_does(monkeypatch):
    engine, ids = engines()[NAMES[0]], windows().ids[0]
    expected = ask(engine, ids)
    forward, sizes = tree_engine.TreeEngine.forward_tree, []

    def limited(self, buffer, keys, chunk, limit=20):
        sizes.append(len(chunk.token_ids))
        if sizes[-1] > limit:
            raise StepTooLargeError
        return forward(self, buffer, keys, chunk)

    monkeypatch.setattr(tree_engine.TreeEngine, "forward_tree", limited)
    assert torch.allclose(ask(engine, ids), expected, atol=1e-4)
    assert sizes == [64, 32, 16, 16, 16, 16]
    monkeypatch.setattr(
        tree_engine.TreeEngine, "forward_tree", lambda *given: limited(*given, limit=0)
    )
    with pytest.raises(EngineMemoryError, match="one token after 0"):
        ask(engine, ids)


# -- rounding noise ----------------------------------------------------------------------------


def test_every_window_gets_noise_of_its_own_and_the_same_in_every_run():
    cut = windows()
    twice = replace(cut, ids=[cut.ids[0], cut.ids[0]])
    engine, layout = engines()[NAMES[0]], Layout(1024, 25)

    def divergences(seed):
        noise = engine_source(engine, twice, layout, noise=RoundingNoise(2**-9, seed))
        (records,) = measure(twice, QBENCH, engine_source(engine, twice, layout), [noise])
        return [record.kl.tolist() for record in records]

    first, second = divergences(1)
    assert first != second
    assert divergences(1) == [first, second]
    assert divergences(2)[0] == second  # window n takes seed + n


@pytest.mark.parametrize(("stored", "expected"), [("F16", 2**-12), ("BF16", 2**-9)])
def test_noise_has_the_size_of_the_rounding_of_the_storage_type(stored, expected):
    model = Model("demo-fp16")
    model.storage_type = stored
    assert model.rounding == expected
    # What rounding to that type changes, measured: the same within a fifth.
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}[stored]
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1)).double()
    changed = ((values.to(dtype).double() - values) / values).pow(2).mean().sqrt()
    assert float(changed) == pytest.approx(expected, rel=0.2)


def test_quantized_checkpoints_round_to_float16_and_unknown_types_are_refused():
    assert Model("demo").storage_type == "F16"
    model = Model("demo-fp16")
    model.storage_type = "F8_E4M3"
    with pytest.raises(ModelFormatError, match="stores F8_E4M3"):
        _ = model.rounding


def test_noise_reaches_the_layers_however_a_model_is_built(tmp_path):
    for name in ("LlamaForCausalLM", "GPT2LMHeadModel", "Qwen3MoeForCausalLM", "Gemma3"):
        folder = tmp_path / name
        save_gemma3(folder) if name == "Gemma3" else save_model(folder, name)
        engine = TorchEngine(Checkpoint(folder), device="cpu")
        request = DistributionRequest(
            token_ids=range(3, 23), positions=range(20), vocabulary=100, rows=20
        )
        (before,), (noisy,) = (
            list(engine.distributions(replace(request, noise=noise)))
            for noise in (None, RoundingNoise(0.01, 1))
        )
        assert len(engine.layer_modules) == 2
        assert 1e-4 < float((noisy - before).abs().mean()) < 1.0, name


# -- kernels of exllamav2 ----------------------------------------------------------------------


@pytest.mark.slow
def test_two_models_on_exllamav2_side_by_side_diverge_as_on_torch(monkeypatch):
    simulated_exllamav2.install(monkeypatch)
    monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)
    settings, cut = EngineSettings(engine="exllamav2"), replace(windows(), ids=windows().ids[:2])
    layout = Layout(1024, 25)
    (expected,) = measure(cut, QBENCH, *split(sources(cut)[::2]))
    with (
        Model(NAMES[0]).loaded(settings, 64) as baseline,
        Model(NAMES[2]).loaded(settings, 64) as candidate,
    ):
        assert baseline.info.name == "exllamav2"
        pair = [engine_source(engine, cut, layout) for engine in (baseline, candidate)]
        noise = engine_source(baseline, cut, layout, noise=RoundingNoise(2**-12, 1))
        found, rounded = measure(cut, QBENCH, pair[0], [pair[1], noise])
    values = [summarise(records).kl.value for records in (expected, found, rounded)]
    assert values[1] == pytest.approx(values[0], rel=0.05)
    assert 0 < values[2] < values[0] / 1000
