"""What a model costs and what it saves: a table of its layers, sparse and dense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..nn.layer import SparseLayer
from ..nn.linear import SparseLinear
from ..nn.norms import Norm

__all__ = ["ModuleSummary", "Summary", "summary"]


@dataclass(frozen=True)
class ModuleSummary:
    """One module that holds parameters of its own, beside its dense equivalent (itself, if it is dense).

    Attributes:
        name, kind: its first name in the model, and its class.
        connections: entries of its parameters of two or more dimensions; of a sparse layer its nnz.
        positions: how many of them the dense equivalent has.
        value_bytes: of its parameters and floating buffers; what an earlier module shares is not counted again.
        index_bytes: of its integer buffers: for a sparse layer both views of the pattern, and its mark.
        dense_bytes: of the dense equivalent's parameters and buffers.
        flops: of one sample's forward pass, 2 for each multiply-add; biases, norms and activations are not counted.
            None: not known without ``input_shape``.
        dense_flops: of the dense equivalent.
    """

    name: str
    kind: str
    connections: int
    positions: int
    value_bytes: int
    index_bytes: int
    dense_bytes: int
    flops: int | None
    dense_flops: int | None

    @property
    def density(self) -> float:
        """Share of the positions that are connected; 1 where there are none."""
        return self.connections / self.positions if self.positions else 1.0

    @property
    def bytes_ratio(self) -> float:
        """Bytes, index tables included, for each byte of the dense equivalent."""
        return (self.value_bytes + self.index_bytes) / self.dense_bytes if self.dense_bytes else 1.0

    @property
    def flops_ratio(self) -> float | None:
        """FLOPs for each of the dense equivalent."""
        if self.flops is None or self.dense_flops is None:
            return None
        return self.flops / self.dense_flops if self.dense_flops else 1.0


@dataclass(frozen=True)
class Summary(Sequence):
    """The modules of a model, in its order; ``print`` shows a table.

    Attributes:
        rows: a ``ModuleSummary`` for each.
        total: their sum; its flops are None where those of a row are.
    """

    rows: tuple[ModuleSummary, ...]
    total: ModuleSummary

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ModuleSummary]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> ModuleSummary: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ModuleSummary, ...]: ...
    def __getitem__(self, index):
        return self.rows[index]

    def __str__(self) -> str:
        head = ("layer", "kind", "density", "connections", "values", "indices", "of dense", "FLOPs/sample", "of dense")
        table = [head]
        for row in (*self.rows, self.total):
            table.append(
                (
                    row.name or "(model)",
                    row.kind,
                    f"{100 * row.density:.3g} %" if row.positions else "-",
                    f"{row.connections:,}",
                    _size(row.value_bytes),
                    _size(row.index_bytes),
                    f"{100 * row.bytes_ratio:.3g} %",
                    "-" if row.flops is None else f"{row.flops:,}",
                    "-" if row.flops_ratio is None else f"{100 * row.flops_ratio:.3g} %",
                )
            )
        widths = [max(len(line[column]) for line in table) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in table
        ]  # fmt: skip
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.4g} {unit}"
        count /= 1024
    raise AssertionError


def summary(model: nn.Module, input_shape: Sequence[int] | torch.Tensor | None = None) -> Summary:
    """Density, connections, memory and FLOPs of every module that has parameters or costs FLOPs, against dense ones.

    Args:
        model: any module; it is left as it was.
        input_shape: sizes of one sample, for example ``(3, 32, 32)``, or a batch of inputs (examples, ...) where zeros
            of the model's dtype will not do. The model is run on it once, without gradients and in evaluation mode, to
            count every FLOP that ``torch.utils.flop_counter`` knows. None: FLOPs of ``Linear`` and ``SparseLinear``
            only, for one application to one vector.

    Raises:
        TypeError, ValueError: model or input_shape.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    counted = None if input_shape is None else _measure(model, _inputs(model, input_shape))
    rows: list[ModuleSummary] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        cost = None if counted is None else counted[module]
        holds = any(True for _ in module.parameters(recurse=False)) or (cost is not None and cost[0] > 0)
        if holds and not isinstance(module, Norm):  # a norm is part of its layer
            rows.append(_row(name, module, seen, cost))
    columns: dict[str, Any] = {
        field: None if any(getattr(row, field) is None for row in rows) else sum(getattr(row, field) for row in rows)
        for field in ("connections", "positions", "value_bytes", "index_bytes", "dense_bytes", "flops", "dense_flops")
    }
    return Summary(tuple(rows), ModuleSummary("total", "", **columns))


