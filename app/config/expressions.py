"""Values of Python expressions that need nothing to be run: literals, arithmetic, texts, variables and settings."""

from __future__ import annotations

import ast
import math
import operator
import posixpath
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from app.config.environment import asked, look_up
from app.config.recipe import RecipeError

MISSING = object()  # a setting that nothing set
_LONGEST = 16 << 10
_LARGEST = 2**63
_MOST_TURNS = 1000
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_CALLS: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float,
    "list": list,
    "tuple": tuple,
    "str": str,
    "len": len,
    "round": round,
    "abs": abs,
}
_OF_SEVERAL: dict[str, Callable[[Any], Any]] = {"max": max, "min": min}
_JOINS = ("os.path.join", "osp.join", "path.join", "join", "posixpath.join")
_PATHS = ("Path", "PurePath", "PosixPath", "PurePosixPath")  # of pathlib; joined here as texts


class Expressions:
    """Expressions of one module; refused ones are named with their line."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.turns = _MOST_TURNS  # of all loops together, so that those within loops end
        self.variables: dict[str, Any] = {"__name__": "config"}  # as a module that is imported sees itself

    def setting(self, name: str) -> Any:
        """The value of ``config.NAME``, or ``MISSING``."""
        raise NotImplementedError

    def refusal(self, node: ast.stmt | ast.expr, text: str) -> RecipeError:
        """An error that names the node's line."""
        return RecipeError(f"{self.where}, line {node.lineno}: {text}")

    def value(self, node: ast.expr) -> Any:
        """Of an expression.

        Raises:
            RecipeError: it is none of those that are read here.
        """
        match node:
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                if (found := self.operated(node, op, self.value(left), self.value(right))) is not MISSING:
                    return found
            case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(number := self.value(operand), int | float):
                return -number
            case ast.UnaryOp(op=ast.UAdd(), operand=operand) if isinstance(number := self.value(operand), int | float):
                return number
            case ast.Name(id=name) if name in self.variables:
                return self.variables[name]
            case (
                ast.Attribute(value=ast.Name(id="config"), attr=name)
                | ast.Subscript(value=ast.Name(id="config"), slice=ast.Constant(value=str(name)))
            ) if (found := self.setting(name)) is not MISSING:
                return found
            case ast.JoinedStr(values=parts):
                return self.bounded(node, "".join(self.text(part) for part in parts))
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.value(body if self.test(test) else other)
            case ast.UnaryOp(op=ast.Not()) | ast.Compare():
                return self.test(node)
            case ast.BoolOp(op=op, values=parts):
                return self.first(parts, isinstance(op, ast.Or))
            case ast.Subscript(value=ast.Name() | ast.Dict() | ast.List() as held, slice=key) if not asked(node):
                return self.item(node, held, key)
            case ast.Subscript() if (found := self.call(node)) is not MISSING:
                return found
            case ast.List(elts=elements):
                return self.bounded(node, [self.value(element) for element in elements])
            case ast.ListComp(elt=element, generators=[ast.comprehension() as loop]) if not loop.is_async:
                return self.bounded(node, self.comprehended(element, loop))
            case ast.Tuple(elts=elements):
                return self.bounded(node, tuple(self.value(element) for element in elements))
            case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
                names = [key.value for key in keys if isinstance(key, ast.Constant)]
                return self.bounded(node, dict(zip(names, map(self.value, values), strict=True)))
            case ast.Call(keywords=[]) if (found := self.call(node)) is not MISSING:
                return found
            case _:
                try:
                    return self.bounded(node, ast.literal_eval(node))
                except (ValueError, TypeError):
                    pass
        raise self.refusal(
            node,
            f"{shown(node)!r} is neither a literal nor arithmetic with literals and settings above; write its value",
        )

    def first(self, parts: list[ast.expr], decisive: bool) -> Any:
        """The first value that is true (``or``) or false (``and``), else the last one."""
        for part in parts[:-1]:
            value = self.value(part)
            if bool(value) is decisive:
                return value
        return self.value(parts[-1])

    def item(self, node: ast.expr, held: ast.expr, key: ast.expr) -> Any:
        """One of a list, or of a dict that a variable holds or that is written out."""
        values, chosen = self.value(held), self.value(key)
        fits = isinstance(values, list | tuple) and type(chosen) is int
        if not fits and not (isinstance(values, dict) and isinstance(chosen, str | int)):
            raise self.refusal(node, f"{shown(node)!r} is no item of a list or dict")
        try:
            return values[chosen]
        except (LookupError, TypeError) as error:
            raise self.refusal(node, f"{shown(node)!r}: there is no such item") from error

    def operated(self, node: ast.expr, op: ast.operator, left: Any, right: Any) -> Any:
        """Arithmetic, texts and lists put together, paths joined, a text filled; ``MISSING`` of anything else."""
        pair = left, right
        if all(isinstance(value, int | float) for value in pair):
            return self.calculate(node, type(op), left, right)
        if isinstance(op, ast.Add) and type(left) is type(right) and isinstance(left, str | list | tuple):
            return self.bounded(node, left + right)
        if isinstance(op, ast.Div) and all(isinstance(value, str) for value in pair):
            return self.bounded(node, posixpath.join(left, right))
        if isinstance(op, ast.Mod) and isinstance(left, str):
            return self.filled(node, re.split("%[sd]", left), right)
        return MISSING

    def taken(self, node: ast.expr, weight: int = 1) -> list[Any] | tuple[Any, ...]:
        """The values that a loop goes through, ``weight`` turns of the budget each."""
        values = self.value(node)
        if not isinstance(values, list | tuple) or len(values) * weight > self.turns:
            raise self.refusal(node, f"{shown(node)!r} is no short list to go through; write the values")
        self.turns -= len(values) * weight
        return values

    def comprehended(self, element: ast.expr, loop: ast.comprehension) -> list[Any]:
        """``[ELEMENT for NAME in VALUES if TEST]``, of short values."""
        values = self.taken(loop.iter)
        if not isinstance(loop.target, ast.Name):
            raise self.refusal(loop.target, f"{shown(loop.target)!r} is no name to go through values by")
        name, found = loop.target.id, []
        before = self.variables.get(name, MISSING)
        for value in values:
            self.variables[name] = value
            if all(self.test(test) for test in loop.ifs):
                found.append(self.value(element))
        self.variables.pop(name, None)
        if before is not MISSING:
            self.variables[name] = before
        return found

    def environment(self, node: ast.expr) -> Any:
        """Of an expression that asks the environment; ``MISSING`` of any other."""
        if (found := asked(node)) is None:
            return MISSING
        try:
            text = look_up(found.name, f"{self.where}, line {node.lineno}")
        except ValueError as error:
            raise self.refusal(node, str(error)) from None
        if text is None and found.required:
            raise self.refusal(node, f"{found.name} is not set in the environment; set it, or write the value")
        if text is None:
            return self.value(found.default) if found.default is not None else None
        return self.bounded(node, text)

    def call(self, node: ast.expr) -> Any:
        """Of a function that is known here; ``MISSING`` of any other."""
        if (found := self.environment(node)) is not MISSING:
            return found
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="config"), attr="get"),
                args=[ast.Constant(value=str(name)), *default],
                keywords=[],
            ) if len(default) < 2:
                found = self.setting(name)
                return found if found is not MISSING else self.value(default[0]) if default else None
            case ast.Call(
                func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format"), args=args, keywords=[]
            ):
                return self.filled(node, text.split("{}"), tuple(self.value(argument) for argument in args))
            case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]) if 0 < len(args) < 4:
                return self.counted(node, [self.value(argument) for argument in args])
            case ast.Call(func=function, args=args, keywords=[]) if _joins(function) and args:
                names = [self.value(argument) for argument in args]
                if all(isinstance(name, str) for name in names):
                    return self.bounded(node, posixpath.join(*names))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _OF_SEVERAL and len(args) > 1:
                numbers = [self.value(argument) for argument in args]
                if all(isinstance(number, int | float) for number in numbers):
                    return _OF_SEVERAL[name](numbers)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _CALLS:
                try:
                    return self.bounded(node, _CALLS[name](self.value(argument)))
                except (ValueError, TypeError, OverflowError) as error:
                    raise self.refusal(node, f"{name}() of that fails: {error}") from error
        return MISSING

    def counted(self, node: ast.expr, limits: list[Any]) -> list[int]:
        """A short ``range``."""
        whole = all(isinstance(limit, int) for limit in limits) and (len(limits) < 3 or limits[2])
        if whole and len(range(*limits)) <= _MOST_TURNS:
            return list(range(*limits))
        raise self.refusal(node, f"{shown(node)!r} is no short range of whole numbers; write the values")

    def calculate(self, node: ast.expr, op: type[ast.operator], left: Any, right: Any) -> Any:
        """Arithmetic whose result fits 64 bits."""
        if op is ast.Pow and (abs(right) > 64 or abs(left) > _LARGEST):
            raise self.refusal(node, f"{shown(node)!r} is too large")
        try:
            return self.bounded(node, _ARITHMETIC[op](left, right))
        except ZeroDivisionError as error:
            raise self.refusal(node, "division by zero") from error
        except OverflowError as error:
            raise self.refusal(node, f"{shown(node)!r} is too large") from error

    def bounded(self, node: ast.expr, value: Any) -> Any:
        """Numbers of 64 bits, short texts and lists; no configuration has larger ones, which may take for ever."""
        if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
            raise self.refusal(node, f"{shown(node)!r} is not a finite number")
        if _is_long(value):
            raise self.refusal(node, f"{shown(node)!r} is too long")
        if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
            raise self.refusal(node, f"{shown(node)!r} is too large")
        return value

    def text(self, node: ast.expr) -> str:
        """A part of an f-string, without a format of its own."""
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                return str(self.value(value))
        raise self.refusal(node, f"{shown(node)!r} has a format of its own; write the value")

    def filled(self, node: ast.expr, parts: list[str], values: Any) -> str:
        """The parts of a text with values between them."""
        values = values if isinstance(values, tuple) else (values,)
        if len(parts) != len(values) + 1 or any(mark in part for part in parts for mark in "%{}"):
            raise self.refusal(node, f"{shown(node)!r} has a format of its own; write the value")
        filled: str = self.bounded(node, "".join(a + str(b) for a, b in zip(parts, values, strict=False)) + parts[-1])
        return filled

    def test(self, node: ast.expr) -> bool:
        """Whether a condition holds."""
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
                values = [self.value(left), *map(self.value, others)]
                try:
                    return all(_COMPARISONS[type(op)](*pair) for op, pair in zip(ops, pairwise(values), strict=True))
                except TypeError as error:
                    raise self.refusal(node, f"{shown(node)!r} cannot be compared: {error}") from error
            case ast.BoolOp(op=op, values=parts):
                return (all if isinstance(op, ast.And) else any)(self.test(part) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.test(operand)
        return bool(self.value(node))


def _joins(function: ast.expr) -> bool:
    name = ast.unparse(function)
    return name in _JOINS or name.removeprefix("pathlib.") in _PATHS


def _is_long(value: Any) -> bool:
    """Whether a text, or a list with all that is in it, is longer than configurations are; lists may share parts."""
    waiting, total = [value], 0
    while waiting and total <= _LONGEST:
        part = waiting.pop()
        total += len(part) if isinstance(part, str) else 1
        if isinstance(part, list | tuple | dict):
            if len(part) > _LONGEST:
                return True
            waiting += part.values() if isinstance(part, dict) else part
    return total > _LONGEST


def shown(node: ast.expr) -> str:
    """An expression as a message shows it."""
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        return "a long expression"
    return text if len(text) <= 80 else f"{text[:77]}..."
