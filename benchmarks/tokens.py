"""How many token positions must be forwarded for real log-likelihood tasks, and how many are.

    python benchmarks/tokens.py --tokenizer DIR --data DIR [--tasks mmlu_anatomy ...] [--shots 5]

Requests come from the harness, token ids from a real tokenizer, and the tree is really walked,
with the scripted engine in place of a model. `distinct_prefixes` is counted independently, by
inserting every sequence into a plain dictionary trie. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def build_requests(tasks: list[str], shots: int, tokenizer: str, limit: int | None) -> list[Any]:
    """Return encoded requests of all documents, as the adapter would score them."""
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    from lm_eval_exl2.encode import Encoder
    from lm_eval_exl2.records import ScoreRequest

    loaded = TaskManager().load(tasks)["tasks"]
    instances: list[Any] = []
    for task in loaded.values():
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests(limit=limit)
        instances += task.instances
    encoder = Encoder(
        AutoTokenizer.from_pretrained(tokenizer), add_bos_token=None, prefix_token_id=None
    )
    pairs = encoder.encode_pairs(instances, disable_tqdm=True)
    return [ScoreRequest(i, context, target) for i, (_, context, target) in enumerate(pairs)]


def count_prefixes(sequences: list[list[int]]) -> int:
    """Count distinct non-empty prefixes with a dictionary trie."""
    children: dict[tuple[int, int], int] = {}
    for sequence in sequences:
        node = 0
        for token in sequence:
            node = children.setdefault((node, token), len(children) + 1)
    return len(children)


def measure(
    tasks: list[str], shots: int, tokenizer: Path, data: Path, limit: int | None = None
) -> dict[str, Any]:
    """Count positions for one set of tasks."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    from lm_eval_exl2.engines.scripted import ScriptedEngine
    from lm_eval_exl2.plan import Budget
    from lm_eval_exl2.scoring import score

    tokenizer = tokenizer.resolve()
    os.chdir(data)
    requests = build_requests(tasks, shots, str(tokenizer), limit)
    inputs = [[*r.context_ids, *r.target_ids[:-1]] for r in requests]
    largest = max(max(*r.context_ids, *r.target_ids) for r in requests)
    engine = ScriptedEngine(vocab_size=largest + 1)
    answered = sum(1 for _ in score(requests, engine, Budget(2048)))
    return {
        "tasks": len(tasks),
        "shots": shots,
        "requests": len(requests),
        "answered": answered,
        "naive": sum(map(len, inputs)),
        "hf_logits_cache": sum(map(len, {tuple(ids) for ids in inputs})),
        "distinct_prefixes": count_prefixes(inputs),
        "forwarded": engine.counts.forwarded,
    }


def mmlu_tasks(data: Path) -> list[str]:
    """Return the MMLU tasks whose data are in a folder laid out like the hub."""
    folder = data / "cais" / "mmlu"
    return sorted(f"mmlu_{path.name}" for path in folder.iterdir() if path.is_dir())


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", help="default: all MMLU subjects there")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    data = args.data.resolve()
    tasks = args.tasks or mmlu_tasks(data)
    result = measure(tasks, args.shots, args.tokenizer, data, args.limit)
    print(json.dumps(result))
    if result["forwarded"] != result["distinct_prefixes"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
