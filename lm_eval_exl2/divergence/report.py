"""The document of a run -> a table for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Json = Mapping[str, Any]

CAVEAT: Final = (
    "Divergence screens, it does not decide: near the baseline it says next to nothing about task "
    "scores (arXiv 2606.19558). Run tasks with --log_samples and let `lm-eval-exl2 compare` decide."
)
_NONE: Final = "-"


def table(document: Json) -> Iterator[str]:
    """Yield the lines of a report.

    The last row says how many times the noise floor a mean is; nothing where the floor is not
    above 0, as model_diff's usually is not.

    Args:
        document: What `run.run` returned, or JSON of it.
    """
    yield from _heading(document)
    entries = [*document["noise"], *document["candidates"]]
    rows = [("", [_label(entry) for entry in entries])]
    rows.append(("divergence", [_kl_name(entry) for entry in entries]))
    rows += [(name, [cell(entry["summary"]) for entry in entries]) for name, cell in _ROWS.items()]
    rows += _agreement_rows(entries)
    rows += _bucket_rows(entries)
    if document["noise"]:
        floor = document["noise"][0]["summary"]["kl"]["value"]
        rows.append(("mean / noise floor", [_times(entry, floor) for entry in entries]))
    yield from _aligned(rows)
    yield ""
    yield CAVEAT


def _heading(document: Json) -> Iterator[str]:
    protocol, text, baseline = (document[name] for name in ("protocol", "text", "baseline"))
    first, stop = protocol["positions"]
    yield f"baseline   {baseline['name']}  {_bits(baseline)}, {baseline['digest'][:12]}"
    yield (
        f"protocol   {protocol['name']}: {protocol['windows']} windows of {protocol['window']} "
        f"tokens, positions {first} to {stop - 1}, BOS {protocol['bos']}, "
        f"{protocol['vocabulary']} tokens in the vocabulary"
    )
    yield f"text       {text['name']}, {text['tokens']} tokens, sha256 {text['sha256'][:12]}"
    for kl in dict.fromkeys(e["kl"] for e in (*document["noise"], *document["candidates"])):
        yield f"divergence {kl}, in nats"
    yield ""


def _label(entry: Json) -> str:
    facts = entry["facts"]
    name = Path(entry["label"]).name
    return f"{name} ({facts['bits_layers']:.2f})" if "bits_layers" in facts else name


def _kl_name(entry: Json) -> str:
    return entry["kl"].partition("(")[0]


def _bits(facts: Json) -> str:
    head = facts["bits_head"]
    return f"{facts['bits_layers']:.2f} bits per weight" + (
        "" if head is None else f" (head {head:.2f})"
    )


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4g}"


def _interval(estimate: Json, scale: float = 1.0, digits: int = 4) -> str:
    if estimate["value"] is None:
        return _NONE
    # z: no minus in front of a rounded zero.
    value, *ends = (
        _NONE if estimate[name] is None else f"{estimate[name] * scale:z.{digits}f}"
        for name in ("value", "lower", "upper")
    )
    return f"{value} [{', '.join(ends)}]"


def _mean(summary: Json) -> str:
    kl = summary["kl"]
    stderr = "" if kl["stderr"] is None else f" ± {kl['stderr']:.1g}"
    return f"{_number(kl['value'])}{stderr}"


_ROWS: Final[Mapping[str, Callable[[Json], str]]] = {
    "mean ± se": _mean,
    "median": lambda s: _number(s["median"]),
    "p90": lambda s: _number(s["p90"]),
    "p99": lambda s: _number(s["p99"]),
    "max": lambda s: _number(s["largest"]),
    "positions": lambda s: str(s["positions"]),
    "not finite": lambda s: str(s["non_finite"] + s["non_finite_targets"]),
    "delta p mean, %": lambda s: _interval(s["delta_p"], 100.0, 3),
    "delta p RMS, %": lambda s: (
        _NONE if s["delta_p_rms"] is None else f"{100 * s['delta_p_rms']:.3f}"
    ),
    "perplexity": lambda s: _number(s["perplexity"]["value"]),
    "perplexity of baseline": lambda s: _number(s["baseline_perplexity"]["value"]),
    "perplexity ratio": lambda s: _interval(s["perplexity_ratio"]),
}


def _agreement_rows(entries: list[Json]) -> Iterator[tuple[str, list[str]]]:
    for number, _ in enumerate(entries[0]["summary"]["agreement"]):
        name = "same top 1, %" if not number else f"same top {number + 1} in order, %"
        yield name, [_interval(e["summary"]["agreement"][number], 100.0, 2) for e in entries]


def _bucket_rows(entries: list[Json]) -> Iterator[tuple[str, list[str]]]:
    for number, bucket in enumerate(entries[0]["summary"]["buckets"]):
        name = f"mean, top p {bucket['lower']:.2f}-{bucket['upper']:.2f}"
        cells = [entry["summary"]["buckets"][number] for entry in entries]
        yield name, [f"{_number(cell['mean'])} (n {cell['count']})" for cell in cells]


def _times(entry: Json, floor: float | None) -> str:
    value = entry["summary"]["kl"]["value"]
    return _NONE if value is None or floor is None or floor <= 0 else f"{value / floor:.3g}"


def _aligned(rows: list[tuple[str, list[str]]]) -> Iterator[str]:
    """Align columns; the first one to the left, the others to the right."""
    first = max(len(name) for name, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    for name, cells in rows:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        yield f"{name:<{first}}  " + "  ".join(right)
