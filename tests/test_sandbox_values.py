"""What crosses between the process with the tests and the process with the program."""

import collections
import decimal
import enum
import fractions
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.sandbox.inside.values import MAX_DEPTH, MAX_VALUES, Refused, decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9))
    | st.sampled_from([..., NotImplemented, int, list, type(None), ValueError, object])
    | st.builds(slice, st.integers(-9, 9), st.none(), st.text(max_size=3))
)
HASHABLE = SCALARS.filter(lambda value: not isinstance(value, slice))  # until Python 3.12
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(HASHABLE)
        | st.frozensets(HASHABLE)
        | st.dictionaries(HASHABLE, inner)
    ),
    max_leaves=20,
)


def refuse(_):
    raise AssertionError("no handle was expected")


def crossed(value):
    return decode(encode(value, refuse), refuse)


def same(left, right):
    """Equal, and of the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@given(VALUES)
def test_builtin_values_arrive_as_they_were(value):
    assert same(crossed(value), value)


def test_nan_lone_surrogates_and_views_arrive():
    assert math.isnan(crossed(math.nan))
    assert crossed("\ud800") == "\ud800"
    mapping = {3: 1, 1: 2}
    assert list(crossed(mapping.keys())) == [3, 1]
    assert crossed(mapping.keys()) == {1, 3}
    assert list(crossed(mapping.values())) == [1, 2]
    assert list(crossed(mapping.items())) == [(3, 1), (1, 2)]
    assert type(crossed(bytearray(b"x"))) is bytearray


class Yes(int):
    __eq__ = lambda self, other: True  # noqa: E731
    __hash__ = int.__hash__


class Colour(enum.IntEnum):
    RED = 3


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Yes(7), 7),
        (Colour.RED, 3),
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.namedtuple("Point", "x y")(1, 2), (1, 2)),
        (decimal.Decimal("1.10"), decimal.Decimal("1.10")),
        (fractions.Fraction(1, 3), fractions.Fraction(1, 3)),
    ],
)
def test_a_subclass_arrives_as_its_plain_value(value, plain):
    arrived = crossed(value)
    assert type(arrived) is type(plain)
    assert arrived == plain


def test_other_objects_cross_as_numbers_and_come_back():
    objects = [object(), np.zeros(3), {1}.__contains__]
    handles = []

    def number_of(value):
        handles.append(value)
        return len(handles) - 1

    arrived = decode(encode(objects, number_of), handles.__getitem__)
    assert all(a is b for a, b in zip(arrived, objects, strict=True))


@pytest.mark.parametrize(
    "value", [[0] * (MAX_VALUES + 1), "x" * (17 << 20), object()], ids=["many", "long", "kind"]
)
def test_too_much_is_refused_when_sent(value):
    def no_handles(value):
        raise Refused(str(value))

    with pytest.raises(Refused):
        encode(value, no_handles)


def test_too_deep_is_refused_on_both_sides():
    value = 1
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(Refused, match="deeper"):
        encode(value, refuse)
    with pytest.raises(Refused, match="deeper"):
        decode(b"l\1\0\0\0" * 1000 + b"N", refuse)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"l\3\0\0\0" + tail))
def test_any_bytes_are_a_value_or_refused(data):
    try:
        decode(data, lambda number: number)
    except Refused:
        return


@given(VALUES, st.integers(1, 20))
def test_a_value_that_was_cut_is_refused(value, cut):
    data = encode(value, refuse)
    with pytest.raises(Refused):
        decode(data[:-cut] if cut < len(data) else b"", refuse)
