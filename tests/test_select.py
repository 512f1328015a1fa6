"""Which engine runs: the one asked for, or the best there is, and never in silence."""

import importlib
import logging
import subprocess
import sys
import types

import pytest
import tiny
import torch

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.engines import (
    exllamav2_engine,  # imported before anything is patched that it takes by name
    exllamav2_import,
    select,
)
from lm_eval_exl2.errors import MissingDependencyError, ModelFormatError, OptionError
from lm_eval_exl2.options import parse_options


def open_with(folder, **arguments):
    arguments = {"device": "cuda:0"} | arguments  # what the harness always passes
    options = parse_options({"pretrained": str(folder), **arguments})
    return select.open_engine(Checkpoint(folder), options)


@pytest.fixture
def folder(tmp_path):
    return tiny.write(tmp_path, tiny.plain_tensors(), tiny.CONFIG)


@pytest.fixture
def with_card(monkeypatch):
    """Let there be a card, and an exllamav2 that records what it is asked for."""
    monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(exllamav2_import, "import_exllamav2", lambda: None)
    asked = []
    monkeypatch.setattr(
        exllamav2_engine,
        "Exllamav2Engine",
        lambda checkpoint, settings: asked.append(settings) or "exllamav2",
    )
    return asked


def test_without_a_card_auto_means_torch_and_one_line_says_why(folder, caplog):
    with caplog.at_level(logging.INFO):
        assert open_with(folder).info.name == "torch"
    lines = [record.message for record in caplog.records if "engine torch" in record.message]
    assert lines == ["engine torch: there is no CUDA card"]


def test_without_a_card_asking_for_exllamav2_is_an_error(folder):
    with pytest.raises(MissingDependencyError, match=r"no CUDA card.*or use engine=torch"):
        open_with(folder, engine="exllamav2")


def test_with_a_card_auto_means_exllamav2(folder, with_card):
    assert open_with(folder) == "exllamav2"
    assert with_card[0].load.device == 0


def test_with_a_card_torch_can_be_forced(folder, with_card):
    assert open_with(folder, engine="torch", device="cpu").info.name == "torch"
    assert with_card == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [("device", "cpu"), ("dtype", "float32"), ("dtype", "bfloat16")],
)
def test_what_only_torch_computes_chooses_torch_and_says_so(
    folder, with_card, caplog, argument, value
):
    with caplog.at_level(logging.INFO):
        assert open_with(folder, **{argument: value}).info.name == "torch"
    assert f"engine torch: {argument}={value}" in caplog.text
    with pytest.raises(OptionError, match=f"does not go with {argument}={value}"):
        open_with(folder, engine="exllamav2", **{argument: value})


def test_an_exllamav2_that_does_not_load_is_a_reason_for_torch(
    folder, with_card, monkeypatch, caplog
):
    def broken():
        raise MissingDependencyError("engine=exllamav2 is not available: no compiler")

    monkeypatch.setattr(exllamav2_import, "import_exllamav2", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        assert open_with(folder).info.name == "torch"
    assert "no compiler" in caplog.text


def test_a_model_that_exllamav2_gets_wrong_is_an_error_and_no_reason(
    folder, with_card, monkeypatch
):
    def refuse(_checkpoint, _settings):
        raise ModelFormatError("cannot run this correctly; use engine=torch")

    monkeypatch.setattr(exllamav2_engine, "Exllamav2Engine", refuse)
    with pytest.raises(ModelFormatError, match="use engine=torch"):
        open_with(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("gpu_split", "auto"), ("cache_mode", "Q4"), ("cache_size", 512), ("lora", "x")),
        *(("draft_model", "x"), ("ngram_draft", True)),
        *(("no_flash_attn", True), ("no_xformers", True)),
    ],
)
def test_options_of_exllamav2_are_refused_where_torch_runs(folder, name, value):
    with pytest.raises(OptionError, match=f"{name}=.* needs engine=exllamav2, but here"):
        open_with(folder, **{name: value})


