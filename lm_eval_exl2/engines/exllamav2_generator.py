"""Generation with exllamav2's dynamic generator, where flash-attn gives it paged attention.

Jobs join and leave a running batch, and pages of keys and values that prompts share are kept
once. Only token ids are taken from it: its text loses what it holds back, cuts stop strings by
rules of its own and decodes piece by piece (`generator/dynamic.py` of 0.3.2), so text and stop
strings stay the caller's business. What its sampler does not compute as transformers does is
decoded by us.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lm_eval_exl2.engines.exllamav2_loading import free_bytes, load_draft
from lm_eval_exl2.engines.exllamav2_memory import forward_bytes, key_value_bytes
from lm_eval_exl2.engines.exllamav2_words import GREEDY, TokenTable, sampler_settings, tokens_of
from lm_eval_exl2.engines.self_test import check_next_tokens
from lm_eval_exl2.errors import EngineMemoryError
from lm_eval_exl2.records import GeneratedToken

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from lm_eval_exl2.engines.exllamav2_engine import Exllamav2Engine
    from lm_eval_exl2.engines.exllamav2_settings import Exllamav2Settings
    from lm_eval_exl2.records import GenerateRequest

PAGE_TOKENS = 256
DRAFT_TOKENS = 4
"""Tokens proposed at a time, exllamav2's own default."""

_CACHE_SHARE = 0.9  # of the memory a forward leaves free
_USUAL_TOKENS = 4096  # of a prompt and its continuation; longer ones wait for pages
_BITS = {"FP16": 16, "Q8": 8.5, "Q6": 6.5, "Q4": 4.5}


class _Running(NamedTuple):
    """A request and the job that answers it."""

    request: GenerateRequest
    job: Any


