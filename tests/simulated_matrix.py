"""Simulated: reading tensors, quantized matrices and their products.

Follows exllamav2 0.3.2: `ext_stloader.cpp`, `ext_qmatrix.cpp`, `q_matrix.cu`, `q_gemm.cu`.
Products are summed in float32 and rounded to float16 once per value that a kernel stores.
"""

import itertools
import os

import torch
from simulated_handles import (
    check,
    check_optional,
    check_raw,
    check_room,
    keep,
    look_up,
    optional,
    release,
    to_half,
)

from lm_eval_exl2.checkpoint import format as exl2_format
from lm_eval_exl2.checkpoint import gptq

INT16, INT32, HALF = torch.int16, torch.int32, torch.float16


# -- loading ----------------------------------------------------------------------------------


def stloader_read(filename, offset, size, target):
    """Read bytes of a file into a tensor."""
    check(target.is_contiguous(), "target is not contiguous")
    check(target.numel() * target.element_size() == size, "target does not have the bytes read")
    with open(filename, "rb") as file:  # noqa: PTH123
        content = os.pread(file.fileno(), size, offset)
    check(len(content) == size, "I/O error reading tensor")
    if size:
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        target.view(-1).view(torch.uint8).copy_(flat)


def tensor_remap(tensor, index):
    """Permute the columns of a matrix of words in place."""
    check(tensor.shape[1] == index.shape[0], "tensor and index have incompatible shapes")
    check_raw(tensor, INT32, "tensor")
    check_raw(index, INT32, "index")
    tensor.copy_(tensor[:, index.long()])


def tensor_remap_4bit(tensor, index):
    """Permute columns that are packed eight to a word, in place."""
    check(index.shape[0] == tensor.shape[1] * 8, "index and tensor have incompatible shapes")
    check_raw(tensor, INT32, "tensor")
    check_raw(index, INT32, "index")
    shifts = torch.arange(0, 32, 4, dtype=INT32)
    fields = ((tensor[..., None] >> shifts) & 15).flatten(1)[:, index.long()]
    words = (fields.unflatten(1, (-1, 8)).long() << shifts.long()).sum(-1)
    tensor.copy_(torch.where(words >= 1 << 31, words - (1 << 32), words).to(INT32))


def make_group_map(q_groups, num_qrows):
    """Return for each packed row its group and the rows left in it."""
    check(q_groups.dtype == INT16, "q_groups is incorrect datatype")
    table = q_groups.tolist()
    starts = [*table[1::2], num_qrows]
    found = []
    for group, bits in enumerate(table[0::2]):
        rows = (starts[group + 1] - starts[group]) * 32 // bits
        for row in range(rows):
            found += [group, rows - row]
    return torch.tensor(found, dtype=INT16)


# -- matrices ---------------------------------------------------------------------------------


class Matrix:
    """A quantized matrix: weights (K, N) as a card would reconstruct them, and a bias."""

    def __init__(self, weight_KN, bias):
        # Kept in float32 too, because products are computed in it.
        self.weight = weight_KN
        self.exact = weight_KN.float()
        self.bias = bias
        self.height, self.width = weight_KN.shape


def make_q_matrix(
    q_weight,
    q_perm,
    q_invperm,
    q_scale,
    q_scale_max,
    q_groups,
    q_group_map,
    gptq_qzeros,
    gptq_scales,
    gptq_g_idx,
    bias,
    temp_dq,
    max_dq_rows,
):
    """Take over a matrix whose scales were multiplied by prescale / 256 before."""
    check_raw(q_weight, INT32, "q_weight")
    wanted = (
        *((q_perm, INT16, "q_perm"), (q_invperm, INT16, "q_invperm"), (q_scale, INT32, "q_scale")),
        *((q_scale_max, HALF, "q_scale_max"), (q_groups, INT16, "q_groups")),
        *((q_group_map, INT16, "q_group_map"), (gptq_qzeros, INT32, "gptq_qzeros")),
        *((gptq_scales, HALF, "gptq_scales"), (gptq_g_idx, INT32, "gptq_g_idx")),
        (bias, HALF, "bias"),
    )
    for tensor, dtype, name in wanted:
        check_optional(tensor, dtype, name)
        check(tensor.is_meta or tensor.is_contiguous(), f"{name} is not contiguous")
    check(q_perm.shape[0] == q_invperm.shape[0], "q_perm and q_invperm have incompatible shapes")
    if q_scale.is_meta:
        weight = _decode_gptq(q_weight, q_perm, q_invperm, gptq_qzeros, gptq_scales, gptq_g_idx)
    else:
        weight = _decode_exl2(q_weight, q_perm, q_invperm, q_scale, q_scale_max, q_groups)
        check(2 * weight.shape[0] == q_group_map.shape[0], "q_group_map does not list every row")
    height, width = weight.shape
    check(bias.is_meta or bias.shape[0] == width, "q_weight and bias have incompatible shapes")
    check_room(temp_dq, width * min(max_dq_rows, height), "temp_dq")
    return keep(Matrix(weight, optional(bias)))


