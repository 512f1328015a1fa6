"""What MLPerf Inference demands of language models: latency limits, data, shapes.

Source: MLCommons inference policies and `mlperf.conf`, versions 5 and 6 (datacenter; both limits
are of the 99th percentile in the Server scenario). Data only.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Profile(NamedTuple):
    """A benchmark's rules, as far as a run can be held against them."""

    name: str
    ttft_s: float
    """Limit of the 99th percentile of the time to first token."""
    tpot_s: float
    """Limit of the 99th percentile of the time per output token."""
    data: str
    samples: int
    max_new_tokens: int
    architecture: str
    layers: int
    hidden_size: int


def _llama2_70b(name: str, ttft_s: float, tpot_s: float) -> Profile:
    shape = ("LlamaForCausalLM", 80, 8192)
    return Profile(name, ttft_s, tpot_s, "OpenOrca", 24_576, 1024, *shape)


def _llama31_8b(name: str, ttft_s: float, tpot_s: float) -> Profile:
    shape = ("LlamaForCausalLM", 32, 4096)
    return Profile(name, ttft_s, tpot_s, "CNN/DailyMail", 13_368, 128, *shape)


PROFILES: Final = {
    profile.name: profile
    for profile in (
        _llama2_70b("llama2-70b", 2.0, 0.2),
        _llama2_70b("llama2-70b-interactive", 0.45, 0.04),
        _llama31_8b("llama3.1-8b", 2.0, 0.1),
        _llama31_8b("llama3.1-8b-interactive", 0.5, 0.03),
    )
}
