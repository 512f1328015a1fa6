"""Text -> token ids and back, with the rules of the harness's `hf` model.

Pairs are split and windows are cut by the harness's own functions; what is ours is that strings
are tokenized in batches and once each, that the BOS rule is applied to every string by itself,
and that generated text keeps its leading space. Forwards nothing.
"""
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lm_eval_exl2.errors import ModelFormatError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from lm_eval.api.instance import Instance

    from lm_eval_exl2.options import Options

    Encoded = tuple[Any, list[int], list[int]]

logger = logging.getLogger(__name__)

_BATCH = 1024


def load_tokenizer(options: Options, directory: Path) -> Any:
    """Load the tokenizer that belongs to a checkpoint, or the one asked for.

    Raises:
        ModelFormatError: there is none that can be loaded.
    """
    if options.tokenizer is not None and not isinstance(options.tokenizer, str):
        return options.tokenizer
    from transformers import AutoTokenizer

    arguments: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if options.add_bos_token is not None:
        arguments["add_bos_token"] = options.add_bos_token
    source = options.tokenizer or str(directory)
    try:
        return AutoTokenizer.from_pretrained(source, **arguments)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFormatError(f"no usable tokenizer in {source}: {reason}") from error


class Encoder:
    """Encodes strings as `hf` does; also stands in for an LM in the harness's own functions."""

    backend = "causal"

    def __init__(
        self, tokenizer: Any, *, add_bos_token: bool | None, prefix_token_id: int | None
    ) -> None:
        """Wrap a tokenizer.

        Raises:
            OptionError: there is no token to stand before an empty context.
        """
        self.tokenizer = tokenizer
        self.add_bos_token = add_bos_token
        # More than `len(tokenizer) - 1` where ids are left unused.
        self.largest_id: int = max(tokenizer.get_vocab().values())
        self.prefix_token_id: int = self._find_prefix(prefix_token_id)
        self._prefix_text: str = tokenizer.decode(self.prefix_token_id)
        self._memo: dict[str, list[int]] = {}
        # Encodings share these, instead of holding an int object per token of every string.
        self._ids: dict[int, int] = {}

    def _find_prefix(self, wanted: int | None) -> int:
        tokenizer = self.tokenizer
        for candidate in (wanted, tokenizer.bos_token_id, tokenizer.eos_token_id):
            if candidate is not None:
                if not 0 <= candidate <= self.largest_id:
                    raise OptionError(
                        f"prefix_token_id={candidate} is no token of this tokenizer, expected 0 "
                        f"to {self.largest_id}"
                    )
                return candidate
        raise OptionError("the tokenizer has neither BOS nor EOS; give prefix_token_id")

    # -- single strings --------------------------------------------------------------------

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Encode a string; see `HFLM.tok_encode` for the meaning of the flag."""
        if add_special_tokens is None and string in self._memo:
            return self._memo[string]
        arguments = self._arguments(string, add_special_tokens)
        return self.tokenizer.encode(string, **arguments)

    def encode_prompt(self, string: str, *, truncation: bool = False) -> list[int]:
        """Encode a prompt to continue; see `HFLM.tok_batch_encode`, applied per string."""
        if has_bos_prefix(string, getattr(self.tokenizer, "bos_token", None)):
            arguments = {"add_special_tokens": False}
        elif self.add_bos_token is not None:
            arguments = {"add_special_tokens": self.add_bos_token}
        else:
            arguments = {}
        return self.tokenizer(string, truncation=truncation, **arguments)["input_ids"]

    def _arguments(self, string: str, add_special_tokens: bool | None) -> dict[str, bool]:
        if add_special_tokens is not None:
            return {"add_special_tokens": add_special_tokens}
        if has_bos_prefix(string, self._prefix_text):
            return {"add_special_tokens": False}
        if self.add_bos_token is not None:
            return {"add_special_tokens": self.add_bos_token}
        return {}

    # -- requests --------------------------------------------------------------------------

    def encode_pairs(self, requests: Sequence[Instance], *, disable_tqdm: bool) -> list[Encoded]:
        """Encode (context, continuation) requests with the harness's own splitting.

        A pair that holds nothing to score gets an empty target; a context that encodes to
        nothing is replaced by the prefix token.

        Returns:
            For each request its arguments, context ids and target ids.
        """
        # The harness's loop would index into the empty encoding of an empty pair.
        nothing = [request for request in requests if self._is_empty(*request.args)]
        empty = {id(request) for request in nothing}
        something = [request for request in requests if id(request) not in empty]
        self._fill(text for request in something for text in _texts_of(*request.args))
        pairs: list[Any] = TemplateLM.loglikelihood(self, something, disable_tqdm=disable_tqdm)  # type: ignore[arg-type]
        self._memo.clear()
        _warn_of_merged(pairs)
        encoded = iter(pairs)
        return [
            (request.args, [self.prefix_token_id], [])
            if id(request) in empty
            else self._with_context(next(encoded))
            for request in requests
        ]

    def _is_empty(self, context: str, continuation: str) -> bool:
        return not context and not self.tok_encode(continuation, add_special_tokens=False)

    def _loglikelihood_tokens(self, requests: list[Encoded], **_options: Any) -> list[Encoded]:
        """Receive what `TemplateLM.loglikelihood` has encoded and give it back."""
        return requests

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return TemplateLM._encode_pair(self, context, continuation)  # type: ignore[arg-type]

    def _with_context(self, pair: Encoded) -> Encoded:
        arguments, context, target = pair
        return (arguments, context or [self.prefix_token_id], target)

    def encode_windows(self, string: str, max_length: int) -> list[Encoded]:
        """Cut a document into the harness's rolling windows."""
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(string),
            prefix_token=self.prefix_token_id,
            max_seq_len=max_length,
            context_len=1,
        )
        return [(None, *make_disjoint_window(window)) for window in windows]

    def _fill(self, strings: Iterable[str]) -> None:
        """Tokenize many strings in batches, so that `tok_encode` finds them."""
        by_rule: dict[bool | None, dict[str, None]] = {}
        for string in strings:
            rule = self._arguments(string, None).get("add_special_tokens")
            by_rule.setdefault(rule, {})[string] = None
        for rule, group in by_rule.items():
            arguments = {} if rule is None else {"add_special_tokens": rule}
            unique = list(group)
            for first in range(0, len(unique), _BATCH):
                part = unique[first : first + _BATCH]
                found: list[list[int]] = self.tokenizer(part, **arguments)["input_ids"]
                for string, ids in zip(part, found, strict=True):
                    self._memo[string] = [self._ids.setdefault(token, token) for token in ids]

    # -- back to text ----------------------------------------------------------------------

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode generated ids, keeping a leading space that plain decoding would drop.

        SentencePiece-style decoders strip the space of the first token they are given. Behind
        an ordinary token the continuation decodes as it would behind its prompt.
        """
        whole: str = self.tokenizer.decode(
            [*self._anchor, *token_ids], skip_special_tokens=skip_special_tokens
        )
        start: str = self.tokenizer.decode(self._anchor, skip_special_tokens=skip_special_tokens)
        if whole.startswith(start):
            return whole[len(start) :]
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def is_special(self, token_id: int) -> bool:
        """Return whether decoding leaves a token out when it skips special tokens."""
        token = self.tokenizer.added_tokens_decoder.get(token_id)
        return token_id in self.tokenizer.all_special_ids or bool(token and token.special)

    @property
    def _anchor(self) -> list[int]:
        return self.tokenizer.encode("a", add_special_tokens=False)[-1:]

    def stream(self) -> TextStream:
        """Return a decoder for tokens that arrive one by one."""
        return TextStream(self.tokenizer, self._anchor)

    def fingerprint(self) -> str:
        """Return a digest of what the tokenizer does to text."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else repr(self.tokenizer.get_vocab())
        special = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True, default=str)
        settings = f"{self.add_bos_token}|{self.prefix_token_id}|{special}"
        return hashlib.sha256(f"{content}|{settings}".encode()).hexdigest()


def _texts_of(context: str, continuation: str) -> tuple[str, ...]:
    """Return the strings that `TemplateLM._encode_pair` will encode for a pair.

    Only a forecast to fill the memo: a string that is missing is encoded when asked for.
    """
    if not context:
        return ()
    stripped = context.rstrip()
    return (stripped, stripped + context[len(stripped) :] + continuation)


def _warn_of_merged(pairs: Sequence[Encoded]) -> None:
    """Warn of continuations of which no token is left after the context's tokens."""
    merged = [arguments for arguments, _, target in pairs if all(arguments) and not target]
    if merged:
        logger.warning(
            "%d of %d continuations merge into the last token of their context; nothing is left "
            "to score and they get 0.0, the first one is %r",
            len(merged),
            len(pairs),
            merged[0][1],
        )


class TextStream:
    """Decodes a growing list of ids, giving out text once it is complete.

    Special tokens are shown: a stop string may be one.
    """

    def __init__(self, tokenizer: Any, anchor: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(anchor)
        self._start = 0
        self._shown = len(self._ids)

    def push(self, token_id: int) -> str:
        """Add a token; return the text it completes, empty inside a multi-token character."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
