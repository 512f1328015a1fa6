"""Exact builtin values as bytes, the only thing that crosses between the two processes.

A value arrives as what it equals among Python's own types: a subclass becomes its plain value, so
`==` and `abs` in the tests run on real ints and strings and never on a method that the program
wrote. Whatever has no such value stays where it is and crosses as a number (a handle).

Nothing is trusted while decoding: sizes, depth and number of values are limited.
"""

# Values here are whatever a program makes of them:
# pyright: basic

import builtins
import struct

MAX_BYTES = 16 << 20
MAX_VALUES = 500_000
MAX_DEPTH = 64

_CONSTANTS = {None: b"N", True: b"T", False: b"F", Ellipsis: b"E", NotImplemented: b"U"}
_FROM_CONSTANT = {tag[0]: value for value, tag in _CONSTANTS.items()}
# Types that the tests may pass or compare with; the very objects are at both ends.
_TYPES = {
    kind.__name__: kind
    for kind in (
        *(bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, range, set),
        *(str, tuple, type, type(None)),
        *(
            kind
            for kind in vars(builtins).values()
            if isinstance(kind, type) and issubclass(kind, Exception)
        ),
    )
}
_LENGTH = struct.Struct("<I")
_DOUBLE = struct.Struct("<d")

# Containers whose items are written one after the other; the function rebuilds the exact type.
_SEQUENCES = {
    "l": list,
    "t": tuple,
    "S": set,
    "Z": frozenset,
    "K": lambda items: dict.fromkeys(items).keys(),
    "V": lambda items: dict(enumerate(items)).values(),
}
_TAGS = (
    (list, "l"),
    (tuple, "t"),
    (set, "S"),
    (frozenset, "Z"),
    (type({}.keys()), "K"),
    (type({}.values()), "V"),
)


class Refused(Exception):
    """A value is too large, too deep, or not one that may cross."""


def encode(value, handle_of) -> bytes:
    """The bytes of a value.

    Args:
        value: Anything.
        handle_of: Called with an object that is no builtin value; returns its number, or raises.

    Raises:
        Refused: More than `MAX_VALUES` values, deeper than `MAX_DEPTH`, larger than `MAX_BYTES`.
    """
    parts: list[bytes] = []
    _Encoder(parts, handle_of).write(value, 0)
    data = b"".join(parts)
    if len(data) > MAX_BYTES:
        raise Refused(f"a value of {len(data)} bytes; at most {MAX_BYTES} may cross")
    return data


