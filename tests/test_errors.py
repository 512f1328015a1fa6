"""Errors: standard classes, one base, and they cross process borders."""

from __future__ import annotations

import pickle

import pytest

from lm_eval_exl2 import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.Exl2EvalError)
]
STANDARD = (ValueError, ImportError, RuntimeError, OSError)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_its_text(kind):
    copy = pickle.loads(pickle.dumps(kind("what was found")))
    assert type(copy) is kind
    assert str(copy) == "what was found"


@pytest.mark.parametrize("kind", [c for c in CLASSES if c is not errors.Exl2EvalError])
def test_an_error_is_also_a_standard_class(kind):
    assert issubclass(kind, STANDARD)
