"""The process that runs the tests: `candidate` and the program's other names are proxies here.

A proxy carries requests to the process with the program. What comes back is an exact builtin value,
or again a proxy. **A comparison is never carried over**: it would tell the program what is expected
and let it answer yes. So a proxy equals nothing but itself, has no arithmetic, whose result could
depend on the other side, and is no number, which a formula in the tests would ask for again and
again. To be compared, an object must first become a builtin value, by iteration, an item, an
attribute or `str`. A test that calls a method of a result does hand its arguments over.
"""

# Values here are whatever a program makes of them:
# pyright: basic

import builtins
import os

from . import channel, values

_MAX_MESSAGE = 500
_MAX_VERDICT = 2000


class Stopped(BaseException):
    """The other process is gone or broke the protocol; no `except` in the tests may hide it."""


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
        except values.Refused as error:
            self.refuse(f"an argument of the tests: {error}")
        try:
            channel.send(self._requests, data)
        except BrokenPipeError:
            self._stop("failed", "the program ended before it answered")
        return self.receive(request[0])

    def receive(self, operation: str):
        """The next answer, to a request of this kind; raises as `ask` does."""
        try:
            data = channel.receive(self._replies, values.MAX_BYTES)
            if data is None:
                self._stop("failed", "the program ended before it answered")
            answer = values.decode(data, lambda number: Proxy(self, number))
        except (ValueError, values.Refused, MemoryError) as error:
            self.refuse(str(error) or "it does not fit into memory")
        match answer:
            case ("value", value):
                return value
            case ("refused", str(reason)):
                self.refuse(reason)
            case ("error", str(name), tuple(arguments)):
                raise _exception(operation, name, arguments)
        return self.refuse("an answer of no known form")

    def refuse(self, reason: str):
        """Ends the work with a program that answers what may not cross."""
        self._stop("refused output", reason)

    def _number_of(self, value):
        if type(value) is Proxy:
            return object.__getattribute__(value, "_sandbox_number")
        raise values.Refused(f"a {type(value).__name__} cannot cross")

    def _stop(self, outcome, message):
        self.stopped = (outcome, message)
        raise Stopped


def _exception(operation, name, arguments) -> Exception:
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = RuntimeError
    if kind is StopIteration and operation != "next":
        kind = RuntimeError  # it would end a loop of the tests, as it does in a generator
    try:
        return kind(*arguments)
    except Exception:  # noqa: BLE001 - arguments that this kind does not take
        return RuntimeError(name)


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
        iterator = _ask(self, "iterate")
        if type(iterator) is not Proxy:  # Python's iter() gives no builtin value
            object.__getattribute__(self, "_sandbox_program").refuse("an iterator that is none")
        return iterator

    def __next__(self):
        return _ask(self, "next")

    def __bool__(self):
        return _ask(self, "truth") is True

    def __str__(self):
        return _ask(self, "text")

    def __repr__(self):
        return _ask(self, "representation")

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
        job: `tests`; `helpers`, code that the tests may use; `names`, what of it all is the
            program's; `modules`, which the tests use if the program imported them.
        requests: Descriptor that requests are written to.
        replies: Descriptor that answers are read from.

    Returns:
        Outcome and message.
    """
    program = Program(requests, replies)
    try:
        program.receive("load")
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
    for name in job["names"]:
        known, value = program.ask("resolve", name)
        names.pop(name, None)
        if known:
            names[name] = value
    for name in job["modules"]:
        # The real one: `math.isclose(..., expected)` must not ask the program whether it is close.
        if program.ask("resolve", name)[0]:
            names[name] = __import__(name)
    exec(compile(job["tests"], "<tests>", "exec"), names)


def report(descriptor: int, outcome: str, message: str) -> None:
    """Tells the verdict, and ends the process before anything else of it can run."""
    text = f"{outcome}\n{message}"[:_MAX_VERDICT].encode("utf-8", "replace")
    channel.send(descriptor, text)
    os._exit(0)
