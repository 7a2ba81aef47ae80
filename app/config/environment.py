"""What a configuration may learn of the environment: texts of variables that are the same for the whole run."""

from __future__ import annotations

import ast
import os
import re
import warnings
from typing import NamedTuple

# What a launcher gives each process; and the names of secrets, which a recipe, kept with the results, must not hold.
_OF_A_PROCESS = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|CUDA_VISIBLE_DEVICES|.*_NODEID")
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASS|PWD|CRED|AUTH|SIGNATURE|COOKIE|PRIVATE", re.IGNORECASE)


class Asked(NamedTuple):
    """``os.environ.get(name, default)``; ``default`` is None where the expression has none."""

    name: str
    default: ast.expr | None
    required: bool = False


def asked(node: ast.expr) -> Asked | None:
    """What an expression asks the environment for, or None where it is no such expression."""
    match node:
        case ast.Subscript(value=environ, slice=ast.Constant(value=str(name))) if _is_environ(environ):
            return Asked(name, None, required=True)
        case ast.Call(
            func=ast.Attribute(value=environ, attr="get"), args=[ast.Constant(value=str(name)), *default], keywords=[]
        ) if _is_environ(environ) and len(default) < 2:
            return Asked(name, default[0] if default else None)
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *default], keywords=[]) if (
            ast.unparse(function) in ("os.getenv", "getenv") and len(default) < 2
        ):
            return Asked(name, default[0] if default else None)
    return None


def look_up(name: str, where: str) -> str | None:
    """The variable's text, which is told; None where it is not set.

    Raises:
        ValueError: it differs from process to process, or is a secret by its name; says what to do.
    """
    if _OF_A_PROCESS.fullmatch(name):
        raise ValueError(f"{name} is not the same for all processes of a run; write the value")
    if _SECRET.search(name):
        raise ValueError(
            f"{name} looks like a secret, and a recipe is kept with the results; leave it to the environment"
        )
    text = os.environ.get(name)
    if text is not None:
        warnings.warn(f"{where}: {name} is taken from the environment", stacklevel=2)
    return text


def _is_environ(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in ("os.environ", "environ")
