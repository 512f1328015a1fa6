"""What the simulated kernels share: handles of objects, and checks that are loud.

exllamav2's extension gives Python addresses of C++ objects. Here they are numbers in a table, so
that a handle that was freed, or is of another kind, is an error instead of a crash on a card.
"""

import itertools

import torch

_numbers = itertools.count(0x5EED)
_objects = {}


class KernelMisuseError(AssertionError):
    """What a real kernel would refuse, or would do with memory that is not its own."""


def check(condition, message):
    """Refuse a call, as TORCH_CHECK does; also where the real kernels check nothing."""
    if not condition:
        raise KernelMisuseError(message)


def keep(thing):
    """Give an object a handle."""
    handle = next(_numbers)
    _objects[handle] = thing
    return handle


def look_up(handle, kind):
    """Return the object of a handle."""
    thing = _objects.get(handle)
    check(isinstance(thing, kind), f"handle {handle} is not an open {kind.__name__}")
    return thing


def release(handle, kind):
    """Free a handle; freeing it twice is an error."""
    look_up(handle, kind)
    del _objects[handle]


def open_handles():
    """Return how many objects of the simulated extension have not been freed."""
    return len(_objects)


def optional(tensor):
    """Return None for the meta tensor that exllamav2 passes instead of NULL."""
    return None if tensor.is_meta else tensor


def check_raw(tensor, dtype, name, elements=None):
    """Check a tensor whose memory a kernel takes as one block, without asking for strides."""
    check(tensor.dtype == dtype, f"{name} is incorrect datatype {tensor.dtype}, must be {dtype}")
    check(tensor.is_contiguous(), f"{name} is not contiguous: kernels would read other memory")
    if elements is not None:
        count = tensor.numel()
        check(count == elements, f"{name} has {count} elements, the kernel takes {elements}")


def check_optional(tensor, dtype, name):
    """Check the dtype of a tensor that may be missing."""
    check(tensor.is_meta or tensor.dtype == dtype, f"{name} is incorrect datatype, must be {dtype}")


def check_room(tensor, elements, name):
    """Check that a scratch buffer, where there is one, holds what a kernel writes to it."""
    check(tensor.is_meta or tensor.numel() >= elements, f"{name} is too small for {elements}")


def to_half(values):
    """Round to float16; what is too large becomes infinite, as on a card."""
    return values.to(torch.float16)
