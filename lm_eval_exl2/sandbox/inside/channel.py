"""Frames over pipes: four bytes of length, then that many bytes."""

# pyright: basic

import os

_HEADER = 4


def read_exactly(descriptor: int, size: int) -> bytes | None:
    """`size` bytes, or None if the other end was closed before."""
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send(descriptor: int, data: bytes) -> None:
    """Writes one frame.

    Raises:
        BrokenPipeError: The other end was closed.
    """
    view = memoryview(len(data).to_bytes(_HEADER, "little") + data)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int, limit: int) -> bytes | None:
    """One frame; None if the other end was closed.

    Raises:
        ValueError: The frame is longer than `limit` bytes.
    """
    header = read_exactly(descriptor, _HEADER)
    if header is None:
        return None
    size = int.from_bytes(header, "little")
    if size > limit:
        raise ValueError(f"a frame of {size} bytes; at most {limit} are read")
    return read_exactly(descriptor, size)
