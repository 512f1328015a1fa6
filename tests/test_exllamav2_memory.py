"""Token budgets from free memory: as large as fits, and a clear line where nothing does."""

import types

import pytest

from lm_eval_exl2.engines.exllamav2_memory import (
    GIB,
    choose_tokens,
    forward_bytes,
    key_value_bytes,
    split_evenly,
)
from lm_eval_exl2.errors import EngineMemoryError

# Llama 3.1 8B.
LLAMA = types.SimpleNamespace(
    **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256},
)
AT_4_BITS = types.SimpleNamespace(
    bytes=int(5.4 * GIB), kind="exl2", linears={}, directory="/models/llama-8b"
)


def choose(*free_gib, wanted=None, length=8192):
    free = [int(amount * GIB) for amount in free_gib]
    return choose_tokens(AT_4_BITS, LLAMA, free, wanted=wanted, length=length)


def test_keys_and_values_of_a_token_take_what_every_calculator_says():
    assert key_value_bytes(LLAMA) == 128 * 1024


def test_more_memory_never_means_a_smaller_budget():
    budgets = [choose(free) for free in (9, 10, 12, 16, 24, 80)]
    assert budgets == sorted(budgets)
    assert budgets[0] < budgets[-1] == 8192


def test_what_is_chosen_fits():
    for free in (9, 12, 16, 24):
        tokens = choose(free)
        assert AT_4_BITS.bytes + forward_bytes(LLAMA, tokens) < free * GIB


def test_a_budget_of_ones_own_is_taken_as_it_is():
    assert choose(9, wanted=6000) == 6000


@pytest.mark.parametrize("wanted", [None, 512])
def test_weights_that_do_not_fit_say_how_much_is_missing(wanted):
    with pytest.raises(EngineMemoryError) as error:
        choose(4, wanted=wanted)
    assert "GiB are free on 1 card(s)" in str(error.value)
    assert "/models/llama-8b needs about" in str(error.value)
    assert "gpu_split=auto" in str(error.value)
    assert "\n" not in str(error.value)


def test_two_cards_hold_what_one_does_not():
    with pytest.raises(EngineMemoryError):
        choose(6)
    assert choose(6, 6) >= 256


def test_an_even_split_leaves_every_card_some_room():
    assert split_evenly([24 * GIB, 0]) == [pytest.approx(18.6, abs=0.1), 0.0]
