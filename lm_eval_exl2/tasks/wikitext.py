"""WikiText-2 perplexity by the protocols of the quantization papers, for any `--model`.

Which tokens stand in which window is `windows.py`'s business; here are the text, the tokenizer, the
requests and what is reported. The stock `wikitext` task measures something else: words, documents,
detokenized text.
"""

# The harness ships without types:
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks import windows
from lm_eval_exl2.tasks.model_files import ModelFiles, load_model_files
from lm_eval_exl2.tasks.token_requests import TokenTask, read_logprob, request_tokens
from lm_eval_exl2.tasks.windows import Protocol, Sizes, Window

Document = dict[str, Any]

# Those that exllamav2 0.3.2 marks `requires_bos`.
_NEEDS_BOS = {
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma3ForCausalLM",  # the same model without its vision part
    "GemmoeForCausalLM",
    "CohereForCausalLM",
    "Cohere2ForCausalLM",
}


class Rows(NamedTuple):
    """Windows of token ids and how they came about."""

    ids: list[list[int]]
    cuts: list[Window]
    tokens: int
    """Of the whole text."""
    bos: str
    """`none`, `start of text` or `every window`."""


class WikitextPerplexity(TokenTask):
    """A task whose documents are windows of one text.

    Of its `metadata`, which `--metadata` can change: `protocol` (see `windows.PROTOCOLS`),
    `window`, `stride`, `rows`, `empty_lines` ("keep", or "drop" as exllamav3 does since May 2026),
    and `dataset_file` (plain text, or .jsonl or .parquet with a field `text`).
    """

    def __init__(self, *, config: dict[str, Any]) -> None:
        """As the harness calls it; tokenizes the text.

        Raises:
            OptionError: An unknown protocol, a window that does not fit the model, too little text.
        """
        self._rows = Rows([], [], 0, "none")
        super().__init__(config=config)
        overlaps = windows.count_overlaps(self._rows.cuts)
        self._aggregation_list: dict[str, Callable[[list[Any]], Any]] = {
            "perplexity": windows.perplexity,
            "perplexity_stderr": partial(_stderr, overlaps=overlaps),
            "targets": sum,
        }
        self._higher_is_better: dict[str, bool] = {"perplexity": False, "perplexity_stderr": False}

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **arguments: Any) -> None:
        """Loads the text and cuts it into the documents of split `test`."""
        from datasets import Dataset

        metadata = self.config.metadata
        file = metadata.get("dataset_file")
        if file is None:
            super().download(dataset_kwargs, **arguments)
            lines = list(self.dataset[self.config.test_split]["text"])
        else:
            lines = read_lines(Path(file))
        lines = _choose_lines(lines, metadata.get("empty_lines", "keep"))
        name = metadata.get("protocol", "gptq")
        protocol = windows.find_protocol(name)
        model = load_model_files(metadata)
        sizes = windows.choose_sizes(
            protocol,
            context=model.context,
            window=metadata.get("window"),
            stride=metadata.get("stride"),
            rows=metadata.get("rows"),
        )
        self._rows = cut(lines, model, protocol, sizes)
        self.dataset = {self.config.test_split: Dataset.from_list(self._documents(model.tokenizer))}
        source = str(file or " ".join(filter(None, (self.DATASET_PATH, self.DATASET_NAME))))
        metadata["perplexity"] = {
            "protocol": name,
            "dataset": source or "packaged",
            "text_sha256": hashlib.sha256("\n\n".join(lines).encode()).hexdigest(),
            "empty_lines": metadata.get("empty_lines", "keep"),
            "tokens": self._rows.tokens,
            "window": sizes.window,
            "stride": sizes.stride,
            "windows_available": len(self._rows.cuts),
            "targets_available": sum(window.targets for window in self._rows.cuts),
            "bos": self._rows.bos,
        }
        # What the number means stands beside it in the table.
        self.config.task_alias = f"{self.config.task} ({name}, window {sizes.window})"

    def _documents(self, tokenizer: Any) -> list[Document]:
        return [
            {
                "window": number,
                "start": window.start,
                "targets": window.targets,
                "text": tokenizer.decode(ids),
                # Two models are compared window by window only if they see the same tokens.
                "ids_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
            }
            for number, (ids, window) in enumerate(
                zip(self._rows.ids, self._rows.cuts, strict=True)
            )
        ]

    def construct_requests(self, doc: Document, ctx: Any, **arguments: Any) -> list[Instance]:
        """One request: the window's last tokens, given those before."""
        ids, targets = self._rows.ids[doc["window"]], doc["targets"]
        return [
            request_tokens(
                doc,
                ids[:-targets],
                ids[-targets:],
                text=doc["text"],
                index=0,
                metadata=arguments["metadata"],
            )
        ]

    def process_results(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        """Loss and number of targets of a window.

        Raises:
            ScoreError: The model gave no finite log-likelihood.
        """
        if self._bypassed:
            return {"bypass": None}
        item = -read_logprob(results[0], f"window {doc['window']}"), doc["targets"]
        # The harness knows no standard error for this metric; the second name is where it puts one.
        placed = *item, doc["start"]
        return {"perplexity": item, "perplexity_stderr": placed, "targets": doc["targets"]}


def _stderr(items: list[tuple[float, int, int]], *, overlaps: int) -> float | str:
    """As the harness writes it where one window says nothing of the spread."""
    found = windows.perplexity_stderr(items, overlaps=overlaps)
    return "N/A" if math.isnan(found) else found


def read_lines(file: Path) -> list[str]:
    """The rows of a text as the data set on the hub has them: one per line, with its line end.

    Args:
        file: Plain text as in `wiki.test.raw`, where a line of blanks becomes an empty row; or
            .jsonl or .parquet, whose field `text` is taken as it is.

    Raises:
        OptionError: There is no such file, or it has no field `text`.
    """
    try:
        if file.suffix == ".parquet":
            import pandas

            return _check_texts(pandas.read_parquet(file, columns=["text"])["text"].tolist())
        if file.suffix in (".json", ".gz", ".zip"):
            raise ValueError(f"{file.suffix} is not read")
        # Not splitlines, here and below: it also splits at characters that are part of a line.
        content = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if file.suffix == ".jsonl":
            return _check_texts([json.loads(line)["text"] for line in content if line])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"dataset_file={file} cannot be read ({error!r}); expected plain text, or .jsonl or "
            ".parquet with a field `text`"
        ) from error
    return [line + "\n" if line.strip() else "" for line in content]


