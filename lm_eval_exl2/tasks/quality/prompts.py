"""The quality prompts: what is asked, within which limits, and what is right.

Standard library only, but for the functions that give the harness its documents.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from datasets import Dataset

PROMPTS: Final = Path(__file__).with_name("prompts.jsonl")
DEMO_PROMPTS: Final = Path(__file__).parents[2] / "demo" / "data" / "quality_test.jsonl"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question with what its answer is held against."""

    id: str
    kind: str
    prompt: str
    instruction: str
    """What the model is told beforehand, as system message where there is one."""
    max_sentences: int
    max_words: int
    min_sentences: int = 1
    avoid: tuple[str, ...] = ()
    """Words that the prompt forbids."""
    answers: tuple[str, ...] = ()
    """What counts as right; empty where many answers would be."""
    others: tuple[str, ...] = ()
    """Words that would be wrong answers; `exact` looks for the first of both kinds."""


def read_prompt(row: object) -> Prompt:
    """Make a prompt from a line of a prompts file, or from the document in a samples file.

    Raises:
        OptionError: It is no such document.
    """
    if not isinstance(row, Mapping):
        raise OptionError(f"found {type(row).__name__}, expected a document of a quality task")
    fields = dict(cast("Mapping[str, Any]", row))
    for name in ("id", "kind", "prompt"):
        if not isinstance(fields.get(name), str):
            raise OptionError(f"no text `{name}` in a document, expected one of a quality task")
    for name in ("max_sentences", "max_words"):
        if not isinstance(fields.get(name), int):
            raise OptionError(f"no number `{name}` in a document, expected one of a quality task")
    try:
        return Prompt(
            id=fields["id"],
            kind=fields["kind"],
            prompt=fields["prompt"],
            instruction=str(fields.get("instruction") or _instruction(fields)),
            max_sentences=fields["max_sentences"],
            max_words=fields["max_words"],
            min_sentences=int(fields.get("min_sentences") or 1),
            avoid=tuple(map(str, fields.get("avoid") or ())),
            answers=tuple(map(str, fields.get("answers") or ())),
            others=tuple(map(str, fields.get("others") or ())),
        )
    except (TypeError, ValueError) as error:
        raise OptionError(f"damaged document {fields['id']!r} of a quality task: {error}") from None


def load_prompts(path: Path) -> list[Prompt]:
    """Read a prompts file of this package: one JSON object a line."""
    return [read_prompt(json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def quality(**_metadata: object) -> "dict[str, Dataset]":
    """Load the prompts of `exl2_quality`.

    Args:
        **_metadata: What the harness passes on from the task's metadata; not needed here.

    Returns:
        Documents with the fields of `Prompt`: split `test` only.
    """
    return _as_dataset(PROMPTS)


def demo(**_metadata: object) -> "dict[str, Dataset]":
    """Load the prompts of `exl2_quality_demo`, which the demo checkpoint can answer.

    Args:
        **_metadata: As in `quality`.

    Returns:
        As `quality`.
    """
    return _as_dataset(DEMO_PROMPTS)


def _as_dataset(path: Path) -> "dict[str, Dataset]":
    from datasets import Dataset

    rows = [asdict(prompt) for prompt in load_prompts(path)]
    return {"test": Dataset.from_list(rows)}  # pyright: ignore[reportUnknownMemberType]


def _instruction(fields: Mapping[str, Any]) -> str:
    count = fields["max_sentences"]
    sentences = "one sentence" if count == 1 else f"{count} sentences"
    return (
        f"Answer in plain English prose, without emoji, in at most {sentences} and at most "
        f"{fields['max_words']} words."
    )
