"""Token ids -> windows with what each of them scores: the protocols behind published perplexities.

Pure: knows neither tokenizers nor models. Each function below is one protocol's rule for cutting;
`PROTOCOLS` holds their usual sizes. Sources: GPTQ (Frantar et al. 2022, `datautils.py` and
`opt_eval`), AWQ's `entry.py`; turboderp's exllamav3 `eval/compare_q.py` (removed in July 2026) and
exllamav2 0.3.2 `test_inference.py` (`-ed`, `-sp wiki2`); Hugging Face's "Perplexity of fixed-length
models" for `sliding`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lm_eval_exl2.compare.statistics import sum_of_windows
from lm_eval_exl2.errors import OptionError


class Window(NamedTuple):
    """A stretch of the text that is forwarded by itself; its last tokens are scored."""

    start: int
    """Position of its first token in the text."""
    end: int
    """Position behind its last token."""
    targets: int
    """How many of its last tokens are scored; those before are only conditioned on."""


class Sizes(NamedTuple):
    """Tokens per window, tokens from one window's start to the next one's, most windows."""

    window: int
    stride: int
    rows: int | None


def cut_disjoint(tokens: int, sizes: Sizes) -> list[Window]:
    """Windows side by side; a tail that fills none is dropped. First tokens are not scored."""
    starts = range(0, tokens - sizes.window + 1, sizes.window)[: sizes.rows]
    return [Window(start, start + sizes.window, sizes.window - 1) for start in starts]


def cut_chart(tokens: int, sizes: Sizes) -> list[Window]:
    """Overlapping windows that are scored in full, so most tokens count several times.

    As in exllamav3, a window that ends exactly with the text is not taken.
    """
    starts = range(0, tokens - sizes.window, sizes.stride)[: sizes.rows]
    return [Window(start, start + sizes.window, sizes.window - 1) for start in starts]


def cut_strided(tokens: int, sizes: Sizes) -> list[Window]:
    """The first window in full, then the last `stride` tokens of each; an unfilled tail is dropped.

    exllamav2 cuts logits that are one shorter than the window, so a later window scores exactly
    `stride` targets.
    """
    starts = range(0, tokens - sizes.window + 1, sizes.stride)[: sizes.rows]
    return [
        Window(start, start + sizes.window, sizes.stride if start else sizes.window - 1)
        for start in starts
    ]


def cut_sliding(tokens: int, sizes: Sizes) -> list[Window]:
    """Every token but the first is scored exactly once, with up to a window of context."""
    windows: list[Window] = []
    scored = 1  # nothing stands before the first token
    for start in range(0, tokens, sizes.stride)[: sizes.rows]:
        end = min(start + sizes.window, tokens)
        if end > scored:
            windows.append(Window(start, end, end - scored))
        scored = end
        if end == tokens:
            break
    return windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a perplexity is measured."""

    cut: Callable[[int, Sizes], list[Window]]
    """From the number of tokens to windows."""
    window: int | None = 2048
    """Tokens per window; None: all that the model has positions for."""
    stride: int | None = None
    """Tokens between starts; None: the window."""
    rows: int | None = None
    """Most windows; None: all."""
    rows_required: bool = False
    """Whether a text too short for all rows is an error."""
    tokenized: Literal["once", "by row"] = "once"
    """The whole text at once, or the data set's rows one by one and joined as tokens."""
    bos: Literal["tokenizer", "none", "architecture"] = "tokenizer"
    """Where BOS stands: where the tokenizer puts it (once, in front of the text), nowhere, or in
    front of every window of an architecture that needs it."""


PROTOCOLS = {
    "gptq": Protocol(cut=cut_disjoint),
    "exllamav3-chart": Protocol(cut=cut_chart, stride=512, rows=20),
    "exllamav2-ed": Protocol(
        cut=cut_disjoint, rows=128, rows_required=True, tokenized="by row", bos="architecture"
    ),
    "exllamav2-sp": Protocol(cut=cut_strided, window=None, stride=512, bos="none"),
    "sliding": Protocol(cut=cut_sliding, stride=512),
}


