"""`lm-eval-exl2 compare`: arguments, reports, exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_exl2.compare import policy, primary
from lm_eval_exl2.compare.results import Comparison, to_json
from lm_eval_exl2.errors import ComparisonError, OptionError
from lm_eval_exl2.files import write_whole

if TYPE_CHECKING:
    from lm_eval_exl2.compare.comparing import Choices
    from lm_eval_exl2.compare.runs import Run

_EXIT = """
exit codes: 0 ship or acceptable with monitoring, 10 marginal, 11 do not ship, 12 inconclusive,
13 cannot compare; 1 crash, 2 wrong usage. With several candidates that of the worst (do not ship,
cannot compare, inconclusive, marginal), or of --gate's.
"""
_USAGE = 2
_DESCRIPTION = """
Is the small model still good enough? Compares results that the harness wrote with --output_path and
--log_samples, document by document, from any --model. The first three lines of the report answer.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description, parser.epilog = _DESCRIPTION, _EXIT
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("baseline", nargs="?", type=Path, metavar="BASELINE")
    parser.add_argument("candidates", nargs="*", type=Path, metavar="CANDIDATE")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="render an earlier --json")
    _add_policy(parser.add_argument_group("what is demanded"))
    _add_pairing(parser.add_argument_group("what is compared"))
    _add_reports(parser.add_argument_group("reports, each written whole or not at all"))


