"""The process that runs the tests: `candidate` and the program's other names are proxies here.

A proxy carries requests to the process with the program. What comes back is an exact builtin value,
or again a proxy. **A comparison is never carried over**: it would tell the program what is expected
and let it answer yes. So a proxy equals nothing but itself, and has no arithmetic, whose result
could depend on the other side. To be compared, an object must first commit itself to builtin
values, by iteration, an item, an attribute, `str`, `int` or `float`.
"""

# Values here are whatever a program makes of them:
# pyright: basic

import builtins
import os
import sys
import types

from . import channel, values

_MAX_MESSAGE = 500


class Stopped(BaseException):
    """The other process is gone or broke the protocol; no `except` in the tests may hide it."""


class _Uncrossable(values.Refused):
    """The tests pass something that is neither a builtin value nor the program's."""


class Program:
    """The other process, as seen from here."""

    def __init__(self, requests: int, replies: int):
        self._requests = requests
        self._replies = replies
        self.stopped: tuple[str, str] | None = None

    def ask(self, *request):
        """Sends one request and returns the value that is answered.

        Raises:
            Stopped: There is no answer, or not one that may cross.
            Exception: What the program raised, as the nearest builtin exception.
        """
        if self.stopped:
            raise Stopped
        try:
            data = values.encode(request, self._number_of)
        except _Uncrossable as error:
            self._stop("sandbox error", f"an argument of the tests cannot cross: {error}")
        except values.Refused as error:
            self._stop("refused output", str(error))
        try:
            channel.send(self._requests, data)
        except BrokenPipeError:
            self._stop("failed", "the program ended before it answered")
        return self.receive()

    def receive(self):
        """The next answer; raises as `ask` does."""
        try:
            data = channel.receive(self._replies, values.MAX_BYTES)
            if data is None:
                self._stop("failed", "the program ended before it answered")
            answer = values.decode(data, lambda number: Proxy(self, number))
        except (ValueError, values.Refused, MemoryError) as error:
            self._stop("refused output", str(error) or "it does not fit into memory")
        match answer:
            case ("value", value):
                return value
            case ("refused", str(reason)):
                self._stop("refused output", reason)
            case ("error", str(name), str(message)):
                raise self._exception(name, message)
        return self._stop("refused output", "an answer of no known form")

    def _exception(self, name, message):
        kind = getattr(builtins, name, None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = RuntimeError
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError and its like want more than a message
            return ValueError(message)

    def _number_of(self, value):
        if type(value) is Proxy:
            return object.__getattribute__(value, "_sandbox_number")
        raise _Uncrossable(f"a {type(value).__name__}")

    def _stop(self, outcome, message):
        self.stopped = (outcome, message)
        raise Stopped


class Proxy:
    """An object of the program's, by its number."""

    __slots__ = ("_sandbox_number", "_sandbox_program")

    def __init__(self, program, number):
        object.__setattr__(self, "_sandbox_program", program)
        object.__setattr__(self, "_sandbox_number", number)

    def __call__(self, *arguments, **named):
        """Calls the object over there."""
        return _ask(self, "call", arguments, named)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _ask(self, "get", name)

    def __setattr__(self, name, value):
        _ask(self, "set", name, value)

    def __getitem__(self, key):
        return _ask(self, "item", key)

    def __setitem__(self, key, value):
        _ask(self, "set item", key, value)

    def __len__(self):
        return _ask(self, "length")

    def __iter__(self):
        # A proxy of an iterator, or the items themselves if they are a builtin value.
        iterator = _ask(self, "iterate")
        return iterator if type(iterator) is Proxy else iter(iterator)

    def __next__(self):
        return _ask(self, "next")

    def __bool__(self):
        return _ask(self, "truth") is True

    def __str__(self):
        return _ask(self, "text")

    def __repr__(self):
        return _ask(self, "representation")

    def __int__(self):
        return _ask(self, "int")

    def __float__(self):
        return _ask(self, "float")

    def __eq__(self, other):
        if type(other) is not Proxy:
            return False
        number = object.__getattribute__(self, "_sandbox_number")
        return number == object.__getattribute__(other, "_sandbox_number")

    def __hash__(self):
        return hash(object.__getattribute__(self, "_sandbox_number"))


def _ask(proxy, operation, *arguments):
    program = object.__getattribute__(proxy, "_sandbox_program")
    return program.ask(operation, proxy, *arguments)


def check(job: dict, requests: int, replies: int) -> tuple[str, str]:
    """Runs the tests against the program.

    Args:
        job: `tests`; `helpers`, code that the tests may use; `names`, what is the program's even if
            the helpers define it.
        requests: Descriptor that requests are written to.
        replies: Descriptor that answers are read from.

    Returns:
        Outcome and message.
    """
    program = Program(requests, replies)
    try:
        program.receive()  # the program was loaded
        _run_tests(job, program)
    except Stopped:
        pass
    except BaseException as error:  # noqa: BLE001 - whatever the tests raise is a failed test
        if not program.stopped:
            outcome = "out of memory" if isinstance(error, MemoryError) else "failed"
            return outcome, _describe(error)
    return program.stopped or ("passed", "")


def _describe(error) -> str:
    try:
        return f"{type(error).__name__}: {str(error)[:_MAX_MESSAGE]}"
    except BaseException:  # noqa: BLE001 - an integer too long to print, a proxy that is gone
        return type(error).__name__


def _run_tests(job, program) -> None:
    names: dict = {}
    if job["helpers"]:
        exec(compile(job["helpers"], "<helpers>", "exec"), names)
    code = compile(job["tests"], "<tests>", "exec")
    # A builtin or helper of the same name that the program defines is not taken from it.
    foreign = _names_in(code) - set(names) - set(dir(builtins))
    modules = _modules_in(job["tests"], foreign - set(job["names"]))
    for name in sorted(foreign | set(job["names"])):
        known, value = program.ask("resolve", name)
        if not known:
            names.pop(name, None)
        else:
            # `math.isclose(..., expected)` must not ask the program whether it is close.
            names[name] = __import__(name) if name in modules else value
    exec(code, names)


def _modules_in(tests: str, names: set[str]) -> set[str]:
    """Which names are the standard library's modules: used for what is in them, never called."""
    candidates = names & sys.stdlib_module_names
    if not candidates:
        return candidates
    import ast  # rarely needed, and slow to import

    called, opened = set(), set()
    for node in ast.walk(ast.parse(tests)):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                called.add(name)
            case ast.Attribute(value=ast.Name(id=name)):
                opened.add(name)
    return candidates & opened - called


def _names_in(code) -> set[str]:
    """Every name that code and the functions inside it look up, attributes included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names


def report(descriptor: int, outcome: str, message: str) -> None:
    """Tells the verdict, and ends the process before anything else of it can run."""
    text = f"{outcome}\n{message}".encode("utf-8", "replace")
    channel.send(descriptor, text)
    os._exit(0)
