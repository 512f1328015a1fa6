"""How fast the demo checkpoints answer on a CPU, and whether cheating is caught.

    python benchmarks/bench_cpu.py [--output FOLDER] [--sizes FOLDER] [--seconds 20] [--threads 1]

The prompt bench on float16 and its EXL2 sizes (three more rounded in SIZES, default build/bench),
the four LoadGen scenarios on the demo checkpoint (with a load beyond capacity), and systems that
cheat in one way each. Writes results/bench_cpu.json; the last line on stdout is the JSON document.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench_cheats
import torch
from environment import RESULTS, ROOT, environment, write_result
from report import BITS

from lm_eval_exl2.bench import loadgen_agreement
from lm_eval_exl2.bench.documents import scenario_json
from lm_eval_exl2.bench.journal import Journal
from lm_eval_exl2.bench.models import BenchModel
from lm_eval_exl2.bench.profiles import PROFILES
from lm_eval_exl2.bench.records import COMPLETE
from lm_eval_exl2.bench.run import Settings, run
from lm_eval_exl2.bench.scenarios import Reporter, ScenarioSettings, run_scenario
from lm_eval_exl2.checkpoint.writer import quantize_directory
from lm_eval_exl2.demo import demo_directory
from lm_eval_exl2.tasks.task_prompts import task_prompts

if TYPE_CHECKING:
    from collections.abc import Callable

    from lm_eval_exl2.bench.journal import Journal as JournalType
    from lm_eval_exl2.bench.scenarios import ScenarioRun

TASK = "exl2_demo_arithmetic"
PROFILE = PROFILES["llama3.1-8b-interactive"]
NEW_TOKENS = 24
BENCH_PROMPTS = 5
QPS = 25.0
BEYOND_QPS = 400.0
NO_JOURNAL = Journal(None)
_COLUMNS = ("scheduled_s", "issued_s", "first_token_s", "last_token_s", "tokens")


# Name -> the wrapped engine or the reporter that does it.
ENGINES: dict[str, Callable[[Any], Any]] = {
    "a made-up first token": bench_cheats.MadeUpFirstToken,
    "a second end token": bench_cheats.SecondEnd,
    "text behind the end token": bench_cheats.GoesOnAfterTheEnd,
    "short queries first": bench_cheats.ShortestFirst,
}
REPORTERS: dict[str, Callable[[JournalType], Reporter]] = {
    "first token reported at issue": bench_cheats.EarlyFirstToken,
    "more tokens reported than produced": bench_cheats.WrongCount,
    "another text reported": bench_cheats.OtherText,
}


def sizes(folder: Path) -> list[str]:
    """Return float16 and its EXL2 sizes, those that do not ship written to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["demo-fp16", "demo"]
    for bits in BITS:
        path = folder / f"demo-{bits}bpw"
        if not path.exists():
            quantize_directory(demo_directory("demo-fp16"), path, bits=bits)
        names.append(str(path))
    return [*names, "demo-2.5bpw"]


def prompt_bench(names: list[str], texts: list[str]) -> list[dict[str, Any]]:
    """Return a row per checkpoint and way of ending."""
    document = run(
        Settings(
            pretrained=names,
            prompts=texts,
            source=TASK,
            max_new_tokens=NEW_TOKENS,
            repetitions=5,
            profile=PROFILE,
            model_args={"device": "cpu"},
        ),
        NO_JOURNAL,
    )
    return [
        {
            "checkpoint": Path(entry["name"]).name,
            "bits_layers": entry["facts"]["bits_layers"],
            "size_bytes": entry["facts"]["size_bytes"],
            "ending": bench["ending"],
            "figures": {name: rounded(figure) for name, figure in bench["figures"].items()},
            "checks": bench["checks"],
        }
        for entry in document["checkpoints"]
        for bench in entry["prompt_bench"]
    ]


