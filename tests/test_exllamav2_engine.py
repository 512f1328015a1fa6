"""The exllamav2 engine on a CPU: exllamav2's own Python, its kernels simulated in PyTorch.

The oracle is the torch engine on the same files, which shares no arithmetic with it: float32,
transformers' layers, weights decoded elsewhere. What float16 kernels on a card add to that is
asked by the tests with `kernels` under the marker gpu, and by benchmarks/gpu_check.sh.
"""

import functools
import json
import math
import random

import pytest
import simulated_exllamav2
import simulated_handles
import tiny
import torch
import transformers
from architecture_cases import CASES, MULTIMODAL_CASES, TOKENS
from test_architectures import save
from test_model_config import ROPES

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.writer import quantize_directory
from lm_eval_exl2.engines import exllamav2_attention, exllamav2_import, exllamav2_loading, self_test
from lm_eval_exl2.engines.exllamav2_engine import Exllamav2Engine
from lm_eval_exl2.engines.exllamav2_generator import why_not_paged
from lm_eval_exl2.engines.exllamav2_settings import Exllamav2Settings, LoadSettings
from lm_eval_exl2.engines.model_config import ConfigSettings
from lm_eval_exl2.engines.self_test import branch_logits
from lm_eval_exl2.engines.torch_engine import TorchEngine
from lm_eval_exl2.errors import (
    EngineMemoryError,
    MissingDependencyError,
    ModelFormatError,
    OptionError,
    RequestError,
    ScoreError,
)
from lm_eval_exl2.plan import Budget
from lm_eval_exl2.records import GenerateRequest, ScoreRequest
from lm_eval_exl2.scoring import score

VOCABULARY = 97
# Root mean square of logit differences, as a share of their deviation: what float16 does to
# models as small and as peaked as these. Real kernels also add up in float16.
TOLERANCE = 0.03 if torch.cuda.is_available() else 0.01

SIZES = {
    **{"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"max_position_embeddings": 128, "tie_word_embeddings": False},
}
# What its kernels get wrong is left out here, and refused below.
CHANGES = {
    "LlamaForCausalLM": {"mlp_bias": False},
    "GraniteForCausalLM": {"mlp_bias": False, "attention_bias": False},
    "Qwen3ForCausalLM": {"head_dim": 64},
    "Qwen3MoeForCausalLM": {"head_dim": 64, "norm_topk_prob": True},
    "CohereForCausalLM": {"head_dim": 64, "hidden_size": 128},
    "Gemma3ForConditionalGeneration": {"head_dim": 64},
}
ARCHITECTURES = [
    name
    for name in (*CASES, *MULTIMODAL_CASES)
    if name not in ("GPT2LMHeadModel", "GPTBigCodeForCausalLM", "Starcoder2ForCausalLM")
]


def make_model(name, **keys):
    """A random model of an architecture, of sizes that the kernels can compute."""
    model_class = getattr(transformers, name)
    if name in CASES:
        _, extras = CASES[name]
        keys = SIZES | TOKENS | extras | CHANGES.get(name, {}) | keys
        config = model_class.config_class(**keys)
    else:
        _, extras, model_type, vision = MULTIMODAL_CASES[name]
        keys = SIZES | TOKENS | extras | CHANGES.get(name, {}) | keys
        text = keys | {"model_type": model_type}
        config = model_class.config_class(text_config=text, vision_config=vision)
        config.tie_word_embeddings = False
    torch.manual_seed(3)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or min(parameter.shape) == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(std=0.1)
            parameter.copy_(parameter.half())
    return model


def write(folder, name="LlamaForCausalLM", *, bits=5.0, **keys):
    """Write a quantized random model; return its directory."""
    save(make_model(name, **keys), folder / "source")
    quantize_directory(folder / "source", folder / "exl2", bits=bits, head_bits=6)
    return folder / "exl2"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    """A model with a sliding window of 8 tokens in every layer."""
    return write(tmp_path_factory.mktemp("mistral"), "MistralForCausalLM")


@pytest.fixture
def simulated(monkeypatch):
    """Simulate the kernels; give a function that does so with other libraries found."""

    def install(**found):
        module = simulated_exllamav2.install(monkeypatch, **found)
        monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)
        return module

    install()
    return install


