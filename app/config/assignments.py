"""Reads a Python module of assignments, ``config.NAME = VALUE``, as data: nothing in it is run.

Values are literals, arithmetic and texts made of literals, variables and earlier settings (``expressions.py``); ``if``
takes the branch that these decide, ``for`` goes through short lists; a function is read only where it is the step
schedule of the configurations of 2021. Statements of other kinds are refused with their line; so is a value that cannot
be read, where anything needs it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.config.expressions import MISSING, Expressions
from app.config.recipe import RecipeError

_MAX_TEXT = 48 << 10  # its parser takes up to 800 bytes of memory for each
_NO_SCHEDULE = "this function is not the step schedule of 2021; nothing is executed"


class Assignment(NamedTuple):
    """The value of a setting, and where it stands: the file and the line."""

    value: Any
    place: str


@dataclass(frozen=True)
class Unreadable:
    """A value that cannot be read: an error only where it is needed."""

    reason: str


@dataclass(frozen=True)
class StepSchedule:
    """``lr_func``: the rate falls by ``gamma`` after each of ``epochs``."""

    epochs: tuple[float, ...]
    gamma: float


Sibling = Callable[[str], tuple[str, str] | None]


def no_sibling(_: str) -> None:
    """For a module that stands alone."""
    return


def read_assignments(
    text: str, where: str, *, sibling: Sibling = no_sibling, before: Mapping[str, Assignment] | None = None
) -> dict[str, Assignment]:
    """The settings of such a module, in the order of their last assignment's first appearance.

    Args:
        sibling: text and place of a file beside this one by its name, or None; a module may go on from the ``config``
            of another.
        before: settings to go on from.

    Raises:
        RecipeError: the text is no such module; names the line.
    """
    if len(text) > _MAX_TEXT:
        raise RecipeError(f"{where}: {len(text)} characters are too many for a configuration")
    reader = _Reader(where, sibling, dict(before or {}))
    try:
        reader.read(ast.parse(text.removeprefix("\ufeff")).body)
    except (SyntaxError, ValueError) as error:
        raise RecipeError(f"{where}: not a configuration module: {error}") from error
    except (RecursionError, MemoryError) as error:  # the parser's own stack
        raise RecipeError(f"{where}: not a configuration module: nested too deep") from error
    if not reader.own:
        raise RecipeError(f"{where}: sets nothing: a configuration has lines config.NAME = VALUE")
    return reader.settings


class _Reader(Expressions):
    def __init__(self, where: str, sibling: Sibling, settings: dict[str, Assignment]) -> None:
        super().__init__(where)
        self.sibling, self.settings = sibling, settings
        self.own = False  # whether this module sets or takes over anything
        self.functions: dict[str, StepSchedule | None] = {}  # None: none that is known here

    def read(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self.read_statement(statement)

    def read_statement(self, statement: ast.stmt) -> None:
        match statement:
            case ast.ImportFrom(module=str(module), names=names) if any(_is_config(alias) for alias in names):
                self.go_on_from(module, statement)
                return
            case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(value=ast.Constant()):
                return
            case ast.If(test=test, body=body, orelse=other):
                self.read(body if self.test(test) else other)
                return
            case ast.For(target=ast.Name(id=name), iter=values, body=body, orelse=[]) if name != "config":
                self.repeat(name, values, body)
                return
            case ast.FunctionDef(name=name):
                self.functions[name] = self.step_schedule(statement)
                return
            case ast.Assign(targets=[ast.Name(id="config")], value=ast.Dict() as values):
                self.start(statement, [values], [])
                return
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(
                values
            ) and all(map(_is_place, targets)):
                for target, value in zip(targets, values, strict=True):
                    self.bind(target, value)
                return
            case ast.Assign(
                targets=[ast.Name(id="config")], value=ast.Call(func=ast.Name(), args=args, keywords=keywords)
            ):
                self.start(statement, args, keywords)
                return
            case ast.Expr(
                value=ast.Call(
                    func=ast.Attribute(value=ast.Name(id="config"), attr="update"), args=args, keywords=keywords
                )
            ):
                self.start(statement, args, keywords)
                return
            case ast.Expr(
                value=ast.Call(
                    func=ast.Name(id="setattr"), args=[ast.Name(id="config"), ast.Constant(value=name), value]
                )
            ) if isinstance(name, str):
                self.assign(name, value, statement.lineno)
                return
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"))):
                return
            case ast.Assign(targets=targets, value=value) if all(map(_is_place, targets)):
                for target in targets:
                    self.bind(target, value)
                return
            case ast.AnnAssign(target=target, value=value) if value is not None and _is_place(target):
                self.bind(target, value)
                return
            case ast.AugAssign(target=target, op=op, value=value) if _is_place(target):
                self.bind(target, ast.copy_location(ast.BinOp(target, op, value), statement))
                return
        raise self.refusal(statement, "only config.NAME = VALUE is read; nothing is executed")

    def repeat(self, name: str, values: ast.expr, body: list[ast.stmt]) -> None:
        """``for NAME in VALUES:`` of short values; the budget of all loops is one."""
        if any(isinstance(node, ast.ImportFrom) for statement in body for node in ast.walk(statement)):
            raise self.refusal(body[0], "a loop that imports is not read")
        for value in self.taken(values, weight=len(body)):
            self.variables[name] = value
            self.read(body)

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        """Give a setting its value, or a variable; a variable that cannot be read is refused where it is used."""
        match target:
            case ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=str(name))):
                self.assign(name, value, target.lineno)
            case ast.Name(id=name):
                try:
                    self.variables[name] = self.value(value)
                except RecipeError:
                    self.variables.pop(name, None)

    def setting(self, name: str) -> Any:
        found = self.settings.get(name)
        return MISSING if found is None or isinstance(found.value, StepSchedule | Unreadable) else found.value

    def go_on_from(self, module: str, statement: ast.stmt) -> None:
        """``from configs.base import config``: that file's settings, which this one changes."""
        name = f"{module.rsplit('.', 1)[-1]}.py"
        found = self.sibling(name)
        if found is None and name != "base.py":  # the reference's base.py holds the defaults
            raise self.refusal(statement, f"its config is that of {name}, which is not beside this file")
        if found is not None:
            text, where = found
            self.settings |= read_assignments(text, where, before=self.settings)
        self.own = True

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
        self.own = True
        self.settings[name] = Assignment(self.assigned(value), f"{self.where}, line {line}")

    def assigned(self, value: ast.expr) -> Any:
        try:
            if isinstance(value, ast.Lambda):
                return self.schedule(value.args, value.body) or Unreadable(str(self.refusal(value, _NO_SCHEDULE)))
            if isinstance(value, ast.Name) and value.id in self.functions:
                return self.functions[value.id] or Unreadable(str(self.refusal(value, _NO_SCHEDULE)))
            return self.value(value)
        except RecipeError as error:
            return Unreadable(str(error))

    def step_schedule(self, function: ast.FunctionDef) -> StepSchedule | None:
        match [statement for statement in function.body if not isinstance(statement, ast.Expr)]:
            case [ast.Return(value=ast.expr() as value)]:
                return self.schedule(function.args, value)
        return None

    def schedule(self, arguments: ast.arguments, value: ast.expr) -> StepSchedule | None:
        """``A if epoch < N else GAMMA ** len([m for m in [...] if m - 1 <= epoch])``, or the last part alone."""
        match value, arguments.args:
            case ast.IfExp(orelse=decay) | (ast.BinOp() as decay), [ast.arg(arg=epoch)]:
                return self.decay(decay, epoch)
        return None

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


def _is_config(alias: ast.alias) -> bool:
    return alias.name == "config" and alias.asname in (None, "config")


def _is_place(target: ast.expr) -> bool:
    """A setting, ``config.NAME`` or ``config["NAME"]``, or a variable."""
    match target:
        case ast.Attribute(value=ast.Name(id="config")):
            return True
        case ast.Subscript(value=ast.Name(id="config"), slice=ast.Constant(value=str())):
            return True
        case ast.Name(id=name):
            return name != "config"
    return False
