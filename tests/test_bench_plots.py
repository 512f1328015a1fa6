"""The page of a run: lines through hand-made requests, fronts, nothing loaded from outside."""

import copy
import json
import re

import pytest
from comparison_example import example

from lm_eval_exl2.bench import plots
from lm_eval_exl2.bench.curves import Curves, Line, draw
from lm_eval_exl2.bench.documents import FORMAT
from lm_eval_exl2.bench.page import to_html
from lm_eval_exl2.cli import main


def _request(arrival, first, last, tokens, outcome="finished"):
    return {
        "issued_s": arrival + 0.5,  # counts only where nothing was scheduled
        "scheduled_s": arrival,
        "first_token_s": first,
        "last_token_s": last,
        "tokens": tokens,
        "outcome": outcome,
    }


def _run(qps, requests, tokens_per_s=50.0, p50=0.2):
    return {
        "scenario": "Server",
        "load_qps": qps,
        "requests": requests,
        "summary": {"system_tokens_per_s": tokens_per_s, "ttft_s": {"p50": p50}},
    }


REQUESTS = [
    _request(0.0, 0.3, 1.3, 11),
    _request(1.0, 1.1, 1.1, 1),  # a single token has no time per token
    _request(2.0, None, None, 0, outcome="unfinished"),
]


def test_the_distribution_of_latencies_counts_from_the_schedule_and_leaves_out_what_is_open():
    assert plots._shares(REQUESTS, plots._ttft) == [
        (pytest.approx(100), 50),
        (pytest.approx(300), 100),
    ]
    assert plots._tpot(REQUESTS[0]) == pytest.approx(0.1)
    assert plots._tpot(REQUESTS[1]) is None
    assert plots._shares(REQUESTS, plots._tpot) == []  # one value is no distribution
    assert plots._shares(REQUESTS, plots._end_to_end) == [
        (pytest.approx(100), 50),
        (pytest.approx(1300), 100),
    ]
    unscheduled = {**REQUESTS[0], "scheduled_s": None, "issued_s": 0.1}
    assert plots._ttft(unscheduled) == pytest.approx(0.2)


def _document(**runs):
    checkpoints = [
        {"name": f"/models/{name}", "facts": {}, "prompt_bench": [], "scenarios": each}
        for name, each in runs.items()
    ]
    return {"format": FORMAT, "outcome": "complete", "checkpoints": checkpoints}


def test_throughput_is_drawn_against_load_where_there_are_several_loads():
    two = [_run(9.0, REQUESTS, 80.0, None), _run(3.0, REQUESTS)]
    found = {figure.title: figure for figure in plots.figures(_document(a=two, b=[two[0]]))}
    throughput, wait = found["Throughput against load"].drawings
    assert throughput.count("<circle") == 2
    assert wait.count("<circle") == 1  # no median at the higher load
    one = plots.figures(_document(b=[two[0]]))
    assert [figure.title for figure in one] == ["Latencies"]


def test_a_line_goes_through_its_points_in_the_frame():
    drawn = draw(Curves("says", "x", "y", [Line("a", [(0, 0), (1, 10)]), Line("b", [(0.5, 5)])]))
    (path,) = re.findall(r'd="M([\d. ]+)L([\d. ]+)"', drawn)
    (x0, y0), (x1, y1) = (map(float, pair.split()) for pair in path)
    assert 52 < x0 < x1 < 426
    assert 240 > y0 > y1 > 26


def _with_speeds(speeds):
    entries = [
        {
            "name": f"/models/{label}",
            "facts": {},
            "scenarios": [],
            "prompt_bench": [
                {"ending": ending, "figures": {"decode_tokens_per_s": {"median": speed * factor}}}
                for ending, factor in (("natural stop", 9), ("fixed length, end token ignored", 1))
            ],
        }
        for label, speed in speeds.items()
    ]
    return {"format": FORMAT, "outcome": "complete", "checkpoints": entries}


def test_quality_is_drawn_against_the_speed_at_a_fixed_length():
    found = example()
    labels = [each.variant.label for each in found.candidates]
    speeds = {label: 100.0 + 10 * at for at, label in enumerate(labels)}
    document = _with_speeds(speeds)
    (figure,) = plots.figures(document, found)
    (drawing,) = figure.drawings
    assert figure.title == "Quality against speed"
    for each in found.candidates:
        if each.average is not None:
            recovery = 100 - each.average.relative.estimate
            assert f"{each.variant.label}: {recovery:.2f}" in drawing
    assert plots.figures(document) == []


def test_a_variant_that_is_slower_and_worse_is_hollow():
    found = example()
    better = next(each for each in found.candidates if each.average is not None)
    worse = copy.deepcopy(better)
    drop = better.average.relative.estimate
    object.__setattr__(worse.average.relative, "estimate", drop + 1)
    assert plots._quality_point(worse, 10.0, [(better, 20.0), (worse, 10.0)]).on_front is False
    assert plots._quality_point(worse, 30.0, [(better, 20.0), (worse, 30.0)]).on_front is True
    assert plots._quality_point(better, 20.0, [(better, 20.0), (worse, 10.0)]).on_front is True


def test_the_page_loads_nothing_and_escapes_names():
    document = _document(**{"<b>&": [_run(3.0, REQUESTS), _run(5.0, REQUESTS)]})
    document["checkpoints"][0]["prompts"] = {"count": 1, "source": "<i>", "left_out": []}
    html = to_html({**document, "checkpoints": [{**document["checkpoints"][0], "scenarios": []}]})
    assert "<i>" not in html
    assert "&lt;i&gt;" in html
    assert not re.search(r"(src|href)=|@import|url\(|<script", html)


def test_an_earlier_run_is_reported_again_without_measuring(tmp_path, capsys):
    path, page = tmp_path / "b.json", tmp_path / "b.html"
    path.write_text(json.dumps(_document(a=[])))
    assert main(["bench", "--from_json", str(path), "--html", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    path.write_text("{}")
    assert main(["bench", "--from_json", str(path)]) == 1
    assert "no document of format" in capsys.readouterr().err
