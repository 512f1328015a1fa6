"""Replicas on Ray, on this machine: equal answers whatever their number and whatever happens.

Each start of a replica imports the harness: seconds, so all of this is slow.
"""

import os
import random

import pytest
from asking import score, speak

pytestmark = [
    pytest.mark.slow,
    # Ray 2.60 (November 2026) leaves sockets and files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]

PAIRS = [
    (f"The house of animal {number} in list {number % 40} stands in", place)
    for number in range(1000)
    for place in (" the sea", " a wood", " the wood")
]
PROMPTS = [f"Question {number}:" for number in range(90)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Equal threads for every number of replicas."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        yield


def opened(replicas, **more):
    """The demo on so many replicas; also on one, which the option itself means otherwise."""
    from lm_eval_exl2.lm import Exl2LM
    from lm_eval_exl2.options import parse_options
    from lm_eval_exl2.replicas.limits import Limits
    from lm_eval_exl2.replicas.ray_replicas import RayReplicas
    from lm_eval_exl2.replicas.replicated import Replicated

    if replicas > 1:
        return Exl2LM("demo", device="cpu", data_parallel_size=replicas, **more)
    lm = Exl2LM("demo", device="cpu", **more)
    options = parse_options({"pretrained": "demo", "device": "cpu"})
    lm.computer = Replicated(RayReplicas(options, lm._digest), 1, describe=str, limits=Limits())
    return lm


def answers(lm):
    sampled = speak(lm, *PROMPTS, *PROMPTS, do_sample=True, temperature=0.9)
    return score(lm, *PAIRS), sampled, speak(lm, *PROMPTS)


@pytest.fixture(scope="module")
def of_one():
    lm = opened(1)
    try:
        return answers(lm)
    finally:
        lm.computer.close()


@pytest.mark.parametrize("replicas", [2, 4])
def test_answers_of_several_replicas_are_bit_equal_to_those_of_one(of_one, replicas):
    lm = opened(replicas)
    try:
        assert answers(lm) == of_one
        info = lm.get_model_info()
        assert (info["data_parallel_size"], info["threads"]) == (replicas, 1)
        assert info["replicas_restarted"] == 0
        assert (lm.rank, lm.world_size) == (0, 1)
    finally:
        lm.computer.close()


def test_answers_of_one_process_are_those_of_replicas_up_to_rounding(of_one):
    from lm_eval_exl2.lm import Exl2LM

    scores, sampled, greedy = answers(Exl2LM("demo", device="cpu"))
    for (value, flag), (other, other_flag) in zip(scores, of_one[0], strict=True):
        assert value == pytest.approx(other, abs=1e-4)
        assert flag == other_flag
    assert (sampled, greedy) == of_one[1:]


def test_replicas_on_two_nodes_give_the_same_answers(of_one, monkeypatch):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        lm = opened(2)
        try:
            assert len(lm.get_model_info()["nodes"]) == 2
            assert answers(lm) == of_one
        finally:
            lm.computer.close()
    finally:
        cluster.shutdown()


def test_a_replica_with_another_checkpoint_is_refused_by_its_node():
    import ray

    from lm_eval_exl2.errors import ReplicaError
    from lm_eval_exl2.options import parse_options
    from lm_eval_exl2.replicas.limits import Limits
    from lm_eval_exl2.replicas.ray_replicas import RayReplicas
    from lm_eval_exl2.replicas.replicated import Replicated

    options = parse_options({"pretrained": "demo", "device": "cpu", "data_parallel_size": 2})
    try:
        with pytest.raises(ReplicaError, match=r"on .*node .* has checkpoint .*, expected abc"):
            Replicated(RayReplicas(options, "abc"), 2, describe=str, limits=Limits())
    finally:
        ray.shutdown()


def test_no_cluster_at_the_address_given_is_one_line(monkeypatch):
    from lm_eval_exl2.errors import ReplicaError

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ReplicaError, match="correct RAY_ADDRESS"):
        opened(2)


def test_a_cluster_that_was_there_is_left_running():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        lm = opened(2)
        lm.computer.close()
        assert ray.is_initialized()
        assert ray.cluster_resources()["CPU"] == 2
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def faults():
    import replica_faults

    set_up = replica_faults.ReplicaFaults(requests=3000, prompts=100)
    yield set_up
    set_up.close()


@pytest.mark.parametrize(
    "fault",
    [
        "kill -9 of a replica",
        "an exception in a replica",
        "out of memory in a replica",
        "a replica hangs",
        "the process of a replica is frozen",
    ],
)
def test_a_fault_loses_doubles_and_changes_nothing(faults, fault):
    assert tuple(faults.run(fault, random.Random(os.getpid()))) == (0, 0, 0)
