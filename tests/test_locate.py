"""From `pretrained=` to a directory: folders, demo names, the hub, and its branch names."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from lm_eval_exl2.checkpoint.locate import locate
from lm_eval_exl2.demo import demo_directory
from lm_eval_exl2.errors import ModelFormatError, OptionError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository whose branches look like EXL2 sizes; records downloads."""
    calls = []
    snapshot = tmp_path / "c0ffee"
    (snapshot / "inner").mkdir(parents=True)
    branches = [SimpleNamespace(name=name) for name in ("main", "4.0", "6_5", "8.0")]

    def download(repository, **options):
        calls.append((repository, options))
        return str(snapshot)

    refs = SimpleNamespace(branches=branches, tags=[])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", lambda *_args: refs)
    return SimpleNamespace(calls=calls, snapshot=snapshot, branches=branches)


def test_a_folder_is_used_as_it_is(tmp_path):
    assert locate(str(tmp_path)) == (tmp_path, "")


def test_a_subfolder_is_looked_up_inside(tmp_path):
    (tmp_path / "inner").mkdir()
    assert locate(str(tmp_path), subfolder="inner").directory == tmp_path / "inner"
    with pytest.raises(ModelFormatError, match="has no folder other"):
        locate(str(tmp_path), subfolder="other")


def test_demo_names_come_from_the_package():
    assert locate("demo").directory == demo_directory("demo")
    with pytest.raises(OptionError, match="demo-nothing"):
        locate("demo-nothing")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing", "a/b/c"])
def test_a_path_that_is_not_there_is_said_to_be_no_directory(name):
    with pytest.raises(ModelFormatError, match="is not a directory"):
        locate(name)


def test_a_hub_id_is_downloaded_without_pickles(hub):
    found = locate("org/name", revision="4.0")
    assert found == (hub.snapshot, "c0ffee")
    ((repository, options),) = hub.calls
    assert (repository, options["revision"]) == ("org/name", "4.0")
    assert {"*.bin", "*.pt", "*.pkl"} <= set(options["ignore_patterns"])


@pytest.mark.parametrize(("number", "branch"), [(65.0, "6_5"), (8.0, "8.0")])
def test_a_branch_that_became_a_number_is_recovered(hub, number, branch):
    locate("org/name", revision=number)
    assert hub.calls[0][1]["revision"] == branch


def test_a_number_that_fits_two_branches_asks_for_quotes(hub):
    hub.branches.append(SimpleNamespace(name="65"))
    with pytest.raises(OptionError, match=r"the number 65\.0, which branch .* revision='6_5'"):
        locate("org/name", revision=65.0)


def test_without_a_connection_a_number_asks_for_quotes_too(hub, monkeypatch):
    class NoConnectionError(huggingface_hub.errors.HTTPError):
        pass

    def fail(*_args):
        raise NoConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", fail)
    with pytest.raises(OptionError, match="which branch is meant"):
        locate("org/name", revision=65.0)


def test_a_number_for_a_local_folder_does_not_matter(tmp_path):
    assert locate(str(tmp_path), revision=65.0).directory == tmp_path


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch):
    def fail(*_args, **_options):
        raise LocalEntryNotFoundError("cannot reach the hub\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelFormatError) as error:
        locate("org/name")
    assert "neither a directory nor a repository that can be downloaded" in str(error.value)
    assert "\n" not in str(error.value)
