"""Numbers and untrusted texts: what every form of a report stands on."""

# ruff: noqa: RUF001 (minus signs and en dashes are what is tested)
from __future__ import annotations

import math
from dataclasses import replace

import pytest
from comparison_example import gsm8k, perplexity, winogrande
from comparison_mmlu import mmlu
from hypothesis import given
from hypothesis import strategies as some

from lm_eval_exl2.compare.render import words
from lm_eval_exl2.compare.results import Bounds, Interval

NO_NUMBERS = [None, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_an_en_dash_without_a_unit(value):
    shown = [
        words.number(value),
        words.amount(value),
        words.p_value(value),
        words.share(value),
        words.bits(value),
        words.size(value),
        words.limit(value, "%"),
        words.with_unit(words.amount(value), "%"),
    ]
    assert shown == ["–"] * len(shown)


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0121, ".012"), (0.5, ".500"), (0.0009999, "< .001"), (0.001, ".001"), (0, "< .001"),
     (0.9996, "1"), (1.0, "1"), (0.9994, ".999")],
)  # fmt: skip
def test_a_p_value_has_three_decimals_and_no_zero_before_the_point(p, shown):
    assert words.p_value(p) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-0.004, "0.00"), (0.004, "0.00"), (-0.005001, "−0.01"), (9.994, "9.99"), (10.04, "10.0"),
     (-12.34, "−12.3"), (1234.5, "1,234.5")],
)  # fmt: skip
def test_an_amount_has_a_real_minus_and_never_a_minus_before_zero(value, shown):
    assert words.amount(value) == shown


def test_a_sign_is_shown_where_it_is_asked_for_and_not_for_zero():
    assert [words.amount(x, sign=True) for x in (1, -1, 0.001)] == ["+1.00", "−1.00", "0.00"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(999, "999 B"), (1000, "1.00 kB"), (6_450_000_000, "6.45 GB"), (256_000, "256.00 kB")],
)
def test_sizes_are_in_decimal_units(value, shown):
    assert words.size(value) == shown


def test_a_score_is_per_cent_with_a_decimal_more_from_a_thousand_documents_on():
    few, many = winogrande(), gsm8k(0.749, (0.4, -1.1, 1.9))
    assert words.score_interval(few, few.baseline) == "51.2 % [43.6, 58.8]"
    assert words.score_interval(many, many.baseline) == "75.20 % [72.80, 77.46]"


def test_perplexities_and_scores_above_one_are_no_percentages():
    unit = perplexity(5.497, (1.0046, 1.0031, 1.0061))
    assert words.score_interval(unit, unit.candidate) == "5.497 [5.337, 5.667]"
    bleu = replace(
        winogrande(),
        kind="graded",
        baseline=Interval(31.2, None, None, ""),
        candidate=Interval(0.9, None, None, ""),
        difference=Interval(-30.3, -31, math.nan, ""),
    )
    assert words.score_interval(bleu, bleu.baseline) == "31.20"
    assert words.difference(bleu) == "−30.3 [−31.0, –]"


def test_a_difference_of_shares_is_in_points():
    assert words.difference(winogrande()) == "+0.61 points [−2.38, +3.72]"


def test_a_drop_without_bounds_has_no_brackets():
    assert words.drop(Bounds(0.8, None, math.inf, ""), "%") == "0.80 %"
    assert words.drop(Bounds(0.8, -0.1, math.inf, ""), "%") == "0.80 % [−0.10, –]"
    assert words.drop(None, "%") == "–"


@given(some.text(alphabet=some.characters(codec=None)))
def test_visible_text_has_no_control_characters_and_can_be_written(text):
    shown = words.visible(text)
    shown.encode()
    kept = [each for each in shown if ord(each) < 32 or 127 <= ord(each) < 160]
    assert set(kept) <= {"\n", "\t"}
    assert not set(shown) & set("\u202e\u2066\u200f")


def test_visible_text_says_what_was_hidden():
    assert words.visible("a\x1b[31mb\u202ec\ud800d\te\nf") == "a\\x1b[31mb\\u202ec\\ud800d\te\nf"


def test_a_long_text_is_cut_and_says_so():
    assert words.shorten("abcdef", 3) == "abc …"
    assert words.shorten("abc", 3) == "abc"


def test_a_list_names_how_many_more_there_are():
    assert words.listed(["a", "b", "c"]) == "a; b; c"
    assert words.listed(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"


def test_the_example_group_has_57_subjects_whose_counts_add_up():
    unit = mmlu(0.05)
    assert len(unit.parts) == 57
    assert unit.flips is not None
    assert unit.flips.lost == sum(part.lost or 0 for part in unit.parts)
