"""Perplexity by plain loops over a model's logits: what the task `exl2_wikitext2_ppl` must give.

One function per protocol, each written after its own source and not after the task: ids are sliced,
the model called, losses averaged. Slow, float32, one row at a time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch


class Found(NamedTuple):
    """A perplexity and how many targets it is the mean of."""

    perplexity: float
    targets: int


@torch.no_grad()
def _losses(model: Any, ids: list[int]) -> torch.Tensor:
    """Loss of every token but the first."""
    logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def _encode(tokenizer: Any, lines: list[str], **arguments: Any) -> list[int]:
    return tokenizer("\n\n".join(lines), verbose=False, **arguments).input_ids


def _mean(parts: list[torch.Tensor]) -> Found:
    losses = torch.cat(parts).double()
    return Found(math.exp(losses.mean().item()), len(losses))


def gptq(model: Any, tokenizer: Any, lines: list[str], *, window: int) -> Found:
    """As the GPTQ and AWQ repositories: exp of the mean of window means."""
    ids = _encode(tokenizer, lines)
    means = [
        _losses(model, ids[row * window : (row + 1) * window]).double().mean()
        for row in range(len(ids) // window)
    ]
    return Found(torch.stack(means).mean().exp().item(), len(means) * (window - 1))


def exllamav3_chart(
    model: Any, tokenizer: Any, lines: list[str], *, window: int, stride: int, rows: int
) -> Found:
    """As exllamav3's eval/compare_q.py: rows that overlap, all targets of each."""
    ids = _encode(tokenizer, lines)
    starts = range(0, len(ids) - window, stride)[:rows]
    return _mean([_losses(model, ids[start : start + window]) for start in starts])


def exllamav2_ed(model: Any, tokenizer: Any, lines: list[str], *, window: int, rows: int) -> Found:
    """As exllamav2's `-ed`: lines tokenized one by one without BOS, logits + 1e-10."""
    ids = [token for line in lines for token in tokenizer.encode(line, add_special_tokens=False)]
    total = 0.0
    for row in torch.tensor(ids[: rows * window]).view(rows, window):
        with torch.no_grad():
            logits = model(row[None]).logits[0, :-1].float() + 1e-10
        total += logits.log_softmax(-1).gather(-1, row[1:, None]).sum().item()
    targets = rows * (window - 1)
    return Found(math.exp(-total / targets), targets)


def exllamav2_sp(
    model: Any, tokenizer: Any, lines: list[str], *, window: int, stride: int, rows: int | None
) -> Found:
    """As exllamav2's `-sp wiki2`: no BOS, the first row in full, then each row's last targets."""
    ids = _encode(tokenizer, lines, add_special_tokens=False)
    parts: list[torch.Tensor] = []
    start = 0
    while start + window <= len(ids) and (rows is None or len(parts) < rows):
        losses = _losses(model, ids[start : start + window])
        parts.append(losses if start == 0 else losses[-stride:])
        start += stride
    return _mean(parts)


def sliding(
    model: Any, tokenizer: Any, lines: list[str], *, window: int, stride: int, rows: int | None
) -> Found:
    """As Hugging Face's guide: every window's tokens that no earlier window held."""
    ids = _encode(tokenizer, lines)
    parts: list[torch.Tensor] = []
    held = 1
    for start in range(0, len(ids), stride)[:rows]:
        row = ids[start : start + window]
        parts.append(_losses(model, row)[held - start - 1 :])
        held = start + len(row)
        if held == len(ids):
            break
    return _mean(parts)


LOOPS = {
    "gptq": gptq,
    "exllamav3-chart": exllamav3_chart,
    "exllamav2-ed": exllamav2_ed,
    "exllamav2-sp": exllamav2_sp,
    "sliding": sliding,
}
