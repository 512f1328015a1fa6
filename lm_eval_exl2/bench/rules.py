"""The rules of `rules.yaml`: which scores a model's answers must reach, and which length. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, cast

import yaml

from lm_eval_exl2.errors import OptionError

SHIPPED: Final = Path(__file__).with_name("rules.yaml")
OWN: Final = "own"
TOKENS, CHARACTERS = "tokens", "characters"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one model's answers must reach. Numbers are exact, so that an edge is an edge."""

    name: str
    kinds: tuple[str, ...]
    """Of ROUGE; every one must hold."""
    at_least: Fraction
    """Shortest mean length that is accepted, as a share of the baseline's."""
    at_most: Fraction | None = None
    """Longest; None where there is no limit."""
    unit: str | None = None
    """"tokens" or "characters"; None where the user chooses."""
    rouge: dict[str, Fraction] = field(default_factory=dict[str, Fraction])
    """Published scores by kind; empty where the baseline is a run."""
    length: Fraction | None = None
    """Published mean length."""
    documents: int | None = None
    """Size of the data set that the published scores are of."""
    length_documents: int | None = None
    """Size of the data sets that the published length is of."""
    also: str = ""
    """What is demanded besides and cannot be judged here."""

    @property
    def is_published(self) -> bool:
        """Whether published numbers stand in for a baseline."""
        return bool(self.rouge)


def read_rules(path: Path = SHIPPED) -> dict[str, Rule]:
    """Read all rules by name.

    Raises:
        OptionError: The file cannot be understood.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        rules = cast("dict[str, dict[str, Any]]", content["rules"])
        return {name: _rule(name, each) for name, each in rules.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise OptionError(f"{path} holds no rules that can be understood: {error!r}") from error


def _rule(name: str, given: dict[str, Any]) -> Rule:
    scores, length, documents = given["rouge"], given["length"], given.get("documents")
    reference = _exact(length.get("reference"))
    if "reference_total" in length:
        reference = Fraction(length["reference_total"], documents)
    at_least = _exact(length["at_least"])
    if at_least is None:
        raise ValueError(f"{name}: at_least is missing")
    return Rule(
        name=name,
        kinds=tuple(scores),
        at_least=at_least,
        at_most=_exact(length.get("at_most")),
        unit=length.get("unit"),
        rouge={kind: Fraction(str(each)) for kind, each in scores.items() if each is not None},
        length=reference,
        documents=documents,
        length_documents=length.get("documents", documents),
        also=given.get("also", ""),
    )


def _exact(number: float | None) -> Fraction | None:
    """The decimal fraction that was written, not the binary one next to it."""
    return None if number is None else Fraction(str(number))