def find_protocol(name: object) -> Protocol:
    """The protocol of that name.

    Raises:
        OptionError: There is none.
    """
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise OptionError(f"unknown protocol {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def choose_sizes(
    protocol: Protocol,
    *,
    context: int | None,
    window: object = None,
    stride: object = None,
    rows: object = None,
) -> Sizes:
    """The sizes asked for, else the protocol's.

    Args:
        protocol: Gives what is not asked for.
        context: Tokens that the model has positions for; None: unknown.
        window: Tokens per window.
        stride: Tokens between starts, for protocols whose windows overlap.
        rows: Most windows.

    Raises:
        OptionError: A size is no positive integer, the window does not fit the model, or the
            stride leaves a first token without context.
    """
    chosen = _as_size("window", window, protocol.window or context, least=2)
    if chosen is None:
        raise OptionError("this protocol takes the model's context as window, which is not known")
    if context is not None and chosen > context:
        raise OptionError(
            f"window={chosen} is longer than the model's context of {context} tokens; text is "
            "never truncated here, choose a shorter window"
        )
    overlapping = protocol.stride is not None
    if stride is not None and not overlapping:
        raise OptionError("this protocol's windows do not overlap; leave stride out")
    step = _as_size("stride", stride, protocol.stride, least=1) or chosen
    if overlapping and step >= chosen:
        raise OptionError(
            f"stride={step} must be smaller than window={chosen}, or tokens have no context"
        )
    return Sizes(chosen, step, _as_size("rows", rows, protocol.rows, least=1))


def _as_size(name: str, given: object, default: int | None, *, least: int) -> int | None:
    if given is None:
        return default
    if not isinstance(given, int) or isinstance(given, bool) or given < least:
        raise OptionError(f"{name}={given!r}, expected an integer of at least {least}")
    return given


def count_overlaps(windows: Sequence[Window]) -> int:
    """How many windows a target is scored in, at most."""
    return sum(window.end - window.targets < windows[0].end for window in windows)


def perplexity(items: Sequence[tuple[float, int]]) -> float:
    """The perplexity: exp of the mean loss per target; infinite where that is too large a number.

    Where all windows score equally many targets, as in GPTQ's protocol, this is the exp of the
    mean of window means.

    Args:
        items: Negative log-likelihood in nats and number of targets, by window.
    """
    return _exp(math.fsum(loss for loss, _ in items) / sum(targets for _, targets in items))


def perplexity_stderr(items: Sequence[tuple[float, int, int]], *, overlaps: int = 1) -> float:
    """Standard error of a perplexity over windows, by the delta method: ppl * se(mean loss).

    The mean loss is a ratio of two sums over windows, its variance that of the residuals
    `loss - mean * targets` (Cochran 1977, section 2.11). Windows near each other are about the
    same things, so their residuals correlate (`sum_of_windows`). On WikiText-2 that is nearly the
    same however the text is cut, and about a sixth less than with articles as clusters; windows
    taken as independent say half of it at 512 tokens.

    Windows that share targets correlate by that alone. If k of them share each target and what is
    new in each is independent of the others, windows h apart correlate with 1 - h/k, so the mean of
    n has s2 / n * (n - 1) / (n - c) * c with c = 1 + 2 sum_{h < k} (1 - h/k) (1 - h/n), where
    s2 is the sample variance. The larger of both variances counts.

    Args:
        items: Negative log-likelihood in nats, number of targets and first token, by window.
        overlaps: k, in how many windows a target is scored.

    Returns:
        NaN where there are too few windows to tell.
    """
    windows = len(items)
    apart = range(1, min(overlaps, windows))
    shared = 1 + 2 * sum((1 - h / overlaps) * (1 - h / windows) for h in apart)
    if windows - shared <= 0:
        return float("nan")
    total = sum(targets for _, targets, _ in items)
    mean = math.fsum(loss for loss, _, _ in items) / total
    residuals = [(loss - mean * targets) / total for loss, targets, _ in items]
    own = math.fsum(residual**2 for residual in residuals)
    independent = own * windows * shared / (windows - shared)
    near = sum_of_windows(residuals, [start for _, _, start in items]).variance
    return _exp(mean) * math.sqrt(max(independent, near))


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
