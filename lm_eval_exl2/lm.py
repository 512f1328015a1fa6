"""`--model exl2`: the harness's words in and out, nothing else.

Translates Instances to token requests and results back. Splitting of pairs, rolling windows,
generation arguments and the cutting of generated text are the harness's own functions. What is
computed and how is the business of `scoring`, `generation` and the engines.
"""
# The harness ships no types: what crosses its edge is `Any` here and nowhere else.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import logging
import math
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from lm_eval.api.model import CacheHook, TemplateLM, hash_args
from lm_eval.api.registry import register_model

# This import registers the built-in models; registered first, ours would keep them out.
from lm_eval.models.utils import configure_pad_token, postprocess_generated_text

from lm_eval_exl2 import chat, generation
from lm_eval_exl2.checkpoint import Checkpoint
from lm_eval_exl2.checkpoint.locate import locate
from lm_eval_exl2.computing import OneProcess, open_computer, refuse_several_processes
from lm_eval_exl2.encode import Encoder, load_tokenizer
from lm_eval_exl2.errors import RequestError
from lm_eval_exl2.fitting import check_ids, fit_window
from lm_eval_exl2.options import parse_options
from lm_eval_exl2.progress import Progress
from lm_eval_exl2.prompts import PromptMaker
from lm_eval_exl2.provenance import (
    answer_settings,
    describe,
    describe_counts,
    resolve_window,
)
from lm_eval_exl2.response_cache import ResponseCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lm_eval.api.instance import Instance

    from lm_eval_exl2.encode import Encoded
    from lm_eval_exl2.engines.base import Engine
    from lm_eval_exl2.generation import Prompt

logger = logging.getLogger(__name__)

Answer = tuple[float, bool]


