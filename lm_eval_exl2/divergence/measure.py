"""Runs engines along windows, two or more side by side, and keeps a few numbers per token.

Memory is bounded: of each window the hidden states, of each piece the distributions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lm_eval_exl2.divergence.statistics import WindowRecord
from lm_eval_exl2.divergence.tokens import TokenValues, compare
from lm_eval_exl2.records import DistributionRequest, RoundingNoise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lm_eval_exl2.divergence.protocols import Protocol
    from lm_eval_exl2.divergence.text import Windows
    from lm_eval_exl2.engines.base import Engine

    Source = Callable[[int], Iterator[torch.Tensor]]
    """From a window's number to its distributions, piece by piece."""

# Of a piece: 64 MiB in float64, of which a comparison holds about eight at once.
_PIECE_ELEMENTS: Final = 1 << 23


class Layout(NamedTuple):
    """What all sources of a run have in common."""

    vocabulary: int
    """Token ids that distributions are over."""
    rows: int
    """Positions per piece."""


def choose_layout(vocabulary: int, engines: Sequence[Engine]) -> Layout:
    """Choose pieces of bounded memory that every engine has room for."""
    room = min(engine.info.max_batch_tokens for engine in engines)
    return Layout(vocabulary, max(1, min(_PIECE_ELEMENTS // vocabulary, room)))


def engine_source(
    engine: Engine,
    windows: Windows,
    layout: Layout,
    *,
    max_tokens: int | None = None,
    noise: RoundingNoise | None = None,
) -> Source:
    """Make a source of what an engine computes.

    Args:
        engine: Loaded.
        windows: What is forwarded.
        layout: Of the run.
        max_tokens: Most tokens per forward; None for the engine's budget.
        noise: Rounding noise; window number n gets its own, from seed + n.
    """

    def source(number: int) -> Iterator[torch.Tensor]:
        own = noise and RoundingNoise(noise.scale, noise.seed + number)
        request = DistributionRequest(
            token_ids=windows.ids[number],
            positions=windows.positions,
            vocabulary=layout.vocabulary,
            rows=layout.rows,
            max_tokens=max_tokens,
            noise=own,
        )
        return engine.distributions(request)

    return source


def measure(
    windows: Windows, protocol: Protocol, baseline: Source, others: Sequence[Source]
) -> list[list[WindowRecord]]:
    """Compare others with a baseline, window by window, all in one pass.

    Returns:
        For each of the others its windows.
    """
    found: list[list[WindowRecord]] = [[] for _ in others]
    for number in progress(len(windows.ids)):
        parts: list[list[TokenValues]] = [[] for _ in others]
        streams = [source(number) for source in (baseline, *others)]
        for targets, (base, *pieces) in with_targets(windows, number, streams):
            for part, piece in zip(parts, pieces, strict=True):
                reverse = protocol.name == "model_diff"
                part.append(compare(base, piece, targets, top=protocol.top, as_model_diff=reverse))
        for records, part in zip(found, parts, strict=True):
            records.append(join(part))
    return found


def with_targets(
    windows: Windows, number: int, streams: Sequence[Iterator[torch.Tensor]]
) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
    """Yield the pieces of several sources side by side, with the tokens that really follow.

    The last position of a window may have no token behind it: then one target less than positions.
    """
    ids, first = windows.ids[number], windows.positions.start
    for pieces in zip(*streams, strict=True):
        stop = first + len(pieces[0])
        yield torch.tensor(ids[first + 1 : stop + 1], dtype=torch.long), pieces
        first = stop


def join(parts: Sequence[TokenValues]) -> WindowRecord:
    """Join the pieces of a window."""

    def joined(name: str) -> Any:
        return np.concatenate([getattr(part, name).numpy() for part in parts])

    return WindowRecord(**{name: joined(name) for name in WindowRecord._fields})


def progress(windows: int) -> Iterable[int]:
    """Count windows, with a bar where a person looks."""
    return tqdm(range(windows), desc="Comparing windows", disable=None)
