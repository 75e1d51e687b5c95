"""Another number of connections: a deliberate act that makes new parameters, beside rewiring, which never does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._arguments import connections, whole
from ..nn.layer import SparseLayer
from ..nn.pattern import Pattern
from ..nn.spread import refuse_wrapped
from ..ops import library as _ops
from .companions import companions_of, keys_of, replaced
from .groups import check_shared, groups_of
from .observing import DROPS, Turn
from .optimizers import check_keeps_no_copy, inside, is_optimizer
from .quantised import gathered
from .values import check_start, directed, fresh_values
from .writing import check_writable, trains

__all__ = ["resize"]


@dataclass(frozen=True)
class _Change:
    layers: list[SparseLayer]  # more than one where they share the weight
    pattern: Pattern
    source: torch.Tensor  # int64 (nnz,): where each connection was, -1 for the new ones
    weight: nn.Parameter
    by_id: dict[int, Any]  # what takes the place of which object in the optimizer's state


@torch.no_grad()
def resize(
    model: nn.Module,
    density: float | Mapping[str, float],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    drop: Any = "magnitude",
    start: str = "zero",
    seed: int = 0,
) -> dict[str, tuple[int, int]]:
    """Give sparse layers more or fewer connections, as gradual pruning and gradual growth do.

    Unlike rewiring this makes new tensors: ``weight`` becomes another Parameter, and the pattern other buffers. Values
    move along with the connections that stay, and with the Parameter its hooks and other attributes. The optimizer is
    told: its groups hold the new Parameter, and its state moves along, stays or is refused as in ``SET``. Everything
    else that holds the old Parameter must be made anew afterwards: averaged copies, compiled graphs. A model that is
    wrapped in DDP or FSDP is refused. Layers that do not train are left alone unless they are named.

    Fewer: the least important by ``drop`` go. More: as many come, uniformly at random among the empty positions. n_i,
    and with it a norm that counts connections, follows.

    Args:
        model: with at least one sparse layer.
        density: of every sparse layer, in (0, 1]; or by the first name of each layer that is to change. A layer gets
            round(density N M) connections; one that has as many is left alone.
        optimizer: the one that trains it; None only where there is none.
        drop: a rule of ``dendnorm.drop`` that needs nothing observed, or its name.
        start: the values v of new connections: "zero", so that the output changes only by the norm (under one with
            b != 0 a neuron that would have nothing but zeros gets "matched" ones), "matched", with the spread that the
            layer's values have, or "normal", from N(0, 1).
        seed: of new positions and values; give another at each call.

    Returns:
        For each layer that changed, by name: its number of connections before and after.

    Raises:
        TypeError, ValueError: an argument that is not as above, a weight that the optimizer does not hold or that
            another kind of module holds too, or state that can neither move nor stay. Nothing has changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if optimizer is not None and not is_optimizer(optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer or None, got {type(optimizer).__name__}")
    check_start(start)
    seed = whole("seed", seed, 0)
    rule = DROPS.resolve(drop)
    if rule.looks_at:
        raise ValueError(f"drop must be a rule that needs nothing observed, got {rule!r}")
    groups = _groups(model)
    wanted = _wanted(groups, density)
    refuse_wrapped(model, {id(layer) for name in wanted for layer in groups[name]}, "resized")
    changes: dict[str, tuple[int, int]] = {}
    planned = []
    for index, (name, layers) in enumerate(groups.items()):
        layer = layers[0]
        if name in wanted and wanted[name] != layer.nnz:
            try:
                planned.append(_plan(name, layers, wanted[name], optimizer, rule, start, seed, index))
            except (RuntimeError, ValueError) as error:
                message, prefix = str(error).partition("\n")[0], f"layer {name!r}"
                raise ValueError(message if message.startswith(prefix) else f"{prefix}: {message}") from None
            changes[name] = layer.nnz, wanted[name]
    for change in planned:
        _write(change, optimizer)
    return changes


def _groups(model: nn.Module) -> dict[str, list[SparseLayer]]:
    """The sparse layers of each weight, by the first one's name."""
    groups = {name: layers for _, name, layers in groups_of(model, "resized")}
    weights = {id(layers[0]._parameters.get("weight")) for layers in groups.values()}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in weights and not (isinstance(module, SparseLayer) and key == "weight"):
                raise ValueError(f"{name}.{key} must not be the weight of a sparse layer, too, to resize that one")
    return groups


def _wanted(groups: dict[str, list[SparseLayer]], density: float | Mapping[str, float]) -> dict[str, int]:
    trained = [name for name, layers in groups.items() if trains(layers[0])]
    if not trained and not isinstance(density, Mapping):
        raise ValueError(f"density must name layers where none of them trains, {list(groups)}, got {density!r}")
    named = density if isinstance(density, Mapping) else dict.fromkeys(trained, density)
    for name in named:
        if name not in groups:
            raise ValueError(f"density must name sparse layers of the model, {list(groups)}, got {name!r}")
    return {name: connections(value, None, groups[name][0].in_features * groups[name][0].out_features)
            for name, value in named.items()}  # fmt: skip


def _plan(
    name: str,
    layers: list[SparseLayer],
    nnz: int,
    optimizer: torch.optim.Optimizer | None,
    rule: Any,
    start: str,
    seed: int,
    index: int,
) -> _Change:
    for each in layers:
        check_writable(name, each, "resized")
    layer = layers[0]
    old, rows = layer.weight, layer.out_features
    companions = companions_of(name, old, optimizer if old.requires_grad else None, "resized")
    check_keeps_no_copy(name, old, optimizer)
    check_shared(name, layers)
    home = _ops.home_of("weakest", old.device)
    row, col = layer.pattern.edges()
    keys = (col * rows + row).to(home)
    if nnz < layer.nnz:
        k = layer.nnz - nnz
        turn = Turn(name, layer, k, k / layer.nnz, seed, 0, index, home)
        source = (~_ops.weakest(rule.importance(turn).to(home), k)).nonzero().flatten()
        keys = keys[source]
    else:
        ccol, occupied = (tensor.to(home) for tensor in layer.pattern[:2])
        grown = _ops.empty_positions(ccol, occupied, rows, nnz - layer.nnz, seed, 0, index)
        keys, order = torch.cat([keys, grown]).sort()
        source = torch.where(order < layer.nnz, order, -1)
    pattern = Pattern._from_keys(keys, rows, layer.in_features).to(old.device)
    source = source.to(old.device)
    more = max(nnz - layer.nnz, 0)
    fresh = fresh_values(layer, more, seed, 0, index, home, start)
    if more:
        stays = torch.ones(layer.nnz, dtype=torch.bool, device=home)
        fresh = directed(layer, row.to(home), stays, grown % rows, fresh, seed, 0, index)
    fresh = fresh.to(old.device)
    weight = nn.Parameter(gathered(old.detach(), source, fresh), requires_grad=old.requires_grad)
    weight.__dict__.update(vars(old))
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if getattr(old, hooks):
            setattr(weight, hooks, getattr(old, hooks))
    by_id = companions.resized(source, fresh)
    if old.grad is not None:
        weight.grad = by_id[id(old.grad)]
    return _Change(layers, pattern, source, weight, by_id)


def _write(change: _Change, optimizer: torch.optim.Optimizer | None) -> None:
    old = change.layers[0].weight
    for layer in change.layers:
        layer.weight = change.weight
        layer._replace_pattern(change.pattern if layer is change.layers[0] else change.pattern.clone())
    for member in inside(optimizer):
        for group in member.param_groups:
            # In place: some optimizers keep the list itself.
            group["params"][:] = [change.weight if param is old else param for param in group["params"]]
        for key in keys_of(member.state, old):
            fresh = change.weight if key is old else id(change.weight)
            member.state[fresh] = replaced(member.state.pop(key), change.by_id)
