"""Run published scores again: reads anchors.yaml, writes results/anchors.json.

    python benchmarks/anchors.py --list
    python benchmarks/anchors.py [--only NAME ...] [--hours 4]

Each anchor is one command of the stock harness and the number it should give:

- `model`, `pretrained`, `revision`, `model_args`, `task`, `flags`: the command;
- `metric`: "name,filter" in the results of `result` (default: the task) whose value is compared;
- `value`, `source`: what was published and where;
- `tolerance`: how far off is still the same, absolute, or relative as in "0.5 %";
- `needs_gib`: memory of the card; `unverified`: what of all this nobody has checked.

An anchor that cannot run here is recorded as "not run" with the reason, one whose command fails as
"failed"; none is left out. An anchor that ran keeps its row until it runs again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from environment import environment, write_result

ANCHORS = Path(__file__).with_name("anchors.yaml")
RESULT = Path(__file__).parent / "results" / "anchors.json"
_HUB_S = 60

_ASK_THE_HUB = (
    "import sys; from huggingface_hub import HfApi; "
    "HfApi().model_info(sys.argv[1], revision=sys.argv[2] or None, timeout=20)"
)


class NotRun(Exception):
    """An anchor cannot run here; the text says why."""


class Failed(Exception):
    """An anchor's command failed; the text is what it said last."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """One published score; the fields are the keys of anchors.yaml."""

    name: str
    model: str
    pretrained: str
    task: str
    metric: str
    value: float
    source: str
    tolerance: float | str
    needs_gib: float
    revision: str = ""
    model_args: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    result: str = ""
    unverified: str = ""

    def margin(self) -> float:
        """The tolerance in the metric's own unit."""
        if isinstance(self.tolerance, str):
            return float(self.tolerance.removesuffix("%")) / 100 * self.value
        return self.tolerance

    def command(self) -> list[str]:
        """The command, as a user would type it."""
        arguments = {"pretrained": self.pretrained, "revision": self.revision, **self.model_args}
        given = ",".join(f"{key}={value}" for key, value in arguments.items() if value != "")
        words = ["lm_eval", "--model", self.model, "--model_args", given, "--tasks", self.task]
        return [*words, *self.flags]


Run = Callable[[Anchor], dict[str, Any]]


def read_anchors(path: Path) -> list[Anchor]:
    """Read and check a file of anchors.

    Raises:
        SystemExit: A key is missing or unknown, or a name stands there twice.
    """
    anchors: list[Anchor] = []
    for each in yaml.safe_load(path.read_text(encoding="utf-8"))["anchors"]:
        try:
            anchors.append(Anchor(**each))
            anchors[-1].margin()
        except (TypeError, ValueError) as error:
            raise SystemExit(f"{path.name}, anchor {each.get('name')}: {error}") from error
    names = [anchor.name for anchor in anchors]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SystemExit(f"{path.name}: {', '.join(sorted(twice))} stand there twice")
    return anchors


def compare(anchor: Anchor, results: dict[str, Any]) -> dict[str, Any]:
    """The measured value against the published one.

    Raises:
        Failed: The results do not have the anchor's metric.
    """
    found = results["results"].get(anchor.result or anchor.task, {})
    measured = found.get(anchor.metric)
    if not isinstance(measured, int | float):
        raise Failed(f"no {anchor.metric} in the results; there are {', '.join(map(str, found))}")
    name, _, rest = anchor.metric.partition(",")
    return {
        "measured": measured,
        "stderr": found.get(f"{name}_stderr,{rest}"),
        "difference": measured - anchor.value,
        # NaN is not within anything; 5.49 is within 0.02 of 5.47, whatever floats make of it.
        "within": abs(measured - anchor.value) <= anchor.margin() + 1e-9,
        "version": results.get("versions", {}).get(anchor.task),
    }


