"""Prompts -> continuations: what to ask the engine, when to stop, what text to give back.

Knows ids and strings; the engine decides how rows share forwards. Reasoning is stripped before
stop strings apply, and stop strings are not looked for inside it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval_exl2.records import GenerateRequest
from lm_eval_exl2.stops import StopScanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lm_eval_exl2.encode import Encoder, TextStream
    from lm_eval_exl2.engines.base import Engine


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to continue and how."""

    index: int
    token_ids: list[int]
    max_new_tokens: int
    min_new_tokens: int
    until: list[str]
    """Stop strings."""
    sampling: Mapping[str, Any]
    """transformers' sampling parameters; empty for greedy decoding."""
    seed: int = 0
    """Of its own random stream; see `with_seeds`."""


class Ending(NamedTuple):
    """What ends texts, besides their own stop strings."""

    eos_ids: frozenset[int]
    """Tokens that end any text."""
    think_end: str | int | None = None
    """Token or string before which stop strings do not count."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the engine produced for a prompt, a special token that ends it excluded."""

    index: int
    token_ids: list[int]
    is_cut: bool = False
    """Whether it ended at max_new_tokens, by no stop and no end token."""


@dataclass(slots=True)
class _Watch:
    """Decides, token by token, when one request is finished."""

    stream: TextStream
    scanner: StopScanner
    eos_ids: frozenset[int]
    silent_ids: frozenset[int]
    """Those of `eos_ids` that are not part of the text."""
    min_new_tokens: int
    think_end: str | int | None
    token_ids: list[int] = field(default_factory=list[int])
    has_ended: bool = False
    _text: str = ""

    def is_finished(self, token_id: int) -> bool:
        """Take a token; return whether it ends the request."""
        self.has_ended = self._ends(token_id)
        return self.has_ended

    def _ends(self, token_id: int) -> bool:
        is_end = token_id in self.eos_ids and len(self.token_ids) >= self.min_new_tokens
        if is_end and token_id in self.silent_ids:
            return True
        self.token_ids.append(token_id)
        if is_end:
            return True
        piece = self.stream.push(token_id)
        if self.think_end is not None:
            piece = self._after_reasoning(token_id, piece)
        return self.scanner.feed(piece)

    def _after_reasoning(self, token_id: int, piece: str) -> str:
        """Return what of a piece lies behind the end of the reasoning."""
        if isinstance(self.think_end, str):
            self._text += piece
            _, ended, rest = self._text.partition(self.think_end)
        else:
            ended, rest = token_id == self.think_end, ""
        if ended:
            self.think_end = None
        return rest


def generate(
    prompts: Sequence[Prompt],
    engine: Engine,
    encoder: Encoder,
    ending: Ending,
    between_steps: Callable[[], None] = lambda: None,
) -> Iterator[Continuation]:
    """Continue all prompts, yielding each when it is finished, in no particular order.

    Args:
        prompts: What to continue; neighbours in the engine are those with common beginnings.
        engine: Produces tokens.
        encoder: Turns tokens into text to look for stop strings in.
        ending: What ends texts.
        between_steps: Called after each step, when all texts it finished are given out.
    """
    eos_ids, think_end = ending
    silent_ids = frozenset(token for token in eos_ids if encoder.is_special(token))
    watches = {
        prompt.index: _Watch(
            encoder.stream(),
            StopScanner(prompt.until),
            eos_ids,
            silent_ids,
            prompt.min_new_tokens,
            think_end,
        )
        for prompt in prompts
    }
    yield from (Continuation(prompt.index, []) for prompt in prompts if not prompt.max_new_tokens)
    ordered = sorted(
        (prompt for prompt in prompts if prompt.max_new_tokens),
        key=lambda prompt: (prompt.token_ids, prompt.index),
    )
    requests = (
        GenerateRequest(
            index=prompt.index,
            prompt_ids=prompt.token_ids,
            max_new_tokens=prompt.max_new_tokens,
            sampling=prompt.sampling,
            seed=prompt.seed,
            min_new_tokens=prompt.min_new_tokens,
            stop_ids=eos_ids,
        )
        for prompt in ordered
    )

    def is_finished(index: int, token_id: int) -> bool:
        return watches[index].is_finished(token_id)

    forwarded = engine.counts.forwarded
    for token in engine.generate(requests, is_finished):
        if engine.counts.forwarded != forwarded:  # the first token of another step
            forwarded = engine.counts.forwarded
            between_steps()
        if token.is_last:
            watch = watches.pop(token.index)
            yield Continuation(token.index, watch.token_ids, is_cut=not watch.has_ended)


def with_seeds(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Give each prompt a seed that depends on its content and repeat number, not on order.

    So whoever asks for all repeats again, and computes some of them, gets the same texts.

    Args:
        prompts: All prompts of a call: repeats are counted over them.
        seed: Of the run.
    """
    repeats: Counter[str] = Counter()
    seeded: list[Prompt] = []
    for prompt in prompts:
        content = json.dumps([prompt.token_ids, dict(prompt.sampling)], sort_keys=True)
        text = f"{seed}|{repeats[content]}|{content}"
        repeats[content] += 1
        digest = hashlib.sha256(text.encode()).digest()
        seeded.append(replace(prompt, seed=int.from_bytes(digest[:8], "big") >> 1))
    return seeded


def text_of(
    token_ids: list[int],
    encoder: Encoder,
    *,
    think_end: str | int | None,
    skip_special_tokens: bool,
    cut: Callable[[str, str | None], str],
) -> str:
    """Return the text of a continuation, reasoning stripped first, stop strings cut after.

    Args:
        token_ids: Produced tokens.
        encoder: Decodes them.
        think_end: Token or string that ends the reasoning.
        skip_special_tokens: Leave special tokens out of the text.
        cut: Removes reasoning up to a string and cuts at stop strings (the harness's function).
    """
    if isinstance(think_end, int):
        if think_end in token_ids:
            token_ids = token_ids[len(token_ids) - token_ids[::-1].index(think_end) :]
        text = encoder.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return cut(text.lstrip(), None)
    text = encoder.decode(token_ids, skip_special_tokens=skip_special_tokens)
    return cut(text, think_end)
