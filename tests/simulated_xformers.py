"""A stand-in for the part of xformers that exllamav2 and this package use, in float32.

Written from its documentation: inputs are (rows, length, heads, head size), all with equally many
heads; block-diagonal biases take joined sequences in a single row.
"""

import importlib.machinery
import math
import types
from dataclasses import dataclass

import torch
from simulated_flash_attn import attend, visible_keys
from simulated_handles import check


class LowerTriangularFromBottomRightMask:
    """Causal, the last query at the last key."""

    def visible(self, queries, keys):
        """Return which keys each query sees."""
        return visible_keys(queries, keys, causal=True)


@dataclass
class BlockDiagonalCausalFromBottomRightMask:
    """Causal within each of several joined sequences, the last query at the last key."""

    q_seqlen: list
    kv_seqlen: list

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        """Make a mask for sequences of these lengths."""
        q_seqlen, kv_seqlen = list(q_seqlen), list(q_seqlen if kv_seqlen is None else kv_seqlen)
        check(len(q_seqlen) == len(kv_seqlen), "q_seqlen and kv_seqlen differ in length")
        for queries, keys in zip(q_seqlen, kv_seqlen, strict=True):
            if keys < queries:
                raise ValueError(f"a sequence has fewer keys ({keys}) than queries ({queries})")
        return cls(q_seqlen, kv_seqlen)

    def to(self, _device):
        """Return the mask on another device."""
        return self

    def visible(self, queries, keys):
        """Return which keys each query sees."""
        check(queries == sum(self.q_seqlen), "the mask is for another number of queries")
        check(keys == sum(self.kv_seqlen), "the mask is for another number of keys")
        blocks = [
            visible_keys(*lengths, causal=True)
            for lengths in zip(self.q_seqlen, self.kv_seqlen, strict=True)
        ]
        return torch.block_diag(*(block.to(torch.uint8) for block in blocks)).bool()


def memory_efficient_attention(
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):
    """Attend in every row."""
    if p or op is not None or output_dtype is not None or isinstance(attn_bias, torch.Tensor):
        raise NotImplementedError("the simulation has no dropout, operators or tensor biases")
    for tensor in (query, key, value):
        check(tensor.dim() == 4, "inputs must have 4 dimensions")
        check(tensor.dtype in (torch.float16, torch.bfloat16), "inputs must be fp16 or bf16")
    check(query.shape[2:] == key.shape[2:] == value.shape[2:], "heads are not shared by xformers")
    check(query.shape[0] == key.shape[0], "query and key have different numbers of rows")
    if isinstance(attn_bias, BlockDiagonalCausalFromBottomRightMask):
        check(query.shape[0] == 1, "a block-diagonal mask takes one row")
    if attn_bias is None:
        visible = visible_keys(query.shape[1], key.shape[1], causal=False)
    else:
        visible = attn_bias.visible(query.shape[1], key.shape[1])
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    rows = zip(query, key, value, strict=True)
    return torch.stack([attend(*row, scale, visible) for row in rows])


def make_modules():
    """Return the modules of xformers by name, each an attribute of its parent."""
    names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
    modules = {name: types.ModuleType(name, "Simulated xformers.") for name in names}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    modules["xformers"].__version__ = "0.0.32"
    for name in ("xformers.ops", "xformers.ops.fmha"):
        modules[name].memory_efficient_attention = memory_efficient_attention
    biases = modules["xformers.ops.fmha.attn_bias"]
    for bias in (LowerTriangularFromBottomRightMask, BlockDiagonalCausalFromBottomRightMask):
        setattr(biases, bias.__name__, bias)
    return modules