@register_model("exl2")
class Exl2LM(TemplateLM):
    """Evaluates EXL2, 4-bit GPTQ and unquantized checkpoints; arguments are in `options`."""

    backend = "causal"

    def __init__(self, pretrained: str | None = None, **model_args: Any) -> None:
        """Load checkpoint and tokenizer.

        Args:
            pretrained: Directory, hub id, or `demo`.
            **model_args: The options of `lm_eval_exl2.options.Options`, in `hf`'s words.

        Raises:
            Exl2EvalError: in one line, what was found, what was expected and what to do.
        """
        super().__init__()
        self.set_cache_hook(CacheHook(None))
        if pretrained is not None:
            model_args["pretrained"] = pretrained
        self.options = options = parse_options(model_args)
        refuse_several_processes()
        self._location = locate(
            options.pretrained, revision=options.revision, subfolder=options.subfolder
        )
        self.checkpoint = Checkpoint(self._location.directory)
        self.tokenizer: Any = configure_pad_token(load_tokenizer(options, self._location.directory))
        self.encoder = Encoder(
            self.tokenizer,
            add_bos_token=options.add_bos_token,
            prefix_token_id=options.prefix_token_id,
        )
        self.computer = open_computer(
            options, self.checkpoint, self.encoder, self._location, lambda: self._digest
        )
        info = self.computer.info
        self._device = info.device
        self._window = resolve_window(options, info)
        self._at_limit: Counter[str] = Counter()
        self.think_end = chat.resolve_think_end(self.encoder, options.think_end_token)
        self._chat = chat.ChatTemplates(
            self.tokenizer,
            options.chat_template_args or {},
            enable_thinking=options.enable_thinking,
        )
        logger.info(
            "%s: %s, engine %s on %s in %s, window %d tokens",
            options.pretrained,
            self.checkpoint.kind,
            info.name,
            info.device,
            info.dtype,
            self._window,
        )

    @property
    def engine(self) -> Engine:
        """The engine of this process.

        Raises:
            AttributeError: replicas have one each.
        """
        return cast("OneProcess", self.computer).engine

    # -- what the harness reads ------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Token that stands before an empty context: the one given, else BOS, else EOS."""
        return self.encoder.prefix_token_id

    @property
    def max_length(self) -> int:
        """Context window in tokens."""
        return self._window

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate where a task does not say."""
        return self.options.max_gen_toks

    @property
    def batch_size(self) -> int | str:
        """Sequences per forward, or `auto` for the token budget."""
        return self.options.batch_size or self.options.max_batch_size or "auto"

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Most sequences that shared a forward, by kind of request."""
        return self.computer.counts.batch_sizes

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness caches requests: tokenizer, its content and templates."""
        name = str(getattr(self.tokenizer, "name_or_path", "") or "tokenizer")
        content = self.encoder.fingerprint()[:12]
        return f"{name.replace('/', '__')}__{content}__{self._chat.fingerprint()[:12]}"

    @cached_property
    def _digest(self) -> str:
        return self.checkpoint.digest()

    def get_model_info(self) -> dict[str, Any]:
        """Return what was evaluated and how, for `results.json`."""
        counts = self.computer.counts
        return describe(
            self.options, self.checkpoint, self.computer.info, self._location, self._digest
        ) | {
            "max_length": self._window,
            **describe_counts(counts),
            "generations_at_limit": {task: cut for task, cut in self._at_limit.items() if cut},
            **self.computer.facts(),
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take the harness's response cache, unless it holds another model's answers.

        Raises:
            CacheMismatchError: naming what differs.
            CacheWriteError: it cannot be written.
        """
        self._cache = ResponseCache(cache_hook, hash_args, self._fingerprint)
        super().set_cache_hook(cache_hook)

    def _fingerprint(self) -> dict[str, str]:
        """Return what answers depend on; which template renders a prompt shows in the prompt."""
        return {
            "checkpoint": self._digest,
            "tokenizer": self.encoder.fingerprint(),
            "chat template": self._chat.fingerprint(selected=False),
            **answer_settings(self.options, self.computer.info, self._window, self.think_end),
        }

    # -- text ------------------------------------------------------------------------------

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_kwargs: Any,
    ) -> list[int]:
        """Encode a string; see `HFLM.tok_encode`."""
        ids = self.encoder.tok_encode(string, add_special_tokens)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        """Decode ids; see `HFLM.tok_decode`."""
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Select a chat template by name and remember it for `apply_chat_template`.

        Raises:
            OptionError: the tokenizer has none.
        """
        if chat_template:
            self._chat.require()
        selected = super().chat_template(chat_template)
        self._chat.selected = selected or None
        return selected

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation with the selected template; see `HFLM.apply_chat_template`."""
        return self._chat.render(chat_history, add_generation_prompt=add_generation_prompt)

    # -- log-likelihood --------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """Score continuations; see `TemplateLM.loglikelihood`.

        Raises:
            RequestError: a continuation longer than the window, or thinking switched on.
        """
        if self.options.enable_thinking:
            tasks = ", ".join(sorted({str(r.task_name) for r in requests if r.task_name}))
            raise RequestError(
                f"enable_thinking=True cannot be used with log-likelihood tasks ({tasks}); "
                "leave it out or choose generative tasks"
            )
        pairs = self.encoder.encode_pairs(requests, disable_tqdm=self._quiet(disable_tqdm))
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, **_kwargs: Any
    ) -> list[Answer]:
        answers = [self._cache.find_score(*request) for request in requests]
        wanted = [index for index, answer in enumerate(answers) if answer is None]
        with self._progress(len(wanted), "loglikelihood", disable_tqdm) as progress:
            for number, answer in self._score([requests[index] for index in wanted], progress):
                index = wanted[number]
                answers[index] = answer
                self._cache.keep_score(requests[index], answer)
                progress.advance()
        return cast("list[Answer]", answers)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole documents in the harness's windows; see `LM.loglikelihood_rolling`."""
        cuts = [self.encoder.encode_windows(r.args[0], self._window) for r in requests]
        document_of = [number for number, cut in enumerate(cuts) for _ in cut]
        parts: list[list[float]] = [[] for _ in requests]
        with self._progress(len(requests), "loglikelihood_rolling", disable_tqdm) as progress:

            def finish(number: int) -> None:
                total = math.fsum(parts[number])
                arguments = requests[number].args
                self._cache.add_partial("loglikelihood_rolling", arguments, total)
                progress.advance()

            for number, cut in enumerate(cuts):
                if not cut:
                    finish(number)  # an empty document, and a tokenizer that adds no BOS
            windows = [window for cut in cuts for window in cut]
            for index, (logprob, _) in self._score(windows, progress):
                number = document_of[index]
                parts[number].append(logprob)
                if len(parts[number]) == len(cuts[number]):
                    finish(number)
        return [math.fsum(part) for part in parts]

    def _score(self, requests: list[Encoded], progress: Progress) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) for all requests, those with nothing to score first."""
        fitted = fit_window(requests, self._window)
        self._check_ids(ids for r in fitted.wanted for ids in (r.context_ids, r.target_ids))
        for index in fitted.empty:
            yield index, (0.0, True)
        for score in self.computer.score(fitted.wanted, progress.between_steps):
            yield score.index, (score.logprob, score.is_greedy)

    def _check_ids(self, sequences: Iterable[Sequence[int]]) -> None:
        vocabulary = self.computer.info.vocab_size
        if self.encoder.largest_id >= vocabulary:
            check_ids(sequences, vocabulary)

    # -- generation ------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts; see `HFLM.generate_until`.

        Raises:
            RequestError: an argument that is not supported, or no room for a prompt.
        """
        maker = PromptMaker(self.encoder, self.options, self.checkpoint.directory, self._window)
        jobs = maker.make([request.args for request in requests])
        self._check_ids(prompt.token_ids for prompt in jobs.prompts)
        texts = [""] * len(requests)
        with self._progress(len(requests), "generate_until", disable_tqdm) as progress:

            def finish(first: int, text: str) -> None:
                for index in jobs.same_as[first]:
                    texts[index] = text
                    progress.advance()

            prompts: dict[int, Prompt] = {}
            for prompt in jobs.prompts:
                known = self._cache.find_text(prompt, requests[prompt.index].args)
                if known is None:
                    prompts[prompt.index] = prompt
                else:
                    finish(prompt.index, known)
            continuations = self.computer.generate(
                list(prompts.values()),
                generation.Ending(maker.eos_ids, self.think_end),
                progress.between_steps,
            )
            for found in continuations:
                until = jobs.until[found.index]
                text = generation.text_of(
                    found.token_ids,
                    self.encoder,
                    think_end=self.think_end,
                    skip_special_tokens=self.options.skip_special_tokens,
                    cut=lambda whole, marker, until=until: postprocess_generated_text(
                        whole, until, marker
                    ),
                )
                for index in jobs.same_as[found.index]:
                    self._cache.keep_text(prompts[found.index], requests[index].args, text)
                    self._at_limit[str(requests[index].task_name)] += found.is_cut
                finish(found.index, text)
        return texts

    # -- progress --------------------------------------------------------------------------

    def _quiet(self, disable_tqdm: bool) -> bool:
        return disable_tqdm or self.options.disable_tqdm or self.rank != 0

    def _progress(self, total: int, kind: str, disable_tqdm: bool) -> Progress:
        quiet = self._quiet(disable_tqdm)
        return Progress(total, kind, self.computer, self._cache, quiet=quiet)
