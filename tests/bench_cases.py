"""Hand-made requests and engines for the tests of `bench`."""

import threading
import time
from types import SimpleNamespace

from lm_eval_exl2.bench.data import BenchPrompt
from lm_eval_exl2.bench.driver import Driver
from lm_eval_exl2.bench.journal import Journal
from lm_eval_exl2.bench.profiles import PROFILES
from lm_eval_exl2.bench.records import TimedRequest
from lm_eval_exl2.bench.scenarios import ScenarioSettings
from lm_eval_exl2.engines.scripted import ScriptedEngine, scripted_logits

NO_JOURNAL = Journal(None)
PROMPTS = [BenchPrompt(place, [1 + place % 6] * (1 + place % 5)) for place in range(12)]


def timed(times, *, ids=None, number=0, issued=0.0, **facts):
    """A request whose tokens came at these seconds."""
    ids = tuple(range(3, 3 + len(times))) if ids is None else tuple(ids)
    return TimedRequest(
        **{"sample": number, "prompt_tokens": 5} | facts,
        number=number,
        issued_s=issued,
        token_ids=ids,
        token_times_s=tuple(times),
    )


def settings(scenario, **changes):
    """A scenario as short as LoadGen allows."""
    return ScenarioSettings(
        **{
            "scenario": scenario,
            "profile": PROFILES["llama2-70b"],
            "max_new_tokens": 6,
            "duration_s": 0.15,
            "give_up_s": 20.0,
            "qps": 60.0,
            "streams": 3,
        }
        | changes
    )


def greedy(prompt, count, vocabulary=8):
    """What the scripted engine continues a prompt with: brute force over its published logits."""
    ids = list(prompt)
    for _ in range(count):
        logits = scripted_logits(ids, vocabulary)
        ids.append(logits.index(max(logits)))
    return ids[len(prompt) :]


class Paced(ScriptedEngine):
    """The scripted engine, a token every millisecond or so."""

    def __init__(self, *, token_s=0.001, **options):
        super().__init__(**options)
        self.token_s = token_s

    def generate(self, requests, is_finished):
        for token in super().generate(requests, is_finished):
            time.sleep(self.token_s)
            yield token


class Ticking:
    """A clock that every look moves on by one second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def model_facts(**changes):
    """What a report says of a checkpoint that is the reference of llama3.1-8b."""
    facts = {"architecture": "LlamaForCausalLM", "layers": 32, "hidden_size": 4096}
    return facts | {"kind": "unquantized"} | changes


def told(request, **changes):
    """What LoadGen would know of a request that was reported honestly."""
    facts = {
        "sample": request.sample,
        "scheduled_s": request.arrival_s,
        "issued_s": request.issued_s,
        "first_token_s": request.token_times_s[0] + 1e-4,
        "last_token_s": request.token_times_s[-1] + 1e-4,
        "first_ids": tuple(request.token_ids[:1]),
        "token_ids": tuple(request.token_ids),
        "token_count": len(request.token_ids),
    }
    return SimpleNamespace(**facts | changes)


def answered(engine, prompts, *, end_ids=frozenset(), count=4, **options):
    driver = Driver(engine, end_ids=end_ids, **options)
    for place, prompt in enumerate(prompts):
        driver.submit(place, prompt, count)
    driver.close()
    driver.run()
    return driver.requests()


def late_arrivals(engine, prompts, *, count):
    """Submit one prompt, and the others when its second token has come."""
    submitted = threading.Event()

    class Later:
        def __init__(self):
            self.driver = Driver(engine, end_ids=frozenset())

        def run(self):
            generate = engine.generate

            def watched(requests, is_finished):
                for token in generate(requests, is_finished):
                    yield token
                    seen = self.driver.requests()[0].token_ids
                    if len(seen) == 2 and not submitted.is_set():
                        for place, prompt in enumerate(prompts[1:], start=1):
                            self.driver.submit(place, prompt, count)
                        submitted.set()
                        self.driver.close()

            engine.generate = watched
            self.driver.submit(0, prompts[0], count)
            try:
                self.driver.run()
            finally:
                del engine.generate
            return self.driver.requests()

    return Later().run()


def check_joined(found, alone):
    """Late requests began before the first one ended, and every text is that of a run alone."""
    assert [request.token_ids for request in found] == alone
    first, *late = found
    assert all(each.token_times_s[0] < first.token_times_s[-1] for each in late)
    assert all(each.token_times_s[0] > first.token_times_s[1] for each in late)


def alone_texts(engine, prompts, count):
    return [answered(engine, [prompt], count=count)[0].token_ids for prompt in prompts]
