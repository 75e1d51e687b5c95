"""Rewiring layers that are sharded over ranks: gathered and planned one at a time, and written shard by shard.

Every rank gathers the weight, makes the same plan of it, and lets it go. Of a plan stays what moves. When every layer
is planned, each rank writes its own shards: an entry of the weight, of the gradient or of the optimizer's state travels
only where its new place lies on another rank than its old one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..nn.layer import SparseLayer
from ..nn.pattern import Pattern
from ..nn.spread import is_spread, managers, whole
from ..ops import library as _ops
from .agreement import Facts, checksum
from .moves import Companions, carry
from .reports import Edges, LayerReport

__all__ = ["ShardedRewiring", "note_layer", "planned", "resharded"]

_ALIKE = "build the layers with the same seed on every rank, or load one state_dict on all of them, before fully_shard"
_REDUCE = "a rule that looks at what this rank alone sees must sum it over all ranks (reduce=)"


def resharded(model: nn.Module) -> None:
    """Let ``fully_shard`` put its shards back where it left sparse layers gathered, as after an evaluation.

    Raises:
        ValueError: gradients of an accumulation that goes on, which are not yet sharded and would not move along.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}
    kept = {name: managers(layer) for name, layer in layers.items()}
    if not any(kept.values()):
        return
    for name, each in kept.items():
        for manager in each:
            gathered = getattr(manager, "_unsharded_param", None)
            pending = getattr(manager, "unsharded_accumulated_grad", None)
            if pending is not None or getattr(gathered, "grad", None) is not None:
                raise ValueError(
                    f"layer {name!r}: gradients must be reduced before the layer is rewired, got some that were"
                    " accumulated under set_requires_gradient_sync(False); rewire after the optimizer's step"
                )
    if any(manager.sharded_state.name != "SHARDED" for each in kept.values() for manager in each):
        for module in model.modules():
            if hasattr(module, "reshard") and hasattr(module, "unshard"):
                module.reshard()  # type: ignore[operator]
    for name, each in kept.items():
        if any(manager.sharded_state.name != "SHARDED" for manager in each):
            raise ValueError(
                f"layer {name!r}: weight must be sharded to be rewired, got one that fully_shard has gathered for a"
                " module outside of this model: give the whole model, or call reshard() on that module"
            )


def note_layer(facts: Facts, name: str, layer: SparseLayer, entries: int, **numbers: Any) -> None:
    """Note what a sharded layer has in common on all ranks: its pattern, and what is about to be done."""
    weight: Any = layer.weight
    if not is_spread(weight):
        return
    mine, mark = facts[weight.device_mesh], _ops.pattern_mark(layer.ccol_indices, layer.row_indices)
    mine[f"layer {name!r}: pattern"] = (f"{checksum(mark):016x}", _ALIKE)
    for key, value in numbers.items():
        mine[key] = (value, "give every rank the same")
    mine[f"layer {name!r}: number of moving tensors"] = (
        entries, "train it on every rank with the same optimizer, from the same state")  # fmt: skip


class Whole(Protocol):
    """The rewiring of a layer that is whole: ``writing.Rewiring``."""

    @property
    def report(self) -> LayerReport: ...
    @property
    def source(self) -> torch.Tensor: ...
    @property
    def values(self) -> torch.Tensor: ...
    def write(self, status: torch.Tensor | None) -> None: ...


def planned(
    plan: Callable[[], Whole],
    name: str,
    layers: list[SparseLayer],
    companions: Companions,
    gradients: bool,
    facts: Facts,
) -> Whole | ShardedRewiring:
    """A layer's rewiring; that of a sharded one is planned with the layer whole on every rank.

    Args:
        plan: makes it of a layer that is whole.
        gradients: whether it looks at the weight's gradient.
        facts: the plan is noted there.
    """
    weight: Any = layers[0].weight
    if not is_spread(weight):
        return plan()
    with whole(list(layers), gradients, layers[0].row_indices.device):
        rewiring = plan()
    report, source, values = rewiring.report, rewiring.source, rewiring.values
    del rewiring  # a pattern, which is made again when it is written
    result = ShardedRewiring(layers, _Report(report), _gone(source, report.nnz), values.cpu(), companions)
    choice = checksum(result.gone, *result.report.grown, result.values)
    facts[weight.device_mesh][f"layer {name!r}: choice of connections"] = (f"{choice:016x}", _REDUCE)
    return result


class _Report(LayerReport):
    """With its edges in host memory, in 32 bits until somebody asks for them."""

    def __init__(self, report: LayerReport) -> None:
        packed = [tuple(index.int().cpu() for index in edges) for edges in (report.removed, report.grown)]
        vars(self).update(name=report.name, k=report.k, nnz=report.nnz, _packed=packed)

    @property
    def removed(self) -> Edges:
        return self._edges(0)

    @property
    def grown(self) -> Edges:
        return self._edges(1)

    def _edges(self, which: int) -> Edges:
        rows, columns = vars(self)["_packed"][which]
        return rows.long(), columns.long()


@dataclass
class ShardedRewiring:
    """What a rewiring will do to one sharded weight: 24 bytes for each connection that moves, in host memory."""

    layers: list[SparseLayer]
    report: LayerReport
    gone: torch.Tensor  # int32 (k,): the positions of those that go
    values: torch.Tensor  # (k,)
    companions: Companions

    def write(self, status: torch.Tensor | None) -> None:
        """Pattern, values, gradient and the optimizer's state: a collective."""
        if self.report.k == 0:
            return
        layer, weight, rows = self.layers[0], self.layers[0].weight, self.layers[0].out_features
        row_of_new, column_of_new = self.report.grown
        ccol, row = layer.pattern[:2]
        home = _ops.home_of("weakest", row.device)
        dropped = torch.zeros(self.report.nnz, dtype=torch.bool, device=home)
        dropped[self.gone.to(home).long()] = True
        keys, values = (column_of_new * rows + row_of_new).to(home), self.values.to(home)
        *views, source, _, _ = _ops.plan_rewiring(
            ccol.to(home), row.to(home), rows, dropped, self.report.k, keys, values, dtype=weight.dtype, sound=True
        )
        for each in self.layers:
            each._write(Pattern(*views))
        del views, dropped, keys
        carry(weight, source, values, None)
        for write in self.companions.prepared(source, values):
            write(None)


def _gone(source: torch.Tensor, nnz: int) -> torch.Tensor:
    """The positions that no connection comes from, ascending: int32 (k,), in host memory."""
    stays = torch.zeros(nnz, dtype=torch.bool, device=source.device)
    stays[source[source >= 0].long()] = True
    return stays.logical_not_().nonzero().flatten().int().cpu()
