"""One answer to its findings: which faults it has, and the metrics that follow from them.

Pure: no model judges here, and the harness is not needed.
"""

from typing import Final

from lm_eval_exl2.tasks.quality.exact import is_exact
from lm_eval_exl2.tasks.quality.faults import (
    find_emoji,
    find_prompt_leak,
    find_special_token,
    find_truncation,
)
from lm_eval_exl2.tasks.quality.language import find_language_drift
from lm_eval_exl2.tasks.quality.limits import broken_limit
from lm_eval_exl2.tasks.quality.prompts import Prompt
from lm_eval_exl2.tasks.quality.repetition import find_repetition

FAULTS: Final = (
    "empty",
    "repetition",
    "special_token",
    "prompt_leak",
    "emoji",
    "language_drift",
    "truncated",
    "limits",
)
"""Every fault an answer can have, in the order in which they are shown."""


def find_faults(prompt: Prompt, answer: str) -> dict[str, str]:
    """Find the faults of an answer.

    Returns:
        For each fault that it has, by its name in `FAULTS`, what shows it. An answer without a
        letter or digit is "empty"; it breaks the limits by that, too.
    """
    is_empty = not any(map(str.isalnum, answer))
    found = {
        "empty": "no words" if is_empty else "",
        "repetition": find_repetition(answer),
        "special_token": find_special_token(answer),
        "prompt_leak": find_prompt_leak(prompt, answer),
        "emoji": find_emoji(answer),
        "language_drift": find_language_drift(answer),
        "truncated": find_truncation(answer),
        "limits": "no words" if is_empty else broken_limit(prompt, answer),
    }
    return {name: shown for name, shown in found.items() if shown}


def score(prompt: Prompt, answer: str) -> dict[str, int]:
    """The metrics of one answer, each 0 or 1.

    Returns:
        `clean` (no fault, limits kept), `limits_kept`, `exact` if the prompt has an exact answer,
        and every fault but the limits under its own name.
    """
    found = find_faults(prompt, answer)
    metrics = {"clean": int(not found), "limits_kept": int("limits" not in found)}
    if prompt.answers:
        metrics["exact"] = int(is_exact(prompt, answer))
    return metrics | {name: int(name in found) for name in FAULTS if name != "limits"}
