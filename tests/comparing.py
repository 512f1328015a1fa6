"""Hand-made runs with known counts, and their comparison."""

from run_files import Task, rights, write_run

from lm_eval_exl2.compare.comparing import Choices, compare_runs
from lm_eval_exl2.compare.policy import read_profile
from lm_eval_exl2.compare.primary import read_table
from lm_eval_exl2.compare.runs import read_run


def compare(*folders, profile="general", drop=None, noise=None, **choices):
    baseline, *candidates = (read_run(folder) for folder in folders)
    chosen = Choices(table=read_table(), profile=read_profile(profile, drop=drop), **choices)
    noisy = None if noise is None else tuple(read_run(folder) for folder in noise)
    return compare_runs(baseline, candidates, chosen, noise=noisy)


def pattern(both, lost, gained, neither):
    """Right and wrong of baseline and candidate, with these counts."""
    baseline = [1.0] * (both + lost) + [0.0] * (gained + neither)
    candidate = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return baseline, candidate


def runs(tmp_path, *tables, names=None, metric="acc", **more):
    """Two runs with one task per table of counts."""
    names = names or [f"task{at}" for at in range(len(tables))]
    sides = zip(*(pattern(*table) for table in tables), strict=True)
    return [
        write_run(
            tmp_path / side,
            [Task(name, rights(values, metric)) for name, values in zip(names, each, strict=True)],
            model=side,
            **more,
        )
        for side, each in zip(("base", "cand"), sides, strict=True)
    ]
