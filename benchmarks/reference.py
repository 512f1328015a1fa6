"""Do the scores of `exl2` equal those the stock `hf` model gives on the same decoded weights?

    python benchmarks/reference.py --reference FILE --models DIR --data DIR [--batch_size 1 8 auto]

The reference file lists runs of the harness (checkpoint, tasks, shots, limit, results, responses
of every document). Each run is repeated with `--model exl2` through the harness's own
`simple_evaluate`; accuracies must be equal, a log-likelihood may differ by
max(1e-4, 1e-6 * |log-likelihood|), text must be identical but for one leading space, which the
`hf` model's decoding loses. The last line on stdout is a JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-6


def compare_run(run: dict[str, Any], model: Any, task_manager: Any) -> dict[str, Any]:
    """Repeat one reference run and count what differs."""
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model=model,
        tasks=run["tasks"],
        num_fewshot=run["num_fewshot"],
        limit=run["limit"],
        log_samples=True,
        bootstrap_iters=0,
        task_manager=task_manager,
    )
    assert found is not None
    outcome: dict[str, Any] = {"requests": 0, "disagreements": [], "largest_difference": 0.0}
    outcome["largest_share"] = 0.0
    for task, expected in run["results"].items():
        for metric, value in expected.items():
            if "stderr" not in metric and isinstance(value, int | float):
                mine = found["results"][task][metric]
                if abs(mine - value) > RELATIVE_TOLERANCE * abs(value):
                    outcome["disagreements"].append([task, metric, value, mine])
    for task, samples in run["samples"].items():
        _compare_samples(task, samples, found["samples"][task], outcome)
    return outcome


def _compare_samples(
    task: str, expected: list[dict[str, Any]], found: list[dict[str, Any]], outcome: dict[str, Any]
) -> None:
    mine = {sample["doc_id"]: sample for sample in found}
    for sample in expected:
        other = mine[sample["doc_id"]]
        if other["doc_hash"] != sample["doc_hash"]:
            raise SystemExit(f"{task}: document {sample['doc_id']} is another one than in the file")
        answers = zip(_flat(sample["resps"]), _flat(other["resps"]), strict=True)
        for theirs, ours in answers:
            outcome["requests"] += 1
            difference = _difference(theirs, ours)
            allowed = max(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * abs(_number(theirs)))
            if difference is None or difference > allowed:
                outcome["disagreements"].append([task, sample["doc_id"], theirs, ours])
                continue
            outcome["largest_difference"] = max(outcome["largest_difference"], difference)
            outcome["largest_share"] = max(outcome["largest_share"], difference / allowed)


def _flat(responses: list[Any]) -> list[Any]:
    """Return the single answers of a document: [text], [logprob, greedy] or a number each."""
    return [answer for request in responses for answer in request]


def _number(answer: Any) -> float:
    return float(answer[0]) if isinstance(answer, list | tuple) else _as_float(answer) or 0.0


def _as_float(answer: Any) -> float | None:
    try:
        return float(answer)
    except (TypeError, ValueError):
        return None


def _difference(theirs: Any, ours: Any) -> float | None:
    """Return the difference of two log-likelihoods, 0 for equal text, None for a disagreement."""
    if isinstance(theirs, list | tuple):
        same_flag = str(theirs[1]) == str(ours[1])
        return abs(float(theirs[0]) - float(ours[0])) if same_flag else None
    if _as_float(theirs) is not None and _as_float(ours) is not None:
        return abs(float(theirs) - float(ours))
    return 0.0 if theirs in (ours, ours.removeprefix(" ")) else None


def measure(reference: Path, models: Path, data: Path, batch_sizes: list[str]) -> dict[str, Any]:
    """Repeat all runs of a reference file at several batch sizes."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    from lm_eval.tasks import TaskManager

    from lm_eval_exl2.lm import Exl2LM

    task_manager = TaskManager()  # scans thousands of files: once is enough

    runs = json.loads(reference.read_text())
    models = models.resolve()
    os.chdir(data)  # datasets looks for folders named like the hub's repositories
    total: dict[str, Any] = {
        "runs": 0,
        "requests": 0,
        "disagreements": 0,
        "largest_difference": 0.0,
    }
    total |= {"largest_share": 0.0, "examples": []}
    for batch_size in batch_sizes:
        loaded: dict[str, Any] = {}
        for run in runs:
            name = run["checkpoint"]
            if name not in loaded:
                loaded[name] = Exl2LM(
                    str(models / name),
                    dtype="float32",
                    device="cpu",
                    batch_size=batch_size,
                    disable_tqdm=True,
                )
            outcome = compare_run(run, loaded[name], task_manager)
            total["runs"] += 1
            total["requests"] += outcome["requests"]
            total["disagreements"] += len(outcome["disagreements"])
            total["examples"] += outcome["disagreements"][:3]
            for name_of_largest in ("largest_difference", "largest_share"):
                largest = max(total[name_of_largest], outcome[name_of_largest])
                total[name_of_largest] = largest
            print(
                name,
                run["tasks"],
                batch_size,
                outcome["requests"],
                outcome["disagreements"][:3],
                outcome["largest_difference"],
                flush=True,
            )
    return total


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch_size", nargs="+", default=["1", "8", "auto"])
    args = parser.parse_args()
    result = measure(args.reference.resolve(), args.models, args.data, args.batch_size)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
