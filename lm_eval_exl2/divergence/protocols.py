"""Three protocols of published divergences: which windows, which positions, which direction.

Pure: knows neither tokenizers nor models. Sources: exllamav3 `eval/qbench` (`data.py`,
`measure.py`), llama.cpp `tools/perplexity/perplexity.cpp` (`perplexity`, `kl_divergence`), and
exllamav2 0.3.2 `model_diff.py` with `conversion/tokenize.py`. What differs here, for all three:
padding of the vocabulary is left out, and nothing is rounded or clamped (qbench keeps its reference
in float16 and logits above -200, llama.cpp 16 bits of log-probabilities and none below -16).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How divergence is measured along a text."""

    name: str
    window: int
    """Tokens per window, unless another number is asked for. Windows are side by side."""
    rows: int | None = None
    """Windows that are taken, unless another number is asked for; None for all."""
    needs_rows: bool = False
    """Whether a text too short for all rows is an error."""
    text: Literal["rows joined", "raw", "row by row"]
    """What is tokenized: the rows that are not empty, joined by blank lines; the file as it is; or
    each row by itself."""
    has_bos: bool = False
    """Whether BOS replaces each window's first token, where the tokenizer begins texts with it."""
    from_middle: bool = False
    """Whether a window is only measured from its middle on, to the last position with a target."""
    keeps_last: bool = True
    """Whether a window counts that ends exactly where the text ends."""
    least_windows: int = 1
    kl: Literal["KL(baseline || candidate)", "KL(candidate || baseline + 1e-10)"] = (
        "KL(baseline || candidate)"
    )
    top: int = 1
    """Most likely tokens whose order is compared."""

    def positions(self, window: int) -> range:
        """Return the positions of a window whose distributions are compared."""
        return range(window // 2, window - 1) if self.from_middle else range(window)

    def starts(self, tokens: int, window: int, rows: int | None) -> range:
        """Cut a text.

        Args:
            tokens: Of the text.
            window: Tokens per window.
            rows: Most windows; None for the protocol's number.

        Returns:
            Where windows start; a rest that fills none is dropped.

        Raises:
            OptionError: the text is too short.
        """
        last = tokens - window + (1 if self.keeps_last else 0)
        starts = range(0, max(0, last), window)
        most = rows or self.rows
        least = most or 1 if self.needs_rows else self.least_windows
        if len(starts) < least:
            raise OptionError(
                f"the text has {tokens} tokens, which is {len(starts)} windows of {window}; "
                f"protocol {self.name} takes at least {least}: lower --window or --rows, or give "
                "a longer text"
            )
        return starts[:most]


PROTOCOLS: Final[Mapping[str, Protocol]] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="qbench", window=2048, text="rows joined", keeps_last=False),
        Protocol(
            name="llama.cpp",
            window=512,
            text="raw",
            has_bos=True,
            from_middle=True,
            least_windows=2,
        ),
        Protocol(
            name="model_diff",
            window=2048,
            rows=20,
            needs_rows=True,
            text="row by row",
            kl="KL(candidate || baseline + 1e-10)",
            top=5,
        ),
    )
}
