"""Tests an engine makes of itself before it scores anything.

A model whose tokens see their future, or each other's branches, gives scores that look plausible
and are too good. So before the first request the attention that will be used is compared with a
float64 reference, and the whole model is asked whether tokens behind a position change it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from lm_eval_exl2.engines.key_values import KeyValueBuffer
from lm_eval_exl2.engines.tree_attention import (
    Step,
    TreeKeys,
    UsingStep,
    tree_blocks,
)
from lm_eval_exl2.engines.tree_runs import find_runs
from lm_eval_exl2.errors import MissingDependencyError, ScoreError
from lm_eval_exl2.plan import Budget, Targets, next_chunk
from lm_eval_exl2.prefix_tree import build_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lm_eval_exl2.engines.exllamav2_attention import LayerAttention
    from lm_eval_exl2.engines.tree_attention import AttentionOptions
    from lm_eval_exl2.engines.tree_engine import TreeEngine
    from lm_eval_exl2.records import EngineInfo

# Root mean square of a token's difference, as a share of the standard deviation of what is
# compared. float16 arithmetic stays below 1e-2; seeing one token too many was never below 0.1.
_LOGITS_TOLERANCE = 0.05
_ROUNDED_TOLERANCE = 0.3
_ATTENTION_TOLERANCE = 0.01


def check_causality(
    logits_of: Callable[[Sequence[int]], torch.Tensor],
    branch_logits_of: Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[torch.Tensor]],
    info: EngineInfo,
    longest: int,
) -> None:
    """Check that no token sees what comes after it or stands beside it.

    Args:
        logits_of: Returns the logits (T, V) of a sequence, forwarded alone.
        branch_logits_of: Returns the logits of each branch behind a shared prefix, forwarded
            together; the branches' first tokens are different and ascending.
        info: What the engine is.
        longest: Most tokens of a sequence.

    Raises:
        ScoreError: it does. Nothing this model computes could be trusted.
    """

    def compare(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        # Half of the tokens may differ: rounding sends some to another expert of a mixture, while
        # a token that sees too much changes nearly all.
        difference = _difference_by_token(found, expected).median()
        _check(what, float(difference), _LOGITS_TOLERANCE)

    vocab_size, draw = info.vocab_size, random.Random(0)
    ids = [draw.randrange(vocab_size) for _ in range(min(40, longest * 3 // 4))]
    beyond = min(6, longest - len(ids) - 1)
    kept = len(ids) // 2
    alone, longer = logits_of(ids[:kept]), logits_of(ids)
    compare("appended tokens change the logits of earlier ones", longer[:kept], alone)
    first = sorted(draw.sample(range(vocab_size), 3))
    branches = [[token, *(draw.randrange(vocab_size) for _ in range(beyond))] for token in first]
    for branch, found in zip(branches, branch_logits_of(ids, branches), strict=True):
        expected = logits_of([*ids, *branch])[len(ids) :]
        compare("a sequence scores differently beside others than alone", found, expected)


def check_next_tokens(
    next_logits_of: Callable[[Sequence[Sequence[int]]], Sequence[torch.Tensor]],
    logits_of: Callable[[Sequence[int]], torch.Tensor],
    info: EngineInfo,
    longest: int,
    *,
    is_rounded: bool = False,
) -> None:
    """Check that a generator sees each prompt as the engine does.

    Args:
        next_logits_of: Returns the logits (V,) that follow each of several prompts, which share
            all but their last token.
        logits_of: Returns the logits (T, V) of a sequence, forwarded alone.
        info: What the engine is.
        longest: Most tokens of a prompt; more than one page are tried if they fit.
        is_rounded: Whether keys and values are rounded, which makes small differences large.

    Raises:
        ScoreError: it does not; its texts could not be trusted.
    """
    draw = random.Random(1)
    stem = [draw.randrange(info.vocab_size) for _ in range(min(300, longest) - 1)]
    prompts = [[*stem, token] for token in draw.sample(range(info.vocab_size), 3)]
    expected = torch.stack([logits_of(prompt)[-1] for prompt in prompts])
    found = torch.stack([logits.to(expected.device) for logits in next_logits_of(prompts)])
    difference = float(_difference_by_token(found, expected).median())
    tolerance = _ROUNDED_TOLERANCE if is_rounded else _LOGITS_TOLERANCE
    _check("paged attention changes what follows a prompt", difference, tolerance)


@torch.inference_mode()
def branch_logits(
    engine: TreeEngine, prefix: Sequence[int], branches: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """Return the logits of each branch behind a prefix they share, forwarded as one tree.

    Args:
        engine: Forwards and turns hidden states into logits.
        prefix: At least one token.
        branches: At least one token each, their first ones all different and ascending.

    Returns:
        One tensor (tokens of the branch, V) for each branch.
    """
    tree, _ = build_tree([[*prefix, *branch] for branch in branches], [0] * len(branches))
    chunk = next_chunk(tree, Targets([], []), 0, Budget(len(tree)))
    hidden, _ = engine.forward_tree(KeyValueBuffer(), engine.no_keys(), chunk)
    first, found = len(prefix), list[torch.Tensor]()
    for branch in branches:
        found.append(engine.logits(hidden[first : first + len(branch)]))
        first += len(branch)
    return found


def check_attention(
    layers: Sequence[LayerAttention], device: torch.device, library: str | None = None
) -> None:
    """Compare what each kind of layer's attention gives for a small tree with a reference.

    Args:
        layers: The attention of all layers; one of each kind is tried.
        device: Where to try it.
        library: Name of the attention library in use, if any.

    Raises:
        ScoreError: the two differ by more than float16 can explain.
        MissingDependencyError: the library does not run on this device.
    """
    kinds = {(layer.options, layer.shape, layer.run): layer for layer in layers}
    for layer in kinds.values():
        real = layer.options
        if real.window is not None:  # so narrow that the tree below reaches beyond it
            layer.options = replace(real, window=min(real.window, 7))
        try:
            _check_layer(layer, device)
        except (NotImplementedError, RuntimeError) as error:
            if layer.run is None or isinstance(error, ScoreError | torch.OutOfMemoryError):
                raise
            raise MissingDependencyError(
                f"{library} does not work here: {str(error).strip().splitlines()[0]}; use "
                f"no_{library}=True"
            ) from error
        finally:
            layer.options = real


# A tree of two short branches behind five tokens, and one long enough for any window.
_DEPTHS = (*range(5), *range(5, 8), *range(5, 7), *range(1, 30))
_ENDS = (39, 10, 10, 10, 10, 8, 8, 8, 10, 10, *([39] * 29))


@torch.inference_mode()
def _check_layer(layer: LayerAttention, device: torch.device) -> None:
    heads, kv_heads, size = layer.shape
    generator = torch.Generator().manual_seed(layer.layer)
    count = len(_DEPTHS)

    def draw(number: int) -> torch.Tensor:
        return torch.randn(count, 1, number, size, generator=generator).half().to(device)

    query, key, value = draw(heads), draw(kv_heads), draw(kv_heads)
    own = TreeKeys(
        torch.arange(count, device=device),
        torch.tensor(_ENDS, device=device),
        torch.tensor(_DEPTHS, device=device),
    )
    buffer = KeyValueBuffer()
    step = Step([(buffer, slice(0, count))], lambda: list(tree_blocks(buffer, own, own)))
    step.runs = find_runs(own, own) if layer.run else None
    with UsingStep(step):
        found = layer(count, 1, query, key, value, None, None)
    step.commit()
    if layer.rounding is not None:
        # Rounding is meant to change keys and values: compare with what was kept of them.
        kept = buffer.stored(layer.layer)
        key, value = (tensor[0].transpose(0, 1)[:, None] for tensor in kept)
    expected = reference_attention(query[:, 0], key[:, 0], value[:, 0], own, layer.options)
    name = f"attention of layer {layer.layer} ({layer.options}) is not what it should be"
    difference = _difference_by_token(found[:, 0], expected.reshape(count, -1)).max()
    _check(name, float(difference), _ATTENTION_TOLERANCE)


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tree: TreeKeys,
    options: AttentionOptions,
) -> torch.Tensor:
    """Attend one query at a time in float64, from the definition.

    Args:
        query: (T, H, D).
        key: (T, G, D).
        value: Like `key`.
        tree: Where each token stands.
        options: Scale, window and soft-cap.

    Returns:
        (T, H, D) in float64 on the CPU.
    """
    query, key, value = (tensor.double().cpu() for tensor in (query, key, value))
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    depths = cast("list[int]", tree.depths.tolist())
    ends = cast("list[int]", tree.ends.tolist())
    output = torch.zeros_like(query)
    for here in range(query.shape[0]):
        seen = [
            other
            for other in range(here + 1)
            if ends[other] > here
            and (options.window is None or depths[here] - depths[other] < options.window)
        ]
        scores = torch.einsum("hd,khd->hk", query[here], key[seen]) * options.scaling
        if options.softcap is not None:
            scores = torch.tanh(scores / options.softcap) * options.softcap
        output[here] = torch.einsum("hk,khd->hd", scores.softmax(-1), value[seen])
    return output


def _difference_by_token(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    found, expected = found.double().cpu(), expected.double().cpu()
    return (found - expected).pow(2).mean(-1).sqrt() / expected.std()


def _check(what: str, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:  # also true of NaN
        raise ScoreError(
            f"self-test failed: {what} by {difference:.2g} of their spread, at most {tolerance} "
            "is rounding; no score of this model can be trusted. Use engine=torch, or another "
            "attention (no_flash_attn=True, no_xformers=True), and report it"
        )
