"""Synthetic checkpoints have the dimensions of the real ones and load like them."""

import json
import sys

import pytest
import synthetic
import torch
import transformers
from tiny_models import logits

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.architectures import linear_size
from lm_eval_exl2.checkpoint.export import dequantize_directory
from lm_eval_exl2.checkpoint.summary import summarise

TINY = synthetic.Shape(synthetic.Sizes(128, 2, 2, 1, 64, 256, 320, 0), 64)


def write(folder, shape=TINY, *, seed=0, tokenizer=None, bits=4.0):
    draw = synthetic.Draw("cpu", seed)
    synthetic.write_checkpoint(shape, folder, draw, bits=bits, head_bits=6, tokenizer=tokenizer)
    return folder


def parameters(shape):
    sizes = shape.sizes
    names = [f"model.layers.0.{name}" for name in synthetic._LINEARS]
    linears = sum(n * k for n, k in (linear_size(name, sizes) for name in names))
    embeddings = sizes.vocab_size * sizes.hidden_size * (1 if shape.tied else 2)
    return sizes.layers * (linears + 2 * sizes.hidden_size) + sizes.hidden_size + embeddings


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # Counts that the models' own pages on the hub give.
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3.1-70b", 70_553_706_496),
        ("bench-70m", 71_315_968),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name, published):
    assert parameters(synthetic.SHAPES[name]) == published


def test_a_checkpoint_loads_and_its_weights_have_the_wanted_size(tmp_path):
    checkpoint = Checkpoint(write(tmp_path / "out", bits=3.5))
    summary = summarise(checkpoint)
    assert summary.quantization["bits"] == pytest.approx(summary.bits_layers, abs=1e-4)
    assert 3.5 < summary.bits_layers < 4.0
    for name in checkpoint.linears:
        weight = checkpoint.load_linear(name).float()
        assert weight.square().mean().sqrt() == pytest.approx(synthetic.WEIGHT_SIZE, rel=0.2)


def test_stock_transformers_runs_the_decoded_checkpoint(tmp_path):
    write(tmp_path / "out")
    dequantize_directory(tmp_path / "out", tmp_path / "decoded")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "decoded")
    found = logits(model)
    assert found.shape[-1] == 320
    assert torch.isfinite(found).all()
    assert found.std() > 0.01


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path):
    files = [write(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1))]
    first, second, third = [(path / "output.safetensors").read_bytes() for path in files]
    assert first == second != third


def test_the_tokenizer_gives_back_any_text(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(write(tmp_path / "out"))
    text = "Grüße,\n  Wörld 你好\t<s"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["bos_token_id"] == tokenizer.bos_token_id == 256
    assert config["eos_token_id"] == tokenizer.eos_token_id == 257


def test_another_tokenizer_can_be_copied_in(tmp_path):
    source = write(tmp_path / "source")
    write(tmp_path / "out", tokenizer=source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_llama_3_positions_are_written_under_both_generations_of_names():
    config = synthetic.config_of(synthetic.SHAPES["llama-3.2-1b"], {})
    written = synthetic.quantized_config(config, 4.0, 6)
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500_000
    assert written["rope_scaling"]["factor"] == written["rope_parameters"]["factor"] == 32


def test_the_command_line_ends_user_errors_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    words = ["synthetic.py", "--shape", "bench-70m", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        synthetic.main()
    assert "is not an empty folder" in str(end.value)
