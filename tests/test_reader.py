"""Opening checkpoint directories: what is read, and that every kind of damage has its one line."""

import json
import os
import shutil

import pytest
import tiny
import torch
from oracles import exl2_weight, gptq_weight

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.errors import Exl2EvalError, ModelFormatError

torch.set_num_threads(1)  # for tensors this small more threads only wait for each other

Q_PROJ = "model.layers.0.self_attn.q_proj"
SHORT_NAMES = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")


def read_all(folder):
    """Open a directory and read every weight: transformers' name -> tensor."""
    checkpoint = Checkpoint(folder)
    return {weight.name: checkpoint.load(weight) for weight in checkpoint.weights()}


def decoded(tensors, name):
    layer = {short: tensors[f"{name}.{short}"] for short in SHORT_NAMES}
    return torch.from_numpy(exl2_weight(layer))


def names_of(config=tiny.CONFIG):
    linears = {f"{name}.weight" for name in tiny.linear_sizes(config)}
    return linears | set(tiny.other_tensors(config))


# -- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [33, 100, 128])
def test_exl2_weights_are_decoded_and_trimmed_of_padding(tmp_path, vocab_size):
    config = tiny.CONFIG | {"vocab_size": vocab_size}
    tensors = tiny.exl2_tensors(config)
    weights = read_all(tiny.write(tmp_path, tensors, config | tiny.EXL2))
    assert set(weights) == names_of()
    for name, (out_features, in_features) in tiny.linear_sizes(config).items():
        assert weights[f"{name}.weight"].shape == (out_features, in_features)
        assert torch.equal(weights[f"{name}.weight"], decoded(tensors, name)[:out_features])
    for name in tiny.other_tensors(config):
        assert torch.equal(weights[name], tensors[name])


def test_many_files_hold_the_same_model_as_one(tmp_path):
    tensors = tiny.exl2_tensors()
    one = read_all(tiny.write(tmp_path / "one", tensors, tiny.CONFIG | tiny.EXL2))
    many = read_all(tiny.write(tmp_path / "many", tensors, tiny.CONFIG | tiny.EXL2, files=4))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_checkpoint_says_what_it_is(tmp_path):
    folder = tiny.write_exl2(tmp_path)
    checkpoint = Checkpoint(folder)
    assert checkpoint.kind == "exl2"
    assert checkpoint.architecture.name == "LlamaForCausalLM"
    assert checkpoint.has_own_head
    assert checkpoint.bytes == (folder / "output.safetensors").stat().st_size
    linear = checkpoint.linears["lm_head"]
    assert (linear.out_features, linear.columns, linear.in_features) == (100, 128, 64)
    assert [(group.bits, group.rows) for group in linear.groups] == [(5, 32), (3, 32)]
    assert set(checkpoint.load_packed("lm_head")) == set(SHORT_NAMES)


def test_the_digest_follows_weights_and_config_but_not_the_place(tmp_path):
    here = tiny.write_exl2(tmp_path / "here")
    digest = Checkpoint(here).digest()
    assert len(digest) == 64
    assert Checkpoint(shutil.copytree(here, tmp_path / "there")).digest() == digest
    config = json.loads((here / "config.json").read_text())
    (here / "config.json").write_text(json.dumps(config | {"rope_theta": 20000.0}))
    assert Checkpoint(here).digest() != digest


@pytest.mark.parametrize("padded", [False, True])
def test_biases_are_trimmed_like_their_layers(tmp_path, padded):
    # out_features that are no multiple of 32 inside the model: one key head of 33
    config = tiny.CONFIG | {"num_attention_heads": 32, "head_dim": 33}
    tensors = tiny.exl2_tensors(config, bias=("q_proj", "k_proj"))
    name = f"{Q_PROJ.replace('q_proj', 'k_proj')}.bias"
    expected = tensors[name]
    assert expected.shape == (33,)
    if padded:
        tensors[name] = torch.nn.functional.pad(expected, (0, 31))
    weights = read_all(tiny.write(tmp_path, tensors, config | tiny.EXL2))
    assert torch.equal(weights[name], expected)
    assert f"{Q_PROJ}.bias" in weights