def row(anchor: Anchor, run: Run) -> dict[str, Any]:
    """Run one anchor; whatever happens becomes a row."""
    kept = {
        "name": anchor.name,
        "command": shlex.join(anchor.command()),
        "metric": anchor.metric,
        "published": anchor.value,
        "tolerance": anchor.margin(),
        "source": anchor.source,
        "unverified": anchor.unverified,
    }
    try:
        return {**kept, "status": "ran", **compare(anchor, run(anchor))}
    except NotRun as reason:
        return {**kept, "status": "not run", "reason": str(reason)}
    except Failed as reason:
        return {**kept, "status": "failed", "reason": str(reason)}


def join(earlier: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """New rows in place of earlier ones of the same name.

    "Not run" does not replace a row that ran, unless the anchor has been changed since.
    """

    def identity(each: dict[str, Any]) -> tuple[str, str, float]:
        return each["name"], each["command"], each["published"]

    ran = {identity(each): each for each in earlier if each["status"] == "ran"}
    fresh = {
        each["name"]: ran.get(identity(each), each) if each["status"] == "not run" else each
        for each in new
    }
    others = {each["name"]: each for each in earlier if each["name"] not in fresh}
    return [*others.values(), *fresh.values()]


def check_here(anchor: Anchor) -> None:
    """Whether an anchor can run on this machine.

    Raises:
        NotRun: No card, too little memory, or the checkpoint cannot be reached.
    """
    words = [sys.executable, "-c", _ASK_THE_HUB, anchor.pretrained, anchor.revision]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_HUB_S)
    except subprocess.TimeoutExpired:
        raise NotRun(f"hub not reachable: no answer within {_HUB_S} s") from None
    if asked.returncode:
        raise NotRun(f"hub not reachable, or no access: {_last_line(asked.stderr)}")
    import torch

    if not torch.cuda.is_available():
        raise NotRun("no card")
    gib = torch.cuda.mem_get_info()[1] / 2**30
    if gib < anchor.needs_gib:
        raise NotRun(f"the card has {gib:.0f} GiB, needs {anchor.needs_gib:.0f}")


def run_here(anchor: Anchor, timeout_s: float) -> dict[str, Any]:
    """Run an anchor's command.

    Returns:
        The harness's results file.

    Raises:
        NotRun: As in `check_here`.
        Failed: The command failed, took too long, or wrote no results.
    """
    check_here(anchor)
    _, *words = anchor.command()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lm_eval", *words, "--output_path", folder]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {timeout_s / 3600:g} hours") from None
        written = sorted(Path(folder).rglob("results_*.json"))
        if done.returncode or not written:
            raise Failed(_last_line(done.stderr))
        return json.loads(written[-1].read_text(encoding="utf-8"))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the anchors and stop")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this one")
    parser.add_argument("--hours", type=float, default=4.0, help="for one command (default 4)")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    anchors = read_anchors(ANCHORS)
    if args.list:
        for anchor in anchors:
            print(f"{anchor.name}\t{anchor.value}\t{shlex.join(anchor.command())}")
        return
    names = args.only or [anchor.name for anchor in anchors]
    if unknown := set(names) - {anchor.name for anchor in anchors}:
        parser.error(f"no anchor {', '.join(sorted(unknown))}; --list shows them")
    where = environment("exllamav2")
    rows = []
    for anchor in anchors:
        if anchor.name in names:
            found = row(anchor, lambda each: run_here(each, args.hours * 3600))
            rows.append({**found, "date": where["date"], "commit": where["commit"]})
            print(f"{anchor.name}: {found['status']} {found.get('reason', '')}", file=sys.stderr)
    earlier = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    order = [anchor.name for anchor in anchors]
    joined = sorted(
        (each for each in join(earlier, rows) if each["name"] in order),
        key=lambda each: order.index(each["name"]),
    )
    counts = {
        status: sum(each["status"] == status for each in joined)
        for status in ("ran", "failed", "not run")
    }
    counts["within"] = sum(each.get("within") is True for each in joined)
    command = " ".join(["python benchmarks/anchors.py", *(f"--only {n}" for n in args.only or [])])
    write_result(args.output, {"rows": joined, "counts": counts, **where, "command": command})


if __name__ == "__main__":
    main()
