"""A CPU engine starts no more threads than its container may run."""

import pytest
import torch

from lm_eval_exl2.engines.threads import set_threads


@pytest.fixture(autouse=True)
def eight_threads(monkeypatch):
    """Pretend that PyTorch has taken eight threads."""
    found = {"threads": 8}
    monkeypatch.setattr(torch, "get_num_threads", lambda: found["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: found.update(threads=count))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("told", "threads"),
    [
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("max 100000", 8),
        ("", 8),
    ],
)
def test_the_quota_of_a_container_is_kept(tmp_path, told, threads):
    (tmp_path / "cpu.max").write_text(told)
    assert set_threads(tmp_path) == threads


@pytest.mark.parametrize(("quota", "threads"), [("300000", 3), ("-1", 8)])
def test_so_is_that_of_an_older_kernel(tmp_path, quota, threads):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert set_threads(tmp_path) == threads


def test_without_control_groups_nothing_changes(tmp_path):
    assert set_threads(tmp_path / "missing") == 8


def test_what_the_user_says_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    (tmp_path / "cpu.max").write_text("200000 100000")
    assert set_threads(tmp_path) == 8
