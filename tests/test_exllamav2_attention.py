"""Our attention in place of exllamav2's: equal to a float64 reference, one query at a time.

No kernel is simulated here: what runs is PyTorch's own attention in float16 or float32 on the
CPU. flash-attn and xformers are tried in test_exllamav2_engine.py and on a card.
"""

import random
import types

import pytest
import torch

from lm_eval_exl2.engines import self_test
from lm_eval_exl2.engines.exllamav2_attention import LayerAttention, masked_attention
from lm_eval_exl2.engines.tree_attention import AttentionOptions, TreeKeys
from lm_eval_exl2.engines.tree_runs import find_runs
from lm_eval_exl2.errors import ScoreError

CASES = {
    "causal": {},
    "cached": {"past": 7},
    "padded": {"padding": 4},
    "cached and padded": {"past": 6, "padding": 3},
    "window": {"window": 4},
    "cached window": {"window": 3, "past": 9},
    "soft-cap": {"softcap": 2.0},
    "soft-cap, window, padded": {"softcap": 2.0, "window": 5, "padding": 2, "past": 3},
    "grouped heads": {"heads": 6, "kv_heads": 2},
    "grouped heads, soft-cap": {"heads": 4, "kv_heads": 1, "softcap": 1.5, "past": 2},
    "one query": {"count": 1, "past": 11, "window": 5},
}


def reference(query, keys, values, options, padding=None):
    """Softmax over the keys each query may see, written out in float64."""
    rows, heads, count, _ = query.shape
    length = keys.shape[2]
    query, keys, values = (tensor.double() for tensor in (query, keys, values))
    output = torch.zeros_like(query)
    for row in range(rows):
        for head in range(heads):
            shared = head * keys.shape[1] // heads
            for here in range(count):
                place = length - count + here
                seen = [
                    other
                    for other in range(place + 1)
                    if options.window is None or place - other < options.window
                    if padding is None or other >= padding.shape[1] or padding[row, other] == 0
                ]
                if not seen:
                    continue
                scores = keys[row, shared, seen] @ query[row, head, here] * options.scaling
                if options.softcap:
                    scores = torch.tanh(scores / options.softcap) * options.softcap
                output[row, head, here] = scores.softmax(0) @ values[row, shared, seen]
    return output


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_masked_attention_equals_the_definition(name, dtype):
    case = {"count": 8, "past": 0, "heads": 2, "kv_heads": 2, "padding": 0} | CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    length = case["count"] + case["past"]
    shape = (3, case["heads"], case["count"], 16)
    query = torch.randn(*shape, generator=generator).to(dtype)
    keys, values = (
        torch.randn(3, case["kv_heads"], length, 16, generator=generator).to(dtype)
        for _ in range(2)
    )
    padding = None
    if case["padding"]:  # rows padded on the left by nothing, some and more
        padding = torch.zeros(3, length, dtype=torch.float16)
        padding[1, : case["padding"]] = padding[2, : case["padding"] + 1] = float("-inf")
    options = AttentionOptions(0.3, case.get("window"), case.get("softcap"))
    found = masked_attention(query, keys, values, options, padding)
    expected = reference(query, keys, values, options, padding)
    tolerance = 3e-3 if dtype is torch.float16 else 1e-5
    assert (found.double() - expected).abs().max() < tolerance


def test_products_that_overflow_float16_are_scaled_first():
    query = torch.full((1, 1, 2, 64), 60.0).half()
    for softcap in (None, 30.0):
        options = AttentionOptions(1 / 8, None, softcap)
        found = masked_attention(query, query, query, options)
        assert torch.equal(found, query)


def random_tree(draw, count):
    """Depths and ends of a random tree in preorder."""
    depths = [0]
    for _ in range(count - 1):
        depths.append(draw.randint(0, depths[-1] + 1))
    ends = [
        next((j for j in range(i + 1, count) if depths[j] <= depths[i]), count)
        for i in range(count)
    ]
    return TreeKeys(torch.arange(count), torch.tensor(ends), torch.tensor(depths))


