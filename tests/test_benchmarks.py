"""The speed benchmarks count tokens rightly, keep every pair, and run on a model of any size."""

import json
import os
import random
import sys

import generation
import loglikelihood
import pairs
import pyarrow
import pyarrow.parquet
import pytest
import readme
import synthetic
import torch
from workloads import LOGLIKELIHOOD

from lm_eval_exl2.records import ScoreRequest

TINY = synthetic.Shape(synthetic.Sizes(128, 2, 2, 1, 64, 256, 320, 0), 4096)


def test_tokens_of_every_way_of_sharing():
    requests = [
        ScoreRequest(0, [1, 2, 3], [4, 5]),  # 1 2 3 4
        ScoreRequest(1, [1, 2, 3], [4, 6]),  # the same inputs
        ScoreRequest(2, [1, 2, 3], [7]),  # 1 2 3
        ScoreRequest(3, [1, 2, 9], [7]),  # 1 2 9
    ]
    assert loglikelihood.count_tokens(requests) == {
        "tokens_requested": 14,
        "tokens_peer": 10,
        "tokens_shared_contexts": 3 + 3 + 1 + 1,
        "tokens_minimum": 5,
    }


def test_the_ratio_is_the_median_over_pairs_and_every_pair_is_kept():
    timing = pairs.Timing([1.0, 2.0, 4.0], [10.0, 8.0, 12.0], [], [])
    summary = timing.summary()
    assert summary["ratio"] == 4.0
    assert summary["seconds"] == 2.0
    assert summary["peer_seconds"] == 10.0
    assert summary["pairs"] == [[1.0, 10.0], [2.0, 8.0], [4.0, 12.0]]


def test_a_row_measured_later_replaces_its_own_and_keeps_the_others(tmp_path):
    path = tmp_path / "result.json"
    first = {"date": "d1", "commit": "a", "command": "all"}
    first_rows = {"rows": [{"workload": "x", "v": 1}, {"workload": "y"}]}
    path.write_text(json.dumps(pairs.joined(path, first | first_rows, ["x", "y"])))
    second = {"date": "d2", "commit": "b", "command": "one"}
    found = pairs.joined(path, second | {"rows": [{"workload": "x", "v": 2}]}, ["x", "y"])
    assert found["rows"] == [{"workload": "x", "v": 2, **second}, {"workload": "y", **first}]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder laid out as on the hub, with a few made-up rows."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)

    def words(count):
        return " ".join(
            "".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(count)
        )

    def write(repository, split, rows):
        (folder / repository).mkdir(parents=True, exist_ok=True)
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / repository / f"{split}-00000-of-00001.parquet")

    questions = [
        {"question": words(12), "choices": [words(2) for _ in range(4)], "answer": number % 4}
        for number in range(40)
    ]
    write("cais/mmlu/anatomy", "test", questions)
    write("Rowan/hellaswag/data", "validation", [{"ctx": words(5), "endings": [words(3)]}])
    gsm8k = [{"question": words(8), "answer": words(8)} for _ in range(9)]
    for split in ("train", "test"):
        write("openai/gsm8k/main", split, gsm8k)
    pages = [{"page": words(400)}]
    write("EleutherAI/wikitext_document_level/wikitext-2-raw-v1", "test", pages)
    return folder


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """Run a benchmark on a tiny model; return its result."""
    monkeypatch.setitem(synthetic.SHAPES, "bench-70m", TINY)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    threads = torch.get_num_threads()

    def run(script, *words):
        arguments = ["--data", str(data), "--models", str(tmp_path), "--output", str(tmp_path)]
        name = script.__name__
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--threads", "1", *words])
        script.main()
        return json.loads((tmp_path / f"{name}_cpu.json").read_text())

    yield run
    torch.set_num_threads(threads)


def test_loglikelihoods_are_measured_and_agree_with_the_peer(run, tmp_path, monkeypatch):
    result = run(loglikelihood, "--row", "many_answers", "--pairs", "2", "--size", "3")
    (row,) = result["rows"]
    assert row["title"] == LOGLIKELIHOOD["many_answers"].title
    assert row["tokens_forwarded"] == row["tokens_minimum"] < row["tokens_peer"]
    assert len(row["pairs"]) == 2
    assert row["largest_difference"] < 1e-4
    assert row["greedy_flags_differ"] == 0
    assert str(tmp_path) not in json.dumps(result)
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert row["title"] in readme.speed_table()
    assert row["title"] in readme.loglikelihood_table()


@pytest.mark.slow
def test_generation_is_measured_and_agrees_with_the_peer(run, tmp_path, monkeypatch):
    result = run(generation, "--pairs", "1", "--size", "5")
    (row,) = result["rows"]
    assert row["prompt_tokens_forwarded"] == row["prompt_tokens_minimum"]
    assert row["tokens_forwarded"] == row["tokens_minimum"]
    assert row["texts_equal"] == 5
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert row["title"] in readme.generation_table()
