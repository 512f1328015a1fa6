"""The HTML page: nothing is loaded or run, texts stay texts, plots show their numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from comparison_example import DATA, HOSTILE, changed, example
from hypothesis import given
from hypothesis import strategies as some

from lm_eval_exl2.compare.render import flips_chart, heat_map, plots, scatter, svg
from lm_eval_exl2.compare.render.page import to_html
from lm_eval_exl2.compare.render.scatter import Plot, Point

VOID = {"meta", "br"}


class Elements(HTMLParser):
    """Names of elements, attributes and texts, and whether the elements are well nested."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def drawings(text):
    return [ElementTree.fromstring(each) for each in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_the_page_is_the_golden_one():
    expected = (DATA / "comparison.html").read_text(encoding="utf-8")
    assert to_html(example()) == expected, "python tests/comparison_example.py writes it again"


def test_nothing_is_loaded_and_nothing_is_run():
    page = Elements(to_html(example()))
    assert not {"script", "link", "img", "iframe", "object", "a", "image", "use"} & set(page.names)
    outside = [each for each in page.attributes if each[0] in ("src", "href", "xlink:href")]
    assert outside == []
    style = to_html(example()).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policies = [value for name, value in page.attributes if name == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'" in policies


def test_the_page_has_a_light_and_a_dark_dress_with_the_same_colours_named():
    style = to_html(example()).split("<style>")[1].split("</style>")[0]
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = [set(re.findall(r"--([a-z]+):", each)) for each in (light, dark)]
    assert names[0] == names[1]
    assert set(re.findall(r"var\(--([a-z]+)\)", style)) - {"state"} <= names[0]


def test_hostile_texts_everywhere_stay_texts():
    page = Elements(to_html(changed(example(), str, HOSTILE)))
    clean = Elements(to_html(example()))
    assert set(page.names) <= set(clean.names)
    assert {name for name, _ in page.attributes} <= {name for name, _ in clean.attributes}
    assert "\x1b" not in "".join(page.texts)
    assert any("<script>alert(1)</script>" in text for text in page.texts)


@pytest.mark.parametrize("text", ['"><script>', "' onload='x", "]]>", "\ud800\x00", "{{ 7 * 7 }}"])
def test_labels_cannot_leave_the_drawings(text):
    found = to_html(changed(example(), str, text))
    assert len(drawings(found)) == len(re.findall("<svg", found))
    assert "49" not in [each.strip() for each in Elements(found).texts]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number_that_is_none_reaches_the_page(value):
    found = to_html(changed(example(), float, value))
    assert not re.search(r"\b(nan|inf)\b", found, flags=re.IGNORECASE)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-12, 1e12])
def test_equal_numbers_everywhere_can_be_drawn(value):
    assert drawings(to_html(changed(example(), float, value)))


def test_a_page_without_sizes_has_no_plot_against_size():
    without = [
        replace(each, variant=replace(each.variant, bits_per_weight=None, checkpoint_bytes=None))
        for each in example().candidates
    ]
    titles = [each.title for each in plots.figures(example(candidates=without))]
    assert titles == ["Changed answers by task", "Parts of mmlu"]


def test_score_and_recovery_stand_against_bits_and_against_size():
    first = plots.figures(example())[0]
    labels = [re.findall(r'class="axis-title">([^<]*)<', each) for each in first.drawings]
    assert labels == [
        [y, x]
        for y in ("average score, %", "recovery, %")
        for x in ("bits per weight", "size of the checkpoint, GB")
    ]


def test_the_line_of_what_is_accepted_is_in_the_recovery_of_relative_drops_only():
    def lines(**changes):
        found = plots.figures(example(**changes))[0].drawings
        return [each.count('class="across accepted"') for each in found]

    assert lines() == [0, 0, 1, 1]
    assert lines(drop="absolute") == lines(accepts=None) == [0, 0, 0, 0]


def placed_at(drawing):
    """Names of points and what their titles say of them."""
    return dict(re.findall(r"<title>([^:<]*): ([^<]*)</title>", drawing))


def test_a_partial_run_stands_below_the_baseline_by_its_paired_drop():
    drawn = plots.figures(example())[0].drawings
    average, drop = example().candidates[0].average, example().candidates[1].average
    assert drop.candidate > average.baseline, "by itself it would stand above the baseline"
    expected = 100 * average.baseline - drop.absolute.estimate
    assert placed_at(drawn[0])["3.5bpw"].startswith(f"{expected:.2f} [")
    assert placed_at(drawn[2])["3.5bpw"].startswith(f"{100 - drop.relative.estimate:.2f} [")


def test_the_baseline_of_a_plot_is_that_of_a_whole_run_wherever_it_stands():
    whole, part, _ = example().candidates
    drawn = plots.figures(example(candidates=[part, whole]))[0].drawings
    assert placed_at(drawn[0])["fp16"].startswith(f"{100 * whole.average.baseline:.2f} ")


def test_a_bound_of_exactly_zero_is_a_bound():
    found = example().candidates[0]
    average = replace(found.average, relative=replace(found.average.relative, upper=0.0))
    drawn = plots.figures(example(candidates=[replace(found, average=average)]))[0].drawings
    assert "[100.00, " in placed_at(drawn[2])["6.0bpw"]


def test_a_score_on_a_part_of_the_documents_is_hollow():
    mmlu, gsm8k, winogrande, _ = plots.figures(example())[1].drawings
    assert [each.count('class="dot"') for each in (mmlu, gsm8k, winogrande)] == [1, 1, 0]


