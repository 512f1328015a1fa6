"""Is decoding exact? Checks golden layers and random ones bit by bit and counts mismatches.

    python benchmarks/check_decode.py --golden tests/data/exl2_golden.safetensors --random 200

Golden layers carry the weight exllamav2's kernels reconstruct; random layers are compared with
the scalar decoder of the tests. The last line printed is JSON.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from oracles import exl2_weight, random_exl2, random_plan

from lm_eval_exl2.checkpoint import decode
from lm_eval_exl2.checkpoint.format import TENSOR_NAMES

_PRESCALES = (1.0, 1.0, 1.0, 0.2236, 0.0625, 12.0)
_SCALES = (0.5, 0.01, 2.0**-12, 2.0**-16, 2.0**-20)  # the last ones are subnormal


def measure(golden=None, random_count=0, seed=0):
    """Decode golden and random layers and compare every bit.

    Args:
        golden: Path of a safetensors file with cases, or None.
        random_count: Number of random layers.
        seed: Of the random layers.

    Returns:
        Counts of matrices and weights decoded and of matrices that differ.
    """
    started = time.perf_counter()
    pairs = [*_golden(golden)] if golden else []
    golden_count = len(pairs)
    mismatches = weights = 0
    for found, expected in (*pairs, *_random(random_count, seed)):
        weights += expected.numel()
        mismatches += not same_bits(found, expected)
    return {
        "matrices_decoded": golden_count + random_count,
        "golden": golden_count,
        "random": random_count,
        "weights": weights,
        "mismatches": mismatches,
        "seconds": round(time.perf_counter() - started, 1),
    }


def same_bits(found, expected):
    """Whether two float16 tensors are equal bit for bit, signs of zero included."""
    return torch.equal(found.view(torch.int16), expected.view(torch.int16))


def _golden(path):
    with safe_open(str(path), framework="pt") as file:
        for case in json.loads(file.metadata()["cases"]):
            tensors = {name: file.get_tensor(f"{case['name']}.{name}") for name in TENSOR_NAMES}
            expected = file.get_tensor(f"{case['name']}.expected_weight")
            yield decode(tensors, case["prescale"]), expected


def _random(count, seed):
    choice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(count):
        tensors = random_exl2(
            generator,
            random_plan(choice),
            32 * choice.randint(1, 3),
            permuted=choice.random() < 0.8,
            largest=choice.choice(_SCALES),
        )
        prescale = choice.choice(_PRESCALES)
        yield decode(tensors, prescale), torch.from_numpy(exl2_weight(tensors, prescale))


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, help="safetensors file with golden cases")
    parser.add_argument("--random", type=int, default=100, help="number of random layers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = measure(options.golden, options.random, options.seed)
    print(json.dumps(result))
    return 1 if result["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
