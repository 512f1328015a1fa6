"""pass@k and its sampling error, against exact arithmetic and enumeration."""

import itertools
from fractions import Fraction
from math import comb, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks.pass_at_k import (
    check_ks,
    pass_at_k,
    sampling_stderr,
    sampling_variance,
)


@st.composite
def counts(draw, largest=300):
    samples = draw(st.integers(1, largest))
    return samples, draw(st.integers(0, samples)), draw(st.integers(1, samples))


@given(counts())
def test_pass_at_k_is_the_exact_share_of_choices_with_a_right_answer(case):
    samples, right, k = case
    exact = 1 - Fraction(comb(samples - right, k), comb(samples, k))
    assert pass_at_k(samples, right, k) == pytest.approx(float(exact), rel=1e-12, abs=1e-14)


@given(counts(largest=7))
def test_pass_at_k_is_what_drawing_k_answers_gives(case):
    samples, right, k = case
    answers = [True] * right + [False] * (samples - right)
    draws = [any(draw) for draw in itertools.combinations(answers, k)]
    assert pass_at_k(samples, right, k) == pytest.approx(sum(draws) / len(draws), rel=1e-12)


@given(counts(largest=8))
def test_sampling_variance_is_that_of_all_outcomes(case):
    samples, right, k = case
    p = Fraction(right, samples)
    mean = square = Fraction(0)
    for outcome in itertools.product((0, 1), repeat=samples):
        weight = p ** sum(outcome) * (1 - p) ** (samples - sum(outcome))
        value = 1 - Fraction(comb(samples - sum(outcome), k), comb(samples, k))
        mean += weight * value
        square += weight * value**2
    assert sampling_variance(samples, right, k) == pytest.approx(float(square - mean**2), abs=1e-12)


def test_the_sampling_error_of_pass_at_1_is_the_binomial_one():
    assert sampling_variance(10, 3, 1) == pytest.approx(0.3 * 0.7 / 10)
    assert sampling_stderr([0.021, 0.0]) == pytest.approx(sqrt(0.021) / 2)


def test_a_k_larger_than_the_number_of_answers_is_an_error():
    assert check_ks([10, 1, 1], 10) == (1, 10)
    with pytest.raises(OptionError, match=r"pass@11 needs at least 11 answers.*makes 10"):
        check_ks([1, 11], 10)
    with pytest.raises(OptionError, match="pass@0"):
        check_ks([0], 10)
