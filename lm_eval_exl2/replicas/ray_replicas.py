"""Replicas as Ray actors: the only module that knows Ray.

Ray places them, carries units and reports, and says when one has died. It is not asked to restart
or to retry anything: what to do then is decided in `dealing`.
"""
# Much of Ray is typed with parameters that it leaves open.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions

from lm_eval_exl2 import __version__
from lm_eval_exl2.errors import Exl2EvalError, ReplicaError
from lm_eval_exl2.records import TokenCounts
from lm_eval_exl2.replicas.driving import Event
from lm_eval_exl2.replicas.placing import Node, place
from lm_eval_exl2.replicas.replica import About, Replica

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval_exl2.options import Options
    from lm_eval_exl2.replicas.cut import WorkUnit

# For units and reports in flight; each takes kilobytes.
_OBJECT_STORE_BYTES = 256 << 20
_CONNECT_S = 10.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What must be the same for answers to be; names of `EngineInfo`.
_SAME = ("name", "version", "dtype", "attention", "max_length", "vocab_size", "parameters")


class RayReplica(Replica):
    """A replica in a process of Ray, which says where."""

    def open(self, options: Options) -> About:
        """See `Replica.open`."""
        about = super().open(options)
        number = ray.get_runtime_context().get_node_id()[:8]
        return about._replace(node=f"{about.node} (Ray node {number})")


class RayReplicas:
    """Implements `driving.Replicas`; all of them must hold the same checkpoint."""

    def __init__(
        self, options: Options, digest: str, replica_class: type[Replica] = RayReplica
    ) -> None:
        """Connect to the cluster that RAY_ADDRESS names, or start one on this machine.

        Args:
            options: Of the run.
            digest: Of the checkpoint, to compare theirs with.
            replica_class: What an actor is.

        Raises:
            OptionError: there are not enough cards.
            ReplicaError: no cluster answers there.
        """
        self._owns_cluster = _connect()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = place([Node(n.get("CPU", 0.0), n.get("GPU", 0.0)) for n in nodes], options)
        self._actor: Any = ray.remote(replica_class).options(  # pyright: ignore
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(_threads(share.threads))}},
        )
        self._options, self._digest = options, digest
        self._actors: dict[int, Any] = {}
        self._waiting: dict[Any, int] = {}
        """References to what actors will answer, and whose they are."""
        self.abouts: dict[int, About] = {}
        self.counts: dict[int, list[TokenCounts]] = {}
        """What each replica has counted, an entry for each time it was started."""

    def now(self) -> float:
        """See `Replicas.now`."""
        return time.monotonic()

    def start(self, replica: int) -> None:
        """See `Replicas.start`."""
        self._actors[replica] = actor = self._actor.remote()
        self._waiting[actor.open.remote(self._options)] = replica

    def give(self, replica: int, ticket: int, unit: WorkUnit) -> None:
        """See `Replicas.give`."""
        self._actors[replica].give.remote(ticket, unit)
        self._listen_to(replica)

    def stop(self, replica: int) -> None:
        """See `Replicas.stop`; a process that does not react is killed by Ray within seconds."""
        self._waiting = {ref: number for ref, number in self._waiting.items() if number != replica}
        actor = self._actors.pop(replica, None)
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def wait(self, timeout_s: float) -> Iterator[Event]:
        """See `Replicas.wait`."""
        waiting = list(self._waiting)
        if not waiting:
            return
        ray.wait(waiting, num_returns=1, timeout=timeout_s)
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in ready:
            replica = self._waiting.pop(reference, None)
            if replica is not None:
                yield self._event(replica, reference)

    def close(self) -> None:
        """End all replicas, and the cluster if it was started here."""
        for replica in list(self._actors):
            self.stop(replica)
        if self._owns_cluster:
            ray.shutdown()

    def _listen_to(self, replica: int) -> None:
        self._waiting[self._actors[replica].take.remote()] = replica

    def _event(self, replica: int, reference: Any) -> Event:
        try:
            found: Any = ray.get(reference)
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, Exl2EvalError):
                return Event(replica, error=cause)
            return Event(replica, failure=f"{type(cause).__name__}: {_one_line(cause)}")
        except exceptions.RayError as error:
            return Event(replica, failure=f"its process died: {_one_line(error)}")
        if isinstance(found, About):
            return self._started(replica, found)
        self.counts[replica][-1] = found.counts
        if not (found.is_finished or found.error or found.fault):
            self._listen_to(replica)
        return Event(replica, found)

    def _started(self, replica: int, about: About) -> Event:
        """Note a replica that has opened its checkpoint, unless that is another one."""
        if difference := self._difference(about):
            return Event(replica, error=ReplicaError(difference))
        self.abouts[replica] = about
        self.counts.setdefault(replica, []).append(TokenCounts())
        return Event(replica)

    def _difference(self, about: About) -> str:
        """Return what a replica would compute otherwise than this process and the others."""
        here = {"checkpoint": self._digest, "lm_eval_exl2": __version__}
        there = {"checkpoint": about.digest, "lm_eval_exl2": about.version}
        for first in self.abouts.values():
            here |= {name: getattr(first.info, name) for name in _SAME}
            there |= {name: getattr(about.info, name) for name in _SAME}
        for name, value in here.items():
            if there[name] != value:
                return (
                    f"a replica on {about.node} has {name} {there[name]}, expected {value}; every "
                    "node needs the same checkpoint and the same packages"
                )
        return ""


def _connect() -> bool:
    """Connect to Ray; return whether that has to be undone at the end.

    Raises:
        ReplicaError: RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    try:
        _knock(address)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(local if address == "local" else {}),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ReplicaError(
            f"no Ray cluster at {address} ({_one_line(error)}); correct RAY_ADDRESS, or unset it "
            "to run on this machine"
        ) from error
    return True


def _knock(address: str) -> None:
    """Fail at once where nothing listens at `host:port`: Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def _threads(share: int) -> int:
    """Return how many threads a replica takes: its share, or less if the user says so."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdigit() and int(asked) else share


def _one_line(error: BaseException | None) -> str:
    return " ".join(_COLOURS.sub("", str(error)).split())[:300]
