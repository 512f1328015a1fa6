"""Requests in token ids, for protocols that say which tokens a model must see.

The harness calls the method that `request_type` names, with these requests; its own adapters
(`hf`, `vllm`, ...) and ours take (text, context ids, target ids) at `_loglikelihood_tokens`. So one
task measures the baseline and the quantized checkpoint alike. The harness's `--use_cache` does not
keep such requests; this package's model keeps them in its journal.
"""

# The harness ships without types:
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, cast

from lm_eval.api.instance import Instance

from lm_eval_exl2.errors import OptionError, RequestError, ScoreError
from lm_eval_exl2.tasks.base import OwnTask

_log = logging.getLogger(__name__)


class WholeIds(list[int]):
    """Token ids that refuse to lose their beginning.

    Adapters cut what is longer than their window from the left, some of them while also moving
    what they score. A protocol that names its context must fail instead.
    """

    def __add__(self, other: list[int], /) -> "WholeIds":  # type: ignore[override]
        return WholeIds([*self, *other])

    def __getitem__(self, key: SupportsIndex | slice, /) -> Any:
        """As of a list.

        Raises:
            RequestError: A slice would leave out the first token and keep the last.
        """
        if isinstance(key, slice):
            start, stop, _ = key.indices(len(self))
            if 0 < start < stop == len(self):
                raise RequestError(
                    f"a window of {len(self)} tokens does not fit, the model adapter would cut it "
                    f"to {len(self) - start}; choose a shorter window, fewer examples, or raise "
                    "the model's maximum length"
                )
            return list.__getitem__(self, key)
        return list.__getitem__(self, key)


@dataclass
class TokenRequest(Instance):
    """An Instance that is also (None, context ids, target ids)."""

    context_ids: Sequence[int] = ()
    target_ids: Sequence[int] = ()

    def _as_tuple(self) -> tuple[None, list[int], list[int]]:
        return None, WholeIds(self.context_ids), list(self.target_ids)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._as_tuple())

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return self._as_tuple()[index]


class TokenTask(OwnTask):
    """A task whose requests are token ids."""

    def __init__(self, *, config: dict[str, Any]) -> None:
        """As the harness calls it.

        Raises:
            OptionError: The model's adapter would turn ids back into text.
        """
        _refuse_text(config.get("metadata") or {})
        super().__init__(config=config)

    def build_all_requests(self, **arguments: Any) -> None:
        """As the harness does, but never from its cache of requests.

        Its key knows neither model nor metadata, so it would give the ids of another run.
        """
        if arguments.pop("cache_requests", False):
            _log.warning("%s: --cache_requests has no effect on it", self.config.task)
        arguments.pop("rewrite_requests_cache", None)
        super().build_all_requests(**arguments)


def _refuse_text(arguments: dict[str, Any]) -> None:
    """Some adapters of servers decode ids and let the server tokenize the text again."""
    backend = arguments.get("tokenizer_backend", "huggingface")
    as_ids = str(arguments.get("tokenized_requests", True)).lower() == "true"
    if not as_ids or backend != "huggingface":
        raise OptionError(
            "this task asks for token ids, but the model's adapter would send text "
            f"(tokenized_requests={as_ids}, tokenizer_backend={backend}); use "
            "tokenized_requests=True,tokenizer_backend=huggingface"
        )


def read_logprob(result: Sequence[Any], request: str) -> float:
    """The log-likelihood in a response.

    Raises:
        ScoreError: It is no finite number.
    """
    logprob = float(result[0])
    if not math.isfinite(logprob):
        raise ScoreError(
            f"{request} has the log-likelihood {logprob}; nothing is reported. With --model hf try "
            "dtype=bfloat16 or float32, and softmax_dtype=float32"
        )
    return logprob


def request_tokens(
    document: dict[str, Any],
    context_ids: Sequence[int],
    target_ids: Sequence[int],
    *,
    text: str,
    index: int,
    metadata: tuple[str | None, int | None, int | None],
) -> TokenRequest:
    """A request for the log-likelihood of target ids.

    Args:
        document: The harness's document.
        context_ids: Conditioned on; at least one.
        target_ids: Scored; at least one.
        text: What the request says, for logs and the prompt's hash.
        index: Place among the document's requests.
        metadata: Task name, document number and repeats, as the harness passes them.
    """
    return TokenRequest(
        request_type=cast("Any", "_loglikelihood_tokens"),
        doc=document,
        arguments=(text,),
        idx=index,
        metadata=metadata,
        context_ids=context_ids,
        target_ids=target_ids,
    )
