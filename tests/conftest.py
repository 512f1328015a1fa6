"""Fixtures that several test files share: tiny checkpoints and the models loaded from them.

A test that changes a model (a chat template, a cache hook) loads one of its own.
"""

from functools import cache

import pytest
import torch


def pytest_configure():
    """Compute on one thread: for models this small, handing work to a second costs more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Save the tiny model of a kind once (see text_models.KINDS); give its directory."""
    import text_models

    return cache(lambda name: text_models.save(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def exl2(checkpoint):
    """Load a tiny model as `--model exl2` does; equal arguments give the same object."""
    from lm_eval_exl2.lm import Exl2LM

    return cache(lambda name, **arguments: Exl2LM(str(checkpoint(name)), device="cpu", **arguments))


@pytest.fixture(scope="session")
def hf(checkpoint):
    """Load a tiny model as `--model hf` does; equal arguments give the same object."""
    from lm_eval.models.huggingface import HFLM

    fixed = {"device": "cpu", "dtype": "float32"}
    return cache(lambda name, **given: HFLM(pretrained=str(checkpoint(name)), **fixed, **given))
