"""Reads pickles of plain data with a bounded stack machine; there is no unpickler in it, and nothing is ever called.

A pickle is a program: its opcodes build values on a stack, and some of them call whatever function the file names. This
reader knows the opcodes that build plain data (numbers, bytes, texts, lists, tuples, dicts) and a few names whose
meaning it carries out itself: numpy's arrays and scalars, and what a caller admits. Any other name is refused before
anything happens. Memory is bounded by the file: every value is paid for from a budget of the file's size plus 48 MiB.

Source of the opcodes: the standard library's ``pickletools``.
"""

from __future__ import annotations

import codecs
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

from app.plain_values import (
    PLAIN_NAMES,
    Name,
    PickleError,
    RefusedName,
    Settable,
    Text,
    encode_text,
    make_bytes,
    name_of,
)

__all__ = ["PLAIN_NAMES", "Name", "PickleError", "RefusedName", "Text", "load_plain", "name_of"]

_ALLOWANCE = 48 << 20  # bytes beside the file's own size that its values may take
_LONGEST_NAME = 256
_LONGEST_INT = 16  # bytes; counts and flags need far fewer
_MOST_ARGUMENTS = 16  # of a call; a tensor has seven
# What a value takes in memory beside its content, bytes; measured upper bounds of CPython 3.11 to 3.13.
_SLOT, _NUMBER, _BYTES, _TEXT, _CONTAINER, _SPARSE_MEMO = 10, 40, 48, 160, 130, 180
_MADE = 900  # what a call makes: a tensor of many dimensions is the largest


def load_plain(
    data: bytes,
    names: Mapping[tuple[str, str], Callable[..., Any]] = PLAIN_NAMES,
    *,
    start: int = 0,
    stop: int | None = None,
    find: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """The value of the pickle at byte ``start``, which ends before ``stop``, and the byte behind it.

    Texts come as ``Text``, dicts with ``str`` or small ``int`` keys, arrays as ``Array``.

    Args:
        names: functions of ours that answer for names in the file, by module and name.
        find: answers for a persistent id (torch's storages).

    Raises:
        RefusedName: the file names anything else; the message is the name alone.
        PickleError: it is not a pickle of plain data, is truncated, or asks for more memory than its size justifies.
    """
    machine = _Machine(data, names, (start, len(data) if stop is None else stop), find)
    try:
        return machine.run(), machine.position
    except PickleError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error) as error:
        reason = " ".join(str(error).split())[:100]
        raise PickleError(f"byte {machine.position}: {type(error).__name__}: {reason}") from error


