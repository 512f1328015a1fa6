"""What does a kill cost, and what does a damaged cache? What does keeping answers cost?

    python benchmarks/resume.py [--kills 30] [--damages 10] [--seed 1] [--larger DIR]

Whole evaluations of the demo through the harness, each in a process of its own with `--use_cache`:
killed by SIGKILL at a random moment and run again, or run again over a cache that was damaged. The
samples are compared with those of a run without a cache. Fork is what makes it short: the processes
share what was imported and loaded. Writes results/resume.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import pickle
import random
import signal
import sqlite3
import tempfile
import time
import traceback
import zlib
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from environment import RESULTS, environment, write_result
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from resume_cost import cost

from lm_eval_exl2.lm import Exl2LM
from lm_eval_exl2.plugin import task_configs_path
from lm_eval_exl2.run_checks import Places, check_before
from lm_eval_exl2.tasks import demo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Samples = dict[tuple[str, int, int], Any]
_SAMPLED = {
    "task": "sampled",
    "custom_dataset": demo.arithmetic,
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{problem}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {
        **{"do_sample": True, "temperature": 0.9, "until": ["\n"], "max_gen_toks": 8}
    },
    "repeats": 3,
    "metric_list": [{"metric": "exact_match"}],
}


class Bench:
    """One loaded model and the evaluation that every process does with it."""

    def __init__(self, pretrained: str, seed: int, limit: int | None = None) -> None:
        """Load a model and the tasks: the demo's four, and one that is sampled three times."""
        self.chance = random.Random(seed)
        self.lm = Exl2LM(pretrained=pretrained, device="cpu", disable_tqdm=True)
        self._tasks: list[Any] = ["exl2_demo", _SAMPLED]
        self._manager = TaskManager(
            include_defaults=False, include_path=str(task_configs_path() / "demo")
        )
        self._limit = limit

    def evaluate(self, cache: Path | None = None) -> Samples:
        """Return the responses by task, document and request."""
        found: Any = evaluator.simple_evaluate(
            model=self.lm,
            tasks=self._tasks,
            task_manager=self._manager,
            limit=self._limit,
            use_cache=str(cache) if cache else None,
            bootstrap_iters=0,
            log_samples=True,
        )
        return {
            (task, sample["doc_id"], number): response
            for task, samples in found["samples"].items()
            for sample in samples
            for number, response in enumerate(sample["resps"])
        }

    def run(self, cache: Path | None, kill_after_s: float | None = None) -> Samples | None:
        """Evaluate in a process of its own; None if it was killed before it was done."""
        with tempfile.NamedTemporaryFile() as answer:
            process = os.fork()
            if not process:
                self._run_and_exit(cache, Path(answer.name))
            if kill_after_s is not None:
                time.sleep(kill_after_s)
                os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if os.WIFSIGNALED(status):
                return None
            if status:
                raise SystemExit(f"a run failed with status {status}")
            return pickle.loads(Path(answer.name).read_bytes())

    def _run_and_exit(self, cache: Path | None, answer: Path) -> None:
        status = 1
        try:
            answer.write_bytes(pickle.dumps(self.evaluate(cache)))
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)


@dataclass
class Row:
    """The outcome of one kind of fault."""

    fault: str
    runs: int = 0
    lost: int = 0
    """Responses that the resumed run does not have."""
    duplicated: int = 0
    """Answers that were computed and kept twice."""
    changed: int = 0
    """Texts, greedy flags or scores that differ by more than the tolerance."""
    not_bit_equal: int = 0
    """Scores that differ at all: other chunks round otherwise."""
    kept: list[int] = field(default_factory=list)
    """Answers that were kept when the fault came."""
    computed: list[int] = field(default_factory=list)
    """Answers that were computed afterwards."""

    def count(self, expected: Samples, found: Samples) -> None:
        """Compare one resumed run with the one that was not interrupted."""
        self.runs += 1
        self.lost += len(expected.keys() - found.keys())
        for key, responses in found.items():
            for one, other in zip(responses, expected[key], strict=True):
                self.changed += not _is_close(one, other)
                self.not_bit_equal += one != other


def _is_close(one: Any, other: Any) -> bool:
    """Return whether two responses are equal, scores up to the tolerance of parity.py."""
    if isinstance(one, str):
        return one == other
    (score, *flag), (wanted, *wanted_flag) = (
        x if isinstance(x, (tuple, list)) else (x,) for x in (one, other)
    )
    return abs(score - wanted) <= max(1e-4, 1e-6 * abs(wanted)) and flag == wanted_flag


def kept_keys(cache: Path) -> Counter[bytes]:
    """Return how often each answer is in the journal of a cache, damaged lines left out."""
    path = cache.with_name(f"{cache.name}_rank0.jsonl")
    if not path.exists():
        return Counter()
    lines = [line.partition(b" ") for line in path.read_bytes().split(b"\n")]
    whole = [text for checksum, _, text in lines if checksum == b"%08x" % zlib.crc32(text)]
    return Counter(text.split(b",")[1] for text in whole if text.startswith(b"["))