@pytest.fixture(params=["simulated", pytest.param("card", marks=pytest.mark.gpu)])
def kernels(request):
    """Simulated kernels, or the real ones on a card."""
    if request.param == "simulated":
        request.getfixturevalue("simulated")


def load(folder, *, max_batch_tokens=256, max_rows=8, **settings):
    of_loading = {
        name: settings.pop(name)
        for name in ("max_length", "gpu_split", "config", "lora", "spare_positions", "device")
        if name in settings
    }
    return Exllamav2Engine(
        Checkpoint(folder),
        Exllamav2Settings(
            load=LoadSettings(max_batch_tokens=max_batch_tokens, **of_loading),
            max_rows=max_rows,
            **settings,
        ),
    )


def random_ids(count, seed=0):
    draw = random.Random(seed)
    return [draw.randrange(VOCABULARY) for _ in range(count)]


def assert_same_model(found, expected, tolerance=TOLERANCE):
    """Two sets of logits differ by no more than rounding."""
    found, expected = found.cpu(), expected.cpu()
    difference = (found - expected).pow(2).mean().sqrt() / expected.std()
    assert difference < tolerance


def compare_engines(folder, tolerance=TOLERANCE, **settings):
    """Compare ordinary rows and trees with the torch engine's ordinary rows."""
    engine = load(folder, **settings)
    oracle = TorchEngine(
        Checkpoint(folder), device="cpu", config=settings.get("config", ConfigSettings())
    )
    ids = random_ids(40)
    expected = oracle.naive_logits(ids)
    assert_same_model(engine.naive_logits(ids), expected, tolerance)
    first, second = sorted(random_ids(97, seed=1)[:2])
    branches = [[first, *random_ids(12, seed=2)], [second, *random_ids(20, seed=3)]]
    for branch, found in zip(branches, branch_logits(engine, ids, branches), strict=True):
        assert_same_model(found, oracle.naive_logits([*ids, *branch])[40:], tolerance)
    return engine


# By default those that differ most; `make slow` takes all.
_DIFFERENT = ("Llama", "Qwen2For", "Qwen3Moe", "Gemma2", "Gemma3For", "Cohere2", "Phi3", "Glm4")


