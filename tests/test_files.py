"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.files import write_whole


def test_a_file_is_written_with_unix_ends_and_nothing_beside_it(tmp_path):
    path = tmp_path / "report.md"
    write_whole(path, "old")
    write_whole(path, "a\nµ\n")
    assert path.read_bytes() == "a\nµ\n".encode()
    assert [each.name for each in tmp_path.iterdir()] == ["report.md"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    path = tmp_path / "report.md"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.md"]


def test_a_file_whose_writing_breaks_off_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    write_whole(path, "old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OptionError, match="No space left on device"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.md"]


def test_a_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(OptionError, match=r"cannot write '.*report\.md': No such file") as error:
        write_whole(tmp_path / "missing" / "report.md", "text")
    assert "\n" not in str(error.value)
