"""The journal: what is written is there after a kill, a full disk or a damaged byte, or is gone.

Never is it something else.
"""

import logging
import os
import resource
from contextlib import contextmanager

import pytest

from lm_eval_exl2.errors import CacheMismatchError, CacheWriteError
from lm_eval_exl2.journal import MAX_UNSYNCED, SYNC_INTERVAL_S, Journal

FINGERPRINT = {"checkpoint": "abc", "seed": "1234"}
ANSWERS = {
    "a": (-1.25, True),
    "b": (-0.1, False),
    "c:7": 'two\nlines, "quoted", 日本 \ud800',
    "d": -1e-300,
    "e": "",
}


def write(path, answers=ANSWERS, **options):
    journal = Journal(path, FINGERPRINT, **options)
    for key, answer in answers.items():
        journal.append(key, answer)
    return journal


def read(path, fingerprint=FINGERPRINT):
    return dict(Journal(path, fingerprint).answers)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.jsonl"


def test_answers_are_read_back_as_they_were(path):
    write(path)
    found = read(path)
    assert found == ANSWERS
    assert [type(answer) for answer in found.values()] == list(map(type, ANSWERS.values()))


def test_an_answer_is_in_the_file_as_soon_as_append_returns(path):
    journal = Journal(path, FINGERPRINT)
    for number, (key, answer) in enumerate(ANSWERS.items(), start=1):
        journal.append(key, answer)
        assert len(read(path)) == number


def test_cut_off_at_any_byte_the_whole_lines_remain_and_writing_goes_on(path):
    write(path)
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for size in range(0, len(content), 2):
        path.write_bytes(content[:size])
        whole = sum(end <= size for end in ends) - 1  # the first line is no answer
        kept = dict(list(ANSWERS.items())[: max(0, whole)])
        write(path, {"new": 1.5})
        assert read(path) == kept | {"new": 1.5}


def test_any_damaged_byte_costs_the_answers_of_its_line_and_changes_none(path, caplog):
    write(path)
    content = path.read_bytes()
    caplog.set_level(logging.ERROR)
    for place, byte in enumerate(content):
        if place % 3 and byte != ord("\n"):
            continue
        damaged = bytearray(content)
        damaged[place] ^= (0x01, 0x20, 0xFF)[place // 3 % 3]
        path.write_bytes(damaged)
        found = read(path)
        assert found.items() <= ANSWERS.items()
        assert len(ANSWERS) - len(found) <= 1 + (byte == ord("\n"))  # it joined two lines


def test_damage_is_told_in_one_warning(path, caplog):
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2:4] = [b"garbage\n", lines[3].replace(b"two", b"TWO")]
    path.write_bytes(b"".join(lines))
    assert read(path) == {key: ANSWERS[key] for key in ("a", "d", "e")}
    assert [record.getMessage().split(" of ")[0] for record in caplog.records] == [
        "2 damaged lines"
    ]


def test_a_file_that_is_all_damage_is_set_aside_and_not_overwritten(path, caplog):
    for number in range(2):
        path.write_bytes(b"no journal at all\n%d\n" % number)
        assert read(path) == {}
    assert (path.with_name("cache.jsonl.damaged")).read_bytes() == b"no journal at all\n0\n"
    assert (path.with_name("cache.jsonl.2.damaged")).read_bytes() == b"no journal at all\n1\n"
    assert len(caplog.records) == 2


@pytest.mark.parametrize("answers", [{}, ANSWERS])
def test_another_fingerprint_is_refused_and_both_are_named(path, answers):
    write(path, answers)
    with pytest.raises(CacheMismatchError, match="with seed 1234, but this run has 0;") as caught:
        read(path, FINGERPRINT | {"seed": "0"})
    assert "\n" not in str(caught.value)


def test_another_fingerprint_is_refused_also_where_its_line_is_damaged(path):
    write(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1234", b"0000", 1))
    assert read(path) == ANSWERS
    path.write_bytes(content.replace(b"1234", b"0000", 1))
    with pytest.raises(CacheMismatchError, match=r"with fingerprint [0-9a-f]{16}, but this run"):
        read(path, FINGERPRINT | {"seed": "0"})


@contextmanager
def room(size):
    """Let no file grow beyond a size: the kernel writes what fits and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_the_file_ends_with_a_whole_line_and_the_error_says_so(path):
    journal = write(path)
    size = path.stat().st_size
    for missing in (1, 10):
        with room(size + missing), pytest.raises(CacheWriteError, match="make room"):
            journal.append("f", "more than fits in ten bytes")
        assert path.stat().st_size == size
    journal.append("f", "now it fits")
    assert read(path) == ANSWERS | {"f": "now it fits"}


def test_a_path_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "cache.jsonl", tmp_path, tmp_path / "missing" / "c.jsonl"):
        with pytest.raises(CacheWriteError, match="another path to --use_cache") as caught:
            Journal(path, FINGERPRINT)
        assert "\n" not in str(caught.value)


@pytest.fixture
def synced(path, monkeypatch):
    """The number of answers in the file each time it was forced to the disk."""
    counts = []
    monkeypatch.setattr(
        os, "fsync", lambda _file: counts.append(path.read_bytes().count(b"\n") - 1)
    )
    return counts


def test_at_most_256_answers_are_not_yet_forced_to_the_disk(path, synced):
    journal = Journal(path, FINGERPRINT, clock_s=lambda: 0.0)
    for number in range(1000):
        journal.append(str(number), 0.5)
        assert number + 1 - max(synced, default=0) < 256
    assert MAX_UNSYNCED == 256
    assert synced == [256, 512, 768]
    journal.sync()
    journal.sync()
    assert synced == [256, 512, 768, 1000]


def test_an_answer_after_five_seconds_forces_all_before_it_to_the_disk(path, synced):
    now = 0.0
    journal = Journal(path, FINGERPRINT, clock_s=lambda: now)
    for now in (0.0, 4.9, 5.0, 5.1, 9.9, 10.0):
        journal.append(str(now), 0.5)
    assert synced == [3, 6]
    assert SYNC_INTERVAL_S == 5.0
