"""Reads a Python module of assignments, ``config.NAME = VALUE``, as data: nothing in it is run.

Values are literals, and arithmetic with literals and earlier settings; ``if`` takes the branch that earlier settings
decide; a function is read only where it is the step schedule that the configurations of 2021 hold. All else is refused
with its line.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from app.config.recipe import RecipeError

_MAX_TEXT = 256 << 10
_LARGEST = 2**63
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
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_CALLS: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "list": list, "tuple": tuple}


class Assignment(NamedTuple):
    """The value of a setting, and the line that gave it."""

    value: Any
    line: int


@dataclass(frozen=True)
class StepSchedule:
    """``lr_func``: the rate falls by ``gamma`` after each of ``epochs``."""

    epochs: tuple[float, ...]
    gamma: float


def read_assignments(text: str, where: str) -> dict[str, Assignment]:
    """The settings of such a module, in the order of their last assignment's first appearance.

    Raises:
        RecipeError: the text is no such module; names the line.
    """
    if len(text) > _MAX_TEXT:
        raise RecipeError(f"{where}: {len(text)} characters are too many for a configuration")
    reader = _Reader(where)
    try:
        reader.read(ast.parse(text.removeprefix("\ufeff")).body)
    except (SyntaxError, ValueError) as error:
        raise RecipeError(f"{where}: not a configuration module: {error}") from error
    except (RecursionError, MemoryError) as error:  # the parser's own stack
        raise RecipeError(f"{where}: not a configuration module: nested too deep") from error
    if not reader.settings:
        raise RecipeError(f"{where}: sets nothing: a configuration has lines config.NAME = VALUE")
    return reader.settings


class _Reader:
    def __init__(self, where: str) -> None:
        self.where = where
        self.settings: dict[str, Assignment] = {}
        self.functions: dict[str, StepSchedule] = {}

    def read(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self.read_statement(statement)

    def read_statement(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(value=ast.Constant()):
                return
            case ast.If(test=test, body=body, orelse=other):
                self.read(body if self.test(test) else other)
                return
            case ast.FunctionDef(name=name):
                self.functions[name] = self.step_schedule(statement)
                return
            case ast.Assign(
                targets=[ast.Name(id="config")], value=ast.Call(func=ast.Name(), args=args, keywords=keywords)
            ):
                self.start(statement, args, keywords)
                return
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="config"), attr=name)], value=value):
                self.assign(name, value, statement.lineno)
                return
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id="config"), slice=ast.Constant(value=str(name)))]):
                self.assign(name, statement.value, statement.lineno)
                return
        raise self.refusal(statement, "only config.NAME = VALUE is read; nothing is executed")

    def start(self, statement: ast.stmt, args: list[ast.expr], keywords: list[ast.keyword]) -> None:
        """``config = edict()``, whatever the class is called here, or ``edict({"lr": 0.1})`` or ``edict(lr=0.1)``."""
        pairs: list[tuple[Any, ast.expr]] = [(keyword.arg, keyword.value) for keyword in keywords]
        match args:
            case []:
                pass
            case [ast.Dict(keys=keys, values=values)]:
                pairs += [
                    (key.value if isinstance(key, ast.Constant) else None, value)
                    for key, value in zip(keys, values, strict=True)
                ]
            case _:
                raise self.refusal(statement, "only config.NAME = VALUE is read; nothing is executed")
        for name, value in pairs:
            if not isinstance(name, str):
                raise self.refusal(statement, "a setting needs a name that is written out")
            self.assign(name, value, value.lineno)

    def assign(self, name: str, value: ast.expr, line: int) -> None:
        if isinstance(value, ast.Name) and value.id in self.functions:
            self.settings[name] = Assignment(self.functions[value.id], line)
        else:
            self.settings[name] = Assignment(self.value(value), line)

    def refusal(self, node: ast.stmt | ast.expr, text: str) -> RecipeError:
        return RecipeError(f"{self.where}, line {node.lineno}: {text}")

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                numbers = self.value(left), self.value(right)
                if all(isinstance(number, int | float) for number in numbers):
                    return self.calculate(node, type(op), *numbers)
            case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(number := self.value(operand), int | float):
                return -number
            case ast.Attribute(value=ast.Name(id="config"), attr=name) if name in self.settings:
                return self.settings[name].value
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.value(body if self.test(test) else other)
            case ast.List(elts=elements):
                return self.elements(elements)
            case ast.Tuple(elts=elements):
                return tuple(self.elements(elements))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _CALLS:
                try:
                    return self.bounded(node, _CALLS[name](self.value(argument)))
                except (ValueError, TypeError, OverflowError) as error:
                    raise self.refusal(node, f"{name}() of that fails: {error}") from error
            case _:
                try:
                    return self.bounded(node, ast.literal_eval(node))
                except (ValueError, TypeError):
                    pass
        raise self.refusal(
            node,
            f"{_shown(node)!r} is neither a literal nor arithmetic with literals and settings above; write its value",
        )

    def elements(self, nodes: list[ast.expr]) -> list[Any]:
        values = [self.value(node) for node in nodes]
        for node, value in zip(nodes, values, strict=True):
            if isinstance(value, list | tuple) and not isinstance(node, ast.List | ast.Tuple):
                # A list of twice the list before, forty lines of that: as text it would have no end.
                raise self.refusal(node, f"{_shown(node)!r} is a list within a list; write it out")
        return values

    def calculate(self, node: ast.expr, op: type[ast.operator], left: Any, right: Any) -> Any:
        if op is ast.Pow and (abs(right) > 64 or abs(left) > _LARGEST):
            raise self.refusal(node, f"{_shown(node)!r} is too large")
        try:
            return self.bounded(node, _ARITHMETIC[op](left, right))
        except ZeroDivisionError as error:
            raise self.refusal(node, "division by zero") from error
        except OverflowError as error:
            raise self.refusal(node, f"{_shown(node)!r} is too large") from error

    def bounded(self, node: ast.expr, value: Any) -> Any:
        """Numbers that fit 64 bits; nothing in a configuration is larger, and powers of larger ones take for ever."""
        if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
            raise self.refusal(node, f"{_shown(node)!r} is not a finite number")
        if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
            raise self.refusal(node, f"{_shown(node)!r} is too large")
        return value

    def test(self, node: ast.expr) -> bool:
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
                values = [self.value(left), *map(self.value, others)]
                try:
                    return all(_COMPARISONS[type(op)](*pair) for op, pair in zip(ops, pairwise(values), strict=True))
                except TypeError as error:
                    raise self.refusal(node, f"{_shown(node)!r} cannot be compared: {error}") from error
            case ast.BoolOp(op=op, values=parts):
                return (all if isinstance(op, ast.And) else any)(self.test(part) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.test(operand)
        return bool(self.value(node))

    def step_schedule(self, function: ast.FunctionDef) -> StepSchedule:
        """``return A if epoch < N else GAMMA ** len([m for m in [...] if m - 1 <= epoch])``, or the last part alone."""
        match [statement for statement in function.body if not isinstance(statement, ast.Expr)], function.args.args:
            case [ast.Return(value=ast.IfExp(orelse=decay) | (ast.BinOp() as decay))], [ast.arg(arg=epoch)]:
                found = self.decay(decay, epoch)
                if found is not None:
                    return found
        raise self.refusal(
            function, f"the function {function.name} is not the step schedule of 2021; nothing is executed"
        )

    def decay(self, node: ast.expr, epoch: str) -> StepSchedule | None:
        match node:
            case ast.BinOp(
                left=ast.Constant(value=float(gamma)),
                op=ast.Pow(),
                right=ast.Call(
                    func=ast.Name(id="len"),
                    args=[
                        ast.ListComp(
                            generators=[
                                ast.comprehension(
                                    target=ast.Name(id=member),
                                    iter=milestones,
                                    ifs=[ast.Compare(left=left, ops=[ast.LtE()], comparators=[ast.Name(id=compared)])],
                                )
                            ]
                        )
                    ],
                ),
            ) if compared == epoch:
                epochs, shift = self.value(milestones), _shift(left, member)
                numbers = isinstance(epochs, list | tuple) and all(isinstance(m, int | float) for m in epochs)
                if shift is not None and numbers:
                    return StepSchedule(tuple(m - shift for m in epochs), gamma)
        return None


def _shift(node: ast.expr, member: str) -> float | None:
    """0 for ``m``, n for ``m - n``: epochs are counted from 0 there, and a milestone may be named by its last epoch."""
    match node:
        case ast.Name(id=name) if name == member:
            return 0
        case ast.BinOp(left=ast.Name(id=name), op=ast.Sub(), right=ast.Constant(value=int(shift))) if name == member:
            return shift
    return None


def _shown(node: ast.expr) -> str:
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        return "a long expression"
    return text if len(text) <= 80 else f"{text[:77]}..."
