"""`lm-eval-exl2 bench-accuracy`: arguments, reports, exit codes.

Nothing heavy is imported before a run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lm_eval_exl2.bench.rules import OWN, read_rules
from lm_eval_exl2.compare import policy
from lm_eval_exl2.errors import ComparisonError, OptionError
from lm_eval_exl2.files import write_whole

if TYPE_CHECKING:
    from lm_eval_exl2.bench.accuracy import Accuracy, Tokenize

_USAGE: Final = 2
_DESCRIPTION: Final = """
MLPerf's accuracy gate for written answers: ROUGE-1, -2 and -L of the candidate against references
at least 99 (99.9) % of the baseline's, and answers that are not shorter than 90 %. Beside it, how
alike the two runs' answers are. Reads what the harness wrote with --output_path and --log_samples
for a generate_until task.
"""
_EXIT: Final = """
exit codes, as of `compare`: 0 ship, 11 do not ship, 12 inconclusive, 13 cannot compare; 1 crash,
2 wrong usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description, parser.epilog = _DESCRIPTION, _EXIT
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "baseline",
        nargs="?",
        type=Path,
        metavar="BASELINE",
        help="may be left out where the rule has published scores",
    )
    parser.add_argument("candidate", type=Path, metavar="CANDIDATE")
    parser.add_argument(
        "--profile",
        default="mlperf",
        choices=("mlperf", "agreement-99"),
        help="whose state is the exit code: the gate's (default), or that of the agreement of "
        "both runs' answers, each ROUGE above 99",
    )
    parser.add_argument(
        "--rule",
        default=OWN,
        choices=tuple(read_rules()),
        help="own (default): the baseline is the run BASELINE; a model: its published scores",
    )
    parser.add_argument(
        "--ratio",
        default=Fraction(99, 100),
        type=_ratio,
        metavar="R",
        help="share of each ROUGE that must be reached (default 0.99; MLPerf also has 0.999)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="count answers in tokens of this tokenizer; without, in characters",
    )
    _add_pairing(parser)
    for name in ("json", "markdown"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    parser.add_argument("--quiet", action="store_true", help="no report on the terminal")


def _add_pairing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tasks",
        metavar="A[,B]",
        help="A has the references (default: the only task with written answers); the answers of "
        "the others count for the length alone",
    )
    parser.add_argument(
        "--reference",
        metavar="FIELD",
        help="of A's documents, a text or a list of texts (default: the task's target)",
    )
    parser.add_argument("--pair", choices=("prompt", "doc"), default="prompt")
    parser.add_argument(
        "--accept-limited",
        action="store_true",
        help="certify in spite of --limit, missing documents or sampled answers",
    )


def _ratio(word: str) -> Fraction:
    try:
        ratio = Fraction(word)
    except (ValueError, ZeroDivisionError):
        ratio = Fraction(0)
    if not 0 < ratio <= 1:
        raise argparse.ArgumentTypeError(f"{word!r}: expected a share such as 0.99")
    return ratio


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit code of the state that the profile gives.
    """
    try:
        found = _measure(arguments)
        state = _state(found, arguments.profile)
    except (ComparisonError, OptionError) as error:
        usage = isinstance(error, OptionError)
        said = "error" if usage else policy.CANNOT_COMPARE
        sys.stderr.write(f"{said}: {' '.join(str(error).split())}\n")
        return _USAGE if usage else policy.EXIT_CODES[policy.CANNOT_COMPARE]
    _report(found, arguments)
    return policy.EXIT_CODES[state]


def _state(found: Accuracy, profile: str) -> str:
    if profile == "mlperf":
        return found.gate.state
    if found.agreement is None:
        raise OptionError(f"--profile {profile} compares two runs' answers; give BASELINE, too")
    return found.agreement.state


def _measure(arguments: argparse.Namespace) -> Accuracy:
    from lm_eval_exl2.bench.accuracy import Choices, measure_accuracy
    from lm_eval_exl2.compare.runs import read_run

    choices = Choices(
        rule=read_rules()[arguments.rule],
        ratio=arguments.ratio,
        tokenize=None if arguments.tokenizer is None else _tokenizer(arguments.tokenizer),
        tasks=arguments.tasks.split(",") if arguments.tasks else (),
        reference=arguments.reference,
        by_document=arguments.pair == "doc",
        accept_limited=arguments.accept_limited,
    )
    baseline = None if arguments.baseline is None else read_run(arguments.baseline)
    return measure_accuracy(read_run(arguments.candidate), baseline, choices)


def _tokenizer(directory: str) -> Tokenize:
    from lm_eval_exl2.tasks.model_files import load_model_files

    loaded = load_model_files({"tokenizer": directory}).tokenizer

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return loaded(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    return tokenize


def _report(found: Accuracy, arguments: argparse.Namespace) -> None:
    from lm_eval_exl2.bench.accuracy import to_json
    from lm_eval_exl2.bench.accuracy_report import to_markdown

    if arguments.json is not None:
        content = json.dumps(to_json(found), indent=1, allow_nan=False)
        write_whole(arguments.json, content + "\n")
    if arguments.markdown is not None:
        write_whole(arguments.markdown, to_markdown(found))
    if not arguments.quiet:
        sys.stdout.write(to_markdown(found))
