"""Write the README's generated parts from the code and the committed results, or check them.

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
    rows += ["", f"Measured on {found['date']}: `{found['command']}`."]
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


PARTS = {
    "tokens": tokens_sentence,
    "options": options_table,
    "architectures": architectures_list,
    "parity": parity_table,
    "gpu": gpu_table,
}


def rendered(text: str) -> str:
    """Return the README with every generated part renewed."""
    for name, make in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no part <!-- {name} -->")
        start, end = (f"<!-- {name} -->\n", f"<!-- /{name} -->")
        text = pattern.sub("".join([start, make().replace("\\", r"\\"), "\n", end]), text)
    return text


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    before = README.read_text()
    after = rendered(before)
    if args.check:
        if before != after:
            print("README.md does not agree with code and results: run benchmarks/readme.py")
            sys.exit(1)
        return
    README.write_text(after)


if __name__ == "__main__":
    main()
