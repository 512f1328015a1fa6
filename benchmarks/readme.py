"""Write the READMEs' generated parts from the code and the committed results, or check them.

    python benchmarks/readme.py            # write
    python benchmarks/readme.py --check    # exit 1 if README.md does not agree

A generated part stands between `<!-- name -->` and `<!-- /name -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from readme_bench import bench_table, prompt_bench_table
from readme_checks import (
    anchors_text,
    bench_accuracy_table,
    coverage_table,
    decisions_table,
    divergence_table,
    million,
    planning_text,
    read_result,
    report_table,
    resume_table,
    sandbox_table,
    wikitext2_table,
)
from readme_replicas import faults_table, replicas_table

from lm_eval_exl2.checkpoint.architectures import ARCHITECTURES
from lm_eval_exl2.options import ALIASES, IGNORED, REFUSED, Options

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results"


def options_table() -> str:
    """Return the table of model arguments."""
    rows = ["| argument | default | meaning |", "| --- | --- | --- |"]
    for option in fields(Options):
        default = None if option.default is MISSING else option.default
        shown = "" if default in ("", None) else f"`{default}`"
        rows.append(f"| `{option.name}` | {shown} | {option.metadata['text']} |")
    aliases = ", ".join(f"`{name}` (`{target}`)" for name, target in ALIASES.items())
    ignored = ", ".join(f"`{name}`" for name in IGNORED)
    refused = ", ".join(f"`{name}`" for name in REFUSED)
    return "\n".join(
        [
            *rows,
            "",
            f"Other names: {aliases}. Accepted without effect, since no score can change: "
            f"{ignored}. Refused with the reason: {refused}. Any other name is an error that "
            "names the nearest known one.",
        ]
    )


def architectures_list() -> str:
    """Return the supported architectures."""
    return ", ".join(f"`{name}`" for name in ARCHITECTURES)


def parity_table() -> str:
    """Return what the parity measurement found."""
    found: dict[str, Any] = json.loads((RESULTS / "parity.json").read_text())
    rows = [
        "| check | compared | disagreements | largest difference, as a share of the tolerance |"
    ]
    rows.append("| --- | ---: | ---: | ---: |")
    for name, part in found["checks"].items():
        share = part.get("largest_share_of_tolerance")
        shown = "" if share is None else f"{share:.0%}"
        rows.append(f"| {name} | {part['compared']:,} | {part['disagreements']} | {shown} |")
    rows += [
        "",
        "A log-likelihood L may differ by max(1e-4, 1e-6 · |L|); accuracies, greedy flags and text "
        "must be equal.",
    ]
    rows += ["", f"Measured on {found['date']} at {found['commit'][:8]}: `{found['command']}`."]
    return "\n".join(rows)


def tokens_sentence() -> str:
    """Return how many positions real requests take, by three ways of computing them."""
    found: dict[str, Any] = json.loads((RESULTS / "parity.json").read_text())
    part = next(part for name, part in found["checks"].items() if "MMLU" in name)
    ways = [f"{part[key] / 1e6:.1f} M" for key in ("forwarded", "hf_logits_cache", "naive")]
    return (
        f"For MMLU {part['shots']}-shot ({part['tasks']} subjects, {part['requests']:,} requests, "
        f"a tokenizer of 512 entries) it forwards {ways[0]} token positions; the harness's `hf` "
        f"model, which merges equal inputs, takes {ways[1]}, one request at a time {ways[2]}."
    )


def gpu_table() -> str:
    """Return what the GPU checks found on each card they ran on, or that they ran on none."""
    runs: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in sorted(RESULTS.glob("gpu_*.json"))
    ]
    if not runs:
        return (
            "**Not yet run on a GPU.** What is said here about kernels on a card comes from "
            "reading exllamav2 0.3.2 and from running its Python over simulated kernels; no speed, "
            "memory or repeat rate is claimed. `benchmarks/gpu_check.sh` runs and measures it all."
        )
    rows = ["| card, date, commit | check | outcome |", "| --- | --- | --- |"]
    for run in runs:
        where = f"{run['card']}, {run['date']}, {run['commit'][:8]}"
        for name, check in run["checks"].items():
            said = {k: v for k, v in check.items() if k not in ("outcome", "seconds")}
            facts = "; ".join(f"{k.replace('_', ' ')} {_shown(v)}" for k, v in said.items())
            rows.append(f"| {where} | {name} | {check['outcome']}{': ' * bool(facts)}{facts} |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(part)}" for name, part in value.items())
    return str(value)


def _measured(found: dict[str, Any]) -> str:
    """Return where a result comes from."""
    dates = sorted({row.get("date", found["date"]) for row in found["rows"]})
    commits = sorted({row.get("commit", found["commit"])[:8] for row in found["rows"]})
    commands = sorted({row.get("command", found["command"]) for row in found["rows"]})
    return (
        f"Measured on {', '.join(dates)} at {', '.join(commits)}: {found['machine']}, "
        f"{found['threads']} threads, {found['dtype']}, torch {found['versions']['torch']}, "
        f"lm_eval {found['versions']['lm_eval']}. `{'`, `'.join(commands)}`"
    )


def speed_table() -> str:
    """Return how much faster than `hf` each workload is."""
    rows = [
        "| workload | requests | tokens: `hf` | exl2 | seconds: `hf` | exl2 | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    notes: list[str] = []
    for name in ("loglikelihood_cpu.json", "generation_cpu.json"):
        found = read_result(name)
        if not found:
            continue
        for row in found["rows"]:
            peer = row.get("tokens_peer", row["tokens_requested"])
            rows.append(
                f"| {row['title']} | {row['requests']:,} | {million(peer)} | "
                f"{million(row['tokens_forwarded'])} | {row['peer_seconds']:.1f} | "
                f"{row['seconds']:.1f} | **{row['ratio']:.2f}** |"
            )
        notes.append(_measured(found))
    return (
        "\n".join([*rows, "", *(f"{note}  " for note in notes)]) if notes else "Not measured yet."
    )


def loglikelihood_table() -> str:
    """Return tokens and seconds of the log-likelihood rows, every pair shown."""
    found = read_result("loglikelihood_cpu.json")
    if not found:
        return "Not measured yet."
    rows = [
        "| row | one by one | `hf` | identical contexts shared | tree, least | forwarded |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        keys = ("requested", "peer", "shared_contexts", "minimum", "forwarded")
        counts = " | ".join(f"{row[f'tokens_{key}']:,}" for key in keys)
        rows.append(f"| {row['title']} | {counts} |")
    rows += ["", *_pairs_table(found)]
    rows += [
        "",
        "| row | largest difference | greedy flags that differ | tokenization | `hf`'s | layers "
        "| head | everything else |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        parts = row["parts"]
        rows.append(
            f"| {row['title']} | {row['largest_difference']:.1e} | {row['greedy_flags_differ']} | "
            f"{parts['tokenization']:.2f} s | {parts['peer_tokenization']:.2f} s | "
            f"{parts['layers']:.2f} s | {parts['head']:.2f} s | {parts['other']:.2f} s "
            f"({parts['other_share']:.1%}) |"
        )
    return "\n".join([*rows, "", _measured(found)])


def _pairs_table(found: dict[str, Any]) -> list[str]:
    rows = [
        "| row | ratio, median | pairs (seconds exl2 / `hf`) | `hf` batch size |",
        "| --- | ---: | --- | ---: |",
    ]
    for row in found["rows"]:
        pairs = ", ".join(f"{ours:.1f} / {peer:.1f}" for ours, peer in row["pairs"])
        rows.append(
            f"| {row['title']} | **{row['ratio']:.2f}** | {pairs} | {row['peer_batch_size']} |"
        )
    return rows


def generation_table() -> str:
    """Return tokens and seconds of generation."""
    found = read_result("generation_cpu.json")
    if not found:
        return "Not measured yet."
    rows = _pairs_table(found)
    for row in found["rows"]:
        rows += [
            "",
            f"{row['title']}: {row['requests']} requests, {row['tokens_produced']:,} tokens "
            f"produced; prompt positions forwarded {row['prompt_tokens_forwarded']:,}, least "
            f"{row['prompt_tokens_minimum']:,}; texts equal to `hf`'s: {row['texts_equal']} of "
            f"{row['requests']}.",
        ]
    return "\n".join([*rows, "", _measured(found)])


def load_table() -> str:
    """Return seconds and memory of loading."""
    found = read_result("load_cpu.json")
    if not found:
        return "Not measured yet."
    rows = [
        "| | load | memory loaded | while loading | scoring adds | bound of the formula |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        bound = f"{row['bound_mib']:,.0f} MiB" if "bound_mib" in row else ""
        rows.append(
            f"| {row['title']} | {row['load_seconds']:.1f} s | {row['loaded_mib']:,.0f} MiB | "
            f"{row['load_peak_mib']:,.0f} MiB | {row['score_mib']:,.0f} MiB | {bound} |"
        )
    return "\n".join([*rows, "", _measured(found)])


PARTS = {
    README: {
        "tokens": tokens_sentence,
        "speed": speed_table,
        "options": options_table,
        "architectures": architectures_list,
        "parity": parity_table,
        "gpu": gpu_table,
        "report": report_table,
        "prompt bench": prompt_bench_table,
    },
    ROOT / "benchmarks" / "README.md": {
        "loglikelihood": loglikelihood_table,
        "resume": resume_table,
        "sandbox": sandbox_table,
        "wikitext2": wikitext2_table,
        "anchors": anchors_text,
        "coverage": coverage_table,
        "decisions": decisions_table,
        "divergence": divergence_table,
        "bench_accuracy": bench_accuracy_table,
        "planning": planning_text,
        "generation": generation_table,
        "load": load_table,
        "prompt bench": prompt_bench_table,
        "bench": bench_table,
        "replicas": replicas_table,
        "faults": faults_table,
    },
}


def rendered(path: Path) -> str:
    """Return a file with every generated part renewed."""
    text = path.read_text()
    for name, make in PARTS[path].items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{path.name} has no part <!-- {name} -->")
        start, end = (f"<!-- {name} -->\n", f"<!-- /{name} -->")
        text = pattern.sub("".join([start, make().replace("\\", r"\\"), "\n", end]), text)
    return text


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for path in PARTS:
        after = rendered(path)
        if not args.check:
            path.write_text(after)
        elif path.read_text() != after:
            where = path.relative_to(ROOT)
            print(f"{where} does not agree with code and results: run benchmarks/readme.py")
            sys.exit(1)


if __name__ == "__main__":
    main()
