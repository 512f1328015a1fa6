"""A model that answers exactly, requests of every kind, and processes that are killed.

The engine is scripted, so answers of two runs are equal to the last bit or they are wrong.
"""

import hashlib
import os
import random
import signal
import time

from asking import ask
from lm_eval.api.model import CachingLM

from lm_eval_exl2.computing import OneProcess
from lm_eval_exl2.engines.scripted import ScriptedEngine
from lm_eval_exl2.lm import Exl2LM
from lm_eval_exl2.plan import Budget
from lm_eval_exl2.records import GeneratedToken

KINDS = ("loglikelihood", "loglikelihood_rolling", "_loglikelihood_tokens", "generate_until")


class DrawingEngine(ScriptedEngine):
    """A scripted engine that samples: what it draws depends on prompt, tokens so far and seed."""

    def generate(self, requests, is_finished):
        for request in requests:
            ids = list(request.prompt_ids)
            seed = request.seed if request.sampling.get("do_sample") else None
            for number in range(request.max_new_tokens):
                self.counts.forwarded += 1 if number else len(ids)
                drawn = hashlib.sha256(f"{seed} {ids}".encode()).digest()
                token = int.from_bytes(drawn[:4], "big") % self.info.vocab_size
                ids.append(token)
                last = is_finished(request.index, token) or number + 1 == request.max_new_tokens
                yield GeneratedToken(request.index, token, last)
                if last:
                    break


def load(checkpoint, tokens=40):
    """Load a tiny model with a scripted engine in place of its own, of so many tokens a step."""
    lm = Exl2LM(str(checkpoint), device="cpu", disable_tqdm=True, max_batch_tokens=tokens)
    engine = DrawingEngine(vocab_size=lm.engine.info.vocab_size)
    lm.computer = OneProcess(engine, lm.encoder, lm.options)
    lm.computer.budget = Budget(tokens)
    return lm


def requests(count):
    """Requests of every kind by kind; every one of them once, but for repeats that are sampled.

    Some samplings say so and some only name a temperature, which the harness takes for greedy.
    """
    greedy, drawn, warm = (
        {"until": ["."], "max_gen_toks": 5} | more
        for more in ({}, {"do_sample": True, "temperature": 0.8}, {"temperature": 0.8})
    )
    cold = greedy | {"do_sample": True, "temperature": 0.0}
    texts = [f"It was number {number}" for number in range(count)]
    repeats = [(text, how) for text in texts[: count // 4] for how in (drawn, warm) * 3]
    once = [(text, how) for text in texts for how in (greedy, cold)]
    return {
        "loglikelihood": [ask(KINDS[0], text, f" {end}") for text in texts for end in "AB"],
        "loglikelihood_rolling": [ask(KINDS[1], f"{text}. " * 3) for text in texts],
        "_loglikelihood_tokens": [(None, [5, 6, number], [7, 8]) for number in range(count)],
        "generate_until": [ask(KINDS[3], *each) for each in repeats + once],
    }


def evaluate(lm, asked, cache=None):
    """Answer all requests, by way of the harness's cache if a file is given."""
    if cache is not None:
        lm = CachingLM(lm, str(cache))
    return {kind: getattr(lm, kind)(asked[kind]) for kind in KINDS}


def kill_during(work, delay_s):
    """Do work in a process of its own and kill it after so many seconds, if it is not done."""
    process = os.fork()
    if not process:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(delay_s)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def random_moments(seed, length_s):
    """Yield moments up to a length in seconds, for ever."""
    chance = random.Random(seed)
    while True:
        yield chance.uniform(0, length_s)
