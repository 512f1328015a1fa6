"""Latencies and rates by the field's definitions, against numbers worked out by hand."""

import math

import pytest
from bench_cases import timed

from lm_eval_exl2.bench import records
from lm_eval_exl2.bench.early_stopping import MET, NOT_ENOUGH, NOT_MET, judge, minimum_queries
from lm_eval_exl2.bench.summary import percentile, summarise

# Issued at 1 s; tokens at 3, 4 and 7 s.
REQUEST = timed([3.0, 4.0, 7.0], issued=1.0)


def test_latencies_of_a_request_are_those_of_the_definitions():
    assert records.time_to_first_token(REQUEST) == 2.0
    assert records.time_per_output_token(REQUEST) == 2.0  # (7 - 3) / 2
    assert records.inter_token_latencies(REQUEST) == [1.0, 3.0]
    assert records.end_to_end(REQUEST) == 6.0
    assert records.decode_rate(REQUEST) == 0.5
    assert records.total_rate(REQUEST) == 0.5


def test_end_to_end_is_first_token_and_time_per_token_times_the_others():
    ttft, tpot = (
        measure(REQUEST) for measure in (records.time_to_first_token, records.time_per_output_token)
    )
    assert ttft + tpot * 2 == records.end_to_end(REQUEST)


def test_a_schedule_makes_queueing_count():
    late = timed([3.0, 4.0], issued=2.5, scheduled_s=0.5)
    assert records.time_to_first_token(late) == 2.5
    assert records.end_to_end(late) == 3.5
    assert records.time_per_output_token(late) == 1.0


def test_one_token_has_no_time_per_token_and_none_has_nothing():
    one, none = timed([3.0]), timed([], outcome=records.UNFINISHED)
    assert records.time_to_first_token(one) == 3.0
    assert records.time_per_output_token(one) is None
    assert records.decode_rate(one) is None
    assert records.inter_token_latencies(one) == []
    assert records.time_to_first_token(none) is None
    assert records.end_to_end(none) is None


def test_the_system_rate_is_all_tokens_over_the_wall_time():
    other = timed([2.0, 11.0], issued=0.5)
    assert records.wall_time([REQUEST, other]) == 10.5
    assert records.system_rate([REQUEST, other]) == 5 / 10.5
    assert records.system_rate([]) is None


def test_undefined_values_are_counted_and_unfinished_requests_left_out_of_latencies():
    cut = timed([100.0], number=2, outcome=records.UNFINISHED)
    found = summarise([REQUEST, timed([3.0], number=1), cut])
    assert (found.finished, found.unfinished, found.output_tokens) == (2, 1, 5)
    assert (found.tpot_s.count, found.tpot_s.undefined) == (1, 1)
    assert found.tpot_s.mean == 2.0
    assert (found.ttft_s.count, found.ttft_s.maximum) == (2, 3.0)
    assert (found.itl_s.count, found.itl_s.queries, found.itl_s.undefined) == (2, 1, 1)
    assert found.wall_s == 100.0  # what was produced until the end counts


def test_a_percentile_is_the_value_at_its_place_rounded_down():
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99)] == [51.0, 91.0, 100.0]
    assert percentile([4.0], 0.99) == 4.0


@pytest.mark.parametrize(
    ("queries", "p90", "p99"),
    [(43, False, False), (44, True, False), (458, True, False), (459, True, True)],
)
def test_percentiles_are_shown_from_enough_queries_on(queries, p90, p99):
    found = summarise([timed([1.0, 2.0], number=n) for n in range(queries)])
    for distribution in (found.ttft_s, found.tpot_s, found.itl_s):
        assert (distribution.p90 is not None) == p90
        assert (distribution.p99 is not None) == p99


def test_many_gaps_of_few_requests_are_few_queries():
    found = summarise([timed(range(600), number=n) for n in range(3)])
    assert found.itl_s.count == 3 * 599
    assert found.itl_s.p50 is found.itl_s.p99 is None


def test_needed_queries_are_the_published_ones():
    assert [minimum_queries(over, 0.99) for over in (0, 1, 2)] == [459, 662, 838]
    assert [minimum_queries(over, 0.9) for over in (0, 1, 2)] == [44, 64, 81]


@pytest.mark.parametrize(("over", "share"), [(0, 0.5), (3, 0.9), (7, 0.97)])
def test_needed_queries_are_the_first_whose_binomial_tail_is_one_percent(over, share):
    def tail(queries):
        ways = (
            math.comb(queries, k) * (1 - share) ** k * share ** (queries - k)
            for k in range(over + 1)
        )
        return math.fsum(ways)

    needed = minimum_queries(over, share)
    assert tail(needed) <= 0.01 < tail(needed - 1)


def test_a_limit_is_met_not_met_or_undecided():
    inside, outside = [0.5], [2.0]
    assert judge(inside * 459, 1.0).state == MET
    assert judge(inside * 458, 1.0) == (NOT_ENOUGH, 0, 458, 459)
    assert judge(inside * 661 + outside, 1.0).state == MET
    assert judge(inside * 660 + outside, 1.0) == (NOT_ENOUGH, 1, 661, 662)
    # Two of ten over a limit that one in a hundred may pass: by chance in 0.4 % of runs.
    assert judge(inside * 8 + outside * 2, 1.0).state == NOT_MET
    # One of ten: in 9.6 %.
    assert judge(inside * 9 + outside, 1.0).state == NOT_ENOUGH
    assert judge([1.0] * 459, 1.0).state == MET  # at the limit is within it
    assert judge([], 1.0).state == NOT_ENOUGH
