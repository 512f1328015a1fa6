"""Tiny models with tokenizers of their own, as directories that `hf` and `exl2` both load.

The weights are random but large, so that distributions are peaked and the most likely token is
clear. The tokenizers are trained here on a small text, one for each way of treating BOS, spaces
and bytes that real checkpoints have.
"""

import json
from dataclasses import dataclass

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

torch.set_num_threads(1)  # tensors this small gain nothing from threads, and wait for each other

WINDOW = 64
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It was not amused, it said.",
    "Question: What is the capital of France?\nAnswer: Paris\n\n",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n",
    "Größe, naïve café, Ελληνικά, русский текст, 日本語の文章 and 한국어 too.",
    "Let's see: 12 + 34 = 46, isn't it? Yes ! No . She's here , they've gone .",
    "A: one B: two C: three D: four\nThe answer is (B).",
    "Smiles 😀 😃 and a family 👨‍👩‍👧 wave \t tab  two spaces   three spaces.",
] * 4
CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
)


@dataclass(frozen=True)
class Kind:
    """What one family of checkpoints does to text."""

    bos: str | None
    eos: str
    others: tuple[str, ...]
    """Further special tokens."""
    metaspace: bool = False
    """Spaces are `▁`, one is put before every text, unknown characters become byte tokens."""
    model_type: str = "llama"
    unk: str | None = None


KINDS = {
    # GPT-2: no BOS, EOS stands before an empty context.
    "plain": Kind(None, "<|endoftext|>", ("<|stop|>",), model_type="gpt2"),
    # Llama 3: BOS by post-processor, several special tokens.
    "bos": Kind("<|begin|>", "<|end|>", ("<|eot|>", "<|think|>", "<|/think|>")),
    # Llama 2: SentencePiece rules.
    "metaspace": Kind("<s>", "</s>", (), metaspace=True, unk="<unk>"),
    # Qwen: BOS exists nowhere, a padding token does, and the template ends turns.
    "turns": Kind(None, "<|im_end|>", ("<|im_start|>", "<|pad|>")),
}


def train_tokenizer(kind):
    """Train a tokenizer of a kind on the corpus."""
    special = [token for token in (kind.unk, kind.bos, kind.eos, *kind.others) if token]
    tokenizer = _train_metaspace(special) if kind.metaspace else _train_byte_level(special)
    if kind.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A",
            pair=f"{kind.bos} $A {kind.bos} $B",
            special_tokens=[(kind.bos, tokenizer.token_to_id(kind.bos))],
        )
    return tokenizer


def _train_byte_level(special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _train_metaspace(special):
    """Train on words, then let spaces be ordinary characters, as SentencePiece does."""
    tokenizer = Tokenizer(models.BPE(unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    # Everything else falls back to bytes. Named, since frequency alone leaves it to chance.
    alphabet = [*sorted({c for line in CORPUS for c in line if c.isascii() and c != " "}), *"▁ïи日"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*special, *byte_tokens],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    for left, right in (("▁", "▁"), ("▁▁", "▁▁")):
        model["vocab"].setdefault(left + right, len(model["vocab"]))
        model["merges"].append([left, right])
    model["byte_fallback"] = model["fuse_unk"] = True
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in special]
    content["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def save(name, folder, *, chat_template=None, generation=None, says=None):
    """Save model and tokenizer of a kind; return the folder.

    `chat_template` is a template or a dictionary of named ones, `generation` adds to
    generation_config.json. With `says`, a text without repeated tokens, the model continues each
    token of that text with the next one, so a prompt that ends in its first token is continued
    with the rest of it.
    """
    kind = KINDS[name]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(kind),
        bos_token=kind.bos,
        eos_token=kind.eos,
        unk_token=kind.unk,
        pad_token="<|pad|>" if "<|pad|>" in kind.others else None,
        extra_special_tokens=list(kind.others),
        model_max_length=WINDOW,
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    model = _make_model(kind, tokenizer)
    if says:
        _teach(model, tokenizer.encode(says, add_special_tokens=False))
    model.generation_config.update(**(generation or {}))
    model.save_pretrained(folder)
    return folder


def _make_model(kind, tokenizer):
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
    }
    if kind.model_type == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": WINDOW}
        config = transformers.GPT2Config(**common, **sizes, initializer_range=0.3)
    else:
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": WINDOW,
        }
        config = transformers.LlamaConfig(**common, **sizes, initializer_range=0.3)
    torch.manual_seed(sum(map(ord, kind.eos)))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    # By chance, special tokens and line ends would be rare and broken characters frequent.
    favoured = [*tokenizer.all_special_ids, tokenizer.encode("\n", add_special_tokens=False)[-1]]
    broken = [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode(i)]
    with torch.no_grad():
        model.get_output_embeddings().weight[favoured] *= 1.5
        model.get_output_embeddings().weight[broken] *= 0.5
    return model


@torch.no_grad()
def _teach(model, token_ids):
    """Make the layers do nothing and the head answer the embedding of a token with the next."""
    if len(set(token_ids)) < len(token_ids):
        raise ValueError(f"the text repeats a token: {token_ids}")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    known = model.get_input_embeddings().weight[token_ids[:-1]]
    head = model.get_output_embeddings().weight
    head.zero_()
    head[token_ids[1:]] = known / known.norm(dim=-1, keepdim=True)
