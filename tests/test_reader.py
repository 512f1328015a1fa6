"""Opening checkpoint directories: what is read from each kind, and what is left alone."""

import json
import os
import shutil

import pytest
import tiny
import torch
from oracles import exl2_weight, gptq_weight

from lm_eval_exl2.checkpoint import Checkpoint

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


def test_exl2_files_of_old_converters_need_no_method(tmp_path):
    assert set(read_all(tiny.write(tmp_path, tiny.exl2_tensors(), tiny.CONFIG))) == names_of()
