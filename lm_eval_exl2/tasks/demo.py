"""Loads the demo tasks' documents from the installed package, without a network.

Called by the harness for `custom_dataset:` in YAMLs under `task_configs`. It only reads files of
`lm_eval_exl2/demo/data`: those that `lm_eval_exl2.demo.train` wrote, and problems that were written
for this package: some in the shape of HumanEval and MBPP, some of arithmetic.
"""

# `datasets` ships without types:
# pyright: reportMissingTypeStubs=false

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datasets import Dataset

_DATA: Final = Path(__file__).parent.parent / "demo" / "data"


def facts(**_metadata: object) -> "dict[str, Dataset]":
    """Load the questions about towns: splits `test` and `train` (few-shot examples).

    Args:
        **_metadata: What the harness passes on from the task's metadata and the model's
            arguments; not needed here.

    Returns:
        Documents with `question`, `choices` and `answer` (index of the right choice), by split.
    """
    return _splits("facts", "test", "train")


def cloze(**_metadata: object) -> "dict[str, Dataset]":
    """Load the stories whose last word is to be guessed: splits `test` and `train`.

    Args:
        **_metadata: As in `facts`.

    Returns:
        Documents with `text`, which ends in the word to guess, by split.
    """
    return _splits("cloze", "test", "train")


def arithmetic(**_metadata: object) -> "dict[str, Dataset]":
    """Load the additions: splits `test` and `train` (few-shot examples).

    Args:
        **_metadata: As in `facts`.

    Returns:
        Documents with `problem` ("3 + 4 =") and `answer` ("7"), by split.
    """
    return _splits("arithmetic", "test", "train")


def stories(**_metadata: object) -> "dict[str, Dataset]":
    """Load the longer texts for perplexity: split `test` only.

    Args:
        **_metadata: As in `facts`.

    Returns:
        Documents with `text`, by split.
    """
    return _splits("stories", "test")


def humaneval(**_metadata: object) -> "dict[str, Dataset]":
    """Load twelve problems with HumanEval's fields: split `test` only.

    Args:
        **_metadata: As in `facts`.

    Returns:
        Documents with `task_id`, `prompt`, `canonical_solution`, `test`, `entry_point`, by split.
    """
    return _splits("humaneval", "test")


def mbpp(**_metadata: object) -> "dict[str, Dataset]":
    """Load five problems with MBPP's fields, and four examples: splits `test` and `prompt`.

    Args:
        **_metadata: As in `facts`.

    Returns:
        Documents with `task_id`, `text`, `code`, `test_list` and `test_setup_code`, by split.
    """
    return _splits("mbpp", "test", "prompt")


def maths(**_metadata: object) -> "dict[str, Dataset]":
    """Load sums and word problems: split `test` only.

    Args:
        **_metadata: As in `facts`.

    Returns:
        Documents with `problem` ("3 + 4 =") and `answer` ("7"), by split.
    """
    return _splits("maths", "test")


def subjects(subject: str, **_metadata: object) -> "dict[str, Dataset]":
    """Load the invented questions of one subject: splits `test` and `dev` (few-shot examples).

    Args:
        subject: "bridges", "markets" or "rivers".
        **_metadata: As in `facts`.

    Returns:
        Documents with MMLU's fields (`question`, `subject`, `choices`, `answer`), by split.
    """
    return _splits("quick", "test", "dev", subject=subject)


def _splits(task: str, *names: str, **fields: object) -> "dict[str, Dataset]":
    """By split, the documents that have these fields."""
    from datasets import Dataset

    # Not load_dataset: it would leave a copy in the user's cache folder.
    return {
        name: Dataset.from_list(_read(_DATA / f"{task}_{name}.jsonl", fields))  # pyright: ignore[reportUnknownMemberType]
        for name in names
    }


def _read(path: Path, fields: dict[str, object]) -> list[dict[str, object]]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if fields.items() <= row.items()]
