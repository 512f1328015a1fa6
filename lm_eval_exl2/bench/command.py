"""`lm-eval-exl2 bench`: its arguments, and what they start.

Nothing heavy is imported before a run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.bench.journal import Journal, read_journal
from lm_eval_exl2.bench.loadgen import SCENARIOS
from lm_eval_exl2.bench.profiles import PROFILES
from lm_eval_exl2.bench.records import FAILED, INTERRUPTED
from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.files import write_whole

if TYPE_CHECKING:
    from lm_eval_exl2.bench.run import Settings

DESCRIPTION = """
How fast checkpoints answer: a prompt bench with repetitions, and LoadGen scenarios (--scenario),
loaded and computed as --model exl2 does, so that the speed is that of what was scored.
"""
_EXIT = """
exit codes: 0 measured, 14 an honesty check failed, 130 interrupted; 1 error, 2 wrong usage. Beside
--json FILE, every finished request is appended to FILE.requests.jsonl at once.
"""
_ERROR = 1
_CHECK_FAILED = 14
_INTERRUPTED = 130
_DEFAULT_PROMPT = "Once upon a time there was a small town by the sea, and"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description, parser.epilog = DESCRIPTION, _EXIT
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--from_requests",
        type=Path,
        metavar="FILE",
        help="report the requests that a killed run has left, and measure nothing",
    )
    parser.add_argument(
        "--from_json", type=Path, metavar="FILE", help="report an earlier --json, measure nothing"
    )
    _add_model(parser.add_argument_group("what is measured"))
    _add_load(parser.add_argument_group("how"))
    for name in ("json", "markdown", "html"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help="what compare --json wrote of the same checkpoints: plot quality against speed",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    group.add_argument("--pretrained", nargs="+", metavar="DIR", help="directory, hub id, demo...")
    group.add_argument(
        "--model_args",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="others, as for --model exl2, separated by spaces",
    )
    group.add_argument("--device", help="cpu, mps, cuda, cuda:N")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="one prompt")
    source.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON lines: a string, or a field prompt"
    )
    source.add_argument("--task", metavar="NAME", help="the prompts of a harness task")
    group.add_argument(
        "--limit", type=_count, metavar="N", help="only the first N prompts of a file or task"
    )
    group.add_argument(
        "--max_gen_toks",
        "--max_tokens",
        type=_count,
        default=128,
        metavar="N",
        help="tokens to generate (default 128)",
    )
    group.add_argument(
        "--scored",
        type=Path,
        metavar="RESULTS",
        help="the harness's results of this checkpoint: fail if its configuration was another one",
    )


def _add_load(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    group.add_argument(
        "--repetitions",
        type=int,
        default=5,
        metavar="N",
        help="of the prompt bench: 5 (default) or more; 0 for none",
    )
    group.add_argument(
        "--scenario",
        nargs="+",
        default=[],
        choices=SCENARIOS,
        metavar="NAME",
        help=f"with LoadGen: {', '.join(SCENARIOS)}",
    )
    group.add_argument(
        "--profile",
        default="llama2-70b",
        choices=tuple(PROFILES),
        help="limits of the Server scenario (default llama2-70b)",
    )
    group.add_argument(
        "--duration_s",
        type=_positive,
        default=60.0,
        metavar="S",
        help="of each scenario (default 60; MLPerf demands 600)",
    )
    group.add_argument(
        "--give_up_s",
        type=_positive,
        metavar="S",
        help="end a scenario that takes longer; default 10 times its duration",
    )
    group.add_argument(
        "--qps",
        nargs="+",
        type=_positive,
        default=[1.0],
        metavar="N",
        help="Server: arrivals per second; several values give a run each",
    )
    group.add_argument(
        "--streams", type=_count, default=8, metavar="N", help="MultiStream: prompts per query"
    )
    group.add_argument("--seed", type=int, default=1, help="of LoadGen's order and schedule")
    group.add_argument(
        "--price_per_hour",
        type=_positive,
        metavar="P",
        help="of the machine: show what a million tokens and answering all prompts cost",
    )
    group.add_argument(
        "--roofline",
        action="store_true",
        help="measure the device's bandwidth and products, and show the share that was reached",
    )


def _count(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r}: expected a whole number of at least 1")
    return int(word)


def _positive(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word!r}: expected a number above 0")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit status.

    Raises:
        Exl2EvalError: in one line, what was found, what was expected and what to do.
    """
    from lm_eval_exl2.bench.page import to_html
    from lm_eval_exl2.bench.report import sections, to_markdown
    from lm_eval_exl2.compare.render.from_json import read_comparison
    from lm_eval_exl2.compare.render.terminal import print_sections

    for name in ("json", "markdown", "html"):
        path: Path | None = getattr(arguments, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise OptionError(f"--{name} {path}: there is no such folder; create it first")
    comparison = None if arguments.compare is None else read_comparison(arguments.compare)
    document = _document(arguments)
    print_sections(sections(document))
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps(document, indent=1, allow_nan=False) + "\n")
    if arguments.markdown is not None:
        write_whole(arguments.markdown, to_markdown(document))
    if arguments.html is not None:
        write_whole(arguments.html, to_html(document, comparison))
    return _status(document)


