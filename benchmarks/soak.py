"""Is memory flat over 100,000 requests of every kind on an engine without a model?

    python benchmarks/soak.py [--requests 100000] [--calls 20]

The harness hands over all requests of a task at once; here they come in calls of equal size, with a
response cache, so that what a call leaves behind shows. Resident memory is taken after each call,
and the line through the second half of the calls says what a further call would add. Writes
results/soak.json.
"""

from __future__ import annotations

import argparse
import gc
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import RESULTS, environment, write_result
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

from lm_eval_exl2.computing import OneProcess
from lm_eval_exl2.engines.scripted import ScriptedEngine
from lm_eval_exl2.lm import Exl2LM

HOW = {"until": ["\n"], "max_gen_toks": 4}


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=20)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = [soak(engine, args.requests, args.calls) for engine in ("scripted", "demo")]
    write_result(
        RESULTS / "soak.json",
        {
            **environment(),
            "command": f"python benchmarks/soak.py --requests {args.requests} --calls {args.calls}",
            "rows": rows,
        },
    )


def soak(engine: str, requests: int, calls: int) -> dict[str, Any]:
    """Answer all requests in several calls; return resident MiB after each."""
    lm = Exl2LM(pretrained="demo", device="cpu", disable_tqdm=True)
    if engine == "scripted":
        scripted = ScriptedEngine(vocab_size=lm.engine.info.vocab_size, max_length=512)
        lm.computer = OneProcess(scripted, lm.encoder, lm.options)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        cached: Any = CachingLM(lm, str(Path(folder) / "cache_rank0.db"))
        resident = [_answer(cached, call, requests // calls) for call in range(calls)]
    half = resident[calls // 2 :]
    growth = float(np.polyfit(range(len(half)), half, 1)[0])
    return {
        "engine": engine,
        "requests": requests,
        "seconds": round(time.perf_counter() - start, 1),
        "mib_after_each_call": [round(value, 1) for value in resident],
        "kib_per_1000_requests": round(growth * 1024 / (requests / calls) * 1000, 1),
    }


def _answer(cached: Any, call: int, count: int) -> float:
    """Answer one call's share, a quarter of it each kind but two of pairs; return resident MiB."""
    numbers = range(call * count, call * count + count // 4)
    texts = [f"Item {number} is in the box. " for number in numbers]
    pairs = [
        Instance("loglikelihood", {}, (text, end), 0) for text in texts for end in (" A", " B")
    ]
    cached.loglikelihood(pairs)
    cached.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (t,), 0) for t in texts])
    cached.generate_until([Instance("generate_until", {}, (text, HOW), 0) for text in texts])
    del pairs, texts
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit("no VmRSS: this needs Linux")


if __name__ == "__main__":
    main()
