"""What a rule of rewiring may look at: the layer, the numbers of its turn, and what was seen to pass through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from ..nn.layer import SparseLayer
from ..nn.spread import sum_over
from ..ops import library as _ops

__all__ = [
    "ACTIVATIONS",
    "DROPS",
    "GRADIENTS",
    "GROWS",
    "Observed",
    "Observer",
    "Reduce",
    "Rules",
    "Turn",
    "check_observed",
    "strongest_empty",
]

ACTIVATIONS, GRADIENTS = "activations", "gradients"

Pairs = list[tuple[torch.Tensor, torch.Tensor]]
Reduce = Callable[[torch.Tensor], object]
"""Sums a tensor over all ranks, in place: ``torch.distributed.all_reduce``."""


@dataclass
class Observed:
    """What passed through one layer, batch by batch, as copies.

    Attributes:
        activations: pairs of inputs (B, N) and outputs (B, M); of a convolution images, (B, C, H, W) with their margins
            and (B, M, H', W').
        gradients: pairs of inputs and gradients of the loss in the outputs, of the same shapes.
        reduce: sums over the ranks that saw the other samples, where the layer is sharded over them; or None.
    """

    activations: Pairs = field(default_factory=list)
    gradients: Pairs = field(default_factory=list)
    reduce: Reduce | None = None


@dataclass(frozen=True)
class Turn:
    """One layer's part in one rewiring.

    Attributes:
        name, layer: the layer, still as it was before.
        k: how many connections go and come.
        zeta: the share that k was rounded from.
        seed, step, index: the rewirer's seed, the number of the rewiring and that of the layer.
        device: where to compute.
        status: notes faults in values on a GPU, or None; for the ops that take one.
        observed: what passed through the layer, or None.
    """

    name: str
    layer: SparseLayer
    k: int
    zeta: float
    seed: int
    step: int
    index: int
    device: torch.device
    status: torch.Tensor | None = None
    observed: Observed | None = None

    def pairs(self, kind: str) -> Pairs:
        """The observed pairs of a kind, in the dtype of the weight, on ``device``.

        Raises:
            ValueError: there are none.
        """
        check_observed(self.observed, (kind,))
        found, dtype = getattr(self.observed, kind), self.layer.weight.dtype
        return [(x.to(self.device, dtype), y.to(self.device, dtype)) for x, y in found]

    def reduce(self, given: Reduce | None) -> Reduce | None:
        """What sums over ranks what each of them saw: what a rule was given, else that of a sharded layer."""
        return given if given is not None else getattr(self.observed, "reduce", None)


def check_observed(observed: Observed | None, kinds: Iterable[str]) -> None:
    """Whether something was seen of every kind.

    Raises:
        ValueError: names the kind and what to do.
    """
    for kind in kinds:
        if not getattr(observed, kind, []):
            passed = "forward and backward pass" if kind == GRADIENTS else "forward pass"
            raise ValueError(
                f"must have been observed in a {passed} since the latest rewiring for a rule that looks at {kind}, got"
                " none; run a batch inside `with rewirer.observe():` before step(), or give every="
            )


class Observer:
    """Records what passes through layers, from when it is made to the end of a ``with`` block or to ``stop()``.

    What was recorded before a step of the optimizer is replaced by the first batch after it: the record is of the
    latest step, with all the batches that its gradient was accumulated over. Copies: inputs and outputs cost
    (N + M) numbers for each sample; those of a convolution, as many as its images have.
    """

    def __init__(self, groups: Iterable[Iterable[SparseLayer]], kinds: Iterable[str]) -> None:
        self._kinds = frozenset(kinds)
        self._stale = False
        self._record: dict[SparseLayer, Observed] = {}
        self._first: dict[SparseLayer, SparseLayer] = {}  # weights may be others while they are gathered
        self._reduce: dict[SparseLayer, Reduce | None] = {}
        self._handles: list[RemovableHandle] = []
        for layers in groups:
            layers = list(layers)
            self._reduce[layers[0]] = sum_over(layers[0].weight)
            for layer in layers:
                self._first[layer] = layers[0]
                self._handles.append(layer.register_forward_hook(self._forward, with_kwargs=True))

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Record no more; what was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def renew(self) -> None:
        """The optimizer made a step: what comes now belongs to the next."""
        self._stale = True

    def of(self, layer: SparseLayer) -> Observed | None:
        """What passed through a layer and those that share its weight."""
        first = self._first.get(layer)
        return None if first is None else self._record.get(first)

    def _forward(
        self, layer: SparseLayer, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor], output: torch.Tensor
    ) -> None:
        if self._stale:
            self._stale = False
            self._record.clear()
        differentiable = GRADIENTS in self._kinds and output.requires_grad
        if not (differentiable or ACTIVATIONS in self._kinds):
            return
        first = self._first[layer]
        record = self._record.setdefault(first, Observed(reduce=self._reduce[first]))
        inputs = layer._seen(args[0] if args else kwargs["input"])
        if ACTIVATIONS in self._kinds:
            record.activations.append((inputs, layer._seen_output(output)))
        if differentiable:

            def backward(gradient: torch.Tensor) -> None:
                record.gradients.append((inputs, layer._seen_output(gradient)))

            output.register_hook(backward)


def strongest_empty(
    turn: Turn,
    ccol_indices: torch.Tensor,
    row_indices: torch.Tensor,
    score: Callable[[int, int], torch.Tensor],
    block: int,
) -> torch.Tensor:
    """The k empty positions of the highest score, of equals the earlier in column order.

    Looked at in blocks of whole columns, with the best k so far carried along: O(block + k + nnz) memory.

    Args:
        ccol_indices, row_indices: the pattern that is left, int32.
        score: gives those of columns [start, stop): (stop - start, M), finite, of float32 or float64.
        block: how many scores to hold at a time; at least one column's are.

    Returns:
        Keys ``col * M + row``, ascending, int64 (k,).
    """
    device, k = turn.device, turn.k
    rows, cols = turn.layer.out_features, turn.layer.in_features
    best_keys = torch.zeros(k, dtype=torch.int64, device=device)
    if k == 0:
        return best_keys
    best = torch.full((k,), -torch.inf, dtype=turn.layer.weight.dtype, device=device)
    # Whatever a faulty pattern holds, these are columns; a fault is only noted, on a GPU, and this goes on.
    entries = torch.arange(len(row_indices), dtype=ccol_indices.dtype, device=device)
    columns = torch.searchsorted(ccol_indices, entries, right=True) - 1
    occupied = columns * rows + row_indices
    width = max(1, block // rows)
    for start in range(0, cols, width):
        stop = min(start + width, cols)
        size, base = (stop - start) * rows, start * rows
        scores = torch.cat([score(start, stop).reshape(-1), best.new_zeros(1)])
        inside = (occupied >= base) & (occupied < base + size)
        scores.scatter_(0, torch.where(inside, occupied - base, size), -torch.inf)
        candidates = torch.cat([best, scores[:size]])
        keys = torch.cat([best_keys, torch.arange(base, base + size, device=device)])
        chosen = _ops.weakest(-candidates, k, status=turn.status)
        # Exactly k are chosen, so they have fixed places and nothing waits to count them; the rest goes to the last.
        place = torch.where(chosen, chosen.cumsum(0) - 1, k)
        best = best.new_empty(k + 1).scatter_(0, place, candidates)[:k]
        best_keys = best_keys.new_empty(k + 1).scatter_(0, place, keys)[:k]
    return best_keys


class Rules:
    """The rules of one kind by their names: `dendnorm.drop` and `dendnorm.grow` fill them when they are loaded."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.protocol: type = object
        self.named: dict[str, Callable[[], Any]] = {}

    def declare(self, protocol: type, **named: Callable[[], Any]) -> None:
        """What a rule must look like, and those that have a name."""
        self.protocol, self.named = protocol, named

    def resolve(self, rule: Any) -> Any:
        """A rule from its name, or the same object.

        Raises:
            ValueError: an unknown name.
            TypeError: neither a rule nor a string.
        """
        kind = self.kind
        if isinstance(rule, str):
            if rule not in self.named:
                raise ValueError(
                    f"{kind} must be one of {sorted(self.named)} or a rule of dendnorm.{kind}, got {rule!r}"
                )
            return self.named[rule]()
        if isinstance(rule, type) or not isinstance(rule, self.protocol):
            raise TypeError(f"{kind} must be a rule of dendnorm.{kind} or its name, got {rule!r}")
        return rule


DROPS, GROWS = Rules("drop"), Rules("grow")
