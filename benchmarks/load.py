"""How long loading takes and how much memory loading and scoring need, against `hf`.

    python benchmarks/load.py --data DATA --models MODELS

Every measurement is a process of its own: imports are done before the clock starts, and memory
is what the system counts for the process. Writes results/load_cpu.json; the last line on stdout
is the JSON document. `bound` is the formula that the README of the benchmarks explains.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pairs as paired
from environment import RESULTS, write_result
from workloads import LOGLIKELIHOOD

ROWS = {
    "decoded": "exl2, weights decoded at load",
    "packed": "exl2, weights kept packed (weight_memory=packed)",
    "hf": "hf, decoded float16 files, float32 in memory, batch size 1",
    "hf_8": "the same, batch size 8",
}
MEBIBYTE = 1 << 20


def resident() -> float:
    """Return the memory of this process now, in MiB."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def peak() -> float:
    """Return the most memory this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bound(config: Any, budget: int, longest: int, requested: int) -> float:
    """Return the most memory that scoring may take beside the weights, in MiB.

    Args:
        config: Of the model.
        budget: Tokens per forward.
        longest: Tokens of the longest request.
        requested: Tokens of all requests.
    """
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    keys_and_values = 2 * config.num_hidden_layers * heads * 4
    activations = (8 * config.hidden_size + 3 * config.intermediate_size) * 4
    # Buffers grow by half; logits come in 8 MiB pieces; three lists of numbers per request.
    held = 1.5 * (budget + longest) * keys_and_values + budget * activations
    return (held + 24 * requested) / MEBIBYTE + 32


def child(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Load and score in this process."""
    models = paired.prepare(args)
    import lm_eval.models.huggingface  # noqa: F401

    from lm_eval_exl2.lm import Exl2LM  # noqa: F401

    requests = LOGLIKELIHOOD["mmlu"].make(args.data, args.size or 2)
    before = resident()
    begin = time.perf_counter()
    if name in ("decoded", "packed"):
        model = paired.load_ours(models, weight_memory=name)
    else:
        model = paired.load_peer(models)
        model.batch_size_per_gpu = 8 if name == "hf_8" else 1
    found: dict[str, float] = {"load_seconds": time.perf_counter() - begin}
    found["load_peak_mib"] = peak() - before
    loaded = resident()
    found["loaded_mib"] = loaded - before
    answers, seconds = paired.ask(model, "loglikelihood", requests)
    found["score_seconds"] = seconds
    # A peak that loading has set already hides what scoring takes.
    found["score_mib"] = max(0.0, peak() - loaded)
    if name == "decoded":
        import transformers
        from loglikelihood import encoded

        scored = encoded(model, LOGLIKELIHOOD["mmlu"], requests)
        lengths = [len(r.context_ids) + len(r.target_ids) - 1 for r in scored]
        config = transformers.AutoConfig.from_pretrained(models.decoded)
        budget = model.engine.info.max_batch_tokens
        found["bound_mib"] = bound(config, budget, max(lengths), sum(lengths))
    found["requests"] = len(answers)
    return found


def run_child(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Measure in a process of its own."""
    words = [sys.executable, __file__, "--data", str(args.data), "--models", str(args.models)]
    words += ["--threads", str(args.threads), "--child", name]
    words += ["--size", str(args.size)] if args.size else []
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    paired.add_arguments(parser, ROWS)
    parser.add_argument("--child", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args)))
        return
    paired.prepare(args)
    result = paired.header(args, "load.py")
    rows = args.row or list(ROWS)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for number in range(args.pairs):
        for name in rows:
            runs[name].append(run_child(name, args))
            print(number + 1, name, runs[name][-1], flush=True)
    result["rows"] = [
        {
            "workload": name,
            "title": ROWS[name],
            **{key: round(statistics.median(run[key] for run in found), 3) for key in found[0]},
        }
        for name, found in runs.items()
    ]
    path = (args.output or RESULTS) / f"load_{args.device}.json"
    write_result(path, paired.joined(path, result, ROWS))


if __name__ == "__main__":
    main()
