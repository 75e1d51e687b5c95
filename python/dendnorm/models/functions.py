"""What a function is made of: what decorators hide, its syntax, and what compiled code says where there is none."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["owners_of_weight", "syntax_of", "unwrapped"]

_LAYERS = 12  # of decorators


def unwrapped(function: Any) -> tuple[types.FunctionType | None, list[Any]]:
    """The Python function behind decorators, bound methods and partials, and the arguments that are bound already."""
    bound: list[Any] = []
    for _ in range(_LAYERS):
        if isinstance(function, functools.partial):
            bound, function = [*function.args, *bound], function.func
        elif isinstance(function, types.MethodType):
            bound, function = [function.__self__, *bound], function.__func__
        elif isinstance(function, (staticmethod, classmethod)) or hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    return (function if isinstance(function, types.FunctionType) else None), bound


@functools.lru_cache(maxsize=4096)
def syntax_of(code: types.CodeType) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None:
    """The syntax of a function, or None where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return next((node for node in ast.walk(tree) if isinstance(node, kinds)), None)


def owners_of_weight(code: types.CodeType) -> Iterator[str]:
    """Names ``x`` of which compiled code reads ``x.weight``."""
    before: object = None
    for instruction in dis.get_instructions(code):
        if instruction.argval == "weight" and isinstance(before, str):
            yield before
        before = instruction.argval
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from owners_of_weight(const)
