"""What a measured speed is worth: its price, and its share of what the device could do.

Works on the parts of a document (`run.py`); measures only the device's own rates.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from lm_eval_exl2.bench.cost import cost_of_run
from lm_eval_exl2.bench.device_rates import measure_device
from lm_eval_exl2.bench.model_size import size_of_model
from lm_eval_exl2.bench.records import COMPLETE
from lm_eval_exl2.bench.roofline import reached_in_decoding, reached_in_prefill

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lm_eval_exl2.bench.roofline import DeviceRates
    from lm_eval_exl2.checkpoint import Checkpoint

    Json = dict[str, Any]

_BYTES: Final = {"float16": 2.0, "bfloat16": 2.0, "float32": 4.0, "float64": 8.0}
# exllamav2's caches of rounded values have a scale of 16 bits for every 32 of them.
_CACHE_BYTES: Final = {"FP8": 1.0, "Q8": 1.0625, "Q6": 0.8125, "Q4": 0.5625}


def bench_cost(bench: Json, price_per_hour: float) -> Json | None:
    """What the repetitions of a prompt bench cost; None without any.

    `evaluation` is the cost of answering all prompts once.
    """
    repetitions = [each["requests"] for each in bench["repetitions"]]
    return _cost(repetitions, price_per_hour, documents=len(repetitions[0]) if repetitions else 0)


def scenario_cost(run: Json, price_per_hour: float, *, prompts: int) -> Json | None:
    """What a scenario cost; None unless it ran to its end.

    Args:
        run: As in the document.
        price_per_hour: Of the machine.
        prompts: How many there are; `evaluation` is the cost of answering each once.
    """
    if run["outcome"] != COMPLETE:
        return None
    return _cost([run["requests"]], price_per_hour, documents=prompts)


def _cost(runs: Sequence[list[Json]], price_per_hour: float, *, documents: int) -> Json | None:
    requests = [request for run in runs for request in run if request["last_token_s"] is not None]
    if not requests:
        return None
    seconds = sum(_wall_s(run) for run in runs)
    cost = cost_of_run(
        price_per_hour,
        seconds,
        input_tokens=sum(each["prompt_tokens"] for each in requests),
        output_tokens=sum(each["tokens"] for each in requests),
        documents=len(requests),
        full_documents=documents,
    )
    return {"price_per_hour": price_per_hour, "seconds": seconds, **asdict(cost)}


def _wall_s(requests: Sequence[Json]) -> float:
    """From the first arrival to the last token."""
    arrivals = [
        each["issued_s"] if each["scheduled_s"] is None else each["scheduled_s"]
        for each in requests
    ]
    ends = [each["last_token_s"] for each in requests if each["last_token_s"] is not None]
    return max(ends) - min(arrivals) if ends else 0.0


def rates_of(facts: Mapping[str, Any]) -> DeviceRates:
    """Measure the device that a checkpoint was loaded on, in the type it multiplies in."""
    return measure_device(facts["engine_device"], dtypes=[facts["model_dtype"]])


def reached(
    bench: Json, checkpoint: Checkpoint, facts: Mapping[str, Any], rates: DeviceRates
) -> Json | None:
    """Hold the medians of a prompt bench against the device's rates; None without medians.

    Args:
        bench: As in the document.
        checkpoint: What ran.
        facts: How it was loaded, as in the document.
        rates: Of the device.
    """
    figures = bench["figures"]
    if not {"decode_tokens_per_s", "prefill_tokens_per_s"} <= figures.keys():
        return None
    dtype = facts["model_dtype"]
    decoded = facts["engine"] == "torch" and facts["weight_memory"] != "packed"
    model = size_of_model(checkpoint, weight_bytes=_BYTES[dtype] if decoded else None)
    value_bytes = _CACHE_BYTES.get(facts.get("cache_mode", ""), _BYTES[dtype])
    requests = [each for repetition in bench["repetitions"] for each in repetition["requests"]]
    repetition = bench["repetitions"][0]
    prompts = len(repetition["requests"])
    prefilled = max(1, round(repetition["prompt_tokens_forwarded"] / prompts))
    # On average over a text, a token sees the prompt and half of what was written.
    length = sum(each["prompt_tokens"] + each["tokens"] / 2 for each in requests) / len(requests)
    return {
        "rates": asdict(rates),
        "weights": f"{dtype}, decoded at load" if decoded else "as stored",
        "decode": reached_in_decoding(
            model,
            rates,
            figures["decode_tokens_per_s"]["median"],
            dtype=dtype,
            batch_size=prompts if bench["together"] else 1,
            length=round(length),
            value_bytes=value_bytes,
        )._asdict(),
        "prefill": reached_in_prefill(
            model,
            rates,
            figures["prefill_tokens_per_s"]["median"],
            dtype=dtype,
            tokens=prefilled,
            value_bytes=value_bytes,
        )._asdict(),
    }
