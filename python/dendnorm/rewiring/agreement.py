"""Ranks that hold shards of the same layers do the same, or all of them raise: nobody waits for one that has failed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..nn.row_view import Patterned
from ..nn.spread import Spread, is_spread, managers

__all__ = ["Facts", "Ranks", "checksum"]

Facts = dict[Any, dict[str, tuple[Any, str]]]
"""For each mesh, what must be the same on all of its ranks: by its name, the value and what to do if it is not."""


def checksum(*tensors: torch.Tensor) -> int:
    """A number that tells tensors of numbers apart, with their order; by wrapping arithmetic, on any device alike."""
    result = len(tensors)
    for tensor in tensors:
        kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = tensor.detach().contiguous().view(kinds[tensor.element_size()]).long().flatten()
        place = torch.arange(1, len(bits) + 1, device=bits.device)
        mixed = (bits ^ (bits >> 29)) * 0x2545F4914F6CDD1D + place * 0x1E3779B97F4A7C15
        mixed = (mixed ^ (mixed >> 31)) * 0x3C79AC492BA7B653
        result = (result * 1000003 + int((mixed ^ (mixed >> 33)).sum()) + len(bits)) % 2**63
    return result


class Ranks:
    """All ranks that hold shards of a model's sparse layers; none as a rule, and then nothing is done.

    Args:
        model: the same on every rank of each of its meshes.
    """

    def __init__(self, model: nn.Module) -> None:
        meshes: dict[Any, None] = {}
        for module in model.modules():
            if isinstance(module, Patterned):
                gathered = [manager.sharded_param for manager in managers(module)]
                for parameter in (*module._parameters.values(), *gathered):
                    if is_spread(parameter):
                        meshes[parameter.device_mesh] = None
        self._meshes = list(meshes)

    def __bool__(self) -> bool:
        return bool(self._meshes)

    @contextmanager
    def together(self) -> Iterator[Facts]:
        """Run the block on all ranks; all raise where one of them did, or where they disagree in what they note.

        In the block nobody may wait for others after something that may fail on one rank alone.

        Raises:
            what the block raises; a ValueError with its message on the other ranks.
        """
        facts: Facts = {mesh: {} for mesh in self._meshes}
        failure: Exception | None = None
        try:
            yield facts
        except Exception as error:
            if not self._meshes:
                raise
            failure = error
        if self._meshes and self._in_trouble(facts, failure is not None):
            told = self._told(facts, failure)
            if failure is None:
                raise ValueError(told)
        if failure is not None:
            raise failure

    def _sweep(self) -> Iterable[tuple[Any, int]]:
        """Every dimension of every mesh, there and back: what one rank knows reaches all."""
        for mesh in [*self._meshes, *self._meshes[-2::-1]]:
            for dimension in range(mesh.ndim):
                yield mesh, dimension

    def _in_trouble(self, facts: Facts, failed: bool) -> bool:
        for mesh, dimension in self._sweep():
            text = repr([(name, value) for name, (value, _) in facts[mesh].items()])
            digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
            device = Spread(mesh, None, 0, 0, 0).device
            numbers = torch.tensor([int(failed), digest, -digest], device=device)
            torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX, group=mesh.get_group(dimension))
            highest, most, least = numbers.tolist()
            failed = bool(highest) or most != -least
        return failed

    def _told(self, facts: Facts, failure: Exception | None) -> str:
        """What went wrong, for those to whom it did not: the message of the first rank that failed."""
        rank = torch.distributed.get_rank()
        failures = {} if failure is None else {rank: str(failure).partition("\n")[0]}
        differences: dict[str, str] = {}
        for mesh, dimension in self._sweep():
            group = mesh.get_group(dimension)
            everyone: list[Any] = [None] * torch.distributed.get_world_size(group)
            torch.distributed.all_gather_object(everyone, (rank, failures, differences, facts[mesh]), group=group)
            for _, theirs, others, _ in everyone:
                failures |= theirs
                differences |= others
            if not failures:
                differences |= _differences({one[0]: one[3] for one in everyone})
        if failures:
            first = min(failures)
            return f"{failures[first]} (on rank {first})"
        return next(iter(differences.values()), "ranks must do the same, got ranks that do not")


def _differences(facts: dict[int, dict[str, tuple[Any, str]]]) -> dict[str, str]:
    first = min(facts)
    for name in dict.fromkeys(name for each in facts.values() for name in each):
        values = {rank: each.get(name, ("none", ""))[0] for rank, each in facts.items()}
        other = next((rank for rank in sorted(values) if values[rank] != values[first]), None)
        if other is not None:
            remedy = next(each[name][1] for each in facts.values() if name in each)
            return {name: f"{name} must be the same on every rank, got {values[first]} on rank {first} and"
                          f" {values[other]} on rank {other}; {remedy}"}  # fmt: skip
    return {}
