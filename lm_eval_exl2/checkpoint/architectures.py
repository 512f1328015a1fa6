"""Architectures that both transformers and exllamav2 know, and how their names correspond.

exllamav2 stores every model under Llama-like names and splits fused projections
(`architecture.py` and `conversion/compile.py` of 0.3.2); transformers keeps each architecture's
own names. An `Architecture` says what an EXL2 file of it holds and how to get from its names to
transformers'. The sizes a linear layer must have follow from its name. No tensors here.

An architecture that is missing is refused: exllamav2 itself would load it as Llama with nothing
but a printed warning, and the score would be wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lm_eval_exl2.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_exl2.checkpoint.config import Sizes

HeadNorms = Literal["none", "shared", "per head"]

# Fused module of transformers <- the split modules of an EXL2 file, in order of rows.
_QKV: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
_FUSED_QKV = {"qkv_proj": _QKV}
_FUSED_GATE_UP: dict[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj")}

# Modules of one decoder layer in an EXL2 file; * stands for the number of an expert.
_ATTENTION = tuple(f"self_attn.{last}" for last in (*_QKV, "o_proj"))
_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_UNGATED = ("mlp.c_fc", "mlp.c_proj")
_MIXTRAL = (
    *(f"block_sparse_moe.experts.*.{last}" for last in ("w1", "w2", "w3")),
    "block_sparse_moe.gate",
)
_QWEN_MOE = (
    *(f"mlp.experts.*.{last}" for last in ("gate_proj", "up_proj", "down_proj")),
    "mlp.gate",
)
_LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
_GEMMA_NORMS = (*_LLAMA_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_GLM_NORMS = (*_LLAMA_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm")
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")

# Names of the text model in multimodal checkpoints: of EXL2 files and old releases, and of
# transformers 5. What remains is what the text model's own class calls them.
_TEXT_NAMES = (
    (r"^language_model\.", ""),
    (r"^model\.language_model\.", "model."),
)
_VISION = r"^(model\.)?(vision_tower|multi_modal_projector|visual)\."


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture's EXL2 files are laid out and map to transformers' names."""

    name: str
    """The entry of `architectures` in config.json."""
    model_class: str
    """The causal language model class of transformers that runs its text part."""
    linears: tuple[str, ...] = _ATTENTION + _GATED
    """Linear layers of one decoder layer; * stands for every expert."""
    norms: tuple[str, ...] = _LLAMA_NORMS
    """Normalizations of one decoder layer that are always there."""
    head_norms: HeadNorms = "none"
    """Whether queries and keys are normalized by head: always, with one row that all heads of a
    transformers model share, or if config.json asks for it, with a row for each head."""
    positions: bool = False
    """Whether positions are embedded."""
    renames: tuple[tuple[str, str], ...] = ()
    """Regular expression and replacement, applied in order to every tensor name."""
    text_names: tuple[tuple[str, str], ...] = ()
    """The same, for names that multimodal checkpoints of any kind give the text model."""
    text_model_type: str = ""
    """model_type the nested text_config must have; empty where only one is possible."""
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Last path component of a fused module -> those of its parts."""
    transposed: bool = False
    """Whether transformers keeps linear weights as (in, out), as GPT-2 does."""
    ignored: str = ""
    """Regular expression of stored tensors that the text model does not need."""

    def text_name(self, name: str) -> str:
        """Return a stored name without what a multimodal checkpoint puts before it."""
        return _replace(self.text_names, name)

    def target_name(self, name: str) -> str:
        """Return transformers' name of a tensor of an EXL2 file, fused parts not yet joined."""
        return _replace(self.renames, self.text_name(name))

    def fused_into(self, module: str) -> tuple[str, int] | None:
        """Return the fused module a split one belongs to and its place in it."""
        parent, _, last = module.rpartition(".")
        for target, parts in self.fused.items():
            if last in parts:
                return (f"{parent}.{target}", parts.index(last))
        return None

    def check_text_model(self, text: Mapping[str, object]) -> None:
        """Check that the nested config describes the text model this architecture runs.

        Raises:
            ModelFormatError: another model_type.
        """
        found = text.get("model_type")
        if self.text_model_type and found != self.text_model_type:
            raise ModelFormatError(
                f"the text model of {self.name} is {found!r:.40}, expected {self.text_model_type!r}"
            )

    def layer_linears(self, experts: int) -> set[str]:
        """Return the linear layers of one decoder layer, one by one."""
        return {
            pattern.replace("*", str(expert))
            for pattern in self.linears
            for expert in range(experts if "*" in pattern else 1)
        }


