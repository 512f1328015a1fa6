"""Everything that needs an NVIDIA card, in one run: writes results/gpu_<card>.json.

    benchmarks/gpu_check.sh [--work DIR] [--output DIR] [--shape llama-3.1-8b] [--bits 4.0]

In this order, each step recorded whether others before it succeed or not: import exllamav2 (which
compiles its extension), run `pytest -m gpu`, open the demo checkpoint on every attention path
there is (each with its self-test), convert the demo with exllamav2's own converter, compare its
logits with the torch engine's and record them, measure how often results repeat and what drafts
change, score and generate with a synthetic checkpoint of a real model's shape. Beside the JSON,
which is also the last line on stdout, two archives are written: the conversions with their logits,
and all logs.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import synthetic
import torch
from environment import ROOT, environment, write_result
from safetensors.torch import save_file

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.demo import demo_directory
from lm_eval_exl2.engines.exllamav2_engine import Exllamav2Engine
from lm_eval_exl2.engines.exllamav2_generator import DRAFT_TOKENS, why_not_paged
from lm_eval_exl2.engines.exllamav2_settings import Exllamav2Settings, LoadSettings
from lm_eval_exl2.engines.torch_engine import TorchEngine
from lm_eval_exl2.plan import Budget
from lm_eval_exl2.records import GenerateRequest, ScoreRequest
from lm_eval_exl2.scoring import count_tokens, score

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONVERSIONS = (2.5, 4.0, 6.0)
_PATHS = {
    "as installed": {},
    "without flash-attn": {"no_flash_attn": True},
    "without flash-attn and xformers": {"no_flash_attn": True, "no_xformers": True},
}
_GOLDEN_TOKENS = 64
_REPEATS = 5


def random_ids(count: int, vocab_size: int, seed: int) -> list[int]:
    """Return token ids that are the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (count,), generator=generator).tolist()


def open_engine(folder: Path, **settings: Any) -> Exllamav2Engine:
    """Load a checkpoint with exllamav2."""
    return Exllamav2Engine(Checkpoint(folder), Exllamav2Settings(**settings))


# -- checks -----------------------------------------------------------------------------------


def check_build() -> dict[str, Any]:
    """Import exllamav2, compiling its extension if need be."""
    from lm_eval_exl2.engines.exllamav2_import import exllamav2_version, import_exllamav2

    import_exllamav2()
    return {"exllamav2": exllamav2_version()}


def check_tests(log: Path) -> dict[str, Any]:
    """Run the tests that are marked gpu."""
    files = [path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text()]
    # Another machine's versions may warn of what ours do not; that is no reason to stop.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    log.write_text(done.stdout + done.stderr)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "no output"
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu: {last}")
    return {"pytest": last}


def check_attention(folder: Path) -> dict[str, Any]:
    """Open a checkpoint on every attention path; opening runs the self-test."""
    found = {}
    for name, settings in _PATHS.items():
        engine = open_engine(folder, **settings)
        found[name] = engine.info.attention
        engine.close()
    return {"self-test passed on": found}


