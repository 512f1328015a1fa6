"""Simulated: the attention and MLP modules of the extension.

Follows exllamav2 0.3.2: `ext_qattn.cpp`, `q_attn.cu`, `ext_qmlp.cpp`, `q_mlp.cu`. All of
them change the hidden states in place.
"""

from types import SimpleNamespace

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
from simulated_layers import (
    activate,
    apply_loras,
    head_values,
    layer_values,
    read_loras,
    rms_values,
    rotate_,
)
from simulated_matrix import Matrix, multiply, multiply_onto

HALF, FLOAT = torch.float16, torch.float32
ROPE_NONE, ROPE_NEOX = 0, 2  # values of `RopeStyle` (`architecture.py`); 1 rotates neighbours


class Attention(SimpleNamespace):
    """One attention module."""


class Mlp(SimpleNamespace):
    """One MLP module."""


def first_norm(module, x):
    """Return the rows after the module's first norm, float16."""
    if module.norm is None:
        return x
    if module.norm_is_rms:
        return to_half(rms_values(x, module.norm, module.epsilon))
    return layer_values(x, module.norm, module.norm_bias, module.epsilon)


def _add_normalized(module, x, rows):
    """Add the rows after the module's second norm to x in place."""
    if not module.norm_is_rms:
        x += layer_values(rows, module.post_norm, module.post_norm_bias, module.epsilon)
    else:
        # A float32 stream adds what was not rounded.
        x += rms_values(rows, module.post_norm, module.epsilon).to(x.dtype)


def _finish(module, x, rows, matrix):
    """Add the output projection to x in place, or write it there if there is no residual."""
    if module.post_norm is not None:
        _add_normalized(module, x, multiply(rows, matrix))
    else:
        check(x.dtype == HALF, "a float32 stream without a second norm")
        if module.has_residual:
            multiply_onto(x, rows, matrix)
        else:
            x.copy_(multiply(rows, matrix))


def rows_of(module, x, columns):
    """Return hidden states as rows, checked; a view, so that writing to it changes x."""
    check_raw(x, FLOAT if module.residual_fp32 else HALF, "x")
    rows = x.view(-1, columns)
    check(rows.shape[0] <= module.max_rows, f"{rows.shape[0]} rows in x, max {module.max_rows}")
    return rows


# -- attention --------------------------------------------------------------------------------


def make_q_attn(
    layernorm,
    layernorm_bias,
    layernorm_is_rms,
    headnorm_is_rms,
    norm_epsilon,
    q_q_proj,
    q_k_proj,
    q_v_proj,
    q_o_proj,
    temp_state,
    temp_dq,
    max_rows,
    hidden_size,
    num_heads,
    num_kv_heads,
    head_dim,
    max_seq_len,
    has_residual,
    rope_style,
    sincos_size,
    q_norm,
    k_norm,
    post_layernorm,
    post_layernorm_bias,
    residual_fp32,
    use_graphs,
):
    """Make an attention module of four matrices."""
    check_optional(layernorm, HALF, "layernorm")
    check_optional(post_layernorm, HALF, "post_layernorm")
    q, k, v, o = (look_up(handle, Matrix) for handle in (q_q_proj, q_k_proj, q_v_proj, q_o_proj))
    if not layernorm.is_meta:
        for name, size in (("q", q.height), ("k", k.height), ("v", v.height), ("o", o.width)):
            check(size == layernorm.shape[0], f"{name}_proj is wrong shape")
    check(q.width == num_heads * head_dim, "padding between heads would be read as a head")
    check(k.width == v.width == num_kv_heads * head_dim, "padding between key-value heads")
    attention = Attention(q=q, k=k, v=v, o=o, temp_state=temp_state, max_rows=max_rows)
    take_norms(attention, layernorm, layernorm_bias, layernorm_is_rms, norm_epsilon)
    attention.post_norm, attention.post_norm_bias = map(
        optional, (post_layernorm, post_layernorm_bias)
    )
    attention.q_norm, attention.k_norm = optional(q_norm), optional(k_norm)
    attention.headnorm_is_rms, attention.has_residual = headnorm_is_rms, has_residual
    attention.hidden_size, attention.head_dim = hidden_size, head_dim
    attention.num_heads, attention.num_kv_heads = num_heads, num_kv_heads
    attention.rope_style, attention.sincos_size = rope_style, sincos_size
    attention.residual_fp32, attention.loras = residual_fp32, {name: {} for name in "qkvo"}
    return keep(attention)


def take_norms(module, layernorm, bias, is_rms, epsilon):
    module.norm, module.norm_bias = optional(layernorm), optional(bias)
    module.norm_is_rms, module.epsilon = is_rms, epsilon


def free_q_attn(handle):
    """Free an attention module."""
    release(handle, Attention)


