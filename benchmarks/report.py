"""The worked example of `lm-eval-exl2 compare`, from nothing: writes results/report.json.

    python benchmarks/report.py [--output FOLDER]

Rounds the demo checkpoint to three more sizes, runs the demo tasks with the stock harness on all
of them, on float16 twice (the second time in smaller steps, which shows what changes without a
reason), and compares. FOLDER (default: build/report) gets the runs and the report as page, Markdown
and JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from environment import ROOT, environment, write_result

from lm_eval_exl2.demo import demo_directory

RESULT = Path(__file__).parent / "results" / "report.json"
BITS = (4.0, 3.4, 3.0)
TASKS = "exl2_demo"
COMPARED = "exl2_demo_facts,exl2_demo_cloze,exl2_demo_arithmetic,exl2_demo_stories"


_COMMANDS = {
    "lm_eval": ("-m", "lm_eval"),
    "lm-eval-exl2": ("-c", "import sys; from lm_eval_exl2.cli import main; sys.exit(main())"),
}


def call(command: str, *words: str, expect: tuple[int, ...] = (0,)) -> int:
    """Run a command of this environment without a network."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = [sys.executable, *_COMMANDS[command], *words]
    status = subprocess.run(started, cwd=ROOT, env=offline, check=False)
    if status.returncode not in expect:
        raise SystemExit(f"{command} {' '.join(words)} ended with status {status.returncode}")
    return status.returncode


def evaluate(pretrained: str, folder: Path, arguments: str = "") -> Path:
    """Run the stock harness, unless it has run before."""
    if not list(folder.rglob("results_*.json")):
        call(
            "lm_eval", "--model", "exl2", "--model_args", f"pretrained={pretrained}{arguments}",
            "--tasks", TASKS, "--device", "cpu", "--log_samples", "--output_path", str(folder),
        )  # fmt: skip
    return folder


def main() -> None:
    """Quantize, evaluate, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "report")
    args = parser.parse_args()
    output: Path = args.output.resolve()
    where = environment()
    candidates = [evaluate(name, output / name) for name in ("demo", "demo-2.5bpw")]
    for bits in BITS:
        checkpoint = output / "checkpoints" / f"demo-{bits}bpw"
        if not checkpoint.exists():
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            source = str(demo_directory("demo-fp16"))
            call("lm-eval-exl2", "quantize", source, str(checkpoint), "--bits", str(bits))
        candidates.append(evaluate(str(checkpoint), output / checkpoint.name))
    baseline = evaluate("demo-fp16", output / "demo-fp16")
    again = evaluate("demo-fp16", output / "again" / "demo-fp16", ",max_batch_tokens=50")
    status = call(
        "lm-eval-exl2", "compare", str(baseline), *map(str, candidates), "--tasks", COMPARED,
        "--noise", str(baseline), str(again), "--json", str(output / "report.json"),
        "--html", str(output / "report.html"), "--markdown", str(output / "report.md"), "--quiet",
        expect=(0, 10, 11, 12),
    )  # fmt: skip
    comparison = json.loads((output / "report.json").read_text())
    for variant in (comparison["baseline"], *(e["variant"] for e in comparison["candidates"])):
        variant["folder"] = Path(variant["folder"]).name
    result = {**where, "command": "make report", "exit_code": status, "comparison": comparison}
    write_result(RESULT, result)
    print(f"the report: {output / 'report.html'}", file=sys.stderr)


if __name__ == "__main__":
    main()