def convert(source: Path, bits: float, folder: Path, work: Path, log: Path) -> None:
    """Quantize with exllamav2's own converter."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = [sys.executable, "-m", "exllamav2.conversion.convert_exl2"]
    command += ["-i", source, "-o", work, "-nr", "-cf", folder, "-b", bits, "-hb", 6]
    command += ["-l", 512, "-ml", 512]
    # Its own attention would calibrate on tokens that see their future.
    environ = os.environ | {"EXLLAMA_NO_SDPA": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environ, capture_output=True, text=True, check=False
    )
    log.write_text(done.stdout + done.stderr)
    if done.returncode or not (folder / "config.json").is_file():
        raise RuntimeError(f"conversion to {bits} bits failed, see {log.name}")


def compare_logits(folder: Path, golden: Path | None = None) -> dict[str, Any]:
    """Compare logits with the torch engine's in float32; write ours to a file if wanted.

    Returns:
        Largest and root mean square difference, both as shares of the logits' deviation.
    """
    checkpoint = Checkpoint(folder)
    engine = open_engine(folder)
    ids = random_ids(_GOLDEN_TOKENS, engine.info.vocab_size, seed=0)
    found = engine.naive_logits(ids).float().cpu()
    engine.close()
    oracle = TorchEngine(checkpoint, device="cpu")
    expected = oracle.naive_logits(ids)
    difference = (found - expected) / expected.std()
    if golden is not None:
        save_file({"ids": torch.tensor(ids), "logits": found.half()}, golden)
    return {
        "largest": float(difference.abs().max()),
        "root_mean_square": float(difference.pow(2).mean().sqrt()),
        "same_most_likely_token": float((found.argmax(-1) == expected.argmax(-1)).float().mean()),
    }


def check_conversion(bits: float, folder: Path, logs: Path) -> dict[str, Any]:
    """Convert the demo, record its logits beside it and compare them."""
    name = f"exllamav2-{bits}bpw"
    shutil.rmtree(folder / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        convert(demo_directory("demo-fp16"), bits, folder / name, Path(work), logs / f"{name}.log")
    return compare_logits(folder / name, folder / f"{name}-logits.safetensors")


# -- measurements -----------------------------------------------------------------------------


def score_requests(count: int, vocab_size: int, *, shared: int, own: int) -> list[ScoreRequest]:
    """Return multiple-choice requests: a shared preamble, own questions, four answers each."""
    preamble = random_ids(shared, vocab_size, seed=1)
    requests: list[ScoreRequest] = []
    for number in range(count):
        context = preamble + random_ids(own, vocab_size, seed=2 + number)
        for choice in range(4):
            answer = random_ids(8, vocab_size, seed=10_000 + 4 * number + choice)
            requests.append(ScoreRequest(len(requests), context, answer))
    return requests


def generate_requests(count: int, vocab_size: int, *, prompt: int, new: int) -> list[Any]:
    """Return greedy requests that run to their limit."""
    return [
        GenerateRequest(number, random_ids(prompt, vocab_size, seed=number), new)
        for number in range(count)
    ]


def texts(engine: Exllamav2Engine, requests: Sequence[GenerateRequest]) -> list[list[int]]:
    """Return what each request is continued with."""
    found: list[list[int]] = [[] for _ in requests]
    for token in engine.generate(requests, lambda _index, _token: False):
        found[token.index].append(token.token_id)
    return found


def measure_repetition(folder: Path) -> dict[str, Any]:
    """Return how often scores and greedy texts come out the same again."""
    engine = open_engine(folder)
    scored = score_requests(16, engine.info.vocab_size, shared=64, own=24)
    asked = generate_requests(8, engine.info.vocab_size, prompt=32, new=64)

    def scores() -> list[float]:
        budget = Budget(engine.info.max_batch_tokens)
        return [s.logprob for s in sorted(score(scored, engine, budget), key=lambda s: s.index)]

    first_scores, first_texts = scores(), texts(engine, asked)
    again = [(scores(), texts(engine, asked)) for _ in range(_REPEATS)]
    engine.close()
    pairs = [(a, b) for found, _ in again for a, b in zip(first_scores, found, strict=True)]
    same = [a == b for _, found in again for a, b in zip(first_texts, found, strict=True)]
    return {
        "scores_repeated": sum(a == b for a, b in pairs) / len(pairs),
        "largest_score_difference": max(abs(a - b) for a, b in pairs),
        "texts_repeated": sum(same) / len(same),
    }


def measure_drafting(folder: Path) -> dict[str, Any]:
    """Return how often drafted greedy text is the same as text written token by token.

    Where the two part, the tokens' logits should be as good as equal: the margin is given as a
    share of the logits' deviation.
    """
    plain = open_engine(folder)
    if reason := why_not_paged(plain):
        plain.close()
        return {"not applicable": reason}
    asked = generate_requests(16, plain.info.vocab_size, prompt=32, new=96)
    expected = texts(plain, asked)
    plain.close()
    load = LoadSettings(spare_positions=DRAFT_TOKENS + 1)
    engine = open_engine(folder, ngram_draft=True, load=load)
    found = texts(engine, asked)
    counts = engine.counts
    accepted = counts.accepted / max(1, counts.drafted)
    margins = [
        margin
        for request, one, other in zip(asked, found, expected, strict=True)
        if (margin := _margin(engine, request.prompt_ids, one, other)) is not None
    ]
    engine.close()
    return {
        "texts_alike": 1 - len(margins) / len(asked),
        "largest_margin_where_they_part": max(margins, default=0.0),
        "drafts_accepted": accepted,
    }


def _margin(
    engine: Exllamav2Engine, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]
) -> float | None:
    """Return how far apart two texts' first different tokens are, None if there is none."""
    for place, (first, second) in enumerate(zip(one, other, strict=True)):
        if first != second:
            logits = engine.naive_logits([*prompt, *one[:place]])[-1]
            return float((logits[first] - logits[second]).abs() / logits.std())
    return None


