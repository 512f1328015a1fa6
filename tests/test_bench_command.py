"""`lm-eval-exl2 bench`: arguments, documents, reports, what an interrupted or killed run leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from bench_cases import timed

from lm_eval_exl2.bench import worth
from lm_eval_exl2.bench.command import _status
from lm_eval_exl2.bench.journal import Journal, is_complete, read_journal
from lm_eval_exl2.bench.records import UNFINISHED
from lm_eval_exl2.bench.roofline import DeviceRates
from lm_eval_exl2.cli import main
from lm_eval_exl2.errors import OptionError

DEMO = ["bench", "--pretrained", "demo-2.5bpw", "--device", "cpu", "--max_tokens", "4"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A prompt bench of the smallest demo checkpoint."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["--prompt", "The key was", "--json", str(folder / "b.json")]
    words += ["--price_per_hour", "2", "--roofline"]
    rates = DeviceRates("cpu", 1e9, {"float32": 1e9})
    with pytest.MonkeyPatch.context() as patch:  # measuring takes seconds
        patch.setattr(worth, "measure_device", lambda _device, dtypes: rates)
        assert main([*DEMO, *words, "--markdown", str(folder / "b.md")]) == 0
    return folder


def test_the_document_holds_every_repetition_of_both_endings(measured):
    document = json.loads((measured / "b.json").read_text())
    (entry,) = document["checkpoints"]
    assert document["outcome"] == "complete"
    assert entry["facts"]["kind"] == "exl2"
    assert 2 < entry["facts"]["bits_layers"] < 4
    assert entry["prompts"] == {"source": "--prompt", "count": 1, "left_out": []}
    endings = [bench["ending"] for bench in entry["prompt_bench"]]
    assert endings == ["fixed length, end token ignored", "natural stop"]
    for bench in entry["prompt_bench"]:
        assert len(bench["repetitions"]) == 5
        for repetition in bench["repetitions"]:
            (request,) = repetition["requests"]
            assert request["tokens"] == len(request["token_ids"]) == 4
            assert request["first_token_s"] == request["token_times_s"][0]
            assert request["last_token_s"] == request["token_times_s"][-1]
        assert all(check["passed"] for check in bench["checks"])


def test_the_report_shows_the_documents_figures(measured):
    figures = json.loads((measured / "b.json").read_text())["checkpoints"][0]["prompt_bench"][0]
    tpot = figures["figures"]["tpot_s"]
    shown = f"{tpot['median'] * 1e3:.3g} ± {tpot['deviation'] * 1e3:.3g}"
    lines = (measured / "b.md").read_text().splitlines()
    (row,) = [line for line in lines if "fixed length" in line and "±" in line]
    assert f"| {shown} |" in row
    assert "| 4 ± 0 |" in row


def test_the_report_shows_cost_and_roofs_where_they_were_asked_for(measured):
    benches = json.loads((measured / "b.json").read_text())["checkpoints"][0]["prompt_bench"]
    lines = (measured / "b.md").read_text().splitlines()
    for bench in benches:
        cost = 2 / 3600 * bench["cost"]["seconds"] * 1e6 / 20  # 5 repetitions of 4 tokens
        assert bench["cost"]["output_per_million"] == pytest.approx(cost)
        reached = bench["reached"]["decode"]
        speed = bench["figures"]["decode_tokens_per_s"]["median"]
        assert reached["share"] == pytest.approx(speed / reached["best_tokens_per_s"])
        (row,) = [line for line in lines if f"{bench['ending']}, decode" in line]
        assert f"| {reached['bound']} |" in row
        assert f"| {reached['share']:.1%} |" in row
    assert any("copy 1.0 GB/s, products in float32 1 G operations/s" in line for line in lines)


def test_a_journal_holds_what_was_finished(measured):
    path = measured / "b.json.requests.jsonl"
    assert is_complete(path)
    runs = read_journal(path)
    assert [run.outcome for run in runs] == ["complete", "complete"]
    assert [len(run.requests) for run in runs] == [5, 5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench"], "--pretrained is missing"),
        ([*DEMO, "--repetitions", "4"], "expected 5 or more"),
        ([*DEMO, "--json", "/no/such/folder/b.json"], "create it first"),
        ([*DEMO, "--model_args", "pretrained=x"], "NAME=VALUE"),
        ([*DEMO, "--model_args", "nonsense=1"], "unknown model argument"),
        ([*DEMO, "--prompts", "/no/such/file"], "cannot read"),
        ([*DEMO, "--prompt", "x " * 600], "no prompt leaves room"),
        (["bench", "--from_requests", "/no/such/file"], "cannot read"),
        ([*DEMO, "--scored", "/no/such/folder"], "no results of the harness"),
    ],
)
def test_a_mistake_ends_in_one_line(words, message, capsys):
    assert main(words) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("lm-eval-exl2: error: ") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--scenario", "Nonsense"],
        ["--qps", "0"],
        ["--limit", "x"],
        ["--prompt", "a", "--task", "b"],
        ["--profile", "other"],
    ],
)
def test_wrong_usage_ends_with_status_2(words):
    with pytest.raises(SystemExit) as end:
        main([*DEMO, *words])
    assert end.value.code == 2


def document(outcome="complete", *, part="complete", passed=True, configuration=None):
    entry = {"prompt_bench": [], "scenarios": [{"outcome": part, "checks": [{"passed": passed}]}]}
    if configuration is not None:
        entry["configuration"] = {"passed": configuration}
    return {"outcome": outcome, "checkpoints": [entry]}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (document(), 0),
        (document(part="given up after 5 s"), 0),
        (document(passed=False), 14),
        (document(configuration=True), 0),
        (document(configuration=False), 14),
        (document("interrupted"), 130),
        (document("failed: no room"), 1),
        (document(part="failed: no room"), 1),
    ],
)
def test_the_exit_status_says_how_it_ended(found, status):
    assert _status(found) == status


# -- journals ---------------------------------------------------------------------------------


def killed_journal(path):
    """A journal whose process was killed in the middle of a line."""
    journal = Journal(path)
    journal.start_run({"scenario": "Server", "qps": 2.0})
    journal.add(timed([101.0, 102.0], issued=100.0))
    journal.add(timed([103.0], issued=101.0, number=1, outcome=UNFINISHED))
    journal._file.close()
    path.write_text(path.read_text() + '{"line": "request", "num')


def test_what_a_killed_run_left_is_read_up_to_the_line_that_was_cut(tmp_path):
    path = tmp_path / "j.jsonl"
    killed_journal(path)
    (run,) = read_journal(path)
    assert run.outcome is None
    assert run.facts == {"scenario": "Server", "qps": 2.0}
    assert run.requests[0] == timed([101.0, 102.0], issued=100.0)
    assert run.requests[1].outcome == UNFINISHED
    assert not is_complete(path)


def test_what_a_killed_run_left_is_reported_and_marked(tmp_path, capsys):
    path = tmp_path / "j.jsonl"
    killed_journal(path)
    words = ["bench", "--from_requests", str(path), "--json", str(tmp_path / "left.json")]
    assert main(words) == 0
    assert "killed: what follows is what was finished until then" in capsys.readouterr().out
    left = json.loads((tmp_path / "left.json").read_text())
    (part,) = left["checkpoints"][0]["scenarios"]
    assert (left["outcome"], part["outcome"]) == ("killed", "killed")
    assert part["scenario"] == "Server 2.0"
    assert part["summary"]["ttft_s"]["mean"] == 1.0
    assert (part["summary"]["finished"], part["summary"]["unfinished"]) == (1, 1)


def test_a_killed_runs_requests_are_not_overwritten(tmp_path):
    path = tmp_path / "j.jsonl"
    killed_journal(path)
    before = path.read_text()
    with pytest.raises(OptionError, match="--from_requests"):
        Journal(path)
    assert path.read_text() == before


def test_a_journal_without_requests_or_of_a_whole_run_is_written_anew(tmp_path):
    path = tmp_path / "j.jsonl"
    with suppress(OSError), Journal(path) as journal:
        journal.start_run({"scenario": "Offline"})
        raise OSError
    assert not is_complete(path)
    with Journal(path) as journal:
        journal.start_run({"scenario": "Server"})
        journal.add(timed([1.0]))
    assert [run.facts for run in read_journal(path)] == [{"scenario": "Server"}]
    with Journal(path):
        pass
    assert read_journal(path) == []


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"other": 1}\n')
    with pytest.raises(OptionError, match="not a file of requests"):
        read_journal(path)


# -- the whole, with LoadGen ------------------------------------------------------------------


def start(folder, *words):
    """Start the command in a process of its own."""
    code = "import sys; from lm_eval_exl2.cli import main; sys.exit(main())"
    environ = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *DEMO, "--repetitions", "0", *words],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_requests(path: Path, count: int):
    for _ in range(600):
        if path.exists() and path.read_text().count('"line": "request"') >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"no {count} requests in {path}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_from_outside_leaves_what_it_had(kind, tmp_path, capsys):
    words = ["--scenario", "SingleStream", "--duration_s", "60", "--json", "b.json"]
    path = tmp_path / "b.json.requests.jsonl"
    with start(tmp_path, *words) as process:
        wait_for_requests(path, 3)
        process.send_signal(kind)
        out, err = process.communicate(timeout=60)
    if kind == signal.SIGINT:
        assert process.returncode == 130, err
        found = json.loads((tmp_path / "b.json").read_text())
        assert found["outcome"] == "interrupted"
        assert found["checkpoints"][0]["scenarios"][0]["summary"]["finished"] >= 3
        assert "**interrupted**" in out
        assert is_complete(path)
    else:
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "b.json").exists()
        assert main(["bench", "--from_requests", str(path)]) == 0
        assert "**killed**" in capsys.readouterr().out


@pytest.mark.slow
def test_all_scenarios_of_a_demo_task_beside_what_the_harness_scored(tmp_path, capsys):
    import lm_eval

    from lm_eval_exl2.plugin import register

    register()
    scored = lm_eval.simple_evaluate(
        model="exl2",
        model_args={"pretrained": "demo-2.5bpw", "device": "cpu"},
        tasks=["exl2_demo_arithmetic"],
        limit=2,
    )
    (tmp_path / "results_1.json").write_text(json.dumps({"config": scored["config"]}, default=str))
    words = ["--task", "exl2_demo_arithmetic", "--limit", "6", "--duration_s", "0.5"]
    words += ["--scenario", "Offline", "SingleStream", "Server", "MultiStream", "--qps", "5", "9"]
    words += ["--scored", str(tmp_path), "--json", str(tmp_path / "b.json"), "--repetitions", "0"]
    assert main([*DEMO, *words]) == 0
    (entry,) = json.loads((tmp_path / "b.json").read_text())["checkpoints"]
    assert entry["configuration"]["passed"], entry["configuration"]
    titles = [(run["scenario"], run["load_qps"]) for run in entry["scenarios"]]
    assert titles == [
        ("Offline", None),
        ("SingleStream", None),
        ("Server", 5.0),
        ("Server", 9.0),
        ("MultiStream", None),
    ]
    for run in entry["scenarios"]:
        assert run["loadgen"]["verdict"] in ("VALID", "INVALID")
        assert run["style"]["name"] == "open-style"
        assert all(check["passed"] for check in run["checks"]), run["checks"]
    assert "not enough queries" in capsys.readouterr().out
