"""A stand-in for flash-attn 2.8: its functions, signatures and semantics, in float32.

Written from its documentation: causal masks are aligned at the bottom right, a window (l, r)
admits keys from l before to r behind the query's own place, -1 stands for no limit, and a query
that sees no key gives zeros.
"""

import importlib.machinery
import itertools
import math
import types

import torch
from simulated_handles import check, check_raw

VERSION = "2.8.3"
ANYWHERE = (-1, -1)
PAGE_MULTIPLE = 256


def attend(q, k, v, scale, visible, softcap=0.0):
    """Attend from q (Q, H, D) to k and v (K, G, D) where visible (Q, K): (Q, H, D).

    Query heads share key-value heads in groups of neighbours.
    """
    repeats = q.shape[1] // k.shape[1]
    keys, values = (x.float().repeat_interleave(repeats, 1).transpose(0, 1) for x in (k, v))
    scores = q.float().transpose(0, 1) @ keys.transpose(1, 2) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~visible, float("-inf"))
    # A row without any key would be NaN.
    weights = scores.softmax(-1).masked_fill(~visible.any(-1)[:, None], 0.0)
    return (weights @ values).transpose(0, 1).to(q.dtype)


def visible_keys(queries, keys, causal, window_size=ANYWHERE):
    """Return which keys each query sees: bool (queries, keys)."""
    left, right = window_size
    own = torch.arange(queries)[:, None] + keys - queries
    places = torch.arange(keys)
    visible = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        right = 0
    if right >= 0:
        visible &= places <= own + right
    if left >= 0:
        visible &= places >= own - left
    return visible


def _check(q, k, v, dropout_p=0.0, *unsupported):
    for tensor, name in ((q, "q"), (k, "k"), (v, "v")):
        check(tensor.dtype in (torch.float16, torch.bfloat16), f"{name} must be fp16 or bf16")
        check(tensor.stride(-1) == 1, f"{name} must have a contiguous last dimension")
    size = q.shape[-1]
    check(size == k.shape[-1] == v.shape[-1], "head sizes differ")
    check(size % 8 == 0 and size <= 256, "head size must be a multiple of 8 up to 256")
    check(q.shape[-2] % k.shape[-2] == 0, "query heads must be a multiple of key-value heads")
    check(k.shape[:-1] == v.shape[:-1], "keys and values have incompatible shapes")
    if dropout_p or any(each is not None and each is not False for each in unsupported):
        raise NotImplementedError("the simulation has no dropout, ALiBi or returned scores")


def _scale(softmax_scale, q):
    return 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=ANYWHERE,
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """Attend in every row of q (B, Q, H, D) to k and v (B, K, G, D)."""
    _check(q, k, v, dropout_p, alibi_slopes, return_attn_probs)
    check(q.shape[0] == k.shape[0], "q and k have different numbers of rows")
    visible = visible_keys(q.shape[1], k.shape[1], causal, window_size)
    scale = _scale(softmax_scale, q)
    rows = zip(q, k, v, strict=True)
    return torch.stack([attend(*row, scale, visible, softcap) for row in rows])


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=ANYWHERE,
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """Attend within sequences that are joined: q (total Q, H, D), k and v (total K, G, D)."""
    _check(q, k, v, dropout_p, alibi_slopes, return_attn_probs, block_table)
    bounds_q = _bounds(cu_seqlens_q, q.shape[0], max_seqlen_q, "q")
    bounds_k = _bounds(cu_seqlens_k, k.shape[0], max_seqlen_k, "k")
    check(len(bounds_q) == len(bounds_k), "cu_seqlens_q and cu_seqlens_k differ in length")
    found = torch.empty_like(q)
    scale = _scale(softmax_scale, q)
    for (start_q, end_q), (start_k, end_k) in zip(bounds_q, bounds_k, strict=True):
        visible = visible_keys(end_q - start_q, end_k - start_k, causal, window_size)
        part = slice(start_k, end_k)
        found[start_q:end_q] = attend(q[start_q:end_q], k[part], v[part], scale, visible, softcap)
    return found


def _bounds(cumulative, total, longest, name):
    """Return starts and ends of joined sequences, checked."""
    check_raw(cumulative, torch.int32, f"cu_seqlens_{name}")
    ends = cumulative.tolist()
    check(ends[0] == 0 and ends[-1] == total, f"cu_seqlens_{name} does not span {name}")
    pairs = list(itertools.pairwise(ends))
    lengths = [end - start for start, end in pairs]
    check(min(lengths) >= 0, f"cu_seqlens_{name} decreases")
    check(isinstance(longest, int), f"max_seqlen_{name} must be an int")
    check(longest >= max(lengths), f"max_seqlen_{name} is too small: rows would be left out")
    return pairs


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=ANYWHERE,
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    """Append k and v to a cache, if given, and attend from q to what it then holds.

    The cache is (B, K, G, D), or (pages, page size, G, D) with a block table (B, pages of a row).
    """
    unsupported = (rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad, return_softmax_lse)
    _check(q, k_cache, v_cache, 0.0, alibi_slopes, *unsupported)
    lengths = _cache_lengths(cache_seqlens, q.shape[0], k_cache)
    scale, found = _scale(softmax_scale, q), []
    for row, length in enumerate(lengths):
        new = 0 if k is None else k.shape[1]
        places = _cache_places(row, length + new, k_cache, block_table)
        if k is not None:
            added = tuple(place[length:] for place in places)
            k_cache[added], v_cache[added] = k[row], v[row]
        visible = visible_keys(q.shape[1], length + new, causal, window_size)
        held = k_cache[places], v_cache[places]
        found.append(attend(q[row], *held, scale, visible, softcap))
    return torch.stack(found)


def _cache_lengths(cache_seqlens, rows, k_cache):
    """Return how many tokens of each row are in the cache."""
    if cache_seqlens is None:
        return [k_cache.shape[1]] * rows
    if isinstance(cache_seqlens, int):
        return [cache_seqlens] * rows
    check_raw(cache_seqlens, torch.int32, "cache_seqlens", rows)
    return cache_seqlens.tolist()


def _cache_places(row, length, k_cache, block_table):
    """Return where in the cache the first tokens of a row are."""
    tokens = torch.arange(length)
    size = k_cache.shape[1]
    if block_table is None:
        check(length <= size, "the cache is too short")
        return torch.full_like(tokens, row), tokens
    check_raw(block_table, torch.int32, "block_table")
    check(size % PAGE_MULTIPLE == 0, "pages must be a multiple of 256 tokens")
    check(length <= size * block_table.shape[1], "a row has too few pages")
    return block_table[row].long()[tokens // size], tokens % size


def make_module():
    """Return a module `flash_attn`."""
    module = types.ModuleType("flash_attn", "Simulated flash-attn.")
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    module.__version__ = VERSION
    for function in (flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache):
        setattr(module, function.__name__, function)
    return module