def _add_policy(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    group.add_argument("--profile", default="general", help="of the policy (default: general)")
    group.add_argument("--policy", type=Path, default=policy.SHIPPED, metavar="FILE")
    group.add_argument("--drop", choices=("relative", "absolute"))
    group.add_argument("--decide-by", choices=("interval", "estimate"))
    group.add_argument(
        "--fail-on",
        metavar="STATES",
        help="comma-separated states with an exit code other than 0 (default: all but ship and "
        "acceptable with monitoring)",
    )
    group.add_argument("--gate", metavar="LABEL", help="the candidate whose state is the exit code")
    group.add_argument("--accept-limited", action="store_true", help="count --limit as evidence")


def _add_pairing(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    group.add_argument(
        "--baseline-scores",
        type=Path,
        metavar="FILE",
        help="published scores in place of BASELINE: task, metric, value (a share), n, source",
    )
    group.add_argument("--tasks", metavar="A,B", help="only these tasks or groups")
    group.add_argument(
        "--primary",
        action="append",
        default=[],
        metavar="TASK=METRIC[,FILTER] | FILE",
        help="which metric counts",
    )
    group.add_argument("--pair", choices=("prompt", "doc"), default="prompt")
    group.add_argument(
        "--run",
        metavar="TIME",
        help="results of this time, not the newest; for one run alone give its results file",
    )
    group.add_argument(
        "--cluster",
        metavar="FIELD|none",
        help="documents that share its value belong together (default: a usual one, such as "
        "passage or source_id)",
    )
    group.add_argument(
        "--adjacent", action="store_true", help="each candidate against the next larger, too"
    )
    group.add_argument(
        "--noise", nargs=2, type=Path, metavar=("A", "B"), help="the same checkpoint run twice"
    )
    group.add_argument("--flips", type=int, default=20, metavar="N", help="shown per task and kind")
    group.add_argument("--flips-file", type=Path, metavar="FILE", help="all of them, as JSON lines")


def _add_reports(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    for name in ("json", "markdown", "html", "csv", "junit", "model-card"):
        group.add_argument(f"--{name}", type=Path, metavar="FILE")
    group.add_argument(
        "--eval-results",
        type=Path,
        metavar="FILE",
        help="YAML for .eval_results/ of the candidate's hub repository (the only one, or --gate)",
    )
    group.add_argument("--quiet", action="store_true", help="no report on the terminal")


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit code of the worst state.
    """
    try:
        failing = _failing(arguments.fail_on)
        comparison = _comparison(arguments)
        states = _gated(comparison, arguments.gate)
        _report(comparison, arguments, failing)
    except (ComparisonError, OptionError) as error:
        usage = isinstance(error, OptionError)
        said = "error" if usage else policy.CANNOT_COMPARE
        sys.stderr.write(f"{said}: {' '.join(str(error).split())}\n")
        return _USAGE if usage else policy.EXIT_CODES[policy.CANNOT_COMPARE]
    worst = max(
        states, key=lambda state: policy.WORST_LAST.index(state) if state in failing else -1
    )
    return policy.EXIT_CODES[worst] if worst in failing else 0


def _comparison(arguments: argparse.Namespace) -> Comparison:
    if arguments.from_json is not None:
        from lm_eval_exl2.compare.render.from_json import read_comparison

        return read_comparison(arguments.from_json)
    choices = _choices(arguments)
    folders = [each for each in (arguments.baseline, *arguments.candidates) if each is not None]
    if arguments.baseline_scores is not None:
        return _compare_with_published(folders, choices, arguments)
    if len(folders) < 2:
        raise OptionError("expected BASELINE and at least one CANDIDATE, two result folders")
    from lm_eval_exl2.compare.comparing import all_flips, compare_runs
    from lm_eval_exl2.compare.runs import read_run

    baseline, *candidates = _runs(folders, arguments.run)
    noise = None
    if arguments.noise:
        first, second = (read_run(folder) for folder in arguments.noise)
        noise = first, second
    found = compare_runs(baseline, candidates, choices, noise=noise)
    if arguments.flips_file is not None:
        lines = all_flips(baseline, candidates, choices)
        write_whole(arguments.flips_file, "".join(f"{line}\n" for line in lines))
    return found


def _compare_with_published(
    folders: Sequence[Path], choices: Choices, arguments: argparse.Namespace
) -> Comparison:
    if not folders:
        raise OptionError("expected at least one CANDIDATE, a result folder")
    for name in ("noise", "flips_file", "adjacent"):
        if getattr(arguments, name):
            raise OptionError(f"--{name.replace('_', '-')} needs a BASELINE with samples")
    from lm_eval_exl2.compare.published import read_published
    from lm_eval_exl2.compare.unpaired import compare_with_published

    path = arguments.baseline_scores
    runs = _runs(folders, arguments.run)
    return compare_with_published(path, read_published(path), runs, choices)


def _choices(arguments: argparse.Namespace) -> Choices:
    from lm_eval_exl2.compare.comparing import Choices

    profile = policy.read_profile(
        arguments.profile, arguments.policy, drop=arguments.drop, decide_by=arguments.decide_by
    )
    return Choices(
        table=_table(arguments.primary),
        profile=profile,
        by_document=arguments.pair == "doc",
        cluster="" if arguments.cluster == "none" else arguments.cluster,
        accept_limited=arguments.accept_limited,
        shown_flips=arguments.flips,
        tasks=arguments.tasks.split(",") if arguments.tasks else (),
        adjacent=arguments.adjacent,
    )


def _runs(folders: Sequence[Path], time: str | None) -> list[Run]:
    from lm_eval_exl2.compare.runs import read_run

    return [read_run(folder, label=label, time=time) for folder, label in _labels(folders)]


def _labels(folders: Sequence[Path]) -> list[tuple[Path, str | None]]:
    """By the model's name, unless folders share one; then by the folder's."""
    from lm_eval_exl2.compare.runs import read_run

    names = [read_run(folder).label for folder in folders]
    if len(set(names)) == len(names):
        return [(folder, None) for folder in folders]
    parts = [folder.resolve().parts for folder in folders]
    length = 2
    while length < max(map(len, parts)) and len({each[-length:] for each in parts}) < len(parts):
        length += 1
    return [(folder, "/".join(each[-length:])) for folder, each in zip(folders, parts, strict=True)]


def _table(given: Sequence[str]) -> list[primary.Line]:
    files = [Path(each) for each in given if "=" not in each]
    if len(files) > 1:
        raise OptionError("--primary takes one FILE")
    overrides = [each for each in given if "=" in each]
    return primary.read_table(*files, overrides=overrides)


def _failing(given: str | None) -> frozenset[str]:
    if given is None:
        return frozenset(state for state, code in policy.EXIT_CODES.items() if code)
    states = frozenset(each.strip() for each in given.split(",") if each.strip())
    for state in sorted(states - policy.EXIT_CODES.keys()):
        raise OptionError(f"--fail-on {state!r}, expected some of {', '.join(policy.STATES)}")
    for state in sorted(states):
        if not policy.EXIT_CODES[state]:
            raise OptionError(f"--fail-on {state!r}: this state has exit code 0 and cannot fail")
    return states


def _gated(comparison: Comparison, gate: str | None) -> list[str]:
    states = [(each.variant.label, each.verdict.state) for each in comparison.candidates]
    if gate is None:
        return [state for _, state in states]
    found = [state for label, state in states if label == gate]
    if len(found) != 1:
        labels = ", ".join(label for label, _ in states)
        raise OptionError(f"--gate {gate!r} is {len(found)} candidates, there are {labels}")
    return found


def _eval_results(comparison: Comparison, gate: str | None) -> str:
    from lm_eval_exl2.compare.render import model_card

    chosen = [each for each in comparison.candidates if gate in (None, each.variant.label)]
    if len(chosen) != 1:
        raise OptionError(
            f"--eval-results is of one candidate; found {len(chosen)}, name one by --gate"
        )
    text = model_card.eval_results(chosen[0])
    if not text:
        known = ", ".join(model_card.REGISTERED)
        raise OptionError(
            f"--eval-results: no full run of a benchmark that the hub lists ({known})"
        )
    return text


def _report(comparison: Comparison, arguments: argparse.Namespace, failing: frozenset[str]) -> None:
    from lm_eval_exl2.compare.render import junit, markdown, model_card, page, table, terminal

    writers: dict[str, Callable[[], str]] = {
        "json": lambda: json.dumps(to_json(comparison), indent=1, allow_nan=False) + "\n",
        "markdown": lambda: markdown.to_markdown(comparison),
        "html": lambda: page.to_html(comparison),
        "csv": lambda: table.to_csv(comparison),
        "junit": lambda: junit.to_junit(comparison, failing),
        "model_card": lambda: model_card.to_card(comparison),
        "eval_results": lambda: _eval_results(comparison, arguments.gate),
    }
    asked: dict[str, Path | None] = {name: getattr(arguments, name) for name in writers}
    texts = [(path, writers[name]()) for name, path in asked.items() if path is not None]
    for path, text in texts:
        write_whole(path, text)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(markdown.step_summary(comparison))
    if not arguments.quiet:
        terminal.print_report(comparison)
