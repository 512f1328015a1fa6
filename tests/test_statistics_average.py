import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import xlogy

from lm_eval_exl2.compare.statistics import (
    PairedCounts,
    StatisticsError,
    average_drop,
    drop_bounds,
    paired_moments,
)

ONE = PairedCounts(60, 5, 2, 33)
TWO = PairedCounts(20, 3, 4, 23)


@pytest.mark.parametrize(
    "counts",
    [ONE, TWO, PairedCounts(60, 0, 2, 38), PairedCounts(0, 4, 0, 0), PairedCounts(9, 0, 0, 1)],
)
@pytest.mark.parametrize("alpha", [0.05, 0.025])
def test_the_average_of_one_task_has_tangos_bounds(counts, alpha):
    found = average_drop([counts], alpha)
    assert found.absolute == pytest.approx(counts.drop)
    assert np.allclose(found.absolute_bounds, drop_bounds(counts, alpha), atol=1e-9)


def test_bounds_of_two_tasks_are_those_of_their_joint_likelihood():
    """At the upper bound, maximise both likelihoods numerically under the summed drop."""
    tasks = (ONE, TWO)
    total = 2 * average_drop(tasks).absolute_bounds.upper
    cells = np.array([[c.lost, c.gained, c.both_right + c.both_wrong] for c in tasks])
    sizes = cells.sum(axis=1)

    def probabilities(x):
        flips = x.reshape(2, 2)
        return np.column_stack([flips, 1 - flips.sum(axis=1)])

    best = optimize.minimize(
        lambda x: -xlogy(cells, np.maximum(probabilities(x), 1e-300)).sum(),
        (cells[:, :2] / sizes[:, None]).ravel(),
        bounds=[(1e-9, 0.9)] * 4,
        constraints={"type": "eq", "fun": lambda x: x[0] - x[1] + x[2] - x[3] - total},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert best.success
    p = probabilities(best.x)
    variance = p[:, 0] + p[:, 1] - (p[:, 0] - p[:, 1]) ** 2
    statistic = (total - ONE.drop - TWO.drop) / np.sqrt((variance / sizes).sum())
    assert statistic == pytest.approx(stats.norm.isf(0.05), rel=1e-3)


def test_many_flips_give_the_normal_bounds_of_the_linear_contrast():
    tasks = [PairedCounts(6000, 900, 800, 2300), PairedCounts(3000, 500, 450, 1050)]
    found = average_drop(tasks)
    upper = found.relative_bounds.upper
    mean, variance = 0.0, 0.0
    for counts in tasks:
        contrast = np.repeat([upper, upper - 1, 1, 0], counts)  # c - (1 - upper) b
        mean += contrast.mean()
        variance += contrast.var() / len(contrast)
    assert mean / np.sqrt(variance) == pytest.approx(stats.norm.isf(0.05), rel=0.01)
    assert found.relative == pytest.approx(1 - found.candidate / found.baseline)


def test_the_mean_is_unweighted_whatever_the_sizes():
    small, large = PairedCounts(5, 1, 0, 4), PairedCounts(5000, 100, 50, 4850)
    found = average_drop([small, large])
    assert found.baseline == pytest.approx((small.baseline + large.baseline) / 2)
    assert found.absolute == pytest.approx((small.drop + large.drop) / 2)


def test_a_task_without_flips_is_not_certain():
    quiet, loud = PairedCounts(30, 0, 0, 20), PairedCounts(6000, 300, 300, 3400)
    found = average_drop([quiet, loud])
    assert 2 * found.absolute_bounds.upper >= 1 - 0.05 ** (1 / 50)
    assert average_drop([quiet, quiet]).absolute_bounds.upper == pytest.approx(
        (1 - 0.05 ** (1 / 50)) / 2
    )


def test_swapped_runs_negate_the_average_drop():
    one, other = average_drop([ONE, TWO]), average_drop([ONE.swapped(), TWO.swapped()])
    assert one.absolute == pytest.approx(-other.absolute)
    assert np.allclose(one.absolute_bounds, np.negative(other.absolute_bounds[::-1]))


def test_values_and_counts_add_up_their_variances():
    generator = np.random.default_rng(0)
    b = generator.random(300)
    moments = paired_moments(b, b - generator.normal(0.01, 0.1, 300))
    big = PairedCounts(6000, 900, 800, 2300)
    found = average_drop([big, moments]).absolute_bounds
    expected = np.hypot(drop_bounds(big).upper - big.drop, moments.deviation(0.05)) / 2
    assert (found.upper - found.lower) / 2 == pytest.approx(expected, rel=2e-3)


def test_two_tasks_of_values_alone_can_be_averaged():
    values = [
        paired_moments([0.5, 0.7, 0.9], [0.4, 0.8, 0.8]),
        paired_moments([1, 2, 4], [1, 2, 3]),
    ]
    found = average_drop(values)
    assert found.absolute == pytest.approx((0.1 / 3 + 1 / 3) / 2)
    expected = np.hypot(*(value.deviation(0.05) for value in values)) / 2
    assert found.absolute_bounds.upper - found.absolute == pytest.approx(expected)


def test_a_baseline_that_may_be_zero_bounds_no_ratio():
    found = average_drop([paired_moments([0.0, 0.1, -0.05, 0.0], [0.0, 0.2, 0.1, 0.0])])
    assert found.relative_bounds == (-np.inf, np.inf)


def test_an_empty_average_and_a_baseline_of_zero_are_refused():
    with pytest.raises(StatisticsError, match="no task"):
        average_drop([])
    with pytest.raises(StatisticsError, match="above 0"):
        average_drop([PairedCounts(0, 0, 3, 5)])


def test_the_relative_bounds_of_counts_solve_fiellers_equation_with_the_baselines_own_variance():
    counts = PairedCounts(12, 5, 1, 12)
    found = average_drop([counts])
    z, n = stats.norm.isf(0.05), 30
    baseline, drop = 17 / n, 4 / n
    variance = z * z * baseline * (1 - baseline) / n
    covariance = z * z * (5 / n - drop * baseline) / n
    for end, bound in zip(found.absolute_bounds, found.relative_bounds, strict=True):
        distance = end - drop
        # (drop - r baseline)^2 = distance^2 - 2 r covariance + r^2 variance
        roots = np.roots(
            [
                baseline**2 - variance,
                -2 * (baseline * drop - covariance),
                drop**2 - distance**2,
            ]
        )
        assert bound == pytest.approx(max(roots) if distance > 0 else min(roots), rel=1e-9)
