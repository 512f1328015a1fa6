"""Model arguments -> Options: every name is known, means what it means for `hf`, or is refused.

The words are those of the harness's `hf` and `vllm` models. Values arrive as whatever the
harness made of the command line (strings, numbers, booleans). Nothing is loaded here; the table
of options in the README is generated from this module.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval_exl2 import option_values as read
from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)


# `field` under another name: what it returns is a field, whatever the type checker is told.
def _option(default: Any, parse: Callable[[str, Any], Any], text: str) -> Any:
    return field(default=default, metadata={"parse": parse, "text": text})


# -- the options ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """All settings of one model, checked."""

    pretrained: str = _option(
        "",
        read.text,
        "checkpoint directory, hub id, or `demo`, `demo-fp16`; EXL2, 4-bit GPTQ or fp16",
    )
    revision: str | float | None = _option(
        "main", read.revision, "branch, tag or commit on the hub; quote branches such as `'6_5'`"
    )
    subfolder: str = _option("", lambda n, v: read.text(n, v) or "", "folder inside the repository")
    tokenizer: Any = _option(None, read.tokenizer, "another tokenizer than the checkpoint's own")
    engine: str = _option(
        "auto",
        read.choice("auto", "torch", "exllamav2"),
        "what computes; `auto` takes the best here",
    )
    device: str | None = _option(
        None, read.text, "`cpu`, `mps`, `cuda`, `cuda:N`; falls back as `hf` does"
    )
    dtype: str = _option(
        "auto", read.dtype, "`float32`, `bfloat16`, `float16`; auto: float32 on CPU, else float16"
    )
    weight_memory: str = _option(
        "decoded",
        read.choice("decoded", "packed"),
        "`decoded`: decode weights at load; `packed`: keep them packed and decode at each use",
    )
    batch_size: int | None = _option(
        None,
        read.batch_size,
        "1 and `auto` mean the token budget; N > 1 caps sequences per forward",
    )
    max_batch_size: int | None = _option(None, read.count, "caps sequences per forward with `auto`")
    max_batch_tokens: int | None = _option(
        None, read.count, "token budget: most tokens per forward; engine torch 2048, else what fits"
    )
    max_length: int | None = _option(
        None, read.count, "context window in tokens; also `max_model_len`, `max_seq_len`"
    )
    max_gen_toks: int = _option(
        256, lambda n, v: read.count(n, v) or 256, "tokens to generate where the task does not say"
    )
    truncation: bool = _option(
        False, lambda n, v: bool(read.flag(n, v)), "let the tokenizer truncate prompts, as for `hf`"
    )
    truncation_side: str = _option(
        "left", read.choice("left", "middle", "right"), "which end of a long prompt is cut"
    )
    add_bos_token: bool | None = _option(
        None, read.flag, "prepend BOS; None: as the tokenizer does by default"
    )
    prefix_token_id: int | None = _option(
        None, read.whole, "token that stands before an empty context; default BOS, else EOS"
    )
    chat_template_args: dict[str, Any] = _option(
        None, read.mapping, "extra template arguments, JSON"
    )
    enable_thinking: bool | None = _option(
        None, read.flag, "passed to the chat template; True needs `think_end_token`"
    )
    think_end_token: str | int | None = _option(
        None, read.text_or_id, "end of reasoning; what precedes it is dropped before stops apply"
    )
    skip_special_tokens: bool = _option(
        True,
        lambda n, v: read.flag(n, v) is not False,
        "leave special tokens out of generated text",
    )
    rope_scale: float | None = _option(
        None, read.positive, "divide positions by this instead of the checkpoint's linear scaling"
    )
    rope_alpha: float | None = _option(
        None, read.positive, "stretch the base of the position frequencies (NTK)"
    )
    gpu_split: str | tuple[float, ...] | None = _option(
        None, read.gpu_split, "exllamav2: GiB of weights per card, `[20,24]`, or `auto`"
    )
    cache_mode: str = _option(
        "FP16",
        lambda n, v: read.choice("fp16", "q8", "q6", "q4")(n, v).upper(),
        "exllamav2: keys and values as `FP16`, or rounded as `Q8`, `Q6`, `Q4`",
    )
    cache_size: int | None = _option(
        None, read.count, "exllamav2: tokens in the pages of the generator; default what fits"
    )
    draft_model: str | None = _option(
        None, read.text, "exllamav2 with flash-attn: checkpoint that proposes tokens"
    )
    ngram_draft: bool = _option(
        False, lambda n, v: bool(read.flag(n, v)), "exllamav2 with flash-attn: propose repetitions"
    )
    no_flash_attn: bool = _option(
        False, lambda n, v: bool(read.flag(n, v)), "exllamav2: do not use flash-attn"
    )
    no_xformers: bool = _option(
        False, lambda n, v: bool(read.flag(n, v)), "exllamav2: do not use xformers"
    )
    lora: str | None = _option(None, read.text, "exllamav2: folder of an adapter")
    data_parallel_size: int = _option(
        1,
        lambda n, v: read.count(n, v) or 1,
        "replicas on Ray, one per card or share of the CPU; a cluster if RAY_ADDRESS names one",
    )
    seed: int = _option(1234, lambda n, v: read.whole(n, v) or 0, "seed of sampled generations")
    trust_remote_code: bool = _option(
        False, lambda n, v: bool(read.flag(n, v)), "let tokenizer and config code of the hub run"
    )
    disable_tqdm: bool = _option(False, lambda n, v: bool(read.flag(n, v)), "show no progress bars")


ALIASES = {"model": "pretrained", "max_model_len": "max_length", "max_seq_len": "max_length"}


class Foreign(NamedTuple):
    """An argument of `hf` that this model does not act on."""

    harmless: tuple[Any, ...]
    """Values that ask for nothing."""
    reason: str


_NOTHING = (None, False, "", "None", "False")
# Accepted with one log line: no score can change.
IGNORED = {
    "softmax_dtype": "log-softmax is always float32",
    "mixed_precision_dtype": "computation runs in `dtype` throughout",
    "logits_cache": "shared prefixes are always computed once",
    "use_fast_tokenizer": "the tokenizer library picks the implementation",
    "offload_folder": "nothing is offloaded to disk",
}
REFUSED = {
    "backend": Foreign((None, "default", "causal"), "EXL2 models are causal; leave it out"),
    "parallelize": Foreign(_NOTHING, "splitting over cards is `gpu_split` of engine=exllamav2"),
    "max_memory_per_gpu": Foreign(_NOTHING, "use `gpu_split` of engine=exllamav2"),
    "max_cpu_memory": Foreign(_NOTHING, "use weight_memory=packed to save memory"),
    "tp_plan": Foreign(_NOTHING, "tensor parallelism is not supported; use a single device"),
    "tensor_parallel_size": Foreign(
        (None, 1), "exllamav2's tensor parallelism has not passed our tests; use `gpu_split`"
    ),
    "peft": Foreign(_NOTHING, "use `lora` of engine=exllamav2, or merge it before quantizing"),
    "delta": Foreign(_NOTHING, "delta weights are not supported; merge them before quantizing"),
    "autogptq": Foreign(_NOTHING, "4-bit GPTQ directories load by themselves; leave it out"),
    "gptqmodel": Foreign(_NOTHING, "4-bit GPTQ directories load by themselves; leave it out"),
    "gguf_file": Foreign(_NOTHING, "GGUF is not supported; use --model hf for it"),
}


def parse_options(arguments: Mapping[str, Any]) -> Options:
    """Check model arguments.

    Args:
        arguments: Names and values as the harness passes them.

    Raises:
        OptionError: an unknown name (the nearest known one is named), a value of the wrong
            type, a missing `pretrained`, or a setting this version does not have.
    """
    known = {option.name: option for option in fields(Options)}
    values: dict[str, Any] = {}
    for given, value in arguments.items():
        name = ALIASES.get(given, given)
        if name in known:
            if name in values and not read.is_none(value):
                raise OptionError(f"{given} and {name} name the same setting; give one of them")
            if not read.is_none(value) or name not in values:
                values[name] = known[name].metadata["parse"](given, value)
        else:
            _check_foreign(given, value, (*known, *ALIASES))
    chosen: dict[str, Any] = {n: v for n, v in values.items() if v is not None or known[n].default}
    options = Options(**chosen)
    _check_combinations(options)
    return options


def _check_foreign(name: str, value: Any, known: tuple[str, ...]) -> None:
    if name in IGNORED:
        if value not in _NOTHING:
            logger.info("%s=%s has no effect: %s", name, value, IGNORED[name])
        return
    if name in REFUSED:
        if value not in REFUSED[name].harmless:
            raise OptionError(f"{name}={value!r} is not supported: {REFUSED[name].reason}")
        return
    names = sorted({*known, *IGNORED, *REFUSED})
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise OptionError(f"unknown model argument {name!r}{hint} Known: {', '.join(sorted(known))}")


def _check_combinations(options: Options) -> None:
    if not options.pretrained:
        raise OptionError("pretrained is missing: --model_args pretrained=DIRECTORY_OR_HUB_ID")
    if options.draft_model is not None and options.ngram_draft:
        raise OptionError("draft_model and ngram_draft propose the same tokens; give one of them")
    if options.data_parallel_size > 1:
        _check_replicas(options)
    if options.enable_thinking and options.think_end_token is None:
        raise OptionError("enable_thinking=True needs think_end_token, the end of the reasoning")


def _check_replicas(options: Options) -> None:
    """Check that every replica can be left to find its own cards."""
    if options.gpu_split == "auto":
        raise OptionError(
            "data_parallel_size with gpu_split=auto leaves open how many cards a replica takes; "
            "give GiB per card, such as gpu_split=[20,24]"
        )
    if (options.device or "cuda").removeprefix("cuda") not in ("", ":0", "cpu", "mps"):
        raise OptionError(
            f"device={options.device} names one card, but data_parallel_size="
            f"{options.data_parallel_size} takes a card per replica; leave device out"
        )
