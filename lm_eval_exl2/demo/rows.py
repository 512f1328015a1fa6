"""The demo's tokenizer, and the training text as rows of weighted ids.

Knows the marks in `corpus` and no model.
"""

import re
from itertools import islice
from typing import Final, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lm_eval_exl2.demo.corpus import ASSISTANT, USER, plain, training_documents

# Shapes, as suffixes: R rows, T tokens of a row, N tokens of several rows.

MAX_LENGTH: Final = 512
VOCAB_SIZE: Final = 1024
SPECIAL_TOKENS: Final = ("<pad>", "<s>", "</s>", USER, ASSISTANT)
PAD_ID, BOS_ID, EOS_ID = range(3)
CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ ('<|assistant|>' if message['role'] == 'assistant' else '<|user|>') }}"
    "{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer() -> Tokenizer:
    """Train the byte-level BPE tokenizer on the beginning of the training text.

    Digits stay single tokens, so that a sum is computed and not looked up.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(plain, training_documents(20_000)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS_ID)]
    )
    return tokenizer


class Rows(NamedTuple):
    """Tokenized text: both (R, T), or (N,) before it is cut into rows."""

    ids: torch.Tensor
    weights: torch.Tensor
    """How much the prediction of each token counts."""


def training_rows(tokenizer: Tokenizer, *, total: int, chance_weight: float) -> Rows:
    """Tokenize training documents end to end into one long row.

    Args:
        tokenizer: From `train_tokenizer`.
        total: How many tokens are wanted.
        chance_weight: Weight of tokens that are no answers.
    """
    ids: list[int] = []
    weights: list[float] = []
    documents = training_documents(10**9)
    while len(ids) < total:
        pieces: list[str] = []
        sizes: list[int] = []
        for marked in islice(documents, 1000):
            # Outside and inside of the brackets by turns. A bracket never divides a token.
            parts = re.split(r"[\[\]]", marked)
            pieces += parts
            sizes.append(len(parts))
        encodings = iter(tokenizer.encode_batch_fast(pieces, add_special_tokens=False))
        for size in sizes:
            ids.append(BOS_ID)
            weights.append(0.0)
            for part, encoding in enumerate(islice(encodings, size)):
                ids += encoding.ids
                weights += [1.0 if part % 2 else chance_weight] * len(encoding.ids)
            ids.append(EOS_ID)
            weights.append(chance_weight)
    return Rows(torch.tensor(ids[:total]), torch.tensor(weights[:total]))
