"""Who reads a layer's weight from outside, found in the sources before anything runs.

``F.linear(x, self.qkv.weight)`` takes a layer's weight for a matrix, which a sparse layer does not have. The
``forward`` of every module in a model, and what it calls, is followed with the model's own modules in the place of the
names, in every branch. What reaches a weight in another way (through ``getattr`` with a name made at run time, an
object that is no part of the model, compiled code) is not seen.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .functions import owners_of_weight, syntax_of, unwrapped

__all__ = ["readers"]

# What may be asked of a weight whatever its shape.
_HARMLESS = {"dtype", "device", "requires_grad", "is_cuda", "is_cpu", "is_meta", "grad", "grad_fn", "is_leaf"}
_QUESTIONS = {"isinstance", "hasattr", "id", "type"}
_BELOW = {"children", "modules", "named_children", "named_modules"}
_DEPTH = 12
# Torch looks into these layers' weights only to run a fused kernel, which it does not where one of them is sparse.
_FUSED = {nn.TransformerEncoderLayer.forward, nn.TransformerEncoder.forward}


@dataclass(frozen=True)
class _Weight:
    """The weight of a layer, in the place of its tensor."""

    layer: nn.Module


@dataclass(frozen=True)
class _Super:
    owner: object
    after: type


@dataclass
class _Frame:
    """A function that is being followed: what its names may stand for."""

    function: types.FunctionType
    owner: type | None
    reader: str
    depth: int
    names: dict[str, list[Any]] = field(default_factory=dict)
    first: str | None = None


def readers(model: nn.Module, layers: Iterable[nn.Module]) -> dict[int, str]:
    """For the ``id`` of each layer whose weight is read from outside, by whom: ``Attention.forward``."""
    search = _Search({id(layer): layer for layer in layers})
    for module in model.modules():
        if id(module) in search.layers:
            continue
        for name in ("forward", "__call__"):
            method = module.__dict__.get(name) or getattr(type(module), name, None)
            if method not in (None, nn.Module.__call__, nn.Module.forward):
                search.call(method, [[module]], {}, f"{type(module).__name__}.{name}", 0)
    return search.found


class _Search:
    """Follows functions; ``found`` says who read which layer's weight."""

    def __init__(self, layers: dict[int, nn.Module]) -> None:
        self.layers, self.found = layers, dict[int, str]()
        self.done: set[tuple] = set()

    def call(self, function: Any, args: list[list[Any]], kwargs: dict[str, list[Any]], reader: str, depth: int) -> None:
        """Follow a call, with what each argument may be."""
        function, bound = unwrapped(function)
        if function is None or function in _FUSED or depth > _DEPTH:
            return
        args = [*([value] for value in bound), *args]
        if args and any(id(value) in self.layers for value in args[0]) and self._is_method(function, args[0]):
            return  # what a layer does with its own weight
        key = (function.__code__, *(tuple(map(id, values)) for values in args),
               *((name, *map(id, values)) for name, values in sorted(kwargs.items())))  # fmt: skip
        if key in self.done:
            return
        self.done.add(key)
        tree = syntax_of(function.__code__)
        if tree is None:
            self._without_source(function, args, reader)
            return
        owner = self._owner(function, args)
        frame = _Frame(function, owner, reader, depth)
        names = [argument.arg for argument in [*tree.args.posonlyargs, *tree.args.args]]
        frame.first = names[0] if names else None
        frame.names = dict(zip(names, args, strict=False)) | {name: list(values) for name, values in kwargs.items()}
        for _ in range(2):  # again for what a loop hands to its next turn
            for statement in tree.body if isinstance(tree.body, list) else [tree.body]:
                self.visit(statement, frame)

    @staticmethod
    def _is_method(function: types.FunctionType, owners: list[Any]) -> bool:
        return any(function in vars(kind).values() for value in owners for kind in type(value).__mro__)

    @staticmethod
    def _owner(function: types.FunctionType, args: list[list[Any]]) -> type | None:
        for value in args[0] if args else []:
            for kind in type(value).__mro__:
                if any(unwrapped(each)[0] is function for each in vars(kind).values() if callable(each)):
                    return kind
        return None

    def _without_source(self, function: types.FunctionType, args: list[list[Any]], reader: str) -> None:
        names = set(owners_of_weight(function.__code__))
        for value in args[0] if args else []:
            children = value._modules.items() if isinstance(value, nn.Module) else ()
            for name, child in children:
                if name in names and id(child) in self.layers:
                    self.found.setdefault(id(child), reader)

    def visit(self, node: ast.AST, frame: _Frame) -> None:
        """A statement: assignments give names a meaning, everything else is looked through for reads."""
        if isinstance(node, ast.Assign):
            values = self.value(node.value, frame)
            for target in node.targets:
                self.bind(target, values, frame)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            self.bind(node.target, self.value(node.value, frame), frame)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self.bind(node.target, self.elements(self.value(node.iter, frame)), frame)
            for child in ast.iter_child_nodes(node):
                if child not in (node.target, node.iter):
                    self.visit(child, frame)
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            for child in sorted(ast.iter_child_nodes(node), key=lambda child: not isinstance(child, ast.comprehension)):
                self.visit(child, frame)
        elif isinstance(node, ast.expr):
            self.use(node, frame)
        else:
            for child in ast.iter_child_nodes(node):
                self.visit(child, frame)

    def bind(self, target: ast.expr, values: list[Any], frame: _Frame) -> None:
        if isinstance(target, ast.Name):
            known = frame.names.setdefault(target.id, [])
            known += [value for value in values if not any(value is other for other in known)]
        elif isinstance(target, (ast.Tuple, ast.List)):
            every = [*values, *self.elements(values)]
            for each in target.elts:
                self.bind(each.value if isinstance(each, ast.Starred) else each, every, frame)

    def use(self, node: ast.expr, frame: _Frame) -> list[Any]:
        """The value of an expression that does something with it: a weight is then read."""
        values = self.value(node, frame)
        for value in values:
            if isinstance(value, _Weight):
                self.found.setdefault(id(value.layer), frame.reader)
        return values

    def value(self, node: ast.expr, frame: _Frame) -> list[Any]:
        """What an expression may stand for, as far as it is known; reads within it are noted."""
        if isinstance(node, ast.Name):
            return self.name(node.id, frame)
        if isinstance(node, ast.Attribute):
            owners = self.value(node.value, frame)
            if node.attr not in _HARMLESS:
                self.use(node.value, frame)
            return [found for owner in owners for found in self.attribute(owner, node.attr, frame)]
        if isinstance(node, ast.Call):
            return self.called(node, frame)
        if isinstance(node, ast.Subscript):
            self.use(node.slice, frame)
            return self.item(self.use(node.value, frame), node.slice)
        if isinstance(node, ast.IfExp):
            self.visit(node.test, frame)
            return [*self.value(node.body, frame), *self.value(node.orelse, frame)]
        if isinstance(node, ast.BoolOp):
            return [found for each in node.values for found in self.value(each, frame)]
        if isinstance(node, (ast.Tuple, ast.List)):
            return [tuple(found for each in node.elts for found in self.value(each, frame))]
        if isinstance(node, ast.NamedExpr):
            self.visit(node, frame)
            return self.value(node.value, frame)
        if isinstance(node, ast.Compare) and all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
            for each in (node.left, *node.comparators):
                self.value(each, frame)
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            self.visit(node, frame)
            return [tuple(self.value(node.elt, frame))] if not isinstance(node, ast.DictComp) else []
        else:
            for child in ast.iter_child_nodes(node):
                self.visit(child, frame)
        return []

    def name(self, name: str, frame: _Frame) -> list[Any]:
        if name in frame.names:
            return frame.names[name]
        free = frame.function.__code__.co_freevars
        if name in free and frame.function.__closure__ is not None:
            cell = frame.function.__closure__[free.index(name)]
            try:
                return [cell.cell_contents]
            except ValueError:  # not filled yet
                return []
        found = frame.function.__globals__.get(name, getattr(builtins, name, None))
        return [] if found is None else [found]

    def attribute(self, owner: Any, name: str, frame: _Frame) -> Iterator[Any]:
        """``owner.name``, without running a property: it is followed instead."""
        if id(owner) in self.layers and name == "weight":
            yield _Weight(owner)
        elif isinstance(owner, types.ModuleType):
            yield from [vars(owner)[name]] if name in vars(owner) else []
        elif isinstance(owner, _Super):
            order = type(owner.owner).__mro__
            for kind in order[order.index(owner.after) + 1 :]:
                if name in vars(kind):
                    yield from self._of_class(vars(kind)[name], owner.owner, frame)
                    return
        elif isinstance(owner, nn.Module) and owner._modules.get(name) is not None:
            yield owner._modules[name]
        elif not isinstance(owner, _Weight):
            found = inspect.getattr_static(owner, name, None)
            if found is not None:
                static = isinstance(owner, type) or name in getattr(owner, "__dict__", {})
                yield from [found] if static else self._of_class(found, owner, frame)

    def _of_class(self, found: Any, owner: Any, frame: _Frame) -> Iterator[Any]:
        if isinstance(found, property):
            if found.fget is not None:
                self.call(found.fget, [[owner]], {}, frame.reader, frame.depth + 1)
        elif isinstance(found, types.FunctionType):
            yield types.MethodType(found, owner)
        else:
            yield found

    def called(self, node: ast.Call, frame: _Frame) -> list[Any]:
        functions = self.value(node.func, frame)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "super":
            owners = frame.names.get(frame.first or "", [])
            after = frame.owner
            return [_Super(owner, after) for owner in owners if after in type(owner).__mro__]
        take = self.value if name in _QUESTIONS else self.use
        args = [take(each.value if isinstance(each, ast.Starred) else each, frame) for each in node.args]
        kwargs = {each.arg or "": take(each.value, frame) for each in node.keywords}
        if name == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            return [found for owner in args[0] for found in self.attribute(owner, str(node.args[1].value), frame)]
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("values", "items"):
            return self.value(node.func.value, frame)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _BELOW:
            owners = [owner for owner in self.value(node.func.value, frame) if isinstance(owner, nn.Module)]
            return [tuple(owner.modules()) for owner in owners]
        if name in ("zip", "enumerate", "reversed", "list", "tuple", "iter", "next"):
            return [value for values in args for value in values]
        kwargs.pop("", None)
        for function in functions:
            self._follow(function, args, kwargs, frame)
        return []

    def _follow(self, function: Any, args: list, kwargs: dict, frame: _Frame) -> None:
        if isinstance(function, nn.Module):
            handed = any(isinstance(value, nn.Module) for values in [*args, *kwargs.values()] for value in values)
            if handed and id(function) not in self.layers:  # on its own it is followed anyway
                self.call(type(function).forward, [[function], *args], kwargs, frame.reader, frame.depth + 1)
            return
        plain, bound = unwrapped(function)
        if plain is None or (plain.__module__ or "").partition(".")[0] == "torch":
            return
        given = [*bound, *(value for values in [*args, *kwargs.values()] for value in values)]
        if not any(isinstance(value, nn.Module) for value in [*given, *self.elements(given)]):
            return  # it has no layer to read
        self.call(function, args, kwargs, _reader(frame.reader, plain, bound), frame.depth + 1)

    def elements(self, values: list[Any]) -> list[Any]:
        """What lies in containers; a container of containers gives those of all levels."""
        found: list[Any] = []
        for value in values:
            if isinstance(value, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
                found += value._modules.values()
            elif isinstance(value, (list, tuple, dict)):
                inner = list(value.values()) if isinstance(value, dict) else list(value)
                found += [*inner, *self.elements([each for each in inner if isinstance(each, (list, tuple))])]
        return found

    def item(self, values: list[Any], index: ast.expr) -> list[Any]:
        found: list[Any] = []
        for value in values:
            try:
                key = ast.literal_eval(index)
                found.append(value[key])
            except (ValueError, TypeError, KeyError, IndexError, SyntaxError, AttributeError):
                found += self.elements([value])
        return found


def _reader(reader: str, function: types.FunctionType, bound: list[Any]) -> str:
    """Methods of the same module go under the name of what called them; others add their own."""
    return reader if bound else f"{reader} ({function.__name__})"
