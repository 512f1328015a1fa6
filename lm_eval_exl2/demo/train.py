"""Make the demo: evaluation files, tokenizer, model and its EXL2 sizes, in one command.

`python -m lm_eval_exl2.demo.train --output DIR` needs a quarter of an hour on one CPU core.
It trains a Llama-shaped model of half a million weights on the text of `corpus`, and quantizes it.
It does not evaluate anything: the tasks in `task_configs/demo` do.
"""

# torch and transformers leave parts of these methods without types:
# pyright: reportUnknownMemberType=false

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from lm_eval_exl2.demo import DAMAGED_BITS, GOOD_BITS
from lm_eval_exl2.demo.corpus import evaluation_sets, question_prompt
from lm_eval_exl2.demo.rows import (
    BOS_ID,
    CHAT_TEMPLATE,
    EOS_ID,
    MAX_LENGTH,
    PAD_ID,
    VOCAB_SIZE,
    Rows,
    train_tokenizer,
    training_rows,
)
from lm_eval_exl2.demo.world import SEED

# Shapes, as suffixes: R rows, T tokens of a row, N tokens of several rows, V vocabulary.

_LOG_EVERY: Final = 100


class Recipe(NamedTuple):
    """How long and how fast to train; the defaults made the packaged checkpoints."""

    steps: int = 3200
    tokens_per_step: int = 2048
    peak_rate: float = 3e-3
    warmup_steps: int = 100
    short_row: int = 64
    """Length of the rows at first: what belongs together is easier to find in short rows."""
    short_part: float = 0.6
    """Share of the steps that is trained on short rows."""
    chance_weight: float = 0.03
    """Weight of tokens that are no answers. Many of them are drawn by chance, and their noise
    hides the answers' signal: at full weight this model does not learn to look back."""


def new_model() -> LlamaForCausalLM:
    """Build the untrained model; every width obeys the size rules of the EXL2 kernels.

    Its weights begin larger than usual and the output head as a copy of the embedding, which
    makes repeating a word of the context the first thing it learns.
    """
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        initializer_range=0.05,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    return model


