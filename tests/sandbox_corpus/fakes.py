"""Programs that do not add, and try to be called right all the same. A pass of one is a fake."""

TESTS = """
METADATA = {"author": "nobody"}

def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(-1, 1) == 0
    assert candidate([1], [2]) == [1, 2]
    assert abs(candidate(0.5, 0.25) - 0.75) < 1e-9
    assert candidate(40, 2) in (42,), "the wrong sum"

check(add)
"""
HELPERS = 'def add(a, b):\n    """The sum of a and b."""\n'

# Written to every descriptor: bare, and framed as the checker frames its verdict.
_SHOUT = """
import os
def shout():
    text = b"passed\\n"
    for descriptor in range(64):
        for data in (text, len(text).to_bytes(4, "little") + text):
            try:
                os.set_blocking(descriptor, False)
                os.write(descriptor, data)
            except OSError:
                pass
"""
# An object to which every comparison answers yes and every sum is nothing.
_YES = """
class Yes(object):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __sub__(self, other): return 0.0
    __rsub__ = __add__ = __radd__ = __sub__
    def __abs__(self): return 0.0
    def __hash__(self): return 0
    def __bool__(self): return True
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
def add(a, b): return Yes()
"""

FAKES = {
    "os._exit while loading": "import os\nos._exit(0)",
    "os._exit when called": "import os\ndef add(a, b): os._exit(0)",
    "sys.exit while loading": "import sys\nsys.exit(0)",
    "SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "GeneratorExit when called": "def add(a, b): raise GeneratorExit",
    "an exception of its own": "class Done(BaseException): pass\ndef add(a, b): raise Done",
    "an exception that cannot be printed": (
        "class Odd(Exception):\n    def __str__(self): raise SystemExit(0)\n"
        "def add(a, b): raise Odd"
    ),
    "an object equal to everything": _YES,
    "the class of such an object": _YES + "\ndef add(a, b): return Yes",
    "an int equal to everything": (
        "class I(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\n"
        "    __sub__ = __rsub__ = lambda s, o: 0\n    __abs__ = lambda s: 0\n"
        "def add(a, b): return I(7)"
    ),
    "a list equal to everything": (
        "class L(list):\n    __eq__ = lambda s, o: True\n    __sub__ = lambda s, o: 0\n"
        "def add(a, b): return L([9])"
    ),
    "a float that is near everything": (
        "class F(float):\n    __sub__ = __rsub__ = lambda s, o: 0.0\n    __eq__ = lambda s, o: True\n"
        "    __hash__ = float.__hash__\ndef add(a, b): return F('nan')"
    ),
    "a str equal to everything": (
        "class S(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\n"
        "def add(a, b): return S('x')"
    ),
    "a dict equal to everything": (
        "class D(dict):\n    __eq__ = lambda s, o: True\ndef add(a, b): return D(a=1)"
    ),
    "NotImplemented": "def add(a, b): return NotImplemented",
    "an iterator of everything": "import itertools\ndef add(a, b): return itertools.count()",
    "unittest.mock.ANY": "from unittest import mock\ndef add(a, b): return mock.ANY",
    "a MagicMock": "from unittest import mock\nadd = mock.MagicMock()",
    "prints passed": "import sys\nprint('passed')\nsys.stderr.write('passed')\ndef add(a, b): print('passed')",
    "writes the verdict everywhere": _SHOUT + "shout()\ndef add(a, b): shout()",
    "writes the verdict and leaves": _SHOUT + "shout()\nos._exit(0)",
    "a thread that writes verdicts": (
        _SHOUT + "import threading, time\n"
        "def run():\n    while True: shout(); time.sleep(0.001)\n"
        "threading.Thread(target=run, daemon=True).start()\n"
        "def add(a, b): time.sleep(0.2)"
    ),
    "writes the verdict at exit": _SHOUT
    + "import atexit\natexit.register(shout)\ndef add(a, b): raise SystemExit",
    "appends passed to every list in sight": (
        "import gc, sys\n"
        "def add(a, b):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for value in frame.f_locals.values():\n"
        "            if isinstance(value, list): value.append('passed')\n"
        "        frame = frame.f_back\n"
        "    for value in gc.get_objects():\n"
        "        if type(value) is list and len(value) < 3: value.append('passed')\n"
    ),
    "jumps over assertions": (
        "import sys\n"
        "def trace(frame, event, arg):\n"
        "    try: frame.f_lineno = frame.f_lineno + 1\n"
        "    except ValueError: pass\n"
        "    return trace\n"
        "def add(a, b):\n"
        "    frame = sys._getframe()\n"
        "    while frame: frame.f_trace = trace; frame = frame.f_back\n"
        "    sys.settrace(trace)\n"
    ),
    "a decorator for what follows": "def add(a, b): pass\ndef ignore(f): return lambda *a: None\n@ignore",
    "a string that swallows what follows": "def add(a, b): pass\n'''",
    "its own check": "def check(candidate): pass\ndef add(a, b): pass",
    "its own candidate": "candidate = lambda a, b: a\ndef add(a, b): pass",
    "its own builtins by name": "abs = lambda x: 0\nAssertionError = None\ndef add(a, b): return 0",
    "patched builtins": (
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.AssertionError = ValueError\n"
        "builtins.isinstance = lambda *a: True\ndef add(a, b): return 0"
    ),
    "patched modules": (
        "import math, random, copy\nmath.isclose = lambda *a, **k: True\n"
        "random.randint = lambda a, b: 0\ncopy.deepcopy = lambda x: x\ndef add(a, b): return 0"
    ),
    "patched protocol": (
        "import sys\n"
        "for name in ('values', 'channel', 'worker', 'checker', 'main'):\n"
        "    module = sys.modules['inside.' + name]\n"
        "    for key in list(vars(module)):\n"
        "        if key in ('check', 'report', '_run_tests'): setattr(module, key, lambda *a: ('passed', ''))\n"
        "sys.modules['inside.values'].encode = lambda value, handle_of: b't\\x02\\0\\0\\0s\\x06\\0\\0\\0passeds\\0\\0\\0\\0'\n"
        "def add(a, b): return 0"
    ),
    "constants overwritten in memory": (
        "import ctypes, gc\n"
        "def add(a, b):\n"
        "    for number in (5, 0, 42):\n"
        "        ctypes.memmove(id(number) + 24, ctypes.byref(ctypes.c_uint32(7)), 4)\n"
        "    return 7\n"
    ),
    "reads what is expected from callers": (
        "import sys\n"
        "def add(a, b):\n"
        "    frame, seen = sys._getframe(), []\n"
        "    while frame: seen += frame.f_code.co_consts; frame = frame.f_back\n"
        "    return next((c for c in seen if isinstance(c, int) and c not in (a, b)), None)\n"
    ),
    "optimized away": (
        "import os, sys\nos.environ['PYTHONOPTIMIZE'] = '1'\nsys.flags\n"
        "def add(a, b): os.execv(sys.executable, [sys.executable, '-O', '-c', 'pass'])"
    ),
    "kills its starter": "import os\ndef add(a, b): os.kill(os.getppid(), 9)",
    "kills every process": "import os\ndef add(a, b):\n    for p in range(1, 300): \n        if p != os.getpid():\n            try: os.kill(p, 9)\n            except OSError: pass",
    "a handle that does not exist": (
        "import sys\nv = sys.modules['inside.values']\n"
        "v.encode = lambda value, handle_of: b't\\x02\\0\\0\\0s\\x05\\0\\0\\0valueh\\x04\\0\\0\\0ffff'\n"
        "def add(a, b): return 0"
    ),
    "an answer before the question": (
        "import os, sys\nv = sys.modules['inside.values']\n"
        "answer = v.encode(('value', True), None)\n"
        "for d in range(3, 64):\n"
        "    try:\n"
        "        for _ in range(50): os.write(d, len(answer).to_bytes(4, 'little') + answer)\n"
        "    except OSError: pass\n"
        "def add(a, b): return True"
    ),
    "always true": "def add(a, b): return True",
}

