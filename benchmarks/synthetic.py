"""Write an EXL2 checkpoint of a real model's shape with random weights, for speed measurements.

    python benchmarks/synthetic.py --shape llama-3.1-8b --output /models/bench-8b --bits 4.0
    python benchmarks/synthetic.py --shape bench-70m --output /models/bench-70m --data DATA

Speed and memory depend on shapes and widths, not on what a model knows, so nothing needs to be
downloaded. Codes are random words, which every width can hold; scales make the weights about
0.02 large; permutations are random. No float16 weight of a linear layer is ever built and one
shard is held in memory at a time, so the 70B shape needs little more than its disk space.
Scores of such a model mean nothing.

The same seed gives the same files on one kind of device; CPU and CUDA draw different numbers.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from workloads import training_text

from lm_eval_exl2.checkpoint.architectures import linear_size
from lm_eval_exl2.checkpoint.config import Sizes
from lm_eval_exl2.checkpoint.packing import (
    WidthMix,
    pack_group_table,
    pack_scale_codes,
    packed_bits,
)
from lm_eval_exl2.checkpoint.shards import (
    MAX_SHARD_BYTES,
    ShardWriter,
    copy_other_files,
    new_directory,
    write_json,
)
from lm_eval_exl2.checkpoint.writer import quantized_config
from lm_eval_exl2.errors import Exl2EvalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

GROUP_ROWS = 128
"""What exllamav2 uses for most of a 4-bit model."""
WEIGHT_SIZE = 0.02
"""Root mean square of the weights, as in freshly initialised Llama models."""

_LEAST_SCALE_CODE = 8  # of 16: steps of neighbouring columns differ up to fourfold
_LINEARS = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
_NORMS = ("input_layernorm", "post_attention_layernorm")
_SPECIAL_TOKENS = ("<s>", "</s>")


@dataclass(frozen=True)
class Shape:
    """Public dimensions of a Llama model."""

    sizes: Sizes
    context: int
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tied: bool = False


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


# Source: config.json of the models on the Hugging Face hub; bench-70m is ours. Sizes in order:
# hidden, layers, heads, key-value heads, head, intermediate, vocabulary, experts.
SHAPES = {
    "bench-70m": Shape(Sizes(512, 12, 8, 8, 64, 1408, 32000, 0), 4096),
    "llama-2-13b": Shape(Sizes(5120, 40, 40, 40, 128, 13824, 32000, 0), 4096),
    "llama-3.2-1b": Shape(
        Sizes(2048, 16, 32, 8, 64, 8192, 128256, 0), 131072, 5e5, _llama3_rope(32.0), tied=True
    ),
    "llama-3.1-8b": Shape(
        Sizes(4096, 32, 32, 8, 128, 14336, 128256, 0), 131072, 5e5, _llama3_rope(8.0)
    ),
    "llama-3.1-70b": Shape(
        Sizes(8192, 80, 64, 8, 128, 28672, 128256, 0), 131072, 5e5, _llama3_rope(8.0)
    ),
}


class Draw:
    """Random tensors from one seeded generator."""

    def __init__(self, device: str, seed: int) -> None:
        """Seed the generator of a device."""
        generator = torch.Generator(device).manual_seed(seed)
        self._where: dict[str, Any] = {"device": device, "generator": generator}

    def integers(
        self, low: int, high: int, size: tuple[int, ...], dtype: torch.dtype = torch.int64
    ) -> torch.Tensor:
        """Return integers from `low` up to, not including, `high`."""
        return torch.randint(low, high, size, dtype=dtype, **self._where)

    def permutation(self, size: int) -> torch.Tensor:
        """Return a random permutation as int32."""
        return torch.randperm(size, **self._where).int()

    def embedding(self, rows: int, columns: int) -> torch.Tensor:
        """Return normal float16 values of the size of a weight."""
        return torch.randn(rows, columns, dtype=torch.float16, **self._where) * WEIGHT_SIZE


def random_linear(
    draw: Draw, out_features: int, plan: list[tuple[int, int, int]]
) -> dict[str, torch.Tensor]:
    """Return the five tensors of a random linear layer.

    Args:
        draw: Source of randomness.
        out_features: A multiple of 32.
        plan: (bits, rows, rows per group), all groups whole, wide to narrow.
    """
    table: list[int] = []
    words: list[torch.Tensor] = []
    scale_max: list[float] = []
    first_word = 0
    for bits, rows, group_rows in plan:
        for _ in range(rows // group_rows):
            table += [bits, first_word]
            scale_max.append(_scale_max(bits))
            first_word += group_rows * bits // 32
        # Any bits are valid codes.
        size = (rows * bits // 32, out_features)
        words.append(draw.integers(-(1 << 31), 1 << 31, size, torch.int32))
    scale_codes = draw.integers(_LEAST_SCALE_CODE, 17, (len(scale_max), out_features))
    return {
        "q_weight": torch.cat(words),
        "q_invperm": draw.permutation(sum(rows for _, rows, _ in plan)),
        "q_scale": pack_scale_codes(scale_codes),
        "q_scale_max": torch.tensor(scale_max, dtype=torch.float16),
        "q_groups": pack_group_table(table),
    }


def _scale_max(bits: int) -> float:
    """Return the largest scale at which uniform random codes have the wanted size."""
    values = range(-(1 << (bits - 1)), 1 << (bits - 1))
    squares = [code**4 / 256**2 for code in range(_LEAST_SCALE_CODE, 17)]
    mean_square = sum(v * v for v in values) / len(values) * sum(squares) / len(squares)
    return WEIGHT_SIZE / mean_square**0.5


class Builder:
    """One checkpoint being drawn."""

    def __init__(self, shape: Shape, bits: float, head_bits: int, draw: Draw) -> None:
        """Prepare; nothing is drawn yet."""
        self._sizes = shape.sizes
        self._mix = WidthMix(bits, GROUP_ROWS)
        self._head_mix = WidthMix(head_bits, GROUP_ROWS)
        self._draw = draw
        self._stored_bits = 0
        self._weights = 0

    @property
    def measured_bits(self) -> float:
        """Bits per weight of the decoder layers drawn so far."""
        return self._stored_bits / self._weights

    def tensors(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the checkpoint, one module at a time."""
        hidden = self._sizes.hidden_size
        embedding = self._draw.embedding(self._sizes.vocab_size, hidden)
        yield {"model.embed_tokens.weight": embedding}
        for index in range(self._sizes.layers):
            prefix = f"model.layers.{index}"
            for norm in _NORMS:
                yield {f"{prefix}.{norm}.weight": torch.ones(hidden, dtype=torch.float16)}
            for name in _LINEARS:
                yield self._linear(f"{prefix}.{name}")
        yield {"model.norm.weight": torch.ones(hidden, dtype=torch.float16)}
        yield self._linear("lm_head")

    def _linear(self, module: str) -> dict[str, torch.Tensor]:
        size = linear_size(module, self._sizes)
        assert size is not None
        is_head = module == "lm_head"
        plan = (self._head_mix if is_head else self._mix).plan(*size)
        tensors = random_linear(self._draw, size[0], plan)
        if not is_head:
            self._stored_bits += packed_bits(tensors)
            self._weights += size[0] * size[1]
        return {f"{module}.{short}": tensor for short, tensor in tensors.items()}