def train(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Recipe) -> list[dict[str, float]]:
    """Train the model in place.

    Returns:
        The loss curve: step, train loss (mean since the last entry), held-out losses, seconds.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    curve: list[dict[str, float]] = []
    losses: list[float] = []
    started = time.monotonic()
    for step, rows in enumerate(_batches(tokenizer, recipe), start=1):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, recipe)
        loss = weighted_loss(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % _LOG_EVERY == 0 or step == recipe.steps:
            entry = {"step": step, "train_loss": round(sum(losses) / len(losses), 4)}
            entry |= held_out_losses(model, tokenizer)
            entry["seconds"] = round(time.monotonic() - started, 1)
            curve.append(entry)
            losses.clear()
            print(json.dumps(entry), flush=True)  # noqa: T201
    return curve


def _batches(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[Rows]:
    """Yield one batch per step: short rows first, rows of the full length for the last part."""
    size = recipe.tokens_per_step
    ids_N, weights_N = training_rows(
        tokenizer, total=recipe.steps * size, chance_weight=recipe.chance_weight
    )
    for step in range(recipe.steps):
        length = recipe.short_row if step < recipe.steps * recipe.short_part else MAX_LENGTH
        part = slice(step * size, (step + 1) * size)
        yield Rows(ids_N[part].view(-1, length), weights_N[part].view(-1, length))


def weighted_loss(model: LlamaForCausalLM, rows: Rows) -> torch.Tensor:
    """Return the weighted mean of the loss of predicting every token but the first of a row."""
    logits_RTV = model(input_ids=rows.ids).logits[:, :-1]
    losses_N = torch.nn.functional.cross_entropy(
        logits_RTV.flatten(0, 1), rows.ids[:, 1:].flatten(), reduction="none"
    )
    weights_N = rows.weights[:, 1:].flatten()
    return (losses_N * weights_N).sum() / weights_N.sum()


@torch.inference_mode()
def held_out_losses(model: LlamaForCausalLM, tokenizer: Tokenizer) -> dict[str, float]:
    """Measure the mean loss per token on evaluation documents.

    Returns:
        Loss by kind: of the whole text for `stories`, of the answer alone for the rest, whose
        questions cannot be foreseen.
    """
    sets: dict[str, list[dict[str, Any]]] = evaluation_sets()
    pairs = {
        "held_out_stories": [("", item["text"]) for item in sets["stories_test"]],
        "held_out_cloze": [
            (head, f" {last}")
            for head, last in (item["text"].rsplit(" ", 1) for item in sets["cloze_test"])
        ],
        "held_out_arithmetic": [
            (item["problem"], f" {item['answer']}") for item in sets["arithmetic_test"]
        ],
        "held_out_facts": [
            (question_prompt(item["question"]), f" {item['choices'][item['answer']]}")
            for item in sets["facts_test"]
        ],
    }
    return {name: round(_answer_loss(model, tokenizer, each), 4) for name, each in pairs.items()}


def _answer_loss(
    model: LlamaForCausalLM, tokenizer: Tokenizer, pairs: list[tuple[str, str]]
) -> float:
    total, tokens = 0.0, 0
    for prompt, answer in pairs:
        ids_1T = torch.tensor([tokenizer.encode(prompt + answer).ids])
        weights_1T = torch.zeros(ids_1T.shape)
        weights_1T[:, len(tokenizer.encode(prompt).ids) :] = 1.0
        count = int(weights_1T.sum())
        total += weighted_loss(model, Rows(ids_1T, weights_1T)).item() * count
        tokens += count
    return total / tokens


def _rate(step: int, recipe: Recipe) -> float:
    warm = min(1.0, step / recipe.warmup_steps)
    return (
        recipe.peak_rate
        * warm
        * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
    )


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, target: Path) -> None:
    """Write the fp16 checkpoint with every file that a loader may want.

    Args:
        model: The trained model; it is cast to fp16 in place.
        tokenizer: Its tokenizer.
        target: The folder to write, made if absent.
    """
    model.half().save_pretrained(target)
    # Written readable by its owner alone, and so it would be packaged.
    (target / "model.safetensors").chmod(0o644)
    path = target / "config.json"
    config = json.loads(path.read_text())
    # Loaders older than transformers 5 know these two names only.
    config |= {"torch_dtype": "float16", "rope_theta": config["rope_parameters"]["rope_theta"]}
    path.write_text(json.dumps(config, indent=1) + "\n")
    (target / "tokenizer.json").write_text(tokenizer.to_str(pretty=False))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def write_evaluation_sets(target: Path) -> None:
    """Write every evaluation file as JSON lines into a folder, made if absent."""
    target.mkdir(parents=True, exist_ok=True)
    for name, documents in evaluation_sets().items():
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        (target / f"{name}.jsonl").write_text(lines)


def quantize(source: Path, output: Path) -> None:
    """Write the two EXL2 sizes beside the fp16 folder, replacing older ones."""
    from lm_eval_exl2.checkpoint.writer import quantize_directory

    for bits in (GOOD_BITS, DAMAGED_BITS):
        target = output / f"exl2-{bits}bpw"
        shutil.rmtree(target, ignore_errors=True)
        quantize_directory(source, target, bits=bits, head_bits=6)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--data", type=Path, help="folder for the evaluation files, else skipped")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--quantize-only", action="store_true", help="keep the fp16 checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the order of additions, and so the result, is the same everywhere
    torch.use_deterministic_algorithms(True)
    source = arguments.output / "fp16"
    if arguments.data:
        write_evaluation_sets(arguments.data)
    if not arguments.quantize_only:
        tokenizer, model = train_tokenizer(), new_model()
        curve = train(model, tokenizer, Recipe(steps=arguments.steps))
        save(model, tokenizer, source)
        lines = ",\n ".join(json.dumps(entry) for entry in curve)
        (arguments.output / "loss_curve.json").write_text(f"[{lines}]\n")
    quantize(source, arguments.output)


if __name__ == "__main__":
    main()
