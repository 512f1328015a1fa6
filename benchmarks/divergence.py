"""Is the divergence command right to the last digits? Writes results/divergence.json.

    python benchmarks/divergence.py --text FILE BASELINE CANDIDATE [CANDIDATE ...] [--window 512]

Every candidate against the baseline and the other way round, on the CPU in float32. Each KL is
compared with brute force: a float64 log-softmax of all logits and a plain sum. Once on the very
logits that the engine gave (`same_logits`), and once on those of transformers' own forward
(`transformers`), which shares no attention with ours. Agreement per token means a difference of at
most 1e-7 + 1e-3 x KL, of means 1e-4 of the value. Candidates are expected in the order of
their bits per weight, values that are injected as NaN or infinite to be counted, and a top-K
cache to give a lower bound.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment, write_result

from lm_eval_exl2.divergence.baseline_cache import BaselineCache, measure_cached, write_cache
from lm_eval_exl2.divergence.measure import Layout, choose_layout, engine_source, measure
from lm_eval_exl2.divergence.models import EngineSettings, Model
from lm_eval_exl2.divergence.protocols import PROTOCOLS
from lm_eval_exl2.divergence.run import Settings, run
from lm_eval_exl2.divergence.statistics import summarise
from lm_eval_exl2.divergence.text import Windows, cut_windows, load_text

RESULT = Path(__file__).parent / "results" / "divergence.json"
PROTOCOL = PROTOCOLS["qbench"]
CPU = EngineSettings(device="cpu")
TOP_K = 64


class Recorder:
    """Keeps the logits that an engine's distributions are made from."""

    def __init__(self, engine: Any) -> None:
        """Listen to an engine's output head."""
        self._logits: list[torch.Tensor] = []
        self._head = engine.logits
        engine.logits = self

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Answer as the head does."""
        found = self._head(hidden)
        self._logits.append(found.clone())
        return found

    def taken(self) -> torch.Tensor:
        """Return what was kept since the last call."""
        found, self._logits = torch.cat(self._logits), []
        return found


def brute_force(p_logits: torch.Tensor, q_logits: torch.Tensor, vocabulary: int) -> np.ndarray:
    """KL(p || q) at each position, all in float64 numpy."""
    p, q = (logits[:, :vocabulary].double().numpy() for logits in (p_logits, q_logits))
    p = p - np.log(np.exp(p - p.max(1, keepdims=True)).sum(1, keepdims=True)) - p.max(1)[:, None]
    q = q - np.log(np.exp(q - q.max(1, keepdims=True)).sum(1, keepdims=True)) - q.max(1)[:, None]
    return (np.exp(p) * (p - q)).sum(1)


def agreement(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """How far apart two lists of KL are, in the terms of the tolerance."""
    used = np.abs(found - expected) / (1e-7 + 1e-3 * expected)
    means = float(found.mean()), float(expected.mean())
    return {
        "largest_difference": float(np.abs(found - expected).max()),
        "largest_share_of_tolerance": float(used.max()),
        "mean": means[0],
        "mean_brute_force": means[1],
        "mean_relative_difference": abs(means[0] / means[1] - 1),
        "agree": bool(used.max() <= 1 and abs(means[0] / means[1] - 1) <= 1e-4),
    }


def check(engines: dict[str, Any], names: tuple[str, str], cut: Windows, layout: Layout) -> Any:
    """One direction of one pair."""
    pair = [engines[name] for name in names]
    sources = [engine_source(engine, cut, layout) for engine in pair]
    recorders = [Recorder(engine) for engine in pair]
    same, ours, found = [], [], []
    try:
        for number in range(len(cut.ids)):
            one = Windows(**{**asdict(cut), "ids": [cut.ids[number]]})
            shifted = [lambda _, s=source, n=number: s(n) for source in sources]
            (records,) = measure(one, PROTOCOL, shifted[0], shifted[1:])
            found += [record.kl for record in records]
            same.append(brute_force(*(r.taken() for r in recorders), layout.vocabulary))
    finally:
        for engine in pair:
            del engine.logits
    for ids in cut.ids:
        logits = [engine.naive_logits(ids) for engine in pair]
        ours.append(brute_force(*logits, layout.vocabulary))
    kl = np.concatenate(found)
    return {
        "pair": names,
        "tokens": len(kl),
        "smallest_kl": float(kl.min()),
        "same_logits": agreement(kl, np.concatenate(same)),
        "transformers": agreement(kl, np.concatenate(ours)),
    }


def inject(engines: dict[str, Any], names: tuple[str, str], cut: Windows, layout: Layout) -> Any:
    """NaN and infinities at known places: are they counted, and is the rest unchanged?"""
    baseline, candidate = (engine_source(engines[name], cut, layout) for name in names)
    injected = {(0, 3): math.nan, (0, 17): math.inf, (1, 5): math.nan}

    def damaged(number: int) -> Any:
        first = 0
        for piece in candidate(number):
            changed = piece.clone()
            for (window, place), value in injected.items():
                if window == number and first <= place < first + len(piece):
                    changed[place - first, 1] = value
            first += len(piece)
            yield changed

    (records,) = measure(cut, PROTOCOL, baseline, [damaged])
    (clean,) = measure(cut, PROTOCOL, baseline, [candidate])
    found = summarise(records)
    kept = [r.kl for r in clean]
    for window, place in injected:
        kept[window][place] = math.nan
    expected = np.nanmean(np.concatenate(kept))
    return {
        "injected": len(injected),
        "counted": found.non_finite,
        "mean_of_the_rest_is_unchanged": math.isclose(found.kl.value, expected, rel_tol=1e-12),
    }


def bound(engines: dict[str, Any], names: tuple[str, str], cut: Windows, layout: Layout) -> Any:
    """What a cache of few tokens makes of the same pair."""
    baseline, candidate = (engine_source(engines[name], cut, layout) for name in names)
    (whole,) = measure(cut, PROTOCOL, baseline, [candidate])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "cache"
        write_cache(place, cut, baseline, top_k=TOP_K, key={}, facts={})
        size = sum(file.stat().st_size for file in place.iterdir())
        records = measure_cached(cut, BaselineCache(place, {}), candidate)
    never_above = all((a.kl <= b.kl + 1e-12).all() for a, b in zip(records, whole, strict=True))
    values = summarise(records).kl.value, summarise(whole).kl.value
    return {
        "top_k": TOP_K,
        "cache_bytes": size,
        "logits_in_float16_bytes": 2 * layout.vocabulary * sum(len(r.kl) for r in whole),
        "kl_top_k": values[0],
        "kl": values[1],
        "never_above": never_above,
    }


def main() -> int:
    """Measure and write; exit 1 if something does not agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("baseline", type=Path)
    parser.add_argument("candidates", type=Path, nargs="+", help="most bits first")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rows", type=int, default=20)
    args = parser.parse_args()
    where = environment("numpy", "scipy")
    names = [folder.name for folder in (args.baseline, *args.candidates)]
    models = [Model(str(folder)) for folder in (args.baseline, *args.candidates)]
    with ExitStack() as stack:
        loaded = [stack.enter_context(model.loaded(CPU, args.window)) for model in models]
        engines = dict(zip(names, loaded, strict=True))
        text, tokenizer = load_text(str(args.text)), models[0].tokenizer
        cut = cut_windows(text, tokenizer, PROTOCOL, window=args.window, rows=args.rows)
        layout = choose_layout(min(model.vocabulary for model in models), loaded)
        rows = []
        for name in names[1:]:
            for pair in ((names[0], name), (name, names[0])):
                rows.append(check(engines, pair, cut, layout))
                print(json.dumps(rows[-1]), file=sys.stderr)
        first = (names[0], names[1])
        injected, cached = (what(engines, first, cut, layout) for what in (inject, bound))
    began = time.perf_counter()
    document = run(
        Settings(
            baseline=str(args.baseline),
            candidates=[str(folder) for folder in args.candidates],
            text=str(args.text),
            window=args.window,
            rows=args.rows,
            engine=CPU,
        )
    )
    seconds = time.perf_counter() - began
    document["settings"] |= {"baseline": names[0], "candidates": names[1:], "text": args.text.name}
    for entry, name in zip((document["baseline"], *document["candidates"]), names, strict=True):
        entry["name" if entry is document["baseline"] else "label"] = name
        entry.get("facts", entry)["name"] = name
    means = [entry["summary"]["kl"]["value"] for entry in document["candidates"]]
    checks = {
        "agree": all(row[way]["agree"] for row in rows for way in ("same_logits", "transformers")),
        "ordered_by_bits": all(more < less for more, less in pairwise(means)),
        "non_finite_counted": injected["injected"] == injected["counted"]
        and injected["mean_of_the_rest_is_unchanged"],
        "cache_never_above": cached["never_above"],
    }
    command = (
        f"python benchmarks/divergence.py --text FILE BASELINE CANDIDATES --window {args.window} "
        f"--rows {args.rows}"
    )
    result = {**where, "command": command, **checks, "rows": rows, "non_finite": injected,
              "cache": cached, "seconds": seconds, "run": document}  # fmt: skip
    write_result(RESULT, result)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
