"""Everything that must agree exactly, measured in one run: writes results/parity.json.

    python benchmarks/parity.py [--golden FILE] [--reference FILE --models DIR --data DIR]

Without arguments: random matrices against a scalar decoder, random requests against the
harness's own `hf` model, and damaged copies of the demo checkpoint. With real data where you have
it: golden matrices, reference scores of the `hf` model, and the token count of MMLU 5-shot.
The last line on stdout is the JSON document.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import check_decode
import damage
import differential
import reference
import tokens
from environment import ROOT, environment, write_result

RESULT = Path(__file__).parent / "results" / "parity.json"


def command(args: argparse.Namespace) -> str:
    """Return the command that was run, paths replaced by placeholders."""
    words = ["python benchmarks/parity.py"]
    for name in ("golden", "reference", "models", "data"):
        if getattr(args, name):
            words.append(f"--{name} {name.upper()}")
    return " ".join(words)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run every check that the arguments allow."""
    where = environment()  # before anything runs: what is measured is this commit
    decoded = check_decode.measure(golden=args.golden, random_count=args.random)
    compared = differential.measure(count=args.requests, seed=0)
    damaged = damage.measure(checkpoint=args.damage, count=args.damaged, seed=0)
    checks: dict[str, dict[str, Any]] = {
        "matrices, bit for bit": {
            "compared": decoded["matrices_decoded"],
            "disagreements": decoded["mismatches"],
        },
        "random requests against `hf`": {
            "compared": compared["requests_compared"],
            "disagreements": compared["disagreements"],
            "largest_difference": compared["largest_loglikelihood_difference"],
            "largest_share_of_tolerance": compared["largest_share_of_tolerance"],
        },
        "damaged checkpoints (crashes)": {
            "compared": damaged["damaged_checkpoints_read"],
            "disagreements": damaged["crashes"],
        },
    }
    if args.reference:
        scores = reference.measure(args.reference, args.models, args.data, ["1", "8", "auto"])
        checks["benchmark requests against `hf`, batch size 1, 8, auto"] = {
            "compared": scores["requests"],
            "disagreements": scores["disagreements"],
            "largest_difference": scores["largest_difference"],
            "largest_share_of_tolerance": scores["largest_share"],
        }
    if args.data and args.models:
        counted = tokens.measure(
            tokens.mmlu_tasks(args.data), 5, args.models / "stories260K", args.data
        )
        checks["tokens forwarded, MMLU 5-shot, against distinct prefixes"] = {
            "compared": counted["forwarded"],
            "disagreements": abs(counted["forwarded"] - counted["distinct_prefixes"]),
            **counted,
        }
    against_hf = [part for name, part in checks.items() if "against `hf`" in name]
    return {
        **where,
        "command": command(args),
        "requests_compared": sum(part["compared"] for part in against_hf),
        "disagreements": sum(part["disagreements"] for part in against_hf),
        "largest_loglikelihood_difference": max(p["largest_difference"] for p in against_hf),
        "matrices_decoded": decoded["matrices_decoded"],
        "mismatches": decoded["mismatches"],
        "damaged_checkpoints_read": damaged["damaged_checkpoints_read"],
        "crashes": damaged["crashes"],
        "checks": checks,
    }


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("golden", "reference", "models", "data"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve())
    demo = ROOT / "lm_eval_exl2" / "demo" / "checkpoints"
    parser.add_argument("--damage", type=Path, default=next(demo.glob("exl2-*"), None))
    parser.add_argument("--random", type=int, default=300, help="random matrices")
    parser.add_argument("--requests", type=int, default=2000, help="random requests")
    parser.add_argument("--damaged", type=int, default=2000, help="damaged checkpoints")
    result = measure(parser.parse_args())
    write_result(RESULT, result)
    if result["disagreements"] or result["mismatches"] or result["crashes"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
