"""Faults of replicas, injected at random times into runs on Ray, for `faults.py`.

Two replicas on this machine answer the demo checkpoint's requests, half of the runs log-likelihoods
and half sampled texts. An undisturbed run on the same replicas is what every run is compared with,
bit by bit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, hash_args

from lm_eval_exl2.lm import Exl2LM
from lm_eval_exl2.options import parse_options
from lm_eval_exl2.replicas.limits import Limits
from lm_eval_exl2.replicas.ray_replicas import RayReplica, RayReplicas
from lm_eval_exl2.replicas.replicated import Replicated
from lm_eval_exl2.response_cache import ResponseCache

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from lm_eval_exl2.options import Options
    from lm_eval_exl2.replicas.replica import About

# Processes of Ray need not find this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
# Hangs are noticed after so long.
_STALL_S = 15.0


class Outcome(NamedTuple):
    """What became of the answers of one run."""

    lost: int
    duplicated: int
    changed: int


class FaultyReplica(RayReplica):
    """In the middle of its work, raises on SIGUSR1, stands still on SIGUSR2.

    On SIGRTMIN it asks PyTorch for more memory than there is.
    """

    def open(self, options: Options) -> About:
        """See `Replica.open`."""
        about = super().open(options)
        told: list[int] = []
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN):
            signal.signal(number, lambda number, _frame: told.append(number))
        engine: Any = self.computer.engine
        forward = engine.forward

        def disturbed(*arguments: Any, **options: Any) -> Any:
            if told and told[0] == signal.SIGUSR1:
                raise RuntimeError("an exception that was injected")
            if told and told[0] == signal.SIGRTMIN:
                torch.empty(1 << 46, dtype=torch.uint8)
            while told:
                time.sleep(1.0)
            return forward(*arguments, **options)

        engine.forward = disturbed
        return about


FAULTS: dict[str, Callable[[int], None]] = {
    "kill -9 of a replica": lambda pid: os.kill(pid, signal.SIGKILL),
    "an exception in a replica": lambda pid: os.kill(pid, signal.SIGUSR1),
    "out of memory in a replica": lambda pid: os.kill(pid, signal.SIGRTMIN),
    "a replica hangs": lambda pid: os.kill(pid, signal.SIGUSR2),
    "the process of a replica is frozen": lambda pid: os.kill(pid, signal.SIGSTOP),
}


class _Recorder(ResponseCache):
    """A response cache without a file, which counts what it is asked to keep."""

    def __init__(self) -> None:
        super().__init__(CacheHook(None), hash_args, dict)
        self.told: Counter[str] = Counter()

    def keep_score(self, request: Any, answer: Any) -> None:
        """Count a score."""
        self.told[f"loglikelihood{request[0]!r}"] += 1

    def keep_text(self, prompt: Any, arguments: Any, text: str) -> None:
        """Count a text."""
        self.told[f"generate_until{arguments!r}"] += 1


class ReplicaFaults:
    """The set-up that all faults of replicas share; close it at the end."""

    def __init__(self, requests: int = 6000, prompts: int = 200) -> None:
        """Start replicas and note what they answer undisturbed."""
        logging.getLogger("lm_eval_exl2.replicas").setLevel(logging.ERROR)
        self.lm = Exl2LM("demo", device="cpu")
        options = parse_options({"pretrained": "demo", "device": "cpu", "data_parallel_size": 2})
        replicas = RayReplicas(options, self.lm.checkpoint.digest(), FaultyReplica)
        self.computer = Replicated(
            replicas, 2, describe=lambda each: str(each.index), limits=Limits(stall_s=_STALL_S)
        )
        self.lm.computer = self.computer
        self._requests = {
            "loglikelihood": [_pair(number) for number in range(requests)],
            "generate_until": [_prompt(number) for number in range(prompts)],
        }
        self._seconds: dict[str, float] = {}
        self._expected: dict[str, list[Any]] = {}
        for kind in self._requests:
            began_s = time.perf_counter()
            self._expected[kind] = self._ask(kind)
            self._seconds[kind] = time.perf_counter() - began_s

    def run(self, fault: str, random: random.Random) -> Outcome:
        """Run once with a fault at a random time; again where the run was over before it."""
        while True:
            kind = random.choice(sorted(self._requests))
            restarts = self.computer.driver.dealer.restarts
            recorder = _Recorder()
            self.lm._cache = recorder
            delay_s = random.uniform(0.0, 0.8 * self._seconds[kind])
            timer = threading.Timer(delay_s, self._inject, (fault, random.randrange(2)))
            timer.start()
            found = self._ask(kind)
            timer.cancel()
            if self.computer.driver.dealer.restarts > restarts:
                asked = Counter(f"{kind}{each.args!r}" for each in self._requests[kind])
                told = recorder.told
                pairs = zip(found, self._expected[kind], strict=True)
                return Outcome(
                    lost=(asked - told).total(),
                    duplicated=(told - asked).total(),
                    changed=sum(one != other for one, other in pairs),
                )

    def close(self) -> None:
        """End replicas and cluster."""
        self.computer.close()

    def _inject(self, fault: str, replica: int) -> None:
        about = self.computer.replicas.abouts.get(replica)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if about is not None:
                FAULTS[fault](about.pid)

    def _ask(self, kind: str) -> list[Any]:
        return getattr(self.lm, kind)(self._requests[kind], disable_tqdm=True)


def _pair(number: int) -> Instance:
    question, letter = divmod(number, 4)
    pair = (f"Question {question}: which animal lives in house {question % 97}?", " ABCD"[letter:])
    return Instance("loglikelihood", {}, pair, number)


def _prompt(number: int) -> Instance:
    arguments = {"until": [], "max_gen_toks": 40, "do_sample": True, "temperature": 0.8}
    return Instance("generate_until", {}, (f"The animal of house {number}", arguments), number)
