"""Simulated: the mixture-of-experts module of the extension.

Follows exllamav2 0.3.2: `ext_qmlp.cpp`, `q_mlp.cu`, `q_mlp_softmax.cuh`. exllamav2 uses it for up
to four rows; more of them go through a loop in Python.
"""

from types import SimpleNamespace

import torch
from simulated_handles import check, check_raw, keep, look_up, release, to_half
from simulated_layers import activate
from simulated_matrix import Matrix, multiply, multiply_onto
from simulated_modules import first_norm, rows_of, take_norms

HALF = torch.float16
COUNTS = (4, 8, 16, 128)
"""Numbers of experts the real module has kernels for."""


class Experts(SimpleNamespace):
    """One mixture-of-experts module."""


def make_q_moe_mlp(
    layernorm,
    layernorm_bias,
    layernorm_is_rms,
    norm_epsilon,
    gate,
    num_experts,
    num_experts_per_token,
    w1,
    w2,
    w3,
    temp_state,
    temp_gathered_state,
    temp_a,
    temp_b,
    temp_logits,
    temp_dq,
    max_rows,
    act_gelu,
):
    """Make a mixture of experts of three matrices each."""
    check_raw(layernorm, HALF, "layernorm")
    check_raw(gate, HALF, "gate")
    check(layernorm.shape[0] == gate.shape[1], "layernorm and gate have incompatible shapes")
    check(gate.shape[0] == num_experts, "gate output features != num_experts")
    experts = Experts(gate=gate, count=num_experts, chosen=num_experts_per_token)
    for name, handles in (("w1", w1), ("w2", w2), ("w3", w3)):
        setattr(experts, name, [look_up(handle, Matrix) for handle in handles])
    take_norms(experts, layernorm, layernorm_bias, layernorm_is_rms, norm_epsilon)
    experts.max_rows, experts.is_gelu, experts.residual_fp32 = max_rows, act_gelu, False
    return keep(experts)


def free_q_moe_mlp(handle):
    """Free a mixture of experts."""
    release(handle, Experts)


def q_moe_mlp_forward_(q_moe_mlp, x):
    """Add the chosen experts' outputs to the hidden states, in place; for few rows only."""
    experts = look_up(q_moe_mlp, Experts)
    check(experts.count in COUNTS, "num_experts must be 4, 8, 16 or 128")
    rows = rows_of(experts, x, experts.norm.shape[0])
    state = first_norm(experts, rows)
    logits = to_half(state.float() @ experts.gate.float().t())
    weights = expert_weights(logits, experts.chosen)
    for index in range(experts.count):
        mine = weights[:, index]
        # With 128 experts the real module looks at the first row alone to see which are needed.
        seen = mine[:1] if experts.count == 128 else mine
        if not seen.any():
            continue
        gate = multiply(state, experts.w1[index])
        inner = activate(gate, experts.is_gelu) * multiply(state, experts.w3[index])
        multiply_onto(rows, inner, experts.w2[index], mine)


def expert_weights(logits, chosen):
    """Return softmax over the chosen most probable experts, others 0: float16 (rows, experts)."""
    count, epsilon = logits.shape[-1], 1e-8
    values = logits.float()
    powers = (values - values.amax(-1, keepdim=True)).exp()
    found = powers / (powers.sum(-1, keepdim=True) + count * epsilon) + epsilon
    # Of equal ones the kernel drops those listed first.
    dropped = torch.argsort(found, dim=-1, stable=True)[:, : count - chosen]
    rest = 1 - found.gather(1, dropped).sum(-1, keepdim=True)
    return to_half(found.scatter(1, dropped, 0.0) / rest)
