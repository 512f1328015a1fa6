"""Hand-made result folders, as the harness writes them: every value under a test's control."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

TIME = "2026-11-26T04-17-13.761152"


def digest(value: Any) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


@dataclass
class Task:
    """One task of a run: a list of documents with their metrics."""

    name: str
    rows: list[dict[str, Any]]
    """Each with `metrics`, and what else of a sample should not be as usual."""
    filter: str = "none"
    config: dict[str, Any] = field(default_factory=dict)
    higher: dict[str, bool] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    """By metric; by default the mean of the rows' values."""
    original: int | None = None
    version: Any = 1.0

    def results(self) -> dict[str, Any]:
        names = list(dict.fromkeys(name for row in self.rows for name in row["metrics"]))
        found: dict[str, Any] = {"alias": self.name, "sample_len": len(self.rows)}
        for name in names:
            values = [row["metrics"][name] for row in self.rows if name in row["metrics"]]
            score = self.scores.get(name)
            found[f"{name},{self.filter}"] = sum(values) / len(values) if score is None else score
            found[f"{name}_stderr,{self.filter}"] = "N/A"
        return found

    def samples(self) -> list[dict[str, Any]]:
        return [self._sample(number, row) for number, row in enumerate(self.rows)]

    def _sample(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        question = row.get("question", f"{self.name} {number}")
        doc = row.get("doc", {"question": question})
        target = str(row.get("target", "0"))
        sample = {
            "doc_id": row.get("doc_id", number),
            "doc": doc,
            "target": target,
            "arguments": row.get("arguments", {"gen_args_0": {"arg_0": question, "arg_1": {}}}),
            "resps": row.get("resps", [["text"]]),
            "filtered_resps": row.get("filtered_resps", ["text"]),
            "filter": self.filter,
            "metrics": list(row["metrics"]),
            "doc_hash": digest(doc),
            "prompt_hash": digest(row.get("prompt", question)),
            "target_hash": digest(target),
        }
        return {**sample, **row["metrics"]}


def rights(values: list[float], metric: str = "acc", **more: Any) -> list[dict[str, Any]]:
    """Rows of one metric."""
    return [{"metrics": {metric: value}, **more} for value in values]


def choice(scores: list[float], right: int, metric: str = "acc") -> dict[str, Any]:
    """A multiple-choice row whose choices are "a", "bb", "ccc", ..."""
    letters = ["abcdefgh"[at] * (at + 1) for at in range(len(scores))]
    chosen = scores.index(max(scores))
    return {
        "metrics": {metric: float(chosen == right)},
        "target": right,
        "arguments": {
            f"gen_args_{at}": {"arg_0": "?", "arg_1": f" {letter}"}
            for at, letter in enumerate(letters)
        },
        "filtered_resps": [[str(score), "False"] for score in scores],
    }


def write_run(
    folder: Any,
    tasks: list[Task],
    *,
    model: str = "model",
    time: str = TIME,
    groups: dict[str, list[str]] | None = None,
    group_results: dict[str, dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Write `folder/model/results_<time>.json` and its samples; return the folder."""
    inner = folder / model
    inner.mkdir(parents=True, exist_ok=True)
    higher = {task.name: task.higher or _higher(task) for task in tasks}
    content = {
        "results": {task.name: task.results() for task in tasks},
        "group_subtasks": groups or {},
        "configs": {task.name: {"task": task.name, **task.config} for task in tasks},
        "versions": {task.name: task.version for task in tasks},
        "n-shot": {task.name: 0 for task in tasks},
        "higher_is_better": higher,
        "n-samples": {
            task.name: {"original": task.original or len(task.rows), "effective": len(task.rows)}
            for task in tasks
        },
        "config": {"model": "hf", "model_args": {"pretrained": model}, **(config or {})},
        "model_name": model,
        "lm_eval_version": "0.4.13",
        **more,
    }
    if group_results:
        content["groups"] = group_results
    (inner / f"results_{time}.json").write_text(json.dumps(content))
    for task in tasks:
        lines = "".join(json.dumps(sample) + "\n" for sample in task.samples())
        (inner / f"samples_{task.name}_{time}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def _higher(task: Task) -> dict[str, bool]:
    return {name: True for row in task.rows for name in row["metrics"]}
