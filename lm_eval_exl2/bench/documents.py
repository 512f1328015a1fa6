"""Measurements -> JSON values, for a file that holds all there is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, cast

from lm_eval_exl2.bench import loadgen_agreement
from lm_eval_exl2.bench.journal import is_complete
from lm_eval_exl2.bench.records import COMPLETE, shifted
from lm_eval_exl2.bench.summary import summarise
from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lm_eval_exl2.bench.journal import JournalRun
    from lm_eval_exl2.bench.prompt_bench import PromptBench
    from lm_eval_exl2.bench.records import TimedRequest
    from lm_eval_exl2.bench.scenarios import ScenarioRun

    Json = dict[str, Any]

FORMAT: Final = 1
KILLED: Final = "killed"


def request_json(request: TimedRequest) -> Json:
    """Return a request and its derived moments as JSON values."""
    times = list(request.token_times_s)
    return asdict(request) | {
        "first_token_s": times[0] if times else None,
        "last_token_s": times[-1] if times else None,
        "tokens": len(request.token_ids),
    }


def prompt_bench_json(bench: PromptBench) -> Json:
    """Return a prompt bench as JSON values."""
    return {
        "outcome": bench.outcome,
        "ending": bench.ending,
        "together": bench.together,
        "figures": {name: figure._asdict() for name, figure in bench.figures.items()},
        "warm_up_repetitions": len(bench.warm_ups),
        "repetitions": [
            {
                "requests": [request_json(request) for request in each.requests],
                "prompt_tokens_forwarded": each.prompt_tokens_forwarded,
                "usage": asdict(each.usage) | {"cpu_utilisation": each.usage.cpu_utilisation},
            }
            for each in bench.repetitions
        ],
    }


def scenario_json(found: ScenarioRun) -> Json:
    """Return a scenario's run as JSON values."""
    settings = asdict(found.settings) | {"profile": found.settings.profile._asdict()}
    return {
        "scenario": found.settings.scenario,
        "load_qps": found.settings.qps if found.settings.scenario == "Server" else None,
        "label": found.label,
        "outcome": found.outcome,
        "settings": settings,
        "summary": asdict(found.summary),
        "most_rows": found.most_rows,
        "prompt_tokens_forwarded": found.prompt_tokens_forwarded,
        "limits": {name: verdict._asdict() for name, verdict in found.limits.items()},
        "loadgen": None if found.loadgen is None else asdict(found.loadgen),
        "agreement": [each._asdict() for each in loadgen_agreement.compare(found)],
        "usage": asdict(found.usage) | {"cpu_utilisation": found.usage.cpu_utilisation},
        "requests": [request_json(request) for request in found.requests],
    }


def read_document(path: Path) -> Json:
    """Read what `bench --json` wrote.

    Raises:
        OptionError: It cannot be read, or is no such document.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or "checkpoints" not in found or found.get("format") != FORMAT:
        raise OptionError(f"{path} is no document of format {FORMAT} that bench --json wrote")
    return cast("Json", found)


def journal_json(path: Path, runs: Sequence[JournalRun]) -> Json:
    """Return what a killed run has left as a document like that of a whole one.

    Args:
        path: Of the journal.
        runs: Its content.
    """
    scenarios = [_left_json(run) for run in runs]
    return {
        "format": FORMAT,
        "outcome": COMPLETE if is_complete(path) else KILLED,
        "settings": {"from_requests": str(path)},
        "checkpoints": [
            {"name": path.name, "facts": {}, "prompt_bench": [], "scenarios": scenarios}
        ],
    }


def _left_json(run: JournalRun) -> Json:
    start_s = min((request.issued_s for request in run.requests), default=0.0)
    requests = [shifted(request, start_s) for request in run.requests]
    return {
        "scenario": " ".join(str(value) for value in run.facts.values() if value is not None),
        "load_qps": None,
        "label": "from the requests that a run has left; without LoadGen's schedule, latencies "
        "count from the time of issue",
        "outcome": run.outcome or KILLED,
        "summary": asdict(summarise(requests)),
        "limits": {},
        "loadgen": None,
        "agreement": [],
        "style": {"name": "-", "reasons": []},
        "checks": [],
        "requests": [request_json(request) for request in requests],
    }