def kills(bench: Bench, expected: Samples, length_s: float, runs: int, times: int) -> Row:
    """Kill runs at random moments, each so many times, and let them end."""
    row = Row(f"kill -9 of the run, {times} times each" if times > 1 else "kill -9 of the run")
    while row.runs < runs:
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            for _ in range(times):
                if bench.run(cache, kill_after_s=bench.chance.uniform(0, length_s)) is not None:
                    break  # it was done before that moment
            else:
                _resume(bench, row, expected, cache)
    return row


def _resume(bench: Bench, row: Row, expected: Samples, cache: Path) -> None:
    before = kept_keys(cache)
    check_before(Places(None, cache.with_name(f"{cache.name}_rank0.db")))
    found = bench.run(cache)
    if found is None:
        raise SystemExit("a run that nobody killed was killed")
    after = kept_keys(cache)
    row.count(expected, found)
    row.kept.append(len(before))
    row.computed.append(after.total() - before.total())
    row.duplicated += sum(count - 1 for count in after.values())
    print(f"{row.fault}: run {row.runs}, {row.kept[-1]} kept, {row.computed[-1]} computed")


def damages(
    bench: Bench, expected: Samples, name: str, damage: Callable[[Bench, Path], None], runs: int
) -> Row:
    """Damage complete caches and run again over each."""
    row = Row(name)
    while row.runs < runs:
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            bench.run(cache)
            damage(bench, cache)
            _resume(bench, row, expected, cache)
    return row


def damage_row(bench: Bench, cache: Path) -> None:
    """Change one byte of the value of one row, without SQLite's or pickle's noticing it."""
    with closing(sqlite3.connect(f"{cache}_rank0.db")) as connection, connection:
        rows = connection.execute("SELECT key, value FROM unnamed").fetchall()
        key, value = bench.chance.choice(rows)
        changed = bytearray(value)
        changed[bench.chance.randrange(len(changed))] ^= bench.chance.randint(1, 255)
        connection.execute("UPDATE unnamed SET value = ? WHERE key = ?", (bytes(changed), key))


def cut_off(suffix: str, bench: Bench, cache: Path) -> None:
    """Cut a file off at a random byte."""
    path = Path(f"{cache}_rank0{suffix}")
    os.truncate(path, bench.chance.randrange(path.stat().st_size))


def damage_byte(suffix: str, bench: Bench, cache: Path) -> None:
    """Change a random byte of a file."""
    path = Path(f"{cache}_rank0{suffix}")
    content = bytearray(path.read_bytes())
    content[bench.chance.randrange(len(content))] ^= bench.chance.randint(1, 255)
    path.write_bytes(content)


DAMAGES = {
    "corrupted cache row": damage_row,
    "truncated cache file": functools.partial(cut_off, ".db"),
    "damaged byte in the cache file": functools.partial(damage_byte, ".db"),
    "truncated journal": functools.partial(cut_off, ".jsonl"),
    "damaged byte in the journal": functools.partial(damage_byte, ".jsonl"),
}


def measure(args: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows."""
    bench = Bench("demo", args.seed)
    start = time.perf_counter()
    expected = bench.run(None)
    length_s = time.perf_counter() - start
    if expected is None:
        raise SystemExit("a run that nobody killed was killed")
    print(f"{sum(map(len, expected.values()))} responses in {length_s:.1f} s")
    yield kills(bench, expected, length_s, args.kills, times=1)
    yield kills(bench, expected, length_s / 2, args.kills // 3, times=3)
    for name, damage in DAMAGES.items():
        yield damages(bench, expected, name, damage, args.damages)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--damages", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--larger", help="a checkpoint of ordinary size, to see what keeping costs")
    parser.add_argument("--limit", type=int, default=20, help="documents per task with --larger")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    evaluator.add_env_info = lambda _results: None  # a dozen subprocesses that ask for versions
    logging.disable(logging.WARNING)
    rows = [vars(row) for row in measure(args)]
    costs = {"demo": cost(Bench("demo", args.seed).evaluate)}
    if args.larger:
        costs[Path(args.larger).name] = cost(Bench(args.larger, args.seed, args.limit).evaluate)
    words = f"--kills {args.kills} --damages {args.damages} --seed {args.seed}"
    if args.larger:
        words += f" --larger MODELS/{Path(args.larger).name} --limit {args.limit}"
    found = {
        **environment("sqlitedict"),
        "command": f"python benchmarks/resume.py {words}",
        "rows": rows,
        "cost": costs,
    }
    write_result(RESULTS / "resume.json", json.loads(json.dumps(found)))


if __name__ == "__main__":
    main()
