"""The K most likely tokens of a baseline's distributions on disk, in place of the baseline.

For pairs that do not fit into memory together. About 8 K + 24 bytes per position; written whole or
not at all. The rest of each distribution is kept as one number, so KL becomes a lower bound
(`tokens.top_divergence`); all that concerns single tokens stays exact.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from lm_eval_exl2.divergence import tokens
from lm_eval_exl2.divergence.measure import join, progress, with_targets
from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_exl2.divergence.measure import Source
    from lm_eval_exl2.divergence.statistics import WindowRecord
    from lm_eval_exl2.divergence.text import Windows

_META: Final = "meta.json"
# Name -> dtype; `token_ids` and `logprobs` hold K values per position. `logprobs` are as the engine
# gave them and `log_norms` what they lack to be normalised in float64.
_ARRAYS: Final = {
    "token_ids": "int32",
    "logprobs": "float32",
    "log_norms": "float64",
    "log_tails": "float64",
    "target_logprobs": "float64",
}
_WIDE: Final = ("token_ids", "logprobs")


class BaselineCache:
    """A finished cache, read as windows ask for it."""

    facts: dict[str, Any]
    """What was noted when it was written."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Open.

        Args:
            folder: Where `write_cache` wrote.
            key: What it must be of.

        Raises:
            OptionError: it is no cache, or one of something else.
        """
        try:
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
            found, self.facts = dict(meta["key"]), dict(meta["facts"])
            self._arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"{folder} exists and is no cache of a baseline ({error}); give another folder"
            ) from error
        differing = [name for name in key if found.get(name) != key[name]]
        if differing:
            raise OptionError(
                f"{folder} holds a baseline with other {', '.join(differing)}; delete it or give "
                "another folder"
            )

    def rows(self, name: str, first: int, stop: int) -> torch.Tensor:
        """Return some positions of an array, counted over all windows."""
        return torch.from_numpy(np.array(self._arrays[name][first:stop]))


def write_cache(
    folder: Path,
    windows: Windows,
    source: Source,
    *,
    top_k: int,
    key: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Run a baseline and keep its most likely tokens.

    Args:
        folder: Created; must not exist.
        windows: What is forwarded.
        source: The baseline.
        top_k: K, at most the vocabulary.
        key: What the cache is of, as JSON values.
        facts: What to note beside it.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a run that was killed
    partial.mkdir(parents=True)
    try:
        _write_arrays(partial, windows, source, top_k)
        meta = {"key": dict(key), "facts": dict(facts)}
        (partial / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_arrays(folder: Path, windows: Windows, source: Source, top_k: int) -> None:
    total = len(windows.ids) * len(windows.positions)
    arrays = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy",
            mode="w+",
            dtype=dtype,
            shape=(total, top_k) if name in _WIDE else (total,),
        )
        for name, dtype in _ARRAYS.items()
    }
    first = 0
    for number in progress(len(windows.ids)):
        for targets, (piece,) in with_targets(windows, number, [source(number)]):
            for name, values in _row_values(piece, targets, top_k).items():
                arrays[name][first : first + len(values)] = values.cpu().numpy()
            first += len(piece)
    for array in arrays.values():
        array.flush()


def _row_values(
    piece_TV: torch.Tensor, targets: torch.Tensor, top_k: int
) -> dict[str, torch.Tensor]:
    distributions = tokens.Distributions(piece_TV)
    found = piece_TV.topk(top_k)
    # topk does not say which of equals comes first; the cache's first token is argmax's.
    token_ids_TK, best_T = found.indices, piece_TV.argmax(-1)
    places_T = (token_ids_TK == best_T[:, None]).long().argmax(-1)
    token_ids_TK = token_ids_TK.scatter(-1, places_T[:, None], token_ids_TK[:, :1])
    token_ids_TK[:, 0] = best_T
    return {
        "token_ids": token_ids_TK,
        "logprobs": piece_TV.gather(-1, token_ids_TK),
        "log_norms": distributions.log_norm_T,
        "log_tails": tokens.log_tail(distributions, token_ids_TK.to(distributions.log_TV.device)),
        "target_logprobs": distributions.of_targets(targets),
    }


def measure_cached(windows: Windows, cache: BaselineCache, candidate: Source) -> list[WindowRecord]:
    """Compare a candidate with a cached baseline; `kl` is a lower bound."""
    records: list[WindowRecord] = []
    first = 0
    for number in progress(len(windows.ids)):
        parts: list[tokens.TokenValues] = []
        for targets, (piece,) in with_targets(windows, number, [candidate(number)]):
            parts.append(_compare_cached(cache, first, piece, targets))
            first += len(piece)
        records.append(join(parts))
    return records


def _compare_cached(
    cache: BaselineCache, first: int, piece_TV: torch.Tensor, targets: torch.Tensor
) -> tokens.TokenValues:
    stop = first + len(piece_TV)
    top_TK = cache.rows("token_ids", first, stop).long()
    log_p_TK = cache.rows("logprobs", first, stop).double()
    log_p_TK = log_p_TK - cache.rows("log_norms", first, stop)[:, None]
    candidate = tokens.Distributions(piece_TV)
    log_tails_T = cache.rows("log_tails", first, stop)
    return tokens.TokenValues(
        kl=tokens.top_divergence(log_p_TK, log_tails_T, top_TK, candidate).cpu(),
        top_probability=log_p_TK[:, 0].exp(),
        agreeing=tokens.count_agreeing(top_TK[:, :1], candidate.top(1).cpu())[: len(targets)],
        baseline_logprob=cache.rows("target_logprobs", first, first + len(targets)),
        candidate_logprob=candidate.of_targets(targets).cpu(),
    )