def test_options_reach_the_engine_as_they_were_given(folder, with_card):
    open_with(
        folder,
        **{"device": "cuda:1", "gpu_split": "4,5", "cache_mode": "Q6", "cache_size": 1024},
        **{"no_flash_attn": True, "batch_size": 7, "max_batch_tokens": 99, "max_length": 55},
        **{"rope_scale": 2, "rope_alpha": 3, "ngram_draft": True, "lora": "adapter"},
    )
    (settings,) = with_card
    assert settings.load.device == 1
    assert settings.load.gpu_split == (4.0, 5.0)
    assert settings.load.max_batch_tokens == 99
    assert settings.load.max_length == 55
    assert settings.load.spare_positions > 0
    assert str(settings.load.lora) == "adapter"
    assert settings.load.config.details == {"rope_scale": 2.0, "rope_alpha": 3.0}
    assert (settings.cache_mode, settings.cache_size) == ("Q6", 1024)
    assert (settings.no_flash_attn, settings.no_xformers) == (True, False)
    assert settings.max_rows == 7
    assert settings.ngram_draft


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x"])
def test_a_card_that_is_not_there_is_one_clear_line(folder, with_card, device):
    with pytest.raises(OptionError, match="not found, expected cuda or cuda:0 to cuda:1"):
        open_with(folder, device=device)


# -- the import -------------------------------------------------------------------------------


@pytest.fixture
def importing(monkeypatch):
    """Run something of ours in place of `import exllamav2`, on a machine with a card."""

    def install(action, version="0.3.2"):
        monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)
        monkeypatch.setattr(exllamav2_import, "exllamav2_version", lambda: version)
        monkeypatch.setattr(importlib, "import_module", lambda _name: action())

    return install


def test_importing_leaves_stdout_and_threads_alone(importing, capsys):
    threads = torch.get_num_threads()

    def noisy():
        sys.stdout.write(" ## Warning: loading\n")
        torch.set_num_threads(threads + 1)
        return types.ModuleType("exllamav2")

    importing(noisy)
    assert exllamav2_import.import_exllamav2().__name__ == "exllamav2"
    assert torch.get_num_threads() == threads
    out, err = capsys.readouterr()
    assert out == ""
    assert "loading" in err


@pytest.mark.parametrize(
    "failure",
    [
        OSError("CUDA_HOME environment variable is not set. Please set it"),
        ImportError("undefined symbol: _ZN3c10"),
        RuntimeError("Error building extension 'exllamav2_ext'\nmany\nlines"),
        IndexError("list index out of range"),
        subprocess.CalledProcessError(1, "ninja"),
    ],
)
def test_an_extension_that_does_not_load_is_one_clear_line_and_leaves_nothing(importing, failure):
    def fail():
        sys.modules["exllamav2.half_imported"] = types.ModuleType("x")
        torch.set_num_threads(3)
        raise failure

    threads = torch.get_num_threads()
    importing(fail)
    with pytest.raises(MissingDependencyError) as error:
        exllamav2_import.import_exllamav2()
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("or use engine=torch")
    assert "exllamav2.half_imported" not in sys.modules
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("version", "lines"), [("0.3.2", 0), ("0.3.2+cu128.torch2.9.0", 0), ("0.3.1", 1)]
)
def test_a_version_nobody_checked_is_said_so(importing, caplog, version, lines):
    importing(lambda: types.ModuleType("exllamav2"), version)
    exllamav2_import.import_exllamav2()
    assert caplog.text.count("checked against 0.3.2 only") == lines


def test_without_exllamav2_installed_the_reason_is_that(monkeypatch):
    monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert exllamav2_import.why_unavailable() == "exllamav2 is not installed"
    with pytest.raises(MissingDependencyError, match="exllamav2 is not installed"):
        exllamav2_import.import_exllamav2()
