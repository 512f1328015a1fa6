"""What every engine promises, asked of each: scripted, torch and exllamav2.

exllamav2 runs twice: on a CPU with its kernels simulated (tests/simulated_exllamav2.py says what
that means), and on an NVIDIA card where there is one (`pytest -m gpu`). The tolerance is that of
each engine's arithmetic; everything else must hold exactly.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import simulated_exllamav2
import torch
import transformers
from test_architectures import save

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.writer import quantize_directory
from lm_eval_exl2.engines import exllamav2_import
from lm_eval_exl2.engines.scripted import ScriptedEngine
from lm_eval_exl2.plan import Budget
from lm_eval_exl2.records import (
    DistributionRequest,
    GenerateRequest,
    RoundingNoise,
    ScoreRequest,
)
from lm_eval_exl2.scoring import count_tokens, score, score_naively

VOCABULARY = 97


@dataclass
class Case:
    """An engine and how exactly it computes."""

    engine: Any
    tolerance: float
    repeatable_text: bool = True
    """Whether the same request is continued alike beside any others."""


def make_model():
    """A small Llama with grouped heads whose distributions are peaked."""
    config = transformers.LlamaConfig(
        **{"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"head_dim": 32, "max_position_embeddings": 256, "tie_word_embeddings": False},
        initializer_range=0.15,
    )
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    save(make_model(), folder / "source")
    quantize_directory(folder / "source", folder / "exl2", bits=5.0, head_bits=6)
    return folder / "exl2"


def exllamav2_case(folder):
    from lm_eval_exl2.engines.exllamav2_engine import Exllamav2Engine
    from lm_eval_exl2.engines.exllamav2_settings import Exllamav2Settings, LoadSettings

    settings = Exllamav2Settings(load=LoadSettings(max_batch_tokens=512), max_rows=8)
    return Case(Exllamav2Engine(Checkpoint(folder), settings), 0.05, repeatable_text=False)


@pytest.fixture(
    params=["scripted", "torch", "simulated", pytest.param("exllamav2", marks=pytest.mark.gpu)]
)
def case(request, folder, monkeypatch):
    if request.param == "scripted":
        yield Case(ScriptedEngine(vocab_size=VOCABULARY, max_length=256), 0.0)
        return
    if request.param == "torch":
        from lm_eval_exl2.engines.torch_engine import TorchEngine

        found = Case(TorchEngine(Checkpoint(folder), device="cpu", max_rows=8), 1e-4)
    else:
        if request.param == "simulated":
            simulated_exllamav2.install(monkeypatch)
            monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)
        found = exllamav2_case(folder)
    yield found
    found.engine.close()


def random_requests(seed, count=24):
    draw = random.Random(seed)
    stem = [draw.randrange(VOCABULARY) for _ in range(40)]
    requests = []
    for index in range(count):
        own = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(12))]
        context = stem[: draw.randrange(1, 40)] + own
        target = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 6))]
        requests.append(ScoreRequest(index, context, target))
    return requests


def in_order(scores):
    return sorted(scores, key=lambda s: s.index)


def assert_close(found, expected, tolerance):
    assert [s.index for s in found] == [s.index for s in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=tolerance)


def generate(engine, prompts, new_tokens, **options):
    requests = [GenerateRequest(i, p, new_tokens, **options) for i, p in enumerate(prompts)]
    found = [[] for _ in prompts]
    for token in engine.generate(requests, lambda _index, _token: False):
        found[token.index].append(token.token_id)
        assert token.is_last == (len(found[token.index]) == new_tokens)
    return found


def test_the_slow_twin_and_every_budget_agree(case):
    requests = random_requests(1)
    expected = in_order(score_naively(requests, case.engine))
    for budget in (Budget(1), Budget(5), Budget(64, rows=2), Budget(512)):
        case.engine.counts.forwarded = 0
        found = in_order(score(requests, case.engine, budget))
        assert_close(found, expected, case.tolerance)
        assert case.engine.counts.forwarded == count_tokens(requests)


def test_a_score_does_not_depend_on_order_siblings_or_duplicates(case):
    requests = random_requests(2)
    expected = in_order(score(requests, case.engine, Budget(512)))
    shuffled = random.Random(3).sample(requests, len(requests))
    assert_close(in_order(score(shuffled, case.engine, Budget(512))), expected, 0.0)
    alone = [next(iter(score([r], case.engine, Budget(512)))) for r in requests[:4]]
    assert_close(alone, expected[:4], case.tolerance)
    doubled = requests + [
        ScoreRequest(100 + r.index, r.context_ids, r.target_ids) for r in requests
    ]
    found = in_order(score(doubled, case.engine, Budget(512)))
    assert [s.logprob for s in found[: len(requests)]] == [
        s.logprob for s in found[len(requests) :]
    ]


def test_the_same_scores_come_out_every_time(case):
    requests = random_requests(4)
    first = in_order(score(requests, case.engine, Budget(48)))
    assert in_order(score(requests, case.engine, Budget(48))) == first


def test_every_request_gets_its_tokens_and_the_last_is_marked(case):
    prompts = [r.context_ids for r in random_requests(5, count=10)]
    found = generate(case.engine, prompts, 6)
    assert [len(tokens) for tokens in found] == [6] * 10


def test_a_request_that_ends_early_leaves_and_the_others_go_on(case):
    prompts = [r.context_ids for r in random_requests(6, count=6)]
    requests = [GenerateRequest(i, p, 8) for i, p in enumerate(prompts)]
    seen = [0] * 6

    def is_finished(index, _token):
        seen[index] += 1
        return seen[index] == index + 1

    found = [[] for _ in prompts]
    for token in case.engine.generate(requests, is_finished):
        found[token.index].append(token.is_last)
    assert found == [[False] * index + [True] for index in range(6)]


def test_what_was_computed_is_said(case):
    info = case.engine.info
    assert info.name in ("scripted", "torch", "exllamav2")
    assert info.vocab_size == VOCABULARY
    assert info.max_length == 256


def test_greedy_text_is_the_most_likely_token_each_time(case):
    prompts = [r.context_ids for r in random_requests(7, count=5)]
    for prompt, tokens in zip(prompts, generate(case.engine, prompts, 5), strict=True):
        for place, token in enumerate(tokens):
            asked = ScoreRequest(0, prompt + tokens[:place], [token])
            (found,) = score([asked], case.engine, Budget(512))
            if not found.is_greedy:  # a tie within the noise of its arithmetic
                best = best_logprob(case.engine, asked.context_ids)
                assert best - found.logprob < 2 * case.tolerance


def best_logprob(engine, context):
    """Return the log-probability of the most likely next token."""
    requests = [ScoreRequest(token, context, [token]) for token in range(VOCABULARY)]
    return max(s.logprob for s in score(requests, engine, Budget(512)))


def ask_distributions(engine, ids, **options):
    request = {"positions": range(len(ids)), "vocabulary": VOCABULARY, "rows": 7} | options
    return torch.cat(list(engine.distributions(DistributionRequest(token_ids=ids, **request))))


def test_distributions_hold_the_scores_of_every_next_token(case):
    ids = random_ids(8, 40)
    found = ask_distributions(case.engine, ids, rows=13)
    assert found.shape == (40, VOCABULARY)
    assert found.dtype == torch.float32
    for place in (0, 11, 39):
        requests = [ScoreRequest(t, ids[: place + 1], [t]) for t in range(VOCABULARY)]
        expected = [s.logprob for s in in_order(score(requests, case.engine, Budget(512)))]
        assert found[place].tolist() == pytest.approx(expected, abs=case.tolerance or 1e-5)


def test_distributions_come_for_the_positions_and_the_vocabulary_asked_for(case):
    ids = random_ids(9, 40)
    whole = ask_distributions(case.engine, ids)
    request = DistributionRequest(token_ids=ids, positions=range(20, 39), vocabulary=60, rows=8)
    pieces = list(case.engine.distributions(request))
    assert [piece.shape for piece in pieces] == [(8, 60), (8, 60), (3, 60)]
    expected = whole[20:39, :60].log_softmax(-1)
    assert torch.allclose(torch.cat(pieces), expected, atol=case.tolerance or 1e-5)


def test_distributions_do_not_depend_on_how_many_tokens_a_forward_takes(case):
    ids = random_ids(10, 40)
    whole = ask_distributions(case.engine, ids)
    for tokens in (1, 17):
        found = ask_distributions(case.engine, ids, max_tokens=tokens)
        assert torch.allclose(found, whole, atol=case.tolerance)


def test_rounding_noise_has_the_size_asked_for_repeats_with_its_seed_and_leaves_nothing(case):
    ids = random_ids(11, 40)
    before = ask_distributions(case.engine, ids)

    def difference(scale, seed):
        noise = RoundingNoise(scale, seed)
        return ask_distributions(case.engine, ids, noise=noise) - before

    large = difference(0.05, 1)
    assert torch.equal(difference(0.05, 1), large)
    assert not torch.equal(difference(0.05, 2), large)
    # Ten times less noise changes ten times less, up to the rounding of the arithmetic.
    assert 5 < float(large.pow(2).mean().sqrt() / difference(0.005, 1).pow(2).mean().sqrt()) < 20
    assert torch.equal(ask_distributions(case.engine, ids), before)


def random_ids(seed, count):
    draw = random.Random(seed)
    return [draw.randrange(VOCABULARY) for _ in range(count)]
