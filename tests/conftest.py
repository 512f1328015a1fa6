"""Fixtures that several test files share: tiny checkpoints and the models loaded from them.

A test that changes a model (a chat template, a cache hook) loads one of its own.
"""

from functools import cache

import hypothesis
import lm_eval.evaluator
import pytest
import torch

from lm_eval_exl2.engines import exllamav2_import

_really_has_cuda = exllamav2_import.has_cuda


def pytest_configure():
    """Compute on one thread, and let no test take a card that does not ask for one.

    For models this small, handing work to a second thread costs more than it saves.
    """
    torch.set_num_threads(1)
    # Machines are noisy; every run draws other examples, so many runs see many.
    hypothesis.settings.register_profile("here", deadline=None, max_examples=50)
    hypothesis.settings.load_profile("here")
    exllamav2_import.has_cuda = lambda: False
    # A dozen subprocesses that ask the system for versions; no test reads them.
    lm_eval.evaluator.add_env_info = lambda _results: None


@pytest.fixture(autouse=True)
def card_if_asked_for(request, monkeypatch):
    """Give tests that are marked gpu what they ask for."""
    if request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(exllamav2_import, "has_cuda", _really_has_cuda)


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