def _check_texts(texts: list[Any]) -> list[str]:
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a `text` is no text")
    return texts


def _choose_lines(lines: list[str], empty_lines: object) -> list[str]:
    if empty_lines not in ("keep", "drop"):
        raise OptionError(f"empty_lines={empty_lines!r}, expected 'keep' or 'drop'")
    return lines if empty_lines == "keep" else [line for line in lines if line.strip()]


def cut(lines: list[str], model: ModelFiles, protocol: Protocol, sizes: Sizes) -> Rows:
    """Tokenizes a text and cuts it.

    Raises:
        OptionError: The text is too short.
    """
    ids = _tokenize(lines, model.tokenizer, protocol)
    cuts = protocol.cut(len(ids), sizes)
    missing = protocol.rows_required and len(cuts) < (sizes.rows or 0)
    if missing or not cuts:
        raise OptionError(
            f"the text has {len(ids)} tokens, which is {len(cuts)} windows of {sizes.window}; "
            f"expected {sizes.rows if missing else 'at least one'}: lower window or rows, or give "
            "a longer text"
        )
    rows = [ids[start:end] for start, end, _ in cuts]
    bos = model.tokenizer.bos_token_id
    if protocol.bos == "architecture" and _needs_bos(model):
        return Rows([[bos, *row[:-1]] for row in rows], cuts, len(ids), "every window")
    at_start = protocol.bos == "tokenizer" and bos is not None and ids[0] == bos
    return Rows(rows, cuts, len(ids), "start of text" if at_start else "none")


def _needs_bos(model: ModelFiles) -> bool:
    architectures: list[str] = model.config.get("architectures") or []
    if not architectures:
        raise OptionError(
            "this protocol puts BOS where the architecture needs it, but there is no config.json "
            "that names one; give a `tokenizer` or `pretrained` that belongs to the model"
        )
    return not _NEEDS_BOS.isdisjoint(architectures)


def _tokenize(lines: list[str], tokenizer: Any, protocol: Protocol) -> list[int]:
    arguments: dict[str, Any] = {} if protocol.bos == "tokenizer" else {"add_special_tokens": False}
    if protocol.tokenized == "once":
        # verbose: the text is longer than any window, which is no reason to warn.
        return tokenizer("\n\n".join(lines), verbose=False, **arguments)["input_ids"]
    rows = tokenizer(lines, verbose=False, **arguments)["input_ids"]
    return [token for row in rows for token in row]
