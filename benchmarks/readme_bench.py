"""The READMEs' generated parts about latency and throughput; `readme.py` puts them into place."""

from __future__ import annotations

from typing import Any

from readme_checks import read_result

_FILE = "bench_cpu.json"


def prompt_bench_table() -> str:
    """Return the prompt bench of float16 and its EXL2 sizes."""
    found = read_result(_FILE)
    if found is None:
        return "Not measured yet."
    rows = [
        "| checkpoint | bits per weight | ends by | decode tokens/s | TTFT ms | TPOT ms "
        "| memory MiB | CPUs busy |",
        "| --- | ---: | --- |" + " ---: |" * 5,
    ]
    for row in found["prompt_bench"]:
        figures = row["figures"]
        shown = [
            _median(figures["decode_tokens_per_s"]),
            _median(figures["ttft_s"], 1e3),
            _median(figures["tpot_s"], 1e3),
            _median(figures["memory_peak_bytes"], 2.0**-20),
            _median(figures["cpu_utilisation"]),
        ]
        ends = row["ending"].partition(",")[0]
        rows.append(
            f"| {row['checkpoint']} | {row['bits_layers']:.2f} | {ends} | {' | '.join(shown)} |"
        )
    rows += [
        "",
        f"Median ± deviation of five repetitions over {found['bench_prompts']} prompts, one after "
        f"the other, {found['max_gen_toks']} tokens each at most, warm-up excluded. "
        f"{_measured(found)}",
    ]
    return "\n".join(rows)


def bench_table() -> str:
    """Return the scenarios and what became of cheats."""
    found = read_result(_FILE)
    if found is None:
        return "Not measured yet."
    rows = [
        "| scenario | outcome | LoadGen | queries | requests/s | tokens/s "
        "| TTFT p50 / p90 / p99, ms | TPOT p50 / p90 / p99, ms | figures agreeing with LoadGen |",
        "| --- | --- | --- |" + " ---: |" * 6,
    ]
    for row in found["scenarios"]:
        summary, both = row["summary"], row["agreement"]
        load = "" if row["load_qps"] is None else f", {row['load_qps']:g} arrivals/s"
        queries = f"{summary['finished']} of {summary['finished'] + summary['unfinished']}"
        verdict = row["loadgen"]["verdict"] if row["loadgen"] else "none"
        agree = f"{both['agree']} of {both['figures']}" if both["figures"] else ""
        rows.append(
            f"| {row['scenario']}{load} | {row['outcome']} | {verdict} | {queries} "
            f"| {summary['requests_per_s']:.1f} | {summary['system_tokens_per_s']:,.0f} "
            f"| {_percentiles(summary['ttft_s'])} | {_percentiles(summary['tpot_s'])} | {agree} |"
        )
    limits = found["profile"]
    rows += [
        "",
        f"{found['scenarios'][0]['label']}. Limits of {limits['name']}: TTFT "
        f"{limits['ttft_s'] * 1e3:g} ms, TPOT {limits['tpot_s'] * 1e3:g} ms. A percentile without "
        "enough queries is left out (`-`).",
        "",
        "| cheat | caught by |",
        "| --- | --- |",
        *(
            f"| {row['cheat']} | {'; '.join(row['caught_by']) or 'nothing'} |"
            for row in found["cheats"]
        ),
        "",
        _measured(found),
    ]
    return "\n".join(rows)


def _percentiles(distribution: dict[str, Any]) -> str:
    values = (distribution[name] for name in ("p50", "p90", "p99"))
    return " / ".join("-" if value is None else _number(value * 1e3) for value in values)


def _median(figure: dict[str, Any], scale: float = 1.0) -> str:
    return f"{_number(figure['median'] * scale)} ± {_number(figure['deviation'] * scale)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def _measured(found: dict[str, Any]) -> str:
    return (
        f"Measured on {found['date']} at {found['commit'][:8]}: {found['machine']}, "
        f"{found['threads']} thread, LoadGen {found['versions']['mlcommons_loadgen']}. "
        f"`{found['command']}`"
    )
