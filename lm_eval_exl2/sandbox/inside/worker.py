"""The process that runs the program: answers what the tests ask of it.

It knows the program and the arguments of calls, never the tests or what they expect. It holds every
object that is no builtin value and gives out numbers for them.

Requests are tuples `(operation, ...)`, answers `("value", value)`, `("refused", reason)` or
`("error", name, arguments)`, where name is a builtin exception. Nothing here protects anything:
the program may replace all of it, and gains no more than the freedom to choose its own answers.
"""

# Values here are whatever a program makes of them:
# pyright: basic

import builtins
import os

from . import channel, values

_MAX_MESSAGE = 1000
_MAX_ERROR_BYTES = 4000


def serve(source: str, requests: int, replies: int) -> None:
    """Runs the program, then answers requests until the other end is closed.

    Args:
        source: The program.
        requests: Descriptor that requests are read from.
        replies: Descriptor that answers are written to.
    """
    worker = _Worker()
    channel.send(replies, worker.answer(lambda: worker.load(source)))
    while (data := channel.receive(requests, values.MAX_BYTES)) is not None:
        channel.send(replies, worker.answer(lambda data=data: worker.perform(data)))
    os._exit(0)


class _Worker:
    """The program's names and the objects that were given out."""

    def __init__(self):
        # As HF's code_eval runs a program: empty, so that `__name__` is not "__main__".
        self.names: dict = {}
        self.objects: list = []
        self.numbers: dict[int, int] = {}

    def load(self, source):
        exec(compile(source, "<program>", "exec"), self.names)

    def answer(self, act) -> bytes:
        """The answer's bytes; every exception of the program becomes an answer."""
        try:
            return values.encode(("value", act()), self.number_of)
        except values.Refused as error:
            return values.encode(("refused", str(error)), self.number_of)
        except BaseException as error:  # noqa: BLE001 - SystemExit of the program, too
            return self._encode_error(error)

    def perform(self, data):
        match values.decode(data, self.objects.__getitem__):
            case (str(operation), *arguments):
                return _OPERATIONS[operation](self, *arguments)
        raise ValueError("no request")

    def _encode_error(self, error) -> bytes:
        name = _builtin_name(error)
        if name is not None:
            try:
                data = values.encode(("error", name, error.args), self.number_of)
                if len(data) <= _MAX_ERROR_BYTES:
                    return data
            except BaseException:  # noqa: BLE001 - whatever the program made of its exception
                pass
        text = f"{type(error).__name__}: {_message_of(error)}"
        return values.encode(("error", name or "RuntimeError", (text,)), self.number_of)

    def number_of(self, value) -> int:
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)  # also keeps its id from being used again
        return number


def _builtin_name(error) -> str | None:
    """The nearest builtin exception; None for what is no Exception, such as SystemExit."""
    for kind in type(error).__mro__:
        if getattr(builtins, kind.__name__, None) is kind and issubclass(kind, Exception):
            return kind.__name__
    return None


def _message_of(error) -> str:
    try:
        return str(error)[:_MAX_MESSAGE]
    except BaseException:  # noqa: BLE001 - whatever the program's __str__ does
        return "its message could not be made"


def _resolve(worker, name):
    """The value of a global name, as `(known, value)`."""
    if name in worker.names:
        return (True, worker.names[name])
    return (False, None)


_OPERATIONS = {
    "resolve": _resolve,
    "call": lambda _, target, arguments, named: target(*arguments, **named),
    "get": lambda _, target, name: getattr(target, name),
    "set": lambda _, target, name, value: setattr(target, name, value),
    "item": lambda _, target, key: target[key],
    "set item": lambda _, target, key, value: target.__setitem__(key, value),
    "length": lambda _, target: len(target),
    "iterate": lambda _, target: iter(target),
    "next": lambda _, target: next(target),
    "truth": lambda _, target: bool(target),
    "text": lambda _, target: str(target),
    "representation": lambda _, target: repr(target),
}
