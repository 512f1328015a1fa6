"""Which answers changed between right and wrong, and which wrong ones became other wrong ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm_eval_exl2.compare.answers import Floats, Integers


class Flips(NamedTuple):
    """Places among the pairs."""

    lost: Integers
    """Right to wrong."""
    gained: Integers
    """Wrong to right."""
    other_wrong: Integers
    """Wrong to another wrong answer."""
    pairs: int

    @property
    def changed(self) -> int:
        """How many answers changed in one of these ways."""
        return len(self.lost) + len(self.gained) + len(self.other_wrong)


def find_flips(
    baseline: Floats, candidate: Floats, answers: tuple[Integers, Integers] | None = None
) -> Flips:
    """Compare right and wrong, and answers if they are known.

    Args:
        baseline: 1 where the baseline is right, 0 where it is wrong.
        candidate: The same of the candidate.
        answers: Digests of both sides' answers; None leaves `other_wrong` empty.
    """
    was, is_ = baseline == 1, candidate == 1
    other = np.zeros(len(baseline), bool)
    if answers is not None:
        other = ~was & ~is_ & (answers[0] != answers[1])
    return Flips(
        np.flatnonzero(was & ~is_),
        np.flatnonzero(~was & is_),
        np.flatnonzero(other),
        len(baseline),
    )


class NoiseLimit(NamedTuple):
    """What the same checkpoint's two runs say about changes of a margin."""

    limit: float
    """99th percentile of |margin in one run - margin in the other|."""
    questions: int


def noise_limit(first: Floats, second: Floats) -> NoiseLimit | None:
    """How far the margin of a multiple-choice question moves without a reason.

    Args:
        first: Margins of the right choice in one run; NaN where they are not known.
        second: In the other run of the same checkpoint.

    Returns:
        None if no margin is known in both.
    """
    moved = np.abs(first - second)
    moved = moved[~np.isnan(moved)]
    if not len(moved):
        return None
    return NoiseLimit(float(np.percentile(moved, 99)), len(moved))


def inside_noise(flips: Integers, baseline_margins: Floats, noise: NoiseLimit) -> int:
    """How many flips had so small a margin that noise alone can turn them."""
    return int(np.count_nonzero(np.abs(baseline_margins[flips]) <= noise.limit))
