"""Whether exllamav2 can be used here, and its import made harmless.

`import exllamav2` prints to stdout, sets torch to one thread and, where its extension is not
built, starts to compile it or fails with whatever error that meets (read in 0.3.2). None of that
may reach a user who did not ask for it. Imports nothing by itself.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
from typing import Any

from lm_eval_exl2.errors import MissingDependencyError

logger = logging.getLogger(__name__)

CHECKED_VERSION = "0.3.2"
"""The release whose behaviour this package was written against."""

# A missing compiler, CUDA_HOME, ninja, headers or symbols: what building or loading the extension
# was seen to raise.
_FAILURES = (
    ImportError,
    OSError,
    RuntimeError,
    IndexError,
    AttributeError,
    subprocess.SubprocessError,
)


def quiet_stdout() -> contextlib.AbstractContextManager[object]:
    """Send what exllamav2 prints to stderr: the harness writes its tables to stdout."""
    return contextlib.redirect_stdout(sys.stderr)


def has_cuda() -> bool:
    """Whether PyTorch sees a CUDA (or ROCm) card."""
    import torch

    return torch.cuda.is_available()


def why_unavailable() -> str | None:
    """Return in a few words why exllamav2 cannot be used, None if it may work."""
    if not has_cuda():
        return "there is no CUDA card"
    if importlib.util.find_spec("exllamav2") is None:
        return "exllamav2 is not installed"
    return None


def exllamav2_version() -> str:
    """Return the installed version, a build tag such as `+cu128` included."""
    return importlib.metadata.version("exllamav2")


def import_exllamav2() -> Any:
    """Import exllamav2 without its side effects.

    Returns:
        The module `exllamav2`.

    Raises:
        MissingDependencyError: not installed, no card, or its extension cannot be loaded or built.
    """
    reason = why_unavailable()
    if reason:
        raise MissingDependencyError(
            f"engine=exllamav2 is not available: {reason}; pip install 'lm_eval_exl2[exllamav2]' "
            "on a machine with an NVIDIA card, or use engine=torch"
        )
    import torch

    threads = torch.get_num_threads()
    before = set(sys.modules)
    try:
        with quiet_stdout():
            module = importlib.import_module("exllamav2")
    except _FAILURES as error:
        # A second attempt would find half of it imported and fail in another way.
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("exllamav2", "exllamav2_ext"):
                del sys.modules[name]
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MissingDependencyError(
            f"engine=exllamav2 is not available: its extension does not load ({message}); install "
            "a wheel built for this PyTorch, set CUDA_HOME so that it can be compiled, or use "
            "engine=torch"
        ) from error
    finally:
        torch.set_num_threads(threads)
    version = exllamav2_version()
    if version.partition("+")[0] != CHECKED_VERSION:
        logger.warning(
            "exllamav2 %s is installed; this package was checked against %s only",
            version,
            CHECKED_VERSION,
        )
    return module