@pytest.mark.parametrize("seed", range(20))
def test_runs_let_every_query_see_its_ancestors_and_nothing_else(seed):
    draw = random.Random(seed)
    tree = random_tree(draw, 40)
    first = draw.randrange(40)  # the chunk; what is open before it is buffered
    opened = [e for e in range(first) if tree.ends[e] > first]
    keys = tree.select(torch.tensor([*opened, *range(first, 40)]))
    queries = tree.select(torch.arange(first, 40))
    runs = find_runs(keys, queries)
    assert sum(runs.query_counts) == 40 - first
    place, key_place = first, 0
    for queries_of_run, keys_of_run in zip(runs.query_counts, runs.key_counts, strict=True):
        entries = keys.positions[runs.keys[key_place : key_place + keys_of_run]].tolist()
        for number in range(queries_of_run):
            # Aligned at the bottom right: the last query sees all keys, each before it one less.
            seen = entries[: keys_of_run - (queries_of_run - 1 - number)]
            here = place + number
            assert seen == [e for e in range(here + 1) if tree.ends[e] > here]
        place, key_place = place + queries_of_run, key_place + keys_of_run
    assert key_place == len(runs.keys)


def make_layer(window=0, softcap=None, run=None):
    module = types.SimpleNamespace(
        layer_idx=0,
        scaling=0.25,
        sliding_window=window,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    return LayerAttention(module, softcap, run)


@pytest.mark.parametrize(("window", "softcap"), [(0, None), (4096, None), (6, 3.0), (0, 2.0)])
def test_the_self_test_accepts_attention_that_is_right(window, softcap):
    layer = make_layer(window, softcap)
    self_test.check_attention([layer], torch.device("cpu"))
    assert layer.options.window == (window or None)


def causal_without_tree(query, keys, values, runs, scaling):
    """See everything before oneself in the step, other branches included."""
    query, keys, values = (t.transpose(0, 1)[None] for t in (query, keys, values))
    return masked_attention(
        query, keys[:, :, : query.shape[2]], values[:, :, : query.shape[2]],
        AttentionOptions(scaling, None, None),
    )[0].transpose(0, 1)  # fmt: skip


def without_past(query, keys, values, runs, scaling):
    """See the future of one's own run."""
    found, first = [], 0
    query = query.transpose(0, 1)[None]
    keys, values = (t.transpose(0, 1)[None] for t in (keys, values))
    place = 0
    for count, length in zip(runs.query_counts, runs.key_counts, strict=True):
        found.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, place : place + count],
                keys[:, :, first : first + length],
                values[:, :, first : first + length],
                scale=scaling,
                enable_gqa=True,
            )
        )
        place, first = place + count, first + length
    return torch.cat(found, 2)[0].transpose(0, 1)


@pytest.mark.parametrize("wrong", [causal_without_tree, without_past])
def test_the_self_test_catches_attention_that_sees_too_much(wrong):
    with pytest.raises(ScoreError, match="self-test failed: attention of layer 0"):
        self_test.check_attention([make_layer(run=wrong)], torch.device("cpu"))


@pytest.mark.parametrize("off_by", [-1, 1])
def test_the_self_test_catches_a_window_that_is_one_key_off(monkeypatch, off_by):
    layer = make_layer(window=6)
    attend = layer._answer_step

    def shifted(*tensors):
        real = layer.options
        layer.options = AttentionOptions(real.scaling, real.window + off_by, None)
        found = attend(*tensors)
        layer.options = real
        return found

    monkeypatch.setattr(layer, "_answer_step", shifted)
    with pytest.raises(ScoreError, match="not what it should be"):
        self_test.check_attention([layer], torch.device("cpu"))


def test_a_soft_cap_or_window_is_never_left_to_a_library():
    def never(*_):
        raise AssertionError

    assert make_layer(window=8, run=never).run is None
    assert make_layer(softcap=2.0, run=never).run is None
    assert make_layer(run=never).run is never
