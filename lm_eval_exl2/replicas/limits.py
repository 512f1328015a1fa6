"""How much failing a run on replicas puts up with, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much failing is put up with."""

    stall_s: float = 900.0
    """A replica whose token counter stands still so long hangs. One forward of 2048 tokens of an
    8-billion model takes some 10 minutes on two cores."""
    stall_pauses: float = 4.0
    """It may stand still this many times longer than the longest pause that ended well."""
    start_s: float = 3600.0
    """A replica may take so long to start: it may have to wait for room and for a download."""
    tries: int = 2
    """A unit that failed so often is taken apart."""
    strikes: int = 3
    """A replica is given up after so many failures in a row that were not the unit's."""
    failures_in_a_row: int = 40
    """The run is given up after so many failures of any kind without a finished unit: a unit of
    a million requests is taken apart in 20."""
    set_aside: int = 16
    """The run is given up when more requests than this kill replicas."""
