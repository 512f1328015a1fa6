"""Work units: every request in exactly one, sizes that are right, and little forwarded twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_exl2.generation import Ending, Prompt
from lm_eval_exl2.records import ScoreRequest
from lm_eval_exl2.replicas.cut import _runs, cut_generation, cut_scoring

ids = st.lists(st.integers(0, 3), min_size=1, max_size=9)
pairs = st.lists(st.tuples(ids, ids), max_size=25)
SHARE = 16


def prefixes(sequences):
    """The distinct non-empty prefixes, by definition."""
    return {tuple(one[:length]) for one in sequences for length in range(1, len(one) + 1)}


def inputs(request):
    return [*request.context_ids, *request.target_ids[:-1]]


def numbered(drawn):
    return [ScoreRequest(index, *pair) for index, pair in enumerate(drawn)]


def small_units(monkeypatch, least):
    monkeypatch.setattr("lm_eval_exl2.replicas.cut._LEAST_TOKENS", least)


@given(drawn=pairs, least=st.integers(1, 60))
def test_every_request_is_in_exactly_one_unit_whose_size_is_its_distinct_prefixes(drawn, least):
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_units(monkeypatch, least)
        units = cut_scoring(numbered(drawn))
    found = sorted(request.index for unit in units for request in unit.requests)
    assert found == list(range(len(drawn)))
    for unit in units:
        assert unit.tokens == len(prefixes(inputs(request) for request in unit.requests))
        assert unit.ending is None


@settings(max_examples=40)
@given(
    drawn=pairs.flatmap(lambda d: st.tuples(st.just(d), st.permutations(range(len(d))))),
    least=st.integers(1, 60),
)
def test_units_do_not_depend_on_the_order_of_requests(drawn, least):
    requests = numbered(drawn[0])
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_units(monkeypatch, least)
        straight = cut_scoring(requests)
        mixed = cut_scoring([requests[place] for place in drawn[1]])

    def content(units):
        return [(unit.tokens, [inputs(request) for request in unit.requests]) for unit in units]

    assert content(straight) == content(mixed)


def brute_end(own, shared, least, start):
    """The rule in the words of the module, tried out cut by cut."""

    def size(stop):
        return shared[start] + sum(own[start:stop])

    stops = [stop for stop in range(start + 1, len(own)) if size(stop) >= least]
    if size(len(own)) < 2 * least:
        return len(own)
    near = [stop for stop in stops if size(stop) < 2 * least]
    if near:
        best = min(near, key=lambda stop: shared[stop])
        if shared[best] * SHARE <= least:
            return best
    later = [stop for stop in stops if size(stop) >= 2 * least]
    return next((stop for stop in later if shared[stop] * SHARE <= size(stop)), len(own))


# Often cheap enough to cut, sometimes not.
cuts = st.integers(0, 2) | st.integers(0, 40)
sizes = st.lists(st.tuples(st.integers(0, 9), cuts), max_size=30)


@given(sizes, st.integers(1, 60))
def test_units_end_where_the_rule_says(drawn, least):
    own, shared = [one for one, _ in drawn], [0, *(two for _, two in drawn[1:])]
    start = 0
    for run in _runs(own, shared, least):
        assert run == range(start, brute_end(own, shared, least, start))
        start = run.stop
    assert start == len(own)


@given(sizes, st.integers(1, 60))
def test_cuts_repeat_at_most_a_fifteenth_of_the_tokens(drawn, least):
    own, shared = [one for one, _ in drawn], [0, *(two for _, two in drawn[1:])]
    repeated = sum(shared[run.start] for run in _runs(own, shared, least))
    assert repeated * (SHARE - 1) <= sum(own)


def test_a_subject_with_long_examples_is_cut_between_subjects_and_not_inside():
    """Two subjects of 700 shared tokens and 100 questions of 100 tokens: 10,700 tokens each."""
    requests = [
        ScoreRequest(index, [subject] * 700 + [9, index] + [5] * 97, [1, 2])
        for index, subject in enumerate([1] * 100 + [2] * 100)
    ]
    units = cut_scoring(requests)
    assert [len(unit.requests) for unit in units] == [100, 100]
    assert [{request.context_ids[0] for request in unit.requests} for unit in units] == [{1}, {2}]


def test_what_shares_nearly_everything_stays_together():
    """One document of 30,000 tokens and 100 short questions: halves would double the work."""
    requests = [ScoreRequest(index, [7] * 30_000 + [index] * 50, [1]) for index in range(100)]
    (unit,) = cut_scoring(requests)
    assert unit.tokens == 30_000 + 100 * 50


def test_without_shared_beginnings_no_unit_is_twice_the_least_size():
    requests = [ScoreRequest(index, [index] * 100, [1]) for index in range(3_000)]
    units = cut_scoring(requests)
    assert max(unit.tokens for unit in units) < 2 * 8192
    assert sum(unit.tokens for unit in units) == 300_000


def prompt(index, length=20, tokens=50):
    return Prompt(index, [index + 10] * length, tokens, 0, [], {}, seed=index)


@pytest.mark.parametrize(("count", "least"), [(10, 10), (300, 32), (5000, 78)])
def test_prompts_are_dealt_in_groups_that_fill_a_batch(count, least):
    ending = Ending(frozenset({2}))
    units = cut_generation([prompt(index) for index in range(count)], ending)
    assert sorted(p.index for unit in units for p in unit.requests) == list(range(count))
    assert all(least <= len(unit.requests) < 2 * least for unit in units[:-1])
    assert all(unit.tokens == 70 * len(unit.requests) for unit in units)
    assert all(unit.ending == ending for unit in units)
    assert all(p.seed == p.index for unit in units for p in unit.requests)


def test_no_requests_make_no_units():
    assert cut_scoring([]) == cut_generation([], Ending(frozenset())) == []
