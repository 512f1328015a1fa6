"""Every kind of bad checkpoint directory is refused with one line that says what is wrong."""

import json
import shutil

import pytest
import tiny
import torch

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.errors import Exl2EvalError, ModelFormatError

Q_PROJ = "model.layers.0.self_attn.q_proj"
SHORT_NAMES = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")


def read_all(folder):
    checkpoint = Checkpoint(folder)
    for weight in checkpoint.weights():
        checkpoint.load(weight)


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