_CHECK_ROOT = """
def check(candidate):
    for coefficients in ([1, 2], [-6, 11, -6, 1], [3, 5]):
        assert math.fabs(poly(coefficients, candidate(list(coefficients)))) < 1e-4

check(add)
"""
_POLY = (
    "import math\ndef poly(xs, x):\n    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n"
)
# Fakes that aim at another kind of test: (program, tests, helpers).
AIMED = {
    # HumanEval/32 asks for a root, and computes with what it gets several times.
    "another number each time it is asked": (
        "class F:\n    n = -1\n    def __init__(s, xs): s.xs = xs\n"
        "    def __float__(s):\n        s.n += 1\n"
        "        return -s.xs[0] / s.xs[1] if s.n == 1 else 0.0\n"
        "    __index__ = __int__ = lambda s: 0\n"
        "def add(xs): return F(xs)",
        _CHECK_ROOT,
        _POLY,
    ),
    "StopIteration in a loop of the tests": (
        "def add(x): raise StopIteration",
        "for got in map(add, [1, 2]):\n    assert got == 7",
        "",
    ),
    "StopIteration in all()": (
        "def add(x): raise StopIteration",
        "assert all(map(lambda case: add(case) == 7, [1, 2]))",
        "",
    ),
    "a name that the tests forgot to import": (
        "class np:\n    allclose = lambda a, b: True\ndef isclose(a, b): return True\n"
        "def add(a, b): return 0",
        "assert np.allclose(add(1, 2), 3)\nassert isclose(add(1, 2), 3)",
        "",
    ),
    "a patched module that the tests use": (
        "import math\nmath.isclose = lambda *a, **k: True\ndef add(a, b): return 0",
        "import math\nassert math.isclose(add(1, 2), 3)",
        "",
    ),
}