def q_attn_forward_1(
    q_attn,
    x,
    batch_size,
    q_len,
    past_len,
    past_lens,
    q_temp,
    k_temp,
    v_temp,
    sin,
    cos,
    loras,
    loras_temp,
):
    """Write rotated queries and keys, and values, of the hidden states to the given tensors."""
    attention = look_up(q_attn, Attention)
    check_optional(past_lens, torch.int32, "past_lens")
    rows = rows_of(attention, x, attention.hidden_size)
    count = rows.shape[0]
    check(count == batch_size * q_len, "x does not have batch_size x q_len rows")
    if attention.norm is not None:
        check_room(attention.temp_state, rows.numel(), "temp_state")
    state = first_norm(attention, rows)
    heads = {"q": attention.num_heads, "k": attention.num_kv_heads, "v": attention.num_kv_heads}
    targets = {"q": q_temp, "k": k_temp, "v": v_temp}
    for name, target in targets.items():
        matrix = getattr(attention, name)
        check_raw(target, HALF, f"{name}_temp", count * matrix.width)
        target = target.view(count, matrix.width)
        target.copy_(multiply(state, matrix))
        apply_loras(attention.loras[name], loras, matrix, state, target, loras_temp)
    for name, weight in (("q", attention.q_norm), ("k", attention.k_norm)):
        if weight is not None:
            values = targets[name].view(count, heads[name], attention.head_dim)
            is_rms = attention.headnorm_is_rms
            values.copy_(head_values(values, weight, None, attention.epsilon, is_rms))
    if attention.rope_style != ROPE_NONE:
        check(sin.shape[-1] == attention.sincos_size, "the table is not as wide as was agreed")
        for name in "qk":
            shape = (batch_size, q_len, heads[name], attention.head_dim)
            is_neox = attention.rope_style == ROPE_NEOX
            rotate_(targets[name].view(shape), sin, cos, past_len, past_lens, is_neox)


def q_attn_forward_2(q_attn, x, attn_output, batch_size, q_len, loras, loras_temp):
    """Project what attention found onto the hidden states, in place."""
    attention = look_up(q_attn, Attention)
    rows = rows_of(attention, x, attention.o.width)
    check(rows.shape[0] == batch_size * q_len, "x does not have batch_size x q_len rows")
    check_raw(attn_output, HALF, "attn_output", rows.shape[0] * attention.o.height)
    found = attn_output.view(-1, attention.o.height)
    _finish(attention, rows, found, attention.o)
    # Adapters come after the second norm, where there is one: so it is in the real module.
    apply_loras(attention.loras["o"], loras, attention.o, found, rows, loras_temp)


def q_attn_set_loras(q_attn, q_a, q_b, k_a, k_b, v_a, v_b, o_a, o_b):
    """Replace the adapters of an attention module; return their largest rank."""
    attention = look_up(q_attn, Attention)
    ranks = []
    for name, pair in zip("qkvo", ((q_a, q_b), (k_a, k_b), (v_a, v_b), (o_a, o_b)), strict=True):
        attention.loras[name], rank = read_loras(*pair)
        ranks.append(rank)
    return max(ranks)


# -- MLP --------------------------------------------------------------------------------------


def make_q_mlp(
    layernorm,
    layernorm_bias,
    layernorm_is_rms,
    norm_epsilon,
    q_gate,
    q_up,
    q_down,
    temp_state,
    temp_a,
    temp_b,
    temp_dq,
    max_rows,
    act_gelu,
    has_residual,
    post_layernorm,
    post_layernorm_bias,
    residual_fp32,
    use_graphs,
):
    """Make an MLP of two or three matrices."""
    check_optional(layernorm, HALF, "layernorm")
    check_optional(post_layernorm, HALF, "post_layernorm")
    up, down = look_up(q_up, Matrix), look_up(q_down, Matrix)
    gate = look_up(q_gate, Matrix) if q_gate else None
    if not layernorm.is_meta:
        check(up.height == layernorm.shape[0], "up_proj is wrong shape")
        check(gate is None or gate.height == layernorm.shape[0], "gate_proj is wrong shape")
    check(up.width == down.height, "padding between up_proj and down_proj would be read")
    mlp = Mlp(gate=gate, up=up, down=down, max_rows=max_rows, is_gelu=act_gelu)
    mlp.temps = {"temp_a": temp_a, "temp_b": temp_b}
    take_norms(mlp, layernorm, layernorm_bias, layernorm_is_rms, norm_epsilon)
    mlp.post_norm, mlp.post_norm_bias = map(optional, (post_layernorm, post_layernorm_bias))
    mlp.has_residual, mlp.residual_fp32 = has_residual, residual_fp32
    mlp.loras = {"gate": {}, "up": {}, "down": {}}
    return keep(mlp)


def free_q_mlp(handle):
    """Free an MLP."""
    release(handle, Mlp)


def q_mlp_forward_(q_mlp, x, loras, loras_temp):
    """Run an MLP on the hidden states, in place."""
    mlp = look_up(q_mlp, Mlp)
    check(x.shape[-1] == mlp.up.height, "x is wrong shape")
    rows = rows_of(mlp, x, x.shape[-1])
    for name, temp in mlp.temps.items():
        check_room(temp, rows.shape[0] * mlp.up.width, name)
    state = first_norm(mlp, rows)

    def project(name):
        matrix = getattr(mlp, name)
        found = multiply(state, matrix)
        apply_loras(mlp.loras[name], loras, matrix, state, found, loras_temp)
        return found

    if mlp.gate is None:
        inner = activate(project("up"), mlp.is_gelu)
    else:
        inner = activate(project("gate"), mlp.is_gelu) * project("up")
    _finish(mlp, rows, inner, mlp.down)
    apply_loras(mlp.loras["down"], loras, mlp.down, inner, rows, loras_temp)


def q_mlp_set_loras(q_mlp, gate_a, gate_b, up_a, up_b, down_a, down_b):
    """Replace the adapters of an MLP; return their largest rank."""
    mlp = look_up(q_mlp, Mlp)
    mlp.loras["gate"], gate_rank = read_loras(gate_a, gate_b)
    mlp.loras["up"], up_rank = read_loras(up_a, up_b)
    mlp.loras["down"], down_rank = read_loras(down_a, down_b)
    return max(gate_rank, up_rank, down_rank)
