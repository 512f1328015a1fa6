"""Programs that break things: each must end with one of these outcomes, and soon."""

TESTS = "assert attack() == 'solved'"
_FAILS = ("failed",)

# Name: (program, outcomes).
ROBUSTNESS = {
    "an endless loop": ("def attack():\n    while True: pass", ("timed out",)),
    "an endless loop while loading": ("while True: pass", ("timed out",)),
    "an endless sleep": ("import time\ndef attack(): time.sleep(3600)", ("timed out",)),
    "signals ignored": (
        "import signal, time\n"
        "for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "def attack():\n    while True: time.sleep(1)",
        ("timed out",),
    ),
    "all memory": ("def attack(): return len(bytearray(1 << 33))", ("out of memory", "failed")),
    "all memory, piece by piece": (
        "def attack():\n    pieces = []\n    while True: pieces.append(bytearray(1 << 22))",
        ("out of memory",),
    ),
    "all memory while loading": ("x = [0] * (1 << 31)", ("out of memory",)),
    "endless recursion": ("def attack(): return attack()", _FAILS),
    "endless recursion without a limit": (
        "import sys\nsys.setrecursionlimit(1 << 30)\ndef attack(): return [attack()]",
        ("failed", "out of memory", "timed out"),
    ),
    "a crash": ("import ctypes\ndef attack(): ctypes.string_at(0)", _FAILS),
    "an abort": ("import os\ndef attack(): os.abort()", _FAILS),
    "a syntax error": ("def attack(:", _FAILS),
    "null bytes": ("x = 1\0", _FAILS),
    "nothing": ("", _FAILS),
    "half a megabyte of source": ("x = [" + "1, " * 150_000 + "]\ndef attack(): pass", _FAILS),
    "a million lines of output": (
        "def attack():\n    for i in range(1000000): print(i)\n    return 1",
        _FAILS,
    ),
    "a gigabyte returned": (
        "def attack(): return 'x' * (1 << 28)",
        ("refused output", "out of memory"),
    ),
    "a long frame announced": (
        "import os\n"
        "for d in range(3, 64):\n    try: os.write(d, b'\\xff\\xff\\xff\\xff')\n    except OSError: pass\n"
        "def attack(): pass",
        ("refused output", "failed"),
    ),
    "half a frame": (
        "import os\n"
        "for d in range(3, 64):\n    try: os.write(d, b'\\x10\\0\\0\\0abc')\n    except OSError: pass\n"
        "os._exit(0)",
        _FAILS,
    ),
    "frames of nonsense": (
        "import os\n"
        "for d in range(3, 64):\n    try: os.write(d, b'\\x04\\0\\0\\0abcd' * 100)\n    except OSError: pass\n"
        "def attack(): pass",
        ("refused output", "failed"),
    ),
    "a value nested a thousand times": (
        "def attack():\n    x = []\n    for _ in range(1000): x = [x]\n    return x",
        ("refused output",),
    ),
    "a value that contains itself": (
        "def attack():\n    x = []\n    x.append(x)\n    return x",
        ("refused output",),
    ),
    "a value that doubles": (
        "def attack():\n    x = [0]\n    for _ in range(60): x = [x, x]\n    return x",
        ("refused output",),
    ),
    "a number of ten million digits": ("def attack(): return 1 << 40_000_000", _FAILS),
    "an exception of a megabyte": ("def attack(): raise ValueError('x' * (1 << 20))", _FAILS),
    "a name that is no text": ("def attack(): raise ValueError('\\ud800\\0\\x1b[31m')", _FAILS),
    "closes every descriptor": ("import os\ndef attack(): os.closerange(0, 64)", _FAILS),
    "never reads what it is asked": (
        "import time, sys\nsys.modules['inside.channel'].receive = lambda *a: time.sleep(3600)\n"
        "def attack(): pass",
        ("timed out",),
    ),
    "a thousand threads": (
        "import threading, time\n"
        "def attack():\n"
        "    threading.stack_size(32768)\n"
        "    for _ in range(5000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "    return 'all'",
        ("failed", "out of memory", "timed out"),
    ),
    "a refusal of twenty thousand letters": (
        "import sys\nv = sys.modules['inside.values']\nreal = v.encode\n"
        "v.encode = lambda value, handle_of: real(('refused', 'x' * 20000), handle_of)\n"
        "def attack(): pass",
        ("refused output",),
    ),
    "an error of twenty thousand letters": (
        "import sys\nv = sys.modules['inside.values']\nreal = v.encode\n"
        "v.encode = lambda value, h: real(('error', 'x' * 20000, ('y' * 20000,)), h)\n"
        "def attack(): pass",
        _FAILS,
    ),
    "stops itself": (
        "import os, signal\ndef attack(): os.kill(os.getpid(), signal.SIGSTOP)",
        ("timed out",),
    ),
}
