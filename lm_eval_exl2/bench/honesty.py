"""Is a run what it says it is? Checks in the spirit of MLPerf's compliance tests.

They hold what the engine produced against what LoadGen was told, against the tokenizer and against
the model itself. A check that does not apply is not made; none is passed by silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lm_eval_exl2.bench.records import FINISHED
from lm_eval_exl2.bench.scenarios import OFFICIAL_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lm_eval_exl2.bench.data import BenchPrompt
    from lm_eval_exl2.bench.loadgen_log import LoadGenSample
    from lm_eval_exl2.bench.profiles import Profile
    from lm_eval_exl2.bench.records import TimedRequest
    from lm_eval_exl2.engines.base import Engine

CLOSED: Final = "closed-style"
OPEN: Final = "open-style"
RECHECKED: Final = 8
"""Requests that are scored again for the check of greedy decoding."""

# Two clocks and a pipe lie between the engine and LoadGen.
_CLOCKS_S: Final = 0.002
# Near ties of float16 may come out either way when a text is scored as one row.
_NEAR_TIES: Final = {"float32": 0.001, "float64": 0.0}
_HALF_TIES: Final = 0.02
# What must be equal where a checkpoint was scored and where it was timed; names of `results.json`.
_CONFIGURATION: Final = (
    *("checkpoint_digest", "engine", "engine_version", "engine_device", "model_dtype"),
    *("attention", "weight_memory", "max_length", "torch_version", "transformers_version"),
    "lm_eval_exl2_version",
)


class Check(NamedTuple):
    """One check and what it found."""

    name: str
    passed: bool
    found: str


def check_first_token(requests: Sequence[TimedRequest], told: Sequence[LoadGenSample]) -> Check:
    """Whether the first token that was timed is the first of the output, and not before it.

    Args:
        requests: What the engine produced.
        told: What LoadGen was told, request by request.
    """
    wrong = early = 0
    for request, sample in zip(requests, told, strict=True):
        wrong += sample.first_ids not in (None, tuple(request.token_ids[:1]))
        first_s = sample.first_token_s
        early += first_s is None or first_s < request.token_times_s[0] - _CLOCKS_S
    return Check(
        "first token timed is the first token of the output",
        not wrong and not early,
        f"{wrong} other tokens and {early} reported before the engine had them, of {len(told)}",
    )


def check_counts(requests: Sequence[TimedRequest], told: Sequence[LoadGenSample]) -> Check:
    """Whether LoadGen was told the tokens there are, and their number."""
    wrong = sum(
        sample.token_count != len(request.token_ids) or sample.token_ids != tuple(request.token_ids)
        for request, sample in zip(requests, told, strict=True)
    )
    return Check(
        "token counts reported are those of the output",
        not wrong,
        f"{wrong} of {len(told)} differ",
    )


def check_tokenizer(
    requests: Sequence[TimedRequest],
    *,
    decode: Callable[[Sequence[int]], str],
    encode: Callable[[str], list[int]],
    largest_id: int,
) -> Check:
    """Whether the tokenizer knows every token and counts about as many in the text.

    A model may spell a text in other pieces than the tokenizer would, in more of them in
    particular, so the counts are shown; more than twice as many tokens as the text takes fail.

    Args:
        requests: What the engine produced.
        decode: Ids to text, special tokens shown.
        encode: Text to ids, nothing added.
        largest_id: Of the tokenizer.
    """
    ids = [request.token_ids for request in requests]
    unknown = sum(not 0 <= token <= largest_id for each in ids for token in each)
    if unknown:
        return Check("token counts against the tokenizer", False, f"{unknown} unknown token ids")
    produced = sum(map(len, ids))
    counted = sum(len(encode(decode(each))) for each in ids)
    return Check(
        "token counts against the tokenizer",
        produced <= 2 * counted,
        f"{produced} tokens produced, their text has {counted}",
    )


def check_end(
    requests: Sequence[TimedRequest], *, end_ids: frozenset[int], max_new_tokens: int
) -> Check:
    """Whether every text ends once: with its only end token, or at the limit without any."""
    wrong = 0
    for request in requests:
        if request.outcome != FINISHED:
            continue
        *inside, last = request.token_ids
        ended = last in end_ids or len(request.token_ids) == max_new_tokens
        wrong += bool(end_ids.intersection(inside)) or not ended
    return Check(
        "one end token, at the end only",
        not wrong,
        f"{wrong} of {len(requests)} texts go on behind an end token or stop without one",
    )


def check_order(requests: Sequence[TimedRequest], *, rows: int) -> Check:
    """Whether requests were begun in the order in which they came.

    The engine must take them in that order, and none may get its first token before so many others
    that came earlier as a batch can hold.

    Args:
        requests: In the order of issue.
        rows: Most sequences the engine continued together.
    """
    taken = [request.started for request in requests if request.started is not None]
    with_output = [request for request in requests if request.token_times_s]
    ranked = sorted(with_output, key=lambda request: request.token_times_s[0])
    place = {request.number: rank for rank, request in enumerate(ranked)}
    moved = max(
        (abs(place[each.number] - rank) for rank, each in enumerate(with_output)), default=0
    )
    return Check(
        "queries are not reordered",
        taken == sorted(taken) and moved < max(rows, 1),
        f"taken in order: {'yes' if taken == sorted(taken) else 'no'}; first tokens up to {moved} "
        f"places from the order of arrival, batches of up to {rows}",
    )


def check_prompts(requests: Sequence[TimedRequest], told: Sequence[LoadGenSample]) -> Check:
    """Whether each request is of the prompt that LoadGen asked for."""
    wrong = sum(
        request.sample != sample.sample for request, sample in zip(requests, told, strict=True)
    )
    return Check(
        "every query answers the prompt asked for", not wrong, f"{wrong} of {len(told)} differ"
    )


def check_greedy(
    requests: Sequence[TimedRequest], prompts: Sequence[BenchPrompt], engine: Engine
) -> Check:
    """Whether each token is the model's most likely one, scored again as an ordinary row.

    Args:
        requests: What the engine produced; a few are looked at.
        prompts: By `TimedRequest.sample`.
        engine: Scores.
    """
    chosen = [request for request in requests if request.token_ids]
    chosen = chosen[:: max(1, -(-len(chosen) // RECHECKED))]
    room = engine.info.max_batch_tokens
    tokens = other = 0
    for request in chosen:
        prompt = prompts[request.sample].token_ids
        ids = request.token_ids[: room - len(prompt)]
        if len(prompt) < room:
            scores = engine.score_naively([*prompt, *ids], len(ids))
            tokens += len(ids)
            other += sum(not is_argmax for is_argmax in scores.is_argmax)
    allowed = _NEAR_TIES.get(engine.info.dtype, _HALF_TIES)
    return Check(
        "greedy",
        bool(tokens) and other <= allowed * tokens,
        f"{other} of {tokens} tokens in {len(chosen)} texts are not the most likely, {allowed:.1%} "
        f"may be near ties of {engine.info.dtype}",
    )


def check_configuration(timed: Mapping[str, Any], scored: Mapping[str, Any]) -> Check:
    """Whether what was timed is what was scored.

    Args:
        timed: Facts of the model here, as `Exl2LM.get_model_info` gives them.
        scored: The `config` of the harness's `results.json`.
    """
    different = [
        f"{name}={value} of generation_config.json when scored, left out now"
        for name, value in timed.get("penalties_left_out", {}).items()
    ]
    different += [
        f"{name} {scored.get(name, 'not recorded')!r} when scored, {timed.get(name)!r} now"
        for name in _CONFIGURATION
        if timed.get(name) != scored.get(name)
    ]
    return Check(
        "same configuration for accuracy and performance",
        not different,
        "; ".join(different) or f"{len(_CONFIGURATION)} settings equal",
    )


class Style(NamedTuple):
    """Which division of MLPerf a run resembles."""

    name: str
    """`closed-style` or `open-style`."""
    reasons: list[str]
    """Why it is not closed-style; for closed-style, what is taken on trust."""


def style(
    profile: Profile,
    model: Mapping[str, Any],
    *,
    prompts: int,
    max_new_tokens: int,
    duration_s: float,
    is_sharing: bool,
) -> Style:
    """Say whether a run uses the reference's weights and data, as far as can be seen.

    Args:
        profile: Whose rules.
        model: `architecture`, `layers`, `hidden_size` and `kind` of the checkpoint.
        prompts: How many there were.
        max_new_tokens: Limit of the output.
        duration_s: Of the run.
        is_sharing: Whether what prompts share was computed once.
    """
    shape = (model["architecture"], model["layers"], model["hidden_size"])
    wanted = (profile.architecture, profile.layers, profile.hidden_size)
    found = {
        f"the model is {shape[0]} with {shape[1]} layers of {shape[2]}, not {profile.name}'s "
        f"{wanted[0]} with {wanted[1]} of {wanted[2]}": shape != wanted,
        f"the weights are quantized ({model['kind']}), not the reference's": (
            model["kind"] != "unquantized"
        ),
        f"{prompts} prompts, not the {profile.samples} of {profile.data}": (
            prompts != profile.samples
        ),
        f"max_gen_toks is {max_new_tokens}, not {profile.max_new_tokens}": (
            max_new_tokens != profile.max_new_tokens
        ),
        f"{duration_s:g} s, not {OFFICIAL_S:g} s": duration_s < OFFICIAL_S,
        "what prompts share was computed once": is_sharing,
    }
    reasons = [reason for reason, applies in found.items() if applies]
    if reasons:
        return Style(OPEN, reasons)
    return Style(CLOSED, ["that weights and prompts are the reference's is taken on trust"])
