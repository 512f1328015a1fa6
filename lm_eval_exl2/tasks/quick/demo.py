"""Documents of the quick demo task with subjects, from the installed package, without a network."""

# `datasets` ships without types:
# pyright: reportMissingTypeStubs=false

import json
from pathlib import Path
from typing import TYPE_CHECKING

import lm_eval_exl2

if TYPE_CHECKING:
    from datasets import Dataset

_DATA = Path(lm_eval_exl2.__file__).parent / "demo" / "data"


def subjects(subject: str, **_metadata: object) -> "dict[str, Dataset]":
    """Load the invented questions of one subject: splits `test` and `dev` (few-shot examples).

    Args:
        subject: "bridges", "markets" or "rivers".
        **_metadata: What the harness passes on besides; not needed here.

    Returns:
        Documents with MMLU's fields (`question`, `subject`, `choices`, `answer`), by split.
    """
    from datasets import Dataset

    splits: dict[str, Dataset] = {}
    for name in ("test", "dev"):
        lines = (_DATA / f"quick_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["subject"] == subject]
        # Not load_dataset: it would leave a copy in the user's cache folder.
        splits[name] = Dataset.from_list(rows)  # pyright: ignore[reportUnknownMemberType]
    return splits
