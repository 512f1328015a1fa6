"""How clusters are divided among replicas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.options import parse_options
from lm_eval_exl2.replicas.placing import Node, Share, place


def options(count, **more):
    return parse_options({"pretrained": "x", "data_parallel_size": count} | more)


@pytest.mark.parametrize(
    ("nodes", "count", "share", "threads"),
    [
        ([Node(2, 0)], 2, Share(1.0, 0), 1),
        ([Node(2, 0)], 4, Share(0.5, 0), 1),
        ([Node(2, 0)], 3, Share(0.6666, 0), 1),
        ([Node(16, 0)], 3, Share(5.0, 0), 5),
        ([Node(3, 0), Node(5, 0)], 2, Share(3.0, 0), 3),
        ([Node(8, 0), Node(1, 0)], 4, Share(2.0, 0), 2),
        ([Node(16, 4)], 4, Share(1.0, 1), 1),
        ([Node(64, 0), Node(2, 4)], 4, Share(0.5, 1), 1),
    ],
)
def test_shares_of_clusters_worked_out_by_hand(nodes, count, share, threads):
    found = place(nodes, options(count))
    assert found == share
    assert found.threads == threads


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(2, 9))
def test_so_many_shares_really_fit_and_one_thread_more_would_not(cpus, count):
    share = place([Node(size, 0) for size in cpus], options(count)).cpus

    def fits(size):
        return sum(int(each / size + 1e-9) for each in cpus) >= count

    assert fits(share)
    assert not fits(int(share) + 1)


def test_a_cpu_run_takes_no_card():
    assert place([Node(8, 2)], options(4, device="cpu")) == Share(2.0, 0)


def test_a_replica_takes_as_many_cards_as_its_split_names():
    nodes = [Node(16, 3), Node(16, 4)]
    assert place(nodes, options(3, gpu_split="[20,24]")).gpus == 2
    with pytest.raises(OptionError, match="2 cards each, but the cluster has room for 3"):
        place(nodes, options(4, gpu_split="[20,24]"))


def test_too_few_cards_are_an_error_that_says_how_many_there_are():
    with pytest.raises(OptionError, match=r"has room for 2; lower it to 2"):
        place([Node(16, 2)], options(4))
