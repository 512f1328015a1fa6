"""The command `lm-eval-exl2`: look at checkpoints, convert them, run the harness.

Errors a user can cause end in one line on stderr and exit status 1; wrong usage in status 2.
Imports of torch and the harness wait until a command needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_exl2 import __version__
from lm_eval_exl2.errors import Exl2EvalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lm_eval_exl2.checkpoint.summary import Summary

_PROGRAM = "lm-eval-exl2"
_NOT_CALIBRATED = (
    "rounds to the nearest code without calibration data; exllamav2's own conversion gives "
    "better checkpoints of the same size"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        The exit status: 0, or 1 after an error the user can mend.

    Raises:
        SystemExit: wrong usage (status 2), or the harness ended the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["run"]:  # argparse would take the harness's options for its own
            return _run(words[1:])
        arguments = _parser().parse_args(words)
        command: Callable[[argparse.Namespace], int] = arguments.command
        status = command(arguments)
        sys.stdout.flush()  # a closed pipe is noticed here, not when the interpreter ends
        return status
    except Exl2EvalError as error:
        return _fail(error)
    except KeyboardInterrupt as stop:
        return _die_interrupted(str(stop))
    except BrokenPipeError:  # as in `info DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if words[:1] == ["run"]:
            raise  # the harness's own troubles: its traceback says more than one line
        return _fail(error)


def _die_interrupted(text: str) -> int:
    """End as Ctrl-C ends a process, without the traceback; the shell sees status 130."""
    print(f"{_PROGRAM}: {text or 'interrupted'}", file=sys.stderr)
    sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    return 130  # where signals do not end a process


def _fail(error: Exception) -> int:
    print(f"{_PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM, description="Evaluate EXL2-quantized language models."
    )
    parser.add_argument("--version", action="version", version=f"{_PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Only for the help text: `main` takes this command before argparse sees it.
    commands.add_parser("run", help="the harness's own command, with --model exl2 registered")
    _add_info(commands.add_parser("info", help="what a checkpoint holds"))
    _add_dequantize(
        commands.add_parser("dequantize", help="decode into an ordinary Hugging Face folder")
    )
    _add_quantize(
        commands.add_parser(
            "quantize",
            help="round an unquantized checkpoint to EXL2 (not calibrated)",
            description=f"Write an EXL2 checkpoint. This {_NOT_CALIBRATED}.",
        )
    )
    _add_compare(commands.add_parser("compare", help="two or more runs: ship, or do not"))
    _add_divergence(
        commands.add_parser("divergence", help="how far models' distributions are apart, by token")
    )
    _add_bench(commands.add_parser("bench", help="how fast checkpoints answer"))
    _add_bench_accuracy(
        commands.add_parser("bench-accuracy", help="MLPerf's ROUGE gate for written answers")
    )
    tasks_path = commands.add_parser("tasks-path", help="print the folder of the exl2_* tasks")
    tasks_path.set_defaults(command=_tasks_path)
    return parser


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_info)


def _add_dequantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="EXL2 or GPTQ checkpoint")
    parser.add_argument("target", type=Path, metavar="DST", help="folder to create")
    parser.add_argument(
        "--dtype", default="float16", choices=("float16", "bfloat16", "float32"), help="of weights"
    )
    parser.set_defaults(command=_dequantize)


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="unquantized checkpoint")
    parser.add_argument("target", type=Path, metavar="DST", help="folder to create")
    parser.add_argument(
        "--bits", type=float, required=True, metavar="B", help="average code width, 2 to 8"
    )
    parser.add_argument(
        "--head-bits", type=int, default=6, metavar="H", help="code width of the head (default 6)"
    )
    parser.set_defaults(command=_quantize)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    from lm_eval_exl2.compare import command

    command.add_arguments(parser)
    parser.set_defaults(command=command.run)


def _add_divergence(parser: argparse.ArgumentParser) -> None:
    from lm_eval_exl2.divergence import command

    command.add_arguments(parser)
    parser.set_defaults(command=command.run)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from lm_eval_exl2.bench import command

    command.add_arguments(parser)
    parser.set_defaults(command=command.run)


def _add_bench_accuracy(parser: argparse.ArgumentParser) -> None:
    from lm_eval_exl2.bench import accuracy_command

    accuracy_command.add_arguments(parser)
    parser.set_defaults(command=accuracy_command.run)


def _run(words: list[str]) -> int:
    """Register and hand over to the harness, whose parser reads `sys.argv`."""
    from lm_eval_exl2 import run_checks
    from lm_eval_exl2.plugin import register

    places = run_checks.read_places(words)
    run_checks.check_before(places)
    before = run_checks.results_files(places)
    register()
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingTypeStubs]

    sys.argv = [f"{_PROGRAM} run", *words]
    cli_evaluate()
    run_checks.check_after(places, before)
    return 0


def _tasks_path(_arguments: argparse.Namespace) -> int:
    from lm_eval_exl2.plugin import task_configs_path

    print(task_configs_path())
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from lm_eval_exl2.checkpoint.reader import Checkpoint
    from lm_eval_exl2.checkpoint.summary import summarise

    summary = summarise(Checkpoint(arguments.directory))
    if arguments.json:
        print(json.dumps(summary.as_dict(), indent=2))
    else:
        print("\n".join(_describe(summary)))
    return 0


def _dequantize(arguments: argparse.Namespace) -> int:
    from lm_eval_exl2.checkpoint.export import dequantize_directory

    dequantize_directory(arguments.source, arguments.target, dtype=arguments.dtype)
    print(f"wrote {arguments.target} ({arguments.dtype})")
    return 0


def _quantize(arguments: argparse.Namespace) -> int:
    from lm_eval_exl2.checkpoint.reader import Checkpoint
    from lm_eval_exl2.checkpoint.summary import summarise
    from lm_eval_exl2.checkpoint.writer import quantize_directory

    print(f"note: {_NOT_CALIBRATED}", file=sys.stderr)
    quantize_directory(
        arguments.source, arguments.target, bits=arguments.bits, head_bits=arguments.head_bits
    )
    summary = summarise(Checkpoint(arguments.target))
    print(f"wrote {arguments.target}: {_bits(summary)}")
    return 0


def _bits(summary: Summary) -> str:
    head = "not stored" if summary.bits_head is None else f"{summary.bits_head:.3f}"
    return f"layers {summary.bits_layers:.3f}, head {head}, total {summary.bits_total:.3f}"


def _describe(summary: Summary) -> Iterator[str]:
    """Yield the lines of `info`."""
    rows = {
        "architecture": summary.architecture,
        "kind": summary.kind,
        "decoder layers": str(summary.layers),
        "parameters": f"{summary.parameters:,}",
        "size on disk": f"{summary.size_bytes:,} bytes",
        "bits per weight": _bits(summary),
        "quantization": json.dumps(summary.quantization) if summary.quantization else "none",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        yield f"{name:<{width}}  {value}"
    yield ""
    yield "share of the linear weights of each decoder layer at each width"
    yield from _describe_mix(summary)


def _describe_mix(summary: Summary) -> Iterator[str]:
    """Yield a table of layers and widths, equal neighbours in one line."""
    widths = sorted({width for mix in summary.width_mix for width in mix}, reverse=True)
    yield f"{'layers':<9}" + "".join(f"{f'{width} bits':>10}" for width in widths)
    lines = [
        "".join(f"{mix[w]:>10.1%}" if w in mix else f"{'-':>10}" for w in widths)
        for mix in summary.width_mix
    ]
    for line, same in groupby(range(len(lines)), key=lines.__getitem__):
        first, *others = same
        label = f"{first}-{others[-1]}" if others else f"{first}"
        yield f"{label:<9}{line}"


if __name__ == "__main__":
    sys.exit(main())
