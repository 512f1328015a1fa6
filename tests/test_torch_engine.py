"""The torch engine: packed trees give what transformers gives one sequence at a time."""

from __future__ import annotations

import random

import pytest
import tiny
import torch
import transformers
from architecture_cases import CASES, MULTIMODAL_CASES, build
from oracles import gptq_weight
from test_architectures import save

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.writer import quantize_directory
from lm_eval_exl2.engines.base import StepTooLargeError
from lm_eval_exl2.engines.torch_engine import TorchEngine
from lm_eval_exl2.errors import EngineMemoryError, OptionError, RequestError, ScoreError
from lm_eval_exl2.plan import Budget
from lm_eval_exl2.records import GenerateRequest, ScoreRequest
from lm_eval_exl2.scoring import count_tokens, score, score_naively

VOCABULARY = 33  # the smallest of the random models


def random_requests(seed: int, count: int = 12) -> list[ScoreRequest]:
    """Requests that branch at several depths, some longer than the models' sliding windows."""
    draw = random.Random(seed)
    stem = [draw.randrange(VOCABULARY) for _ in range(30)]
    requests = []
    for index in range(count):
        own = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(12))]
        context = stem[: draw.randrange(1, 30)] + own
        target = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 6))]
        requests.append(ScoreRequest(index, context, target))
    return requests


@torch.inference_mode()
def one_by_one(model, requests):
    """Score with transformers' own model, masks and attention, each sequence alone."""
    found = []
    for request in requests:
        ids = torch.tensor([[*request.context_ids, *request.target_ids]])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
        targets = torch.tensor(request.target_ids)
        logits = logits[len(request.context_ids) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, targets[:, None])
        found.append((float(logprobs.sum()), bool((logits.argmax(-1) == targets).all())))
    return found


def in_order(scores):
    return [(s.logprob, s.is_greedy) for s in sorted(scores, key=lambda s: s.index)]


def assert_close(found, expected, tolerance=1e-4):
    for one, other in zip(found, expected, strict=True):
        assert one[0] == pytest.approx(other[0], abs=tolerance)
        assert one[1] == other[1]


