"""Prefill and decoding speed of a synthetic checkpoint on a card, beside exllamav2's own.

    python benchmarks/bench_gpu.py [--shape llama-3.1-8b] [--bits 4.0] [--work DIR] [--output DIR]
    python benchmarks/bench_gpu.py --dry-run     # no card: engine torch on the demo checkpoint

Per batch size: tokens per second of decoding and of prefill, energy and utilisation where the
driver tells, by the package's prompt bench (fixed length, warm-up excluded, every repetition kept).
In the same run exllamav2's own model: its forward with its cache in a plain loop (no text, no
stops: as fast as its kernels go) at every batch size, and its dynamic generator where that can run
(any batch size with paged attention, else one sequence). Prompts are random and share nothing.
Writes results/bench_gpu_<card>.json, which is also the last line on stdout.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import synthetic
import torch
from environment import RESULTS, environment, write_result
from gpu_check import card, random_ids

from lm_eval_exl2.bench.data import BenchPrompt
from lm_eval_exl2.bench.documents import prompt_bench_json
from lm_eval_exl2.bench.journal import Journal
from lm_eval_exl2.bench.prompt_bench import PromptBenchSettings, run_prompt_bench
from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.demo import demo_directory
from lm_eval_exl2.errors import EngineMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lm_eval_exl2.engines.base import Engine

BATCHES = (1, 8, 64)
_JOURNAL = Journal(None)
_SPARE = 256
"""Positions beyond prompt and text: exllamav2's caches want a multiple of a page."""


def prompts_of(count: int, tokens: int, vocab_size: int) -> list[list[int]]:
    """Return random prompts of one length."""
    return [random_ids(tokens, vocab_size, seed=1000 + number) for number in range(count)]


def measure_ours(
    engine: Engine, prompts: Sequence[Sequence[int]], *, new: int, repetitions: int
) -> dict[str, Any]:
    """Return the prompt bench of a batch, and exact times of its repetitions."""
    found = run_prompt_bench(
        engine,
        [BenchPrompt(place, ids) for place, ids in enumerate(prompts)],
        PromptBenchSettings(max_new_tokens=new, repetitions=repetitions, together=True),
        journal=_JOURNAL,
    )
    document = prompt_bench_json(found)
    for repetition in document["repetitions"]:
        del repetition["requests"]
    return document