@pytest.mark.parametrize(
    "name",
    [
        name if name.startswith(_DIFFERENT) else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_every_architecture_computes_what_the_torch_engine_computes(tmp_path, kernels, name):
    engine = compare_engines(write(tmp_path, name))
    assert engine.info.name == "exllamav2"
    assert engine.info.vocab_size == VOCABULARY


@pytest.mark.parametrize("kind", ROPES)
def test_every_kind_of_position_scaling_is_transformers(tmp_path, kernels, kind):
    rope = dict(ROPES[kind])
    if kind == "longrope":
        rope["original_max_position_embeddings"] = 96  # beyond it, factors switch
    name = "Glm4ForCausalLM" if kind == "partial" else "LlamaForCausalLM"
    folder = write(tmp_path, name, rope_parameters=rope, head_dim=32)
    compare_engines(folder)


@pytest.mark.parametrize("settings", [{"rope_scale": 2.0}, {"rope_alpha": 2.5}])
def test_position_options_mean_the_same_in_both_engines(llama, tmp_path, kernels, settings):
    folder = write(tmp_path, rope_parameters={"rope_theta": 1e4})
    compare_engines(folder, config=ConfigSettings(**settings))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma2ForCausalLM", "CohereForCausalLM"])
def test_unquantized_models_run_through_the_same_code(tmp_path, kernels, name, tied):
    save(make_model(name, tie_word_embeddings=tied), tmp_path)
    compare_engines(tmp_path)


def test_gptq_directories_run_through_the_same_code(tmp_path, kernels):
    config = tiny.CONFIG | tiny.GPTQ | {"intermediate_size": 128, "vocab_size": VOCABULARY}
    folder = tiny.write(tmp_path, tiny.gptq_tensors(config, order="random"), config)
    compare_engines(folder, tolerance=0.05)


# -- attention --------------------------------------------------------------------------------


def test_exllamav2s_own_attention_is_caught_by_the_self_test(llama, simulated):
    """The negative control: exllamav2's SDPA path sees the future (its bug since 0.2.9)."""
    exllamav2 = simulated()
    engine = load(llama)
    for module in exllamav2_loading.attention_modules(engine.model):
        for name in ("_attn_torch", "_attn_flash", "_attn_xformers"):
            del vars(module)[name]

    def own_logits(ids):
        return engine.model.forward(torch.tensor([list(ids)]))[0, :, :VOCABULARY].float()

    assert exllamav2.attn.has_lower_right_sdpa
    assert not engine.model.config.no_sdpa
    with pytest.raises(ScoreError, match="appended tokens change the logits of earlier ones"):
        self_test.check_causality(
            own_logits, functools.partial(branch_logits, engine), engine.info, 128
        )
    # With its matmul path the same model passes: it is the attention that was caught.
    engine.model.config.no_sdpa = True
    ids = random_ids(40)
    assert_same_model(own_logits(ids)[:24], own_logits(ids[:24]))


def test_a_failed_self_test_refuses_to_load(llama, simulated, monkeypatch):
    from lm_eval_exl2.engines import exllamav2_attention

    monkeypatch.setattr(
        exllamav2_attention,
        "masked_attention",
        lambda query, keys, values, options, padding: (
            torch.nn.functional.scaled_dot_product_attention(
                query, keys, values, scale=options.scaling, enable_gqa=True
            )
        ),
    )
    with pytest.raises(ScoreError, match=r"self-test failed.*no score of this model can be"):
        load(llama)


@pytest.mark.parametrize("library", ["flash_attn", "xformers"])
def test_a_library_that_does_not_run_here_is_one_clear_line(llama, simulated, monkeypatch, library):
    from lm_eval_exl2.engines import exllamav2_runs

    def fail(*_arguments):
        raise NotImplementedError(
            "No operator found for `memory_efficient_attention_forward`\nwith"
        )

    simulated(**{library: True})
    monkeypatch.setitem(exllamav2_runs.RUN_ATTENTION, library, fail)
    with pytest.raises(MissingDependencyError) as error:
        load(llama)
    assert str(error.value) == (
        f"{library} does not work here: No operator found for "
        f"`memory_efficient_attention_forward`; use no_{library}=True"
    )


@pytest.mark.parametrize("library", ["flash_attn", "xformers"])
def test_every_attention_library_computes_the_same(llama, simulated, library):
    simulated(**{library: True})
    engine = compare_engines(llama)
    assert engine.info.attention == f"tree ({library})"
    assert all(layer.run is not None for layer in engine.layers)


@pytest.mark.parametrize(
    ("found", "settings", "used"),
    [
        ({"flash_attn": True, "xformers": True}, {}, "flash_attn"),
        ({"flash_attn": True, "xformers": True}, {"no_flash_attn": True}, "xformers"),
        ({"flash_attn": True}, {"no_flash_attn": True}, "scaled_dot_product_attention"),
        ({"xformers": True}, {"no_xformers": True}, "scaled_dot_product_attention"),
    ],
)
def test_flash_attn_comes_first_then_xformers_then_our_own(llama, simulated, found, settings, used):
    simulated(**found)
    assert load(llama, **settings).info.attention == f"tree ({used})"


def test_flash_attn_is_not_used_on_cards_it_does_not_run_on(llama, simulated, monkeypatch):
    exllamav2 = simulated(flash_attn=True)
    monkeypatch.setattr(exllamav2.attn, "is_ampere_or_newer_gpu", False)
    assert load(llama).attention is None


def test_layers_with_windows_are_never_left_to_a_library(mistral, simulated):
    simulated(flash_attn=True)
    engine = compare_engines(mistral)
    assert all(layer.options.window == 8 for layer in engine.layers)
    assert all(layer.run is None for layer in engine.layers)


def test_padded_and_cached_rows_of_exllamav2_itself_are_right(llama, kernels):
    """What its own generators would call: a cache, padding on the left, positions shifted."""
    engine = load(llama)
    exllamav2 = engine.exllamav2
    ids = random_ids(20)
    expected = engine.naive_logits(ids)
    cache = exllamav2.ExLlamaV2Cache(engine.model, batch_size=1, max_seq_len=64)
    first = engine.model.forward(torch.tensor([ids[:9]]), cache)
    rest = engine.model.forward(torch.tensor([ids[9:]]), cache)
    found = torch.cat((first, rest), 1)[0, :, :VOCABULARY].float()
    assert_same_model(found, expected)
    mask = torch.zeros(1, 26, dtype=torch.float16)
    mask[0, :6] = float("-inf")
    padded = engine.model.forward(
        torch.tensor([[0] * 6 + ids]),
        input_mask=mask,
        position_offsets=torch.tensor([[-6]], dtype=torch.int32),
    )
    assert_same_model(padded[0, 6:, :VOCABULARY].float(), expected)


# -- what is refused --------------------------------------------------------------------------

REFUSED = {
    "biases in a quantized MLP": ("LlamaForCausalLM", {"mlp_bias": True}, "biases of a quantized"),
    "a bias its scale misses": (
        "GraniteForCausalLM",
        {"attention_bias": True},
        "scale the output of attention but not its bias",
    ),
    "experts not normalized": (
        "Qwen3MoeForCausalLM",
        {"norm_topk_prob": False},
        "always normalizes the weights of the chosen experts",
    ),
    "another activation": ("LlamaForCausalLM", {"hidden_act": "relu"}, "asks for relu"),
    "exact gelu": ("GemmaForCausalLM", {"hidden_activation": "gelu"}, "asks for gelu"),
    "half a block of activations": (
        "LlamaForCausalLM",
        {"intermediate_size": 96},
        "intermediate_size is 96, and its kernels need a multiple of 64",
    ),
    "a head its norm cannot take": ("Qwen3ForCausalLM", {"head_dim": 32}, "head_dim is 32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_exllamav2_would_get_silently_wrong_is_refused(tmp_path, simulated, case):
    name, keys, reason = REFUSED[case]
    folder = write(tmp_path, name, **keys)
    with pytest.raises(ModelFormatError) as error:
        load(folder)
    assert reason in str(error.value)
    assert str(error.value).endswith("; use engine=torch")
    assert "\n" not in str(error.value)


def test_an_unquantized_model_is_refused_for_a_head_its_norm_cannot_take(tmp_path, simulated):
    save(make_model("Qwen3ForCausalLM", head_dim=32), tmp_path)
    with pytest.raises(ModelFormatError, match="head_dim is 32, and its head norm needs"):
        load(tmp_path)


def test_starcoder2_is_refused_for_its_biases(tmp_path, simulated):
    folder = write(tmp_path, "Starcoder2ForCausalLM")
    with pytest.raises(ModelFormatError, match="biases of a quantized MLP"):
        load(folder)


def test_a_model_it_does_not_find_its_way_in_is_refused(tmp_path, simulated):
    sizes = {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 128}
    config = transformers.GPT2Config(**sizes, vocab_size=VOCABULARY, **TOKENS)
    save(transformers.GPT2LMHeadModel(config), tmp_path)
    with pytest.raises(ModelFormatError, match=r"Could not find .* in model; use engine=torch"):
        load(tmp_path)


def test_positions_past_the_window_are_never_read(llama, simulated):
    engine = load(llama, max_length=32)
    assert engine.info.max_length == 32
    request = ScoreRequest(0, random_ids(40), [1])
    with pytest.raises(RequestError, match="position 39 is beyond the 32 positions"):
        list(score([request], engine, Budget(256)))


# -- numbers that are none --------------------------------------------------------------------


def test_nan_is_an_error_that_names_where_it_began(llama, kernels, monkeypatch):
    engine = load(llama)
    layer = engine.model.modules[4]  # the MLP of the second layer
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *a, **k: forward(*a, **k) * float("nan"))
    with pytest.raises(ScoreError) as error:
        list(score([ScoreRequest(0, [1, 2, 3], [4])], engine, Budget(64)))
    assert "first in MLP of model.layers.1" in str(error.value)
    assert "use engine=torch" in str(error.value)


# -- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_small_budgets_leave_room_for_padding_and_the_self_test(llama, simulated, tokens):
    """The simulated kernels refuse more rows than there is scratch space for."""
    engine = load(llama, max_batch_tokens=tokens)
    assert engine.info.max_batch_tokens == tokens
    expected = scores_of(load(llama))
    for one, other in zip(scores_of(engine, budget=tokens), expected, strict=True):
        assert one == pytest.approx(other, abs=0.02)


def test_more_tokens_than_its_kernels_can_count_are_refused(llama, simulated):
    with pytest.raises(OptionError, match="max_batch_tokens=70000: exllamav2 takes at most 65535"):
        load(llama, max_batch_tokens=70_000)


@pytest.mark.parametrize("length", [5, 8, 33])
def test_a_short_window_is_tested_too(llama, simulated, length):
    engine = load(llama, max_length=length)
    assert engine.info.max_length == length
    with pytest.raises(RequestError, match=f"position {length} is beyond the {length} positions"):
        engine.naive_logits(random_ids(length + 1))


def test_a_step_that_does_not_fit_is_halved_and_changes_no_score(llama, simulated, monkeypatch):
    engine = load(llama)
    requests = [ScoreRequest(i, random_ids(30, seed=i % 4), random_ids(5, i)) for i in range(12)]
    budget = Budget(engine.info.max_batch_tokens)
    expected = {s.index: s.logprob for s in score(requests, engine, budget)}
    last = engine.model.modules[4]
    forward = last.forward

    def limited(state, *args, **kwargs):
        if state.shape[0] > 48:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(state, *args, **kwargs)

    monkeypatch.setattr(last, "forward", limited)
    for found in score(requests, engine, budget):
        assert found.logprob == pytest.approx(expected[found.index], abs=0.02)
    assert engine.counts.retried > 0


def test_a_head_that_does_not_fit_halves_the_step_too(llama, simulated, monkeypatch):
    engine = load(llama)
    requests = [ScoreRequest(i, random_ids(8, seed=i), random_ids(60, i)) for i in range(3)]
    budget = Budget(engine.info.max_batch_tokens)
    expected = {s.index: s.logprob for s in score(requests, engine, budget)}
    counted = engine.counts.forwarded
    forward = engine._head.forward

    def limited(state, *args, **kwargs):
        if state.shape[0] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(state, *args, **kwargs)

    monkeypatch.setattr(engine._head, "forward", limited)
    for found in score(requests, engine, budget):
        assert found.logprob == pytest.approx(expected[found.index], abs=0.02)
    assert engine.counts.retried > 0
    assert engine.counts.forwarded == 2 * counted


def test_a_model_that_does_not_fit_says_how_much_is_missing_and_what_helps(llama, simulated):
    simulated(free_bytes=1 << 20)
    with pytest.raises(EngineMemoryError) as error:
        load(llama, max_batch_tokens=None)
    assert "GiB are missing" in str(error.value)
    assert "gpu_split=auto" in str(error.value)


def test_running_out_of_memory_while_loading_says_what_helps(llama, simulated, monkeypatch):
    exllamav2 = simulated()

    def fail(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(exllamav2.ExLlamaV2, "load", fail)
    with pytest.raises(EngineMemoryError, match=r"Tried to allocate 2 GiB; use gpu_split=auto"):
        load(llama)


@pytest.mark.parametrize("settings", [{}, {"cache_mode": "Q4"}])
@pytest.mark.parametrize("flash_attn", [False, True])
def test_running_out_of_memory_in_the_self_test_is_no_fault_of_attention(
    llama, simulated, monkeypatch, flash_attn, settings
):
    exllamav2 = simulated(flash_attn=flash_attn)

    def fail(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    if settings:  # keys and values are rounded by way of a cache of their own
        monkeypatch.setattr(exllamav2, "ExLlamaV2Cache_Q4", fail)
    else:
        monkeypatch.setattr(exllamav2_attention.LayerAttention, "_answer_step", fail)
    with pytest.raises(EngineMemoryError, match=r"no room for a forward; use gpu_split=auto"):
        load(llama, **settings)


def test_a_tensor_it_did_not_expect_is_no_lack_of_memory(llama, simulated, monkeypatch):
    exllamav2 = simulated()

    def fail(*_args, **_kwargs):
        raise AssertionError("model.layers.0.self_attn.q_proj has bias but bias is not expected")

    monkeypatch.setattr(exllamav2.ExLlamaV2, "load", fail)
    with pytest.raises(ModelFormatError, match=r"bias is not expected; use engine=torch"):
        load(llama)


@pytest.mark.parametrize(("free", "tokens"), [(8 << 30, 8192), (1100 << 20, 2048)])
def test_the_budget_is_found_from_free_memory(llama, simulated, monkeypatch, free, tokens):
    simulated(free_bytes=free)
    monkeypatch.setattr("lm_eval_exl2.engines.exllamav2_memory._LOGITS", 0)
    engine = load(llama, max_batch_tokens=None)
    assert engine.info.max_batch_tokens >= tokens


def test_unloading_frees_everything_and_another_model_follows(llama, mistral, simulated):
    before = simulated_handles.open_handles()
    for folder in (llama, mistral, llama):
        engine = load(folder)
        assert simulated_handles.open_handles() > before
        engine.close()
        assert simulated_handles.open_handles() == before


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["auto", (20.0,)])
def test_a_split_over_cards_loads_and_is_recorded(llama, kernels, split):
    engine = compare_engines(llama, gpu_split=split)
    assert engine.info.details["gpu_split"] == split


def test_a_split_for_more_cards_than_there_are_is_refused(llama, simulated):
    with pytest.raises(OptionError, match="gpu_split names 2 cards, but there are 1"):
        load(llama, gpu_split=(20.0, 24.0))


def test_a_split_that_is_too_small_says_what_helps(llama, simulated):
    with pytest.raises(EngineMemoryError, match=r"Insufficient space in device allocation; use"):
        load(llama, gpu_split=(0.0001,))


def scores_of(engine, budget=256):
    requests = [ScoreRequest(i, random_ids(20, i % 3), random_ids(4, i)) for i in range(9)]
    return [
        s.logprob for s in sorted(score(requests, engine, Budget(budget)), key=lambda s: s.index)
    ]


def test_a_rounded_cache_moves_scores_by_its_width_and_by_nothing_else(llama, kernels):
    exact = scores_of(load(llama))
    errors = {}
    for mode in ("Q8", "Q6", "Q4"):
        engine = load(llama, cache_mode=mode)
        assert engine.info.details["cache_mode"] == mode
        found = scores_of(engine)
        # What a score is does not depend on how requests share forwards.
        for one, other in zip(found, scores_of(engine, budget=40), strict=True):
            assert one == pytest.approx(other, abs=0.02)
        errors[mode] = sum(abs(a - b) for a, b in zip(found, exact, strict=True))
    assert 0 < errors["Q8"] < errors["Q6"] < errors["Q4"]


def write_lora(folder, model, scale=1.0, rank=4):
    """Write a random adapter of attention and MLP; return what it adds."""
    from safetensors.torch import save_file

    torch.manual_seed(9)
    tensors, added = {}, {}
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    for name in names:
        for layer in range(2):
            module = f"model.layers.{layer}.{name}"
            out_features, in_features = model.get_submodule(module).weight.shape
            down = (torch.randn(rank, in_features) * 0.1).half()
            up = (torch.randn(out_features, rank) * 0.1).half()
            tensors[f"base_model.model.{module}.lora_A.weight"] = down
            tensors[f"base_model.model.{module}.lora_B.weight"] = up
            added[module] = up.float() @ down.float() * scale
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"r": rank, "lora_alpha": rank * scale, "fan_in_fan_out": False})
    )
    return added


def test_an_adapter_computes_what_merging_it_would(tmp_path, llama, kernels):
    oracle = TorchEngine(Checkpoint(llama), device="cpu")
    ids = random_ids(40)
    before = oracle.naive_logits(ids)
    for module, added in write_lora(tmp_path / "lora", oracle.model, scale=2.0).items():
        oracle.model.get_submodule(module).weight.data += added
    engine = load(llama, lora=tmp_path / "lora")
    found = engine.naive_logits(ids)
    assert_same_model(found, oracle.naive_logits(ids))
    with pytest.raises(AssertionError):
        assert_same_model(found, before)
    assert engine.info.details["lora"] == str(tmp_path / "lora")
    digest = engine.info.details["lora_digest"]
    write_lora(tmp_path / "other", oracle.model, scale=1.0)
    assert load(llama, lora=tmp_path / "other").info.details["lora_digest"] != digest


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CohereForCausalLM", "ignores adapters of parallel decoder layers"),
        ("Glm4ForCausalLM", "adds adapters behind the norm"),
        ("Gemma2ForCausalLM", "adds adapters behind the norm"),
        ("GraniteForCausalLM", "does not scale adapters"),
        ("MixtralForCausalLM", "has no kernels for adapters of experts"),
    ],
)
def test_adapters_that_exllamav2_gets_wrong_are_refused(tmp_path, simulated, name, reason):
    with pytest.raises(OptionError, match=f"lora=.*: exllamav2 {reason}.*; merge the adapter"):
        load(write(tmp_path, name), lora=tmp_path)


