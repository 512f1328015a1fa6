"""Reads the answers in a samples file, which the harness writes on --log_samples."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks.quality.prompts import Prompt, read_prompt


class Sample(NamedTuple):
    """A prompt and the first answer to it."""

    prompt: Prompt
    answer: str


def read_samples(path: Path) -> dict[str, Sample]:
    """Read a samples file.

    Returns:
        Samples by the prompt's id, in the file's order.

    Raises:
        OptionError: The file is missing, or not a samples file of a quality task.
    """
    try:
        # Not splitlines: the harness writes signs such as U+2028 as they are.
        lines = path.read_text("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"cannot read samples file {str(path)!r} ({error}); expected "
            "samples_<task>_<time>.jsonl as `lm_eval --log_samples --output_path` writes it"
        ) from None
    if lines == [""]:
        raise OptionError(f"samples file {str(path)!r} is empty; expected one line per prompt")
    samples: dict[str, Sample] = {}
    for number, line in enumerate(lines, 1):
        try:
            sample = _read_line(line)
        except (OptionError, json.JSONDecodeError) as error:
            raise OptionError(
                f"{path}, line {number}: {error}; expected a samples file of exl2_quality"
            ) from None
        if sample.prompt.id in samples:
            raise OptionError(
                f"{path}, line {number}: prompt {sample.prompt.id!r} stands there twice; expected "
                "the samples file of one run"
            )
        samples[sample.prompt.id] = sample
    return samples


def check_reference(samples: Mapping[str, Sample], prompts: Mapping[str, str], path: Path) -> None:
    """Check that a baseline's samples answer given prompts.

    Args:
        samples: From `read_samples`.
        prompts: Texts of all prompts that are asked now, by id.
        path: Where the samples are from.

    Raises:
        OptionError: A prompt has no answer there, or reads differently.
    """
    missing = [name for name in prompts if name not in samples]
    if missing:
        raise OptionError(
            f"reference {str(path)!r} lacks {len(missing)} of {len(prompts)} prompts, such as "
            f"{missing[0]!r}; expected samples of the same task, without --limit"
        )
    for name, text in prompts.items():
        if samples[name].prompt.prompt != text:
            raise OptionError(
                f"reference {str(path)!r} was asked another prompt {name!r}; expected samples of "
                "this version of the task"
            )


def _read_line(line: str) -> Sample:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise OptionError(f"found {type(record).__name__}, expected an object")
    fields = cast("dict[str, Any]", record)
    match fields.get("resps"):
        case [[str(answer), *_], *_]:
            return Sample(read_prompt(fields.get("doc")), answer)
        case _:
            raise OptionError("no text under `resps`")
