"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the ops: 2 nnz B for each product with B samples.

As for PyTorch's own matrix products, a multiply-add is two operations, and what is small beside the products (bias,
factors, the gradient of the normalisation) is not counted. The counter's module imports Triton where PyTorch has CUDA,
which takes longer than all of dendnorm: the formulas are registered when somebody imports it.
"""

from __future__ import annotations

import importlib.abc
import math
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from . import library  # noqa: F401  loads the ops

__all__ = ["product"]

COUNTER = "torch.utils.flop_counter"

_ops = torch.ops.dendnorm
_formulas: dict[Any, Callable[..., int]] = {}


def _formula(op: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    def keep(count: Callable[..., int]) -> Callable[..., int]:
        _formulas[op] = count
        return count

    return keep


def product(activations: Sequence[int], connections: Sequence[int]) -> int:
    """One product of nnz connections with activations of this shape, (*, features)."""
    return 2 * connections[0] * math.prod(activations[:-1])


@_formula(_ops.sparse_linear)
def _sparse_linear(input: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return product(input, weight)


@_formula(_ops.sparse_linear_backward)
def _sparse_linear_backward(grad_output: Sequence[int], input: Sequence[int], weight: Sequence[int], *rest: Any,
                            **__: Any) -> int:  # fmt: skip
    to_input, to_weight, _, to_excitability = rest[-1]
    return (bool(to_input) + bool(to_weight or to_excitability)) * product(grad_output, weight)


@_formula(_ops.frozen_linear)
def _frozen_linear(input: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return product(input, weight)


@_formula(_ops.sampled_product)
def _sampled_product(rows: Sequence[int], columns: Sequence[int], ccol: Any, row: Sequence[int], *_: Any,
                     **__: Any) -> int:  # fmt: skip
    return product(rows, row)


def convolution(images: Sequence[int], connections: Sequence[int]) -> int:
    """One product of nnz connections at every position of the output, (B, M, H, W)."""
    return 2 * connections[0] * images[0] * images[2] * images[3]


@_formula(_ops.sparse_conv2d)
def _sparse_conv2d(input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return convolution(out_shape, weight)


@_formula(_ops.sparse_conv2d_backward)
def _sparse_conv2d_backward(grad_output: Sequence[int], input: Sequence[int], weight: Sequence[int], *rest: Any,
                            **__: Any) -> int:  # fmt: skip
    to_input, to_weight, _, to_excitability = rest[-1]
    return (bool(to_input) + bool(to_weight or to_excitability)) * convolution(grad_output, weight)


def _register(counter: ModuleType) -> None:
    for op, count in _formulas.items():
        counter.register_flop_formula(op)(count)


class _ThenRegister(importlib.abc.Loader):
    """Loads the counter as ``loader`` does, and registers the formulas."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _register(module)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds the counter where the others find it."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


if COUNTER in sys.modules:
    _register(sys.modules[COUNTER])
else:
    sys.meta_path.insert(0, _WhenImported())