def test_a_folder_without_an_adapter_is_one_clear_line(tmp_path, llama, simulated):
    with pytest.raises(OptionError, match=r"No LoRA found.*expected a folder with adapter_config"):
        load(llama, lora=tmp_path)


# -- text -------------------------------------------------------------------------------------


def texts(engine, prompts, new_tokens=8, **options):
    requests = [GenerateRequest(i, p, new_tokens, **options) for i, p in enumerate(prompts)]
    found = [[] for _ in prompts]
    for token in engine.generate(requests, lambda _index, _token: False):
        found[token.index].append(token.token_id)
    return found


def test_sampled_text_depends_on_the_seed_and_not_on_what_runs_beside_it(llama, kernels):
    engine = load(llama)
    sampling = {"do_sample": True, "temperature": 1.5, "top_k": 30}
    prompts = [random_ids(6, i) for i in range(5)]
    together = texts(engine, prompts, sampling=sampling, seed=5)
    assert texts(engine, prompts[:1], sampling=sampling, seed=5) == together[:1]
    assert texts(engine, prompts[:1], sampling=sampling, seed=6) != together[:1]


def test_no_expert_is_left_out_when_a_few_rows_are_decoded(tmp_path, simulated):
    """Its kernel for up to 4 rows asks the first row alone which of 128 experts are needed."""
    simulated(flash_attn=True)
    experts = {"num_experts": 128, "num_experts_per_tok": 8}
    folder = write(tmp_path, "Qwen3MoeForCausalLM", **experts, num_hidden_layers=1, hidden_size=32)
    engine = load(folder, max_batch_tokens=512)
    assert "leaves out experts" in why_not_paged(engine)
    oracle = TorchEngine(Checkpoint(folder), device="cpu")
    for rows in (1, 3, 6):
        for index, tokens in enumerate(texts(engine, [random_ids(9, i) for i in range(rows)], 4)):
            ids = random_ids(9, index)
            for token in tokens:
                logits = oracle.naive_logits(ids)[-1]
                assert logits.max() - logits[token] < 0.05 * logits.std()
                ids.append(token)


