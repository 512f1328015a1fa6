"""Published scores: the file is sound, the comparison is right, and no anchor is left out."""

import json
import math
import subprocess
import sys

import anchors
import pytest
from anchors import Anchor, Failed, NotRun

PLAIN = {
    "name": "a",
    "model": "exl2",
    "pretrained": "x/y",
    "task": "t",
    "metric": "perplexity,none",
    "value": 8.0,
    "source": "s",
    "tolerance": 0.1,
    "needs_gib": 4,
}


def results(value, **more):
    return {
        "results": {"t": {"perplexity,none": value, "perplexity_stderr,none": 0.5, **more}},
        "versions": {"t": 1.0},
    }


def test_the_committed_file_is_sound():
    found = anchors.read_anchors(anchors.ANCHORS)
    assert len(found) > 20
    for anchor in found:
        assert anchor.source
        assert anchor.needs_gib > 0
        assert 0 < anchor.margin() < 0.15 * anchor.value


def test_the_command_is_one_a_user_can_type():
    flags = ["--metadata", '{"protocol": "gptq"}']
    anchor = Anchor(**PLAIN, revision="4.0bpw", model_args={"dtype": "float16"}, flags=flags)
    words = "lm_eval --model exl2 --model_args pretrained=x/y,revision=4.0bpw,dtype=float16"
    assert anchor.command() == [*words.split(), "--tasks", "t", *flags]
    assert "revision" not in " ".join(Anchor(**PLAIN).command())


@pytest.mark.parametrize(
    ("tolerance", "value", "within"),
    [
        (0.1, 8.1, True),
        (0.1, 7.9, True),
        (0.1, 8.11, False),
        ("0.5 %", 8.04, True),
        ("0.5 %", 7.95, False),
        (0.1, math.nan, False),
    ],
)
def test_within_the_tolerance_or_not(tolerance, value, within):
    anchor = Anchor(**PLAIN | {"tolerance": tolerance})
    found = anchors.row(anchor, lambda _: results(value))
    assert found["status"] == "ran"
    assert found["within"] is within
    assert found["stderr"] == 0.5
    assert found["version"] == 1.0
    assert within is False or found["difference"] == pytest.approx(value - 8.0)


def test_what_cannot_run_and_what_fails_is_recorded_with_its_reason():
    def not_here(_):
        raise NotRun("no card")

    def failing(_):
        raise Failed("out of memory")

    anchor = Anchor(**PLAIN)
    assert anchors.row(anchor, not_here)["status"] == "not run"
    assert anchors.row(anchor, not_here)["reason"] == "no card"
    assert anchors.row(anchor, failing)["status"] == "failed"
    missing = anchors.row(anchor, lambda _: {"results": {"t": {"acc,none": 1.0}}})
    assert missing["status"] == "failed"
    assert "no perplexity,none in the results; there are acc,none" in missing["reason"]
    assert "within" not in missing


def test_a_row_that_ran_stays_until_it_runs_again_or_its_anchor_changes():
    anchor = Anchor(**PLAIN)

    def not_here(_):
        raise NotRun("no card")

    ran, skipped = anchors.row(anchor, lambda _: results(8.0)), anchors.row(anchor, not_here)
    again = anchors.row(anchor, lambda _: results(8.5))
    other = ran | {"name": "b"}
    assert anchors.join([ran, other], [skipped]) == [other, ran]
    assert anchors.join([ran], [again]) == [again]
    changed = anchors.row(Anchor(**PLAIN | {"value": 9.0}), not_here)
    assert anchors.join([ran], [changed]) == [changed]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"value": None}, "anchor a"),
        ({"colour": "red"}, "colour"),
        ({"tolerance": "a bit"}, "a bit"),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path, changed, text):
    each = {key: value for key, value in (PLAIN | changed).items() if value is not None}
    path = tmp_path / "anchors.yaml"
    path.write_text(json.dumps({"anchors": [each]}))
    with pytest.raises(SystemExit, match=text):
        anchors.read_anchors(path)


def test_a_name_that_stands_there_twice_is_refused(tmp_path):
    path = tmp_path / "anchors.yaml"
    path.write_text(json.dumps({"anchors": [PLAIN, PLAIN]}))
    with pytest.raises(SystemExit, match="a stand there twice"):
        anchors.read_anchors(path)


def finish(monkeypatch, code, stderr="", write=None):
    """Let the next commands end like this instead of running; give what was run."""
    commands = []

    def fake(words, **_):
        commands.append(words)
        if write and "--output_path" in words:
            folder = anchors.Path(words[-1]) / "x__y"
            folder.mkdir()
            (folder / "results_2026.json").write_text(json.dumps(write))
        return subprocess.CompletedProcess(words, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", fake)
    return commands


def test_without_the_hub_nothing_runs(monkeypatch):
    commands = finish(monkeypatch, 1, "Traceback\nConnectError: no such host\n")
    with pytest.raises(NotRun, match=r"hub not reachable.*no such host"):
        anchors.run_here(Anchor(**PLAIN), 10)
    assert len(commands) == 1


@pytest.mark.parametrize(("card", "text"), [(None, "no card"), (3, "has 3 GiB, needs 4")])
def test_without_a_large_enough_card_nothing_runs(monkeypatch, card, text):
    commands = finish(monkeypatch, 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: card is not None)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (0, card * 2**30))
    with pytest.raises(NotRun, match=text):
        anchors.run_here(Anchor(**PLAIN), 10)
    assert len(commands) == 1


def test_a_run_gives_the_results_file_or_its_last_words(monkeypatch):
    monkeypatch.setattr(anchors, "check_here", lambda anchor: None)
    commands = finish(monkeypatch, 0, write=results(8.05))
    assert anchors.row(Anchor(**PLAIN), lambda each: anchors.run_here(each, 10))["within"]
    assert commands[0][:3] == [sys.executable, "-m", "lm_eval"]
    finish(monkeypatch, 1, "long story\nCUDA out of memory")
    with pytest.raises(Failed, match="CUDA out of memory"):
        anchors.run_here(Anchor(**PLAIN), 10)
    finish(monkeypatch, 0)
    with pytest.raises(Failed, match="it said nothing"):
        anchors.run_here(Anchor(**PLAIN), 10)


def test_every_anchor_gets_a_row_and_a_count(monkeypatch, tmp_path, capsys):
    def here(anchor, _):
        if "70b" in anchor.name:
            raise NotRun("the card has 80 GiB, needs 145")
        return {"results": {anchor.task: {anchor.metric: anchor.value}}}

    monkeypatch.setattr(anchors, "run_here", here)
    output = tmp_path / "anchors.json"
    monkeypatch.setattr(sys, "argv", ["anchors.py", "--output", str(output)])
    anchors.main()
    written = json.loads(output.read_text())
    names = [anchor.name for anchor in anchors.read_anchors(anchors.ANCHORS)]
    assert [each["name"] for each in written["rows"]] == names
    large = sum("70b" in name for name in names)
    small = len(names) - large
    assert written["counts"] == {"ran": small, "failed": 0, "not run": large, "within": small}
    assert all(each["commit"] and each["date"] for each in written["rows"])
    monkeypatch.setattr(sys, "argv", ["anchors.py", "--only", "no-such-anchor"])
    with pytest.raises(SystemExit):
        anchors.main()
    assert "no anchor no-such-anchor" in capsys.readouterr().err
