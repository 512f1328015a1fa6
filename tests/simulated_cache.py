"""Simulated: caches of keys and values in 8, 6 and 4 bits, and what the generator does to pages.

Follows exllamav2 0.3.2 (`ext_cache.cpp`, `cache.cu`) in what is read and written where. How
values are rounded is simpler than the kernels' way: to the nearest of evenly spaced values, with
one float16 scale for every 32 elements.
"""

import torch
from simulated_handles import check, check_raw

HALF, BYTE = torch.float16, torch.uint8
GROUP = 32
# Bits of keys and values by mode: in the 6-bit mode keys have 8 and values 4 (`cache.py`).
BITS = {4: (4, 4), 6: (8, 4), 8: (8, 8)}


def fp16_to_q_kv(
    k_in,
    k_out,
    k_scales,
    v_in,
    v_out,
    v_scales,
    batch_size,
    offset,
    width,
    page_size,
    cache_seqlens,
    block_table,
    wbits,
):
    """Quantize new keys and values: `width` tokens from `offset`, or from each row's length."""
    _check_states(k_in, k_out, v_in, v_out)
    if page_size:
        spans = [(length, length + width) for length in _lengths(cache_seqlens, block_table)]
        places = _pages(spans, block_table, page_size)
    else:
        places = _columns(k_in, batch_size, offset, width)
    key_bits, value_bits = BITS[wbits]
    for source, packed, scales, bits in (
        (k_in, k_out, k_scales, key_bits),
        (v_in, v_out, v_scales, value_bits),
    ):
        codes, steps = quantize(source[places], bits)
        packed[places], scales[places] = codes, steps


def q_to_fp16_kv(
    k_in,
    k_out,
    k_scales,
    v_in,
    v_out,
    v_scales,
    batch_size,
    offset,
    width,
    page_size,
    cache_seqlens,
    block_table,
    wbits,
):
    """Restore keys and values: `width` tokens from `offset`, or the length of each row."""
    _check_states(k_out, k_in, v_out, v_in)
    if page_size:
        spans = [(0, length) for length in _lengths(cache_seqlens, block_table)]
        places = _pages(spans, block_table, page_size)
    else:
        places = _columns(k_out, batch_size, offset, width)
    key_bits, value_bits = BITS[wbits]
    k_out[places] = restore(k_in[places], k_scales[places], key_bits)
    v_out[places] = restore(v_in[places], v_scales[places], value_bits)


def _check_states(k_half, k_packed, v_half, v_packed):
    for half, packed in ((k_half, k_packed), (v_half, v_packed)):
        check_raw(half, HALF, "half-precision states")
        check_raw(packed, BYTE, "packed states")
        check(half.shape[:3] == packed.shape[:3], "states have incompatible shapes")
    check(k_half.shape[:3] == v_half.shape[:3], "keys and values have incompatible shapes")


def _columns(states, batch_size, offset, width):
    """Return an index of some tokens of the first rows."""
    check(batch_size <= states.shape[0], "more rows than the cache has")
    check(offset >= 0 and offset + width <= states.shape[1], "tokens beyond the end of the cache")
    return slice(0, batch_size), slice(offset, offset + width)


def _lengths(cache_seqlens, block_table):
    check_raw(cache_seqlens, torch.int32, "cache_seqlens")
    check_raw(block_table, torch.int32, "block_table")
    check(cache_seqlens.shape[0] == block_table.shape[0], "cache_seqlens, block_table disagree")
    return cache_seqlens.tolist()


def _pages(spans, block_table, page_size):
    """Return an index of some tokens of sequences that lie in pages of row 0."""
    found = []
    for (start, end), pages in zip(spans, block_table.long(), strict=True):
        tokens = torch.arange(start, end)
        check(end <= page_size * pages.shape[0], "tokens beyond the pages of their sequence")
        found.append(pages[tokens // page_size] * page_size + tokens % page_size)
    return 0, torch.cat(found)


def quantize(values, bits):
    """Round (..., head size) to codes of some bits, two to a byte if 4, and group scales."""
    largest = (1 << (bits - 1)) - 1
    groups = values.float().unflatten(-1, (-1, GROUP))
    steps = (groups.abs().amax(-1) / largest).to(HALF)
    divisors = steps.float().masked_fill(steps == 0, 1.0)
    codes = (groups / divisors[..., None]).round().clamp(-largest, largest)
    codes = (codes + largest).to(BYTE).flatten(-2)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, steps


def restore(codes, steps, bits):
    """Return float16 values of codes and group scales."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    largest = (1 << (bits - 1)) - 1
    values = (codes.float() - largest).unflatten(-1, (-1, GROUP)) * steps.float()[..., None]
    return values.flatten(-2).to(HALF)


def fp16_to_fp8(in_tensor, out_tensor, batch_size, offset, width):
    """Keep the upper byte of each value."""
    check_raw(in_tensor, HALF, "in_tensor")
    check_raw(out_tensor, BYTE, "out_tensor")
    places = _columns(in_tensor, batch_size, offset, width)
    out_tensor[places] = in_tensor[places].view(BYTE)[..., 1::2]


def fp8_to_fp16(in_tensor, out_tensor, batch_size, offset, width):
    """Put each byte above a zero one."""
    check_raw(in_tensor, BYTE, "in_tensor")
    check_raw(out_tensor, HALF, "out_tensor")
    places = _columns(in_tensor, batch_size, offset, width)
    upper = in_tensor[places]
    out_tensor[places] = torch.stack((torch.zeros_like(upper), upper), -1).flatten(-2).view(HALF)


def count_match(a, b, max_a):
    """Return how many ids two rows have in common from the start."""
    length = min(max_a, b.shape[1])
    check_raw(a, torch.int64, "a")
    check_raw(b, torch.int64, "b")
    equal = a.flatten()[:length] == b.flatten()[:length]
    return int(equal.long().cumprod(0).sum())


def cache_rotate(cache, order, temp):
    """Move pages along a cycle: each takes the content of the next."""
    check(cache.dim() > 1, "cache argument must have dim >= 2")
    check_raw(cache, cache.dtype, "cache")
    check_raw(order, torch.int32, "order")
    check(temp.nbytes == cache[0].nbytes, "temp tensor incorrect size")
    places = order.long()
    cache[places] = cache[places.roll(-1)]
