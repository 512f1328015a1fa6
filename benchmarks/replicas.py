"""What replicas bring and what dealing costs.

    python benchmarks/replicas.py [--seconds 60] [--part throughput simulation soak]

- `throughput`: the demo checkpoint on Ray, one replica of one thread against two, each measured
  after its start and a short warm-up, on the same requests;
- `simulation`: the real cutting and dealing of a million requests to 64 simulated replicas, in
  virtual time in which the driver's own time passes, too;
- `soak`: 100,000 requests in ten rounds, memory after each: the scripted engine in a replica of
  this process, and two replicas of the demo on Ray.

Writes results/replicas.json; the last line on stdout is the JSON document.
"""

from __future__ import annotations

import argparse
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pairs
from environment import RESULTS, environment, write_result
from replicas_simulation import CHOICES, in_new_process, requests_of, simulation, timed

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.locate import locate
from lm_eval_exl2.computing import OneProcess
from lm_eval_exl2.engines.scripted import ScriptedEngine
from lm_eval_exl2.options import parse_options
from lm_eval_exl2.records import ScoreRequest
from lm_eval_exl2.replicas.cut import cut_scoring
from lm_eval_exl2.replicas.limits import Limits
from lm_eval_exl2.replicas.ray_replicas import RayReplicas
from lm_eval_exl2.replicas.replica import Replica
from lm_eval_exl2.replicas.replicated import Replicated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIB = 1 << 20


def demo_requests(count: int, seed: int = 0) -> list[ScoreRequest]:
    """Make requests for the demo checkpoint, whose window is 512 tokens."""
    return requests_of(count, subject=150, question=60, per_subject=25, vocabulary=500, seed=seed)


def open_demo(replicas: int) -> Replicated:
    """Start replicas of the demo with one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = {"pretrained": "demo", "device": "cpu", "data_parallel_size": replicas}
    digest = Checkpoint(locate("demo").directory).digest()
    return Replicated(
        RayReplicas(parse_options(arguments), digest),
        replicas,
        describe=lambda request: str(request.index),
        limits=Limits(),
    )


# -- throughput -----------------------------------------------------------------------------


def throughput(seconds: float) -> list[dict[str, Any]]:
    """Measure one replica and two on the same requests."""
    rows: list[dict[str, Any]] = []
    scores: list[list[Any]] = []
    count = 0
    for replicas in (1, 2):
        computer = open_demo(replicas)
        warm_s, _ = timed(lambda c=computer: list(c.score(demo_requests(2000, seed=1))))
        # Two replicas take at least half as long as one.
        count = count or int(2000 * 2.2 * seconds / warm_s) // CHOICES * CHOICES
        requests, before = demo_requests(count), computer.counts.forwarded
        seconds_taken, found = timed(lambda c=computer, r=requests: list(c.score(r)))
        tokens = computer.counts.forwarded - before
        scores.append(sorted(found, key=lambda score: score.index))
        rows.append(
            {
                "part": f"{replicas} replicas of one thread",
                "replicas": replicas,
                "requests": count,
                "units": computer.driver.dealer.totals.units,
                "seconds": round(seconds_taken, 2),
                "tokens_forwarded": tokens,
                "tokens_per_s": round(tokens / seconds_taken),
                "times_one": round(rows[0]["seconds"] / seconds_taken, 3) if rows else 1.0,
                "bit_equal_to_one": scores[-1] == scores[0],
            }
        )
        print(rows[-1], flush=True)
        computer.close()
    return rows


# -- soak -----------------------------------------------------------------------------------


def soak_scripted(rounds: int, size: int) -> dict[str, Any]:
    """Have a replica of this process answer rounds of units with the scripted engine."""
    replica = Replica()
    engine = ScriptedEngine(vocab_size=64, max_length=512)
    encoder: Any = None  # nothing is generated
    replica.computer = OneProcess(engine, encoder, parse_options({"pretrained": "demo"}))

    def answer(requests: Sequence[ScoreRequest]) -> int:
        answered = 0
        for unit in cut_scoring(requests):
            replica.give(1, unit)
            report = replica.take()
            answered += len(report.answers)
            while not report.is_finished:
                report = replica.take()
                answered += len(report.answers)
        return answered

    def requests(number: int) -> list[ScoreRequest]:
        return requests_of(size, subject=20, question=8, per_subject=25, vocabulary=60, seed=number)

    return _soak("scripted engine", rounds, requests, answer, [os.getpid()])


def soak_demo(rounds: int, size: int) -> dict[str, Any]:
    """Have two replicas on Ray answer rounds of requests."""
    computer = open_demo(2)
    pids = [about.pid for about in computer.replicas.abouts.values()]

    def answer(requests: Sequence[ScoreRequest]) -> int:
        return sum(1 for _ in computer.score(requests))

    def requests(number: int) -> list[ScoreRequest]:
        return requests_of(
            size, subject=20, question=8, per_subject=25, vocabulary=500, seed=number
        )

    row = _soak("demo, 2 replicas", rounds, requests, answer, [os.getpid(), *pids])
    computer.close()
    return row


def _soak(
    name: str,
    rounds: int,
    requests: Callable[[int], list[ScoreRequest]],
    answer: Callable[[Sequence[ScoreRequest]], int],
    pids: list[int],
) -> dict[str, Any]:
    answered, memory = 0, list[list[float]]()
    for number in range(rounds):
        answered += answer(requests(number))
        memory.append([_resident_mib(pid) for pid in pids])
    row = {
        "part": f"soak, {name}",
        "requests": answered,
        "resident_mib_after_each_round": memory,
    }
    print(row, flush=True)
    return row


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / MIB, 1)


PARTS = {
    "throughput": lambda args: throughput(args.seconds),
    "simulation": lambda args: [
        in_new_process(simulation, args.requests, args.replicas, deaths) for deaths in (0, 10)
    ],
    "soak": lambda args: [soak_scripted(10, args.soak // 10), soak_demo(10, args.soak // 10)],
}
ROWS = [
    *("1 replicas of one thread", "2 replicas of one thread"),
    *("simulation, 0 deaths", "simulation, 10 deaths"),
    *("soak, scripted engine", "soak, demo, 2 replicas"),
]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of the faster run")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the simulation")
    parser.add_argument("--replicas", type=int, default=64, help="of the simulation")
    parser.add_argument("--soak", type=int, default=100_000, help="requests")
    args = parser.parse_args()
    result: dict[str, Any] = environment("ray")
    words = [f"--part {' '.join(args.part)}", f"--seconds {args.seconds:g}"]
    words += [f"--requests {args.requests}", f"--replicas {args.replicas}", f"--soak {args.soak}"]
    result["command"] = f"python benchmarks/replicas.py {' '.join(words)}"
    result["rows"] = [row for part in args.part for row in PARTS[part](args)]
    path = RESULTS / "replicas.json"
    write_result(path, pairs.joined(path, result, ROWS, key="part"))


if __name__ == "__main__":
    main()
