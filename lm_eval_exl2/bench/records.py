"""One timed request, and what the field computes from its times. Standard library only.

All times are seconds of one clock that never goes back. An output token is any token the engine
produced, the one that ends the text included, since it was computed and waited for as well.

Definitions (arrival is the scheduled time where there is a schedule, so that queueing counts, else
the time of issue; n output tokens, from `first` to `last`):

    TTFT            first - arrival
    TPOT            (last - first) / (n - 1), undefined for n = 1
    ITL             every gap between neighbouring tokens
    end to end      last - arrival = TTFT + TPOT (n - 1)
    decode rate     (n - 1) / (last - first), the tokens per second one user sees
    total rate      n / (last - arrival), which includes the prefill
    system rate     output tokens of all requests / wall time
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

COMPLETE: Final = "complete"
INTERRUPTED: Final = "interrupted"
FAILED: Final = "failed: "
"""How a run ended; the last is followed by the reason."""
FINISHED: Final = "finished"
UNFINISHED: Final = "unfinished"
"""How a request ended; of one that the end of the run cut off, what it had produced is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRequest:
    """A request, when it came, and when each of its tokens did."""

    number: int
    """Place in the order of issue, from 0."""
    sample: int
    """Place of its prompt in the data."""
    prompt_tokens: int
    issued_s: float
    """When it was handed to us."""
    scheduled_s: float | None = None
    """When it was to come; None where nothing scheduled it, or the schedule is not known."""
    started: int | None = None
    """Place in the order in which the engine took requests; None if it never did."""
    token_ids: Sequence[int] = ()
    token_times_s: Sequence[float] = ()
    outcome: str = FINISHED
    """`finished` or `unfinished`."""

    @property
    def arrival_s(self) -> float:
        """When its wait began."""
        return self.issued_s if self.scheduled_s is None else self.scheduled_s

    @property
    def is_measured(self) -> bool:
        """Whether it finished with output, so that its latencies count."""
        return self.outcome == FINISHED and bool(self.token_times_s)


def time_to_first_token(request: TimedRequest) -> float | None:
    """Return TTFT in seconds, None without output."""
    times = request.token_times_s
    return times[0] - request.arrival_s if times else None


def time_per_output_token(request: TimedRequest) -> float | None:
    """Return TPOT in seconds, None for fewer than two tokens."""
    times = request.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


def inter_token_latencies(request: TimedRequest) -> list[float]:
    """Return every gap in seconds; none for fewer than two tokens."""
    return [after - before for before, after in pairwise(request.token_times_s)]


def end_to_end(request: TimedRequest) -> float | None:
    """Return the whole latency in seconds, None without output."""
    times = request.token_times_s
    return times[-1] - request.arrival_s if times else None


def decode_rate(request: TimedRequest) -> float | None:
    """Return tokens per second after the first, None where no time passed between two."""
    per_token = time_per_output_token(request)
    return 1 / per_token if per_token else None


def total_rate(request: TimedRequest) -> float | None:
    """Return output tokens per second of the whole latency, None where there is none."""
    seconds = end_to_end(request)
    return len(request.token_times_s) / seconds if seconds else None


def wall_time(requests: Sequence[TimedRequest]) -> float:
    """Return the seconds from the first arrival to the last token, 0 without any token."""
    last = [request.token_times_s[-1] for request in requests if request.token_times_s]
    return max(last) - min(request.arrival_s for request in requests) if last else 0.0


def system_rate(requests: Sequence[TimedRequest]) -> float | None:
    """Return output tokens of all requests per second of wall time, the unfinished included."""
    seconds = wall_time(requests)
    return sum(len(request.token_times_s) for request in requests) / seconds if seconds else None


def shifted(request: TimedRequest, start_s: float) -> TimedRequest:
    """Return a request with all times counted from a start."""
    scheduled = request.scheduled_s
    return replace(
        request,
        issued_s=request.issued_s - start_s,
        scheduled_s=None if scheduled is None else scheduled - start_s,
        token_times_s=tuple(moment - start_s for moment in request.token_times_s),
    )