def repeated(measure: Callable[[], tuple[float, float]], repetitions: int) -> dict[str, Any]:
    """Return median and deviation of prefill and decode rates, one warm-up excluded."""
    measure()
    pairs = [measure() for _ in range(repetitions)]
    names = ("prefill_tokens_per_s", "decode_tokens_per_s")
    return {
        name: {
            "median": statistics.median(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            "values": list(values),
        }
        for name, values in zip(names, zip(*pairs, strict=True), strict=True)
    }


class Peer:
    """exllamav2's own model, loaded as its users load it."""

    def __init__(self, folder: Path, *, length: int) -> None:
        """Load, with exllamav2's defaults but for the length.

        Args:
            folder: EXL2 checkpoint.
            length: Positions per sequence.
        """
        from lm_eval_exl2.engines.exllamav2_import import import_exllamav2

        self.api: Any = import_exllamav2()
        config = self.api.ExLlamaV2Config(str(folder))
        config.max_seq_len = length
        # Without flash-attn or xformers its default attention sees the future (0.3.2).
        config.no_sdpa = True
        self.model: Any = self.api.ExLlamaV2(config)
        self.model.load()

    def close(self) -> None:
        """Free the memory."""
        self.model.unload()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def loop(self, prompts: Sequence[Sequence[int]], new: int) -> tuple[float, float]:
        """Return prefill and decode tokens per second of forwards in a plain loop."""
        ids = torch.tensor([list(prompt) for prompt in prompts])
        count = len(prompts)
        cache = self.api.ExLlamaV2Cache(
            self.model, batch_size=count, max_seq_len=self.model.config.max_seq_len
        )
        try:
            begin_s = time.perf_counter()
            if ids.shape[1] > 1:
                self.model.forward(ids[:, :-1], cache, preprocess_only=True)
            last = self._next(ids[:, -1:], cache)
            prefilled_s = time.perf_counter()
            for _ in range(new - 1):
                last = self._next(last, cache)
            seconds = time.perf_counter() - prefilled_s
        finally:
            del cache
        return ids.numel() / (prefilled_s - begin_s), count * (new - 1) / seconds

    def _next(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        logits: torch.Tensor = self.model.forward(ids, cache, last_id_only=True)
        return logits[:, -1].argmax(-1, keepdim=True).cpu()

    def dynamic(self, prompts: Sequence[Sequence[int]], new: int) -> tuple[float, float]:
        """Return the same of its dynamic generator, which reports times of its own.

        Raises:
            AssertionError: paged attention is needed and not there.
        """
        from lm_eval_exl2.engines.exllamav2_words import GREEDY, TokenTable

        generators: Any = self.api.generator
        count = len(prompts)
        length = self.model.config.max_seq_len
        is_paged = count > 1
        cache = self.api.ExLlamaV2Cache(self.model, batch_size=1, max_seq_len=count * length)
        generator = generators.ExLlamaV2DynamicGenerator(
            model=self.model,
            cache=cache,
            tokenizer=TokenTable(self.model.config.vocab_size),
            max_batch_size=count,
            paged=is_paged,
        )
        for prompt in prompts:
            generator.enqueue(
                generators.ExLlamaV2DynamicJob(
                    input_ids=torch.tensor([list(prompt)]),
                    max_new_tokens=new,
                    gen_settings=generators.ExLlamaV2Sampler.Settings(**GREEDY),
                )
            )
        first_s: dict[int, float] = {}
        tokens = 0
        begin_s = time.perf_counter()
        while generator.num_remaining_jobs():
            results = generator.iterate()
            now_s = time.perf_counter()
            is_decoding = len(first_s) == count
            for result in results:
                if result["stage"] == "streaming" and "token_ids" in result:
                    first_s.setdefault(result["serial"], now_s)
                    tokens += is_decoding * result["token_ids"].shape[-1]
        last_s = max(first_s.values())
        seconds = time.perf_counter() - last_s
        return sum(map(len, prompts)) / (last_s - begin_s), tokens / seconds


def measure_peer(
    peer: Peer, prompts: Sequence[Sequence[int]], *, new: int, repetitions: int
) -> dict[str, Any]:
    """Return what exllamav2 itself reaches, and why not where it cannot."""
    found: dict[str, Any] = {}
    for name, measure in (("loop", peer.loop), ("dynamic generator", peer.dynamic)):
        try:
            found[name] = repeated(lambda run=measure: run(prompts, new), repetitions)
        except (AssertionError, ImportError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            found[name] = {"not run": reason[:200]}
    return found


def open_ours(folder: Path, *, length: int, rows: int, is_dry: bool) -> Engine:
    """Load with the engine that is measured."""
    if is_dry:
        from lm_eval_exl2.engines.torch_engine import TorchEngine

        return TorchEngine(Checkpoint(folder), device="cpu")
    from gpu_check import open_engine

    from lm_eval_exl2.engines.exllamav2_settings import LoadSettings

    return open_engine(folder, max_rows=rows, load=LoadSettings(max_length=length))


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return a row per batch size; ours first for all of them, then exllamav2's."""
    length = (args.prompt_tokens + args.new_tokens + _SPARE) // _SPARE * _SPARE
    engine = open_ours(folder, length=length, rows=max(args.batches), is_dry=args.dry_run)
    vocab_size = engine.info.vocab_size
    shared = {"new": args.new_tokens, "repetitions": args.repetitions}
    rows: list[dict[str, Any]] = []
    for count in args.batches:
        row: dict[str, Any] = {"batch": count, "engine": engine.info.name}
        prompts = prompts_of(count, args.prompt_tokens, vocab_size)
        try:
            row["ours"] = measure_ours(engine, prompts, **shared)
        except EngineMemoryError as error:
            row["ours"] = {"not run": str(error)}
        rows.append(row)
    attention = engine.info.attention
    engine.close()
    del engine
    gc.collect()
    if args.dry_run:
        return [row | {"attention": attention, "exllamav2": "not run: no card"} for row in rows]
    peer = Peer(folder, length=length)
    try:
        for row in rows:
            prompts = prompts_of(row["batch"], args.prompt_tokens, vocab_size)
            row |= {"attention": attention, "exllamav2": measure_peer(peer, prompts, **shared)}
    finally:
        peer.close()
    return rows


def checkpoint(args: argparse.Namespace, work: Path) -> Path:
    """Return the checkpoint that is measured, written now if it is not there."""
    if args.dry_run:
        return demo_directory("demo")
    folder = work / f"{args.shape}-{args.bits}bpw"
    if not folder.exists():
        draw = synthetic.Draw("cuda" if torch.cuda.is_available() else "cpu", seed=0)
        synthetic.write_checkpoint(
            synthetic.SHAPES[args.shape], folder, draw, bits=args.bits, head_bits=6, tokenizer=None
        )
    return folder


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--work", type=Path, help="folder of the checkpoint; default a temporary one"
    )
    parser.add_argument("--shape", choices=synthetic.SHAPES, default="llama-3.1-8b")
    parser.add_argument("--bits", type=float, default=4.0)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    where = environment("exllamav2", "flash-attn", "xformers") | card()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(args, checkpoint(args, args.work or Path(temporary)))
    words = f"--shape {args.shape} --bits {args.bits}"
    result = where | {
        "command": f"python benchmarks/bench_gpu.py {'--dry-run' if args.dry_run else words}",
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "rows": rows,
    }
    name = "dry" if args.dry_run else "_".join(where["card"].lower().split())
    write_result(args.output / f"bench_gpu_{name}.json", result)


if __name__ == "__main__":
    main()
