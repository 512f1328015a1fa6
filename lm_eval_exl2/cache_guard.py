"""Keeps a response cache of the harness from serving another model's answers.

The harness keys cached answers by request alone. This module stamps a cache with what the
answers depend on and compares the stamp when the cache is opened again. It stores no answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_exl2.errors import CacheMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

STAMP_KEY = "lm_eval_exl2_fingerprint"


def check_cache(cache: MutableMapping[str, Any], stamp: Mapping[str, str]) -> None:
    """Stamp an empty cache, or check the stamp of one that has answers.

    Args:
        cache: The harness's key-value store.
        stamp: Name and value of everything the answers depend on.

    Raises:
        CacheMismatchError: other answers are in it, or answers of unknown origin.
    """
    found = cache.get(STAMP_KEY)
    if found is None:
        if len(cache):
            raise CacheMismatchError(
                "the response cache holds answers of unknown origin; delete it or give another "
                "path to --use_cache"
            )
        cache[STAMP_KEY] = dict(stamp)
        return
    for name, value in stamp.items():
        if found.get(name) != value:
            raise CacheMismatchError(
                f"the response cache was made with {name} {_short(found.get(name))}, but this run "
                f"has {_short(value)}; give another path to --use_cache"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