def measure_speed(folder: Path, *, questions: int, rows: int, new: int) -> dict[str, Any]:
    """Score and generate with a checkpoint; return tokens per second and the memory peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    engine = open_engine(folder, max_rows=rows)
    loaded = time.perf_counter() - started
    vocab_size, budget = engine.info.vocab_size, Budget(engine.info.max_batch_tokens)
    requests = score_requests(questions, vocab_size, shared=600, own=100)
    list(score(requests[:8], engine, budget))  # warm up: kernels are chosen by timing
    started = time.perf_counter()
    list(score(requests, engine, budget))
    scoring = time.perf_counter() - started
    asked = generate_requests(rows, vocab_size, prompt=128, new=new)
    texts(engine, asked[:2])
    started = time.perf_counter()
    produced = sum(map(len, texts(engine, asked)))
    generating = time.perf_counter() - started
    found = {
        "load_s": loaded,
        "max_batch_tokens": engine.info.max_batch_tokens,
        "attention": engine.info.attention,
        "scoring_tokens_per_s": count_tokens(requests) / scoring,
        "scoring_requests_per_s": len(requests) / scoring,
        "generated_tokens_per_s": produced / generating,
        "rows": rows,
        "memory_peak_gib": _peak_gib(),
    }
    engine.close()
    return found


def _peak_gib() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def measure_synthetic(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Write a checkpoint of a real model's shape and measure it."""
    folder = work / f"{args.shape}-{args.bits}bpw"
    if not folder.exists():
        draw = synthetic.Draw("cuda" if torch.cuda.is_available() else "cpu", seed=0)
        synthetic.write_checkpoint(
            synthetic.SHAPES[args.shape], folder, draw, bits=args.bits, head_bits=6, tokenizer=None
        )
    return measure_speed(folder, questions=args.questions, rows=args.rows, new=args.new_tokens)


# -- the whole run ----------------------------------------------------------------------------


def card() -> dict[str, Any]:
    """Return what the card is and what drives it."""
    if not torch.cuda.is_available():
        return {"card": "none"}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {
        "card": torch.cuda.get_device_name(0),
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30,
        "driver": driver.strip().splitlines()[0],
        "cuda": torch.version.cuda,
    }


def run_step(name: str, step: Callable[[], dict[str, Any]], logs: Path) -> dict[str, Any]:
    """Run one step; a failure is a result like any other and does not stop the rest."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    started = time.perf_counter()
    try:
        found = {"outcome": "passed", **step()}
    except Exception as error:  # noqa: BLE001 - whatever it is, the other steps are wanted
        (logs / f"{_file_name(name)}.log").write_text(traceback.format_exc())
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        found = {"outcome": "failed", "reason": reason[:300]}
    gc.collect()  # what a failed step left on the card
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    found["seconds"] = round(time.perf_counter() - started, 1)
    print(f"{name}: {found}", file=sys.stderr, flush=True)
    return found


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, help="folder for large files; default a temporary one")
    parser.add_argument("--shape", choices=synthetic.SHAPES, default="llama-3.1-8b")
    parser.add_argument("--bits", type=float, default=4.0)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=128)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    where = environment("exllamav2", "flash-attn", "xformers") | card()
    demo = demo_directory("demo")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        conversions, logs = work / "conversions", work / "logs"
        for folder in (conversions, logs):
            folder.mkdir(parents=True, exist_ok=True)
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "build": check_build,
            "tests marked gpu": lambda: check_tests(logs / "pytest.log"),
            "self-test": lambda: check_attention(demo),
            "logits against engine torch": lambda: compare_logits(demo),
            "repetition": lambda: measure_repetition(demo),
            "drafting": lambda: measure_drafting(demo),
            **{
                f"conversion to {bits} bits": lambda bits=bits: check_conversion(
                    bits, conversions, logs
                )
                for bits in CONVERSIONS
            },
            f"speed of {args.shape} at {args.bits} bits": lambda: measure_synthetic(args, work),
        }
        checks: dict[str, dict[str, Any]] = {}
        for name, step in steps.items():
            if checks and checks["build"]["outcome"] != "passed":
                checks[name] = {"outcome": "not run", "reason": "exllamav2 does not import"}
            else:
                checks[name] = run_step(name, step, logs)
        for folder in (conversions, logs):
            name = str(args.output / f"gpu_{folder.name}")
            shutil.make_archive(name, "gztar", root_dir=work, base_dir=folder.name)
    result = where | {
        "command": f"benchmarks/gpu_check.sh --shape {args.shape} --bits {args.bits}",
        "checks": checks,
    }
    write_result(args.output / f"gpu_{_file_name(where['card'])}.json", result)
    if any(check["outcome"] != "passed" for check in checks.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