def _row(name: str, module: nn.Module, seen: set[int], counted: tuple[int, int] | None) -> ModuleSummary:
    def new_bytes(tensors: list[torch.Tensor]) -> int:
        fresh = {id(tensor): tensor for tensor in tensors if id(tensor) not in seen}
        seen.update(fresh)
        return sum(tensor.numel() * tensor.element_size() for tensor in fresh.values())

    layer = module if isinstance(module, SparseLayer) else None
    sparse = layer is not None
    own: list[torch.Tensor] = list(module.parameters(recurse=sparse))  # a sparse layer's with its excitability
    buffers = list(module.buffers(recurse=False)) if layer is None else [*layer.pattern, layer.pattern_mark]
    floating = [buffer for buffer in buffers if not sparse and (buffer.is_floating_point() or buffer.is_complex())]
    values = new_bytes(own + floating)
    indices = new_bytes([buffer for buffer in buffers if not any(buffer is other for other in floating)])
    connections = layer.nnz if layer is not None else sum(tensor.numel() for tensor in own if tensor.dim() >= 2)
    positions, dense_bytes = connections, values + indices
    if layer is not None:
        positions = layer.in_features * layer.out_features
        biases = 0 if layer.bias is None else layer.out_features
        dense_bytes = (positions + biases) * layer.weight.element_size()
    flops: int | None
    dense: int | None
    if counted is not None:
        flops, dense = counted
    elif isinstance(module, (SparseLinear, nn.Linear)):
        flops, dense = 2 * connections, 2 * positions
    else:  # what has no connections multiplies no matrices
        flops = dense = 0 if connections == 0 else None
    return ModuleSummary(
        name, type(module).__name__, connections, positions, values, indices, dense_bytes, flops, dense
    )


def _inputs(model: nn.Module, given: Sequence[int] | torch.Tensor) -> torch.Tensor:
    if isinstance(given, torch.Tensor):
        if given.dim() == 0 or len(given) == 0:
            raise ValueError(f"input_shape must be a batch of at least one example, got shape {tuple(given.shape)}")
        return given
    sizes = [given] if isinstance(given, int) else list(given)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes):
        raise ValueError(f"input_shape must hold the sizes of one sample, each at least 1, got {given!r}")
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *sizes, dtype=first.dtype, device=first.device)


def _measure(model: nn.Module, inputs: torch.Tensor) -> dict[nn.Module, tuple[int, int]]:
    """FLOPs of one sample in each module, its children's left out, and in its dense equivalent."""
    modules = list(model.modules())
    flops: Counter[nn.Module] = Counter()
    dense: Counter[nn.Module] = Counter()
    before: list[int] = []
    # Not at the top: where PyTorch has CUDA, it imports Triton.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)

    def enter(module: nn.Module, args: tuple) -> None:
        before.append(counter.get_total_flops())

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        spent = counter.get_total_flops() - before.pop()
        flops[module] += spent
        # What its caller began with grows by as much, so that only the caller's own is left.
        if before:
            before[-1] += spent
        if isinstance(module, SparseLayer):
            outputs: Any = output
            dense[module] += 2 * module.in_features * outputs.numel()
        else:
            dense[module] += spent

    modes, fast = [module.training for module in modules], torch.backends.mha.get_fastpath_enabled()
    hooks = [module.register_forward_pre_hook(enter, prepend=True) for module in modules]
    hooks += [module.register_forward_hook(leave, with_kwargs=True) for module in modules]
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know every fused op of attention
        model.eval()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"input_shape must be one that the model takes, got a batch of {tuple(inputs.shape)}:"
            f" {str(error).partition(chr(10))[0]}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
        for module, training in zip(modules, modes, strict=True):
            module.training = training
    return {module: (flops[module] // len(inputs), dense[module] // len(inputs)) for module in modules}
