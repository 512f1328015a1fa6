"""Is `exl2_wikitext2_ppl` the published protocol? Writes results/wikitext2_ppl.json.

    python benchmarks/wikitext2_ppl.py --text FILE CHECKPOINT [CHECKPOINT ...] [--window 512]

FILE is `wiki.test.raw`; CHECKPOINT an EXL2 folder. Each is measured by the task with `exl2`,
by the same task with `--model hf` on the output of `lm-eval-exl2 dequantize`, and by a plain loop
(perplexity_loops.py) over the same decoded weights; all in float32 on the CPU. The last checkpoint
is also measured by the other protocols. The three must agree to 1e-4 of the value. The loop reads
FILE as the task does; what it checks is windows, targets and averaging.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import perplexity_loops
import transformers
from environment import ROOT, environment, write_result

from lm_eval_exl2.checkpoint.export import dequantize_directory
from lm_eval_exl2.tasks.wikitext import read_lines

RESULT = Path(__file__).parent / "results" / "wikitext2_ppl.json"
TOLERANCE = 1e-4
_ROWS = 100


def others(window: int) -> list[tuple[str, dict[str, int]]]:
    """The protocols beside GPTQ's, small enough for a CPU."""
    strided = {"window": window, "stride": window // 4}
    return [
        ("exllamav3-chart", {**strided, "rows": 20}),
        ("exllamav2-ed", {"window": window, "rows": 128}),
        ("exllamav2-sp", {**strided, "rows": _ROWS}),
        ("sliding", {**strided, "rows": _ROWS}),
    ]


def run_task(
    model: str, arguments: str, text: Path, protocol: str, sizes: dict[str, int]
) -> dict[str, Any]:
    """What the stock command reports for the task."""
    metadata = {"protocol": protocol, "dataset_file": str(text), **sizes}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", arguments,
             "--tasks", "exl2_wikitext2_ppl", "--device", "cpu", "--batch_size", "8",
             "--metadata", json.dumps(metadata), "--output_path", folder],
            check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        (file,) = Path(folder).rglob("results_*.json")
        found = json.loads(file.read_text())
    values = found["results"]["exl2_wikitext2_ppl"]
    said = found["configs"]["exl2_wikitext2_ppl"]["metadata"]["perplexity"]
    return {
        "perplexity": values["perplexity,none"],
        "stderr": values["perplexity_stderr,none"],
        "targets": values["targets,none"],
        "tokens": said["tokens"],
        "bos": said["bos"],
        "text_sha256": said["text_sha256"],
    }


def compare(
    name: str, folder: Path, decoded: Path, text: Path, protocol: str, sizes: dict[str, int]
) -> dict[str, Any]:
    """One row: the same number three ways."""
    ours = run_task("exl2", f"pretrained={folder}", text, protocol, sizes)
    hf = run_task("hf", f"pretrained={decoded},dtype=float32", text, protocol, sizes)
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoded)
    model = transformers.AutoModelForCausalLM.from_pretrained(decoded, dtype="float32").eval()
    loop = perplexity_loops.LOOPS[protocol](model, tokenizer, read_lines(text), **sizes)
    values = ours["perplexity"], hf["perplexity"], loop.perplexity
    row = {
        "checkpoint": name,
        "protocol": protocol,
        **sizes,
        "targets": [ours["targets"], hf["targets"], loop.targets],
        "tokens": ours["tokens"],
        "bos": ours["bos"],
        "text_sha256": ours["text_sha256"],
        "ours": values[0],
        "stderr": ours["stderr"],
        "hf": values[1],
        "reference_loop": values[2],
        "largest_relative_difference": (max(values) - min(values)) / min(values),
    }
    print(json.dumps(row), file=sys.stderr)
    return row


def main() -> int:
    """Measure and write; exit 1 if a row does not agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=512)
    args = parser.parse_args()
    where = environment()
    rows: list[dict[str, Any]] = []
    for folder in args.checkpoints:
        cases = [("gptq", {"window": args.window})]
        cases += others(args.window) if folder == args.checkpoints[-1] else []
        with tempfile.TemporaryDirectory() as temporary:
            decoded = Path(temporary) / "decoded"
            dequantize_directory(folder, decoded, dtype="float32")
            rows += [compare(folder.name, folder, decoded, args.text, *case) for case in cases]
    agree = all(
        row["largest_relative_difference"] <= TOLERANCE and len(set(row["targets"])) == 1
        for row in rows
    )
    command = f"python benchmarks/wikitext2_ppl.py --text FILE CHECKPOINTS --window {args.window}"
    result = {
        **where,
        "command": command,
        "tolerance": TOLERANCE,
        "agree": agree,
        "lines": len(read_lines(args.text)),
        "rows": rows,
    }
    write_result(RESULT, result)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
