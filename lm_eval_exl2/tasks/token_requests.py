"""Requests in token ids, for protocols that say which tokens a model must see.

The harness calls the method that `request_type` names, with these requests; its own adapters
(`hf`, `vllm`, ...) and ours take (text, context ids, target ids) at `_loglikelihood_tokens`. So one
task measures the baseline and the quantized checkpoint alike. Such requests are not kept by
`--use_cache`.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, cast

from lm_eval.api.instance import Instance

from lm_eval_exl2.errors import RequestError


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
                    f"to {len(self) - start}; choose a shorter window or raise the model's "
                    "maximum length"
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