def test_a_tied_model_keeps_its_separately_quantized_head(tmp_path):
    config = tiny.CONFIG | {"tie_word_embeddings": True}
    tensors = tiny.exl2_tensors(config)
    folder = tiny.write(tmp_path, tensors, config | tiny.EXL2)
    assert Checkpoint(folder).has_own_head
    assert torch.equal(read_all(folder)["lm_head.weight"], decoded(tensors, "lm_head")[:100])


def test_a_tied_model_without_a_head_has_none(tmp_path):
    config = tiny.CONFIG | {"tie_word_embeddings": True}
    tensors = {k: t for k, t in tiny.exl2_tensors(config).items() if "lm_head" not in k}
    folder = tiny.write(tmp_path, tensors, config | tiny.EXL2)
    assert not Checkpoint(folder).has_own_head
    assert set(read_all(folder)) == names_of() - {"lm_head.weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("index", [False, True])
def test_unquantized_directories_are_read_as_they_are(tmp_path, dtype, index):
    tensors = tiny.plain_tensors(dtype=dtype)
    tiny.write(tmp_path, tensors, tiny.CONFIG, files=3 if index else 1, stem="model", index=index)
    assert Checkpoint(tmp_path).kind == "unquantized"
    weights = read_all(tmp_path)
    assert weights.keys() == tensors.keys()
    assert all(torch.equal(weights[name], tensors[name]) for name in tensors)


def test_an_index_copied_from_the_original_model_is_not_in_the_way(tmp_path):
    tiny.write_exl2(tmp_path)
    tiny.write_index(tmp_path, {"lm_head.weight": "model-00001-of-00002.safetensors"})
    assert set(read_all(tmp_path)) == names_of()


def test_an_index_chooses_among_files_of_other_formats(tmp_path):
    tensors = tiny.plain_tensors()
    tiny.write(tmp_path, {"tok_embeddings.weight": torch.zeros(2)}, {}, stem="consolidated")
    tiny.write(tmp_path, tensors, tiny.CONFIG, files=2, stem="model", index=True)
    assert read_all(tmp_path).keys() == tensors.keys()


def test_a_consolidated_file_beside_the_model_is_left_alone(tmp_path):
    tiny.write(tmp_path, {"tok_embeddings.weight": torch.zeros(2)}, {}, stem="consolidated")
    tensors = tiny.plain_tensors()
    tiny.write(tmp_path, tensors, tiny.CONFIG, stem="model")
    assert read_all(tmp_path).keys() == tensors.keys()


def test_links_to_files_elsewhere_are_followed_as_in_the_hub_cache(tmp_path):
    blobs = tiny.write_exl2(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert set(read_all(snapshot)) == names_of()


def test_files_without_an_aligned_header_are_valid(tmp_path):
    folder = tiny.write_exl2(tmp_path)
    path = folder / "output.safetensors"
    expected = {name: tensor.clone() for name, tensor in read_all(folder).items()}
    header, data = tiny.read_header(path)
    text = json.dumps(header).encode()
    text += b" " * ((1 - len(text)) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    found = read_all(folder)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_buffers_of_old_checkpoints_are_left_out(tmp_path):
    tensors = tiny.exl2_tensors()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
    assert set(read_all(tiny.write(tmp_path, tensors, tiny.CONFIG | tiny.EXL2))) == names_of()


def test_an_unquantized_head_of_an_exl2_checkpoint_is_read(tmp_path):
    tensors = {k: t for k, t in tiny.exl2_tensors().items() if "lm_head" not in k}
    tensors["lm_head.weight"] = torch.rand(100, 64).half()
    folder = tiny.write(tmp_path, tensors, tiny.CONFIG | tiny.EXL2)
    assert Checkpoint(folder).has_own_head
    assert torch.equal(read_all(folder)["lm_head.weight"], tensors["lm_head.weight"])


@pytest.mark.parametrize("order", ["none", "zero", "plain", "random"])
@pytest.mark.parametrize("packing", ["gptq", "gptq_v2"])
def test_gptq_directories_are_decoded(tmp_path, order, packing):
    tensors = tiny.gptq_tensors(order=order)
    config = tiny.CONFIG | {
        "quantization_config": tiny.GPTQ["quantization_config"] | {"checkpoint_format": packing}
    }
    weights = read_all(tiny.write(tmp_path, tensors, config))
    assert set(weights) == names_of()
    names = [n for n in ("qweight", "qzeros", "scales", "g_idx") if f"{Q_PROJ}.{n}" in tensors]
    layer = {name: tensors[f"{Q_PROJ}.{name}"] for name in names}
    expected = gptq_weight(layer, 32, 0 if packing == "gptq_v2" else 1)
    assert torch.equal(weights[f"{Q_PROJ}.weight"], torch.from_numpy(expected))


# -- what is refused -------------------------------------------------------------------------


def one_line(folder):
    """Return the text of the error that reading a directory ends with."""
    with pytest.raises(ModelFormatError) as caught:
        read_all(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert isinstance(caught.value, Exl2EvalError)
    return text


def change(tensors, name, function):
    tensors[name] = function(tensors[name])


def rename(tensors, old, new):
    tensors[new] = tensors.pop(old)


def table(*values):
    return torch.tensor(values, dtype=torch.int16)


BAD_TENSORS = {
    "q_proj: EXL2 tensors missing: q_scale": lambda t: t.pop(f"{Q_PROJ}.q_scale"),
    "layer 0 lacks self_attn.q_proj": lambda t: [t.pop(f"{Q_PROJ}.{n}") for n in SHORT_NAMES],
    "model.embed_tokens is missing": lambda t: t.pop("model.embed_tokens.weight"),
    "model.norm is missing": lambda t: t.pop("model.norm.weight"),
    "layer 1 lacks input_layernorm.weight": lambda t: t.pop(
        "model.layers.1.input_layernorm.weight"
    ),
    "layer 1 lacks all tensors": lambda t: [t.pop(n) for n in list(t) if ".layers.1." in n],
    "is beyond the 2 layers": lambda t: t.update({"model.layers.2.x.weight": torch.zeros(2)}),
    "model.extra.weight is not part of a LlamaForCausalLM": lambda t: t.update(
        {"model.extra.weight": torch.zeros(2)}
    ),
    "model.norm.scale is not part of": lambda t: t.update({"model.norm.scale": torch.zeros(2)}),
    "model.norm is quantized, but is no linear layer": lambda t: t.update(
        {f"model.norm.{n}": t[f"{Q_PROJ}.{n}"] for n in SHORT_NAMES}
        | {"model.norm.bias": t.pop("model.norm.weight")}
    ),
    "q_proj.weight belongs to a layer that is quantized": lambda t: t.update(
        {f"{Q_PROJ}.weight": torch.zeros(64, 64)}
    ),
    "extra.q_scale is I32, expected F16 or BF16": lambda t: t.update(
        {"model.extra.q_scale": torch.zeros(2, dtype=torch.int32)}
    ),
    "norm.weight is I64, expected F16": lambda t: change(t, "model.norm.weight", torch.Tensor.long),
    "q_proj.q_weight is F32, expected I32": lambda t: change(
        t, f"{Q_PROJ}.q_weight", torch.Tensor.float
    ),
    "q_proj.q_groups is F16, expected I16": lambda t: change(
        t, f"{Q_PROJ}.q_groups", torch.Tensor.half
    ),
    "q_proj.q_scale_max is F32, expected F16": lambda t: change(
        t, f"{Q_PROJ}.q_scale_max", torch.Tensor.float
    ),
    "unknown width 9": lambda t: t.update({f"{Q_PROJ}.q_groups": table(9, 0, 3, 5)}),
    "width 5 after 3: groups must go from wide to narrow": lambda t: t.update(
        {f"{Q_PROJ}.q_groups": table(3, 0, 5, 3)}
    ),
    "q_scale has shape (1, 8), expected (2, 8)": lambda t: change(
        t, f"{Q_PROJ}.q_scale", lambda tensor: tensor[:1]
    ),
    "not a permutation": lambda t: change(t, f"{Q_PROJ}.q_invperm", torch.zeros_like),
    "q_scale_max holds NaN": lambda t: change(
        t, f"{Q_PROJ}.q_scale_max", lambda tensor: tensor * float("nan")
    ),
    "v_proj: stored as 64 x 64, but config.json asks for 32 x 64": lambda t: [
        t.update({f"{Q_PROJ[:-6]}v_proj.{n}": t[f"{Q_PROJ}.{n}"]}) for n in SHORT_NAMES
    ],
    "input_layernorm.weight has shape (65,), expected (64,)": lambda t: t.update(
        {"model.layers.0.input_layernorm.weight": torch.zeros(65)}
    ),
    "embed_tokens.weight has shape (128, 64), expected (100, 64)": lambda t: t.update(
        {"model.embed_tokens.weight": torch.zeros(128, 64)}
    ),
    "q_proj: bias has shape (65,), expected (64,)": lambda t: t.update(
        {f"{Q_PROJ}.bias": torch.zeros(65)}
    ),
    "layer 1 lacks self_attn.q_proj.bias": lambda t: t.update({f"{Q_PROJ}.bias": torch.zeros(64)}),
    "holds a tensor named 'model.\\nnorm'": lambda t: t.update({"model.\nnorm": torch.zeros(2)}),
}


@pytest.mark.parametrize("message", BAD_TENSORS)
def test_tensors_that_make_no_model_are_refused(tmp_path, message):
    tensors = tiny.exl2_tensors()
    BAD_TENSORS[message](tensors)
    assert message in one_line(tiny.write(tmp_path, tensors, tiny.CONFIG | tiny.EXL2))


def edit_header(folder, function):
    path = folder / "output.safetensors"
    header, data = tiny.read_header(path)
    function(header)
    tiny.write_header(path, header, data)


def raw_header(folder, text, **options):
    path = folder / "output.safetensors"
    tiny.write_header(path, text, tiny.read_header(path)[1], **options)


def truncate(folder, keep):
    path = folder / "output.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def shorten_q_weight(header):
    header[f"{Q_PROJ}.q_weight"]["shape"][0] -= 1


INVALID = "is not a valid safetensors file"
BAD_FILES = {
    "truncated data": (lambda folder: truncate(folder, 0.9), INVALID),
    "truncated header": (lambda folder: truncate(folder, 0.02), INVALID),
    "empty file": (lambda folder: truncate(folder, 0), INVALID),
    "oversized header": (lambda f: raw_header(f, b"{}", length=2**62), INVALID),
    "header of nearly all memory": (lambda f: raw_header(f, b"{}", length=2**31), INVALID),
    "header not JSON": (lambda f: raw_header(f, b"not JSON"), INVALID),
    "header of another shape": (lambda f: raw_header(f, b"[]"), INVALID),
    "header not UTF-8": (lambda f: raw_header(f, b"\xff\xfe{}"), INVALID),
    "shape against offsets": (lambda f: edit_header(f, shorten_q_weight), INVALID),
    "offsets beyond the file": (
        lambda f: edit_header(f, lambda h: h["lm_head.q_groups"].update(data_offsets=[0, 2**40])),
        INVALID,
    ),
    "unknown dtype": (
        lambda f: edit_header(f, lambda h: h["model.norm.weight"].update(dtype="F12")),
        INVALID,
    ),
    "no weights": (
        lambda folder: (folder / "output.safetensors").unlink(),
        "has no .safetensors file",
    ),
    "pickles only": (
        lambda folder: (folder / "output.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin is a pickle, which is never loaded",
    ),
    "config missing": (lambda f: (f / "config.json").unlink(), "config.json not found"),
    "config not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "config.json is not readable JSON",
    ),
    "config not UTF-8": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config.json is not readable JSON",
    ),
    "config too deep": (
        lambda f: (f / "config.json").write_text("[" * 100_000),
        "config.json is not readable JSON",
    ),
    "config a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json holds a list, expected an object",
    ),
}


@pytest.mark.parametrize("damage", BAD_FILES)
def test_damaged_files_are_refused(tmp_path, damage):
    function, message = BAD_FILES[damage]
    folder = tiny.write_exl2(tmp_path)
    function(folder)
    assert message in one_line(folder)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    assert "config.json not found, expected a checkpoint directory" in one_line(tmp_path / "none")


def test_two_files_with_the_same_tensor_are_refused(tmp_path):
    folder = tiny.write_exl2(tmp_path)
    tiny.write(folder, {"model.norm.weight": torch.zeros(64)}, tiny.CONFIG, stem="more")
    message = "tensor model.norm.weight is in both more.safetensors and output.safetensors"
    assert message in one_line(folder)


@pytest.mark.parametrize("index", [True, False], ids=["indexed", "numbered"])
def test_a_missing_shard_is_named(tmp_path, index):
    tiny.write(tmp_path, tiny.exl2_tensors(), tiny.CONFIG, files=3, stem="model", index=index)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    text = one_line(tmp_path)
    assert "shard model-00002-of-00003.safetensors" in text
    assert "is missing" in text


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/outside.safetensors", "a\\b.safetensors", "model.bin",
     "in/side.safetensors", ".safetensors", "a\u0000.safetensors", "x" * 300 + ".safetensors"],
)  # fmt: skip
def test_an_index_cannot_name_files_elsewhere(tmp_path, name):
    tiny.write_exl2(tmp_path / "outside")
    shutil.copy(tmp_path / "outside" / "output.safetensors", tmp_path / "outside.safetensors")
    folder = tiny.write_exl2(tmp_path / "model")
    tiny.write_index(folder, {"lm_head.weight": name})
    assert "expected a .safetensors file of the same directory" in one_line(folder)


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map_is_refused(tmp_path, content):
    folder = tiny.write_exl2(tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    assert "index.json has no weight_map" in one_line(folder)


GPTQ_METHOD = tiny.GPTQ["quantization_config"]
BAD_GPTQ = {
    "'gptq' with 8 bits": {"bits": 8},
    "'awq' with 4 bits": {"quant_method": "awq"},
    "checkpoint_format is 'marlin'": {"checkpoint_format": "marlin"},
    "group_size is None": {"group_size": None},
    "groups of 64 do not make 96 input features": {"group_size": 64},
    "desc_act needs g_idx": {"desc_act": True},
}


@pytest.mark.parametrize("message", BAD_GPTQ)
def test_gptq_that_would_be_misread_is_refused(tmp_path, message):
    quantization = {"quantization_config": GPTQ_METHOD | BAD_GPTQ[message]}
    tensors = tiny.gptq_tensors(order="none")
    assert message in one_line(tiny.write(tmp_path, tensors, tiny.CONFIG | quantization))


def test_a_gptq_layer_of_another_size_is_refused(tmp_path):
    tensors = tiny.gptq_tensors()
    config = tiny.CONFIG | tiny.GPTQ | {"intermediate_size": 64}
    assert "stored as 64 x 96, but config.json asks for 64 x 64" in one_line(
        tiny.write(tmp_path, tensors, config)
    )


@pytest.mark.parametrize("method", ["awq", "exl3", "bitsandbytes", "fp8", "exl2", 7])
def test_methods_whose_tensors_are_not_there_are_refused(tmp_path, method):
    config = tiny.CONFIG | {"quantization_config": {"quant_method": method}}
    text = one_line(tiny.write(tmp_path, tiny.plain_tensors(), config))
    assert f"quant_method {method!r}, but the files hold no such tensors" in text


def test_exl2_tensors_under_another_method_are_refused(tmp_path):
    config = tiny.CONFIG | {"quantization_config": {"quant_method": "awq"}}
    text = one_line(tiny.write(tmp_path, tiny.exl2_tensors(), config))
    assert "quant_method 'awq', but the files hold EXL2 tensors" in text


def test_exl2_files_of_old_converters_need_no_method(tmp_path):
    assert set(read_all(tiny.write(tmp_path, tiny.exl2_tensors(), tiny.CONFIG))) == names_of()
