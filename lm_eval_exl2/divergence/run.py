"""One whole run: from names and settings to a document of JSON values that holds all there is.

The document's keys: `settings`, `versions`, `protocol`, `text`, `baseline` (what was run), `noise`
(the baseline against itself) and `candidates`. An entry of the last two has a `label`, `facts`, the
name of its divergence, `kl`, and a `summary` as `statistics.Summary` has it, null for NaN.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from lm_eval_exl2 import __version__
from lm_eval_exl2.divergence.baseline_cache import BaselineCache, measure_cached, write_cache
from lm_eval_exl2.divergence.measure import choose_layout, engine_source, measure
from lm_eval_exl2.divergence.models import EngineSettings, Model, check_window
from lm_eval_exl2.divergence.protocols import PROTOCOLS, Protocol
from lm_eval_exl2.divergence.statistics import Summary, summarise
from lm_eval_exl2.divergence.text import check_tokenizers, cut_windows, load_text, real_vocabulary
from lm_eval_exl2.errors import ComparisonError, EngineMemoryError, OptionError
from lm_eval_exl2.records import RoundingNoise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from lm_eval_exl2.divergence.text import Windows
    from lm_eval_exl2.engines.base import Engine
    from lm_eval_exl2.records import EngineInfo

Json = dict[str, Any]

_PACKAGES = ("torch", "transformers", "numpy", "scipy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was asked for."""

    baseline: str
    candidates: Sequence[str]
    text: str = "wikitext2"
    protocol: str = "qbench"
    window: int | None = None
    """Tokens; None for the protocol's."""
    rows: int | None = None
    """Most windows; None for the protocol's."""
    engine: EngineSettings = EngineSettings()
    noise_floor: bool = True
    seed: int = 1
    """Of the noise."""
    sequential: Path | None = None
    """Folder of the baseline's cache: one model in memory at a time."""
    top_k: int = 256
    """Tokens per position in that cache."""


class _Found(NamedTuple):
    noise: list[Json]
    candidates: list[Json]
    baseline: Json


class _Run(NamedTuple):
    """What is fixed before any model is loaded."""

    settings: Settings
    protocol: Protocol
    baseline: Model
    windows: Windows
    vocabulary: int

    @property
    def stride(self) -> int:
        """Tokens from one window's start to the next one's: they are side by side."""
        return len(self.windows.ids[0])

    def load(self, model: Model) -> AbstractContextManager[Engine]:
        return model.loaded(self.settings.engine, self.stride)


def run(settings: Settings) -> Json:
    """Compare candidates with a baseline.

    Returns:
        The document.

    Raises:
        Exl2EvalError: in one line, what was found, what was expected and what to do.
    """
    protocol = PROTOCOLS[settings.protocol]
    if settings.sequential is not None and protocol.name == "model_diff":
        raise OptionError(
            "--sequential keeps the baseline's most likely tokens, and model_diff's divergence "
            "cannot be bounded from them; use another --protocol"
        )
    models = [Model(name) for name in (settings.baseline, *settings.candidates)]
    check_window(models, settings.window or protocol.window)
    text = load_text(settings.text)
    check_tokenizers([m.name for m in models], [m.tokenizer for m in models], text)
    tokenizer = models[0].tokenizer
    windows = cut_windows(text, tokenizer, protocol, window=settings.window, rows=settings.rows)
    vocabulary = min(real_vocabulary(tokenizer), *(model.vocabulary for model in models))
    _check_ids(windows, vocabulary)
    prepared = _Run(settings, protocol, models[0], windows, vocabulary)
    try:
        if settings.sequential is None:
            found = _side_by_side(prepared, models[1:])
        else:
            found = _one_by_one(prepared, models[1:], settings.sequential)
    except torch.OutOfMemoryError as error:
        raise EngineMemoryError(
            f"no room to compare distributions over {vocabulary} tokens; use --sequential FOLDER, "
            "which holds one model at a time, or --device cpu"
        ) from error
    return _facts(prepared) | found._asdict()


def _check_ids(windows: Windows, vocabulary: int) -> None:
    largest = max(max(ids) for ids in windows.ids)
    if largest >= vocabulary:
        raise ComparisonError(
            f"the text holds token id {largest}, but the models have {vocabulary} tokens in "
            "common; give a text that both can read"
        )


def _side_by_side(prepared: _Run, candidates: Sequence[Model]) -> _Found:
    with prepared.load(prepared.baseline) as engine:
        noise = _measure_noise(prepared, engine)
        pairs: list[Json] = []
        for model in candidates:
            try:
                pairs.append(_compare(prepared, engine, model))
            except EngineMemoryError as error:
                raise EngineMemoryError(
                    f"{error}; or use --sequential FOLDER, which holds one model at a time"
                ) from error
        return _Found(noise, pairs, prepared.baseline.describe() | _engine_facts(engine.info))


