"""What `accuracy` found -> Markdown that can be read on a terminal as it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from lm_eval_exl2.bench.accuracy import Accuracy
from lm_eval_exl2.bench.agreement import Agreement
from lm_eval_exl2.bench.gate import Demand, Gate

_GATE_METHOD: Final = (
    "MLPerf's arithmetic on this run, not an MLPerf result. ROUGE is the mean F-measure times 100, "
    "with stemmer. Tokens are those of the text tokenized again, without special ones; characters "
    "those between its first and last visible one. The interval, a bootstrap over documents, "
    "decides nothing."
)
_AGREEMENT_METHOD: Final = (
    "How alike the two runs' answers are, the baseline's as reference: it says nothing of quality "
    "and has no part in an mlperf profile. Each ROUGE must be above 99."
)


def to_markdown(found: Accuracy) -> str:
    """The whole report."""
    return "\n".join([*_heading(found), *_gate(found.gate), *_agreement(found), *_notes(found)])


def _heading(found: Accuracy) -> Iterator[str]:
    against = f" against {found.baseline}" if found.baseline else ""
    yield f"# Accuracy of {found.candidate}{against}"
    yield ""
    yield f"Tasks: {', '.join(found.tasks)}; {found.gate.documents:,} documents."
    yield ""


def _gate(gate: Gate) -> Iterator[str]:
    yield f"## {gate.profile}, rule {gate.rule}: {gate.state}"
    yield ""
    yield f"Why: {gate.explanation}."
    yield ""
    if not gate.demands:
        return
    source = "published" if gate.is_published else "baseline"
    yield from _table(
        ["demand", source, "candidate", "ratio, %", "95 % interval", "accepted, %", "holds"],
        [_demand_row(each) for each in gate.demands],
    )
    yield ""
    yield _GATE_METHOD
    yield ""


def _demand_row(demand: Demand) -> list[str]:
    ends = "-"
    if demand.interval is not None:
        ends = f"{100 * demand.interval.lower:.2f} to {100 * demand.interval.upper:.2f}"
    accepted = f"from {100 * demand.at_least:g}"
    if demand.at_most is not None:
        accepted += f" to {100 * demand.at_most:g}"
    return [
        demand.name,
        f"{demand.baseline:.4f}",
        f"{demand.candidate:.4f}",
        f"{100 * demand.ratio:.3f}",
        ends,
        accepted,
        "yes" if demand.holds else "NO",
    ]


def _agreement(found: Accuracy) -> Iterator[str]:
    agreement = found.agreement
    if agreement is None:
        return
    yield f"## {agreement.profile}: {agreement.state}"
    yield ""
    yield f"Why: {agreement.explanation}."
    yield ""
    yield from _table(["candidate against baseline", "", "95 %"], list(_agreement_rows(agreement)))
    yield ""
    if agreement.divergence is not None:
        one = agreement.divergence
        yield (
            f"Of the {one.answers:,} answers that differ, half share at most {one.median:g} "
            f"{one.unit} from their start, a quarter at most {one.first_quartile:g}."
        )
        yield ""
    yield f"{_AGREEMENT_METHOD} BLEU is sacrebleu's `{agreement.bleu.signature}`."
    yield ""


def _agreement_rows(agreement: Agreement) -> Iterator[list[str]]:
    for each in agreement.rouge:
        bounds = f"{each.lower:.2f}, {each.upper:.2f} one-sided"
        yield [each.kind, f"{each.score:.4f}", bounds]
    bleu = agreement.bleu
    yield [f"BLEU, brevity penalty {bleu.brevity_penalty:.4f}", f"{bleu.score:.4f}", "-"]
    share, lower, upper = (100 * each for each in agreement.identical_share)
    name = f"identical, %: {agreement.identical:,} of {agreement.documents:,}"
    yield [name, f"{share:.2f}", f"{lower:.2f} to {upper:.2f}"]


def _notes(found: Accuracy) -> Iterator[str]:
    if found.notes:
        yield "## Notes"
        yield ""
        yield from (f"- {note}" for note in found.notes)
        yield ""


def _table(header: Sequence[str], rows: Sequence[list[str]]) -> Iterator[str]:
    """Rows of equal width; names to the left, numbers to the right."""
    cells = [list(header), *rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    for number, row in enumerate(cells):
        first, *others = zip(row, widths, strict=True)
        padded = [f"{first[0]:<{first[1]}}", *(f"{text:>{width}}" for text, width in others)]
        yield f"| {' | '.join(padded)} |"
        if not number:
            rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
            yield f"| {' | '.join(rules)} |"
