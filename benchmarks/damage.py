"""Does any damaged checkpoint make the reader do anything but read or refuse it?

    python benchmarks/damage.py --count 2000 --seed 0 [--checkpoint DIR]

Makes randomly damaged copies of a tiny checkpoint, opens each and decodes every weight in a
worker process under a memory and a time limit. The outcome must be success or the package's own
error; any other exception, a signal, a hang or an allocation beyond the limit is a crash. Without
`--checkpoint` the copies are taken in turn from a tiny EXL2, GPTQ and unquantized checkpoint. The
last line printed is JSON.
"""

import argparse
import json
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import damage_kinds
import tiny

TIME_LIMIT_S = 20
MEMORY_LIMIT_BYTES = 256 << 20
"""What a worker may allocate beyond what it holds after importing its libraries."""
START_LIMIT_S = 120


def measure(checkpoint=None, count=2000, seed=0):
    """Read damaged copies and count what happens.

    Args:
        checkpoint: Directory to damage, or None for tiny ones of every kind.
        count: Number of copies.
        seed: Of the damage.

    Returns:
        Counts of copies read, accepted, refused and crashed on, and a list of the crashes.
    """
    started = time.perf_counter()
    outcomes = {"accepted": 0, "refused": 0, "crash": 0}
    crashes = []
    with tempfile.TemporaryDirectory() as scratch:
        sources = [_read(folder) for folder in _sources(checkpoint, Path(scratch))]
        worker = Worker()
        for number in range(count):
            draw = random.Random(f"{seed}-{number}")
            files, what = damage_kinds.damaged(sources[number % len(sources)], draw)
            copy = Path(scratch) / f"copy-{number}"
            _write(copy, files)
            outcome, text = worker.read(copy)
            outcomes[outcome] += 1
            if outcome == "crash":
                crashes.append(f"seed {seed}-{number}: {what}: {text}")
            _remove(copy)
        worker.stop()
    return {
        "damaged_checkpoints_read": count,
        "crashes": outcomes["crash"],
        "refused": outcomes["refused"],
        "accepted": outcomes["accepted"],
        "seconds": round(time.perf_counter() - started, 1),
        "details": crashes[:20],
    }


def _sources(checkpoint, scratch):
    if checkpoint:
        return [Path(checkpoint)]
    config = tiny.CONFIG
    exl2 = tiny.exl2_tensors(bias=("q_proj",))
    return [
        tiny.write(scratch / "exl2", exl2, config | tiny.EXL2, files=2),
        tiny.write(scratch / "gptq", tiny.gptq_tensors(order="random"), config | tiny.GPTQ),
        tiny.write(scratch / "one", tiny.exl2_tensors(), config | tiny.EXL2),
        tiny.write(
            scratch / "plain", tiny.plain_tensors(), config, files=2, stem="model", index=True
        ),
    ]


def _read(folder):
    names = ("*.safetensors", "*.json")
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name)}


def _write(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _remove(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


class Worker:
    """A process that reads checkpoints one after another; started anew when one kills it."""

    def __init__(self, command=(sys.executable, __file__, "--worker"), limit_s=TIME_LIMIT_S):
        self._command = command
        self._limit_s = limit_s
        self._process = None

    def read(self, folder):
        """Have one directory read; return accepted, refused or crash, and a text."""
        if self._process is None:
            self._start()
        self._process.stdin.write(f"{folder}\n".encode())
        self._process.stdin.flush()
        answer = self._answer(self._limit_s)
        if answer is None:
            code = self.stop()
            return "crash", f"no answer within {self._limit_s} s (exit code {code})"
        return answer["outcome"], answer["text"]

    def stop(self):
        """End the process; return its exit code if it had ended by itself."""
        if self._process is None:
            return None
        try:
            code = self._process.wait(timeout=0.2)  # a process that died may need a moment
        except subprocess.TimeoutExpired:
            code = None
        self._process.kill()
        self._process.communicate()
        self._process = None
        return code

    def _start(self):
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._answer(START_LIMIT_S) is None:
            self.stop()
            raise RuntimeError("the worker process does not start")

    def _answer(self, limit_s):
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        line = self._process.stdout.readline() if ready else b""
        return json.loads(line) if line.endswith(b"\n") else None


def limit_memory(allowance_bytes=MEMORY_LIMIT_BYTES):
    """Make this process fail to allocate more than an allowance from here on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + allowance_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _work():
    """Read directories named on standard input; what a worker process runs."""
    import torch

    from lm_eval_exl2.checkpoint import Checkpoint
    from lm_eval_exl2.errors import Exl2EvalError

    torch.set_num_threads(1)
    limit_memory()
    print(json.dumps({"outcome": "ready", "text": ""}), flush=True)
    for line in sys.stdin:
        outcome, text = "accepted", ""
        try:
            checkpoint = Checkpoint(Path(line.rstrip("\n")))
            for weight in checkpoint.weights():
                checkpoint.load(weight)
        except Exl2EvalError as error:
            outcome, text = "refused", str(error)
            if "\n" in text or not text.isprintable() or len(text) > 2000:
                outcome, text = "crash", f"an unreadable error: {text[:200]!r}"
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
            outcome, text = "crash", f"{type(error).__name__}: {error}"[:500]
        print(json.dumps({"outcome": outcome, "text": text}), flush=True)


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="directory to damage copies of")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work()
        return 0
    result = measure(options.checkpoint, options.count, options.seed)
    for line in result.pop("details"):
        print(line)
    print(json.dumps(result))
    return 1 if result["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())
