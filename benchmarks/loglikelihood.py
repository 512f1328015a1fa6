"""How fast log-likelihoods come, and how many tokens they take, against the harness's `hf`.

    python benchmarks/loglikelihood.py --data DATA --models MODELS [--row mmlu]

Writes results/loglikelihood_cpu.json (_cuda with --device cuda); the last
line on stdout is the JSON document. Beside the
rows: where the time goes, planning for all of MMLU, growth with the number of requests, bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pairs as paired
import tokens
import torch
from environment import RESULTS, write_result
from workloads import LOGLIKELIHOOD, mmlu_everything

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from workloads import Workload

BATCHES = {"cpu": (1, 4, 8), "cuda": (1, 4, 8, 16, 32)}


def encoded(ours: Any, workload: Workload, requests: Sequence[Any]) -> list[Any]:
    """Return the score requests that the adapter makes of the harness's."""
    from lm_eval_exl2.fitting import fit_window

    if workload.kind == "loglikelihood":
        pairs = ours.encoder.encode_pairs(requests, disable_tqdm=True)
    else:
        cuts = [ours.encoder.encode_windows(r.args[0], ours.max_length) for r in requests]
        pairs = [window for cut in cuts for window in cut]
    return fit_window(pairs, ours.max_length).wanted


def count_tokens(scored: Sequence[Any]) -> dict[str, int]:
    """Count the positions that different ways of sharing must forward."""
    inputs = [[*r.context_ids, *r.target_ids[:-1]] for r in scored]
    contexts = {tuple(r.context_ids) for r in scored}
    return {
        "tokens_requested": sum(map(len, inputs)),
        "tokens_peer": sum(map(len, {tuple(ids) for ids in inputs})),
        # mlx-lm's evaluate.py forwards an identical context once, then each continuation.
        "tokens_shared_contexts": sum(map(len, contexts))
        + sum(len(r.target_ids) - 1 for r in scored),
        "tokens_minimum": tokens.count_prefixes(inputs),
    }


class Stopwatch:
    """Seconds spent inside some functions."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time added under a name."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                took = time.perf_counter() - begin
                self.seconds[name] = self.seconds.get(name, 0.0) + took

        return timed

    @contextmanager
    def watching(self, ours: Any) -> Iterator[None]:
        """Watch tokenization, layers and head of an adapter."""
        from lm_eval_exl2.engines import tree_engine

        head = tree_engine.score_targets
        ours.encoder.encode_pairs = self.around("tokenization", ours.encoder.encode_pairs)
        ours.encoder.encode_windows = self.around("tokenization", ours.encoder.encode_windows)
        ours.engine.forward = self.around("layers", ours.engine.forward)
        tree_engine.score_targets = self.around("head", head)
        try:
            yield
        finally:
            del ours.encoder.encode_pairs, ours.encoder.encode_windows, ours.engine.forward
            tree_engine.score_targets = head


def where_time_goes(ours: Any, peer: Any, workload: Workload, requests: Any) -> dict[str, float]:
    """Return seconds by part of one run, and what the peer's tokenization takes."""
    watch = Stopwatch()
    with watch.watching(ours):
        _, total = paired.ask(ours, workload.kind, requests)
    parts = watch.seconds | {"other": total - sum(watch.seconds.values())}
    parts["other_share"] = parts["other"] / (total - parts["tokenization"])
    begin = time.perf_counter()
    for request in requests:
        if workload.kind == "loglikelihood":
            peer._encode_pair(*request.args)
        else:
            peer.tok_encode(request.args[0])
    parts["peer_tokenization"] = time.perf_counter() - begin
    return {name: round(value, 4) for name, value in parts.items()}


def _value(answer: Any) -> float:
    return answer[0] if isinstance(answer, tuple) else answer


