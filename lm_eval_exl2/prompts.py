"""Generation requests of the harness -> prompts: arguments, stop strings, room, duplicates.

Arguments are normalised and stop strings collected by the harness's own functions. What a
request does not say comes from the checkpoint's generation_config.json, as in transformers.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval.models.utils import handle_stop_sequences, maybe_truncate, normalize_gen_kwargs

from lm_eval_exl2.checkpoint.files import read_json
from lm_eval_exl2.errors import RequestError
from lm_eval_exl2.generation import Prompt, with_seeds
from lm_eval_exl2.records import PENALTIES, WARPERS

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_exl2.encode import Encoder
    from lm_eval_exl2.options import Options

logger = logging.getLogger(__name__)

# What transformers fills in where neither request nor checkpoint says anything (5.x,
# `GenerationConfig._get_default_generation_params`); all other sampling parameters are off.
_DEFAULTS: dict[str, Any] = {"temperature": 1.0, "top_k": 50}
_WHOLE = ("no_repeat_ngram_size", "top_k")
# Arguments that change nothing at these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1, None),
    "num_return_sequences": (1, None),
    "use_cache": (True, None),
    "early_stopping": (False, None),
}
# Settings of generation_config.json that change what transformers says and are not acted on here,
# with the values at which they change nothing.
_UNHEARD: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "encoder_repetition_penalty": (1.0,),
    "guidance_scale": (1.0,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ([], {}),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "penalty_alpha": (),
    "stop_strings": ([],),
}


class Jobs(NamedTuple):
    """Prompts to continue and which requests each of them answers."""

    prompts: list[Prompt]
    same_as: dict[int, list[int]]
    """Index of a prompt -> indices of all requests it answers, its own first."""
    until: dict[int, list[str]]
    """Index of a prompt -> strings its text is cut at."""


class PromptMaker:
    """Makes prompts out of generation requests."""

    def __init__(
        self, encoder: Encoder, options: Options, directory: Path, max_length: int
    ) -> None:
        """Read the checkpoint's generation defaults."""
        path = directory / "generation_config.json"
        self._encoder = encoder
        self._options = options
        self._max_length = max_length
        self._defaults = read_json(path) if path.is_file() else read_json(directory / "config.json")
        self._warn_of_unheard()
        self.eos_ids = self._find_eos()
        self._eos_text: str = (
            encoder.tokenizer.decode(encoder.tokenizer.eos_token_id, skip_special_tokens=False)
            if encoder.tokenizer.eos_token_id is not None
            else ""
        )

    def _warn_of_unheard(self) -> None:
        for name, neutral in _UNHEARD.items():
            value = self._defaults.get(name)
            if value is not None and value not in neutral:
                logger.warning(
                    "%s=%r of the checkpoint's generation_config.json is not supported and has no "
                    "effect; `hf` would act on it",
                    name,
                    value,
                )

    def _find_eos(self) -> frozenset[int]:
        """Collect every token that ends a text: the checkpoint's list and the tokenizer's own."""
        listed = self._defaults.get("eos_token_id")
        ids = listed if isinstance(listed, list) else [listed]
        ids = [*ids, self._encoder.tokenizer.eos_token_id]
        return frozenset(token for token in ids if isinstance(token, int))

    def make(self, requests: list[tuple[Any, ...]]) -> Jobs:
        """Make prompts of (context, generation arguments) requests.

        Greedy requests that are equal become one prompt; sampled ones never do.

        Raises:
            RequestError: an argument that is unknown, of the wrong type, or leaves no room.
        """
        jobs = Jobs([], {}, {})
        first_of: dict[str, int] = {}
        cut = 0
        for index, (context, arguments) in enumerate(requests):
            prompt, until, was_cut = self._prompt(index, context, arguments)
            cut += was_cut
            key = json.dumps([context, arguments], sort_keys=True, default=str)
            first = index if prompt.sampling.get("do_sample") else first_of.setdefault(key, index)
            jobs.same_as.setdefault(first, []).append(index)
            if first == index:
                jobs.prompts.append(prompt)
                jobs.until[index] = until
        if cut:
            logger.warning(
                "%d of %d prompts leave no room for max_gen_toks in max_length=%d and were cut "
                "from the %s",
                cut,
                len(requests),
                self._max_length,
                self._options.truncation_side,
            )
        return jobs._replace(prompts=with_seeds(jobs.prompts, self._options.seed))

    def _prompt(self, index: int, context: str, arguments: Any) -> tuple[Prompt, list[str], bool]:
        given = self._normalized(arguments)
        until = self._stops(given.pop("until"))
        wanted = given.pop("max_gen_toks")
        if not 0 <= wanted < self._max_length:
            raise RequestError(
                f"max_gen_toks={wanted} leaves no room for a prompt in max_length="
                f"{self._max_length}; lower the one or raise the other"
            )
        ids = self._encoder.encode_prompt(context, truncation=self._options.truncation)
        ids = ids or [self._encoder.prefix_token_id]
        side: Any = self._options.truncation_side
        kept, _ = maybe_truncate(ids, wanted, self._max_length, side=side, verbose=False)
        if (total := given.pop("max_length", None)) is not None:
            wanted = max(0, int(total) - len(kept))  # as in transformers: prompt and text together
        minimum = int(given.pop("min_new_tokens", None) or 0)
        sampling = self._sampling(given)
        return Prompt(index, kept, wanted, minimum, until, sampling), until, len(kept) < len(ids)

    def _normalized(self, arguments: Any) -> dict[str, Any]:
        """Return generation arguments under one name each, by the harness's own function."""
        if not isinstance(arguments, dict):
            raise RequestError(f"generation arguments are {arguments!r}, expected a dictionary")
        try:
            return dict(normalize_gen_kwargs(arguments, self._options.max_gen_toks))
        except (TypeError, ValueError) as error:
            raise RequestError(f"generation arguments {arguments!r}: {error}") from error

    def _stops(self, until: Any) -> list[str]:
        """Return stop strings and the text of EOS; `until: null` in a task asks for none."""
        if until == [None]:
            until = []
        if not all(isinstance(stop, str) for stop in until):
            raise RequestError(f"until={until!r}: expected strings")
        return handle_stop_sequences(list(until), eos=self._eos_text or None)

    def _sampling(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return sampling parameters: the request's, else the checkpoint's, else the defaults."""
        for name, value in list(given.items()):
            if name in _NEUTRAL and value in _NEUTRAL[name]:
                del given[name]
        known = {"do_sample", *PENALTIES, *WARPERS}
        unknown = sorted(set(given) - known)
        if unknown:
            raise RequestError(
                f"generation argument {unknown[0]}={given[unknown[0]]!r} is not supported; known: "
                f"until, max_gen_toks, min_new_tokens, {', '.join(sorted(known))}"
            )
        # Temperature 0 is the limit of sampling: the most likely token.
        is_sampling = bool(given.get("do_sample")) and given.get("temperature") != 0.0
        names = PENALTIES + (WARPERS if is_sampling else ())
        merged = _DEFAULTS | {n: v for n, v in self._defaults.items() if v is not None} | given
        chosen = {n: _number(n, merged[n]) for n in names if merged.get(n) is not None}
        return chosen | ({"do_sample": True} if is_sampling else {})


def _number(name: str, value: Any) -> float | int:
    """Return a sampling parameter as the type transformers insists on (tasks say `top_p: 1`)."""
    try:
        return int(value) if name in _WHOLE else float(value)
    except (TypeError, ValueError) as error:
        raise RequestError(f"generation argument {name}={value!r}: expected a number") from error