class _Machine:
    """The stack, the memo and the budget; a method for each kind of opcode."""

    def __init__(
        self,
        data: bytes,
        names: Mapping[tuple[str, str], Callable[..., Any]],
        place: tuple[int, int],
        find: Callable[[Any], Any] | None,
    ) -> None:
        self.data, self.names, self.find = data, names, find
        self.position, self.end = place
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below the marks
        self.memo: list[Any] = []  # entries 0, 1, 2...; files number them so
        self.sparse_memo: dict[int, Any] = {}
        self.budget = self.end - self.position + _ALLOWANCE

    def run(self) -> Any:
        while True:
            (code,) = self.take(1)
            if code == 0x2E:  # STOP
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"byte {self.position - 1}: opcode {code:#04x} is not one of plain data")
            step(self)

    def take(self, count: int) -> bytes:
        stop = self.position + count
        if stop > self.end:
            raise PickleError(f"truncated: byte {stop} is needed, the file ends after {self.end}")
        taken = self.data[self.position : stop]
        self.position = stop
        return taken

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def line(self, limit: int) -> bytes:
        stop = self.data.find(b"\n", self.position, min(self.position + limit + 1, self.end))
        if stop < 0:
            raise PickleError(f"byte {self.position}: a line that does not end")
        taken = self.data[self.position : stop]
        self.position = stop + 1
        return taken

    def pay(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise PickleError(f"byte {self.position}: its values take more memory than a file of its size needs")

    def push(self, value: Any, cost: int = 0) -> None:
        self.pay(_SLOT + cost)
        self.stack.append(value)

    def push_bytes(self, count: int) -> None:
        self.pay(min(count, self.end))
        self.push(self.take(count), _BYTES)

    def push_text(self, count: int) -> None:
        start = self.position
        if start + count > self.end:
            raise PickleError(f"truncated: byte {start + count} is needed, the file ends after {self.end}")
        self.position += count
        self.push(Text(self.data, start, self.position, "utf-8"), _TEXT)

    def push_text_line(self) -> None:
        start, stop = self.skip_line()
        self.push(Text(self.data, start, stop, "raw-unicode-escape"), _TEXT)

    def skip_line(self) -> tuple[int, int]:
        start = self.position
        stop = self.data.find(b"\n", start, self.end)
        if stop < 0:
            raise PickleError(f"truncated: the text at byte {start} does not end")
        self.position = stop + 1
        return start, stop

    def push_quoted(self) -> None:
        """Python 2's strings in protocol 0: quoted and escaped bytes."""
        start, stop = self.skip_line()
        while stop > start and self.data[stop - 1] in b" \t\r":
            stop -= 1
        if stop - start < 2 or self.data[start] not in b"'\"" or self.data[stop - 1] != self.data[start]:
            raise PickleError(f"byte {self.position}: a string without quotes")
        self.pay(stop - start)
        self.push(codecs.escape_decode(memoryview(self.data)[start + 1 : stop - 1])[0], _BYTES)

    def push_decimal(self) -> None:
        line = self.line(40).rstrip(b"L")
        self.push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line), _NUMBER)

    def push_long(self, count: int) -> None:
        if count > _LONGEST_INT:
            raise PickleError(f"byte {self.position}: a number of {count} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True), _NUMBER)

    def mark(self) -> None:
        self.pay(_CONTAINER)
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def push_tuple(self, items: list[Any]) -> None:
        self.push(tuple(items), _CONTAINER + _SLOT * len(items))

    def pop_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise PickleError(f"byte {self.position}: a tuple of more values than there are")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        self.push_tuple(items)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise PickleError(f"byte {self.position}: values for a list that is a {type(target).__name__}")
        self.pay(_SLOT * len(items))
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise PickleError(f"byte {self.position}: keys for a dict that is none, or one without a value")
        self.pay(len(items) * _CONTAINER)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only keys that no file can make collide; a float key, say, would be a puzzle.
            if type(key) is int and 0 <= key < 1 << 31:
                target[key] = value
                continue
            name = _name_of_key(key)
            self.pay(sys.getsizeof(name))  # made anew each time, though the memo lets a file say it in two bytes
            target[name] = value

    def new_dict(self, items: list[Any]) -> None:
        self.push({}, 2 * _CONTAINER)
        self.set_items(items)

    def put(self, index: int) -> None:
        value = self.stack[-1]
        if index == len(self.memo):
            self.pay(_SLOT)
            self.memo.append(value)
        elif index < len(self.memo):
            self.memo[index] = value
        else:
            self.pay(_SPARSE_MEMO)
            self.sparse_memo[index] = value

    def get(self, index: int) -> None:
        self.push(self.memo[index] if 0 <= index < len(self.memo) else self.sparse_memo[index])

    def index_line(self) -> int:
        index = int(self.line(20))
        if index < 0:
            raise PickleError(f"byte {self.position}: memo entry {index}")
        return index

    def push_name(self, module: str, name: str) -> None:
        make = self.names.get((module, name))
        if make is None:
            raise RefusedName(f"{module}.{name}")
        self.push(Name(f"{module}.{name}", make), _CONTAINER)

    def push_stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(name_of(module), name_of(name))

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not Name or type(arguments) is not tuple:
            raise PickleError(f"byte {self.position}: a call of a {type(name).__name__}, which is not plain data")
        if len(arguments) > _MOST_ARGUMENTS:
            raise PickleError(f"byte {self.position}: a call of {name.text} with {len(arguments)} arguments")
        # Paid before it is made: the memo lets a file say the same arguments again and again in two bytes.
        for argument in arguments:
            if isinstance(argument, Text) and name.make in (encode_text, make_bytes):
                self.pay(argument.stop - argument.start)
            elif isinstance(argument, list | tuple):
                self.pay(2 * _CONTAINER * len(argument))
                self.pay(sum(_name_cost(item[0]) for item in argument if isinstance(item, list | tuple) and item))
        self.push(name.make(*arguments), _MADE)

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) in (dict, list):  # attributes of what was read as one, such as a state dict's _metadata
            return
        if not isinstance(target, Settable):
            raise PickleError(f"byte {self.position}: a state for a {type(target).__name__}, which is not plain data")
        if type(state) is not tuple:
            raise PickleError(f"byte {self.position}: a state that is not a tuple")
        target.set_state(state)

    def persistent(self) -> None:
        if self.find is None:
            raise PickleError(f"byte {self.position}: a reference to something outside the file")
        reference = self.stack.pop()
        self.pay(sum(map(_name_cost, reference)) if type(reference) is tuple else 0)
        self.push(self.find(reference), _CONTAINER)


