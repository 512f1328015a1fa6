"""A comparison made by hand: one candidate to ship, one inconclusive, one not to ship.

The numbers are plausible, not computed; hostile texts are those a model or a folder could bring.
`python tests/comparison_example.py` writes tests/data/comparison.md and comparison.html again: look
at the difference, and at the page in a browser, before you commit it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from comparison_mmlu import bounds, mmlu

from lm_eval_exl2.compare.results import (
    Average,
    Bounds,
    CandidateResult,
    Comparison,
    DemandResult,
    Flip,
    FlipCounts,
    Interval,
    UnitResult,
    Variant,
    VerdictResult,
)

DATA = Path(__file__).parent / "data"
HOSTILE = "<script>alert(1)</script> | `rm -rf` \x1b[31m\nsecond line [a](http://evil.example) @you"


def gsm8k(candidate: float, drop: tuple[float, float, float], documents: int = 1319) -> UnitResult:
    """Drop: estimate and one-sided bounds in per cent of a baseline of 0.752."""
    points = [0.752 * each for each in drop]
    gained = round(0.031 * documents)
    lost, other = gained + round(points[0] / 100 * documents), round(0.06 * documents)
    noise = Interval(0.031, 0.0224, 0.0418, "Clopper-Pearson")
    p = 0.5258 if drop[0] < 10 else 4e-21
    return UnitResult(
        name="gsm8k",
        benchmark="gsm8k",
        metric="exact_match",
        filter="strict-match",
        kind="binary",
        rule="mean",
        higher_is_better=True,
        documents=documents,
        baseline_documents=1319,
        candidate_documents=documents,
        full_documents=1319,
        baseline=Interval(0.752, 0.728, 0.7746, "Wilson"),
        candidate=Interval(candidate, candidate - 0.024, candidate + 0.023, "Wilson"),
        difference=Interval(
            -points[0] / 100, -points[2] / 100 - 0.002, -points[1] / 100 + 0.002, "Tango score"
        ),
        relative=Bounds(*drop, "linear contrast, score"),
        absolute=Bounds(*points, "Tango score"),
        non_inferior_p=0.0121 if drop[2] < 3 else 0.31,
        tost_p=0.0121 if drop[2] < 3 else 0.31,
        flips=FlipCounts(
            lost, gained, other, (lost + gained + other) / documents, p, 0.9 * p, False, noise, None
        ),
        beside=("flexible-extract", 0.758, candidate + 0.031),
        certify_probability=0.61,
        documents_needed=2330,
        not_settled="--limit took the first 412 documents" if documents < 1319 else "",
        warnings=[f"3 of {documents} answers are empty"],
    )


def winogrande() -> UnitResult:
    """At chance, with too few changed answers: no relative drop."""
    return UnitResult(
        name="winogrande",
        benchmark="winogrande",
        metric="acc",
        filter="none",
        kind="binary",
        rule="mean",
        higher_is_better=True,
        documents=164,
        baseline_documents=164,
        candidate_documents=164,
        full_documents=None,
        baseline=Interval(0.5122, 0.4363, 0.5875, "Wilson"),
        candidate=Interval(0.5183, 0.4423, 0.5935, "Wilson"),
        difference=Interval(0.0061, -0.0238, 0.0372, "Tango score"),
        relative=None,
        absolute=Bounds(-0.61, -3.1, 1.8, "Tango score"),
        flips=FlipCounts(2, 3, 0, 5 / 164, 1.0, 0.6875, True, None, 4),
        chance=0.5,
        left_out="the baseline's interval includes chance",
        never_supported="a quick run screens",
    )


def perplexity(candidate: float, ratio: tuple[float, float, float]) -> UnitResult:
    return UnitResult(
        name="exl2_wikitext2_ppl",
        benchmark="wikitext2",
        metric="perplexity",
        filter="none",
        kind="perplexity",
        rule="mean",
        higher_is_better=False,
        documents=166,
        baseline_documents=166,
        candidate_documents=166,
        full_documents=166,
        baseline=Interval(5.472, 5.31, 5.64, "t on log-loss"),
        candidate=Interval(candidate, candidate - 0.16, candidate + 0.17, "t on log-loss"),
        difference=Interval(*ratio, "paired t on log-loss"),
        relative=None,
        absolute=None,
        left_out="a perplexity",
    )


def average(units: list[UnitResult], wide: float) -> Average:
    counted = [unit for unit in units if not unit.left_out]
    first = sum(unit.baseline.estimate for unit in counted) / len(counted)
    second = sum(unit.candidate.estimate for unit in counted) / len(counted)
    relative = 100 * (first - second) / first
    return Average(
        units=[unit.name for unit in counted],
        baseline=first,
        candidate=second,
        relative=bounds(relative, wide, "delta method"),
        absolute=bounds(relative * first, wide * first, "delta method"),
        left_out={unit.name: unit.left_out for unit in units if unit.left_out},
    )


def candidate(
    variant: Variant, units: list[UnitResult], wide: float, state: str, band: str, evidence: str
) -> CandidateResult:
    found = average(units, wide)
    drop = found.relative
    explanation = {
        "supported": "the evidence supports it",
        "refuted": "refuted: average",
        "not settled": f"average: best estimate {drop.estimate:.2g} % ({band}), but a drop up to "
        f"{drop.upper:.2g} % is not ruled out; no full set of this task can settle it",
    }[evidence]
    demand = DemandResult(
        "average", 3.0, drop.estimate, drop.lower, drop.upper, drop.estimate < 3, evidence
    )
    flips = [
        Flip("gsm8k", "lost", 17, "Natalia sold clips to 48 friends.", "72", "72", HOSTILE),
        Flip("gsm8k", "gained", 23, "A robe takes 2 bolts.", "3", "[invalid]", "3"),
        Flip("mmlu_anatomy", "other wrong", 4, HOSTILE, "B", "C", "D"),
    ]
    return CandidateResult(
        variant=variant,
        units=units,
        average=found,
        verdict=VerdictResult(state, band, evidence, explanation, [demand], []),
        flips=flips,
        not_compared={"truthfulqa_mc2": "only the baseline has samples"},
        warnings=["sampled: a second run of the same checkpoint differs by itself"],
    )


def variant(label: str, bits: float, size: int) -> Variant:
    return Variant(
        label, f"results/{label}", ["2026-11-02T10-11-12.131415"], bits, size, 8030261248
    )


def example(**changes: object) -> Comparison:
    """Three candidates, most bits per weight first."""
    candidates = [
        candidate(
            variant("6.0bpw", 6.0, 6_450_000_000),
            [
                mmlu(0.001),
                gsm8k(0.749, (0.4, -1.1, 1.9)),
                winogrande(),
                perplexity(5.497, (1.0046, 1.0031, 1.0061)),
            ],
            0.9, "ship", "ship", "supported",
        ),
        candidate(
            variant("3.5bpw", 3.5, 4_080_000_000),
            [
                mmlu(0.012, most=40),
                gsm8k(0.741, (1.46, -1.9, 4.9), documents=412),
                winogrande(),
                perplexity(5.713, (1.044, 1.0402, 1.0479)),
            ],
            2.6, "inconclusive", "acceptable with monitoring", "not settled",
        ),
        candidate(
            variant("2.5bpw", 2.5, 3_110_000_000),
            [
                mmlu(0.05),
                gsm8k(0.583, (22.5, 19.8, 25.3)),
                winogrande(),
                perplexity(7.31, (1.336, 1.321, 1.352)),
            ],
            1.2, "do not ship", "do not ship", "refuted",
        ),
    ]  # fmt: skip
    values = {
        "baseline": variant("fp16", 16.0, 16_060_522_496),
        "candidates": candidates,
        "profile": "general",
        "drop": "relative",
        "decide_by": "interval",
        "accepts": 3.0,
        "unequal_settings": [
            ("cache_mode", ["FP16", "Q8", "Q8", "Q8"]),
            ("model_dtype", ["float16", "-", "float16", "float16"]),
        ],
        "notes": ["mmlu: 6.0bpw holds two runs; the newer one was used"],
        "lm_eval_exl2_version": "0.0.0",
        **changes,
    }
    return Comparison(**values)


def changed(record: Any, kind: type, value: object) -> Any:
    """A copy of records in which each plain value of a type is another one."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        names = [field.name for field in dataclasses.fields(record)]
        values = {name: changed(getattr(record, name), kind, value) for name in names}
        return type(record)(**values)
    if isinstance(record, dict):
        return {
            changed(name, kind, value): changed(each, kind, value) for name, each in record.items()
        }
    if isinstance(record, (list, tuple)):
        return type(record)(changed(each, kind, value) for each in record)
    return value if type(record) is kind else record


def main() -> None:
    """Write the golden files again: python tests/comparison_example.py."""
    from lm_eval_exl2.compare.render.markdown import to_markdown
    from lm_eval_exl2.compare.render.page import to_html
    from lm_eval_exl2.files import write_whole

    write_whole(DATA / "comparison.md", to_markdown(example()))
    write_whole(DATA / "comparison.html", to_html(example()))


if __name__ == "__main__":
    main()
