"""What a finished request is kept under, and where: the harness's `CacheHook` of this model.

With `--use_cache` every answer goes into a journal beside the harness's file as soon as it is
known; the harness writes its own file only when all requests of a kind are done. When a cache is
opened, the harness's file is brought in line with the journal. What the harness does not read back
by itself (sampled texts, requests in token ids) is looked up here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.cache_guard import restore
from lm_eval_exl2.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lm_eval_exl2.encode import Encoded
    from lm_eval_exl2.generation import Prompt

    KeyOf = Callable[[str, Sequence[Any]], str]
    Answer = tuple[float, bool]

_TEXT = "generate_until"
_IDS = "_loglikelihood_tokens"


class ResponseCache:
    """Stands in for the harness's hook."""

    def __init__(self, hook: Any, key_of: KeyOf, fingerprint: Callable[[], Mapping[str, str]]):
        """Take over a hook; open the journal beside its file, if it has one.

        Args:
            hook: The harness's `CacheHook`.
            key_of: The harness's `hash_args`: kind and arguments of a request to its key.
            fingerprint: Gives name and value of everything the answers depend on.

        Raises:
            CacheMismatchError: the cache is of another model; names what differs.
            CacheWriteError: the cache cannot be written.
        """
        self._hook = hook
        self._key_of = key_of
        self._journal: Journal | None = None
        if hook.dbdict is None:
            return
        path = Path(hook.dbdict.filename).with_suffix(".jsonl")
        self._journal = journal = Journal(path, fingerprint())
        answers = {key: answer for key, answer in journal.answers.items() if ":" not in key}
        own = {key.partition(":")[0] for key in journal.answers if ":" in key}
        restore(hook.dbdict, answers, own)

    @property
    def path(self) -> Path | None:
        """The journal; None without `--use_cache`."""
        return self._journal.path if self._journal else None

    def add_partial(self, kind: str, arguments: Sequence[Any], answer: Any) -> None:
        """Keep an answer that the harness reads back; see `CacheHook.add_partial`."""
        if self._journal is None:
            self._hook.add_partial(kind, arguments, answer)
        else:
            self._journal.append(self._key_of(kind, arguments), answer)

    def find_score(self, text: Any, context: list[int], target: list[int]) -> Answer | None:
        """Return the score an earlier run kept of a request in token ids, which has no text."""
        return self._find(_IDS, (context, target), 0) if text is None else None

    def keep_score(self, request: Encoded, answer: Answer) -> None:
        """Keep the score of a request, by its text or, where it has none, by its token ids."""
        text, *ids = request
        if text is None:
            self._add(_IDS, ids, 0, answer)
        else:
            self.add_partial("loglikelihood", text, answer)

    def find_text(self, prompt: Prompt, arguments: Sequence[Any]) -> str | None:
        """Return the text an earlier run kept of a prompt that the harness always asks again."""
        if not _is_own(prompt, *arguments):
            return None
        return self._find(_TEXT, arguments, _seed_of(prompt))

    def keep_text(self, prompt: Prompt, arguments: Sequence[Any], text: str) -> None:
        """Keep the text of a prompt; one that was sampled by its seed, too.

        Args:
            prompt: What was continued; its seed stands for the number of the repeat.
            arguments: Of the request it was made of.
            text: The continuation.
        """
        if _is_own(prompt, *arguments):
            self._add(_TEXT, arguments, _seed_of(prompt), text)
        else:
            self.add_partial(_TEXT, arguments, text)

    def _add(self, kind: str, arguments: Sequence[Any], seed: int, answer: Any) -> None:
        if self._journal:
            self._journal.append(f"{self._key_of(kind, arguments)}:{seed}", answer)

    def _find(self, kind: str, arguments: Sequence[Any], seed: int) -> Any | None:
        if self._journal is None or not self._journal.answers:
            return None
        return self._journal.answers.get(f"{self._key_of(kind, arguments)}:{seed}")

    def sync(self) -> None:
        """Force to the disk what was kept."""
        if self._journal:
            self._journal.sync()


def _seed_of(prompt: Prompt) -> int:
    """Return the seed of a text; a greedy one has none that would be the same in every run."""
    return prompt.seed if prompt.sampling.get("do_sample") else 0


def _is_own(prompt: Prompt, _context: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether the harness cannot keep a text: it has one answer for all repeats.

    It passes over requests that say `do_sample`, but not over those that are sampled because they
    name a temperature.
    """
    return bool(prompt.sampling.get("do_sample") or arguments.get("do_sample"))
