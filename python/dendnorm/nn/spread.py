"""Tensors that are spread over ranks (DTensor, as ``fully_shard`` makes of parameters): who has which entries.

Everything here is done with the collectives of ``torch.distributed`` and not by DTensor's own rules, so that what
travels can be told, and so that shards that lie in host memory travel by the device that the ranks speak with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "Spread",
    "assigned",
    "is_spread",
    "managers",
    "refuse_spread",
    "refuse_wrapped",
    "sum_over",
    "whole",
    "widened",
]


def is_spread(tensor: object) -> bool:
    """Whether it is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # there is none before that is loaded
    return module is not None and isinstance(tensor, module.DTensor)


def _all_gather() -> Callable:
    """By its name in this PyTorch: 2.13 has another one for it."""
    return getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor


@dataclass(frozen=True)
class Spread:
    """How a tensor of one dimension lies on the ranks of a mesh: in ranges of equal length, of which the last may be
    short or empty. Where nothing is sharded (``Replicate`` alone) every rank has all of it.

    Attributes:
        mesh: the ``DeviceMesh``.
        dimension: which of the mesh's dimensions the tensor is sharded over; None: none.
        size: entries of the whole tensor.
        start, stop: those of this rank.
    """

    mesh: Any
    dimension: int | None
    size: int
    start: int
    stop: int

    @classmethod
    def of(cls, tensor: Any) -> Spread:
        """That of a DTensor.

        Raises:
            ValueError: it lies on the ranks in another way; says what was expected and what came.
        """
        mesh, placements, size = tensor.device_mesh, tensor.placements, tensor.numel()
        sharded = [number for number, placement in enumerate(placements) if not placement.is_replicate()]
        kinds = {type(placements[number]).__name__ for number in sharded}
        if tensor.dim() != 1 or len(sharded) > 1 or kinds - {"Shard"}:
            raise ValueError(
                "must be sharded over at most one dimension of the mesh, by Shard(0), as fully_shard does it, got"
                f" placements {placements} of a tensor of shape {tuple(tensor.shape)}"
            )
        dimension = sharded[0] if sharded else None
        start, stop = 0, size
        if dimension is not None:
            chunk = -(-size // mesh.size(dimension))
            rank = mesh.get_local_rank(dimension)
            start, stop = min(rank * chunk, size), min((rank + 1) * chunk, size)
        local = tuple(tensor.to_local().shape)
        if local != (stop - start,):
            raise ValueError(
                f"must have entries {start} to {stop} of {size} on this rank, got a shard of shape {local}"
            )
        return cls(mesh, dimension, size, start, stop)

    @property
    def ranks(self) -> int:
        """Over how many it is sharded."""
        return 1 if self.dimension is None else self.mesh.size(self.dimension)

    @property
    def chunk(self) -> int:
        """Entries of the first rank, and of every other that has as many."""
        return max(-(-self.size // self.ranks), 1)

    @property
    def group(self) -> Any:
        """The ranks over which it is sharded."""
        return self.mesh.get_group(self.dimension)

    @property
    def device(self) -> torch.device:
        """What this rank speaks to the others with."""
        kind = self.mesh.device_type
        if kind == "cpu":
            return torch.device(kind)
        return torch.device(kind, torch.get_device_module(kind).current_device())

    def gathered(self, local: torch.Tensor) -> torch.Tensor:
        """The whole tensor, on ``device``, from every rank's own entries: a collective."""
        local = local.detach().to(self.device)
        if self.ranks == 1:
            return local.clone()
        padded = local.new_zeros(self.chunk)
        padded[: len(local)] = local
        found = local.new_empty(self.ranks * self.chunk)
        _all_gather()(found, padded, group=self.group)
        return found[: self.size]

    def summed(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over all ranks of the mesh, in place: a collective."""
        for dimension in range(self.mesh.ndim):
            torch.distributed.all_reduce(tensor, group=self.mesh.get_group(dimension))


def sum_over(weight: Any) -> Callable[[torch.Tensor], object] | None:
    """What sums a tensor over the ranks that hold a weight; None where this one holds all of it."""
    return Spread.of(weight).summed if is_spread(weight) else None


def assigned(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Copy a whole tensor, the same on every rank, into one that may be spread: each rank takes its own entries."""
    if is_spread(parameter):
        spread = Spread.of(parameter)
        parameter.to_local().copy_(values[spread.start : spread.stop])  # type: ignore[attr-defined]
    else:
        parameter.copy_(values)


def refuse_spread(owner: str, *tensors: object) -> None:
    """Refuse what a rank cannot compute alone.

    Raises:
        ValueError: one of the tensors is a DTensor; names its owner.
    """
    if any(is_spread(tensor) for tensor in tensors):
        raise ValueError(
            f"{owner}: weights and input must be plain tensors, whole on this rank, got a DTensor. Within the forward"
            " pass of fully_shard they are; elsewhere call unshard() on the module that it was given, on every rank,"
            " and reshard() afterwards. Leave sparse layers out of tensor parallelism (parallelize_module)"
        )


def refuse_wrapped(model: nn.Module, layers: Container[int], act: str) -> None:
    """Refuse a model that averages gradients of the very parameters that are to be replaced.

    Raises:
        ValueError: one of the layers (by ``id``) lies in a ``DistributedDataParallel``.
    """
    for name, module in model.named_modules():
        if isinstance(module, DistributedDataParallel) and any(id(part) in layers for part in module.modules()):
            where = f" at {name!r}" if name else ""
            raise ValueError(
                f"model must be {act} before it is wrapped in DistributedDataParallel, which goes on with the gradients"
                f" of the parameters that it was given, got one that is wrapped{where}: take its .module, and wrap that"
                " anew"
            )


def widened(*tensors: torch.Tensor | None) -> Any:
    """Values of 16 bits, as mixed precision of ``fully_shard`` gathers them, in the 32 that the ops compute with."""
    return tuple(
        tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for tensor in tensors
    )


@contextmanager
def whole(layers: list[nn.Module], gradients: bool, device: torch.device) -> Iterator[None]:
    """Let layers hold their own and their norm's parameters whole, as copies, while the block runs: a collective.

    Args:
        layers: what they share stays shared.
        gradients: whether the copies have the gradient, where there is one.
        device: where the copies are to lie.
    """
    held: list[tuple[dict, str, nn.Parameter]] = []
    copies: dict[nn.Parameter, nn.Parameter] = {}
    try:
        for module in dict.fromkeys(each for layer in layers for each in layer.modules()):
            for name, parameter in module._parameters.items():
                if parameter is None or not is_spread(parameter):
                    continue
                if parameter not in copies:
                    copies[parameter] = _whole(parameter, gradients, device)
                held.append((module._parameters, name, parameter))
        for parameters, name, parameter in held:
            parameters[name] = copies[parameter]
        yield
    finally:
        for parameters, name, parameter in held:
            parameters[name] = parameter


def _whole(parameter: Any, gradients: bool, device: torch.device) -> nn.Parameter:
    spread = Spread.of(parameter)
    copy = nn.Parameter(spread.gathered(parameter.to_local()).to(device), requires_grad=parameter.requires_grad)
    if gradients and parameter.grad is not None:
        copy.grad = Spread.of(parameter.grad).gathered(parameter.grad.to_local()).to(device)
    return copy


def managers(layer: nn.Module) -> list[Any]:
    """What ``fully_shard`` keeps of each of a layer's own parameters; none where it did not shard it."""
    # The one place of a module that it is never sharded as a whole where these are found: the hook that it leaves.
    found = []
    for hook in layer._load_state_dict_post_hooks.values():
        for cell in getattr(hook, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "sharded_param") and hasattr(cell.cell_contents, "sharded_state"):
                found.append(cell.cell_contents)
    return found
