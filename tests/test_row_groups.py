"""Rows that are continued together see their own text and nothing else, and share what is equal."""

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.engines import row_groups
from lm_eval_exl2.engines.key_values import KeyValueBuffer
from lm_eval_exl2.engines.row_groups import Row, make_step, retire, split_into_groups
from lm_eval_exl2.engines.tree_attention import (
    AttentionOptions,
    TreeKeys,
    UsingStep,
    tree_attention,
)
from lm_eval_exl2.prefix_tree import build_tree

HEADS, KV_HEADS, SIZE = 4, 2, 8
LAYERS = (0, 1)


@pytest.fixture(autouse=True, scope="module")
def inference():
    """Tensors are made and changed as engines do it."""
    with torch.inference_mode():
        yield


class Wave:
    """Prompts with random keys and values, and for every row what it must see, kept apart."""

    def __init__(self, prompts, seed):
        torch.manual_seed(seed)
        tree, tails = build_tree(prompts, [1] * len(prompts))
        self.rows = [
            Row(SimpleNamespace(request=number), list(prompt), leaf=tail[0])
            for number, (prompt, tail) in enumerate(zip(prompts, tails, strict=True))
        ]
        self.rows.sort(key=lambda row: row.leaf)
        keys = TreeKeys(
            torch.arange(len(tree)),
            torch.tensor(list(tree.ends)),
            torch.tensor(list(tree.depths)),
        )
        self.buffer = KeyValueBuffer()
        self.expected = {}
        for layer in LAYERS:
            pair = [torch.randn(1, KV_HEADS, len(tree), SIZE) for _ in range(2)]
            self.buffer.write(layer, *pair)
            for row in self.rows:
                path = [g for g in range(len(tree)) if g <= row.leaf < tree.ends[g]]
                self.expected[layer, id(row)] = [part[0][:, path] for part in pair]
        self.buffer.commit(len(tree))
        self.positions = len(tree)
        self.groups = split_into_groups(self.rows, self.buffer, keys)

    def step(self, options, device="cpu"):
        """Forward a token per row; return what attention gave and what it should have."""
        for row in self.rows:
            row.token_ids.append(0)
        step = make_step(self.groups, torch.device(device))
        found, wanted = [], []
        for layer in LAYERS:
            module = torch.nn.Module()
            module.layer_idx = layer
            query = torch.randn(1, HEADS, len(self.rows), SIZE)
            key, value = (torch.randn(1, KV_HEADS, len(self.rows), SIZE) for _ in range(2))
            with UsingStep(step):
                output, _ = tree_attention(
                    module,
                    query,
                    key,
                    value,
                    None,
                    scaling=options.scaling,
                    sliding_window=options.window,
                    softcap=options.softcap,
                )
            found.append(output[0])
            for place, row in enumerate(self.rows):
                kept = self.expected[layer, id(row)]
                for number, new in enumerate((key, value)):
                    kept[number] = torch.cat([kept[number], new[0, :, place : place + 1]], 1)
                wanted.append(formula(query[0, :, place], *kept, options))
        step.commit()
        return torch.cat(found).double(), torch.stack(wanted)


def formula(query, keys, values, options):
    keys, values = (x.double().repeat_interleave(HEADS // KV_HEADS, 0) for x in (keys, values))
    if options.window is not None:
        keys, values = keys[:, -options.window :], values[:, -options.window :]
    scores = torch.einsum("hd,hkd->hk", query.double(), keys) * options.scaling
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    return torch.einsum("hk,hkd->hd", scores.softmax(-1), values)


PROMPTS = st.lists(
    st.builds(
        lambda shared, own: [*range(shared), 1000, *own],
        st.integers(0, 30),
        st.lists(st.integers(2000, 2002), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=20,
)


@pytest.mark.parametrize(
    "options",
    [
        AttentionOptions(scaling=0.3, window=None, softcap=None),
        pytest.param(AttentionOptions(scaling=0.3, window=7, softcap=None), marks=pytest.mark.slow),
        pytest.param(
            AttentionOptions(scaling=0.3, window=None, softcap=4.0), marks=pytest.mark.slow
        ),
    ],
    ids=["tiles", "window", "softcap"],
)
@given(prompts=PROMPTS, seed=st.integers(0, 99), least=st.sampled_from([1, 8, 10**6]))
def test_every_row_sees_its_own_text_while_others_leave(options, prompts, seed, least):
    draw = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_groups, "_LEAST_SAVED", least)
        patch.setattr(row_groups, "_GROUP_ROWS", draw.choice([1, 3, 8]))
        wave = Wave(prompts, seed)
    for _ in range(6):
        found, wanted = wave.step(options)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        staying = [row for row in wave.rows if draw.random() < 0.8]
        wave.rows = retire(wave.groups, staying)
        assert {id(row) for row in wave.rows} == {id(row) for row in staying}
        if not wave.rows:
            break


def test_texts_longer_than_their_room_go_on():
    wave = Wave([[1, 2, 3], [1, 2, 4, 5]], 0)
    options = AttentionOptions(scaling=0.3, window=None, softcap=None)
    for _ in range(80):
        found, wanted = wave.step(options)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_prompts_share_is_kept_once_and_the_rest_once_per_row():
    preamble = list(range(500))
    prompts = [[*preamble, 600 + number, *range(700, 720)] for number in range(20)]
    wave = Wave(prompts, 0)
    assert {id(group.trunk) for group in wave.groups} == {id(wave.groups[0].trunk)}
    assert wave.groups[0].trunk.buffer.length == 500
    held = [length for group in wave.groups for length in group.own.lengths]
    assert held == [21] * 20
    assert 500 + sum(held) == wave.positions


def test_a_few_shared_tokens_are_cheaper_to_hold_twice_than_to_share():
    wave = Wave([[1, 2, 3, 4], [1, 2, 5]], 0)
    assert wave.groups[0].trunk.buffer.length == 0
    assert [length for group in wave.groups for length in group.own.lengths] == [4, 3]


def test_places_of_finished_rows_are_given_up_once_they_are_half():
    wave = Wave([[number, 7, 7] for number in range(8)], 0)
    wave.rows = retire(wave.groups, wave.rows[:5])
    assert wave.groups[0].own.rows == 8
    wave.rows = retire(wave.groups, wave.rows[:4])
    assert wave.groups[0].own.rows == 4
