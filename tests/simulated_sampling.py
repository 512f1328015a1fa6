"""Simulated: sampling and the generator's small helpers.

Follows exllamav2 0.3.2: `ext_sampling.cpp`, `cpp/sampling.cpp`, `cpp/generator.cpp`. Of the ways
to sample, those that evaluations ask for: temperature, top-k, top-p, min-p.
"""

import itertools

import numpy as np
import torch
from simulated_handles import check, check_optional, check_raw

# The point to draw at is scaled so that rounding in the sum of probabilities cannot pass it.
POINT_SCALE = 0.9998
COLDEST = 0.01


def sample_basic(
    logits,
    temperature,
    top_k,
    top_p,
    top_a,
    min_p,
    tfs,
    typical,
    random,
    output_tokens,
    output_probs,
    output_kprobs,
    output_ktokens,
    logit_filter,
    mirostat,
    mirostat_mu,
    mirostat_tau,
    mirostat_eta,
    post_temperature,
    xtc_mask,
    xtc_probability=0.0,
    xtc_threshold=0.1,
    min_temp=0.0,
    max_temp=0.0,
    temp_exponent=1.0,
    smoothing_factor=0.0,
    skew=0.0,
):
    """Draw one token per row of float32 logits (rows, 1, vocabulary)."""
    check_raw(logits, torch.float32, "logits")
    check(output_tokens.dtype == torch.int64, "output_tokens is incorrect datatype")
    check(output_probs.dtype == torch.float32, "output_probs is incorrect datatype")
    check_optional(logit_filter, torch.bool, "logit_filter")
    unused = (top_a, mirostat, xtc_probability, smoothing_factor, skew)
    plain = post_temperature == 1.0 and max_temp <= min_temp
    if any(unused) or not plain or 0 < tfs < 1 or 0 < typical < 1:
        raise NotImplementedError("the simulation samples by temperature, top-k, top-p and min-p")
    if temperature < COLDEST:
        temperature, top_k = 1.0, 1
    for row, scores in enumerate(logits.flatten(0, 1)):
        if not logit_filter.is_meta:
            scores = scores.masked_fill(~logit_filter[row], float("-inf"))
        probabilities = torch.softmax(scores / temperature, -1)
        # Sorting keeps equal ones in order: of the most probable the lowest id comes first.
        values, ids = probabilities.sort(descending=True, stable=True)
        values, ids = _narrow(values, ids, top_k, top_p, min_p)
        if not output_kprobs.is_meta:
            _tell_best(values, ids, output_ktokens[row, 0], output_kprobs[row, 0])
        reached = values.cumsum(0) >= random * POINT_SCALE
        place = int(reached.long().argmax()) if reached.any() else len(values) - 1
        output_tokens[row, 0], output_probs[row, 0] = ids[place], values[place]
        random = _next_random(random) if logits.shape[0] > 1 else random
    return mirostat_mu


def _narrow(values, ids, top_k, top_p, min_p):
    """Keep the most probable tokens, normalized again after every step."""
    if 0 < top_k < len(values):
        values = values[:top_k] / values[:top_k].sum()
    if len(values) > 1 and 0 < top_p < 1:
        # Tokens are taken while their sum does not pass top_p; at least one.
        count = max(1, int((values.cumsum(0) <= top_p).sum()))
        values = values[:count] / values[:count].sum()
    if len(values) > 1 and 0 < min_p < 1:
        count = int((values >= values[0] * min_p).sum())
        values = values[:count] / values[:count].sum()
    return values, ids[: len(values)]


def _tell_best(values, ids, tokens, probabilities):
    """Write the most probable candidates; where there are too few, other ids with 0."""
    count = min(len(values), len(tokens))
    count = int((values[:count] > 0).sum())
    listed = set(ids[:count].tolist())
    others = (token for token in itertools.count() if token not in listed)
    rest = list(itertools.islice(others, len(tokens) - count))
    tokens.copy_(torch.tensor([*ids[:count].tolist(), *rest]))
    probabilities.zero_()
    probabilities[:count] = values[:count]


def _next_random(random):
    """Return the number for the next row, derived as the real function does."""
    found = random
    for _ in range(10):
        found = (found + 1.337 + random) ** 2 % 1.0
    return found


def apply_rep_penalty(
    sequence, penalty_max, sustain, decay, alpha_frequency, alpha_presence, logits
):
    """Penalize the tokens of each row's sequence in place, less so before the last `sustain`."""
    check(sequence.dtype == torch.int64, "sequence is incorrect datatype")
    check_raw(logits, torch.float32, "logits")
    check(sequence.shape[0] == logits.shape[0], "sequence and logits have incompatible shapes")
    for ids, scores in zip(sequence.tolist(), logits.flatten(0, -2), strict=True):
        penalties = np.array([penalty_max, alpha_frequency, alpha_presence])
        steps = (np.array([1.0, 0.0, 0.0]) - penalties) / decay if decay else 0 * penalties
        left = len(ids) if sustain == -1 else sustain
        seen = set()
        for token in reversed(ids[max(0, len(ids) - left - decay) :]):
            if 0 <= token < len(scores):
                if token not in seen:
                    factor = 1 / penalties[0] if scores[token] > 0 else penalties[0]
                    scores[token] = scores[token] * factor - penalties[2]
                    seen.add(token)
                scores[token] -= penalties[1]
            left -= 1
            if left < 0:
                penalties = penalties + steps


def logit_filter_exclusive(filter, exclusive_lists):
    """Clear the filter but for the ids listed, in ascending order, for each row."""
    check_raw(filter, torch.bool, "filter")
    check(filter.shape[0] == len(exclusive_lists), "number of lists does not match batch size")
    for row, ids in zip(filter, exclusive_lists, strict=True):
        check(list(ids) == sorted(ids), "ids are not in ascending order")
        kept = torch.zeros_like(row)
        kept[torch.tensor(list(ids), dtype=torch.int64)] = True
        row &= kept


def fast_fill_cpu_ones_bool(tensor):
    """Fill with True."""
    check_raw(tensor, torch.bool, "tensor")
    tensor.fill_(True)


def fast_fadd_cpu(a, b):
    """Add b to every part of a of its size."""
    check_raw(a, torch.float32, "a")
    check_raw(b, torch.float32, "b")
    check(a.numel() % b.numel() == 0, "a and b are incompatible sizes")
    a.view(-1, b.numel()).add_(b.flatten())


def fast_copy_cpu(dst, src):
    """Copy between tensors of one shape and dtype."""
    check(dst.shape == src.shape, "tensors must have the same shape")
    check(dst.dtype == src.dtype, "tensors must have the same dtype")
    dst.copy_(src)


def partial_strings_match(match, offsets, strings):
    """Find the first of some UTF-32 strings that the text has, or may begin at its end.

    Returns:
        Where the text has it, -2 for a beginning at the end of the text, -1 for neither.
    """
    text, bounds, letters = (
        np.frombuffer(memoryview(buffer).cast("B"), dtype=np.uint32).tolist()
        for buffer in (match, offsets, strings)
    )
    for start, end in itertools.pairwise(bounds):
        wanted = letters[start // 4 : end // 4]
        for place in range(len(text)):
            part = text[place : place + len(wanted)]
            if part == wanted:
                return place
            if part == wanted[: len(part)]:
                return -2
    return -1