def differences(one: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
    """Compare two lists of answers."""
    found = [abs(_value(a) - _value(b)) for a, b in zip(one, other, strict=True)]
    flags = [a[1] != b[1] for a, b in zip(one, other, strict=True) if isinstance(a, tuple)]
    return {
        "largest_difference": max(found),
        "mean_difference": statistics.fmean(found),
        "greedy_flags_differ": sum(flags),
    }


def measure_row(name: str, args: argparse.Namespace, ours: Any, peer: Any) -> dict[str, Any]:
    """Measure one workload."""
    workload = LOGLIKELIHOOD[name]
    requests = workload.make(args.data, args.size or workload.size)
    print(f"{workload.title}: {len(requests)} requests", flush=True)
    batches = paired.best_batch(peer, workload, requests, BATCHES[args.device])
    peer.batch_size_per_gpu = min(batches, key=batches.__getitem__)
    counted = count_tokens(encoded(ours, workload, requests))
    timing = paired.alternate(ours, peer, workload, requests, args.pairs)
    before = ours.engine.counts.forwarded
    parts = where_time_goes(ours, peer, workload, requests)
    return {
        "workload": name,
        "title": workload.title,
        "requests": len(requests),
        **counted,
        "tokens_forwarded": ours.engine.counts.forwarded - before,
        **timing.summary(),
        "peer_batch_size": peer.batch_size_per_gpu,
        "peer_seconds_by_batch_size": batches,
        **differences(timing.our_answers, timing.peer_answers),
        "parts": parts,
    }


def measure_planning(
    args: argparse.Namespace, _models: Any, ours: Any, peer: Any
) -> dict[str, Any]:
    """Time everything but the model for all MMLU questions there are."""
    from lm_eval_exl2.plan import Budget, Targets, next_chunk
    from lm_eval_exl2.prefix_tree import build_tree
    from lm_eval_exl2.tiles import cut_tiles

    requests = mmlu_everything(args.data)
    print(f"planning: {len(requests)} requests", flush=True)
    begin = time.perf_counter()
    scored = encoded(ours, LOGLIKELIHOOD["mmlu"], requests)
    tokenized = time.perf_counter()
    tree, _ = build_tree([[*r.context_ids, *r.target_ids[:-1]] for r in scored], [1] * len(scored))
    built = time.perf_counter()
    budget, path, chunks = Budget(ours.engine.info.max_batch_tokens), [], 0
    start = 0
    while start < len(tree):
        chunk = next_chunk(tree, Targets([], []), start, budget)
        kept_ends = [tree.ends[place] for place in path]
        cut_tiles(kept_ends, start, chunk.depths, chunk.ends, ours.engine.tile_cost)
        path = [p for p in [*path, *range(start, chunk.stop)] if tree.ends[p] > chunk.stop]
        start, chunks = chunk.stop, chunks + 1
    planned = time.perf_counter()
    for request in requests:
        peer._encode_pair(*request.args)
    return {
        "requests": len(requests),
        "tokens_requested": sum(len(r.context_ids) + len(r.target_ids) - 1 for r in scored),
        "tokens_minimum": len(tree),
        "chunks": chunks,
        "tokenization_seconds": round(tokenized - begin, 3),
        "peer_tokenization_seconds": round(time.perf_counter() - planned, 3),
        "tree_seconds": round(built - tokenized, 3),
        "plan_seconds": round(planned - built, 3),
    }


def measure_growth(args: argparse.Namespace, _models: Any, ours: Any, _peer: Any) -> dict[str, Any]:
    """Time HellaSwag and a tenth of its documents, alternating."""
    workload = LOGLIKELIHOOD["hellaswag"]
    every = workload.make(args.data, args.size or workload.size)
    some = every[: len(every) // 10]
    counted = [len_of(ours, workload, requests) for requests in (some, every)]
    seconds: list[list[float]] = [[], []]
    for _ in range(args.pairs):
        for kept, requests in zip(seconds, (some, every), strict=True):
            kept.append(paired.ask(ours, workload.kind, requests)[1])
    ratios = [large / small for small, large in zip(*seconds, strict=True)]
    return {
        "requests": [len(some), len(every)],
        "tokens_forwarded": counted,
        "seconds": [round(statistics.median(kept), 3) for kept in seconds],
        "seconds_ratio": round(statistics.median(ratios), 3),
        "tokens_ratio": round(counted[1] / counted[0], 3),
    }


def len_of(ours: Any, workload: Workload, requests: Sequence[Any]) -> int:
    """Return the positions some requests take at least."""
    return count_tokens(encoded(ours, workload, requests))["tokens_minimum"]


def measure_bfloat16(
    args: argparse.Namespace, models: Any, ours: Any, _peer: Any
) -> list[dict[str, Any]]:
    """Compare bfloat16 with float32, both ours: speed and what it does to scores."""
    short = paired.load_ours(models, dtype="bfloat16")
    rows: list[dict[str, Any]] = []
    for name in ("many_answers", "hellaswag"):
        workload = LOGLIKELIHOOD[name]
        requests = workload.make(args.data, args.size or min(100, workload.size))
        timing = paired.alternate(short, ours, workload, requests, args.pairs)
        found = {"workload": name, "title": workload.title, **timing.summary()}
        rows.append(found | differences(timing.our_answers, timing.peer_answers))
    return rows


def measure_plan_cost(
    args: argparse.Namespace, _models: Any, ours: Any, _peer: Any
) -> list[dict[str, Any]]:
    """Time other plans than the built-in one: another budget, dearer and cheaper calls."""
    from lm_eval_exl2.plan import Budget
    from lm_eval_exl2.tiles import TileCost

    built_in = ours.engine.tile_cost
    settings: list[dict[str, Any]] = [
        {"call": factor, "tokens": 2048} for factor in (0.1, 0.3, 1, 3, 10)
    ]
    settings += [{"call": 1, "tokens": tokens} for tokens in (512, 1024, 4096)]
    rows: list[dict[str, Any]] = []
    for name, size in (("mmlu", 10), ("hellaswag", 60)):
        workload = LOGLIKELIHOOD[name]
        requests = workload.make(args.data, args.size or size)
        seconds: list[list[float]] = [[] for _ in settings]
        for _ in range(args.pairs):
            for kept, setting in zip(seconds, settings, strict=True):
                ours.engine.tile_cost = TileCost(
                    built_in.call * setting["call"], built_in.pair, built_in.merge
                )
                ours.computer.budget = Budget(setting["tokens"])
                kept.append(paired.ask(ours, workload.kind, requests)[1])
        default = seconds[settings.index({"call": 1, "tokens": 2048})]
        for kept, setting in zip(seconds, settings, strict=True):
            ratios = [one / other for one, other in zip(kept, default, strict=True)]
            ratio = round(statistics.median(ratios), 3)
            row = {"workload": name, **setting, "runs": args.pairs, "seconds_ratio": ratio}
            rows.append(row)
    ours.engine.tile_cost = built_in
    ours.computer.budget = Budget(ours.engine.info.max_batch_tokens)
    return rows


def measure_profile(
    args: argparse.Namespace, _models: Any, ours: Any, _peer: Any
) -> dict[str, Any]:
    """Say where rolling WikiText-2 spends its time, and how fast a bare matrix product is here."""
    from torch.profiler import ProfilerActivity, profile

    workload = LOGLIKELIHOOD["wikitext"]
    requests = workload.make(args.data, args.size or 3)
    before = ours.engine.counts.forwarded
    _, unwatched = paired.ask(ours, workload.kind, requests)
    forwarded = ours.engine.counts.forwarded - before
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        _, total = paired.ask(ours, workload.kind, requests)
    spent = {"matrix products": 0.0, "attention kernel": 0.0}
    linear = [each for each in ours.engine.model.modules() if isinstance(each, torch.nn.Linear)]
    # Every position is scored here, so each passes through every matrix, the head's included.
    operations = 2 * forwarded * sum(each.weight.numel() for each in linear)
    for event in profiled.key_averages():
        if event.key in ("aten::mm", "aten::addmm", "aten::bmm"):
            spent["matrix products"] += event.self_cpu_time_total / 1e6
        elif "scaled_dot_product" in event.key:
            spent["attention kernel"] += event.self_cpu_time_total / 1e6
    return {
        "workload": workload.title,
        "requests": len(requests),
        "seconds": round(unwatched, 3),
        "seconds_profiled": round(total, 3),
        "shares": {name: round(seconds / total, 3) for name, seconds in spent.items()},
        "products_gflops": round(operations / spent["matrix products"] / 1e9, 1),
        "bare_product_gflops": bare_products(ours),
    }


def bare_products(ours: Any) -> dict[str, float]:
    """Return GFLOP/s of single products with the model's own shapes, the best of 20 each."""
    found: dict[str, float] = {}
    rows = ours.engine.info.max_batch_tokens
    layer = ours.engine.model.model.layers[0]
    for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"):
        linear = layer.get_submodule(name)
        hidden = torch.randn(rows, linear.in_features)
        seconds = []
        for _ in range(20):
            begin = time.perf_counter()
            linear(hidden)
            seconds.append(time.perf_counter() - begin)
        operations = 2 * rows * linear.in_features * linear.out_features
        found[f"{rows} x {linear.in_features} x {linear.out_features}"] = round(
            operations / min(seconds) / 1e9, 1
        )
    return found


EXTRA = {
    "profile": measure_profile,
    "plan_cost": measure_plan_cost,
    "planning": measure_planning,
    "growth": measure_growth,
    "bfloat16": measure_bfloat16,
}


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    paired.add_arguments(parser, [*LOGLIKELIHOOD, *EXTRA])
    args = parser.parse_args()
    models = paired.prepare(args)
    result = paired.header(args, "loglikelihood.py")
    ours, peer = paired.load_ours(models), paired.load_peer(models)
    rows = args.row or [*LOGLIKELIHOOD, *EXTRA]
    result["rows"] = [measure_row(name, args, ours, peer) for name in rows if name not in EXTRA]
    result |= {name: EXTRA[name](args, models, ours, peer) for name in rows if name in EXTRA}
    path = (args.output or RESULTS) / f"loglikelihood_{args.device}.json"
    write_result(path, paired.joined(path, result, LOGLIKELIHOOD))
    if any(row["tokens_forwarded"] != row["tokens_minimum"] for row in result["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
