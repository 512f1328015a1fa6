"""A comparison as JUnit XML: a suite per candidate, a case per demand and one for the verdict."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection

from lm_eval_exl2.compare import policy, verdict
from lm_eval_exl2.compare.render import headline, words
from lm_eval_exl2.compare.results import CandidateResult, Comparison, DemandResult

FAILING = (policy.MARGINAL, policy.DO_NOT_SHIP)
_OPEN = (policy.INCONCLUSIVE, policy.CANNOT_COMPARE)
# XML 1.0 cannot hold these even as references.
_FORBIDDEN = re.compile("[\ufffe\uffff]")


def to_junit(comparison: Comparison, failing: Collection[str] = FAILING) -> str:
    """Write the suites.

    A case fails only where the candidate's state is a failing one, so the file and the exit code
    agree. What is open is skipped unless its state is failing.

    Args:
        comparison: What to write.
        failing: The states that fail.
    """
    root = ElementTree.Element("testsuites", name="lm-eval-exl2 compare")
    for candidate in comparison.candidates:
        root.append(_suite(comparison, candidate, failing))
    _total(root, list(root))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _suite(
    comparison: Comparison, candidate: CandidateResult, failing: Collection[str]
) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_plain(candidate.variant.label))
    found = candidate.verdict
    fails = found.state in failing
    group = f"compare.{comparison.profile}"
    for demand in found.demands:
        case = _case(suite, group, f"drop of {demand.name}")
        says = _says(demand, headline.unit_of(comparison))
        if _is_broken(comparison, demand):
            _mark(case, "failure" if fails else "system-out", says)
        elif _is_open(comparison, demand):
            open_fails = fails and found.state in _OPEN
            _mark(case, "failure" if open_fails else "skipped", says)
    for name in found.missing:
        case = _case(suite, group, f"drop of {name}")
        _mark(case, "failure" if fails else "skipped", f"{name} was not measured on both sides")
    case = _case(suite, group, "verdict")
    says = " ".join(headline.candidate_lines(comparison, candidate))
    skipped = "skipped" if found.state in _OPEN else "system-out"
    _mark(case, "failure" if fails else skipped, says, kind=found.state)
    _total(suite, [suite])
    return suite


def _is_broken(comparison: Comparison, demand: DemandResult) -> bool:
    if comparison.decide_by == "estimate":
        return not demand.by_estimate
    return demand.evidence == verdict.REFUTED


def _is_open(comparison: Comparison, demand: DemandResult) -> bool:
    return comparison.decide_by == "interval" and demand.evidence == verdict.NOT_SETTLED


def _says(demand: DemandResult, unit: str) -> str:
    ends = [words.amount(demand.lower), words.amount(demand.upper)]
    estimate = words.bracketed(words.with_unit(words.amount(demand.estimate), unit), ends)
    accepts = f"accepted below {words.limit(demand.accepts, unit)}"
    return f"drop of {demand.name}: {estimate}, {accepts}: {demand.evidence}"


def _case(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    named = {"classname": _plain(group), "name": _plain(name)}
    return ElementTree.SubElement(suite, "testcase", named)


def _mark(case: ElementTree.Element, kind_of_mark: str, says: str, *, kind: str = "") -> None:
    text = _plain(says)
    if kind_of_mark == "system-out":
        ElementTree.SubElement(case, "system-out").text = text
        return
    mark = ElementTree.SubElement(case, kind_of_mark, message=text)
    if kind_of_mark == "failure":
        mark.set("type", kind or "demand")
        mark.text = text


def _total(element: ElementTree.Element, suites: list[ElementTree.Element]) -> None:
    """Count cases, failures and skipped ones below the suites."""
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        element.set(name, str(sum(len(list(suite.iter(tag))) for suite in suites)))
    element.set("errors", "0")


def _plain(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", words.visible(text))
