"""Before a run what cannot be written is found, after it what was not saved is an error."""

import json
import sys
import types
from pathlib import Path

import pytest
import yaml

from lm_eval_exl2 import run_checks
from lm_eval_exl2.cli import main
from lm_eval_exl2.errors import CacheWriteError, OptionError
from lm_eval_exl2.run_checks import Places, check_before, read_places

DATE = "2026-09-05T10-11-12.123456"


@pytest.mark.parametrize(
    ("words", "places"),
    [
        ("--tasks a --output_path out --use_cache dir/c --limit 3", ("out", "dir/c_rank0.db")),
        ("run -o out.json -c c -s", ("out.json", "c_rank0.db")),
        ("--output_path=out --model_args a=1,b=2", ("out", None)),
        ("--output out --use c", ("out", "c_rank0.db")),
        ("ls tasks", (None, None)),
        ("--tasks a --output_path", (None, None)),
    ],
)
def test_places_are_read_from_the_command_line(words, places):
    expected = Places(*(Path(place) if place else None for place in places))
    assert read_places(words.split()) == expected


def test_places_of_a_configuration_file_count_unless_the_command_line_says_otherwise(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"output_path": "out", "use_cache": "c", "tasks": ["a"]}))
    assert read_places(["--config", str(path)]) == Places(Path("out"), Path("c_rank0.db"))
    assert read_places(["-C", str(path), "-o", "x"]) == Places(Path("x"), Path("c_rank0.db"))
    path.write_text("no mapping")
    assert read_places(["--config", str(path)]) == Places(None, None)
    assert read_places(["--config", str(tmp_path / "missing")]) == Places(None, None)


def test_missing_folders_are_made(tmp_path):
    check_before(Places(tmp_path / "a" / "b", tmp_path / "c" / "d_rank0.db"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c"]
    check_before(Places(tmp_path / "e" / "out.json", None))
    assert list((tmp_path / "e").iterdir()) == []


def test_what_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    with pytest.raises(OptionError, match=r"--output_path: cannot write to .*below: Not a dir"):
        check_before(Places(below, None))
    with pytest.raises(OptionError, match="--use_cache: cannot write to"):
        check_before(Places(None, below / "c_rank0.db"))
    (tmp_path / "c_rank0.db").mkdir()
    with pytest.raises(CacheWriteError, match="cannot use the response cache"):
        check_before(Places(None, tmp_path / "c_rank0.db"))
    assert main(["run", "--model", "exl2", "--output_path", str(below)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lm-eval-exl2: error: --output_path: cannot write to")
    assert error.count("\n") == 1


def test_too_little_room_is_refused_with_numbers(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=63 << 20)
    monkeypatch.setattr(run_checks.shutil, "disk_usage", lambda _folder: usage)
    with pytest.raises(OptionError, match=r"63 MiB are free in .*, expected at least 64; make"):
        check_before(Places(tmp_path, None))
    usage.free = 64 << 20
    check_before(Places(tmp_path, None))


# -- afterwards -----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command with something else in the harness's place; return status and error."""
    monkeypatch.setattr("lm_eval_exl2.plugin.register", lambda: None)
    monkeypatch.setattr(sys, "argv", ["before"])

    def run_with(save, output="out"):
        harness = types.ModuleType("lm_eval.__main__")
        harness.cli_evaluate = lambda: save(tmp_path / "out")
        monkeypatch.setitem(sys.modules, "lm_eval.__main__", harness)
        status = main(["run", "--output_path", str(tmp_path / output)])
        return status, capsys.readouterr().err

    return run_with


def saved(folder, *, results=None, samples='{"doc_id": 0}\n{"doc_id": 1}\n', date=DATE):
    """Write what the harness writes."""
    model = folder / "demo"
    model.mkdir(parents=True, exist_ok=True)
    results = results or json.dumps({"results": {}, "task_hashes": {"some_task": "abc"}})
    (model / f"results_{date}.json").write_text(results)
    if samples is not None:
        (model / f"samples_some_task_{date}.jsonl").write_text(samples)


def test_saved_results_are_enough(run):
    assert run(saved) == (0, "")
    assert run(lambda folder: saved(folder, samples="", date="2026-09-05T11")) == (0, "")


def test_results_without_samples_are_enough_if_none_were_asked_for(run):
    assert run(lambda folder: saved(folder, results="{}", samples=None)) == (0, "")


def test_a_single_file_is_found_by_its_stem(run):
    def save(folder):
        (folder.parent / f"re_port_{DATE}.json").write_text('{"task_hashes": {"t": ""}}')
        (folder.parent / f"samples_t_{DATE}.jsonl").write_text("{}\n")

    assert run(save, "re_port.json") == (0, "")


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"results": '{"results": {'}, "results_"),
        ({"samples": None}, "samples_some_task_"),
        ({"samples": '{"doc_id": 0}\n{"doc'}, "samples_some_task_"),
        ({"samples": '{"doc_id": 0}\n{"doc_id": 1}'}, "samples_some_task_"),
    ],
)
def test_what_is_missing_or_cut_off_is_an_error(run, broken, named):
    status, error = run(lambda folder: saved(folder, **broken))
    assert status == 1
    assert f"/{named}{DATE}.json" in error
    assert "is missing or not whole" in error


def test_a_harness_that_could_not_save_is_an_error_also_beside_older_results(run):
    run(saved)
    status, error = run(lambda _folder: None)
    assert status == 1
    assert "could not save the results to" in error


def test_without_an_output_folder_nothing_is_expected(monkeypatch):
    monkeypatch.setattr("lm_eval_exl2.plugin.register", lambda: None)
    monkeypatch.setattr(sys, "argv", ["before"])
    harness = types.ModuleType("lm_eval.__main__")
    harness.cli_evaluate = lambda: None
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", harness)
    assert main(["run", "--model", "exl2"]) == 0
