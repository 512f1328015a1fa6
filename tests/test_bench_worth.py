"""Costs by hand counts; shares of the roofs against the bytes that a token moves."""

import pytest

from lm_eval_exl2.bench import worth
from lm_eval_exl2.bench.roofline import DeviceRates
from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.locate import locate


def _request(*, issued, last, tokens=5, prompt=10, scheduled=None):
    return {
        "prompt_tokens": prompt,
        "tokens": tokens,
        "issued_s": issued,
        "scheduled_s": scheduled,
        "last_token_s": last,
    }


def test_repetitions_cost_their_seconds_and_all_prompts_once_their_share():
    two = [_request(issued=0.0, last=1.0), _request(issued=0.5, last=2.0)]
    bench = {"repetitions": [{"requests": two}, {"requests": two}]}
    found = worth.bench_cost(bench, 3600.0)  # 1 a second
    assert found["seconds"] == pytest.approx(4.0)
    assert found["run"] == pytest.approx(4.0)
    assert found["output_per_million"] == pytest.approx(4e6 / 20)
    assert found["total_per_million"] == pytest.approx(4e6 / 60)
    assert found["evaluation"] == pytest.approx(2.0)
    assert worth.bench_cost({"repetitions": []}, 1.0) is None


def test_a_scenario_costs_from_its_first_arrival_and_only_if_it_ended():
    requests = [_request(issued=1.5, scheduled=1.0, last=4.0), _request(issued=9.0, last=None)]
    run = {"outcome": "complete", "requests": requests}
    found = worth.scenario_cost(run, 3600.0, prompts=7)
    assert found["seconds"] == pytest.approx(3.0)
    assert found["evaluation"] == pytest.approx(7 * 3.0)  # one request was answered
    assert worth.scenario_cost({**run, "outcome": "interrupted"}, 1.0, prompts=7) is None


@pytest.fixture(scope="module")
def checkpoint():
    return Checkpoint(locate("demo").directory)


def _bench(**figures):
    medians = {f"{name}_tokens_per_s": {"median": value} for name, value in figures.items()}
    repetition = {
        "requests": [_request(issued=0, last=1, prompt=100, tokens=40)] * 2,
        "prompt_tokens_forwarded": 160,
    }
    return {"figures": medians, "repetitions": [repetition], "together": False}


def _facts(**more):
    return {"engine": "torch", "model_dtype": "float32", "weight_memory": "decoded", **more}


RATES = DeviceRates("cpu", 1e9, {"float32": 1e30})


def test_decoding_moves_the_weights_as_the_engine_holds_them(checkpoint):
    decoded = worth.reached(_bench(decode=10.0, prefill=50.0), checkpoint, _facts(), RATES)
    assert decoded["weights"] == "float32, decoded at load"
    sizes = checkpoint.config.sizes
    # Every weight once, in 4 bytes, and 120 tokens' keys and values (100 and half of 40).
    numbers = sum(
        linear.in_features * linear.out_features for linear in checkpoint.linears.values()
    )
    cache = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * 120
    least = 4 * (numbers + cache)
    moved = 1e9 * decoded["decode"]["bandwidth_share"] / 10.0
    assert least <= moved < 1.1 * least  # norms and one row of the embedding come on top
    packed = worth.reached(
        _bench(decode=10.0, prefill=50.0), checkpoint, _facts(weight_memory="packed"), RATES
    )
    assert packed["weights"] == "as stored"
    assert packed["decode"]["bandwidth_share"] < 0.4 * decoded["decode"]["bandwidth_share"]


def test_a_rounded_cache_moves_less(checkpoint):
    facts = _facts(engine="exllamav2")
    shares = [
        worth.reached(_bench(decode=1.0, prefill=1.0), checkpoint, facts | more, RATES)
        for more in ({}, {"cache_mode": "Q4"})
    ]
    assert shares[1]["decode"]["bandwidth_share"] < shares[0]["decode"]["bandwidth_share"]


def test_without_medians_nothing_is_held_against_the_device(checkpoint):
    assert worth.reached(_bench(decode=1.0), checkpoint, _facts(), RATES) is None