def test_filled_points_are_the_pareto_front():
    small, middle, large = example().candidates
    worse = replace(large, variant=replace(large.variant, checkpoint_bytes=20_000_000_000))
    drawn = str(plots.figures(example(candidates=[small, middle, worse]))[0].drawings[0])
    circles = re.findall(r"<title>([^:<]*):[^<]*</title>.*?<circle[^>]*class=\"([a-z ]*)\"", drawn)
    assert dict(circles) == {"6.0bpw": "dot front", "3.5bpw": "dot front", "2.5bpw": "dot"}


def test_points_and_whiskers_lie_where_their_numbers_are():
    points = [Point("a", 2, 50, 40, 60, "s-ship"), Point("b", 4, 70, None, None, "s-ship")]
    drawn = scatter.draw(Plot("says", "x", "y", points, None))
    root = ElementTree.fromstring(drawn)
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    whiskers = [each.get("d") for each in root.iter("path") if each.get("class") == "whisker"]
    assert len(whiskers) == 1, "a point without bounds has no whisker"
    low, high = re.match(r"M\S+ (\S+)V([\d.]+)", whiskers[0]).groups()
    pixels_per_point = (circles[0][1] - circles[1][1]) / 20
    assert float(low) - circles[0][1] == pytest.approx(10 * pixels_per_point, abs=0.2)
    assert circles[0][1] - float(high) == pytest.approx(10 * pixels_per_point, abs=0.2)
    assert circles[0][0] < circles[1][0]


def test_names_of_points_do_not_lie_on_each_other():
    points = [
        Point(f"{4 + place / 8}bpw", 4 + place / 8, 60, 59, 61, "s-ship") for place in range(4)
    ]
    root = ElementTree.fromstring(scatter.draw(Plot("says", "x", "y", points, None)))
    names = [each for each in root.iter("text") if each.get("class") == "name"]
    boxes = [(float(n.get("x")), float(n.get("y")), 6.0 * len(n.text)) for n in names]
    for place, (x, y, wide) in enumerate(boxes):
        for other_x, other_y, other_wide in boxes[place + 1 :]:
            apart = x + wide <= other_x or other_x + other_wide <= x or abs(y - other_y) >= 12
            assert apart, (names[place].text, boxes)


values = some.floats(-1e9, 1e9, allow_nan=False).map(lambda value: round(value, 6))


@given(some.lists(values, min_size=1, max_size=5))
def test_a_scale_holds_its_values_and_has_few_round_ticks(given_values):
    scale = svg.scale(given_values, 0, 100)
    assert all(0 <= scale(value) <= 100 for value in given_values)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 6
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)
    assert len({scale.tick_text(tick) for tick in ticks}) == len(ticks)


def test_ticks_have_the_decimals_of_their_steps():
    scale = svg.scale([-0.02, 0.03], 0, 100)
    assert [scale.tick_text(tick) for tick in scale.ticks()] == [
        "\N{MINUS SIGN}0.02", "0.00", "0.02",
    ]  # fmt: skip


def test_bars_of_changed_answers_are_in_proportion_to_their_shares():
    drawn = flips_chart.draw(example())
    assert len(drawn) == 3
    wide = {}
    for candidate, drawing in zip(example().candidates, drawn, strict=True):
        bars = [
            float(bar.get("width"))
            for bar in ElementTree.fromstring(drawing).iter("rect")
            if float(bar.get("height")) > 10
        ]
        units = [unit for unit in candidate.units if unit.flips]
        shares = [
            part / unit.documents
            for unit in units
            for part in (unit.flips.lost, unit.flips.gained, unit.flips.other_wrong)
        ]
        assert len(bars) == len(shares)
        wide.update(zip(bars, shares, strict=True))
    scale = max(wide) / max(wide.values())
    assert all(bar == pytest.approx(share * scale, abs=0.11) for bar, share in wide.items())


def test_cells_are_hatched_where_there_are_few_documents_or_no_significance():
    name, drawn = heat_map.draw_all(example())[0]
    parts = [part for each in example().candidates for part in each.units[0].parts]
    plain = [
        part
        for part in parts
        if part.documents >= 50 and (part.clearly_worse or (part.p is not None and part.p < 0.05))
    ]
    assert name == "mmlu"
    assert drawn.count('fill="url(#hatch-0)"') == len(parts) - len(plain)
    assert 0 < len(plain) < len(parts)
    assert drawn.count('class="frame"') == sum(part.clearly_worse for part in parts) == 6
    assert "6 of 57" in drawn


def test_a_small_part_is_hatched_even_if_it_is_significant():
    part = replace(example().candidates[2].units[0].parts[4], documents=49, clearly_worse=True)
    assert not heat_map.is_significant(part)
    assert heat_map.is_significant(replace(part, documents=50))
    assert not heat_map.is_significant(replace(part, documents=50, clearly_worse=False, p=0.05))
    assert not heat_map.is_significant(replace(part, documents=50, clearly_worse=False, p=None))


def test_cells_show_their_difference_and_its_side_in_colour():
    drawn = ElementTree.fromstring(heat_map.draw_all(example())[0][1])
    cells = [group for group in drawn.iter("g") if group.find("rect") is not None]
    shown = [cell.findall("text")[0].text for cell in cells]
    sides = [cell.findall("rect")[0].get("class") for cell in cells]
    assert len(cells) == 57 * 3
    for text, side in zip(shown, sides, strict=True):
        assert (side == "h-worse") == text.startswith("\N{MINUS SIGN}") or text == "0.0"
