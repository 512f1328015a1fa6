"""Every architecture: an EXL2 file of it, loaded, computes what the decoded weights compute.

One path is the package's: names, joined projections and transpositions from its table, weights
loaded by transformers. The other never sees that table: the original model runs with each weight
replaced by what a scalar decoder reads from the file under a name written down in the tests.
"""

import copy
import json
import random

import pytest
import tiny
import torch
import transformers
from architecture_cases import (
    CASES,
    MULTIMODAL_CASES,
    build,
    is_text,
    plain_name,
    stored_linears,
    text_part,
)
from oracles import exl2_weight, random_exl2
from safetensors.torch import load_file, save_file

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.architectures import ARCHITECTURES
from lm_eval_exl2.checkpoint.writer import quantize_directory
from lm_eval_exl2.errors import ModelFormatError

SHORT_NAMES = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")


def load(folder):
    """Load a directory the way the torch engine does."""
    checkpoint = Checkpoint(folder)
    whole = transformers.AutoConfig.from_pretrained(folder)
    config = getattr(whole, "text_config", None) or whole
    config.tie_word_embeddings = whole.tie_word_embeddings and not checkpoint.has_own_head
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    state = {weight.name: checkpoint.load(weight) for weight in checkpoint.weights()}
    model, report = getattr(transformers, checkpoint.architecture.model_class).from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def text_config(model):
    return getattr(model.config, "text_config", model.config)


def decoded(tensors, module, config):
    """What a layer's kernel multiplies by, without the factor that transformers applies itself."""
    layer = {short: tensors[f"{module}.{short}"] for short in SHORT_NAMES}
    factor = folded(module, config)
    weight = torch.from_numpy(exl2_weight(layer, factor)).float() / factor
    return weight.half().float()


def folded(module, config):
    """The factor exllamav2 folds into a layer's scales: `prescale` in its attn, mlp and model."""
    if module == "lm_head":
        return getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1)
    if module.endswith(("o_proj", "down_proj")):
        return getattr(config, "residual_multiplier", 1)
    return 1


def replace_weights(model, folder, prefix=""):
    """Give the original model what the file holds, untying its head; return it."""
    config = text_config(model)
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    model.lm_head = head
    used = set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_text(name):
                name = text_part(name)
                used |= _replace(name, parameter, tensors, config)
    vision = {name for name in tensors if not is_text(name)}
    assert used | vision == set(tensors), "the file holds something no weight was taken from"
    return model


def _replace(name, parameter, tensors, config):
    """Replace one parameter; return the names of the stored tensors used."""
    slices = stored_linears(name, config)
    bias = stored_linears(name.replace(".bias", ".weight"), config)
    if slices:
        stacked = parameter if parameter.dim() == 3 else parameter.unsqueeze(0)
        for target, modules in zip(stacked, slices, strict=True):
            rows = [decoded(tensors, each, config)[: outputs(each, config)] for each in modules]
            whole = torch.cat(rows)
            transposed = config.model_type == "gpt2" and modules != ["lm_head"]
            target.copy_(whole.t() if transposed else whole)
        return {
            f"{module}.{short}" for modules in slices for module in modules for short in SHORT_NAMES
        }
    if bias and name.endswith(".bias"):
        pieces = [tensors[f"{each}.bias"].float()[: outputs(each, config)] for each in bias[0]]
        parameter.copy_(torch.cat(pieces))
        return {f"{each}.bias" for each in bias[0]}
    stored = plain_name(name, config)
    value = tensors[stored].float()
    parameter.copy_(value[0] if value.dim() > parameter.dim() else value)
    return {stored}


def outputs(module, config):
    """Number of outputs behind which padding starts: of keys and values, of the head."""
    if module == "lm_head":
        return config.vocab_size
    if module.endswith((".k_proj", ".v_proj")):
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        return heads * head_dim
    return None


def logits(model):
    ids = torch.arange(40).unsqueeze(0) * 7 % 31 + 1
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def check_equal(folder, model, prefix=""):
    """Compare both paths; also show that the comparison is not empty."""
    before = logits(model)
    expected = logits(replace_weights(model, folder, prefix))
    found = logits(load(folder))
    assert torch.isfinite(expected).all()
    assert not torch.equal(expected, before)
    assert torch.equal(found, expected)
    return found


def test_every_architecture_has_a_case():
    assert {*CASES, *MULTIMODAL_CASES} == set(ARCHITECTURES)


def save(model, folder):
    """Save in float16; a copy, because the rotary frequencies would be rounded as well."""
    copy.deepcopy(model).half().save_pretrained(folder)


def quantized(tmp_path, name, seed):
    """Save a random model and quantize it to 8 bits; return the folder and the model."""
    model = build(name, random.Random(seed))
    save(model, tmp_path / "source")
    quantize_directory(tmp_path / "source", tmp_path / "exl2", bits=8.0, head_bits=8)
    return tmp_path / "exl2", model


