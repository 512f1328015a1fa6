"""The command line: what it prints, how it fails, and what it does not import."""

import json
import subprocess
import sys
import types

import pytest
from tiny_models import save_model

from lm_eval_exl2 import __version__
from lm_eval_exl2.checkpoint.writer import quantize_directory
from lm_eval_exl2.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "source")
    quantize_directory(folder / "source", folder / "exl2", bits=4.5)
    return folder


def one_line_error(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lm-eval-exl2: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_imports_neither_torch_nor_the_harness():
    code = (
        "import sys; from lm_eval_exl2.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "loaded = {'torch', 'lm_eval', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("run", "info", "dequantize", "quantize", "tasks-path"):
        assert command in done.stdout


def test_info_prints_a_table(models, capsys):
    assert main(["info", str(models / "exl2")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "architecture     LlamaForCausalLM" in lines
    assert any(line.startswith("bits per weight  layers 5.") for line in lines)
    assert any("5 bits" in line and "4 bits" in line for line in lines)


def test_layers_of_one_mix_share_a_line(models, capsys):
    assert main(["info", str(models / "source")]) == 0
    out = capsys.readouterr().out
    assert "0-1          100.0%" in out
    assert "head 16.000" in out
    assert "quantization     none" in out


def test_info_prints_json_and_nothing_else(models, capsys):
    assert main(["info", "--json", str(models / "exl2")]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["kind"] == "exl2"
    assert content["layers"] == len(content["width_mix"]) == 2


def test_quantize_says_that_it_only_rounds_and_what_came_out(models, tmp_path, capsys):
    words = ["quantize", str(models / "source"), str(tmp_path / "out"), "--bits", "3"]
    assert main([*words, "--head-bits", "4"]) == 0
    captured = capsys.readouterr()
    assert "calibration" in captured.err
    assert "layers 3." in captured.out
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"][
            "head_bits"
        ]
        == 4
    )


def test_dequantize_writes_a_directory(models, tmp_path, capsys):
    words = ["dequantize", str(models / "exl2"), str(tmp_path / "out"), "--dtype", "bfloat16"]
    assert main(words) == 0
    assert "bfloat16" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_tasks_path_names_a_folder_with_tasks(capsys):
    from pathlib import Path

    assert main(["tasks-path"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert list(folder.rglob("*.yaml"))


def test_run_hands_every_word_to_the_harness(monkeypatch):
    seen = []
    harness = types.ModuleType("lm_eval.__main__")
    harness.cli_evaluate = lambda: seen.append(sys.argv[1:])
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", harness)
    monkeypatch.setattr("lm_eval_exl2.plugin.register", lambda: seen.append("registered"))
    monkeypatch.setattr(sys, "argv", ["before"])
    words = ["--model", "exl2", "--model_args", "pretrained=demo", "--help"]
    assert main(["run", *words]) == 0
    assert seen == ["registered", words]


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["info", "{folder}/absent"],
        ["info", "{folder}"],
        ["dequantize", "{folder}/source", "{folder}/new"],
        ["dequantize", "{folder}/exl2", "{folder}/source"],
        ["dequantize", "{folder}/exl2", "{folder}/no/parent"],
        ["info", "{folder}/source/config.json"],
    ],
)
def test_a_mistake_ends_in_one_line_and_status_1(words, models, capsys):
    assert main([word.format(folder=models) for word in words]) == 1
    one_line_error(capsys)


def test_a_width_that_does_not_exist_ends_in_one_line(models, capsys):
    words = ["quantize", str(models / "source"), str(models / "new"), "--bits"]
    for bits in ("9", "nan"):
        assert main([*words, bits]) == 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert f"error: bits is {float(bits)}" in captured.err
    assert not (models / "new").exists()


def test_a_folder_that_may_not_be_read_ends_in_one_line(models, capsys, monkeypatch):
    def refuse(_self, _directory):
        raise PermissionError(13, "Permission denied", "config.json")

    monkeypatch.setattr("lm_eval_exl2.checkpoint.reader.Checkpoint.__init__", refuse)
    assert main(["info", str(models)]) == 1
    assert "Permission denied: 'config.json'" in one_line_error(capsys)


@pytest.mark.parametrize("words", [[], ["unknown"], ["info"], ["quantize", "a", "b"]])
def test_wrong_usage_ends_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: lm-eval-exl2" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "lm_eval_exl2.cli", "tasks-path"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
