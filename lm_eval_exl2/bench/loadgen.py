"""MLCommons LoadGen in a process of its own: what runs there, and nothing else.

    python loadgen.py < SETTINGS+ANSWERS > ISSUED

Here, and only here, `mlperf_loadgen` is imported. A process of its own, because an exception inside
LoadGen's callbacks ends a process, nothing stops a test that has begun, and a load generator should
not wait for the interpreter that answers it. Lines of words cross:

    in      a JSON object, `Settings`; then `first NUMBER 1 ID` and `done NUMBER COUNT ID,ID,...`
    out     `issue SAMPLE`, numbered from 0 in this order; `flush` after the last; `end`

Knows no model and imports nothing of the package. When the other side is gone, it ends at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from array import array
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

SCENARIOS: Final = ("Offline", "SingleStream", "Server", "MultiStream")
_NO_READER: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What LoadGen is told, in its own words."""

    scenario: str
    samples: int
    """Prompts there are; all are in memory."""
    folder: str
    """Where its logs go."""
    min_duration_ms: int
    min_query_count: int
    ttft_latency_ns: int
    tpot_latency_ns: int
    target_qps: float = 1.0
    """Server: arrivals per second. Offline: what to expect, which sets how many it asks for."""
    expected_latency_ns: int = 200_000
    """SingleStream and MultiStream: so short that it does not run out of queries."""
    samples_per_query: int = 8
    """MultiStream."""
    seed: int = 1
    """Of the order of samples and of the schedule."""

    def to_line(self) -> str:
        """Return the settings as the first line."""
        return json.dumps(asdict(self)) + "\n"


class _System:
    """The system under test as LoadGen sees it: queries go out, answers come in."""

    def __init__(self, loadgen: Any) -> None:
        self._loadgen = loadgen
        self._ids: list[int] = []

    def issue(self, samples: Sequence[Any]) -> None:
        """Pass queries on. Nothing may be raised here: LoadGen would crash."""
        self._ids += [sample.id for sample in samples]
        _write("".join(f"issue {sample.index}\n" for sample in samples))

    def flush(self) -> None:
        """Pass on that there are no more."""
        _write("flush\n")

    def answer(self) -> None:
        """Hand answers to LoadGen as they come, until the other side is gone."""
        for line in sys.stdin:
            kind, number, count, tokens = line.split()
            ids = array("i", map(int, tokens.split(",")))
            address, length = ids.buffer_info()
            response = self._loadgen.QuerySampleResponse(
                self._ids[int(number)], address, length * ids.itemsize, int(count)
            )
            if kind == "first":
                self._loadgen.FirstTokenComplete([response])
            else:
                self._loadgen.QuerySamplesComplete([response])
        os._exit(_NO_READER)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:  # the other side is gone
        os._exit(_NO_READER)


def main() -> None:
    """Run one test."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side decides
    loadgen: Any = import_module("mlperf_loadgen")
    settings = Settings(**json.loads(sys.stdin.readline()))
    system = _System(loadgen)
    sut: Any = loadgen.ConstructSUT(system.issue, system.flush)
    qsl: Any = loadgen.ConstructQSL(settings.samples, settings.samples, _nothing, _nothing)
    threading.Thread(target=system.answer, daemon=True).start()
    loadgen.StartTestWithLogSettings(
        sut, qsl, _test_settings(loadgen, settings), _log_settings(loadgen, settings)
    )
    loadgen.DestroyQSL(qsl)
    loadgen.DestroySUT(sut)
    _write("end\n")
    # The reading thread waits for a line that never comes; nothing is left to flush.
    os._exit(0)


def _nothing(_samples: Sequence[int]) -> None:
    """Load or unload prompts: they are in the other process."""


def _test_settings(loadgen: Any, settings: Settings) -> Any:
    made = loadgen.TestSettings()
    made.scenario = getattr(loadgen.TestScenario, settings.scenario)
    made.mode = loadgen.TestMode.PerformanceOnly
    made.min_duration_ms = settings.min_duration_ms
    made.min_query_count = settings.min_query_count
    made.use_token_latencies = True
    made.ttft_latency = settings.ttft_latency_ns
    made.tpot_latency = settings.tpot_latency_ns
    made.server_target_qps = made.offline_expected_qps = settings.target_qps
    made.single_stream_expected_latency_ns = settings.expected_latency_ns
    made.multi_stream_expected_latency_ns = settings.expected_latency_ns
    made.multi_stream_samples_per_query = settings.samples_per_query
    for name in ("qsl", "sample_index", "schedule"):
        setattr(made, f"{name}_rng_seed", settings.seed)
    made.accuracy_log_probability = 1.0  # every answer, so that it can be checked
    return made


def _log_settings(loadgen: Any, settings: Settings) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = settings.folder
    output.copy_summary_to_stdout = False
    made = loadgen.LogSettings()
    made.log_output = output
    made.enable_trace = True  # the only place where it says when a query was scheduled
    return made


if __name__ == "__main__":
    main()
