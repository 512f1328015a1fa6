"""One whole run: from names and settings to a document of JSON values that holds all there is.

The document's keys: `format`, `outcome`, `versions`, `settings` and `checkpoints`; each of the last
has `name`, `facts`, `prompts`, `prompt_bench` (one entry per way of ending) and `scenarios` (one
per scenario and load). Times are seconds; inside a run they count from its first arrival.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lm_eval_exl2 import __version__
from lm_eval_exl2.bench import honesty, worth
from lm_eval_exl2.bench.documents import FORMAT, prompt_bench_json, scenario_json
from lm_eval_exl2.bench.models import BenchModel, read_scored
from lm_eval_exl2.bench.prompt_bench import PromptBenchSettings, run_prompt_bench
from lm_eval_exl2.bench.records import COMPLETE, FAILED, INTERRUPTED
from lm_eval_exl2.bench.scenarios import ScenarioSettings, run_scenario
from lm_eval_exl2.errors import Exl2EvalError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lm_eval_exl2.bench.journal import Journal
    from lm_eval_exl2.bench.profiles import Profile

    Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was asked for."""

    pretrained: Sequence[str]
    prompts: Sequence[str]
    source: str
    """Where the prompts come from."""
    max_new_tokens: int
    repetitions: int
    profile: Profile
    model_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """As for `--model exl2`, without `pretrained`."""
    scenarios: Sequence[str] = ()
    duration_s: float = 60.0
    give_up_s: float = 600.0
    qps: Sequence[float] = (1.0,)
    """Server: a run for each."""
    streams: int = 8
    seed: int = 1
    scored: Path | None = None
    """The harness's results of the same checkpoint."""
    price_per_hour: float | None = None
    """Of the machine, in any currency."""
    roofline: bool = False
    """Whether to measure the device as well."""


def run(settings: Settings, journal: Journal) -> Json:
    """Measure all checkpoints.

    Returns:
        The document; after an interruption what there is until then.

    Raises:
        Exl2EvalError: in one line, what was found, what was expected and what to do.
    """
    document: Json = {
        "format": FORMAT,
        "outcome": COMPLETE,
        "versions": _versions(),
        "settings": _shown(settings),
        "checkpoints": [],
    }
    try:
        for name in settings.pretrained:
            _measure(name, settings, journal, document)
    except KeyboardInterrupt:
        document["outcome"] = INTERRUPTED
    except Exl2EvalError as error:
        if not any(_parts(entry) for entry in document["checkpoints"]):
            raise
        document["outcome"] = f"{FAILED}{error}"
    return document


def _parts(entry: Json) -> list[Json]:
    return [*entry["prompt_bench"], *entry["scenarios"]]


def _measure(name: str, settings: Settings, journal: Journal, document: Json) -> None:
    """Measure one checkpoint; what is there is in the document, whatever happens then."""
    model = BenchModel(
        name, settings.model_args, settings.prompts, max_new_tokens=settings.max_new_tokens
    )
    entry: Json = {
        "name": name,
        "facts": model.facts,
        "prompts": {
            "source": settings.source,
            "count": len(model.fitted.prompts),
            "left_out": [
                {"place": place, "tokens": tokens}
                for place, tokens in model.fitted.left_out.items()
            ],
        },
        "prompt_bench": [],
        "scenarios": [],
    }
    document["checkpoints"].append(entry)
    try:
        if settings.scored is not None:
            entry["configuration"] = honesty.check_configuration(
                model.facts, read_scored(settings.scored)
            )._asdict()
        _measure_parts(model, settings, journal, entry)
        _add_worth(model, settings, entry)
    finally:
        model.engine.close()