def config_of(shape: Shape, special_ids: dict[str, int | None]) -> dict[str, Any]:
    """Return config.json of a shape, without quantization_config."""
    rope = {"rope_theta": shape.rope_theta, **(shape.rope_scaling or {"rope_type": "default"})}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.sizes.hidden_size,
        "intermediate_size": shape.sizes.intermediate_size,
        "num_hidden_layers": shape.sizes.layers,
        "num_attention_heads": shape.sizes.heads,
        "num_key_value_heads": shape.sizes.kv_heads,
        "head_dim": shape.sizes.head_dim,
        "vocab_size": shape.sizes.vocab_size,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        "dtype": "float16",
        "rope_parameters": rope,
        **special_ids,
    }


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of 256 bytes and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: index for index, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL_TOKENS])
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE of so many entries, two special tokens included.

    Raises:
        SystemExit: the texts are too few for so many entries.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(text, special=True) for text in _SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        found = tokenizer.get_vocab_size()
        sys.exit(f"synthetic.py: error: the text gives {found} entries of {vocab_size}")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> dict[str, int | None]:
    """Write a tokenizer with BOS and EOS; return their ids."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _SPECIAL_TOKENS[0],
        "eos_token": _SPECIAL_TOKENS[1],
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    bos, eos = (tokenizer.token_to_id(text) for text in _SPECIAL_TOKENS)
    return {"bos_token_id": bos, "eos_token_id": eos}


def copy_tokenizer(source: Path, folder: Path) -> dict[str, int | None]:
    """Copy the tokenizer of another checkpoint; return the ids of its special tokens."""
    from transformers import AutoTokenizer

    copy_other_files(source, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def write_checkpoint(
    shape: Shape,
    output: Path,
    draw: Draw,
    *,
    bits: float,
    head_bits: int,
    tokenizer: Path | Tokenizer | None = None,
) -> float:
    """Write a checkpoint, whole or not at all; return the bits per weight of its layers.

    Args:
        shape: Dimensions of the model.
        output: Folder to create.
        draw: Source of randomness.
        bits: Average code width of the layers.
        head_bits: Code width of the head.
        tokenizer: One to save, or a folder whose tokenizer files are copied; default bytes.
    """
    with new_directory(output) as folder:
        builder = Builder(shape, bits, head_bits, draw)
        shards = ShardWriter(folder, "output", MAX_SHARD_BYTES)
        for tensors in builder.tensors():
            shards.add(tensors)
        shards.finish()
        if isinstance(tokenizer, Path):
            ids = copy_tokenizer(tokenizer, folder)
        else:
            ids = write_tokenizer(tokenizer or byte_tokenizer(), folder)
        config = quantized_config(config_of(shape, ids), builder.measured_bits, head_bits)
        config["quantization_config"]["calibration"]["dataset"] = "(none, random weights)"
        write_json(folder / "config.json", config)
        return builder.measured_bits


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder to create")
    parser.add_argument("--bits", type=float, default=4.0, help="average code width of the layers")
    parser.add_argument("--head-bits", type=int, default=6, help="code width of the head")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files are copied")
    source.add_argument("--data", type=Path, help="train a tokenizer on the benchmark's own text")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    tokenizer: Path | Tokenizer | None = arguments.tokenizer
    if arguments.data:
        tokenizer = train_tokenizer(training_text(arguments.data), shape.sizes.vocab_size)
    try:
        measured = write_checkpoint(
            shape,
            arguments.output,
            Draw(arguments.device, arguments.seed),
            bits=arguments.bits,
            head_bits=arguments.head_bits,
            tokenizer=tokenizer,
        )
    except (Exl2EvalError, OSError) as error:
        sys.exit(f"synthetic.py: error: {error}")
    print(f"wrote {arguments.output}: {measured:.3f} bits per weight in the layers")


if __name__ == "__main__":
    main()