def saved(name, folder):
    model = build(name, random.Random(1))
    save(model, folder)
    # Older transformers leave the soft-cap out of their fused attention.
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A quantized Llama: fused heads, biases, an odd vocabulary."""
    folder = tmp_path_factory.mktemp("llama")
    save(build("LlamaForCausalLM", random.Random(1)), folder / "source")
    quantize_directory(folder / "source", folder / "exl2", bits=4.5, head_bits=6)
    return folder / "exl2"


@pytest.mark.parametrize("name", [*CASES, *MULTIMODAL_CASES])
def test_tree_scores_equal_transformers_for_every_architecture(tmp_path, name):
    model = saved(name, tmp_path)
    engine = TorchEngine(Checkpoint(tmp_path), device="cpu")
    requests = random_requests(seed=2)
    expected = one_by_one(model, requests)
    for budget in (Budget(7), Budget(4096)):
        assert_close(in_order(score(requests, engine, budget)), expected)


@pytest.mark.parametrize("name", CASES)
def test_greedy_text_equals_transformers_for_every_architecture(tmp_path, name):
    model = saved(name, tmp_path)
    engine = TorchEngine(Checkpoint(tmp_path), device="cpu")
    prompts = [request.context_ids for request in random_requests(seed=3, count=5)]
    found = generate(engine, prompts, new_tokens=8)
    for prompt, tokens in zip(prompts, found, strict=True):
        assert tokens == greedy(model, prompt, 8)


@torch.inference_mode()
def greedy(model, prompt, new_tokens):
    """Decode by argmax, forwarding the whole sequence for every token."""
    ids = list(prompt)
    for _ in range(new_tokens):
        whole = torch.tensor([ids])
        logits = model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def generate(engine, prompts, new_tokens, **options):
    requests = [
        GenerateRequest(index, prompt, new_tokens, **options)
        for index, prompt in enumerate(prompts)
    ]
    found = [[] for _ in prompts]
    for token in engine.generate(requests, lambda _index, _token: False):
        found[token.index].append(token.token_id)
    return found


def test_the_slow_twin_and_every_budget_agree(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    requests = random_requests(seed=4, count=30)
    expected = in_order(score_naively(requests, engine))
    for budget in (Budget(1), Budget(5), Budget(64, rows=2), Budget(4096)):
        engine.counts.forwarded = 0
        assert_close(in_order(score(requests, engine, budget)), expected)
        assert engine.counts.forwarded == count_tokens(requests)


def test_packed_weights_give_the_very_same_scores(llama):
    requests = random_requests(seed=5)
    decoded, packed = (
        TorchEngine(Checkpoint(llama), device="cpu", weight_memory=memory)
        for memory in ("decoded", "packed")
    )
    assert in_order(score(requests, decoded, Budget(64))) == in_order(
        score(requests, packed, Budget(64))
    )
    assert packed.info.parameters == decoded.info.parameters
    assert not any("q_proj" in name for name, _ in packed.model.named_parameters())


@pytest.mark.parametrize("name", ["Phi3ForCausalLM", "GPT2LMHeadModel", "Gemma2ForCausalLM"])
def test_packed_weights_work_for_fused_transposed_and_tied_layers(tmp_path, name):
    saved(name, tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4.0, head_bits=6)
    requests = random_requests(seed=6)
    both = [
        in_order(
            score(
                requests,
                TorchEngine(Checkpoint(tmp_path / "exl2"), device="cpu", weight_memory=memory),
                Budget(64),
            )
        )
        for memory in ("decoded", "packed")
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize("memory", ["decoded", "packed"])
@pytest.mark.parametrize("order", ["random", "none"])
def test_a_gptq_directory_scores_like_its_decoded_weights(tmp_path, memory, order):
    tensors = tiny.gptq_tensors(order=order)
    folder = tiny.write(tmp_path, tensors, tiny.CONFIG | tiny.GPTQ)
    config = transformers.LlamaConfig(**tiny.CONFIG)
    model = transformers.LlamaForCausalLM(config).eval()
    state = {}
    for name in model.state_dict():
        module = name.removesuffix(".weight")
        parts = {
            n: tensors[f"{module}.{n}"]
            for n in ("qweight", "qzeros", "scales", "g_idx")
            if f"{module}.{n}" in tensors
        }
        weight = gptq_weight(parts, 32, 1) if parts else tensors[name]
        state[name] = torch.as_tensor(weight).float()
    model.load_state_dict(state)
    requests = random_requests(seed=12)
    engine = TorchEngine(Checkpoint(folder), device="cpu", weight_memory=memory)
    assert_close(
        in_order(score(requests, engine, Budget(64))), one_by_one(model, requests), tolerance=1e-3
    )


def test_packed_weights_are_refused_where_they_cannot_work(tmp_path, llama):
    saved("MixtralForCausalLM", tmp_path / "source")
    with pytest.raises(OptionError, match="needs a quantized checkpoint"):
        TorchEngine(Checkpoint(tmp_path / "source"), device="cpu", weight_memory="packed")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=4.0, head_bits=6)
    with pytest.raises(OptionError, match="not available for mixture-of-experts"):
        TorchEngine(Checkpoint(tmp_path / "exl2"), device="cpu", weight_memory="packed")


def test_prompts_with_a_common_beginning_are_forwarded_once(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    stem = list(range(1, 21))
    prompts = [[*stem, 21], [*stem, 22], [*stem, 22], stem]
    generate(engine, prompts, new_tokens=3)
    # 22 distinct prompt positions; of three new tokens the last is never forwarded.
    assert engine.counts.forwarded == 22 + 4 * 2


def test_a_beginning_that_later_prompts_share_is_not_forwarded_again(llama):
    stem = list(range(1, 31))
    prompts = sorted([*stem, first, second] for first in range(5) for second in range(3))
    alone = [
        generate(TorchEngine(Checkpoint(llama), device="cpu"), [prompt], 3)[0] for prompt in prompts
    ]
    engine = TorchEngine(Checkpoint(llama), device="cpu", max_rows=4)
    assert generate(engine, prompts, 3) == alone
    # 30 + 5 + 15 distinct prompt positions, two steps of every row, and nothing else.
    assert engine.counts.forwarded == 50 + 15 * 2


def test_many_samples_of_one_prompt_forward_it_once(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu", max_rows=4)
    prompt = list(range(1, 31))
    found = generate(engine, [prompt] * 12, 3, sampling={"do_sample": True, "temperature": 3.0})
    # Of the last token of the prompt the state is needed whenever four samples start.
    assert engine.counts.forwarded == 30 + 2 + 12 * 2
    assert len(found) == 12


def test_waiting_prompts_start_while_longer_ones_go_on(llama, monkeypatch):
    prompts = [request.context_ids for request in random_requests(seed=5, count=12)]
    lengths = [30, *[3] * 11]
    alone = [
        generate(TorchEngine(Checkpoint(llama), device="cpu"), [prompt], length)[0]
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    engine = TorchEngine(Checkpoint(llama), device="cpu", max_rows=4)
    steps, forward = [], engine.forward

    def noted(step, token_ids, positions, **options):
        if not options.get("repeatable", True):
            steps.append(len(token_ids))
        return forward(step, token_ids, positions, **options)

    monkeypatch.setattr(engine, "forward", noted)
    requests = [
        GenerateRequest(index, prompt, length)
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    found = [[] for _ in prompts]
    for token in engine.generate(requests, lambda _index, _token: False):
        found[token.index].append(token.token_id)
    assert found == alone
    # The longest row needs 29 steps; in that time three places serve all the others.
    assert len(steps) == 29
    assert max(steps) == 4


def test_prompts_in_any_order_and_of_any_length_are_continued_alike(llama):
    draw = random.Random(4)
    stem = [draw.randrange(VOCABULARY) for _ in range(20)]
    prompts = [stem[: draw.randrange(1, 20)] for _ in range(9)]
    prompts += [[*stem[: draw.randrange(1, 20)], draw.randrange(VOCABULARY)] for _ in range(9)]
    draw.shuffle(prompts)
    alone = [
        generate(TorchEngine(Checkpoint(llama), device="cpu"), [prompt], 4)[0] for prompt in prompts
    ]
    for rows in (1, 2, 5):
        engine = TorchEngine(Checkpoint(llama), device="cpu", max_rows=rows)
        assert generate(engine, prompts, 4) == alone


def test_unlike_prompts_do_not_pay_for_each_others_keys(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu", max_rows=8)
    prompts = [[token] * 25 for token in range(1, 9)]
    alone = [generate(engine, [prompt], 6)[0] for prompt in prompts]
    assert generate(engine, prompts, 6) == alone


def test_a_request_can_end_early_without_disturbing_the_others(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    prompts = [request.context_ids for request in random_requests(seed=7, count=6)]
    whole = generate(engine, prompts, 10)
    requests = [GenerateRequest(i, prompt, 10) for i, prompt in enumerate(prompts)]
    seen = [0] * len(prompts)

    def is_finished(index, _token):
        seen[index] += 1
        return seen[index] == index + 1

    found = [[] for _ in prompts]
    for token in engine.generate(requests, is_finished):
        found[token.index].append(token.token_id)
        assert token.is_last == (len(found[token.index]) == token.index + 1)
    assert found == [tokens[: index + 1] for index, tokens in enumerate(whole)]


def test_sampling_depends_on_the_seed_alone(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    sampling = {"do_sample": True, "temperature": 2.0, "top_k": 20}
    prompts = [[1, 2, 3], [4, 5], [1, 2, 3]]
    first = generate(engine, prompts, 12, sampling=sampling, seed=7)
    assert generate(engine, prompts[:1], 12, sampling=sampling, seed=7) == first[:1]
    assert first[0] == first[2]
    assert generate(engine, prompts[:1], 12, sampling=sampling, seed=8) != first[:1]


def test_end_tokens_are_not_produced_before_the_minimum(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    first = generate(engine, [[1, 2, 3]], 1)[0][0]
    held = generate(engine, [[1, 2, 3]], 3, min_new_tokens=2, stop_ids=frozenset([first]))
    assert first not in held[0][:2]


def test_a_warper_never_leaves_only_tokens_that_are_held_back(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    first = generate(engine, [[1, 2, 3]], 1)[0][0]
    held = {"min_new_tokens": 2, "stop_ids": frozenset([first])}
    found = generate(engine, [[1, 2, 3]], 3, sampling={"do_sample": True, "top_k": 1}, **held)
    assert first not in found[0][:2]


def test_the_token_budget_also_caps_the_rows_of_a_decoding_step(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu", max_batch_tokens=3)
    generate(engine, [[token] for token in range(1, 9)], 2)
    assert engine.counts.batch_sizes["generate_until"] == 3


def test_a_sampling_value_out_of_range_is_one_clear_line(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    with pytest.raises(RequestError, match="generation argument top_p=3"):
        generate(engine, [[1]], 1, sampling={"do_sample": True, "top_p": 3})


def test_nan_never_becomes_a_score(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    engine.model.get_output_embeddings().weight.data[0, 0] = float("nan")
    with pytest.raises(ScoreError, match="NaN or infinite in float32 on cpu; use dtype=float32"):
        list(score(random_requests(seed=8), engine, Budget(64)))


def test_running_out_of_memory_inside_a_step_changes_no_score(llama, monkeypatch):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    requests = random_requests(seed=9)
    expected = in_order(score(requests, engine, Budget(4096)))
    fail_above(engine, monkeypatch, limit=6)
    found = in_order(score(requests, engine, Budget(4096)))
    assert_close(found, expected)
    assert engine.counts.retried > 0


def test_a_single_token_that_does_not_fit_is_a_clear_error(llama, monkeypatch):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    fail_above(engine, monkeypatch, limit=0)
    with pytest.raises(EngineMemoryError):
        list(score(random_requests(seed=9), engine, Budget(4)))
    with pytest.raises(EngineMemoryError, match="a prompt of 2 tokens does not fit"):
        generate(engine, [[1, 2]], 1)


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_sequences_there_is_no_memory_for_wait_and_lose_nothing(llama, monkeypatch, limit):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    prompts = [request.context_ids for request in random_requests(seed=7, count=8)]
    sampling = {"do_sample": True, "temperature": 2.0}
    expected = generate(engine, prompts, 6), generate(engine, prompts, 6, sampling=sampling)
    fail_above(engine, monkeypatch, limit=limit)
    found = generate(engine, prompts, 6), generate(engine, prompts, 6, sampling=sampling)
    assert found == expected
    assert engine.counts.retried > 0


def test_nan_never_becomes_a_token(llama):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    engine.model.get_output_embeddings().weight.data[0, 0] = float("nan")
    with pytest.raises(ScoreError, match="NaN or infinite"):
        generate(engine, [[1, 2, 3]], 2)


def fail_above(engine, monkeypatch, limit):
    """Make the last layer fail as CUDA does when a step has more tokens than fit."""
    layer = engine.model.base_model.layers[-1]
    forward = layer.forward

    def limited(hidden, *args, **kwargs):
        if hidden.shape[1] > limit:
            raise torch.OutOfMemoryError("out of memory")
        return forward(hidden, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", limited)


def test_a_step_that_failed_left_nothing_behind(llama, monkeypatch):
    engine = TorchEngine(Checkpoint(llama), device="cpu")
    requests = random_requests(seed=10)
    from lm_eval_exl2.plan import Targets, next_chunk
    from lm_eval_exl2.prefix_tree import build_tree

    tree, _ = build_tree([request.context_ids for request in requests], [0] * len(requests))
    chunk = next_chunk(tree, Targets([], []), 0, Budget(10))
    with monkeypatch.context() as patch:
        fail_above(engine, patch, limit=3)
        with pytest.raises(StepTooLargeError):
            engine.score(chunk)
    assert engine.counts.forwarded == 0
    assert engine._buffer.length == 0


@pytest.mark.parametrize(
    ("device", "text"), [("gpu", "device 'gpu' is unknown"), ("tpu:0", "device 'tpu:0' is unknown")]
)
def test_an_unknown_device_is_one_clear_line(llama, device, text):
    with pytest.raises(OptionError, match=text):
        TorchEngine(Checkpoint(llama), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_without_a_card_the_harness_default_device_means_the_cpu(llama):
    assert TorchEngine(Checkpoint(llama), device="cuda:0").info.device in ("cpu", "mps")


def test_bfloat16_is_near_float32(llama):
    requests = random_requests(seed=11)
    exact, rounded = (
        in_order(score(requests, TorchEngine(Checkpoint(llama), device="cpu", dtype=d), Budget(64)))
        for d in ("float32", "bfloat16")
    )
    for one, other in zip(exact, rounded, strict=True):
        assert one[0] == pytest.approx(other[0], rel=0.05, abs=0.5)
        assert one[0] != other[0]


def test_the_window_ends_where_positions_stop_being_the_same_for_every_sequence(tmp_path):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 16,
        "long_factor": [2.0] * 16,
        "original_max_position_embeddings": 32,
    }
    keys = {"original_max_position_embeddings": 32, "rope_parameters": rope}
    model = build("Phi3ForCausalLM", random.Random(1))
    model.config.update({**keys, "hidden_size": 64, "num_attention_heads": 2})
    tiny_config = type(model.config).from_dict(model.config.to_dict())
    save(type(model)(tiny_config), tmp_path)
    info = TorchEngine(Checkpoint(tmp_path), device="cpu").info
    assert (info.max_length, info.position_limit) == (32, 32)