@pytest.mark.parametrize("name", CASES)
def test_a_quantized_model_computes_what_its_decoded_weights_compute(tmp_path, name):
    check_equal(*quantized(tmp_path, name, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", CASES)
def test_more_random_models_compute_what_their_weights_compute(tmp_path, name, seed):
    check_equal(*quantized(tmp_path, name, seed))


def write_multimodal(folder, name, model):
    """Write a multimodal model as exllamav2 does: text model quantized, the rest copied."""
    prefix = "" if name.startswith("Qwen") else "language_model."
    generator = torch.Generator().manual_seed(3)
    config = text_config(model)
    tensors = {}
    for parameter_name, parameter in model.state_dict().items():
        if not is_text(parameter_name):
            stored = parameter_name.removeprefix("model.")
            tensors[stored] = parameter.bfloat16().contiguous()
            continue
        part = text_part(parameter_name)
        slices = stored_linears(part, config)
        if slices:
            rows, in_features = parameter.shape
            plan = [(8, 32)] * (in_features // 32)
            layer = random_exl2(generator, plan, -(-rows // 32) * 32, largest=0.002)
            tensors |= {f"{prefix}{slices[0][0]}.{short}": t for short, t in layer.items()}
        else:
            tensors[f"{prefix}{plain_name(part, config)}"] = parameter.half().clone()
    tensors |= repeated_head_norms(tensors, config)
    raw = json.loads(model.config.to_json_string()) | tiny.EXL2
    tiny.write(folder, tensors, raw | {"architectures": [name]}, files=2)
    return prefix


def repeated_head_norms(tensors, config):
    """Return q_norm and k_norm as exllamav2 stores them: once per head."""
    heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
    return {
        name: tensor.repeat(heads[name.split(".")[-2]], 1)
        for name, tensor in tensors.items()
        if name.split(".")[-2] in heads and tensor.dim() == 1
    }


@pytest.mark.parametrize("name", MULTIMODAL_CASES)
def test_the_text_part_of_a_multimodal_model_computes_what_the_whole_model_does(tmp_path, name):
    model = build(name, random.Random(0))
    prefix = write_multimodal(tmp_path, name, model)
    check_equal(tmp_path, model, prefix)


@pytest.mark.parametrize("name", MULTIMODAL_CASES)
def test_an_unquantized_multimodal_model_is_read_too(tmp_path, name):
    model = build(name, random.Random(0))
    save(model, tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel"])
def test_an_unquantized_model_is_left_to_transformers(tmp_path, name):
    model = build(name, random.Random(0))
    save(model, tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def edit_tensors(folder, function):
    path = folder / "output.safetensors"
    tensors = load_file(path)
    changed = function({name: tensor.clone() for name, tensor in tensors.items()})
    changed = {name: tensor.clone() for name, tensor in changed.items()}
    save_file(changed, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM"])
def test_head_norms_may_be_stored_once_per_head(tmp_path, name):
    folder, model = quantized(tmp_path, name, seed=0)
    expected = logits(load(folder))
    edit_tensors(folder, lambda tensors: tensors | repeated_head_norms(tensors, model.config))
    assert torch.equal(logits(load(folder)), expected)


def test_head_norms_that_differ_between_heads_are_refused(tmp_path):
    folder, model = quantized(tmp_path, "Qwen3ForCausalLM", seed=0)

    def change(tensors):
        tensors |= repeated_head_norms(tensors, model.config)
        tensors["model.layers.0.self_attn.q_norm.weight"][1, 0] += 1
        return tensors

    edit_tensors(folder, change)
    with pytest.raises(ModelFormatError, match="differs between heads, expected equal rows"):
        load(folder)


def test_a_missing_expert_is_named(tmp_path):
    folder, _ = quantized(tmp_path, "MixtralForCausalLM", seed=0)
    edit_tensors(folder, lambda t: {k: v for k, v in t.items() if "experts.2.w3" not in k})
    with pytest.raises(ModelFormatError, match=r"layers\.0\..*experts\.2\.w3 is missing"):
        load(folder)


def test_an_unquantized_layer_of_a_transposing_architecture_is_refused(tmp_path):
    folder, _ = quantized(tmp_path, "GPT2LMHeadModel", seed=0)

    def change(tensors):
        tensors = {k: t for k, t in tensors.items() if "o_proj" not in k}
        weight = torch.zeros(64, 64).half()
        return tensors | {f"model.layers.{i}.self_attn.o_proj.weight": weight for i in range(2)}

    edit_tensors(folder, change)
    with pytest.raises(ModelFormatError, match="which exllamav2 never writes"):
        load(folder)
