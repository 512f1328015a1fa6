"""Answers of several runs of a quality task, side by side, with their faults marked.

    python -m lm_eval_exl2.tasks.quality.side_by_side fp16=A.jsonl 4.0bpw=B.jsonl --output t.html

Reads samples files as `lm_eval --log_samples` writes them. The faults are found anew, by the rules
of this version.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from lm_eval_exl2.errors import Exl2EvalError, OptionError
from lm_eval_exl2.files import write_whole
from lm_eval_exl2.tasks.quality.exact import is_exact
from lm_eval_exl2.tasks.quality.judge import FAULTS, find_faults, score
from lm_eval_exl2.tasks.quality.prompts import Prompt
from lm_eval_exl2.tasks.quality.samples import Sample, read_samples
from lm_eval_exl2.tasks.quality.tables import Cell, Table, render_html, render_markdown

_TITLE: Final = "Answers side by side"
_WRITERS: Final[dict[str, Callable[[str, Sequence[Table]], str]]] = {
    ".md": render_markdown,
    ".html": render_html,
}

Runs = Mapping[str, Mapping[str, Sample]]
"""Samples by the prompt's id, by the label of the run."""


def read_runs(paths: Mapping[str, Path]) -> dict[str, dict[str, Sample]]:
    """Read one samples file per label.

    Raises:
        OptionError: A file is no samples file of a quality task, or two asked different things
            under the same id.
    """
    runs = {label: read_samples(path) for label, path in paths.items()}
    first: dict[str, Sample] = {}
    for label, samples in runs.items():
        for name, sample in samples.items():
            known = first.setdefault(name, sample)
            if known.prompt != sample.prompt:
                raise OptionError(
                    f"{str(paths[label])!r} asks another prompt {name!r} than the files before it; "
                    "expected samples of one version of one task"
                )
    return runs


def as_markdown(runs: Runs) -> str:
    """Write a table of counts and a table of answers as Markdown."""
    return render_markdown(_TITLE, _make_tables(runs))


def as_html(runs: Runs) -> str:
    """Write a table of counts and a table of answers as one HTML page."""
    return render_html(_TITLE, _make_tables(runs))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 after an error the user can mend.
    """
    arguments = _parser().parse_args(argv)
    output: Path = arguments.output
    try:
        render = _writer(output)
        tables = _make_tables(read_runs(_read_labels(arguments.runs)))
        write_whole(output, render(_TITLE, tables))
    except Exl2EvalError as error:
        sys.stderr.write(f"side_by_side: error: {' '.join(str(error).split())}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lm_eval_exl2.tasks.quality.side_by_side",
        description="Answers of several runs of exl2_quality side by side, faults marked.",
    )
    parser.add_argument("runs", nargs="+", metavar="LABEL=SAMPLES", help="a run's samples file")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", required=True, help="to write: .html or .md"
    )
    return parser


def _read_labels(words: Sequence[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for word in words:
        label, is_given, path = word.partition("=")
        if not (label and is_given and path):
            raise OptionError(f"{word!r}: expected LABEL=SAMPLES, such as fp16=samples.jsonl")
        if label in paths:
            raise OptionError(f"label {label!r} is given twice; expected one label per run")
        paths[label] = Path(path)
    return paths


def _writer(path: Path) -> Callable[[str, Sequence[Table]], str]:
    try:
        return _WRITERS[path.suffix.lower()]
    except KeyError:
        known = " or ".join(_WRITERS)
        raise OptionError(f"output {str(path)!r}: expected a name that ends in {known}") from None


def _make_tables(runs: Runs) -> list[Table]:
    prompts = {name: sample.prompt for samples in runs.values() for name, sample in samples.items()}
    rows = [
        [
            _prompt_cell(prompt),
            *(_answer_cell(samples.get(name)) for samples in runs.values()),
        ]
        for name, prompt in prompts.items()
    ]
    return [_count(runs), Table(("prompt", *runs), rows)]


def _count(runs: Runs) -> Table:
    """How many answers of each run have a fault, and how many are right."""
    scores = [
        [score(sample.prompt, sample.answer) for sample in samples.values()]
        for samples in runs.values()
    ]
    names = ["clean", "limits_kept", "exact", *(name for name in FAULTS if name != "limits")]
    rows = [
        [Cell(name), *(Cell(_share([each[name] for each in of if name in each])) for of in scores)]
        for name in names
    ]
    return Table(("answers", *runs), rows)


def _share(values: Sequence[int]) -> str:
    return f"{sum(values)} of {len(values)}"


def _prompt_cell(prompt: Prompt) -> Cell:
    right = f"\n\nRight: {prompt.answers[0]}" if prompt.answers else ""
    return Cell(f"{prompt.id}\n\n{prompt.prompt}{right}")


def _answer_cell(sample: Sample | None) -> Cell:
    if sample is None:
        return Cell("", ("not asked",))
    prompt, answer = sample
    marks = [
        f"{name}: {textwrap.shorten(shown, 60, placeholder='...')}"
        for name, shown in find_faults(prompt, answer).items()
    ]
    if prompt.answers and not is_exact(prompt, answer):
        marks.append("wrong")
    return Cell(answer.strip(), tuple(marks))


if __name__ == "__main__":
    sys.exit(main())
