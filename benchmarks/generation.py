"""How fast text is generated behind shared prompts, against the harness's `hf`.

    python benchmarks/generation.py --data DATA --models MODELS

Writes results/generation_cpu.json (_cuda with --device cuda); the last
line on stdout is the JSON document.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import pairs as paired
import tokens
from environment import RESULTS, write_result
from workloads import GENERATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BATCHES = {"cpu": (1, 4, 8, 16), "cuda": (1, 4, 8, 16)}


class Counter:
    """Counts the tokens that an engine produces."""

    def __init__(self, engine: Any) -> None:
        """Stand before the engine's `generate`."""
        self.produced = self.requests = 0
        self._generate = engine.generate
        engine.generate = self

    def __call__(self, requests: Iterable[Any], is_finished: Any) -> Iterator[Any]:
        """Generate and count."""
        for token in self._generate(requests, is_finished):
            self.produced += 1
            self.requests += token.is_last
            yield token


def measure_row(name: str, args: argparse.Namespace, ours: Any, peer: Any) -> dict[str, Any]:
    """Measure one workload."""
    workload = GENERATION[name]
    requests = workload.make(args.data, args.size or workload.size)
    print(f"{workload.title}: {len(requests)} requests", flush=True)
    batches = paired.best_batch(peer, workload, requests, BATCHES[args.device])
    peer.batch_size_per_gpu = min(batches, key=batches.__getitem__)
    prompts = [ours.encoder.encode_prompt(request.args[0]) for request in requests]
    timing = paired.alternate(ours, peer, workload, requests, args.pairs)
    before, counter = ours.engine.counts.forwarded, Counter(ours.engine)
    paired.ask(ours, workload.kind, requests)
    forwarded = ours.engine.counts.forwarded - before
    # The last token of a text is never forwarded.
    decoded = counter.produced - counter.requests
    least = tokens.count_prefixes(prompts)
    same = sum(a == b for a, b in zip(timing.our_answers, timing.peer_answers, strict=True))
    return {
        "workload": name,
        "title": workload.title,
        "requests": len(requests),
        "tokens_requested": sum(map(len, prompts)) + decoded,
        "tokens_produced": counter.produced,
        "tokens_forwarded": forwarded,
        "tokens_minimum": least + decoded,
        "prompt_tokens_forwarded": forwarded - decoded,
        "prompt_tokens_minimum": least,
        **timing.summary(),
        "peer_batch_size": peer.batch_size_per_gpu,
        "peer_seconds_by_batch_size": batches,
        "texts_equal": same,
    }


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    paired.add_arguments(parser, GENERATION)
    args = parser.parse_args()
    models = paired.prepare(args)
    result = paired.header(args, "generation.py")
    ours, peer = paired.load_ours(models), paired.load_peer(models)
    result["rows"] = [measure_row(name, args, ours, peer) for name in args.row or GENERATION]
    path = (args.output or RESULTS) / f"generation_{args.device}.json"
    write_result(path, paired.joined(path, result, GENERATION))
    if any(row["tokens_forwarded"] != row["tokens_minimum"] for row in result["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