def rounded(value: Any) -> Any:
    """Return JSON values with six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value


class Bench:
    """Runs scenarios on one loaded checkpoint."""

    def __init__(self, texts: list[str], seconds: float) -> None:
        """Load the demo checkpoint."""
        self.model = BenchModel("demo", {"device": "cpu"}, texts, max_new_tokens=NEW_TOKENS)
        self.settings = ScenarioSettings(
            scenario="Offline",
            profile=PROFILE,
            max_new_tokens=NEW_TOKENS,
            duration_s=seconds,
            give_up_s=3 * seconds,
            qps=QPS,
        )

    def run(
        self,
        settings: ScenarioSettings,
        *,
        engine: Any = None,
        make_reporter: Callable[[JournalType], Reporter] = Reporter,
        end_ids: frozenset[int] | None = None,
    ) -> ScenarioRun:
        """Run one scenario."""
        return run_scenario(
            engine or self.model.engine,
            self.model.fitted.prompts,
            settings,
            end_ids=self.model.end_ids if end_ids is None else end_ids,
            journal=NO_JOURNAL,
            make_reporter=make_reporter,
        )

    def scenarios(self) -> list[dict[str, Any]]:
        """Return a row per scenario and load, with the times of each request of a Server run."""
        beyond = {"qps": BEYOND_QPS, "duration_s": 5.0, "give_up_s": 6.0}
        wanted = [
            self.settings,
            replace(self.settings, scenario="SingleStream"),
            replace(self.settings, scenario="Server"),
            replace(self.settings, scenario="Server", **beyond),
            replace(self.settings, scenario="MultiStream"),
        ]
        return [self._row(self.run(each)) for each in wanted]

    def _row(self, found: ScenarioRun) -> dict[str, Any]:
        document = scenario_json(found)
        requests = document.pop("requests")
        if found.settings.scenario == "Server" and found.outcome == COMPLETE:
            columns = {name: [request[name] for request in requests] for name in _COLUMNS}
            # One line a column: the file is for people, too.
            document["requests"] = {
                name: " ".join(f"{value:.6g}" for value in values)
                for name, values in columns.items()
            }
        checks = [check._asdict() for check in self.model.scenario_checks(found)]
        both = loadgen_agreement.compare(found)
        document["agreement"] = {
            "figures": len(both),
            "agree": sum(each.agrees for each in both),
            "largest_latency_difference_s": max(
                (abs(each.ours - each.loadgen) for each in both if "latency" in each.name),
                default=None,
            ),
        }
        return rounded(document | {"checks": checks})

    def cheats(self) -> list[dict[str, Any]]:
        """Return a row per way of cheating, the first one honest."""
        honest = self.run(self.settings)
        # Tokens that really end texts, so that there is an end to cheat about.
        end_ids = frozenset(request.token_ids[2] for request in honest.requests)
        engine = self.model.engine
        runs = {"none (honest)": self.run(self.settings, end_ids=end_ids)}
        for name, make in ENGINES.items():
            runs[name] = self.run(self.settings, engine=make(engine), end_ids=end_ids)
        for name, make_reporter in REPORTERS.items():
            runs[name] = self.run(self.settings, make_reporter=make_reporter, end_ids=end_ids)
        self.model.end_ids = end_ids
        rows: list[dict[str, Any]] = []
        for name, found in runs.items():
            failed = [check for check in self.model.scenario_checks(found) if not check.passed]
            caught = {check.name: check.found for check in failed}
            rows.append({"cheat": name, "outcome": found.outcome, "caught_by": caught})
        return rows


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--sizes", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts = task_prompts(TASK, limit=None)
    bench = Bench(texts, args.seconds)
    result = {
        **environment("mlcommons_loadgen"),
        "command": f"python benchmarks/bench_cpu.py --seconds {args.seconds:g}",
        "threads": args.threads,
        "task": TASK,
        "prompts": len(texts),
        "bench_prompts": BENCH_PROMPTS,
        "max_gen_toks": NEW_TOKENS,
        "profile": PROFILE._asdict(),
        "prompt_bench": prompt_bench(sizes(args.sizes.resolve()), texts[:BENCH_PROMPTS]),
        "scenarios": bench.scenarios(),
        "cheats": bench.cheats(),
    }
    write_result(args.output / "bench_cpu.json", result)


if __name__ == "__main__":
    main()