def _compare(prepared: _Run, engine: Engine, model: Model) -> Json:
    """Compare a model with the loaded baseline."""
    with prepared.load(model) as other:
        layout = choose_layout(prepared.vocabulary, [engine, other])
        sources = [engine_source(each, prepared.windows, layout) for each in (engine, other)]
        (records,) = measure(prepared.windows, prepared.protocol, sources[0], sources[1:])
        summary = summarise(records, top=prepared.protocol.top, stride=prepared.stride)
        facts = model.describe() | _engine_facts(other.info)
    return _entry(model.name, facts, prepared.protocol.kl, summary)


def _one_by_one(prepared: _Run, candidates: Sequence[Model], folder: Path) -> _Found:
    top_k = min(prepared.settings.top_k, prepared.vocabulary)
    key = _cache_key(prepared, top_k)
    if not folder.exists():
        with prepared.load(prepared.baseline) as engine:
            layout = choose_layout(prepared.vocabulary, [engine])
            noise = _measure_noise(prepared, engine)
            facts = {"noise": noise, "baseline": _engine_facts(engine.info)}
            source = engine_source(engine, prepared.windows, layout)
            write_cache(folder, prepared.windows, source, top_k=top_k, key=key, facts=facts)
    cache = BaselineCache(folder, key)
    pairs: list[Json] = []
    for model in candidates:
        with prepared.load(model) as other:
            layout = choose_layout(prepared.vocabulary, [other])
            source = engine_source(other, prepared.windows, layout)
            summary = summarise(
                measure_cached(prepared.windows, cache, source), stride=prepared.stride
            )
            facts = model.describe() | _engine_facts(other.info)
        label = f"KL_top {top_k}(baseline || candidate), a lower bound of KL"
        pairs.append(_entry(model.name, facts, label, summary))
    baseline = prepared.baseline.describe() | cache.facts["baseline"]
    return _Found(cache.facts["noise"], pairs, baseline)


def _cache_key(prepared: _Run, top_k: int) -> Json:
    settings = prepared.settings
    return {
        "format": 1,
        "checkpoint": prepared.baseline.digest,
        "tokens": prepared.windows.ids_sha256,
        "positions": [prepared.windows.positions.start, prepared.windows.positions.stop],
        "vocabulary": prepared.vocabulary,
        "top_k": top_k,
        "engine settings": asdict(settings.engine),
        "noise settings": [settings.noise_floor, settings.seed],
        "versions": _versions(),
    }


def _measure_noise(prepared: _Run, engine: Engine) -> list[Json]:
    """Compare the baseline with itself, rounded and batched otherwise."""
    if not prepared.settings.noise_floor:
        return []
    layout = choose_layout(prepared.vocabulary, [engine])
    scale, seed = prepared.baseline.rounding, prepared.settings.seed
    length = len(prepared.windows.ids[0])
    batch = -(-min(length, engine.info.max_batch_tokens) // 3)
    source = engine_source(engine, prepared.windows, layout)
    others = [
        engine_source(engine, prepared.windows, layout, noise=RoundingNoise(scale, seed)),
        engine_source(engine, prepared.windows, layout, max_tokens=batch),
    ]
    rounded, batched = (
        summarise(records, top=prepared.protocol.top, stride=prepared.stride)
        for records in measure(prepared.windows, prepared.protocol, source, others)
    )
    kl = prepared.protocol.kl
    facts = {"storage_type": prepared.baseline.storage_type, "scale": scale, "seed": seed}
    return [
        _entry("noise floor", facts, kl, rounded),
        _entry("engine noise", {"max_tokens_per_forward": batch}, kl, batched),
    ]


def _entry(label: str, facts: Json, kl: str, summary: Summary) -> Json:
    return {"label": label, "facts": facts, "kl": kl, "summary": _without_nan(asdict(summary))}


def _without_nan(value: Any) -> Any:
    """Return a value that JSON can hold: null in place of what is not finite."""
    if isinstance(value, dict):
        items = cast("Json", value).items()
        return {name: _without_nan(item) for name, item in items}
    if isinstance(value, list):
        return [_without_nan(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _engine_facts(info: EngineInfo) -> Json:
    return {
        "engine": info.name,
        "engine_version": info.version,
        "engine_device": info.device,
        "dtype": info.dtype,
        "attention": info.attention,
        "max_batch_tokens": info.max_batch_tokens,
    }


def _versions() -> dict[str, str]:
    return {"lm_eval_exl2": __version__} | {name: version(name) for name in _PACKAGES}


def _facts(prepared: _Run) -> Json:
    windows, protocol = prepared.windows, prepared.protocol
    asked = asdict(prepared.settings)
    asked["sequential"] = prepared.settings.sequential is not None
    return {
        "versions": _versions(),
        "settings": asked,
        "protocol": {
            "name": protocol.name,
            "kl": protocol.kl,
            "unit": "nats",
            "window": len(windows.ids[0]),
            "windows": len(windows.ids),
            "positions": [windows.positions.start, windows.positions.stop],
            "bos": windows.bos,
            "tokenized": protocol.text,
            "vocabulary": prepared.vocabulary,
        },
        "text": {
            "name": windows.text,
            "sha256": windows.text_sha256,
            "tokens": windows.tokens,
            "ids_sha256": windows.ids_sha256,
        },
    }
