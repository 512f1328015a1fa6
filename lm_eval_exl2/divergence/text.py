"""A text -> windows of token ids that both models read alike.

Loads texts and asks tokenizers; loads no model.
"""

# transformers' tokenizers are untyped:
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval_exl2 import demo
from lm_eval_exl2.errors import ComparisonError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_exl2.divergence.protocols import Protocol

_DEMO = Path(demo.__file__).parent / "data" / "stories_test.jsonl"
_WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")


class Text(NamedTuple):
    """A text as rows of a data set and as one string."""

    name: str
    rows: Sequence[str]
    raw: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """What is forwarded."""

    ids: Sequence[Sequence[int]]
    """Token ids of each window; all have the same length."""
    positions: range
    """Of each window, where distributions are compared."""
    tokens: int
    """Of the whole text."""
    bos: str
    """`none` or `every window`."""
    text: str
    text_sha256: str
    ids_sha256: str
    """Of all windows: runs with equal digests saw the same tokens."""


def load_text(name: str) -> Text:
    """Load a text.

    Args:
        name: `wikitext2` (its test split, from the hub), `demo` (stories that ship with the
            package), or a file: plain text, or .jsonl or .parquet with a field `text`.

    Raises:
        OptionError: it cannot be had.
    """
    if name == "wikitext2":
        rows = _download_wikitext()
        # The hub's rows are the lines of wiki.test.raw, where an empty one holds a blank.
        return Text(" ".join(_WIKITEXT), rows, _without_end("".join(r or " \n" for r in rows)))
    from lm_eval_exl2.tasks.wikitext import read_lines

    path = _DEMO if name == "demo" else Path(name)
    try:
        rows = read_lines(path)
    except OptionError as error:
        raise OptionError(str(error).replace("dataset_file=", "--text ", 1)) from error
    if path.suffix in (".jsonl", ".parquet"):
        raw = "\n\n".join(rows)
    else:
        raw = _without_end(path.read_text(encoding="utf-8"))
    return Text("demo" if name == "demo" else path.name, rows, raw)


def _without_end(text: str) -> str:
    """Drop the last line end, as llama.cpp does with a file."""
    return text.removesuffix("\n")


def _download_wikitext() -> list[str]:
    import datasets

    loader: Any = datasets
    try:
        return list(loader.load_dataset(*_WIKITEXT, split="test")["text"])
    except (OSError, ValueError, RuntimeError, loader.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OptionError(
            f"WikiText-2 cannot be had from the hub ({reason}); give --text FILE, for example "
            "wiki.test.raw, or --text demo"
        ) from error


def real_vocabulary(tokenizer: Any) -> int:
    """Return how many token ids the tokenizer knows of: what lies beyond is padding."""
    return max(tokenizer.get_vocab().values()) + 1


def check_tokenizers(names: Sequence[str], tokenizers: Sequence[Any], text: Text) -> None:
    """Refuse to compare models that do not read alike.

    Args:
        names: Of the models, the baseline's first.
        tokenizers: Of each.
        text: What will be read.

    Raises:
        ComparisonError: vocabularies or the ids of the text differ.
    """
    expected, sample = tokenizers[0].get_vocab(), _ids(tokenizers[0], text.raw, special=True)
    for name, tokenizer in zip(names[1:], tokenizers[1:], strict=True):
        found = tokenizer.get_vocab()
        if found != expected:
            differing = len(found.items() ^ expected.items())
            raise ComparisonError(
                f"{name} and {names[0]} have different vocabularies ({len(found)} and "
                f"{len(expected)} tokens, {differing} entries differ); distributions over "
                "different tokens cannot be compared"
            )
        if _ids(tokenizer, text.raw, special=True) != sample:
            raise ComparisonError(
                f"{name} and {names[0]} turn the same text into different token ids; give both "
                "the same tokenizer files"
            )


def cut_windows(
    text: Text, tokenizer: Any, protocol: Protocol, *, window: int | None, rows: int | None
) -> Windows:
    """Tokenize a text and cut it by a protocol.

    Args:
        text: What is read.
        tokenizer: Of the baseline; see `check_tokenizers`.
        protocol: How.
        window: Tokens per window; None for the protocol's.
        rows: Most windows; None for the protocol's.

    Raises:
        OptionError: the text is too short.
    """
    size = window or protocol.window
    ids = _tokenize(text, tokenizer, protocol)
    bos: int | None = tokenizer.bos_token_id if protocol.has_bos else None
    bos = bos if bos is not None and ids[:1] == [bos] else None
    cut = [ids[start : start + size] for start in protocol.starts(len(ids), size, rows)]
    cut = cut if bos is None else [[bos, *row[1:]] for row in cut]
    return Windows(
        ids=cut,
        positions=protocol.positions(size),
        tokens=len(ids),
        bos="none" if bos is None else "every window",
        text=text.name,
        text_sha256=hashlib.sha256(text.raw.encode()).hexdigest(),
        ids_sha256=hashlib.sha256(json.dumps(cut).encode()).hexdigest(),
    )


def _tokenize(text: Text, tokenizer: Any, protocol: Protocol) -> list[int]:
    if protocol.text == "raw":
        return _ids(tokenizer, text.raw, special=True)
    if protocol.text == "rows joined":
        joined = "\n\n".join(row for row in text.rows if row.strip())
        return _ids(tokenizer, joined, special=False)
    return [token for row in text.rows for token in _ids(tokenizer, row, special=False)]


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    # verbose: the text is longer than any window, which is no reason to warn.
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
