"""Simulated: norms, rotary positions, soft-cap, activations and adapters.

Follows exllamav2 0.3.2: `rms_norm.cu`, `layer_norm.cu`, `head_norm.cu`, `rope.cu`, `softcap.cu`,
`q_mlp_activation.cuh`, `lora.cu`. Float32 inside a kernel, float16 where it stores.
"""

import torch
from simulated_handles import (
    check,
    check_optional,
    check_raw,
    check_room,
    optional,
    to_half,
)

HALF, FLOAT = torch.float16, torch.float32
LARGEST_HALF = 65504.0
# A head's sums are shuffled across whole warps, two values a thread.
HEAD_NORM_MULTIPLE, LARGEST_HEAD = 64, 256
# The activation kernels are started on blocks of so many columns, rounded down.
ACTIVATION_COLUMNS = 64


# -- norms ------------------------------------------------------------------------------------


def rms_values(x, weight, epsilon):
    """Return the normalized rows in float32."""
    values = x.float()
    if x.dtype == HALF:
        values = values.clamp(-LARGEST_HALF, LARGEST_HALF)
    factor = torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)
    return values * weight.float() * factor


def layer_values(x, weight, bias, epsilon):
    """Return the normalized rows in float16; the bias is added to what was rounded."""
    values = x.float().clamp(-LARGEST_HALF, LARGEST_HALF)
    values = values - values.mean(-1, keepdim=True)
    factor = torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)
    found = to_half(values * weight.float() * factor)
    return found if bias is None else found + bias


def rms_norm(x, w, y, epsilon):
    """Write the normalized rows of x, float16 or float32, to y, float16 or float32."""
    for tensor, name in ((x, "x"), (y, "y")):
        check(tensor.dtype in (HALF, FLOAT), f"{name} is incorrect datatype")
        check_raw(tensor, tensor.dtype, name)
    check_raw(w, HALF, "w")
    check(x.shape[1] == w.shape[0], "x and w have incompatible shapes")
    check(x.shape == y.shape, "x and y have incompatible shapes")
    y.copy_(rms_values(x, w, epsilon).to(y.dtype))


def rms_norm_(x, w, epsilon):
    """Normalize in place."""
    rms_norm(x, w, x, epsilon)


def layer_norm(x, w, b, y, epsilon):
    """Write the normalized rows of x to y, mean removed."""
    for tensor, name in ((x, "x"), (w, "w"), (y, "y")):
        check_raw(tensor, HALF, name)
    check_optional(b, HALF, "b")
    check(x.shape[1] == w.shape[0], "x and w have incompatible shapes")
    check(x.shape == y.shape, "x and y have incompatible shapes")
    check(b.is_meta or b.shape[0] == w.shape[0], "b and w have incompatible shapes")
    y.copy_(layer_values(x, w, optional(b), epsilon))


def layer_norm_(x, w, b, epsilon):
    """Normalize in place, mean removed."""
    layer_norm(x, w, b, x, epsilon)


def head_norm(x, w, b, y, epsilon, rms):
    """Write x (..., heads, head size), every head normalized with weights of its own, to y."""
    for tensor, name in ((x, "x"), (w, "w"), (y, "y")):
        check_raw(tensor, HALF, name)
    check_optional(b, HALF, "b")
    check(x.shape[-2:] == w.shape, "x and w have incompatible shapes")
    check(x.shape == y.shape, "x and y have incompatible shapes")
    y.copy_(head_values(x, w, optional(b), epsilon, rms))


def head_norm_(x, w, b, epsilon, rms):
    """Normalize every head in place."""
    head_norm(x, w, b, x, epsilon, rms)


def head_values(x, weight, bias, epsilon, rms):
    """Return x (..., heads, head size) with every head normalized, in float16."""
    size = x.shape[-1]
    check(
        size % HEAD_NORM_MULTIPLE == 0 and size <= LARGEST_HEAD,
        f"head size {size}: the head norm kernel shuffles across threads that do not exist",
    )
    if not rms:
        return layer_values(x, weight, bias, epsilon)
    found = to_half(rms_values(x, weight, epsilon))
    return found if bias is None else found + bias


# -- positions --------------------------------------------------------------------------------


def rope_(x, sin, cos, past_len, num_heads, head_dim, offsets, neox_style):
    """Rotate x (batch, ..., heads x head size) in place by each token's position."""
    check_raw(x, HALF, "x")
    batch = x.shape[0]
    heads = x.view(batch, -1, num_heads, head_dim)
    rotate_(heads, sin, cos, past_len, offsets, neox_style)


