"""What a pickle of torch.save would do, worked out without doing any of it.

torch.load(weights_only=True) is the barrier against code in a file. This scan comes before it: it
names what a foreign pickle would call, and it checks the sizes, since that unpickler takes as much
memory as a file asks for. A small machine runs the instructions on stand-ins: nothing is imported,
called or allocated.
"""

import struct
from collections.abc import Callable
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

from ddimctl.errors import brief
from ddimctl.files.untrusted.guards import Refused, damaged
from ddimctl.files.untrusted.pickle_calls import (
    CALLS,
    KNOWN,
    UNUSUAL_TENSORS,
    Name,
    Ordered,
    Storage,
    checked_key,
    make_object,
    set_state,
    storage_of,
)

MAX_BYTES: Final = 32 * 2**20  # of a pickle, which the numbers of the tensors are not in
_BYTES_PER_INSTRUCTION: Final = 40  # allows 800,000; a tensor takes about 40
_MAX_LINE: Final = 4096
_MAX_NAME: Final = 100
_MAX_INDEX: Final = 2**32  # of what a pickle remembers; larger ones could have colliding hashes


class Scan(NamedTuple):
    """value: what the pickle makes, with stand-ins for all that is not plain."""

    value: Any
    storages: dict[str, Storage]


def scan_pickle(file: BinaryIO, max_bytes: int = MAX_BYTES) -> Scan:
    """Run the pickle at the file's position on stand-ins; the position is behind it afterwards.

    Raises Refused where it asks for anything that tensors and plain values do not need, by name;
    where a tensor is larger than its storage; where it is damaged or unreasonably long.
    """
    machine = _Machine(file, max_bytes)
    for _ in range(max_bytes // _BYTES_PER_INSTRUCTION):
        code = machine.take(1)
        if code == b".":
            return Scan(machine.result(), machine.storages)
        step = _STEPS.get(code)
        if step is None:
            raise damaged(f"it has the pickle instruction {ascii(code)[1:]}")
        step(machine)
    raise Refused("holds too many objects.")


_MARK: Final = object()
_STARVED: Final = "its pickle uses an object that it never made"


class _Machine:
    """The stack and memory of an unpickler."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self.file, self.left = file, max_bytes
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.protocol = 0

    def take(self, count: int) -> bytes:
        self.left -= count
        if self.left < 0:
            raise Refused("holds too much data besides its tensors.")
        found = self.file.read(max(0, count))
        if len(found) < count:
            raise damaged("it ends too early")
        return found

    def line(self) -> str:
        found = self.file.readline(_MAX_LINE)
        if not found.endswith(b"\n"):
            raise damaged("it ends too early")
        self.left -= len(found)
        return _text(found[:-1])

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise damaged(_STARVED)
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        found = []
        while self.stack and self.stack[-1] is not _MARK:
            found.append(self.stack.pop())
        if not self.stack:
            raise damaged(_STARVED)
        self.stack.pop()
        return found[::-1]

    def pop_some(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def store(self, index: int) -> None:
        self.push(top := self.pop())
        self.memo[index] = top

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise damaged(_STARVED)
        self.push(self.memo[index])

    def extend(self, items: list[Any]) -> None:
        self.push(target := self.pop())
        if type(target) is not list:
            raise damaged("its pickle appends to an object that is not a list")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        self.push(target := self.pop())
        if type(target) not in (dict, Ordered) or len(items) % 2:
            raise damaged("its pickle sets items of an object that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def look_up(self, module: Any, name: Any) -> None:
        if not type(module) is type(name) is str:
            raise damaged(_STARVED)
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full in UNUSUAL_TENSORS:
            raise Refused(f"holds {UNUSUAL_TENSORS[full]}, which is not supported.")
        if full not in KNOWN:
            self.refuse(full)
        self.push(Name(full))

    def refuse(self, full: str) -> NoReturn:
        if len(full) > _MAX_NAME or not full.isprintable():
            full = ascii(full[:_MAX_NAME])
        raise Refused(f"would call {full}, so it was not read.")

    def reduce(self) -> None:
        function, arguments = self.pop_some(2)
        if type(function) is not Name or type(arguments) is not tuple:
            raise damaged("its pickle calls an object that is not a function")
        if function not in CALLS:
            self.refuse(function)
        self.push(CALLS[function](*arguments))

    def build(self) -> None:
        state = self.pop()
        self.push(target := self.pop())
        set_state(target, state)

    def storage(self) -> None:
        found = storage_of(self.pop())
        if self.storages.setdefault(found.key, found) != found:
            raise damaged(f"the storage {brief(found.key)} is described twice")
        self.push(found)

    def result(self) -> Any:
        value = self.pop()
        if self.protocol != 2:
            raise Refused(
                f"was saved with pickle protocol {self.protocol}, which torch reads only by "
                "running the file's code.",
                "Save it again with torch.save's own pickle protocol, 2, or as safetensors.",
            )
        return value


def _text(found: bytes) -> str:
    try:
        return found.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise damaged("a text in it is not UTF-8") from error


def _long(machine: _Machine, count: int) -> None:
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _protocol(machine: _Machine) -> None:
    machine.protocol = machine.number("<B")


def _dict(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.push({})
    machine.update(items)


def _index(machine: _Machine) -> int:
    text = machine.line()
    if not (text.isascii() and text.isdecimal()) or int(text) >= _MAX_INDEX:
        raise damaged("a number in it is invalid")
    return int(text)


# Those from \x95 on are of protocols that torch.save does not use: they lead to names to refuse.
_STEPS: Final[dict[bytes, Callable[[_Machine], object]]] = {
    b"\x80": _protocol,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"G": lambda m: m.push(m.number(">d")),
    b"\x8a": lambda m: _long(m, m.number("<B")),
    b"X": lambda m: m.push(_text(m.take(m.number("<I")))),
    b"U": lambda m: m.push(_text(m.take(m.number("<B")))),
    b")": lambda m: m.push(()),
    b"]": lambda m: m.push([]),
    b"}": lambda m: m.push({}),
    b"(": lambda m: m.push(_MARK),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.push(tuple(m.pop_some(1))),
    b"\x86": lambda m: m.push(tuple(m.pop_some(2))),
    b"\x87": lambda m: m.push(tuple(m.pop_some(3))),
    b"a": lambda m: m.extend(m.pop_some(1)),
    b"e": lambda m: m.extend(m.pop_to_mark()),
    b"s": lambda m: m.update(m.pop_some(2)),
    b"u": lambda m: m.update(m.pop_to_mark()),
    b"q": lambda m: m.store(m.number("<B")),
    b"r": lambda m: m.store(m.number("<I")),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
    b"c": lambda m: m.look_up(m.line(), m.line()),
    b"R": _Machine.reduce,
    b"\x81": lambda m: m.push(make_object(*m.pop_some(2))),
    b"b": _Machine.build,
    b"Q": _Machine.storage,
    b"\x95": lambda m: m.take(8),
    b"V": lambda m: m.push(m.line()),
    b"S": lambda m: m.push(m.line()),
    b"I": lambda m: m.push(m.line()),
    b"L": lambda m: m.push(m.line()),
    b"F": lambda m: m.push(m.line()),
    b"l": lambda m: m.push(m.pop_to_mark()),
    b"d": _dict,
    b"p": lambda m: m.store(_index(m)),
    b"g": lambda m: m.recall(_index(m)),
    b"\x94": lambda m: m.store(len(m.memo)),
    b"\x8b": lambda m: _long(m, m.number("<i")),
    b"\x8c": lambda m: m.push(_text(m.take(m.number("<B")))),
    b"\x8d": lambda m: m.push(_text(m.take(m.number("<Q")))),
    b"C": lambda m: m.push(m.take(m.number("<B"))),
    b"B": lambda m: m.push(m.take(m.number("<I"))),
    b"\x8e": lambda m: m.push(m.take(m.number("<Q"))),
    b"0": _Machine.pop,
    b"\x93": lambda m: m.look_up(*m.pop_some(2)),
    b"i": lambda m: m.look_up(m.line(), m.line()),
}
