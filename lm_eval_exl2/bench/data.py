"""Prompts to measure with: one text, a file of JSON lines, or those of a harness task.

Their order is that of the source and is never changed; prompts that do not fit the window are left
out and counted, not cut.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class BenchPrompt(NamedTuple):
    """A prompt as the engine gets it."""

    place: int
    """In the source."""
    token_ids: Sequence[int]


class BenchPrompts(NamedTuple):
    """Prompts that can be measured with, and those that cannot."""

    prompts: list[BenchPrompt]
    left_out: dict[int, int]
    """Place in the source -> tokens, of prompts that leave no room for the output."""


def read_prompts(path: Path) -> list[str]:
    """Read a file of JSON lines, each a string or an object with a field `prompt` or `text`.

    Raises:
        OptionError: it cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {path}: {error}") from error
    found = [
        _prompt_of(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise OptionError(f"{path} holds no prompts; expected one JSON object per line")
    return found


def _prompt_of(line: str, where: str) -> str:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise OptionError(f"{where}: not JSON ({error})") from error
    if isinstance(content, dict):
        content = content.get("prompt", content.get("text"))  # pyright: ignore
    if not isinstance(content, str):
        raise OptionError(f'{where}: expected a string or {{"prompt": "..."}}')
    return content


def fit_prompts(
    texts: Sequence[str],
    encode: Callable[[str], list[int]],
    *,
    max_new_tokens: int,
    window: int,
) -> BenchPrompts:
    """Encode prompts, leaving out those too long for the window.

    Args:
        texts: In the order of their source.
        encode: Text to ids, BOS included where the model wants one.
        max_new_tokens: Room that the output needs.
        window: Tokens that the model can take.

    Raises:
        OptionError: none is left.
    """
    prompts: list[BenchPrompt] = []
    left_out: dict[int, int] = {}
    for place, text in enumerate(texts):
        ids = encode(text)
        if 0 < len(ids) <= window - max_new_tokens:
            prompts.append(BenchPrompt(place, ids))
        else:
            left_out[place] = len(ids)
    if not prompts:
        raise OptionError(
            f"no prompt leaves room for max_gen_toks={max_new_tokens} in a window of {window} "
            f"tokens, the shortest has {min(left_out.values(), default=0)}; lower --max_gen_toks "
            "or give shorter prompts"
        )
    return BenchPrompts(prompts, left_out)