def rotate_(heads, sin, cos, past_len, offsets, neox_style):
    """Rotate heads (batch, tokens, heads, head size) in place."""
    check_raw(sin, HALF, "sin")
    check_raw(cos, HALF, "cos")
    check_optional(offsets, torch.int32, "offsets")
    size = cos.shape[-1]
    check(sin.shape == cos.shape, "sin table does not fit cos table")
    check(size <= heads.shape[-1], "the tables are wider than a head")
    batch, tokens = heads.shape[:2]
    rows = _positions(batch, tokens, past_len, optional(offsets))
    table_rows = sin.numel() // size
    check(int(rows.max()) < table_rows, f"position {int(rows.max())} of {table_rows} in the table")
    sines, cosines = (
        table.view(table_rows, size)[rows].unsqueeze(2).float() for table in (sin, cos)
    )
    turned = heads[..., :size]
    rotate = _rotate_halves if neox_style else _rotate_pairs
    turned.copy_(rotate(turned.float(), sines, cosines))


def _positions(batch, tokens, past_len, offsets):
    """Return the row of the tables for every token: long (batch, tokens)."""
    starts = torch.full((batch,), past_len)
    if past_len == -1:
        check(offsets is not None, "past_len is -1, which asks for offsets")
    if offsets is not None:
        check(offsets.is_contiguous(), "offsets are not contiguous")
        check(offsets.numel() >= batch, "fewer offsets than rows")
        own = offsets.flatten()[:batch].long()
        starts = own.clamp(min=0) if past_len == -1 else starts + own
    return (starts[:, None] + torch.arange(tokens)).clamp(min=0)


def _rotate_halves(x, sines, cosines):
    """Rotate pairs that lie half the rotated size apart; only half of the tables is read."""
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    sines, cosines = sines[..., :half], cosines[..., :half]
    # One product is rounded on its own, the other is fused with the sum.
    from_right = to_half(right * -sines).float()
    from_left = to_half(left * sines).float()
    return to_half(torch.cat((left * cosines + from_right, right * cosines + from_left), -1))


def _rotate_pairs(x, sines, cosines):
    """Rotate neighbours."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    signs = torch.tensor([-1.0, 1.0]).repeat(x.shape[-1] // 2)
    return to_half(swapped * (sines * signs) + to_half(x * cosines).float())


# -- elements ---------------------------------------------------------------------------------


def softcap_(x, scale):
    """Squash the values of a float16 or float32 tensor in place."""
    check(x.dtype in (HALF, FLOAT), "softcap_ wrong dtype")
    check_raw(x, x.dtype, "x")
    x.copy_((torch.tanh(x.float() / scale) * scale).to(x.dtype))


def activate(x, is_gelu):
    """Return the activation of float16 values, rounded where the kernel rounds."""
    check(
        x.shape[-1] % ACTIVATION_COLUMNS == 0,
        f"{x.shape[-1]} columns: the activation kernel leaves the last 32 as they are",
    )
    if is_gelu:
        return to_half(torch.nn.functional.gelu(x.float(), approximate="tanh"))
    total = 1 + to_half((-x.float()).exp())
    return x * to_half(1 / total.float())


# -- adapters ---------------------------------------------------------------------------------


def read_loras(tensors_a, tensors_b):
    """Return adapters by id as pairs of matrices, and the largest rank."""
    check(tensors_a.keys() == tensors_b.keys(), "an adapter has only one of its two matrices")
    for key in tensors_a:
        check_raw(tensors_a[key], HALF, "lora_a")
        check_raw(tensors_b[key], HALF, "lora_b")
    pairs = {key: (tensors_a[key], tensors_b[key]) for key in tensors_a}
    return pairs, max((a.shape[-1] for a, _ in pairs.values()), default=0)


def apply_loras(adapters, chosen, matrix, rows, target, loras_temp):
    """Add rows @ A @ B of every chosen adapter to a float16 tensor in place."""
    for key in chosen:
        if key not in adapters:
            continue
        lora_a, lora_b = adapters[key]
        rank = lora_a.shape[-1]
        check(target.dtype == HALF, "adapters write float16 into a float32 stream")
        check(tuple(lora_a.shape) == (matrix.height, rank), "lora_a does not fit its layer")
        check(tuple(lora_b.shape) == (rank, matrix.width), "lora_b does not fit its layer")
        check(not loras_temp.is_meta, "adapters without their scratch buffer")
        check_room(loras_temp, rows.shape[0] * rank, "loras_temp")
        between = to_half(rows.float() @ lora_a.float()).float()
        target.copy_(to_half(target.float() + between @ lora_b.float()))
