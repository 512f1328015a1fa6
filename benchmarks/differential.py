"""Do `exl2` and the harness's own `hf` model give the same answers?

    python benchmarks/differential.py --count 20000 --seed 1

Loads tiny random models with both and compares generated requests of all three types, under the
rules of tests/deliberate_differences.md. The test suite runs the same code. The last line of
output is one JSON document.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from differential_cases import CONFIGURATIONS, compare


def measure(count=2000, seed=0):
    """Compare at least `count` requests; the same count and seed are the same requests."""
    size = -(-count // len(CONFIGURATIONS))
    found = [compare(configuration, size, seed) for configuration in CONFIGURATIONS]
    kinds = sorted({kind for comparison in found for kind in comparison.requests})
    return {
        "requests_compared": sum(sum(c.requests.values()) for c in found),
        "disagreements": sum(len(c.disagreements) for c in found),
        "largest_loglikelihood_difference": max(c.largest for c in found),
        "largest_share_of_tolerance": max(c.share for c in found),
        "by_type": {kind: sum(c.requests.get(kind, 0) for c in found) for kind in kinds},
        "examples": [text for c in found for text in c.disagreements][:10],
    }


def main():
    """Read the command line, compare, print."""
    parser = argparse.ArgumentParser(description="Compare exl2 with the harness's hf model.")
    parser.add_argument("--count", type=int, default=2000, help="how many requests, at least")
    parser.add_argument("--seed", type=int, default=0, help="which requests")
    options = parser.parse_args()
    print(json.dumps(measure(options.count, options.seed)))


if __name__ == "__main__":
    main()
