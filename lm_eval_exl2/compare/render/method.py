"""How the numbers came about, in words, with the names of the statistics that were used."""

from __future__ import annotations

from lm_eval_exl2.compare.render import headline, words
from lm_eval_exl2.compare.render.blocks import Bullets, Section
from lm_eval_exl2.compare.results import Comparison


def section(comparison: Comparison) -> Section:
    """Everything a reader needs to check the numbers."""
    items = [
        "The question is non-inferiority at one-sided 5 %: is the drop below what the profile "
        "accepts? TOST, which asks for equivalence both ways with a 90 % interval, is printed "
        "beside it and decides nothing.",
        _decision(comparison),
        "Both runs are paired document by document, and every group score is recomputed on the "
        "documents that both have.",
        "Relative drop: (baseline - candidate) / baseline in per cent. Absolute drop: baseline - "
        "candidate in percentage points. Average drop: the change of the unweighted mean of the "
        "primary scores; a group counts once.",
        *_names(comparison),
        "McNemar's test is exact, on the answers that changed between right and wrong; mid-p is "
        "beside it. With fewer than 6 of them no outcome can reach p < .05.",
        "Statements that a subject is clearly worse are Holm-adjusted within their group. The "
        "demands are not adjusted: every one must hold (intersection-union).",
    ]
    if len(comparison.candidates) > 1:
        items.append(
            "Several candidates are taken in a fixed sequence, most bits per weight first: behind "
            "the first that is not supported, no later one counts as supported."
        )
    items.append(f"Written by lm_eval_exl2 {comparison.lm_eval_exl2_version}.")
    return Section("Method", [Bullets(items)])


def _decision(comparison: Comparison) -> str:
    accepts = ""
    if words.is_known(comparison.accepts):
        amount = words.limit(comparison.accepts, headline.unit_of(comparison))
        accepts = f" It accepts an average drop below {amount}."
    how = "decides by the interval; what it leaves open is inconclusive."
    if comparison.decide_by == "estimate":
        how = "decides by the point estimate; what the evidence leaves open is marked "
        how += f'"{headline.NOT_SUPPORTED}".'
    return f"Profile {comparison.profile} {how}{accepts}"


def _names(comparison: Comparison) -> list[str]:
    """The statistics by name, as the records have them."""
    used: dict[str, dict[str, None]] = {}
    for candidate in comparison.candidates:
        average = candidate.average
        found = [("averages", average.relative), ("averages", average.absolute)] if average else []
        for unit in candidate.units:
            ratio = "ratios of perplexities" if unit.kind == "perplexity" else "differences"
            found += [("scores", unit.baseline), ("scores", unit.candidate)]
            found += [(ratio, unit.difference)]
            found += [("relative drops", unit.relative), ("absolute drops", unit.absolute)]
        for name, value in found:
            if value is not None and value.method:
                used.setdefault(name, {})[value.method] = None
    return [f"Intervals of {name}: {', '.join(methods)}." for name, methods in used.items()]
