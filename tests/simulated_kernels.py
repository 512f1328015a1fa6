"""A stand-in for exllamav2's compiled extension, written in torch.

exllamav2 0.3.2's own Python runs over it on any machine: loading, `forward`, its caches and its
generator. What real kernels would do wrong silently (rows beyond their buffers, positions beyond
the tables, strides they do not know) is an error here. Not simulated: tensor-parallel loading,
images, conversion, and kernels' own ways of rounding inside a sum.
"""

import types

import simulated_cache
import simulated_experts
import simulated_layers
import simulated_matrix
import simulated_modules
import simulated_sampling
from simulated_handles import KernelMisuseError, open_handles

__all__ = ["KernelMisuseError", "make_extension", "open_handles"]

_FUNCTIONS = {
    simulated_matrix: (
        *("stloader_read", "tensor_remap", "tensor_remap_4bit", "make_group_map"),
        *("make_q_matrix", "free_q_matrix", "reconstruct", "gemm_half_q_half"),
    ),
    simulated_layers: (
        *("rms_norm", "rms_norm_", "layer_norm", "layer_norm_", "head_norm", "head_norm_"),
        *("rope_", "softcap_"),
    ),
    simulated_modules: (
        *("make_q_attn", "free_q_attn", "q_attn_forward_1", "q_attn_forward_2"),
        *("q_attn_set_loras", "make_q_mlp", "free_q_mlp", "q_mlp_forward_", "q_mlp_set_loras"),
    ),
    simulated_experts: ("make_q_moe_mlp", "free_q_moe_mlp", "q_moe_mlp_forward_"),
    simulated_cache: (
        *("fp16_to_q_kv", "q_to_fp16_kv", "fp16_to_fp8", "fp8_to_fp16"),
        *("count_match", "cache_rotate"),
    ),
    simulated_sampling: (
        *("sample_basic", "apply_rep_penalty", "logit_filter_exclusive"),
        *("fast_fill_cpu_ones_bool", "fast_fadd_cpu", "fast_copy_cpu", "partial_strings_match"),
    ),
}


def make_extension():
    """Return a module with the functions of the extension, under their names and signatures."""
    extension = types.ModuleType("exllamav2_ext", "Simulated kernels of exllamav2.")
    for module, names in _FUNCTIONS.items():
        for name in names:
            setattr(extension, name, getattr(module, name))
    return extension
