"""Which documents a quick run takes, drawn from nothing but names and sizes.

The rule: every document of a split gets the SHA-256 digest of "exl2_quick:SEED:TASK:PART:INDEX"
(INDEX counts from 0, PART is the split, or the subject where a task has several). Each part gives
the documents with the smallest digests, as many as its share; all that are chosen are put in the
order of their digests. So a slice is random whatever the order of the split, the first N documents
of a slice (`--limit N`) are a smaller random slice, and any language can draw it again.

What was drawn lies in `ids.json` beside this file; a run reads the file and draws nothing.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from lm_eval_exl2.errors import OptionError

SEED: Final = 1

IDS_FILE: Final = Path(__file__).with_name("ids.json")


class Slice(NamedTuple):
    """The documents of one quick task."""

    sizes: dict[str, int]
    """Documents in each part of the whole, in the order in which the parts are joined."""
    places: list[int]
    """Of each chosen document, its index in the joined parts, in the order of the quick run."""


def allocate(sizes: Sequence[int], count: int) -> list[int]:
    """Share a number of documents among parts in proportion to their sizes.

    Each gets its share rounded down, but at least one. Then documents are added, one by one, to the
    part that lacks most (the first of equals), or taken from the one that has most too many.

    Raises:
        OptionError: More parts than documents to share, or fewer documents than asked for.
    """
    total = sum(sizes)
    if not len(sizes) <= count <= total:
        raise OptionError(
            f"{count} documents were asked for; {len(sizes)} parts with {total} documents together "
            f"give at least one each and at most all: choose between {len(sizes)} and {total}"
        )
    given = [max(1, count * size // total) for size in sizes]

    def lack(part: int) -> int:
        return count * sizes[part] - given[part] * total

    while sum(given) < count:
        given[max(range(len(sizes)), key=lambda part: (lack(part), -part))] += 1
    while sum(given) > count:  # small parts were given one although their share is less
        shrinkable = [part for part in range(len(sizes)) if given[part] > 1]
        given[min(shrinkable, key=lambda part: (lack(part), part))] -= 1
    return given


def draw(task: str, sizes: Mapping[str, int], count: int) -> Slice:
    """Draw a slice by the rule at the top of this module.

    Args:
        task: Its name, part of the digested text.
        sizes: Documents in each part.
        count: Documents to draw.

    Raises:
        OptionError: As in `allocate`.
    """
    starts = accumulate([0, *sizes.values()])
    chosen: list[tuple[str, int]] = []
    for (part, size), start, share in zip(
        sizes.items(), starts, allocate(list(sizes.values()), count), strict=False
    ):
        ranked = sorted((_digest(task, part, index), start + index) for index in range(size))
        chosen += ranked[:share]
    return Slice(dict(sizes), [place for _, place in sorted(chosen)])


def _digest(task: str, part: str, index: int) -> str:
    return sha256(f"exl2_quick:{SEED}:{task}:{part}:{index}".encode()).hexdigest()


@cache
def committed() -> dict[str, Slice]:
    """The slices of `ids.json`, by the name that a task's YAML gives under `slice`."""
    read = json.loads(IDS_FILE.read_text(encoding="utf-8"))
    return {name: Slice(each["sizes"], each["places"]) for name, each in read["slices"].items()}


def find(name: str) -> Slice:
    """A committed slice.

    Raises:
        OptionError: There is none of this name.
    """
    try:
        return committed()[name]
    except KeyError:
        raise OptionError(
            f"there is no slice {name!r} in {IDS_FILE.name}; known are {', '.join(committed())}"
        ) from None


def check_sizes(name: str, found: Mapping[str, int]) -> None:
    """Refuse data that the places of a slice do not belong to.

    Raises:
        OptionError: A part has another number of documents than when the slice was drawn.
    """
    for part, size in find(name).sizes.items():
        if found.get(part) != size:
            raise OptionError(
                f"{name}: {part} has {found.get(part)} documents, the quick slice was drawn for "
                f"{size}, so its ids would name other documents; use the data set's revision with "
                f"{size} documents, or run the full task"
            )
