"""Faults planted in the Python library, one at a time: another sign, bound, number or operator, a check left out, two
arguments exchanged. The test file of the module must fail.

A mutant runs in a process of its own, in which the module is loaded from the changed source.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import random
import subprocess
import sys
from collections.abc import Iterator

from . import ROOT
from .tally import Tally

PACKAGE = ROOT / "python" / "dendnorm"
# Modules, and the tests of their subject: files, and which of their tests.
TESTS = {
    "_arguments": (("test_errors.py", "test_patterns.py"), ""),
    "checkpoint.container": (("test_checkpoint.py",), "not killed_at and not resumed_run"),
    "checkpoint.checkpoint": (("test_checkpoint.py",), "not killed_at and not resumed_run"),
    "rewiring.drop": (("test_rules.py",), ""),
    "rewiring.grow": (("test_rules.py",), ""),
    "rewiring.similarity": (("test_rules.py",), ""),
    "rewiring.schedules": (("test_rules.py", "test_set.py"), "schedule or zeta or every"),
    "rewiring.steps": (
        ("test_set.py", "test_rules.py", "test_optimizers.py"),
        "every or step or stop or start or scaler or schedule_waits",
    ),
    "rewiring.fresh": (("test_optimizers.py",), "not slow"),
    "nn.norms": (("test_norms.py", "test_errors.py"), ""),
    "nn.pattern": (("test_patterns.py", "test_state.py", "test_errors.py"), ""),
    "nn.patterns": (("test_patterns.py",), ""),
    "nn.window": (("test_conv.py",), ""),
    "nn.drawing": (("test_layer.py", "test_patterns.py"), ""),
}
SECONDS = 300
OPPOSITE: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def source(module: str) -> str:
    return (PACKAGE / (module.replace(".", "/") + ".py")).read_text("utf-8")


def changes(tree: ast.Module) -> Iterator[tuple[int, str, ast.AST]]:
    """Each node that can be changed, by its number in the order of the walk, and how."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
              for child in node.body for part in ast.walk(child)}  # fmt: skip
    for index, node in enumerate(ast.walk(tree)):
        if id(node) not in inside:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in OPPOSITE:
            yield index, "bound", node
        elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in OPPOSITE:
            yield index, "operator", node
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield index, "off by one", node
        elif isinstance(node, ast.If) and any(isinstance(part, ast.Raise) for part in node.body) and not node.orelse:
            yield index, "check", node
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
            yield index, "sign", node
        elif (
            isinstance(node, ast.Call) and len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args)
        ):
            yield index, "arguments", node


@functools.cache
def mutants() -> list[tuple[str, int, str]]:
    found = [(module, index, kind) for module in TESTS for index, kind, _ in changes(ast.parse(source(module)))]
    random.Random(0).shuffle(found)
    return found


def mutated(module: str, chosen: int) -> tuple[str, str]:
    """The changed source, and the line that was changed."""
    tree = ast.parse(source(module))
    node = next(node for index, _, node in changes(tree) if index == chosen)
    line = ast.unparse(node).partition("\n")[0]
    if isinstance(node, ast.Compare):
        node.ops[0] = OPPOSITE[type(node.ops[0])]()
    elif isinstance(node, (ast.BinOp, ast.BoolOp)):
        node.op = OPPOSITE[type(node.op)]()
    elif isinstance(node, ast.Constant):
        node.value += 1
    elif isinstance(node, ast.If):
        node.test = ast.Constant(False)
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        node.operand = node.operand if isinstance(node.op, ast.UAdd) else ast.UnaryOp(ast.Not(), node.operand)
    else:
        assert isinstance(node, ast.Call)
        node.args[0], node.args[1] = node.args[1], node.args[0]
    return ast.unparse(ast.fix_missing_locations(tree)), line


def serve(module: str, chosen: int) -> int:
    """In a process of its own: the tests of a mutant; 0 if it survives them."""
    import importlib.abc
    import importlib.util

    import pytest

    full, text = f"dendnorm.{module}", mutated(module, chosen)[0] if chosen >= 0 else source(module)

    class Loader(importlib.abc.Loader):
        def create_module(self, spec):
            return None

        def exec_module(self, made):
            exec(compile(text, f"mutant of {full}", "exec"), made.__dict__)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            return importlib.util.spec_from_loader(full, Loader()) if name == full else None

    sys.meta_path.insert(0, Finder())
    files, which = TESTS[module] if chosen >= 0 else (("test_errors.py",), "density")
    paths = [str(ROOT / "tests" / "python" / name) for name in files]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *(["-k", which] if which else [])]
    return int(pytest.main([*paths, *options]))


def survives(module: str, chosen: int) -> bool:
    program = f"from reliability.mutants import serve; raise SystemExit(serve({module!r}, {chosen}))"
    paths = (ROOT / "tests", ROOT / "python", ROOT / "tests" / "python")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    try:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True,
                              timeout=SECONDS)  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def unit(number: int, tally: Tally) -> None:
    module, chosen, kind = mutants()[number % len(mutants())]
    tally.count("planted")
    tally.count(f"kind {kind}")
    if survives(module, chosen):
        tally.count("survived")
        tally.find(f"survived: {module}, {kind}: {mutated(module, chosen)[1]}")
    else:
        tally.count("caught")


def summary(tally: Tally) -> None:
    tally.counts.pop("findings", None)  # some may survive: `missed` says how many
    tally.counts["of"] = len(mutants())
    tally.most("missed", 100 * tally.counts["survived"] / max(1, tally.counts["planted"]))


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """A mutant that is none must survive, and be told."""
    global survives
    kept = survives

    def unchanged(module: str, chosen: int) -> bool:
        return kept("_arguments", -1)

    survives = unchanged
    try:
        yield
    finally:
        survives = kept