def _document(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.from_json is not None:
        from lm_eval_exl2.bench.documents import read_document

        return read_document(arguments.from_json)
    return _left(arguments) if arguments.from_requests else _measured(arguments)


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    from lm_eval_exl2.bench.run import run as run_all

    path: Path | None = arguments.json
    settings = _settings(arguments)
    with Journal(path and path.with_name(f"{path.name}.requests.jsonl")) as journal:
        return run_all(settings, journal)


def _left(arguments: argparse.Namespace) -> dict[str, Any]:
    from lm_eval_exl2.bench.documents import journal_json

    return journal_json(arguments.from_requests, read_journal(arguments.from_requests))


def _settings(arguments: argparse.Namespace) -> Settings:
    from lm_eval_exl2.bench.prompt_bench import LEAST_REPETITIONS
    from lm_eval_exl2.bench.run import Settings

    if not arguments.pretrained:
        raise OptionError("--pretrained is missing: give one or more checkpoints")
    if arguments.repetitions != 0 and arguments.repetitions < LEAST_REPETITIONS:
        raise OptionError(
            f"--repetitions {arguments.repetitions}: expected {LEAST_REPETITIONS} or more, "
            "a deviation of fewer says nothing; or 0 for no prompt bench"
        )
    model_args = dict(_pair(word) for word in arguments.model_args)
    if arguments.device is not None:
        model_args["device"] = arguments.device
    prompts, source = _prompts(arguments)
    return Settings(
        pretrained=arguments.pretrained,
        prompts=prompts,
        source=source,
        max_new_tokens=arguments.max_gen_toks,
        repetitions=arguments.repetitions,
        profile=PROFILES[arguments.profile],
        model_args=model_args,
        scenarios=arguments.scenario,
        duration_s=arguments.duration_s,
        give_up_s=arguments.give_up_s or 10 * arguments.duration_s,
        qps=arguments.qps,
        streams=arguments.streams,
        seed=arguments.seed,
        scored=arguments.scored,
        price_per_hour=arguments.price_per_hour,
        roofline=arguments.roofline,
    )


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or name == "pretrained":
        raise OptionError(f"--model_args {word!r}: expected NAME=VALUE, other than pretrained")
    return name, value


def _prompts(arguments: argparse.Namespace) -> tuple[list[str], str]:
    """Return prompts in the order of their source, and its name."""
    if arguments.task is not None:
        from lm_eval_exl2.tasks.task_prompts import task_prompts

        return task_prompts(arguments.task, limit=arguments.limit), f"task {arguments.task}"
    if arguments.prompts is not None:
        from lm_eval_exl2.bench.data import read_prompts

        return read_prompts(arguments.prompts)[: arguments.limit], arguments.prompts.name
    return [arguments.prompt or _DEFAULT_PROMPT], "--prompt"


def _status(document: dict[str, Any]) -> int:
    if document["outcome"] == INTERRUPTED:
        return _INTERRUPTED
    entries = document["checkpoints"]
    parts = [part for each in entries for part in (*each["prompt_bench"], *each["scenarios"])]
    if any(part["outcome"].startswith(FAILED) for part in (document, *parts)):
        return _ERROR
    checks = [check for part in parts for check in part["checks"]]
    checks += [each["configuration"] for each in entries if "configuration" in each]
    return 0 if all(check["passed"] for check in checks) else _CHECK_FAILED
