"""A reduced grid of benchmarks/check_statistics.py; the full one is in results/statistics.json."""

import check_statistics
import numpy as np
import statistics_average
import statistics_cases as cases

from lm_eval_exl2.compare.statistics import drop_bounds, paired_counts


def test_absolute_bounds_cover_as_often_as_they_say_in_every_cell():
    rows, skipped = check_statistics.absolute_rows((50, 164), (0.01, 0.12))
    assert [row for row in rows if not row["within"]] == []
    assert len(rows) == 10
    assert {(cell["flip_rate"], cell["drop"]) for cell in skipped} == {(0.01, 0.03)}
    assert max(row["left_out"] for row in rows) < 1e-7


def test_relative_bounds_cover_as_often_as_they_say_in_every_cell():
    rows, _ = check_statistics.relative_rows((50,), (0.06,))
    assert [row for row in rows if not row["within"]] == []
    assert all(row["draws"] == 0 for row in rows)


def test_the_average_of_tasks_covers_as_often_as_it_says():
    suites = {name: statistics_average.SUITES[name] for name in ("six of 50, 3 %",)}
    rows = statistics_average.rows(
        check_statistics.judged, check_statistics.rates, suites, (0.03,), draws=300
    )
    assert [row for row in rows if not row["within"]] == []


def test_the_limits_would_notice_intervals_of_90_percent_and_of_unpaired_runs():
    found = cases.trinomial(500, 0.035, 0.025)
    too_narrow = check_statistics.bounds_of_cells(found.cells, 0.05, False)
    one_sided = check_statistics.bounds_of_cells(found.cells, 0.1, False)
    row = check_statistics.rates(too_narrow, one_sided, 0.01, found.probability)
    assert not check_statistics.judged(row | {"draws": 0}, 30)["within"]
    drop = (found.cells[1] - found.cells[2]) / 500
    unpaired = 1.96 * np.sqrt(2 * 0.6 * 0.4 / 500)
    row = check_statistics.rates(
        (drop - unpaired, drop + unpaired), one_sided, 0.01, found.probability
    )
    assert row["coverage"] > 0.97


def test_drawn_runs_have_the_drop_flip_rate_and_correlation_they_are_said_to_have():
    generator = np.random.default_rng(10)
    b, c, passages = cases.clustered_flips(200_000, 0.075, 0.045, generator)
    counts = paired_counts(b, c)
    assert abs(counts.drop - 0.03) < 0.004
    assert abs(counts.discordant / counts.documents - 0.12) < 0.005
    drops = (b - c - counts.drop).reshape(-1, 5)
    pairs = (drops.sum(axis=1) ** 2 - (drops**2).sum(axis=1)).mean() / 20
    assert abs(pairs / (drops**2).mean() - 0.3) < 0.02
    assert len(passages) == 200_000
    shares = cases.values("shares", 200_000, 0.03, generator)
    assert abs(np.subtract(*shares).mean() - 0.03) < 0.002
    losses = cases.values("losses", 300_000, 0.03, generator)
    assert abs(np.subtract(*losses).mean() - 0.03) < 0.002
    b, c, _ = cases.clustered_values(200_000, 0.03, generator)
    drops = (b - c - 0.03).reshape(-1, 5) / 0.2
    assert abs((drops.sum(axis=1) ** 2 - (drops**2).sum(axis=1)).mean() / 20 - 0.3) < 0.02


def test_impossible_drops_of_an_average_are_left_out_not_bent():
    assert statistics_average.drops_of_tasks([(50, 0.6, 0.01)] * 2, 0.03) is None
    taken = statistics_average.drops_of_tasks([(50, 0.6, 0.01), (50, 0.6, 0.1)], 0.03)
    assert np.allclose(taken, (0.01, 0.026))


def test_cells_without_flips_are_kept_by_their_zero_event_bound():
    found = cases.trinomial(50, 0.0, 0.0)
    assert found.probability.tolist() == [1.0]
    assert drop_bounds(paired_counts(np.ones(50), np.ones(50))).upper < 0.06
