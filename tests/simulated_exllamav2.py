"""exllamav2 on a machine without a card: its own Python over the simulated extension.

`install(monkeypatch)` lasts as long as the test. Its copy of exllamav2 is imported once and kept
apart: a copy that was imported before, over real kernels, is back when the test ends.
"""

import contextlib
import functools
import importlib
import io
import os
import sys
import warnings
from unittest import mock

import simulated_flash_attn
import simulated_xformers
import torch
from simulated_kernels import make_extension

# Imported by the first install, so that no copy of them is made later and stays.
_SUBMODULES = ("exllamav2.generator", "exllamav2.lora", "exllamav2.generator.base")
_FLASH_FLAGS = (
    *("has_flash_attn", "has_flash_attn_with_paged", "has_flash_attn_with_window"),
    *("has_flash_attn_with_softcap", "is_ampere_or_newer_gpu"),
)


def install(monkeypatch, *, flash_attn=False, xformers=False, free_bytes=8 << 30):
    """Make `import exllamav2` work in this process until the test ends.

    Args:
        monkeypatch: pytest's fixture, which undoes everything.
        flash_attn: Whether flash-attn 2.8.3 is found.
        xformers: Whether xformers is found.
        free_bytes: Free memory of the one card.

    Returns:
        The module `exllamav2`.
    """
    modules = _import_exllamav2()
    for name in [name for name in sys.modules if _is_exllamav2(name)]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    own = {name: module for name, module in modules.items() if name != "exllamav2_ext"}
    _patch_devices(monkeypatch, own, free_bytes)
    attention = own["exllamav2.attn"]
    flags = dict.fromkeys(_FLASH_FLAGS, flash_attn) | {"has_xformers": xformers}
    for name in flags:
        monkeypatch.setattr(attention, name, False, raising=False)
    for module in own.values():
        for name in flags.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, flags[name])
    if flash_attn:
        _add_flash_attn(monkeypatch, attention)
    if xformers:
        _add_xformers(monkeypatch, attention)
    return own["exllamav2"]


def _is_exllamav2(name):
    return name.partition(".")[0] in ("exllamav2", "exllamav2_ext")


@functools.cache
def _import_exllamav2():
    """Import a copy of exllamav2 over the simulated extension; return its modules by name."""
    others = {name: module for name, module in sys.modules.items() if _is_exllamav2(name)}
    for name in others:
        del sys.modules[name]
    sys.modules["exllamav2_ext"] = make_extension()
    threads = torch.get_num_threads()
    try:
        # It prints that PyTorch has no CUDA, and sets an environment variable.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.dict(os.environ),
            warnings.catch_warnings(),
        ):
            # With the versions at hand nothing warns, but its dependencies are many.
            warnings.simplefilter("ignore")
            for name in ("exllamav2", *_SUBMODULES):
                importlib.import_module(name)
        return {name: module for name, module in sys.modules.items() if _is_exllamav2(name)}
    finally:
        torch.set_num_threads(threads)
        for name in [name for name in sys.modules if _is_exllamav2(name)]:
            del sys.modules[name]
        sys.modules.update(others)


# -- in place of a card -----------------------------------------------------------------------


class _NoStreams(dict):
    """The table of streams, one per device: as if each had been made, and none need be set."""

    def __contains__(self, index):
        return True

    def __missing__(self, index):
        return None


def _stay(tensor, _device, non_blocking=False):
    """Move a tensor, or each of a tuple, nowhere."""
    return tensor


def _patch_devices(monkeypatch, modules, free_bytes):
    """Let every device be the CPU, and the one card have memory."""
    for module in modules.values():
        for name, value in (("_torch_device", lambda _index: "cpu"), ("safe_move_tensor", _stay)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(modules["exllamav2.device"], "global_streams", _NoStreams())
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device=None: (free_bytes, free_bytes))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def _add_flash_attn(monkeypatch, attention):
    """Let flash-attn be found, by exllamav2 and by others."""
    module = simulated_flash_attn.make_module()
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"):
        monkeypatch.setattr(attention, name, getattr(module, name), raising=False)


def _add_xformers(monkeypatch, attention):
    """Let xformers be found, by exllamav2 and by others."""
    modules = simulated_xformers.make_modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    mask = simulated_xformers.LowerTriangularFromBottomRightMask
    monkeypatch.setattr(attention, "xops", modules["xformers.ops"], raising=False)
    monkeypatch.setattr(attention, mask.__name__, mask, raising=False)
