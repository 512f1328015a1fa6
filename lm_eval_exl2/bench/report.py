"""The document of a run -> sections, in the blocks that `compare` renders, too.

Milliseconds in tables, seconds in the document. Nothing is computed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lm_eval_exl2.bench.summary import PERCENTILES, needed
from lm_eval_exl2.compare.render.blocks import Bullets, Section, Table
from lm_eval_exl2.compare.render.markdown import write_section
from lm_eval_exl2.compare.render.words import ABSENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Json = Mapping[str, Any]

_NOT_ENOUGH: Final = "not enough queries"


def to_markdown(document: Json) -> str:
    """Return the report as Markdown."""
    return "\n\n".join(["# Speed and latency", *map(write_section, sections(document))]) + "\n"


def sections(document: Json) -> list[Section]:
    """Return the parts that have something to say."""
    found = [
        Section("Run", [Bullets(list(_head(document)))]) if list(_head(document)) else None,
        *(_prompt_bench(document), _load(document), _latencies(document)),
        *(_costs(document), _roofs(document), _checks(document)),
    ]
    return [section for section in found if section is not None]


def _section(
    title: str,
    header: Sequence[str],
    rows: list[list[str]],
    notes: Sequence[str] = (),
    *,
    words_in: int = 1,
) -> Section | None:
    """A table with what explains it; the first columns, up to `words_in`, hold words."""
    if not rows:
        return None
    table = Table(list(header), rows, left=tuple(range(words_in)))
    return Section(title, [table, Bullets(list(notes))] if notes else [table])


def _head(document: Json) -> Iterator[str]:
    """Yield prompts, what was left out, and how the run ended."""
    for entry in document["checkpoints"]:
        if prompts := entry.get("prompts"):
            yield f"{name_of(entry)}: {prompts['count']} prompts from {prompts['source']}"
            if left_out := prompts["left_out"]:
                places = ", ".join(str(each["place"]) for each in left_out[:10])
                yield (
                    f"left out: {len(left_out)} that leave no room for max_gen_toks in the window "
                    f"(places {places}{', ...' if len(left_out) > 10 else ''})"
                )
            if penalties := entry["facts"].get("penalties_left_out"):
                yield f"not applied here, but by the harness: {penalties}"
    if document["outcome"] != "complete":
        yield f"{document['outcome']}: what follows is what was finished until then"


def _prompt_bench(document: Json) -> Section | None:
    rows: list[list[str]] = []
    for entry in document["checkpoints"]:
        for bench in entry["prompt_bench"]:
            figures = bench["figures"]
            rows.append(
                [
                    name_of(entry),
                    bench["ending"],
                    _median(figures, "decode_tokens_per_s"),
                    _median(figures, "prefill_tokens_per_s"),
                    _median(figures, "ttft_s", 1e3),
                    _median(figures, "tpot_s", 1e3),
                    _median(figures, "output_tokens"),
                    _median(figures, "memory_peak_bytes", 2.0**-20),
                    _median(figures, "card_memory_peak_bytes", 2.0**-20),
                    _median(figures, "cpu_utilisation"),
                    _median(figures, "card_utilisation", 100),
                    _median(figures, "energy_j"),
                ]
            )
    header = ("checkpoint", "ends by", "decode tokens/s", "prefill tokens/s", "TTFT ms", "TPOT ms")
    header += ("tokens", "memory MiB", "card memory MiB", "CPUs busy", "card busy %", "energy J")
    return _section(
        "Prompt bench: median ± deviation over repetitions",
        header,
        rows,
        [
            "warm-up excluded; every repetition is in the JSON",
            "energy and utilisation of a card are what its driver reports for the whole card; "
            "memory is the process's peak",
        ],
    )


def _load(document: Json) -> Section | None:
    rows: list[list[str]] = []
    notes: dict[str, None] = {}
    for entry, run in runs_of(document):
        summary, loadgen = run["summary"], run["loadgen"]
        rows.append(
            [
                title_of(entry, run),
                run["outcome"],
                loadgen["verdict"] if loadgen else "none",
                f"{summary['finished']} of {summary['finished'] + summary['unfinished']}",
                _number(summary["requests_per_s"]),
                _number(summary["system_tokens_per_s"]),
                _number(summary["user_tokens_per_s"]["mean"]),
                *(_limit(run["limits"].get(name)) for name in ("ttft", "tpot")),
                run["style"]["name"],
            ]
        )
        notes[run["label"]] = None
        for reason in loadgen["reasons"] if loadgen else ():
            notes[f"{title_of(entry, run)}: LoadGen says: {reason}"] = None
        for reason in run["style"]["reasons"]:
            notes[f"{run['style']['name']}: {reason}"] = None
    header = ("scenario", "outcome", "LoadGen", "finished", "requests/s", "tokens/s, system")
    header += ("tokens/s, user", "p99 TTFT in limit", "p99 TPOT in limit", "style")
    return _section("Scenarios", header, rows, list(notes))


def _latencies(document: Json) -> Section | None:
    rows: list[list[str]] = []
    for entry, run in runs_of(document):
        for name, key in _LATENCIES.items():
            found = run["summary"][key]
            shown = [
                _NOT_ENOUGH if found[percentile] is None else _number(found[percentile] * 1e3)
                for percentile in PERCENTILES
            ]
            mean = _number(None if found["mean"] is None else found["mean"] * 1e3)
            counts = [str(found["count"]), str(found["undefined"])]
            rows.append([title_of(entry, run), name, *counts, mean, *shown])
    limits = ", ".join(f"{name} {needed(name)}" for name in PERCENTILES)
    return _section(
        "Latencies, ms",
        ("scenario", "latency", "values", "undefined", "mean", *PERCENTILES),
        rows,
        [f"a percentile takes so many queries, if none is over the limit: {limits}"],
    )


_LATENCIES: Final = {
    "TTFT": "ttft_s",
    "TPOT (a value per request)": "tpot_s",
    "ITL (a value per gap)": "itl_s",
    "end to end": "end_to_end_s",
}


def _checks(document: Json) -> Section | None:
    rows: list[list[str]] = []
    for entry in document["checkpoints"]:
        if check := entry.get("configuration"):
            rows.append([name_of(entry), *_check(check)])
        for bench in entry["prompt_bench"]:
            rows += [[f"{name_of(entry)}, {bench['ending']}", *_check(c)] for c in bench["checks"]]
    for entry, run in runs_of(document):
        rows += [[title_of(entry, run), *_check(check)] for check in run["checks"]]
        if agreed := run["agreement"]:
            differing = [each["name"] for each in agreed if not each["agrees"]]
            said = f"{len(agreed) - len(differing)} of {len(agreed)} figures agree"
            said += f"; not {', '.join(differing)}" if differing else ""
            state = "differ" if differing else "passed"
            rows.append([title_of(entry, run), "own figures are LoadGen's", state, said])
    return _section("Checks", ("run", "check", "state", "found"), rows, words_in=4)


def _costs(document: Json) -> Section | None:
    rows: list[list[str]] = []
    for entry in document["checkpoints"]:
        parts = [(f"{name_of(entry)}, {each['ending']}", each) for each in entry["prompt_bench"]]
        parts += [(title_of(entry, run), run) for run in entry["scenarios"]]
        for title, part in parts:
            if cost := part.get("cost"):
                kinds = ("output_per_million", "total_per_million", "evaluation")
                rows.append([title, *(_number(cost[kind]) for kind in kinds)])
    return _section(
        "Cost, in the currency of --price_per_hour",
        (
            "run",
            "a million output tokens",
            "a million tokens, prompts included",
            "all prompts once",
        ),
        rows,
        ["the whole run's cost over its tokens, loading and idle time excluded"],
    )


def _roofs(document: Json) -> Section | None:
    rows: list[list[str]] = []
    notes: dict[str, None] = {}
    for entry in document["checkpoints"]:
        for bench in entry["prompt_bench"]:
            if found := bench.get("reached"):
                for phase in ("decode", "prefill"):
                    part = found[phase]
                    shares = [part["share"], part["bandwidth_share"], part["compute_share"]]
                    title = f"{name_of(entry)}, {bench['ending']}, {phase}"
                    best = _number(part["best_tokens_per_s"])
                    rows.append([title, part["bound"], best, *(f"{each:.1%}" for each in shares)])
                rates = found["rates"]
                products = [
                    f"{kind} {rate / 1e9:,.0f} G operations/s"
                    for kind, rate in rates["operations_per_s"].items()
                ]
                notes[
                    f"{rates['device']}, measured: copy {rates['bytes_per_s'] / 1e9:,.1f} GB/s, "
                    f"products in {', '.join(products)}; weights counted {found['weights']}"
                ] = None
    header = ("run", "bound", "best tokens/s", "reached", "of bandwidth", "of compute")
    return _section("Roofline", header, rows, list(notes))


def _check(check: Json) -> list[str]:
    return [check["name"], "passed" if check["passed"] else "FAILED", check["found"]]


def runs_of(document: Json) -> Iterator[tuple[Json, Json]]:
    """Yield every scenario's run with its checkpoint."""
    for entry in document["checkpoints"]:
        for run in entry["scenarios"]:
            yield entry, run


def name_of(entry: Json) -> str:
    """Return a checkpoint's name, with its bits and data type where they are known."""
    name, facts = Path(entry["name"]).name, entry["facts"]
    return f"{name} ({facts['bits_layers']:.2f} bits, {facts['model_dtype']})" if facts else name


def title_of(entry: Json, run: Json) -> str:
    """Return the name of a scenario's run, with its load."""
    return f"{name_of(entry)} {load_of(run)}"


def load_of(run: Json) -> str:
    """Return a scenario with its load."""
    load = "" if run["load_qps"] is None else f" {run['load_qps']:g}/s"
    return f"{run['scenario']}{load}"


def _median(figures: Json, name: str, scale: float = 1.0) -> str:
    if name not in figures:
        return ABSENT
    median, deviation = (figures[name][part] * scale for part in ("median", "deviation"))
    return f"{_number(median)} ± {_number(deviation)}"


def _number(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _limit(verdict: Json | None) -> str:
    if verdict is None:
        return ABSENT
    return f"{verdict['state']} ({verdict['over']} of {verdict['queries']} over)"
