"""pass@k: how likely one of k answers is right, estimated from n answers to each problem.

Pure mathematics. The unit is the problem: answers to one problem are not independent of each other.
"""

from collections.abc import Iterable, Sequence
from math import comb, sqrt

from lm_eval_exl2.errors import OptionError


def check_ks(ks: Iterable[int], samples: int) -> tuple[int, ...]:
    """The values of k, sorted.

    Raises:
        OptionError: A k is not positive, or larger than the number of answers per problem.
    """
    checked = tuple(sorted(set(ks)))
    for k in checked:
        if not 1 <= k <= samples:
            raise OptionError(
                f"pass@{k} needs at least {max(k, 1)} answers per problem, the task makes "
                f"{samples}; choose k between 1 and {samples}, or a task with more repeats"
            )
    return checked


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimate from one problem: 1 - C(n - c, k) / C(n, k).

    Computed as 1 - prod_{i = n-c+1..n} (1 - k / i), which does not overflow (Chen et al. 2021,
    "Evaluating Large Language Models Trained on Code", figure 3).

    Args:
        samples: n, the answers that were judged.
        right: c, how many of them passed.
        k: At most n.
    """
    if samples - right < k:
        return 1.0
    missed = 1.0
    for number in range(samples - right + 1, samples + 1):
        missed *= 1.0 - k / number
    return 1.0 - missed


def sampling_variance(samples: int, right: int, k: int) -> float:
    """Variance of one problem's estimate if its n answers were drawn again.

    The number of right answers is binomial; its probability is taken to be c / n. So a problem that
    always or never passed counts as certain.
    """
    p = right / samples
    weights = [comb(samples, c) * p**c * (1 - p) ** (samples - c) for c in range(samples + 1)]
    values = [pass_at_k(samples, c, k) for c in range(samples + 1)]
    mean = sum(weight * value for weight, value in zip(weights, values, strict=True))
    return sum(weight * (value - mean) ** 2 for weight, value in zip(weights, values, strict=True))


def sampling_stderr(variances: Sequence[float]) -> float:
    """Standard error of a mean over fixed problems, from each problem's sampling variance."""
    return sqrt(sum(variances)) / len(variances)
