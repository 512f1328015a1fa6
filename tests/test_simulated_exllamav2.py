"""The simulated extension: exllamav2's own Python over it computes what transformers computes.

The other side of every comparison is transformers in float32 on the decoded weights. Logits of
these models have a standard deviation of about 1.1; two layers in float16 move them by up to
0.011, and every known mistake of exllamav2 by more than 0.1.
"""

import contextlib
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import simulated_exllamav2
import simulated_models as models
import tiny
import torch
import transformers
from oracles import gptq_weight
from safetensors.torch import load_file, save_file
from simulated_experts import make_q_moe_mlp, q_moe_mlp_forward_
from simulated_handles import KernelMisuseError, keep, open_handles, release
from simulated_matrix import Matrix
from test_architectures import load

from lm_eval_exl2.checkpoint.format import decode

# The simulation itself against exllamav2's own Python: some seconds.
pytestmark = pytest.mark.slow

TOLERANCE = 0.02
WRONG = 0.1

# What each architecture needs to be one that exllamav2 computes correctly.
ARCHITECTURES = {
    "LlamaForCausalLM": {"hidden_size": 96, "head_dim": 64},
    "MistralForCausalLM": {},
    "MixtralForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {},
    "Qwen3MoeForCausalLM": {"norm_topk_prob": True},
    "GemmaForCausalLM": {},
    "Gemma2ForCausalLM": {},
    "CohereForCausalLM": {},
    "GraniteForCausalLM": {"attention_bias": False},
    "Phi3ForCausalLM": {},
    "Glm4ForCausalLM": {},
}
# exllamav2 multiplies the scales of these heads before they are rounded.
HEAD_PRESCALE = {"CohereForCausalLM": 0.25, "GraniteForCausalLM": 0.25}


