"""The first three lines, recovery and the Pareto front, on cases worked out by hand."""

# ruff: noqa: RUF001 (minus signs and en dashes are what is tested)
from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from comparison_example import example, gsm8k, perplexity, variant, winogrande
from comparison_mmlu import mmlu

from lm_eval_exl2.compare.render import headline, recovery
from lm_eval_exl2.compare.results import Bounds, DemandResult, Interval, VerdictResult


def alone(place, **changes):
    """A comparison with one candidate of the example."""
    candidate = example().candidates[place]
    return example(candidates=[replace(candidate, **changes.pop("candidate", {}))], **changes)


def test_the_lines_of_a_candidate_to_ship():
    worse, much, sure = headline.lines(alone(0))
    assert worse == "6.0bpw is not worse than fp16 by more than profile general accepts: ship."
    assert much == (
        "The average rises by 0.23 % (0.15 points) over 2 tasks, 65.61 % to 65.76 %; "
        "the largest drop is that of gsm8k, 0.40 %."
    )
    assert sure == (
        "Supported, with one-sided 95 % bounds: "
        "drop of average −1.13 to 0.67 % (accepted below 3 %)."
    )


def test_the_lines_of_a_candidate_not_to_ship():
    worse, much, sure = headline.lines(alone(2))
    assert worse == "2.5bpw is worse than fp16 by more than profile general accepts: do not ship."
    assert much.startswith("The average drops by 16.3 % (10.7 points)")
    assert sure.startswith("Refuted")
    assert "a drop is certain" in sure


def test_what_is_open_says_so_first_and_what_is_not_ruled_out():
    worse, _, sure = headline.lines(alone(1))
    assert worse.startswith("It is not settled whether 3.5bpw is worse than fp16")
    assert "best estimate 1.4 % (acceptable with monitoring), but a drop up to 4 %" in sure


def test_the_first_line_says_how_many_documents_were_compared_where_not_all_were():
    assert "gsm8k 412 of 1,319" in headline.lines(alone(1))[0]
    assert "gsm8k 412 of 1,319 (3.5bpw)" in headline.lines(example())[0]
    assert " of 1,319" not in headline.lines(alone(0))[0]


def test_two_runs_of_the_same_limited_documents_are_partial_too():
    unit = replace(gsm8k(0.741, (1.46, -1.9, 4.9), documents=412), baseline_documents=412)
    assert headline.part_of(unit) == "412 of 1,319"
    assert headline.part_of(replace(unit, full_documents=None)) == ""


def test_a_verdict_by_the_estimate_alone_is_labelled():
    found = replace(example().candidates[1].verdict, state="acceptable with monitoring")
    changed = alone(1, candidate={"verdict": found}, decide_by="estimate")
    assert headline.lines(changed)[0].startswith(
        "By the estimate alone, not statistically supported, 3.5bpw is not worse than fp16"
    )
    several = replace(changed, candidates=[*changed.candidates, example().candidates[0]])
    assert (
        "3.5bpw (acceptable with monitoring, not statistically supported)"
        in (headline.lines(several)[0])
    )


def test_an_estimate_beyond_a_demand_is_worse_and_labelled():
    demand = DemandResult("gsm8k", 2, 2.4, -1.0, 5.8, False, "not settled")
    found = VerdictResult("do not ship", "do not ship", "not settled", "", [demand], [])
    changed = alone(1, candidate={"verdict": found}, decide_by="estimate")
    assert headline.lines(changed)[0].startswith(
        "By the estimate alone, not statistically supported, 3.5bpw is worse than fp16"
    )


def test_the_third_line_names_the_demands_that_decided():
    demands = [
        DemandResult("average", 3, 1.0, 0.5, 1.5, True, "supported"),
        DemandResult("gsm8k", 2, 1.0, -1.0, 3.0, True, "not settled"),
    ]
    found = VerdictResult("inconclusive", "ship", "not settled", "because", demands, [])
    sure = headline.lines(alone(1, candidate={"verdict": found}))[2]
    assert sure == (
        "Not settled, with one-sided 95 % bounds: "
        "drop of gsm8k −1.00 to 3.00 % (accepted below 2 %). because."
    )


def test_the_label_is_not_given_where_the_evidence_agrees_or_decides():
    supported = alone(0, decide_by="estimate")
    assert headline.NOT_SUPPORTED not in " ".join(headline.lines(supported))
    assert headline.NOT_SUPPORTED not in " ".join(headline.lines(alone(1)))


def test_the_drop_that_the_profile_is_about_comes_first():
    much = headline.lines(alone(2, drop="absolute"))[1]
    assert much.startswith("The average drops by 10.7 points (16.3 %)")
    several = headline.lines(example(drop="absolute"))
    assert "2.5bpw 10.7 points (16.3 %)" in several[1]
    assert several[2].endswith("Profile general accepts less than 3 points.")


