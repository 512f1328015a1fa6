"""The window that counts, and the facts recorded with results."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from lm_eval_exl2.engines.scripted import ScriptedEngine
from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.options import parse_options
from lm_eval_exl2.provenance import resolve_window

INFO = ScriptedEngine(max_length=64).info


def window(limit=None, **arguments):
    options = parse_options({"pretrained": "x", **arguments})
    return resolve_window(options, dataclasses.replace(INFO, position_limit=limit))


def test_without_a_wish_the_window_is_the_models():
    assert window() == 64


def test_a_smaller_window_is_taken():
    assert window(max_length=10) == 10


def test_a_larger_window_is_taken_with_a_warning_where_positions_can_be_extrapolated(caplog):
    with caplog.at_level(logging.WARNING):
        assert window(max_length=100) == 100
    assert "more than the 64 tokens the model was made for" in caplog.text


def test_a_window_beyond_the_position_table_is_an_error():
    with pytest.raises(OptionError, match="max_length=100 is more than the 64 positions"):
        window(limit=64, max_length=100)