class PagedGenerator:
    """Continues prompts with the dynamic generator of one loaded model."""

    def __init__(self, engine: Exllamav2Engine, settings: Exllamav2Settings) -> None:
        """Allocate pages and open the generator; `why_not_paged` knows whether it can work.

        Raises:
            OptionError: a draft model that does not go with the model.
            EngineMemoryError: the pages do not fit.
            ScoreError: pages give other logits than plain rows.
        """
        from importlib import import_module

        self._engine = engine
        self._exllamav2: Any = engine.exllamav2
        self._api: Any = import_module(f"{self._exllamav2.__name__}.generator")
        self._rows = settings.max_rows
        self._draft = None if settings.draft is None else load_draft(engine, settings)
        tokens = self._cache_tokens(settings)
        self._draft_tokens = DRAFT_TOKENS if self._draft or settings.ngram_draft else 0
        suffix = "" if settings.cache_mode == "FP16" else f"_{settings.cache_mode}"
        make: Any = getattr(self._exllamav2, f"ExLlamaV2Cache{suffix}")
        self._tokens = tokens
        with self._out_of_memory_said():
            self._cache: Any = make(engine.model, batch_size=1, max_seq_len=tokens)
            draft_cache = self._draft and make(self._draft, batch_size=1, max_seq_len=tokens)
        self._generator: Any = self._api.ExLlamaV2DynamicGenerator(
            model=engine.model,
            cache=self._cache,
            tokenizer=TokenTable(engine.info.vocab_size),
            max_batch_size=min(
                self._rows, engine.info.max_batch_tokens // (self._draft_tokens + 1)
            ),
            max_q_size=self._draft_tokens + 1,
            max_chunk_size=engine.model.config.max_input_len // PAGE_TOKENS * PAGE_TOKENS,
            draft_model=self._draft,
            draft_cache=draft_cache,
            num_draft_tokens=DRAFT_TOKENS,
            use_ngram_draft=settings.ngram_draft,
            paged=True,
        )
        _watch_logits(engine)
        if engine.loras:
            self._generator.set_loras(engine.loras)
        forwarded = engine.counts.forwarded
        check_next_tokens(
            self._next_logits,
            engine.naive_logits,
            engine.info,
            longest=min(engine.longest_row, tokens - 1 - self._draft_tokens),
            is_rounded=settings.cache_mode != "FP16",
        )
        engine.counts.forwarded = forwarded

    @contextmanager
    def _out_of_memory_said(self) -> Generator[None]:
        """Turn lack of memory into an error that says what helps."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise EngineMemoryError(
                f"pages of {self._tokens} tokens and a forward beside them do not fit into memory; "
                "use a smaller cache_size or max_batch_tokens, or cache_mode=Q8, Q6 or Q4"
            ) from error

    def _next_logits(self, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return the logits (V,) that follow each prompt."""
        settings = self._api.ExLlamaV2Sampler.Settings(**GREEDY)
        serials: list[int] = [
            self._generator.enqueue(
                self._api.ExLlamaV2DynamicJob(
                    input_ids=torch.tensor([list(prompt)]),
                    max_new_tokens=1 + self._draft_tokens,
                    gen_settings=settings,
                    return_logits=True,
                )
            )
            for prompt in prompts
        ]
        found: dict[int, torch.Tensor] = {}
        while self._generator.num_remaining_jobs():
            for result in self._advance():
                if "logits" in result:
                    logits = result["logits"][0, 0, : self._engine.info.vocab_size]
                    found.setdefault(result["serial"], logits.clone())
        return [found[serial] for serial in serials]

    def _advance(self) -> list[dict[str, Any]]:
        """Let all jobs go on by one forward; return what they report."""
        with self._out_of_memory_said():
            return self._generator.iterate()

    def _cache_tokens(self, settings: Exllamav2Settings) -> int:
        """Return how many tokens the pages hold, a multiple of the page size."""
        info, text = self._engine.info, self._engine.text_config
        tokens = settings.cache_size
        if tokens is None:
            per_token = key_value_bytes(text) * _BITS[settings.cache_mode] / 16
            torch.cuda.empty_cache()  # what was freed counts as free
            free = sum(free_bytes(settings.load)) - forward_bytes(text, info.max_batch_tokens)
            wanted = max(info.max_length, self._rows * min(info.max_length, _USUAL_TOKENS))
            tokens = min(wanted, int(free * _CACHE_SHARE / per_token))
        return max(tokens, PAGE_TOKENS) // PAGE_TOKENS * PAGE_TOKENS

    # -- generating ------------------------------------------------------------------------

    def generate(
        self, requests: Iterable[GenerateRequest | None], is_finished: Callable[[int, int], bool]
    ) -> Iterator[GeneratedToken]:
        """See `Engine.generate`, for requests that `can_sample` accepts."""
        waiting = iter(requests)
        running: dict[int, _Running] = {}
        try:
            while self._admit(waiting, running):
                yield from self._iterate(running, is_finished)
        finally:  # also where the caller stops listening
            for found in running.values():
                self._generator.cancel(found.job)

    def _admit(
        self, waiting: Iterator[GenerateRequest | None], running: dict[int, _Running]
    ) -> bool:
        """Queue requests while there is room; return whether any is being answered."""
        for request in islice(waiting, 2 * self._rows - len(running)):
            if request is None:  # none waits now, more may come
                break
            job = self._make_job(request)
            running[self._generator.enqueue(job)] = _Running(request, job)
        return bool(running)

    def _make_job(self, request: GenerateRequest) -> Any:
        settings = sampler_settings(request.sampling)
        if settings is None:
            raise ValueError(f"sampling {dict(request.sampling)} is not for this generator")
        # Of the last token nothing is computed.
        self._engine.check_position(len(request.prompt_ids) + request.max_new_tokens - 2)
        # When drafting, the generator ends a job this much earlier.
        limit = request.max_new_tokens + self._draft_tokens
        if len(request.prompt_ids) + limit > self._tokens:
            raise EngineMemoryError(
                f"a prompt of {len(request.prompt_ids)} tokens and {limit} new ones need more "
                f"than the {self._tokens} tokens of the cache; raise cache_size, or use a smaller "
                "max_gen_toks or cache_mode=Q8, Q6 or Q4"
            )
        return self._api.ExLlamaV2DynamicJob(
            input_ids=torch.tensor([list(request.prompt_ids)]),
            max_new_tokens=limit,
            min_new_tokens=request.min_new_tokens,
            gen_settings=self._api.ExLlamaV2Sampler.Settings(**settings),
            seed=request.seed,
            # Only tokens: every end token is named, and no stop strings, which it cuts differently.
            stop_conditions=sorted(request.stop_ids),
        )

    def _iterate(
        self, running: dict[int, _Running], is_finished: Callable[[int, int], bool]
    ) -> Iterator[GeneratedToken]:
        """Let all jobs advance and hand out what they produced."""
        results = self._advance()
        sizes = self._engine.counts.batch_sizes
        active = len(self._generator.active_jobs)
        sizes["generate_until"] = max(sizes.get("generate_until", 0), active)
        for result in results:
            serial = result["serial"]
            # One iteration can report a job several times, also after we ended it.
            if result["stage"] != "streaming" or serial not in running:
                continue
            request, job = running[serial]
            tokens = tokens_of(result)
            for place, token in enumerate(tokens, start=1):
                is_last = is_finished(request.index, token)
                is_last = is_last or (result["eos"] and place == len(tokens))
                yield GeneratedToken(request.index, token, is_last)
                if is_last:
                    break
            else:
                continue
            del running[serial]
            self._finish(job, ended=result["eos"])

    def _finish(self, job: Any, *, ended: bool) -> None:
        """Count what a job forwarded and take it out of the batch if it would go on."""
        cached = job.cached_pages * PAGE_TOKENS + job.cached_tokens
        prompt = len(job.sequences[0].input_ids)
        self._engine.counts.forwarded += prompt - cached + job.new_tokens - 1
        self._engine.counts.drafted += job.accepted_draft_tokens + job.rejected_draft_tokens
        self._engine.counts.accepted += job.accepted_draft_tokens
        if not ended:
            self._generator.cancel(job)

    def forget(self) -> None:
        """Drop all pages; no job may be running."""
        self._generator.reset_page_table()

    def close(self) -> None:
        """Give back memory and threads, which the generator itself keeps."""
        for pool in (self._generator.sampling_pool, self._generator.filter_pool):
            pool.shutdown()
        del self._generator, self._cache
        vars(self._engine.model).pop("forward_chunk")  # nobody watches any more
        if self._draft is not None:
            self._draft.unload()