def _decode_exl2(q_weight, q_perm, q_invperm, q_scale, q_scale_max, q_groups):
    words = {"q_weight": q_weight, "q_scale": q_scale}
    words |= {"q_scale_max": q_scale_max, "q_groups": q_groups}
    if q_invperm.is_meta:
        # Without a permutation the rows are taken in the order they are packed in.
        table = (q_groups.long() & 0xFFFF).tolist()
        starts = [*table[1::2], q_weight.shape[0]]
        pairs = itertools.pairwise(starts)
        spans = [end - start for start, end in pairs]
        rows = sum(span * 32 // bits for span, bits in zip(spans, table[0::2], strict=True))
        order = torch.arange(rows)
    else:
        order = q_invperm.long() & 0xFFFF
        inverse = torch.empty_like(order)
        inverse[q_perm.long() & 0xFFFF] = torch.arange(order.shape[0])
        check(torch.equal(inverse, order), "q_perm is not the inverse of q_invperm")
    # The scales are divided by 256 already: a prescale of 256 leaves them as they are.
    weight_NK = exl2_format.decode(words | {"q_invperm": order.to(INT32)}, prescale=256)
    return weight_NK.t().contiguous()


def _decode_gptq(q_weight, q_perm, q_invperm, qzeros, scales, g_idx):
    height, groups = q_weight.shape[0] * 8, scales.shape[0]
    size = 1
    while size * groups < height:
        size *= 2
    parts = {"qweight": q_weight, "qzeros": qzeros, "scales": scales}
    if not g_idx.is_meta:
        parts["g_idx"] = g_idx
        # The kernel sorts the rows by group and tells in the tensors it was given.
        order = torch.argsort(g_idx, stable=True)
        q_perm.copy_(order.to(INT16))
        q_invperm.copy_(torch.argsort(order).to(INT16))
    return gptq.decode(parts, group_size=size, zero_offset=1).t().contiguous()


def free_q_matrix(handle):
    """Free a matrix."""
    release(handle, Matrix)


def reconstruct(q_handle, output):
    """Write the weights (K, N) to a tensor."""
    matrix = look_up(q_handle, Matrix)
    check(tuple(output.shape) == (matrix.height, matrix.width), "output doesn't match QMatrix")
    check_raw(output, HALF, "output")
    output.copy_(matrix.weight)


def gemm_half_q_half(a, b, c, force_cuda):
    """Write a @ matrix + bias to c."""
    matrix = look_up(b, Matrix)
    check_raw(a, HALF, "a")
    check_raw(c, HALF, "c")
    check(a.shape[0] == c.shape[0], "a and c have incompatible shapes")
    check(a.shape[1] == matrix.height, "a and b have incompatible shapes")
    check(c.shape[1] == matrix.width, "b and c have incompatible shapes")
    c.copy_(multiply(a, matrix))


def multiply(rows, matrix):
    """Return float16 rows @ matrix + bias."""
    product = rows.float() @ matrix.exact
    return to_half(product if matrix.bias is None else product + matrix.bias.float())


def multiply_onto(target, rows, matrix, weights=None):
    """Add rows @ matrix, each row times its weight, to a float16 tensor in place."""
    product = rows.float() @ matrix.exact
    if weights is not None:
        product = product * weights.float()[:, None]
    total = to_half(target.float() + product)
    # The bias is added by a kernel of its own, to what was rounded before.
    target.copy_(total if matrix.bias is None else total + matrix.bias)
