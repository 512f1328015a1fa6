"""What a task may know of the model it will measure: tokenizer, config and context.

The harness does not hand the model to a task, but it merges the model's arguments into the task's
metadata. Loads no weights.
"""

# transformers' loaders are untyped:
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval_exl2.checkpoint.locate import locate
from lm_eval_exl2.errors import OptionError

# In the words of hf and exl2, and of vllm and sglang.
_CONTEXT_ARGUMENTS = ("max_length", "max_model_len", "context_length")
_CONTEXT_ATTRIBUTES = ("n_positions", "max_position_embeddings", "n_ctx")


class ModelFiles(NamedTuple):
    """Of the model that `--model_args` names."""

    tokenizer: Any
    config: dict[str, Any]
    """config.json; empty where only a tokenizer is known."""
    context: int | None
    """Tokens there are positions for; None if nothing says so."""


def load_model_files(arguments: Mapping[str, Any]) -> ModelFiles:
    """Load what belongs to a model.

    Args:
        arguments: A task's metadata: `pretrained`, and `tokenizer`, `revision`, `subfolder`,
            `add_bos_token`, `trust_remote_code`, `max_length` as the adapters understand them.

    Raises:
        OptionError: No model is named, or its files cannot be loaded.
    """
    pretrained, tokenizer = arguments.get("pretrained"), arguments.get("tokenizer")
    if not isinstance(pretrained, str) and not tokenizer:
        raise OptionError(
            "this task tokenizes its text itself and found no `pretrained` among the model's "
            'arguments; name the tokenizer: --metadata \'{"tokenizer": "..."}\''
        )
    # Groups of many tasks ask for the same files.
    files = _load(
        pretrained if isinstance(pretrained, str) else None,
        tokenizer,
        str(arguments.get("revision") or "main"),
        str(arguments.get("subfolder") or ""),
        arguments.get("add_bos_token"),
        bool(arguments.get("trust_remote_code")),
    )
    return files._replace(context=_asked_context(arguments) or files.context)


def _asked_context(arguments: Mapping[str, Any]) -> int | None:
    for name in _CONTEXT_ARGUMENTS:
        if arguments.get(name) is not None:
            try:
                return int(arguments[name])
            except ValueError as error:
                raise OptionError(f"{name}={arguments[name]!r}, expected a whole number") from error
    return None


@cache
def _load(
    pretrained: str | None,
    tokenizer: Any,
    revision: str,
    subfolder: str,
    add_bos_token: bool | None,
    trust_remote_code: bool,
) -> ModelFiles:
    shared: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    named = {"revision": revision} | ({"subfolder": subfolder} if subfolder else {})
    bos = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    source = pretrained
    if pretrained is not None and _is_here(pretrained):
        source, of_source = str(locate(pretrained, subfolder=subfolder).directory), {}
    else:
        of_source = named
    chosen, of_chosen = (tokenizer, named) if tokenizer else (source, of_source)
    loaded = _load_tokenizer(chosen, shared | bos | of_chosen)
    if source is not None:
        return ModelFiles(loaded, *_load_config(source, shared | of_source))
    try:  # a tokenizer alone: mostly it lies beside the model's config
        return ModelFiles(loaded, *_load_config(tokenizer, shared | named))
    except OptionError:
        return ModelFiles(loaded, {}, None)


def _is_here(pretrained: str) -> bool:
    return pretrained.partition("-")[0] == "demo" or Path(pretrained).expanduser().is_dir()


def _load_tokenizer(source: Any, arguments: dict[str, Any]) -> Any:
    if not isinstance(source, str):
        return source
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **arguments)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise OptionError(f"no usable tokenizer in {source}: {_first_line(error)}") from error


def _load_config(source: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    from transformers import AutoConfig, PretrainedConfig

    if not isinstance(source, str):
        raise OptionError("a tokenizer object has no config.json")
    try:
        written, _ = PretrainedConfig.get_config_dict(source, **arguments)
        config: Any = AutoConfig.from_pretrained(source, **arguments)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise OptionError(f"no usable config.json in {source}: {_first_line(error)}") from error
    config = getattr(config, "text_config", None) or config
    found = (getattr(config, name, None) for name in _CONTEXT_ATTRIBUTES)
    return written, next((int(value) for value in found if value is not None), None)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
