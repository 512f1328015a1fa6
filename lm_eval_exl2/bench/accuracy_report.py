"""What `accuracy` found -> Markdown that can be read on a terminal as it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lm_eval_exl2.bench.accuracy import Accuracy
from lm_eval_exl2.bench.agreement import Agreement
from lm_eval_exl2.bench.gate import Demand, Gate


def to_markdown(found: Accuracy) -> str:
    """The whole report."""
    return "\n".join([*_heading(found), *_gate(found.gate), *_agreement(found), *_notes(found)])


def _heading(found: Accuracy) -> Iterator[str]:
    against = f" against {found.baseline}" if found.baseline else ""
    yield f"# Accuracy of {found.candidate}{against}"
    yield ""
    yield f"Tasks: {', '.join(found.tasks)}; {found.gate.documents:,} documents with references."
    yield ""


def _gate(gate: Gate) -> Iterator[str]:
    yield f"## {gate.profile}, rule {gate.rule}: {gate.state}"
    yield ""
    yield f"{_sentence(gate.explanation)} This is MLPerf's arithmetic on your run, not an MLPerf"
    yield "result."
    yield ""
    if not gate.demands:
        return
    source = "published" if gate.is_published else "baseline"
    yield from _table(
        ["demand", source, "candidate", "ratio, %", "95 % interval", "accepted, %", "holds"],
        [_demand_row(each) for each in gate.demands],
    )
    yield ""
    yield "The interval (bootstrap over documents, both runs' values drawn together) decides"
    yield "nothing. ROUGE is the mean F-measure times 100, with stemmer."
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
    yield f"{_sentence(agreement.explanation)} How alike the two runs' answers are, with the"
    yield "baseline's as reference: it says nothing of quality and decides no mlperf profile."
    yield ""
    yield from _table(["candidate's answers against the baseline's", ""], _rows(agreement))
    yield ""


def _rows(agreement: Agreement) -> Iterator[list[str]]:
    for each in agreement.rouge:
        bounds = "no bounds from one document"
        if each.lower is not None and each.upper is not None:
            bounds = f"one-sided 95 % bounds {each.lower:.2f} and {each.upper:.2f}"
        yield [each.kind, f"{each.score:.4f} ({bounds})"]
    bleu = agreement.bleu
    yield ["BLEU", f"{bleu.score:.2f} (brevity penalty {bleu.brevity_penalty:.4f})"]
    share, lower, upper = (100 * each for each in agreement.identical_share)
    yield [
        "identical answers",
        f"{agreement.identical:,} of {agreement.documents:,}, {share:.1f} % "
        f"({lower:.1f} to {upper:.1f})",
    ]
    if agreement.divergence is not None:
        one = agreement.divergence
        yield [
            f"{one.unit} before the first difference",
            f"median {one.median:g}, a quarter below {one.first_quartile:g} "
            f"({one.answers:,} answers that differ)",
        ]
    yield ["counted by", f"rouge-score with stemmer; sacrebleu {bleu.signature}"]


def _notes(found: Accuracy) -> Iterator[str]:
    if found.notes:
        yield "## Notes"
        yield ""
        yield from (f"- {note}" for note in found.notes)
        yield ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _table(header: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
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
