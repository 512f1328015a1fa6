"""A user's function that scores answers, for best of n: found by name, and its scores checked."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from math import isnan
from typing import Any, cast

from lm_eval_exl2.errors import OptionError

Scorer = Callable[[Mapping[str, Any], Sequence[str]], Sequence[float]]
"""Called once per problem as (document, answers); gives one score per answer, higher is better."""


def find_scorer(name: object) -> Scorer:
    """Import the function that a name such as `my_module:score` says.

    Raises:
        OptionError: The name has another form, or there is no such module or function.
    """
    module_name, colon, attribute = str(name).partition(":")
    if not (module_name and colon and attribute.isidentifier()):
        raise OptionError(f"scorer={name!r} is not of the form module:function")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise OptionError(
            f"scorer={name}: module {module_name!r} cannot be imported ({error}); install it, or "
            "put its folder into PYTHONPATH"
        ) from error
    scorer = getattr(module, attribute, None)
    if not callable(scorer):
        found = "has no such function" if scorer is None else f"has a {type(scorer).__name__} there"
        raise OptionError(f"scorer={name}: module {module_name!r} {found}; name a function in it")
    return cast(Scorer, scorer)


def score_answers(
    scorer: Scorer, document: Mapping[str, Any], answers: Sequence[str]
) -> list[float]:
    """Scores of one problem's answers, as numbers.

    Raises:
        OptionError: The scorer gave another number of scores, or something that is no number.
    """
    scores = scorer(document, answers)
    given = list(scores)
    if len(given) != len(answers):
        raise OptionError(
            f"the scorer gave {len(given)} scores for {len(answers)} answers; it must give one each"
        )
    return [_as_number(score) for score in given]


def _as_number(score: Any) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError) as error:
        raise OptionError(f"the scorer gave {score!r}, which is no number") from error
    if isnan(number):
        raise OptionError("the scorer gave NaN, which cannot be compared; give a number")
    return number