def test_prompts_with_a_common_beginning_are_forwarded_once(llama, kernels):
    engine = load(llama)
    stem = random_ids(30)
    texts(engine, [[*stem, 1], [*stem, 2], [*stem, 2], stem], new_tokens=3)
    assert engine.counts.forwarded == 32 + 4 * 2


def test_scores_are_padded_to_where_kernels_repeat_and_counted_apart(llama, kernels):
    engine = load(llama)
    list(score([ScoreRequest(0, [1, 2, 3], [4])], engine, Budget(64)))
    assert engine.counts.forwarded == 3
    assert engine.counts.padding == 30


def test_what_exllamav2_prints_while_loading_does_not_reach_stdout(
    llama, simulated, monkeypatch, capsys
):
    exllamav2 = simulated()
    really_load = exllamav2.ExLlamaV2.load

    def noisy(*arguments, **options):
        print(" !! Warning: something")  # noqa: T201
        return really_load(*arguments, **options)

    monkeypatch.setattr(exllamav2.ExLlamaV2, "load", noisy)
    load(llama)
    out, err = capsys.readouterr()
    assert out == ""
    assert "something" in err


def test_what_was_used_is_in_the_info(llama, simulated):
    info = load(llama).info
    assert (info.dtype, info.version) == ("float16", "0.3.2")
    assert info.max_batch_tokens == 256
    assert info.parameters == TorchEngine(Checkpoint(llama), device="cpu").info.parameters
    assert math.isfinite(info.parameters)