def _measure_parts(model: BenchModel, settings: Settings, journal: Journal, entry: Json) -> None:
    """Run everything that was asked for.

    Raises:
        KeyboardInterrupt: something was interrupted; what it had is in the entry.
    """
    if settings.repetitions:
        for end_ids in (frozenset[int](), model.end_ids):
            entry["prompt_bench"].append(_prompt_bench(model, settings, end_ids, journal))
            _stop_if_interrupted(entry["prompt_bench"][-1])
    for scenario in settings.scenarios:
        for qps in settings.qps if scenario == "Server" else settings.qps[:1]:
            entry["scenarios"].append(_scenario(model, settings, scenario, qps, journal))
            _stop_if_interrupted(entry["scenarios"][-1])


def _add_worth(model: BenchModel, settings: Settings, entry: Json) -> None:
    """Add costs and shares of the roofs, where they were asked for."""
    if (price := settings.price_per_hour) is not None:
        for bench in entry["prompt_bench"]:
            bench["cost"] = worth.bench_cost(bench, price)
        for run in entry["scenarios"]:
            run["cost"] = worth.scenario_cost(run, price, prompts=len(model.fitted.prompts))
    if settings.roofline:
        rates = worth.rates_of(model.facts)
        for bench in entry["prompt_bench"]:
            bench["reached"] = worth.reached(bench, model.checkpoint, model.facts, rates)


def _stop_if_interrupted(part: Json) -> None:
    if part["outcome"] == INTERRUPTED:
        raise KeyboardInterrupt


def _prompt_bench(
    model: BenchModel, settings: Settings, end_ids: frozenset[int], journal: Journal
) -> Json:
    wanted = PromptBenchSettings(
        max_new_tokens=settings.max_new_tokens, repetitions=settings.repetitions, end_ids=end_ids
    )
    journal.start_run({"bench": "prompt bench", "ending": wanted.ending})
    bench = run_prompt_bench(model.engine, model.fitted.prompts, wanted, journal=journal)
    journal.end_run(bench.outcome)
    return prompt_bench_json(bench) | {
        "checks": [check._asdict() for check in model.bench_checks(bench, settings.max_new_tokens)]
    }


def _scenario(
    model: BenchModel, settings: Settings, scenario: str, qps: float, journal: Journal
) -> Json:
    wanted = ScenarioSettings(
        scenario=scenario,
        profile=settings.profile,
        max_new_tokens=settings.max_new_tokens,
        duration_s=settings.duration_s,
        give_up_s=settings.give_up_s,
        qps=qps,
        streams=settings.streams,
        seed=settings.seed,
    )
    journal.start_run({"scenario": scenario, "qps": qps if scenario == "Server" else None})
    found = run_scenario(
        model.engine, model.fitted.prompts, wanted, end_ids=model.end_ids, journal=journal
    )
    journal.end_run(found.outcome)
    checks = [] if found.outcome == INTERRUPTED else model.scenario_checks(found)
    style = honesty.style(
        settings.profile,
        model.facts,
        prompts=len(model.fitted.prompts),
        max_new_tokens=settings.max_new_tokens,
        duration_s=settings.duration_s,
        is_sharing=found.prompt_tokens_forwarded
        < sum(each.prompt_tokens for each in found.requests if each.started is not None),
    )
    return scenario_json(found) | {
        "style": style._asdict(),
        "checks": [check._asdict() for check in checks],
    }


def _versions() -> dict[str, str]:
    found = {"lm_eval_exl2": __version__}
    return found | {name: version(name) for name in ("torch", "transformers", "lm_eval")}


def _shown(settings: Settings) -> Json:
    return {
        "pretrained": list(settings.pretrained),
        "model_args": dict(settings.model_args),
        "max_gen_toks": settings.max_new_tokens,
        "repetitions": settings.repetitions,
        "scenarios": list(settings.scenarios),
        "profile": settings.profile.name,
        "duration_s": settings.duration_s,
        "give_up_s": settings.give_up_s,
        "qps": list(settings.qps),
        "streams": settings.streams,
        "seed": settings.seed,
        "price_per_hour": settings.price_per_hour,
        "roofline": settings.roofline,
    }
