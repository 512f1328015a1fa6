"""A group of 57 tasks made by hand, with the names and sizes of MMLU's subjects."""

from __future__ import annotations

from lm_eval_exl2.compare.results import Bounds, FlipCounts, Interval, Part, UnitResult

_SIZES = """
abstract_algebra:100 anatomy:135 astronomy:152 business_ethics:100 clinical_knowledge:265
college_biology:144 college_chemistry:100 college_computer_science:100 college_mathematics:100
college_medicine:173 college_physics:102 computer_security:100 conceptual_physics:235
econometrics:114 electrical_engineering:145 elementary_mathematics:378 formal_logic:126
global_facts:100 high_school_biology:310 high_school_chemistry:203
high_school_computer_science:100 high_school_european_history:165 high_school_geography:198
high_school_government_and_politics:193 high_school_macroeconomics:390
high_school_mathematics:270 high_school_microeconomics:238 high_school_physics:151
high_school_psychology:545 high_school_statistics:216 high_school_us_history:204
high_school_world_history:237 human_aging:223 human_sexuality:131 international_law:121
jurisprudence:108 logical_fallacies:163 machine_learning:112 management:103 marketing:234
medical_genetics:100 miscellaneous:783 moral_disputes:346 moral_scenarios:895 nutrition:306
philosophy:311 prehistory:324 professional_accounting:282 professional_law:1534
professional_medicine:272 professional_psychology:612 public_relations:110 security_studies:245
sociology:201 us_foreign_policy:100 virology:166 world_religions:171
"""
SUBJECTS = {name: int(size) for name, size in (each.split(":") for each in _SIZES.split())}


def bounds(estimate: float, wide: float, method: str) -> Bounds:
    return Bounds(estimate, estimate - wide, estimate + wide, method)


def subject(place: int, name: str, documents: int, worse_by: float) -> Part:
    """Losses that differ between subjects without chance; p is made up to fit them."""
    lost = round(documents * (0.03 + worse_by * (1 + place % 5) / 3))
    gained = round(documents * (0.03 + 0.005 * (place % 4)))
    right = round(documents * (0.45 + 0.008 * (place % 41)))
    surplus = (lost - gained) / max(1, lost + gained) ** 0.5
    return Part(
        name=f"mmlu_{name}",
        documents=documents,
        baseline=right / documents,
        candidate=(right - lost + gained) / documents,
        lost=lost,
        gained=gained,
        p=max(1e-6, min(1.0, 10 ** (-0.4 * surplus * abs(surplus)))),
        clearly_worse=surplus > 3.4,
    )


def mmlu(worse_by: float, *, most: int = 10_000) -> UnitResult:
    sizes = {name: min(most, documents) for name, documents in SUBJECTS.items()}
    parts = [subject(place, *item, worse_by) for place, item in enumerate(sizes.items())]
    documents = sum(sizes.values())
    baseline = sum(part.baseline * part.documents for part in parts) / documents
    candidate = sum(part.candidate * part.documents for part in parts) / documents
    lost, gained = sum(part.lost for part in parts), sum(part.gained for part in parts)
    other = round(0.022 * documents)
    wide = 0.8 / documents**0.5
    drop = baseline - candidate
    p = 0.0312 if drop < 0.03 else 2e-55
    return UnitResult(
        name="mmlu",
        benchmark="mmlu",
        metric="acc",
        filter="none",
        kind="binary",
        rule="micro",
        higher_is_better=True,
        documents=documents,
        baseline_documents=14042,
        candidate_documents=documents,
        full_documents=14042,
        baseline=Interval(baseline, baseline - wide, baseline + wide, "Wilson"),
        candidate=Interval(candidate, candidate - wide, candidate + wide, "Wilson"),
        difference=Interval(-drop, -drop - wide / 2, -drop + wide / 2, "stratified Tango score"),
        relative=bounds(100 * drop / baseline, 42 * wide / baseline, "linear contrast, score"),
        absolute=bounds(100 * drop, 42 * wide, "stratified Tango score"),
        non_inferior_p=0.0004 if drop < 0.02 else 0.93,
        tost_p=0.0004 if drop < 0.02 else 0.93,
        flips=FlipCounts(
            lost, gained, other, (lost + gained + other) / documents, p, 0.95 * p, False
        ),
        chance=0.25,
        macro=(baseline + 0.004, candidate + 0.0036),
        parts=parts,
        certify_probability=0.9991,
        documents_needed=5210,
    )
