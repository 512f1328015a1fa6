"""`lm-eval-exl2 divergence`: its arguments, and what they start.

Nothing heavy is imported before a run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lm_eval_exl2.divergence.protocols import PROTOCOLS
from lm_eval_exl2.divergence.report import CAVEAT, table
from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.files import write_whole

DESCRIPTION = (
    "Compare next-token distributions token by token along a text. " + CAVEAT + " Values are in "
    "nats, over the tokens both vocabularies really have."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.description = DESCRIPTION
    parser.add_argument("baseline", metavar="BASELINE", help="directory, hub id, or demo-fp16")
    parser.add_argument("candidates", metavar="CANDIDATE", nargs="+", help="compared with it")
    parser.add_argument(
        "--text",
        default="wikitext2",
        metavar="NAME",
        help="wikitext2 (default; test split, from the hub), demo, or a file: plain text, or "
        ".jsonl or .parquet with a field `text`",
    )
    parser.add_argument(
        "--protocol",
        default="qbench",
        choices=tuple(PROTOCOLS),
        help="qbench (default): windows of 2048, all positions, KL(baseline || candidate); "
        "llama.cpp: windows of 512 that begin with BOS, their second half; model_diff: "
        "exllamav2's, 20 windows of 2048, KL(candidate || baseline) over probabilities + 1e-10, "
        "ordered agreement of the top 1 to 5",
    )
    parser.add_argument("--window", type=_count, metavar="N", help="tokens per window")
    parser.add_argument("--rows", type=_count, metavar="N", help="most windows")
    parser.add_argument("--engine", default="auto", choices=("auto", "torch", "exllamav2"))
    parser.add_argument("--device", help="cpu, mps, cuda, cuda:N")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    parser.add_argument("--max_batch_tokens", type=_count, metavar="N", help="tokens per forward")
    parser.add_argument(
        "--noise_floor",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also compare the baseline with itself, once with rounding noise of its storage type "
        "after each layer and once in other batches; costs two more forwards of the baseline",
    )
    parser.add_argument("--seed", type=int, default=1, help="of that noise (default 1)")
    parser.add_argument(
        "--sequential",
        type=Path,
        metavar="FOLDER",
        help="hold one model in memory at a time: keep the baseline's most likely tokens in "
        "FOLDER, or use those a run with the same settings left there; KL becomes a lower bound",
    )
    parser.add_argument(
        "--top_k", type=_count, default=256, metavar="K", help="tokens it keeps (default 256)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.set_defaults(command=run)


def _count(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r}: expected a whole number of at least 1")
    return int(word)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit status, 0.

    Raises:
        Exl2EvalError: in one line, what was found, what was expected and what to do.
    """
    from lm_eval_exl2.divergence.models import EngineSettings
    from lm_eval_exl2.divergence.run import Settings
    from lm_eval_exl2.divergence.run import run as run_all

    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise OptionError(f"--json {arguments.json}: there is no such folder; create it first")
    engine = ("engine", "device", "dtype", "max_batch_tokens")
    other = ("baseline", "candidates", "text", "protocol", "window", "rows", "noise_floor", "seed")
    document = run_all(
        Settings(
            engine=EngineSettings(**{name: getattr(arguments, name) for name in engine}),
            sequential=arguments.sequential,
            top_k=arguments.top_k,
            **{name: getattr(arguments, name) for name in other},
        )
    )
    print("\n".join(table(document)))  # noqa: T201 - the command's output
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps(document, indent=1) + "\n")
    return 0
