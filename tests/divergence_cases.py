"""The demo checkpoints, loaded once, and windows of their text, for tests of divergence."""

from functools import cache

import numpy as np

from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.divergence.measure import Layout, engine_source
from lm_eval_exl2.divergence.models import EngineSettings, Model
from lm_eval_exl2.divergence.protocols import PROTOCOLS
from lm_eval_exl2.divergence.text import cut_windows, load_text
from lm_eval_exl2.engines.torch_engine import TorchEngine

NAMES = ("demo-fp16", "demo-5.0bpw", "demo-2.5bpw")
CPU = EngineSettings(device="cpu")


@cache
def engines():
    """All of them by name."""
    return {
        name: TorchEngine(Checkpoint(Model(name).checkpoint.directory), device="cpu")
        for name in NAMES
    }


@cache
def windows(protocol="qbench"):
    """Four windows of 64 tokens."""
    tokenizer = Model("demo-fp16").tokenizer
    return cut_windows(load_text("demo"), tokenizer, PROTOCOLS[protocol], window=64, rows=4)


def sources(cut, rows=25, **options):
    """One source for each of them."""
    return [engine_source(engines()[n], cut, Layout(1024, rows), **options) for n in NAMES]


def brute_force(engine, other, cut, vocabulary=1024):
    """KL of every position from transformers' own logits, in float64."""
    found = []
    for ids in cut.ids:
        p, q = (e.naive_logits(ids).double()[list(cut.positions)] for e in (engine, other))
        p, q = (logits[:, :vocabulary].log_softmax(-1) for logits in (p, q))
        found.append((p.exp() * (p - q)).sum(-1).numpy())
    return np.concatenate(found)


def split(sources):
    """The baseline and the others."""
    return sources[0], sources[1:]