@pytest.fixture
def exllamav2(monkeypatch):
    return simulated_exllamav2.install(monkeypatch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save a model of an architecture once; give its directory."""
    made = {}

    def get(name, bits, **changes):
        key = (name, bits, *sorted(changes.items()))
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                model = models.random_model(patch, name, **changes)
            made[key] = models.save_model(model, tmp_path_factory.mktemp(name), bits=bits)
        return made[key]

    return get


@pytest.fixture
def llama(exllamav2, folders):
    """A quantized Llama, loaded."""
    return models.load_model(exllamav2, folders("LlamaForCausalLM", 5.0))


def oracle(folder, name):
    """Load a directory with transformers, decoded weights in float32."""
    model = load(folder)
    path = folder / "output.safetensors"
    if name in HEAD_PRESCALE and path.is_file():
        prescale = HEAD_PRESCALE[name]
        head = {k.removeprefix("lm_head."): v for k, v in load_file(path).items() if "lm_head" in k}
        weight = decode(head, prescale)[: model.config.vocab_size] / prescale
        model.lm_head.weight.data = weight.float()
    return model


def deviation(found, expected):
    assert torch.isfinite(found).all()
    return float((found - expected).abs().max())


# -- forward ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bits", [5.0, None])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_computes_what_transformers_does(exllamav2, folders, name, bits):
    folder = folders(name, bits, **ARCHITECTURES[name])
    model = models.load_model(exllamav2, folder)
    assert model.modules[1].is_quant() == (bits is not None)
    ids = models.tokens()
    expected = models.transformers_logits(oracle(folder, name), ids)
    assert deviation(models.forward(model, ids), expected) < TOLERANCE
    # Up to four rows take another way through the experts.
    found = models.forward(model, ids[:1, :4])
    assert deviation(found, expected[:1, :4]) < TOLERANCE


MISTAKES = {
    "biases of a quantized MLP are not permuted": ("LlamaForCausalLM", 5.0, {"mlp_bias": True}),
    "biases of a scaled projection are not scaled": (
        "GraniteForCausalLM",
        5.0,
        {"attention_bias": True},
    ),
    "layers without positions are rotated": ("Cohere2ForCausalLM", None, {}),
    "experts' weights are always normalized": ("Qwen3MoeForCausalLM", None, {}),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_known_mistakes_of_exllamav2_show_in_the_simulation(exllamav2, folders, case):
    name, bits, changes = MISTAKES[case]
    folder = folders(name, bits, **changes)
    ids = models.tokens()
    expected = models.transformers_logits(oracle(folder, name), ids)
    found = models.forward(models.load_model(exllamav2, folder), ids)
    assert deviation(found, expected) > WRONG


def test_qwen3_as_exllamav2_sets_it_up_is_wrong(exllamav2, folders):
    folder = folders("Qwen3ForCausalLM", None)
    ids = models.tokens()
    expected = models.transformers_logits(oracle(folder, "Qwen3ForCausalLM"), ids)

    def subtract_the_mean(config):
        config.arch.lm.headnorm = "layernorm"  # its default

    model = models.load_model(exllamav2, folder, prepare=subtract_the_mean)
    assert deviation(models.forward(model, ids), expected) > WRONG


@pytest.mark.parametrize("order", ["random", "none"])
def test_gptq_layers_are_decoded(exllamav2, tmp_path, order):
    config = tiny.CONFIG | {"intermediate_size": 64}
    tensors = tiny.gptq_tensors(config, order=order)
    folder = tiny.write(tmp_path, tensors, config | tiny.GPTQ)
    model = models.load_model(exllamav2, folder)
    name = "model.layers.1.self_attn.q_proj"
    names = ("qweight", "qzeros", "scales", "g_idx")
    parts = {n: tensors[f"{name}.{n}"] for n in names if f"{name}.{n}" in tensors}
    expected = torch.as_tensor(gptq_weight(parts, 32, 1)).t()
    assert torch.equal(model.modules_dict[name].get_weight_tensor_dq(), expected)
    ids = models.tokens()
    expected = models.transformers_logits(load(folder), ids)
    found = models.forward(model, ids)
    assert deviation(found, expected) < TOLERANCE * expected.std()


def test_without_no_sdpa_tokens_see_their_future_and_with_it_they_do_not(exllamav2, folders):
    folder = folders("LlamaForCausalLM", 5.0)
    ids = models.tokens(rows=1)
    for no_sdpa in (False, True):
        model = models.load_model(exllamav2, folder, no_sdpa=no_sdpa)
        short = models.forward(model, ids[:, :-1])
        long = models.forward(model, ids)[:, :-1]
        # Sums over one more masked key round differently at most.
        assert (deviation(short, long) < TOLERANCE) == no_sdpa
        assert (deviation(short, long) > WRONG) == (not no_sdpa)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Glm4ForCausalLM"])
@pytest.mark.parametrize("bits", [5.0, None])
def test_position_offsets_place_tokens_that_are_rows_of_their_own(
    exllamav2, folders, monkeypatch, name, bits
):
    model = models.load_model(exllamav2, folders(name, bits, **ARCHITECTURES[name]))
    seen = []
    attention = model.modules[1]
    original = attention._attn_torch

    def record(rows, length, query, keys, values, *rest):
        seen.append((query.flatten(0, 1).clone(), keys.flatten(0, 1).clone()))
        return original(rows, length, query, keys, values, *rest)

    monkeypatch.setattr(attention, "_attn_torch", record)
    ids = models.tokens(rows=1)
    count = ids.shape[1]
    positions = torch.arange(count, dtype=torch.int32).flip(0)
    models.forward(model, ids)
    shuffled = ids.flatten()[positions.long()]
    models.forward(
        model, shuffled.view(count, 1), position_offsets=positions.view(count, 1).contiguous()
    )
    for plain, placed in zip(*seen, strict=True):
        assert torch.equal(plain[positions.long()], placed)


@pytest.mark.parametrize("bits", [5.0, None])
def test_a_cache_filled_in_two_pieces_holds_what_one_piece_would(exllamav2, folders, bits):
    model = models.load_model(exllamav2, folders("LlamaForCausalLM", bits))
    ids = models.tokens(rows=2)
    whole = models.forward(model, ids)
    for rows in (1, 2):
        cache = exllamav2.ExLlamaV2Cache(model, batch_size=rows, max_seq_len=64)
        model.forward(ids[:rows, :7], cache, preprocess_only=True)
        found = models.forward(model, ids[:rows, 7:], cache=cache)
        assert cache.current_seq_len == ids.shape[1]
        assert deviation(found, whole[:rows, 7:]) < TOLERANCE


def test_loading_layer_by_layer_with_a_cache_gives_the_same_model(exllamav2, folders, llama):
    config = exllamav2.ExLlamaV2Config()
    config.model_dir = str(folders("LlamaForCausalLM", 5.0))
    config.prepare()
    config.no_sdpa, config.max_input_len = True, 64
    model = exllamav2.ExLlamaV2(config)
    cache = exllamav2.ExLlamaV2Cache(model, max_seq_len=64, lazy=True)
    model.load_autosplit(cache, last_id_only=True)
    ids = models.tokens()
    assert torch.equal(models.forward(model, ids), models.forward(llama, ids))


def test_trying_out_a_model_beyond_its_cache_is_an_error(exllamav2, folders):
    config = exllamav2.ExLlamaV2Config()
    config.model_dir = str(folders("LlamaForCausalLM", 5.0))
    config.prepare()
    config.max_input_len = 128
    model = exllamav2.ExLlamaV2(config)
    cache = exllamav2.ExLlamaV2Cache(model, max_seq_len=64, lazy=True)
    with pytest.raises(KernelMisuseError, match="k_temp has 4096 elements"):
        model.load_autosplit(cache)


# -- attention libraries ----------------------------------------------------------------------

LIBRARIES = {"flash_attn": {"flash_attn": True}, "xformers": {"xformers": True}}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("bits", [5.0, None])
def test_attention_libraries_compute_what_transformers_does(monkeypatch, folders, library, bits):
    exllamav2 = simulated_exllamav2.install(monkeypatch, **LIBRARIES[library])
    folder = folders("LlamaForCausalLM", bits)
    # Not with no_sdpa: that would show if its own attention were used after all.
    model = models.load_model(exllamav2, folder, no_sdpa=False)
    ids = models.tokens()
    expected = models.transformers_logits(oracle(folder, "LlamaForCausalLM"), ids)
    assert deviation(models.forward(model, ids), expected) < TOLERANCE
    cache = exllamav2.ExLlamaV2Cache(model, batch_size=2, max_seq_len=64)
    model.forward(ids[:, :7], cache, preprocess_only=True)
    assert deviation(models.forward(model, ids[:, 7:], cache=cache), expected[:, 7:]) < TOLERANCE


@pytest.mark.parametrize(("window", "is_right"), [(32, True), (8, False)])
def test_flash_attn_has_the_soft_cap_but_one_key_too_many_in_a_window(
    monkeypatch, folders, window, is_right
):
    exllamav2 = simulated_exllamav2.install(monkeypatch, flash_attn=True)
    folder = folders("Gemma2ForCausalLM", 5.0, sliding_window=window)
    ids = models.tokens()
    found = models.forward(models.load_model(exllamav2, folder), ids)
    reference = oracle(folder, "Gemma2ForCausalLM")
    expected = models.transformers_logits(reference, ids)
    assert (deviation(found, expected) < TOLERANCE) == is_right
    if not is_right:
        for layer in reference.model.layers:
            layer.self_attn.sliding_window = None
        reference.config.sliding_window = window + 1
        assert deviation(found, models.transformers_logits(reference, ids)) < TOLERANCE


def test_joined_sequences_attend_each_to_itself_in_both_libraries(monkeypatch):
    simulated_exllamav2.install(monkeypatch, flash_attn=True, xformers=True)
    import flash_attn
    import xformers.ops
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask

    generator = torch.Generator().manual_seed(1)
    queries, keys = [2, 3, 1], [5, 3, 4]
    query, key, value = (
        torch.randn(sum(counts), heads, 16, generator=generator).half()
        for counts, heads in ((queries, 4), (keys, 2), (keys, 2))
    )
    bounds = [torch.tensor([0, *counts]).cumsum(0).int() for counts in (queries, keys)]
    flash = flash_attn.flash_attn_varlen_func(query, key, value, *bounds, 3, 5, causal=True)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    bias = BlockDiagonalCausalFromBottomRightMask.from_seqlens(queries, keys)
    xformed = xformers.ops.memory_efficient_attention(query[None], key[None], value[None], bias)[0]
    own = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
    expected = torch.cat([_attend(*parts) for parts in own])
    assert torch.allclose(flash, expected, atol=2e-3)
    assert torch.allclose(xformed, expected, atol=2e-3)


def _attend(query, keys, values):
    """Attend one query at a time, the last at the last key."""
    rows = []
    for place, row in enumerate(query):
        end = len(keys) - len(query) + place + 1
        scores = torch.einsum("hd,khd->hk", row.float(), keys[:end].float()) / 4
        rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values[:end].float()))
    return torch.stack(rows).half()


# -- generator --------------------------------------------------------------------------------


class Tokenizer:
    """What the dynamic generator asks of a tokenizer: every token is one letter."""

    eos_token_id, pad_token_id, bos_token_id = 2, 0, 1

    def get_vocab_size(self):
        return models.SIZES["vocab_size"]

    def get_id_to_piece_list(self, *_options):
        return [chr(65 + index) for index in range(self.get_vocab_size())]

    def decode(self, ids, **_options):
        return "".join(chr(65 + index) for index in ids.flatten().tolist())


def greedy(model, prompt, count):
    """Decode by argmax, forwarding the whole sequence for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(models.forward(model, torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def generate(exllamav2, model, prompts, count, *, paged, cache_tokens=1024):
    generator = sys.modules["exllamav2.generator"]
    cache = exllamav2.ExLlamaV2Cache(model, batch_size=1, max_seq_len=cache_tokens)
    dynamic = generator.ExLlamaV2DynamicGenerator(
        model, cache, Tokenizer(), max_batch_size=4, max_q_size=1, paged=paged
    )
    settings = generator.ExLlamaV2Sampler.Settings.greedy()
    jobs = [
        generator.ExLlamaV2DynamicJob(
            torch.tensor([prompt]), count, gen_settings=settings, identifier=index
        )
        for index, prompt in enumerate(prompts)
    ]
    dynamic.enqueue(jobs)
    found, most = [[] for _ in prompts], 0
    while dynamic.num_remaining_jobs():
        for result in dynamic.iterate():
            if "token_ids" in result:
                found[result["identifier"]] += result["token_ids"].flatten().tolist()
        most = max(most, len(dynamic.active_jobs))
    return found, most


@pytest.mark.parametrize("bits", [5.0, None])
@pytest.mark.parametrize("paged", [False, True])
def test_the_dynamic_generator_gives_what_argmax_gives(monkeypatch, folders, paged, bits):
    exllamav2 = simulated_exllamav2.install(monkeypatch, flash_attn=paged)
    model = models.load_model(exllamav2, folders("LlamaForCausalLM", bits), max_input_len=512)
    stem = models.tokens(rows=1, length=12 if not paged else 258)[0].tolist()
    prompts = [[*stem, 5], [*stem, 9, 4], [*stem, 9, 4, 7], [3, 8]]
    found, most = generate(exllamav2, model, prompts, 5, paged=paged, cache_tokens=1536)
    assert found == [greedy(model, prompt, 5) for prompt in prompts]
    assert most == (4 if paged else 1)


# -- quantized caches -------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "error"), [("Q8", 0.08), ("Q6", 0.6), ("Q4", 1.2)])
def test_quantized_caches_lose_a_little_and_fewer_bits_lose_more(exllamav2, llama, mode, error):
    ids = models.tokens(rows=1)
    whole = models.forward(llama, ids)
    cache = getattr(exllamav2, f"ExLlamaV2Cache_{mode}")(llama, max_seq_len=64)
    llama.forward(ids[:, :10], cache, preprocess_only=True)
    lost = deviation(models.forward(llama, ids[:, 10:], cache=cache), whole[:, 10:])
    assert error / 8 < lost < error


@pytest.mark.parametrize(("bits", "key_steps", "value_steps"), [(8, 127, 127), (6, 127, 7)])
@pytest.mark.parametrize("paged", [False, True])
def test_keys_and_values_come_back_within_half_a_step(
    exllamav2, bits, key_steps, value_steps, paged
):
    kernels = sys.modules["exllamav2_ext"]
    heads, size, length = 2, 64, 512
    generator = torch.Generator().manual_seed(1)
    states = [torch.randn(1, length, heads, size, generator=generator).half() for _ in "kv"]
    packed = [
        torch.zeros(1, length, heads, size // (2 if steps == 7 else 1), dtype=torch.uint8)
        for steps in (key_steps, value_steps)
    ]
    scales = [torch.zeros(1, length, heads, size // 32).half() for _ in "kv"]
    # Two rows of 7 and 3 tokens, the second in the first page.
    lengths, table = torch.tensor([0, 0]).int(), torch.tensor([[1], [0]]).int()
    place = (256, 2) if paged else (0, 0)
    offset, width = (0, 5) if paged else (300, 5)
    arguments = (1, offset, width, place[0], lengths, table, bits)
    groups = zip(states, packed, scales, strict=True)
    kernels.fp16_to_q_kv(*(part for group in groups for part in group), *arguments)
    back = [torch.full_like(state, 9.0) for state in states]
    groups = zip(packed, back, scales, strict=True)
    arguments = (1, offset, width, place[0], lengths + width, table, bits)
    kernels.q_to_fp16_kv(*(part for group in groups for part in group), *arguments)
    touched = torch.zeros(length, dtype=torch.bool)
    for start in (0, 256) if paged else (300,):
        touched[start : start + width] = True
    for state, restored, steps in zip(states, back, (key_steps, value_steps), strict=True):
        assert (restored[:, ~touched] == 9.0).all()
        step = state.float().unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / steps
        error = (state - restored).float().unflatten(-1, (-1, 32)).abs()[:, touched]
        assert (error <= 0.52 * step[:, touched] + 1e-3).all()
        assert error.max() > 0


# -- adapters, experts, sampling --------------------------------------------------------------


ATTENTION = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ADAPTED = {
    "attention": ("LlamaForCausalLM", 5.0, ATTENTION, True),
    "all of an unquantized model": ("LlamaForCausalLM", None, ATTENTION + MLP, True),
    # The columns between its layers were reordered at load, the adapter's were not.
    "a quantized MLP": ("LlamaForCausalLM", 5.0, MLP[1:2], False),
    # Adapters are not handed to layers inside parallel decoders.
    "a parallel decoder": ("CohereForCausalLM", 5.0, ATTENTION, False),
    # The product is added behind the norm that follows, and not scaled like the weight.
    "a projection before a norm": ("Glm4ForCausalLM", 5.0, ATTENTION[2:], False),
    "a projection that is scaled": ("GraniteForCausalLM", None, ATTENTION[2:], False),
}


@pytest.mark.parametrize("case", ADAPTED)
def test_adapters_add_their_products_where_exllamav2_does(exllamav2, folders, tmp_path, case):
    name, bits, parts, is_right = ADAPTED[case]
    folder = folders(name, bits, **ARCHITECTURES[name])
    model, reference = models.load_model(exllamav2, folder), oracle(folder, name)
    ids = models.tokens()
    save_adapter(tmp_path, reference, parts)
    with contextlib.redirect_stdout(io.StringIO()):
        lora = exllamav2.ExLlamaV2Lora.from_directory(model, str(tmp_path))
    expected = models.transformers_logits(reference, ids)
    assert deviation(models.forward(model, ids), expected) > WRONG
    found = deviation(models.forward(model, ids, loras=[lora]), expected)
    assert found < TOLERANCE if is_right else found > WRONG


def save_adapter(folder, reference, parts):
    """Save a random adapter of one layer, and add it to the weights of the reference."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for part in parts:
        layer = reference.get_submodule(f"model.layers.1.{part}")
        rows, columns = layer.weight.shape
        lora_a = torch.randn(4, columns, generator=generator).half() * 0.1
        lora_b = torch.randn(rows, 4, generator=generator).half() * 0.1
        layer.weight.data += 2.0 * lora_b.float() @ lora_a.float()
        for half, tensor in (("A", lora_a), ("B", lora_b)):
            tensors[f"base_model.model.model.layers.1.{part}.lora_{half}.weight"] = tensor
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))


@pytest.mark.parametrize(("count", "is_right"), [(16, True), (128, False)])
def test_of_128_experts_the_fused_kernel_runs_those_of_the_first_row_only(
    exllamav2, count, is_right
):
    generator = torch.Generator().manual_seed(1)

    def matrix(rows, columns):
        weight = torch.randn(rows, columns, generator=generator).half() * 0.1
        return keep(Matrix(weight, None))

    handles = [[matrix(64, 64) for _ in range(count)] for _ in range(3)]
    gate = torch.randn(count, 64, generator=generator).half()
    none = torch.empty(1, 1, device="meta")
    norm = torch.ones(64).half()
    arguments = (norm, none, True, 1e-6, gate, count, 2, *handles, *[none] * 6, 8, False)
    experts = make_q_moe_mlp(*arguments)
    rows = torch.randn(3, 64, generator=generator).half()
    together, alone = rows.clone(), rows.clone()
    q_moe_mlp_forward_(experts, together)
    for row in alone:
        q_moe_mlp_forward_(experts, row[None])
    assert deviation(together[0], alone[0]) < TOLERANCE
    assert (deviation(together, alone) < TOLERANCE) == is_right
    for handle in (each for group in handles for each in group):
        release(handle, Matrix)
    sys.modules["exllamav2_ext"].free_q_moe_mlp(experts)


def sample(logits, point=0.5, **settings):
    """Draw one token with the real signature of the extension."""
    none = torch.empty(1, 1, device="meta")
    options = {"temperature": 1.0, "top_k": 0, "top_p": 0.0, "min_p": 0.0} | settings
    token, probability = torch.empty(1, 1, dtype=torch.long), torch.empty(1, 1)
    sys.modules["exllamav2_ext"].sample_basic(
        torch.tensor([[logits]]),
        *(options["temperature"], options["top_k"], options["top_p"], 0.0, options["min_p"]),
        *(0.0, 0.0, point, token, probability, none, none, none),
        *(False, [], 1.5, 0.1, 1.0, none),
    )
    return token.item(), probability.item()


def test_sampling_narrows_before_it_draws(exllamav2):
    logits = [1.0, 3.0, 3.0, 0.0]
    assert sample(logits, top_k=1, point=0.99) == (1, 1.0)
    assert sample(logits, temperature=0.0, point=0.99) == (1, 1.0)
    assert sample(logits, point=0.0)[0] == 1
    assert sample(logits, top_k=2, point=0.999) == (2, 0.5)
    assert sample(logits, top_p=0.6, point=0.999) == (1, 1.0)
    assert sample(logits, min_p=0.9, point=0.999) == (2, 0.5)
    assert sample(logits, point=1.0)[0] == 3


@pytest.mark.parametrize(
    ("text", "place"), [("abcd", 1), ("xab", -2), ("xabc", -2), ("xbca", 1), ("xc", -2), ("x", -1)]
)
def test_stop_strings_are_found_also_where_they_only_begin(exllamav2, text, place):
    text, *stops = (each.encode("utf-32-le") for each in (text, "bcd", "bc", "c!"))
    bounds = np.cumsum([0, *map(len, stops)]).astype(np.int32)
    buffers = [np.frombuffer(each, dtype=np.uint8) for each in (text, b"".join(stops))]
    match = sys.modules["exllamav2_ext"].partial_strings_match
    assert match(buffers[0], bounds, buffers[1]) == place


# -- misuse, and what is left behind ----------------------------------------------------------


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MixtralForCausalLM", "CohereForCausalLM"])
def test_unloading_frees_every_handle(exllamav2, folders, name):
    before = open_handles()
    model = models.load_model(exllamav2, folders(name, 5.0, **ARCHITECTURES[name]))
    assert open_handles() > before
    handle = model.modules[-1].q_handle
    model.unload()
    assert open_handles() == before
    with pytest.raises(KernelMisuseError, match="not an open Matrix"):
        sys.modules["exllamav2_ext"].free_q_matrix(handle)


def test_what_a_card_would_read_out_of_bounds_is_an_error(exllamav2, folders):
    model = models.load_model(
        exllamav2, folders("LlamaForCausalLM", 5.0), max_input_len=16, max_seq_len=12
    )
    ids = models.tokens(rows=1)
    with pytest.raises(KernelMisuseError, match="position 12 of 12"):
        model.forward(ids[:, :13])
    with pytest.raises(KernelMisuseError, match="20 rows in x, max 16"):
        model.forward_chunk(ids)
    offsets = torch.zeros(1, 1)
    with pytest.raises(KernelMisuseError, match="past_lens is incorrect datatype"):
        model.forward(ids[:, :4], position_offsets=offsets.long())


def test_nothing_is_left_when_the_test_ends(capsys):
    before = {name for name in sys.modules if name.startswith("exllamav2")}
    cuda = SimpleNamespace(**vars(torch.cuda))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        simulated_exllamav2.install(patch, flash_attn=True, xformers=True, free_bytes=123)
        assert torch.cuda.mem_get_info(0) == (123, 123)
        assert torch.cuda.device_count() == 1
        assert torch.get_num_threads() == threads
        assert "flash_attn" in sys.modules
    assert {name for name in sys.modules if name.startswith("exllamav2")} == before
    assert "flash_attn" not in sys.modules
    assert not any(name.startswith("xformers") for name in sys.modules)
    assert torch.cuda.mem_get_info is cuda.mem_get_info
    assert torch.cuda.device_count is cuda.device_count
    assert capsys.readouterr().out == ""


def test_transformers_does_not_take_the_simulated_libraries_for_real_ones(monkeypatch):
    simulated_exllamav2.install(monkeypatch, flash_attn=True, xformers=True)
    assert not transformers.utils.is_flash_attn_2_available()
