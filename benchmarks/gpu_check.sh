#!/bin/sh
# Every check that needs an NVIDIA card, in one command; see gpu_check.py for what they are.
# Needs Python with this package, its `dev` and `exllamav2` extras, and nvcc for the first run.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

# exllamav2 compiles for the card that is there; without a list, for every one it knows.
ask_card='import torch; print("%d.%d" % torch.cuda.get_device_capability())'
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
    TORCH_CUDA_ARCH_LIST=$($PYTHON -c "$ask_card" 2>/dev/null) || {
        echo "gpu_check.sh: PyTorch ($PYTHON) sees no NVIDIA card" >&2
        exit 1
    }
fi
if [ -z "${CUDA_HOME:-}" ] && command -v nvcc >/dev/null; then
    CUDA_HOME=$(dirname "$(dirname "$(command -v nvcc)")")
    export CUDA_HOME
fi
MAX_JOBS=${MAX_JOBS:-$(nproc)}
export TORCH_CUDA_ARCH_LIST MAX_JOBS
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

exec "$PYTHON" benchmarks/gpu_check.py "$@"