def _watch_logits(engine: Exllamav2Engine) -> None:
    """Let no token be chosen from logits that are NaN or infinite."""
    forward: Any = engine.model.forward_chunk

    def watched(*arguments: Any, **options: Any) -> Any:
        result: dict[str, Any] = forward(*arguments, **options)
        if "logits" in result:
            engine.check_finite(result["logits"].amax(-1).flatten().tolist())
        return result

    engine.model.forward_chunk = watched


def can_sample(request: GenerateRequest) -> bool:
    """Whether the generator's sampler draws what transformers would."""
    return sampler_settings(request.sampling) is not None


def without_own(
    requests: Iterable[GenerateRequest | None], own: list[GenerateRequest]
) -> Iterator[GenerateRequest | None]:
    """Yield what the paged generator can sample; collect the rest for our own decoding."""
    for request in requests:
        if request is not None and not can_sample(request):
            own.append(request)
        elif request is None and own:  # the pause waits for them, and they for the end
            raise ValueError("requests that pause must all be for the paged generator")
        else:
            yield request


def why_not_paged(engine: Exllamav2Engine) -> str | None:
    """Return why pages cannot be used for a model, None if they can."""
    if engine.attention != "flash_attn" or not engine.exllamav2.attn.has_flash_attn_with_paged:
        return "flash-attn 2.5.7 or later is not in use"
    if engine.info.max_batch_tokens < PAGE_TOKENS:
        return f"a page of {PAGE_TOKENS} tokens is more than max_batch_tokens"
    if engine.has_many_experts:
        return "its kernel for a few rows leaves out experts where there are 128"
    if any(layer.options.window is not None for layer in engine.layers):
        return "its sliding windows admit one key too many"
    if any(layer.options.softcap is not None for layer in engine.layers):
        return "its soft-cap has not been seen to equal transformers'"
    return None