def test_what_cannot_be_compared_is_neither_worse_nor_not_worse():
    found = VerdictResult(
        "cannot compare", "cannot compare", "not settled", "gsm8k is missing", [], ["gsm8k"]
    )
    lines = headline.lines(alone(0, candidate={"verdict": found, "average": None, "units": []}))
    assert lines == [
        "Whether 6.0bpw is worse than fp16 cannot be said: cannot compare.",
        "No task can be averaged.",
        "Not at all: gsm8k is missing.",
    ]


def test_several_candidates_are_in_three_lines_in_their_order():
    lines = headline.lines(example())
    assert len(lines) == 3
    for line in lines[1:]:
        places = [line.index(name) for name in ("6.0bpw", "3.5bpw", "2.5bpw")]
        assert places == sorted(places)
    assert lines[0].startswith(
        "Not worse than fp16 by more than profile general accepts: 6.0bpw (ship). "
        "Not settled: 3.5bpw (inconclusive). Worse: 2.5bpw (do not ship)."
    )


def test_recovery_is_candidate_over_baseline_and_above_chance_both_less_chance():
    unit = replace(
        mmlu(0.001), baseline=Interval(0.65, 0.64, 0.66, ""), candidate=Interval(0.55, 0, 1, "")
    )
    assert recovery.recovery(unit) == pytest.approx(100 * 0.55 / 0.65)
    assert recovery.recovery_above_chance(unit) == pytest.approx(75)


def test_recovery_is_absent_where_it_means_nothing():
    assert recovery.recovery(perplexity(5.5, (1, 1, 1))) is None
    zero = replace(gsm8k(0.1, (0, 0, 0)), baseline=Interval(0, 0, 0, ""))
    assert recovery.recovery(zero) is None
    assert recovery.recovery(replace(mmlu(0.001), higher_is_better=False)) is None
    assert recovery.recovery_above_chance(gsm8k(0.7, (0, 0, 0))) is None
    assert recovery.recovery_above_chance(winogrande()) is None, "the baseline is at chance"


def test_format_loss_is_the_growth_of_the_gap_in_points():
    unit = replace(gsm8k(0.70, (0, 0, 0)), beside=("flexible-extract", 0.758, 0.745))
    found = recovery.format_loss(unit)
    assert found is not None
    assert found == pytest.approx((0.6, 4.5))
    assert found.loss == pytest.approx(3.9)
    assert recovery.format_loss(winogrande()) is None
    assert recovery.format_loss(replace(unit, baseline_documents=1400)) is None, "partial"


def placed(bits, drop):
    """A candidate of a size and an average drop."""
    found = example().candidates[0]
    average = None
    if drop is not None:
        average = replace(found.average, relative=Bounds(drop, None, None, ""))
    new = replace(variant(str(bits), bits, 0), checkpoint_bytes=None)
    return replace(found, variant=new, average=average)


def test_the_pareto_front_is_what_brute_force_finds():
    places = [(6.0, 0.2), (5.0, 0.2), (4.0, 0.9), (4.0, 1.5), (3.0, -0.1), (3.0, -0.1), (18.0, 0.0)]
    found = recovery.pareto(example(candidates=[placed(*each) for each in places]))
    everyone = [(16.0, 0.0), *places]
    expected = [
        not any(
            other[0] <= size and other[1] <= drop and (other[0] < size or other[1] < drop)
            for other in everyone
        )
        for size, drop in places
    ]
    assert found == expected
    assert found == [False, False, False, False, True, True, False]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(6.0, 0.2), (5.0, 0.2)], [False, True]),
        ([(5.0, 0.3), (5.0, 0.2)], [False, True]),
        ([(5.0, 0.2), (5.0, 0.2)], [True, True]),
    ],
)
def test_a_tie_in_one_of_size_and_drop_is_decided_by_the_other(places, expected):
    assert recovery.pareto(example(candidates=[placed(*each) for each in places])) == expected


def test_a_candidate_without_size_or_average_is_neither_on_the_front_nor_off_it():
    candidates = [placed(4.0, None), placed(None, 0.5), placed(5.0, 0.5)]
    assert recovery.pareto(example(candidates=candidates)) == [None, None, True]


def test_sizes_are_bytes_only_if_every_variant_has_them():
    small_file = replace(placed(8.0, 0.5), variant=variant("8", 8.0, 10))
    large_file = replace(placed(2.0, 0.7), variant=variant("2", 2.0, 20))
    both = example(candidates=[small_file, large_file])
    assert recovery.pareto(both) == [True, False]
    without = replace(both, baseline=replace(both.baseline, checkpoint_bytes=None))
    assert recovery.pareto(without) == [True, True]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_candidates_stay_in_the_order_they_are_given(order):
    given = [example().candidates[place] for place in order]
    much = headline.lines(example(candidates=given))[1]
    places = [much.index(each.variant.label) for each in given]
    assert places == sorted(places)