class _Encoder:
    """Writes values into a list of byte strings."""

    def __init__(self, parts, handle_of):
        self.parts = parts
        self.handle_of = handle_of
        self.count = 0

    def write(self, value, depth):
        self.count += 1
        if self.count > MAX_VALUES:
            raise Refused(f"more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            raise Refused(f"values nested deeper than {MAX_DEPTH}")
        if value is None or isinstance(value, bool) or value is Ellipsis or value is NotImplemented:
            self.parts.append(_CONSTANTS[value])
        elif not self._write_scalar(value) and not self._write_container(value, depth + 1):
            self._write_other(value, depth + 1)

    def _write_scalar(self, value) -> bool:
        if isinstance(value, int):
            self._text("i", b"%x" % int(value))
        elif isinstance(value, float):
            self.parts.append(b"f" + _DOUBLE.pack(float(value)))
        elif isinstance(value, str):
            self._text("s", str.__str__(value).encode("utf-8", "surrogatepass"))
        elif isinstance(value, bytes | bytearray):
            self._text("b" if isinstance(value, bytes) else "a", bytes(value))
        elif isinstance(value, complex):
            self.parts.append(b"c" + _DOUBLE.pack(value.real) + _DOUBLE.pack(value.imag))
        else:
            return False
        return True

    def _write_container(self, value, depth) -> bool:
        if isinstance(value, dict):
            self._pairs("d", dict.items(value), depth)
            return True
        if isinstance(value, type({}.items())):
            self._pairs("I", value, depth)
            return True
        for kind, tag in _TAGS:
            if isinstance(value, kind):
                self._count(tag, len(value))
                for item in value:
                    self.write(item, depth)
                return True
        return False

    def _write_other(self, value, depth):
        kind = type(value)
        if kind is range or kind is slice:
            self.parts.append(b"r" if kind is range else b"x")
            for number in (value.start, value.stop, value.step):
                self.write(number, depth)
        elif kind is type and _TYPES.get(value.__name__) is value:
            self._text("Y", value.__name__.encode())
        elif kind.__module__ == "decimal" and kind.__name__ == "Decimal":
            self._text("D", str(value).encode())
        elif kind.__module__ == "fractions" and kind.__name__ == "Fraction":
            self.parts.append(b"R")
            self.write(value.numerator, depth)
            self.write(value.denominator, depth)
        elif (
            kind.__module__ == "numpy" and hasattr(value, "item") and not hasattr(value, "__len__")
        ):
            self.write(value.item(), depth)
        else:
            self._text("h", b"%x" % self.handle_of(value))

    def _pairs(self, tag, pairs, depth):
        self._count(tag, len(pairs))
        for key, value in pairs:
            self.write(key, depth)
            self.write(value, depth)

    def _text(self, tag, data: bytes):
        self._count(tag, len(data))
        self.parts.append(data)

    def _count(self, tag, number):
        if number > MAX_BYTES:
            raise Refused(f"a value of {number} bytes or items; at most {MAX_BYTES} may cross")
        self.parts.append(tag.encode() + _LENGTH.pack(number))


def decode(data: bytes, object_of):
    """The value that `encode` wrote; the bytes may come from a hostile program.

    Args:
        data: At most `MAX_BYTES`.
        object_of: Called with a handle's number; returns what stands for it here, or raises.

    Raises:
        Refused: Not what `encode` writes, or beyond its limits.
    """
    decoder = _Decoder(data, object_of)
    try:
        value = decoder.read(0)
    except (ValueError, TypeError, KeyError, ArithmeticError, struct.error) as error:
        raise Refused(f"no value: {type(error).__name__}: {error}") from None
    if decoder.position != len(data):
        raise Refused("bytes after the end of a value")
    return value


class _Decoder:
    """Reads one value from bytes."""

    def __init__(self, data, object_of):
        self.data = data
        self.object_of = object_of
        self.position = 0
        self.count = 0

    def read(self, depth):
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            raise Refused(f"more than {MAX_VALUES} values, or deeper than {MAX_DEPTH}")
        tag = self._take(1)[0]
        if tag in _FROM_CONSTANT:
            return _FROM_CONSTANT[tag]
        letter = chr(tag)
        if letter in "fc":
            numbers = [_DOUBLE.unpack(self._take(8))[0] for _ in range("fc".index(letter) + 1)]
            return numbers[0] if letter == "f" else complex(*numbers)
        if letter == "x":
            return slice(*(self.read(depth + 1) for _ in range(3)))
        if letter in "rR":
            return self._read_numbers(letter, depth + 1)
        return self._read_sized(letter, depth + 1)

    def _read_numbers(self, letter, depth):
        numbers = [self.read(depth) for _ in range(3 if letter == "r" else 2)]
        if any(type(number) is not int for number in numbers):
            raise Refused("a range or fraction of something else than integers")
        if letter == "r":
            return range(*numbers)
        import fractions

        return fractions.Fraction(*numbers)

    def _read_sized(self, letter, depth):
        size = _LENGTH.unpack(self._take(4))[0]
        if letter in _SEQUENCES:
            return _SEQUENCES[letter]([self.read(depth) for _ in range(size)])
        if letter in "dI":
            pairs = {}
            for _ in range(size):
                key = self.read(depth)
                pairs[key] = self.read(depth)
            return pairs if letter == "d" else pairs.items()
        return self._read_text(letter, self._take(size))

    def _read_text(self, letter, data: bytes):
        if letter == "i":
            return int(data, 16)
        if letter == "s":
            return data.decode("utf-8", "surrogatepass")
        if letter in "ba":
            return data if letter == "b" else bytearray(data)
        if letter == "Y":
            return _TYPES[data.decode("ascii")]
        if letter == "h":
            return self.object_of(int(data, 16))
        if letter == "D":
            import decimal

            return decimal.Decimal(data.decode("ascii"))
        raise Refused(f"unknown kind of value {letter!r}")

    def _take(self, size):
        end = self.position + size
        if end > len(self.data):
            raise Refused("a value that ends in the middle")
        part = self.data[self.position : end]
        self.position = end
        return part
