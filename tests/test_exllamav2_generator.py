"""The paged generator: exllamav2's real dynamic generator over simulated kernels and flash-attn.

Simulated are the extension and flash-attn (tests/simulated_*.py); jobs, pages, batching, drafts
and results are exllamav2's own code. The oracle is our own decoding and, for single results,
what `generator/dynamic.py` of 0.3.2 writes into them.
"""

import dataclasses
import random

import pytest
import torch
from bench_cases import alone_texts, check_joined, late_arrivals
from test_architectures import save
from test_exllamav2_engine import (
    VOCABULARY,
    load,
    make_model,
    random_ids,
    simulated,  # noqa: F401  a fixture
    texts,
    write,
)

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.writer import quantize_directory
from lm_eval_exl2.engines.exllamav2_generator import DRAFT_TOKENS, PAGE_TOKENS, why_not_paged
from lm_eval_exl2.engines.exllamav2_import import import_exllamav2
from lm_eval_exl2.engines.exllamav2_words import TokenTable, sampler_settings, tokens_of
from lm_eval_exl2.errors import EngineMemoryError, OptionError, RequestError, ScoreError
from lm_eval_exl2.records import GenerateRequest

# exllamav2's pages hold 256 tokens, so prompts that share one need a longer window than usual.
LONG = {"max_position_embeddings": 1024}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model whose next token is always clear, so that rounding changes no text."""
    folder = tmp_path_factory.mktemp("paged")
    model = make_model("LlamaForCausalLM", **LONG)
    with torch.no_grad():
        model.lm_head.weight.copy_((model.lm_head.weight * 4).half())
    save(model, folder / "source")
    quantize_directory(folder / "source", folder / "exl2", bits=6.0, head_bits=8)
    return folder / "exl2"


@pytest.fixture
def paged(simulated):  # noqa: F811
    """Simulate the kernels and flash-attn."""
    return simulated(flash_attn=True)


def load_paged(folder, **settings):
    engine = load(folder, **({"max_batch_tokens": 512, "cache_size": 4096} | settings))
    assert why_not_paged(engine) is None
    return engine


def own_texts(engine, prompts, new_tokens=8, **options):
    """Continue prompts by our own decoding, one at a time."""
    found = []
    for prompt in prompts:
        request = GenerateRequest(0, prompt, new_tokens, **options)
        tokens = engine.decode([request], lambda _index, _token: False)
        found.append([token.token_id for token in tokens])
    return found


def test_paged_text_is_the_text_of_our_own_decoding(llama, paged):
    engine = load_paged(llama)
    prompts = [random_ids(5 + 7 * i, seed=i) for i in range(20)]  # more than run together
    assert texts(engine, prompts) == own_texts(engine, prompts)
    assert 1 < engine.counts.batch_sizes["generate_until"] <= 8


def test_prompts_of_one_token_are_continued(llama, paged):
    engine = load_paged(llama)
    assert texts(engine, [[5], [6]]) == own_texts(engine, [[5], [6]])


def test_pages_that_prompts_share_are_filled_once(llama, paged):
    engine = load_paged(llama)
    stem = random_ids(2 * PAGE_TOKENS + 40)
    prompts = [[*stem, token] for token in range(6)]
    found = texts(engine, prompts, new_tokens=3)
    # Whole pages are shared, and the rest of the stem is copied from the job that has it.
    assert engine.counts.forwarded <= len(stem) + 6 * (1 + 2) + 6
    assert found == own_texts(engine, prompts, new_tokens=3)


def test_a_job_that_the_caller_ends_makes_room_at_once(llama, paged):
    engine = load_paged(llama)
    prompts = [random_ids(12, seed=i) for i in range(12)]
    seen = [0] * 12

    def is_finished(index, _token):
        seen[index] += 1
        return seen[index] == index % 5 + 1

    requests = [GenerateRequest(i, p, 500) for i, p in enumerate(prompts)]
    found = [[] for _ in prompts]
    for token in engine.generate(requests, is_finished):
        found[token.index].append((token.token_id, token.is_last))
    assert [[last for _, last in tokens] for tokens in found] == [
        [False] * (i % 5) + [True] for i in range(12)
    ]
    expected = own_texts(engine, prompts, new_tokens=5)
    assert [[t for t, _ in tokens] for tokens in found] == [
        tokens[: i % 5 + 1] for i, tokens in enumerate(expected)
    ]
    assert engine._paged._generator.num_remaining_jobs() == 0


def test_a_caller_that_stops_listening_leaves_no_job_behind(llama, paged):
    engine = load_paged(llama)
    requests = [GenerateRequest(i, random_ids(9, seed=i), 50) for i in range(12)]
    stream = engine.generate(requests, lambda _index, _token: False)
    for _ in range(5):
        next(stream)
    stream.close()
    assert engine._paged._generator.num_remaining_jobs() == 0
    prompt = random_ids(9, seed=3)
    assert texts(engine, [prompt]) == own_texts(engine, [prompt])


def test_every_end_token_ends_a_text_and_is_handed_over(llama, paged):
    """exllamav2 keeps only the first of several, and holds the token itself back."""
    engine = load_paged(llama)
    prompts = [random_ids(6, seed=i) for i in range(6)]
    whole = own_texts(engine, prompts, new_tokens=6)
    ends = frozenset({whole[0][2], whole[1][3], whole[2][5]})
    found = texts(engine, prompts, new_tokens=6, stop_ids=ends)
    for tokens, expected in zip(found, whole, strict=True):
        first = next((i for i, token in enumerate(expected) if token in ends), 5)
        assert tokens == expected[: first + 1]


def test_end_tokens_are_not_produced_before_the_minimum(llama, paged):
    engine = load_paged(llama)
    prompt = random_ids(6)
    (first, *_), *_ = own_texts(engine, [prompt])
    options = {"min_new_tokens": 3, "stop_ids": frozenset([first])}
    found = texts(engine, [prompt], 6, **options)
    assert first not in found[0][:3]
    assert found == own_texts(engine, [prompt], 6, **options)[:1] or first in found[0][3:]


def test_the_limit_of_new_tokens_is_exact(llama, paged):
    engine = load_paged(llama)
    for limit in (1, 2, 7):
        found = texts(engine, [random_ids(6, seed=i) for i in range(3)], limit)
        assert [len(tokens) for tokens in found] == [limit] * 3


def test_no_token_is_chosen_from_numbers_that_are_none(llama, paged, monkeypatch):
    engine = load_paged(llama)
    head = engine.model.modules[-1]
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda *a, **k: forward(*a, **k) * float("nan"))
    with pytest.raises(ScoreError, match="NaN or infinite in float16"):
        texts(engine, [random_ids(6)])


@pytest.mark.parametrize("length", [1024, 64])
def test_pages_that_lose_what_came_before_are_caught_before_any_text(
    llama, paged, monkeypatch, length
):
    engine = load_paged(llama, max_length=length)
    attend = paged_attention = engine.exllamav2.attn.flash_attn_with_kvcache

    def forgetful(**arguments):
        arguments["cache_seqlens"] = arguments["cache_seqlens"].clamp(max=1)
        return attend(**arguments)

    monkeypatch.setattr(engine.exllamav2.attn, "flash_attn_with_kvcache", forgetful)
    with pytest.raises(ScoreError, match="self-test failed: paged attention changes"):
        texts(engine, [random_ids(20)])
    monkeypatch.setattr(engine.exllamav2.attn, "flash_attn_with_kvcache", paged_attention)
    assert len(texts(engine, [random_ids(20)])[0]) == 8


def test_sampled_text_depends_on_the_seed_and_not_on_order(llama, paged):
    engine = load_paged(llama)
    sampling = {"do_sample": True, "temperature": 3.0, "min_p": 0.01}
    prompts = [random_ids(6, i) for i in range(10)]
    requests = [GenerateRequest(i, p, 8, sampling, seed=i) for i, p in enumerate(prompts)]

    def run(order):
        found = [[] for _ in prompts]
        for token in engine.generate(order, lambda _index, _token: False):
            found[token.index].append(token.token_id)
        return found

    first = run(requests)
    assert run(random.Random(0).sample(requests, 10)) == first
    others = [dataclasses.replace(request, seed=100) for request in requests]
    assert run(others) != first


def test_what_its_sampler_does_differently_is_decoded_by_us(llama, paged, monkeypatch):
    engine = load_paged(llama)
    prompts = [random_ids(20, i) for i in range(4)]
    penalty = {"repetition_penalty": 1.3}
    mixed = [GenerateRequest(i, p, 6, penalty if i % 2 else {}) for i, p in enumerate(prompts)]
    found = [[] for _ in prompts]
    for token in engine.generate(mixed, lambda _index, _token: False):
        found[token.index].append(token.token_id)
    for index, prompt in enumerate(prompts):
        sampling = penalty if index % 2 else {}
        assert found[index] == own_texts(engine, [prompt], 6, sampling=sampling)[0]


def test_pages_make_room_for_text_that_is_decoded_by_us(llama, paged):
    engine = load_paged(llama)
    greedy, sampled = {}, {"do_sample": True, "top_p": 0.9}
    for sampling in (sampled, greedy, sampled, greedy):
        texts(engine, [random_ids(20)], 4, sampling=sampling)
        assert (engine._paged is None) == (sampling is sampled)
    engine._close_pages()
    assert "forward_chunk" not in vars(engine.model)  # nothing of it is left behind


# -- drafts -----------------------------------------------------------------------------------


def test_repeated_text_is_drafted_and_the_text_is_the_same(llama, paged):
    engine = load_paged(llama, ngram_draft=True, spare_positions=DRAFT_TOKENS + 1)
    prompts = [random_ids(9, seed=i) for i in range(6)]
    for limit in (1, 5, 40):
        found = texts(engine, prompts, limit)
        assert [len(tokens) for tokens in found] == [limit] * 6  # not limit - drafted
        assert found == own_texts(engine, prompts, limit)
    assert engine.counts.drafted > engine.counts.accepted > 0
    assert engine.info.details["ngram_draft"] is True


def test_a_draft_model_changes_no_text(llama, tmp_path, paged):
    save(make_model("LlamaForCausalLM", num_hidden_layers=1, **LONG), tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "draft", bits=4.0, head_bits=6)
    for draft in (tmp_path / "draft", llama):
        engine = load_paged(llama, draft=Checkpoint(draft), spare_positions=DRAFT_TOKENS + 1)
        prompts = [random_ids(9, seed=i) for i in range(5)]
        found = texts(engine, prompts, 12)
        assert found == own_texts(engine, prompts, 12)
        assert engine.counts.drafted > 0
        if draft == llama:  # it proposes what it would say itself
            assert engine.counts.accepted > 0.8 * engine.counts.drafted
        engine.close()


def test_drafts_reach_beyond_the_window_without_reading_past_the_tables(llama, paged):
    """The simulated kernels refuse positions that are not in the table."""
    engine = load_paged(llama, ngram_draft=True, max_length=128, spare_positions=DRAFT_TOKENS + 1)
    assert engine.info.max_length == 128
    assert len(texts(engine, [random_ids(100)], 28)[0]) == 28


def test_a_draft_model_of_other_tokens_is_refused(llama, tmp_path, paged):
    folder = write(tmp_path, vocab_size=50, **LONG)
    engine = load_paged(llama, draft=Checkpoint(folder), spare_positions=DRAFT_TOKENS + 1)
    with pytest.raises(OptionError, match="draft_model has 50 tokens and the model 97"):
        texts(engine, [[1, 2]])


def test_drafting_without_pages_is_refused_with_the_reason(llama, simulated):  # noqa: F811
    with pytest.raises(OptionError, match=r"drafting needs paged attention, and flash-attn"):
        load(llama, ngram_draft=True, spare_positions=DRAFT_TOKENS + 1)


# -- pages ------------------------------------------------------------------------------------


def test_a_job_larger_than_all_pages_says_what_helps(llama, paged):
    engine = load_paged(llama, cache_size=256)
    with pytest.raises(EngineMemoryError, match=r"256 tokens of the cache; raise cache_size"):
        texts(engine, [random_ids(200)], 100)


def out_of_memory(*_arguments, **_options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_pages_that_do_not_fit_say_what_helps(llama, paged, monkeypatch):
    engine = load_paged(llama)
    with monkeypatch.context() as patched:
        patched.setattr(engine.exllamav2, "ExLlamaV2Cache", out_of_memory)
        with pytest.raises(EngineMemoryError, match=r"pages of 4096 tokens .* smaller cache_size"):
            texts(engine, [random_ids(20)])
    assert texts(engine, [random_ids(20)]) == own_texts(engine, [random_ids(20)])


def test_a_forward_beside_the_pages_that_does_not_fit_says_what_helps(llama, paged, monkeypatch):
    engine = load_paged(llama)
    expected = texts(engine, [random_ids(20)])
    with monkeypatch.context() as patched:
        patched.setattr(engine.model.modules[-1], "forward", out_of_memory)
        with pytest.raises(EngineMemoryError, match=r"pages of 4096 tokens .* smaller cache_size"):
            texts(engine, [random_ids(20)])
    assert texts(engine, [random_ids(20)]) == expected


@pytest.mark.parametrize("mode", [pytest.param("Q8", marks=pytest.mark.slow), "Q6", "Q4"])
def test_pages_can_be_rounded(llama, paged, mode):
    engine = load_paged(llama, cache_mode=mode)
    found = texts(engine, [random_ids(30, seed=i) for i in range(3)])
    assert [len(tokens) for tokens in found] == [8] * 3
    engine.close()


def test_pages_take_what_memory_is_free_and_no_more_than_can_be_used(llama, simulated):  # noqa: F811
    simulated(flash_attn=True, free_bytes=2 << 30)
    for settings, tokens in (({}, 8 * 1024), ({"cache_size": 1000}, 768)):
        engine = load(llama, max_batch_tokens=512, **settings)
        assert engine._paged is None  # pages are not allocated before there is text to write
        texts(engine, [[1, 2]])
        assert engine._paged._tokens == tokens


@pytest.mark.parametrize("name", ["MistralForCausalLM", "Gemma2ForCausalLM"])
def test_windows_and_soft_caps_are_decoded_by_us(tmp_path, paged, name):
    engine = load(write(tmp_path, name), max_batch_tokens=512)
    assert why_not_paged(engine)
    found = texts(engine, [random_ids(12, seed=i) for i in range(3)])
    assert [len(tokens) for tokens in found] == [8] * 3
    assert engine._paged is None


def test_a_budget_below_one_page_is_decoded_by_us(llama, paged):
    engine = load(llama, max_batch_tokens=100)
    assert "a page of 256 tokens is more than max_batch_tokens" in why_not_paged(engine)
    assert len(texts(engine, [random_ids(150)], 4)[0]) == 4


def test_positions_past_the_window_are_never_asked_for(llama, paged):
    engine = load_paged(llama, max_length=64)
    assert len(texts(engine, [random_ids(60)], 5)[0]) == 5
    with pytest.raises(RequestError, match="position 64 is beyond the 64 positions"):
        texts(engine, [random_ids(60)], 6)


# -- translations -----------------------------------------------------------------------------


def test_greedy_settings_say_everything_exllamav2_would_default():
    settings = sampler_settings({})
    assert settings == {
        **{"token_repetition_penalty": 1.0, "temperature": 1.0, "top_k": 1, "top_p": 0.0},
    }


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"do_sample": False, "temperature": 0.7}, {"top_k": 1}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 0, "top_p": 0.0, "min_p": 0.0}),
        (
            {"do_sample": True, "temperature": 0.6, "min_p": 0.1},
            {"temperature": 0.6, "top_p": 0.0, "top_k": 0, "min_p": 0.1},
        ),
        ({"do_sample": True, "top_p": 1.0, "top_k": 0}, {"top_p": 0.0, "top_k": 0}),
        ({"do_sample": True, "repetition_penalty": 1.0, "typical_p": None}, {"temperature": 1.0}),
    ],
)
def test_sampling_parameters_keep_their_meaning(sampling, expected):
    settings = sampler_settings(sampling)
    assert settings.items() >= expected.items()
    assert settings["token_repetition_penalty"] == 1.0


@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 1.1},
        {"no_repeat_ngram_size": 3},
        {"do_sample": True, "typical_p": 0.9},
        {"do_sample": True, "epsilon_cutoff": 1e-3},
        {"do_sample": True, "temperature": 0.001},
        {"do_sample": True, "top_p": 0.0},
        {"do_sample": True, "top_p": 0.95},
        {"do_sample": True, "top_k": 50},
    ],
)
def test_what_exllamav2_samples_otherwise_is_left_to_us(sampling):
    assert sampler_settings(sampling) is None


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", [{"temperature": 0.6}, {"temperature": 2.0, "min_p": 0.1}])
def test_its_sampler_draws_what_transformers_would(sampling):
    """Its compiled sampler, asked with evenly spaced random numbers (it runs on the CPU)."""
    import transformers

    import_exllamav2()
    ext = __import__("exllamav2.ext", fromlist=["_"]).exllamav2_ext
    none, draws = torch.empty((1, 1), device="meta"), 4000
    logits = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1)) * 3
    expected = transformers.TemperatureLogitsWarper(sampling["temperature"])(None, logits[0])
    if "min_p" in sampling:
        expected = transformers.MinPLogitsWarper(sampling["min_p"])(None, expected)
    settings = sampler_settings({"do_sample": True, **sampling})
    counts, token, share = torch.zeros(128), torch.empty(1, 1).long(), torch.empty(1, 1)
    for number in range(draws):
        ext.sample_basic(
            *(logits.clone(), settings["temperature"], settings["top_k"], settings["top_p"], 0.0),
            *(settings["min_p"], 0.0, 0.0, (number + 0.5) / draws, token, share, none, none, none),
            *(False, [], 1.5, 0.1, 1.0, none, 0.0, 0.1, 0.0, 0.0, 1.0, 0.0, 0.0),
        )
        counts[int(token)] += 1
    assert (counts / draws - expected[0].softmax(-1)).abs().max() < 2 / draws


def test_settings_and_jobs_exist_under_these_names(paged):
    import inspect

    generator = __import__("exllamav2.generator", fromlist=["_"])
    assert set(inspect.signature(generator.ExLlamaV2Sampler.Settings).parameters) >= {
        *("token_repetition_penalty", "temperature", "top_k", "top_p", "min_p"),
    }
    job = inspect.signature(generator.ExLlamaV2DynamicJob.__init__).parameters
    assert set(job) >= {
        *("input_ids", "max_new_tokens", "min_new_tokens", "gen_settings", "seed"),
        *("stop_conditions", "return_logits"),
    }
    # Both swallow names they do not know.
    given = inspect.signature(generator.ExLlamaV2DynamicGenerator.__init__).parameters
    assert set(given) >= {
        *("model", "cache", "tokenizer", "max_batch_size", "max_q_size", "max_chunk_size"),
        *("draft_model", "draft_cache", "num_draft_tokens", "use_ngram_draft", "paged"),
    }


def test_tokens_held_back_at_the_end_are_not_lost():
    """What a stop token leaves behind, as `emit` of 0.3.2 writes it."""
    last = {"eos": True, "eos_reason": "stop_token", "held": {"token_ids": torch.tensor([[4, 2]])}}
    assert tokens_of(last) == [4, 2]
    both = {
        "token_ids": torch.tensor([[9]]),
        "held": {"text": "x", "token_ids": torch.tensor([[2]])},
    }
    assert tokens_of(both) == [9, 2]
    assert tokens_of({"eos": False, "stage": "streaming"}) == []


def test_a_table_without_text_never_holds_anything_back():
    table = TokenTable(VOCABULARY)
    assert table.get_vocab_size() == VOCABULARY
    assert set(table.get_id_to_piece_list(True)) == {""}


def test_arrivals_join_a_running_batch(llama, paged):
    engine = load_paged(llama)
    prompts = [[5, 6, 7], [8, 9], [5, 6]]
    alone = alone_texts(engine, prompts, 12)
    check_joined(late_arrivals(engine, prompts, count=12), alone)


def test_a_forgotten_prompt_is_computed_again(llama, paged):
    engine = load_paged(llama)
    prompt = random_ids(300, seed=3)  # more than a page

    def forwarded():
        before = engine.counts.forwarded
        texts(engine, [prompt], new_tokens=2)
        return engine.counts.forwarded - before

    assert forwarded() == 301
    assert forwarded() < 100
    engine.forget()
    assert forwarded() == 301


def test_requests_that_pause_must_all_be_for_pages(llama, paged):
    engine = load_paged(llama)
    own = GenerateRequest(0, [5, 6], 4, {"repetition_penalty": 1.5})
    with pytest.raises(ValueError, match="must all be for the paged generator"):
        list(engine.generate([own, None], lambda _index, _token: False))