def _replace(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _gpt(name: str, *, transposed: bool) -> Architecture:
    return Architecture(
        name,
        name,
        linears=_ATTENTION + _UNGATED,
        norms=("ln_1", "ln_2"),
        positions=True,
        renames=(
            (r"^model\.embed_tokens\.", "transformer.wte."),
            (r"^model\.wpe\.", "transformer.wpe."),
            (r"^model\.norm\.", "transformer.ln_f."),
            (r"^model\.layers\.", "transformer.h."),
            (r"\.self_attn\.o_proj", ".attn.c_proj"),
            (r"\.self_attn\.", ".attn."),
        ),
        fused={"c_attn": _QKV},
        transposed=transposed,
    )


def _multimodal(
    name: str,
    model_class: str,
    *,
    text_model_type: str = "",
    norms: tuple[str, ...] = _LLAMA_NORMS,
    head_norms: HeadNorms = "none",
) -> Architecture:
    return Architecture(
        name,
        model_class,
        norms=norms,
        head_norms=head_norms,
        text_names=_TEXT_NAMES,
        text_model_type=text_model_type,
        ignored=_VISION,
    )


_ALL = (
    *(
        Architecture(name, name)
        for name in (
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Qwen2ForCausalLM",
            "GemmaForCausalLM",
            "GraniteForCausalLM",
        )
    ),
    Architecture("MixtralForCausalLM", "MixtralForCausalLM", linears=_ATTENTION + _MIXTRAL),
    Architecture("Qwen3ForCausalLM", "Qwen3ForCausalLM", head_norms="shared"),
    Architecture(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeForCausalLM",
        linears=_ATTENTION + _QWEN_MOE,
        head_norms="shared",
    ),
    Architecture("Gemma2ForCausalLM", "Gemma2ForCausalLM", norms=_GEMMA_NORMS),
    Architecture("Starcoder2ForCausalLM", "Starcoder2ForCausalLM", linears=_ATTENTION + _UNGATED),
    Architecture(
        "CohereForCausalLM",
        "CohereForCausalLM",
        norms=("input_layernorm",),
        head_norms="per head",
    ),
    Architecture("Cohere2ForCausalLM", "Cohere2ForCausalLM", norms=("input_layernorm",)),
    Architecture("Phi3ForCausalLM", "Phi3ForCausalLM", fused=_FUSED_QKV | _FUSED_GATE_UP),
    Architecture("Glm4ForCausalLM", "Glm4ForCausalLM", norms=_GLM_NORMS, fused=_FUSED_GATE_UP),
    _gpt("GPT2LMHeadModel", transposed=True),
    _gpt("GPTBigCodeForCausalLM", transposed=False),
    # The text part of multimodal models. Without an image the three axes of Qwen2-VL's
    # positions coincide, which makes its text model a Qwen2.
    _multimodal(
        "Gemma3ForConditionalGeneration",
        "Gemma3ForCausalLM",
        norms=_GEMMA_NORMS,
        head_norms="shared",
    ),
    *(
        _multimodal(name, "MistralForCausalLM", text_model_type="mistral")
        for name in ("Mistral3ForConditionalGeneration", "LlavaForConditionalGeneration")
    ),
    _multimodal("Qwen2VLForConditionalGeneration", "Qwen2ForCausalLM"),
    _multimodal("Qwen2_5_VLForConditionalGeneration", "Qwen2ForCausalLM"),
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
"""Every supported architecture by name: the single source of what this package can evaluate."""

_NOT_IN_TRANSFORMERS = "transformers has no model of it that runs without code of the checkpoint"
# What exllamav2 0.3.2 loads and this package refuses, and why.
REFUSED = {
    # transformers 5.23 ignores attn_config.rope_theta (500,000 in the released config) and
    # rotates with 10,000; exllamav2 does not clip queries, keys and values as clip_qkv asks.
    "DbrxForCausalLM": "transformers and exllamav2 each ignore a part of its config",
    "YiForCausalLM": _NOT_IN_TRANSFORMERS,
    "OrionForCausalLM": _NOT_IN_TRANSFORMERS,
    "MiniCPMForCausalLM": _NOT_IN_TRANSFORMERS,
    "InternLM2ForCausalLM": _NOT_IN_TRANSFORMERS,
    "IndexForCausalLM": _NOT_IN_TRANSFORMERS,
    "GemmoeForCausalLM": _NOT_IN_TRANSFORMERS,
}

# Buffers that old checkpoints carry and every loader recomputes.
BUFFERS = re.compile(r"(\.rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")


def find_architecture(name: str) -> Architecture:
    """Look up an architecture.

    Raises:
        ModelFormatError: unknown; lists the known ones.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        reason = f" ({REFUSED[name]})" if name in REFUSED else ""
        raise ModelFormatError(
            f"architecture {name!r:.80} is not supported{reason}, expected one of "
            f"{', '.join(ARCHITECTURES)}"
        ) from None


_COHERE_LOGIT_SCALE = 0.0625  # of transformers' config classes, where config.json says nothing


def folded_factor(architecture: str, module: str, text: Mapping[str, Any]) -> float:
    """Return the factor exllamav2 multiplies into the scales of a quantized layer, mostly 1.

    The scale of the logits for a head, and of the residual branch for the last layer of one
    (`ext.py`: prescale). transformers multiplies activations instead.

    Args:
        architecture: Entry of `architectures`.
        module: Name of the layer as transformers' text model has it.
        text: config.json of the text model.
    """
    if architecture in ("CohereForCausalLM", "Cohere2ForCausalLM") and module == "lm_head":
        return float(text.get("logit_scale") or _COHERE_LOGIT_SCALE)
    if architecture == "GraniteForCausalLM":
        if module == "lm_head":
            return 1.0 / float(text.get("logits_scaling") or 1.0)
        if module.endswith(("self_attn.o_proj", "mlp.down_proj")):
            return float(text.get("residual_multiplier") or 1.0)
    return 1.0


def linear_size(module: str, sizes: Sizes) -> tuple[int, int] | None:
    """Return (out_features, in_features) a linear layer must have, None for an unknown one."""
    attention = sizes.heads * sizes.head_dim
    key_value = sizes.kv_heads * sizes.head_dim
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    last = module.rpartition(".")[2]
    in_mlp = ".mlp." in module
    table = {
        "q_proj": (attention, hidden),
        "k_proj": (key_value, hidden),
        "v_proj": (key_value, hidden),
        "o_proj": (hidden, attention),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
        "w1": (inner, hidden),
        "w2": (hidden, inner),
        "w3": (inner, hidden),
        "gate": (sizes.experts, hidden),
        "lm_head": (sizes.vocab_size, hidden),
        "c_fc": (inner, hidden),
        "c_proj": (hidden, inner if in_mlp else attention),
    }
    return table.get(last)
