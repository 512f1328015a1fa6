"""Ours and a peer, alternating on the same requests in one process: what the speed tables rest on.

The peer is the harness's own `hf` model on the decoded weights of the same checkpoint, at the
batch size that suits it best. Times are whole calls of the LM's method, tokenization included.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from environment import environment

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from workloads import Workload


class Models(NamedTuple):
    """The two directories that are compared, and where they run."""

    exl2: Path
    decoded: Path
    device: str
    dtype: str


def add_arguments(parser: argparse.ArgumentParser, rows: Iterable[str]) -> None:
    """Add the arguments that the speed benchmarks share."""
    parser.add_argument("--data", type=Path, required=True, help="folder laid out as on the hub")
    parser.add_argument(
        "--models", type=Path, required=True, help="folder for the checkpoints, made if missing"
    )
    parser.add_argument("--row", choices=list(rows), action="append", help="default: all")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for engine exllamav2")
    parser.add_argument("--shape", default="bench-70m", help="of synthetic.py")
    parser.add_argument("--size", type=int, help="documents per row, to try things")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/")


def prepare(args: argparse.Namespace) -> Models:
    """Go offline, set threads, and make the benchmark's checkpoints where they are missing."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    import synthetic
    import torch
    from workloads import training_text

    from lm_eval_exl2.checkpoint.export import dequantize_directory

    torch.set_num_threads(args.threads)
    args.data = args.data.resolve()
    models = Models(
        args.models / args.shape, args.models / f"{args.shape}-decoded", args.device, dtype_on(args)
    )
    if not models.exl2.exists():
        shape = synthetic.SHAPES[args.shape]
        tokenizer = synthetic.train_tokenizer(training_text(args.data), shape.sizes.vocab_size)
        synthetic.write_checkpoint(
            shape,
            models.exl2,
            synthetic.Draw("cpu", 0),
            bits=4.0,
            head_bits=6,
            tokenizer=tokenizer,
        )
    if not models.decoded.exists():
        dequantize_directory(models.exl2, models.decoded)
    return models


def dtype_on(args: argparse.Namespace) -> str:
    """Return what both compute in: float32 on a CPU, float16 on a card."""
    return "float32" if args.device == "cpu" else "float16"


def load_ours(models: Models, **options: Any) -> Any:
    """Load the EXL2 checkpoint; engine and dtype are the defaults of the device."""
    from lm_eval_exl2.lm import Exl2LM

    chosen: dict[str, Any] = {"device": models.device, "disable_tqdm": True} | options
    return Exl2LM(str(models.exl2), **chosen)


def load_peer(models: Models) -> Any:
    """Load the decoded weights with the harness's `hf` model."""
    from lm_eval.models.huggingface import HFLM

    place: dict[str, Any] = {"device": models.device, "dtype": models.dtype}
    return HFLM(pretrained=str(models.decoded), batch_size=1, **place)


def ask(lm: Any, kind: str, requests: Sequence[Any]) -> tuple[list[Any], float]:
    """Return an LM's answers and the seconds they took."""
    begin = time.perf_counter()
    answers = getattr(lm, kind)(requests, disable_tqdm=True)
    return answers, time.perf_counter() - begin


@dataclass(frozen=True)
class Timing:
    """Seconds of alternating runs."""

    ours: list[float]
    peer: list[float]
    our_answers: list[Any]
    peer_answers: list[Any]

    def summary(self) -> dict[str, Any]:
        """Return medians, the median ratio and every pair."""
        ratios = [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]
        return {
            "seconds": round(statistics.median(self.ours), 3),
            "peer_seconds": round(statistics.median(self.peer), 3),
            "ratio": round(statistics.median(ratios), 3),
            "pairs": [
                [round(ours, 3), round(peer, 3)]
                for ours, peer in zip(self.ours, self.peer, strict=True)
            ],
        }


def best_batch(
    peer: Any, workload: Workload, requests: Sequence[Any], sizes: Sequence[int]
) -> dict[int, float]:
    """Return seconds of the peer on some documents, by batch size."""
    every = [list(group) for _, group in itertools.groupby(requests, lambda r: r.args[0])]
    step = max(1, len(every) // 8)
    some = [request for group in every[::step][:8] for request in group]
    if workload.kind == "generate_until":
        some = list(requests[:16])  # neighbours have different lengths
    return {size: _timed_at(peer, workload, some, size) for size in sizes}


def _timed_at(peer: Any, workload: Workload, requests: Sequence[Any], size: int) -> float:
    peer.batch_size_per_gpu = size
    return round(ask(peer, workload.kind, requests)[1], 3)


def alternate(
    ours: Any, peer: Any, workload: Workload, requests: Sequence[Any], pairs: int
) -> Timing:
    """Run both so many times, the one that goes first changing each time."""
    timing = Timing([], [], [], [])
    ask(ours, workload.kind, requests[:4])  # what is only done once
    ask(peer, workload.kind, requests[:1])
    for number in range(pairs):
        order = [(ours, timing.ours, timing.our_answers), (peer, timing.peer, timing.peer_answers)]
        for lm, seconds, kept in order if number % 2 == 0 else reversed(order):
            answers, took = ask(lm, workload.kind, requests)
            seconds.append(took)
            kept[:] = answers
        print(f"  pair {number + 1}: {timing.ours[-1]:.2f} s, peer {timing.peer[-1]:.2f} s")
        sys.stdout.flush()
    return timing


def header(args: argparse.Namespace, script: str) -> dict[str, Any]:
    """Return where a result comes from."""
    words = [f"python benchmarks/{script} --data DATA --models MODELS"]
    words += [f"--pairs {args.pairs}"] if args.pairs != 5 else []
    words += [f"--size {args.size}"] if args.size else []
    if args.device != "cpu":
        words += [f"--device {args.device} --shape {args.shape}"]
    return {
        **environment(),
        "threads": args.threads,
        "checkpoint": args.shape,
        "device": args.device,
        "dtype": dtype_on(args),
        "peer": "lm_eval hf, decoded weights, logits_cache on, its best batch size",
        "command": " ".join(words),
    }


def joined(
    path: Path, result: dict[str, Any], order: Iterable[str], *, key: str = "workload"
) -> dict[str, Any]:
    """Keep what an earlier run measured and this one did not; a row knows its commit and command.

    Args:
        path: The earlier result, if there is one.
        result: The new one, with some rows.
        order: All rows.
        key: What names a row.
    """
    where = {key: result[key] for key in ("date", "commit", "command")}
    rows = {row[key]: row | where for row in result["rows"]}
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows = {row[key]: row for row in kept["rows"]} | rows
    return kept | result | {"rows": [rows[name] for name in order if name in rows]}
