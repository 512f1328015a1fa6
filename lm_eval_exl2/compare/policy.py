"""What counts as good enough: profiles with bands, caps, and how they are decided. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from lm_eval_exl2.errors import OptionError

SHIPPED = Path(__file__).with_name("policy.yaml")

State = str
SHIP, ACCEPTABLE, MARGINAL = "ship", "acceptable with monitoring", "marginal"
DO_NOT_SHIP, INCONCLUSIVE, CANNOT_COMPARE = "do not ship", "inconclusive", "cannot compare"
STATES = (SHIP, ACCEPTABLE, MARGINAL, DO_NOT_SHIP, INCONCLUSIVE, CANNOT_COMPARE)
WORST_LAST = (SHIP, ACCEPTABLE, MARGINAL, INCONCLUSIVE, CANNOT_COMPARE, DO_NOT_SHIP)
EXIT_CODES = {
    SHIP: 0,
    ACCEPTABLE: 0,
    MARGINAL: 10,
    DO_NOT_SHIP: 11,
    INCONCLUSIVE: 12,
    CANNOT_COMPARE: 13,
}


@dataclass(frozen=True, slots=True)
class Band:
    """Average drops below an edge."""

    state: State
    below: float | None
    """In per cent or points; None: everything above the others."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one use of a model demands; drops in per cent or points."""

    name: str
    bands: tuple[Band, ...] = ()
    accepts: float | None = None
    """The worst average drop that is accepted; None where the average decides nothing."""
    caps: dict[str, float] = field(default_factory=dict[str, float])
    """Per benchmark, which must be there."""
    caps_if_present: dict[str, float] = field(default_factory=dict[str, float])
    every_task: float | None = None
    """A cap for each task."""
    drop: Literal["relative", "absolute"] = "relative"
    decide_by: Literal["interval", "estimate"] = "interval"

    def band(self, drop: float) -> Band:
        """The band a drop lies in; an edge belongs to the worse one."""
        for band in self.bands:
            if band.below is None or drop < band.below:
                return band
        return Band(DO_NOT_SHIP, None)

    def cap(self, benchmark: str) -> float | None:
        """What a benchmark's drop must stay below, if anything."""
        return {**self.caps_if_present, **self.caps}.get(benchmark, self.every_task)


def read_profile(name: str, path: Path = SHIPPED, **changes: Any) -> Profile:
    """Read one profile of a policy file.

    Args:
        name: Its name.
        path: The file.
        **changes: `drop` and `decide_by` in place of the file's.

    Raises:
        OptionError: There is no such profile, or the file cannot be understood.
    """
    try:
        policy: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        profiles = cast("dict[str, Any]", policy["profiles"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is no policy with profiles: {error}") from error
    if name not in profiles:
        raise OptionError(f"no profile {name!r} in {path.name}, there are {', '.join(profiles)}")
    common = {key: policy[key] for key in ("drop", "decide_by") if key in policy}
    given = {key: value for key, value in changes.items() if value is not None}
    settings = {**common, **profiles[name], **given}
    try:
        bands = tuple(_band(each) for each in settings.pop("bands", ()))
        profile = Profile(name, bands=bands, **settings)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"profile {name!r} in {path.name} cannot be understood: {error}"
        ) from error
    _check(profile, path)
    return profile


def _band(given: dict[str, Any]) -> Band:
    return Band(str(given["state"]), None if given.get("below") is None else float(given["below"]))


def _check(profile: Profile, path: Path) -> None:
    where = f"profile {profile.name!r} in {path.name}"
    edges = [band.below for band in profile.bands]
    if profile.bands and (edges[-1] is not None or None in edges[:-1]):
        raise OptionError(f"{where}: the last band, and no other, has no `below`")
    if sorted(edge for edge in edges if edge is not None) != edges[:-1]:
        raise OptionError(f"{where}: the bands' edges must grow, found {edges[:-1]}")
    unknown = {band.state for band in profile.bands} - EXIT_CODES.keys()
    if unknown:
        raise OptionError(f"{where}: unknown state {unknown.pop()!r}, expected {', '.join(STATES)}")
    if profile.drop not in ("relative", "absolute"):
        raise OptionError(f"{where}: drop={profile.drop!r}, expected relative or absolute")
    if profile.decide_by not in ("interval", "estimate"):
        raise OptionError(
            f"{where}: decide_by={profile.decide_by!r}, expected interval or estimate"
        )
    if (profile.accepts is None) != (not profile.bands):
        raise OptionError(f"{where}: bands and `accepts` belong together")
    if profile.accepts is None and profile.every_task is None and not profile.caps:
        raise OptionError(f"{where} demands nothing; give bands, caps or every_task")
