"""Does the accuracy gate count right, and what does it say of the demo? Writes results/.

    python benchmarks/bench_accuracy.py [--output FOLDER]

The stock harness lets the demo checkpoint and its quantized sizes tell the last sentence of each of
240 stories (bench_accuracy/endings.yaml); `lm-eval-exl2 bench-accuracy` holds them against float16.
Every ROUGE and BLEU is counted once more below, from its definition, with nothing shared but the
Porter stemmer. FOLDER (default: build/bench_accuracy) gets the runs and reports.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from environment import ROOT, environment, write_result
from nltk.stem.porter import PorterStemmer

from lm_eval_exl2.cli import main as command
from lm_eval_exl2.demo import demo_directory

RESULT = Path(__file__).parent / "results" / "bench_accuracy.json"
TASKS = Path(__file__).parent / "bench_accuracy"
TASK = "exl2_bench_endings"
BITS = (4.0, 3.0)
STEM = PorterStemmer().stem


def evaluate(pretrained: str, folder: Path) -> Path:
    """Run the stock harness, unless it has run before."""
    if not list(folder.rglob("results_*.json")):
        words = [sys.executable, "-m", "lm_eval", "--model", "exl2", "--device", "cpu"]
        words += ["--model_args", f"pretrained={pretrained}", "--tasks", TASK, "--log_samples"]
        words += ["--include_path", str(TASKS), "--output_path", str(folder)]
        subprocess.run(words, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True)
    return folder


def answers(folder: Path) -> dict[str, tuple[str, str]]:
    """Reference and answer by the hash of the document, read without the package."""
    lines = next(folder.rglob("samples_*.jsonl")).read_text(encoding="utf-8").splitlines()
    found = map(json.loads, lines)
    return {each["doc_hash"]: (each["target"], each["resps"][0][0]) for each in found}


def words_of(text: str) -> list[str]:
    """Lower-case words of a to z and digits, those of more than 3 letters stemmed."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return [STEM(word) if len(word) > 3 else word for word in found]


def share(common: int, one: int, two: int) -> float:
    """F-measure of what two texts share, in per cent."""
    return 200 * common / (one + two) if common else 0.0


def runs_of(items: list[str], size: int) -> Counter[tuple[str, ...]]:
    """How often each run of neighbours occurs."""
    return Counter(tuple(items[at : at + size]) for at in range(len(items) - size + 1))


def subsequence(one: list[str], two: list[str]) -> int:
    """Length of the longest common subsequence, row by row."""
    row = [0] * (len(two) + 1)
    for word in one:
        above = row
        row = [0]
        for at, other in enumerate(two):
            row.append(above[at] + 1 if word == other else max(row[at], above[at + 1]))
    return row[-1]


def count_rouge(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """ROUGE-1, -2 and -L of (reference, answer), mean in per cent."""
    scores: dict[str, list[float]] = {"rouge1": [], "rouge2": [], "rougeL": []}
    for pair in pairs:
        one, two = map(words_of, pair)
        for size in (1, 2):
            first, second = runs_of(one, size), runs_of(two, size)
            found = share((first & second).total(), first.total(), second.total())
            scores[f"rouge{size}"].append(found)
        scores["rougeL"].append(share(subsequence(one, two), len(one), len(two)))
    return {kind: math.fsum(each) / len(each) for kind, each in scores.items()}


def count_bleu(pairs: list[tuple[str, str]]) -> float:
    """BLEU-4 of all (reference, answer) together, words and marks of their own; no smoothing."""
    texts = [tuple(re.findall(r"\w+|[^\w\s]", text) for text in pair) for pair in pairs]
    logs = 0.0
    for size in range(1, 5):
        matched = total = 0
        for reference, answer in texts:
            there = runs_of(answer, size)
            matched += (there & runs_of(reference, size)).total()
            total += there.total()
        logs += math.log(matched / total) / 4
    expected, written = (sum(len(pair[side]) for pair in texts) for side in (0, 1))
    return 100 * math.exp(logs + min(0.0, 1 - expected / written))


def differences(baseline: Path, candidate: Path, found: dict[str, Any]) -> dict[str, float]:
    """How far the command's numbers are from those counted here."""
    one, two = answers(baseline), answers(candidate)
    references = [two[name] for name in one]
    texts = [(one[name][1], two[name][1]) for name in one]
    against_references, against_baseline = count_rouge(references), count_rouge(texts)
    gate = {each["name"]: each["candidate"] for each in found["gate"]["demands"]}
    agreement = {each["kind"]: each["score"] for each in found["agreement"]["rouge"]}
    return {
        "rouge": max(abs(gate[kind] - each) for kind, each in against_references.items()),
        "agreement": max(abs(agreement[kind] - each) for kind, each in against_baseline.items()),
        "bleu": abs(found["agreement"]["bleu"]["score"] - count_bleu(texts)),
    }


def main() -> None:
    """Quantize, evaluate, judge, count again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench_accuracy")
    output: Path = parser.parse_args().output.resolve()
    where = environment("rouge_score", "sacrebleu", "nltk")
    checkpoints = {"demo-5.0bpw": "demo", "demo-2.5bpw": "demo-2.5bpw"}
    for bits in BITS:
        folder = output / "checkpoints" / f"demo-{bits}bpw"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            source = str(demo_directory("demo-fp16"))
            command(["quantize", source, str(folder), "--bits", str(bits)])
        checkpoints[folder.name] = str(folder)
    baseline = evaluate("demo-fp16", output / "demo-fp16")
    rows: list[dict[str, Any]] = []
    for name, pretrained in sorted(checkpoints.items(), reverse=True):
        candidate, report = evaluate(pretrained, output / name), output / f"{name}.json"
        words = [str(baseline), str(candidate), "--tokenizer", str(demo_directory("demo-fp16"))]
        files = ["--json", str(report), "--markdown", str(report.with_suffix(".md")), "--quiet"]
        status = command(["bench-accuracy", *words, *files])
        found = json.loads(report.read_text())
        counted = differences(baseline, candidate, found)
        rows.append({"name": name, "exit_code": status, "counted": counted, "found": found})
    largest = max(max(row["counted"].values()) for row in rows)
    result = {**where, "command": "python benchmarks/bench_accuracy.py", "rows": rows}
    write_result(RESULT, {**result, "largest_difference": largest})


if __name__ == "__main__":
    main()