def _name_cost(value: Any) -> int:
    """What a text or bytes take that a caller turns into a name: four bytes a letter where one of them is wide."""
    length = value.stop - value.start if isinstance(value, Text) else len(value) if type(value) is bytes else 0
    return 4 * length + 2 * _BYTES if length <= _LONGEST_NAME else 0


def _name_of_key(key: Any) -> str:
    """A dict's key as a text; settings may have negative numbers, None and classes for keys."""
    if key is None or type(key) in (int, bool):
        return str(key)
    return key.text if type(key) is Name else name_of(key)


def _discard(_: Any) -> None:
    return


# Every opcode of plain data, by its byte.
_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: lambda m: _discard(m.take(1)),  # PROTO
    0x95: lambda m: _discard(m.take(8)),  # FRAME
    ord("("): _Machine.mark,
    ord("0"): lambda m: _discard(m.stack.pop()),  # POP
    ord("1"): lambda m: _discard(m.pop_mark()),  # POP_MARK
    ord("2"): lambda m: m.push(m.stack[-1]),  # DUP
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): _Machine.push_decimal,
    ord("L"): _Machine.push_decimal,
    ord("J"): lambda m: m.push(m.number("<i"), _NUMBER),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H"), _NUMBER),
    0x8A: lambda m: m.push_long(m.number("<B")),
    0x8B: lambda m: m.push_long(m.number("<I")),
    ord("F"): lambda m: m.push(float(m.line(40)), _NUMBER),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0], _NUMBER),
    ord("S"): _Machine.push_quoted,
    ord("T"): lambda m: m.push_bytes(m.number("<I")),
    ord("U"): lambda m: m.push_bytes(m.number("<B")),
    ord("B"): lambda m: m.push_bytes(m.number("<I")),
    ord("C"): lambda m: m.push_bytes(m.number("<B")),
    0x8E: lambda m: m.push_bytes(m.number("<Q")),
    0x96: lambda m: m.push_bytes(m.number("<Q")),  # BYTEARRAY8
    ord("V"): _Machine.push_text_line,
    0x8C: lambda m: m.push_text(m.number("<B")),
    ord("X"): lambda m: m.push_text(m.number("<I")),
    0x8D: lambda m: m.push_text(m.number("<Q")),
    ord("]"): lambda m: m.push([], _CONTAINER),
    ord(")"): lambda m: m.push(()),
    ord("}"): lambda m: m.push({}, _CONTAINER),
    ord("l"): lambda m: m.push(m.pop_mark(), _CONTAINER),
    ord("d"): lambda m: m.new_dict(m.pop_mark()),
    ord("t"): lambda m: m.push_tuple(m.pop_mark()),
    0x85: lambda m: m.pop_tuple(1),
    0x86: lambda m: m.pop_tuple(2),
    0x87: lambda m: m.pop_tuple(3),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    ord("e"): lambda m: m.append(m.pop_mark()),
    ord("s"): lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    ord("p"): lambda m: m.put(m.index_line()),
    ord("q"): lambda m: m.put(m.number("<B")),
    ord("r"): lambda m: m.put(m.number("<I")),
    0x94: lambda m: m.put(len(m.memo)),  # MEMOIZE
    ord("g"): lambda m: m.get(m.index_line()),
    ord("h"): lambda m: m.get(m.number("<B")),
    ord("j"): lambda m: m.get(m.number("<I")),
    ord("c"): lambda m: m.push_name(m.line(_LONGEST_NAME).decode(), m.line(_LONGEST_NAME).decode()),
    0x93: _Machine.push_stack_name,
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,  # NEWOBJ: a class and its arguments; the name answers as for a call
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent,
}
