"""The code of `inside/`, compiled once and handed to each process on its standard input.

Sent as code and not as a path, because the process may run as a user, or behind mounts, that cannot
see this package.
"""

import functools
import marshal
import os
from pathlib import Path
from typing import Any

_MODULES = ("seccomp", "confine", "channel", "values", "worker", "checker", "main")
_LENGTH_BYTES = 8

# What `python -c` runs: reads a length, the modules, a length, the job. Both processes are of the
# Python that compiled the modules, so marshal's format is the same.
LOADER = f"""
import marshal, os, sys, types
def read():
    size, data = int.from_bytes(os.read(0, {_LENGTH_BYTES}), "little"), b""
    while len(data) < size:
        data += os.read(0, size - len(data))
    return marshal.loads(data)
package = sys.modules["inside"] = types.ModuleType("inside")
package.__path__ = []
for name, code in read():
    module = sys.modules["inside." + name] = types.ModuleType("inside." + name)
    module.__package__ = "inside"
    setattr(package, name, module)
    exec(code, module.__dict__)
package.main.run(read())
"""


@functools.cache
def _modules() -> bytes:
    folder = Path(__file__).parent / "inside"
    code = [
        (name, compile((folder / f"{name}.py").read_text("utf-8"), f"<inside/{name}>", "exec"))
        for name in _MODULES
    ]
    return marshal.dumps(code)


def open_input(job: dict[str, Any]) -> int:
    """Descriptor of an unnamed file from which `LOADER` reads the code and the job.

    Args:
        job: For `inside.main.run`; builtin values only.
    """
    descriptor = os.memfd_create("sandbox")
    for part in (_modules(), marshal.dumps(job)):
        data = memoryview(len(part).to_bytes(_LENGTH_BYTES, "little") + part)
        while data:
            data = data[os.write(descriptor, data) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
