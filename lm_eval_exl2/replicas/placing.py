"""How much of a cluster each replica gets: whole cards, or an equal share of the processors.

Knows only what nodes have; asks nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_exl2.options import Options


class Node(NamedTuple):
    """What a machine has."""

    cpus: float
    gpus: float


class Share(NamedTuple):
    """What one replica gets."""

    cpus: float
    gpus: int

    @property
    def threads(self) -> int:
        """Threads to compute with."""
        return max(1, int(self.cpus))


def place(nodes: Sequence[Node], options: Options) -> Share:
    """Divide a cluster among `options.data_parallel_size` replicas.

    A replica takes a card, or as many as `gpu_split` names, unless the options ask for a CPU or
    there is no card at all. Processors are divided so that all replicas find room; a share below
    one processor is still one thread.

    Raises:
        OptionError: there are cards, but not enough.
    """
    count = options.data_parallel_size
    cards = len(options.gpu_split) if isinstance(options.gpu_split, tuple) else 1
    if options.device in ("cpu", "mps") or not any(node.gpus for node in nodes):
        return Share(_largest_share([node.cpus for node in nodes], count), 0)
    room = sum(int(node.gpus) // cards for node in nodes)
    if room < count:
        needed = f"{cards} cards each" if cards > 1 else "a card each"
        raise OptionError(
            f"data_parallel_size={count} needs {needed}, but the cluster has room for {room}; "
            f"lower it to {room}, or give device=cpu"
        )
    cpus = [node.cpus for node in nodes if node.gpus]
    return Share(min(_largest_share(cpus, count), 1.0), cards)


def _largest_share(cpus: Sequence[float], count: int) -> float:
    """Return the largest share of which `count` fit into nodes, whole where it is above one."""
    shares = {size / parts for size in cpus for parts in range(1, count + 1)}
    for share in sorted(shares, reverse=True):
        # Ray counts in 1/10000 of a processor.
        rounded = float(int(share)) if share >= 1 else int(share * 10_000) / 10_000
        if rounded and sum(int(size / rounded + 1e-9) for size in cpus) >= count:
            return rounded
    return 0.0
