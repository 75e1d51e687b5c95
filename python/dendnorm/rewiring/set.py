"""Rewiring: sparse evolutionary training (SET) and its relatives, in place, with the optimizer's state moving along."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .._arguments import real, whole
from ..nn.layer import SparseLayer
from ..nn.pattern import Pattern
from ..nn.spread import is_spread
from ..ops import library as _ops
from . import sharded
from .agreement import Facts, Ranks
from .companions import companions_of
from .groups import Group, check_shared, groups_of
from .moves import Companions
from .observing import DROPS, GROWS, Observer, Turn, check_observed
from .optimizers import check_held, check_kind, is_optimizer, stepping
from .reports import LayerReport, Outcome, RewireReport, of_layer
from .steps import Timetable, skips_of
from .values import directed
from .writing import Rewiring, check_writable, trains

__all__ = ["SET", "LayerReport", "RewireReport"]

# A status, as csrc/core/status.h has it: a code, and what its message tells.
_STATUS_WORDS = 4


def _defers(devices: set[torch.device]) -> bool:
    """Whether faults in values are found while nobody waits: on one GPU, where all writes come after all checks."""
    return all(device.type == "cuda" and _ops.has_kernel("weakest", device) for device in devices) and len(devices) == 1


def _zeta(value: object) -> float:
    number = real("zeta", value)
    if not 0 <= number <= 1:
        raise ValueError(f"zeta must be in [0, 1], got {value}")
    return number


class SET:
    """Sparse evolutionary training, as Bird and Cuntz use it: the weakest connections go, as many random ones come.

    One ``step()`` excises, in every sparse layer of the model, the k = round(zeta nnz) connections (half to even)
    of the smallest effective weight |w| (of equals, the earlier in the layer's order), and then grows k, uniformly
    at random among the positions that are empty after the excision, with values v of 0, or of the layer's spread
    where the norm has b != 0 (``grow.Random(start="normal")``: from N(0, 1), as in the paper). Everything is
    written in place: Parameter objects, storage and nnz stay. The gradient and the optimizer's state move with the
    connections that stay, and a new one gets what a fresh parameter would get: 0 as a rule, lr for Rprop's step
    sizes, its own value for copies of the weight such as ASGD's ``ax`` and schedule-free's ``z``. State in blocks
    of 8-bit or 4-bit codes (bitsandbytes, torchao) moves as numbers and is quantised again. What does not depend on
    the number of connections, such as step counts, stays. Any other state is refused by name before anything is
    written.

    Layers whose weight does not train are left alone; which those are is looked at anew at every step.

    What is drawn is a function of (seed, number of the step, number of the layer in ``model.named_modules()``) and the
    pattern, on every device and every rank. A layer that the model holds twice is rewired once. So are layers that
    share a weight: the first decides, and all must have the same pattern.

    A step that fails leaves model and optimizer as they were: everything is computed before anything is written. On a
    GPU nothing waits for the device, and what only values can show to be wrong (an effective weight that is NaN) is
    known later: the device then writes nothing, and the error is raised by whatever comes first of reading the report,
    ``state_dict()`` and the next ``step()``. Where the layers and their optimizer's state lie on several devices,
    ``step()`` waits for them and raises by itself.

    Layers that ``fully_shard`` has sharded are rewired by all ranks together, one layer at a time: every rank must call
    ``step()``, and if one of them cannot, all raise. Rules that look at samples then sum over the ranks by themselves.

    That is the default pair of rules. ``drop`` and ``grow`` take others: RigL, for one, is ``grow="gradient"``. Rules
    that look at what passes through a layer need it to be observed: ``observe()``, or by itself with ``every``.
    Variants may also override ``importance`` (what goes), ``grow`` (what comes) or ``draw`` (with which values).

    Source: D. C. Mocanu et al, "Scalable training of artificial neural networks with adaptive sparse connectivity
    inspired by network science", Nature Communications 9, 2018; the criterion as in A. D. Bird and H. Cuntz,
    "Dendritic normalisation improves learning in sparsely connected artificial neural networks".

    Args:
        model: a module with at least one sparse layer that trains; looked through again at every step.
        optimizer: the one that trains it, of any kind, also within wrappers such as accelerate's or
            ``ZeroRedundancyOptimizer``. It must hold the weight of every sparse layer that needs a gradient. None:
            there is none, and no state is carried.
        zeta: share of the connections that is replaced, in [0, 1], or a callable that gives it for the number of the
            rewiring, from 1: see ``dendnorm.schedules``. May be assigned later.
        seed: in [0, 2^63).
        every: rewires by itself after every so many steps of the optimizer; ``remove()`` ends it. Steps that a
            ``GradScaler`` skipped do not count. None: only when ``step()`` is called.
        start, stop: with ``every``: rewires after steps start + every, start + 2 every and so on, up to stop.
        drop: what goes: a rule of ``dendnorm.drop``, which lists them, or its name.
        grow: what comes: a rule of ``dendnorm.grow`` or its name.

    Attributes:
        report: the latest ``RewireReport``, or None.
        drop_rule, grow_rule: the rules.

    Raises:
        TypeError, ValueError: an argument that is not as above; names it, what was expected and what came.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        zeta: float | Callable[[int], float] = 0.15,
        seed: int = 0,
        every: int | None = None,
        drop: Any = "magnitude",
        grow: Any = "random",
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if optimizer is not None and not is_optimizer(optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or None, got {type(optimizer).__name__}")
        check_kind(optimizer)
        self.model, self.optimizer = model, optimizer
        self.drop_rule, self.grow_rule = DROPS.resolve(drop), GROWS.resolve(grow)
        self.zeta = zeta
        self.seed = whole("seed", seed, 0)
        sharded.resharded(model)
        self._timetable = Timetable(every, start, stop)
        self.report: RewireReport | None = None
        self._steps = 0  # rewirings so far
        self._pending: Outcome | None = None  # of the latest rewiring, until it is known
        self._before: tuple[int, int, RewireReport | None] = (0, 0, None)  # _steps, calls and report before it
        self._observer: Observer | None = None
        self._turn: Turn | None = None  # of the layer that is being planned
        groups, left = self._layers()
        if not groups:
            raise ValueError(
                "model must hold a SparseLinear or SparseConv2d whose weight trains to be rewired, got"
                f" {left}, which need no gradient"
            )
        self._handle = None
        self._watch(groups)
        self._observe_if_due()

    def _watch(self, groups: list[Group]) -> None:
        """Be told of the optimizer's steps, where that matters."""
        stepper = stepping(self.optimizer, [layers[0].weight for _, _, layers in groups])
        if self.every is not None and stepper is None:
            raise ValueError(
                f"optimizer must have step hooks where every={self.every} is given, got {self.optimizer!r}"
            )
        if stepper is not None and (self.every is not None or self._looks_at):
            self._handle = stepper.register_step_post_hook(self._after_optimizer_step)

    @property
    def every(self) -> int | None:
        """After how many steps of the optimizer it rewires by itself."""
        return self._timetable.every

    @property
    def zeta(self) -> float | Callable[[int], float]:
        """Share of the connections that a step replaces, or the callable that gives it."""
        return self._zeta

    @zeta.setter
    def zeta(self, value: float | Callable[[int], float]) -> None:
        self._zeta = value if callable(value) else _zeta(value)

    @torch.no_grad()
    def step(self) -> RewireReport:
        """Rewire every layer once.

        Returns:
            What went and what came, layer by layer.

        Raises:
            ValueError: an effective weight that is NaN, a layer on the meta device, an optimizer that does not hold a
                layer's weight, state that cannot be written in place, or a layer that was not observed where a rule
                needs it. Names the layer; nothing has changed then.
        """
        self._settle()
        self._timetable.settle()
        number = self._steps + 1  # 0 is the draw of a fresh layer
        ranks = Ranks(self.model)
        with ranks.together() as facts:
            sharded.resharded(self.model)
            zeta = _zeta(self.share(number))
            layers, left = self._layers()
            companions = [companions_of(name, group[0].weight, self.optimizer) for _, name, group in layers]
            for (_, name, group), moving in zip(layers, companions, strict=True):
                self._check_shard(facts, name, group[0], len(moving.tensors), zeta, number)
        tensors = [group[0].weight for *_, group in layers] + [each for one in companions for each in one.tensors]
        devices = {tensor.device for tensor in tensors}
        statuses = [None] * len(layers)
        if deferred := not ranks and _defers(devices):
            found = torch.full((len(layers), _STATUS_WORDS), _ops.CLEAR, dtype=torch.int64, device=devices.pop())
            statuses = list(found)
        planned = []
        for (index, name, group), moving, status in zip(layers, companions, statuses, strict=True):
            plan = functools.partial(self._plan, name, group, zeta, number, index, moving, status)
            with ranks.together() as facts:
                planned.append(sharded.planned(plan, name, group, moving, self._reads_gradients, facts))
        worst = found[found[:, :1].argmin(0)].flatten() if deferred else None
        # It takes memory, which can fail: before anything is written.
        outcome = Outcome(found, [name for _, name, _ in layers], self._failed) if deferred else None
        for rewiring in planned:
            rewiring.write(worst)
        self._before = self._steps, self._timetable.calls, self.report
        self._pending = outcome
        self._steps, self._timetable.calls = number, 0
        if self._observer is not None:
            self._observer.stop()
            self._observer = None
        self._observe_if_due()
        self.report = RewireReport(number, tuple(rewiring.report for rewiring in planned), outcome, left)
        return self.report

    def observe(self) -> Observer:
        """Record what passes through the sparse layers, for the rules that look at it, until the next ``step()``.

        What is recorded begins anew with the first batch after a step of the optimizer, so that it is of the latest
        step (if there is no optimizer with hooks: it begins anew with this call). Call it before the last batch,

            rewire.observe()
            train_one_batch()
            rewire.step()

        or, to end it before that, as ``with rewire.observe():``. Forward passes are recorded with and without
        gradients. Graphs that skip a module's hooks (CUDA graphs, some compiled models) show nothing: run that batch
        through the plain model. What was recorded is not part of ``state_dict``.

        Returns:
            The recorder, a context manager; its ``stop()`` ends it.
        """
        if self._observer is not None:
            self._observer.stop()
        sharded.resharded(self.model)
        self._observer = Observer((layers for *_, layers in self._layers()[0]), self._looks_at)
        return self._observer

    def share(self, number: int) -> float:
        """Share of the connections that the rewiring of this number, from 1, replaces."""
        return self._zeta(number) if callable(self._zeta) else self._zeta

    def importance(self, layer: SparseLayer) -> torch.Tensor:
        """Of each connection, in the order of ``layer.weight``: (nnz,), floating; the least important ones go."""
        return self.drop_rule.importance(self._turn)

    def grow(
        self, layer: SparseLayer, ccol_indices: torch.Tensor, row_indices: torch.Tensor, k: int, step: int, index: int
    ) -> torch.Tensor:
        """Where connections come, given the pattern that is left, on the device of its tensors.

        Args:
            layer: still as it was before the excision.
            ccol_indices, row_indices: the column view of what stays, int32.
            k: how many are to come.
            step, index: the number of this rewiring and that of the layer.

        Returns:
            Keys ``col * out_features + row`` of k distinct empty positions, ascending: int64 (k,).
        """
        return self.grow_rule.positions(self._turn, ccol_indices, row_indices)

    def draw(self, layer: SparseLayer, k: int, step: int, index: int, device: torch.device) -> torch.Tensor:
        """Values v of k new connections, in the order of the keys of ``grow``: (k,), of the weight's dtype."""
        return self.grow_rule.values(self._turn)

    def remove(self) -> None:
        """Stop rewiring by itself (``every``) and observing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._observer is not None:
            self._observer.stop()

    def state_dict(self) -> dict[str, int]:
        """What decides the draws to come: the seed, and how many rewirings and optimizer steps there were.

        Raises:
            ValueError: the latest rewiring failed on a GPU, as it would have on the CPU in ``step``.
        """
        self._settle()
        self._timetable.settle()
        state = {"seed": self.seed, "steps": self._steps, "calls": self._timetable.calls}
        return state | ({"optimizer_steps": self._timetable.total} if self._timetable.bounded else {})

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go on where another left off. ``zeta``, ``every`` and the rules stay as they are.

        Raises:
            TypeError, ValueError: not what ``state_dict`` gave; nothing has changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
        expected = ("seed", "steps", "calls")
        if set(state_dict) - {"optimizer_steps"} != set(expected):
            raise ValueError(f"state_dict must have the keys {list(expected)}, got {list(state_dict)}")
        seed, steps, calls = (whole(f"state_dict[{key!r}]", state_dict[key], 0) for key in expected)
        # One that was saved without start and stop rewired every so many steps, as far as can be known.
        usual = self._timetable.start + steps * (self.every or 0) + calls
        total = whole("state_dict['optimizer_steps']", state_dict.get("optimizer_steps", usual), 0)
        self.seed, self._steps = seed, steps
        self._timetable.clear()
        self._timetable.calls, self._timetable.total = calls, total
        self._pending = None
        if self._observer is not None:
            self._observer.stop()
            self._observer = None
        self._observe_if_due()

    def __repr__(self) -> str:
        groups, left = self._layers()
        names = ", ".join(name or type(layers[0]).__name__ for _, name, layers in groups)
        zeta = self.zeta if callable(self.zeta) else f"{self.zeta:g}"
        usual = ((DROPS, self.drop_rule, "magnitude"), (GROWS, self.grow_rule, "random"))
        rules = [f"{kind.kind}={rule}" for kind, rule, default in usual if rule != kind.resolve(default)]
        times = [f"start={self._timetable.start}", f"stop={self._timetable.stop}"] if self._timetable.bounded else []
        settings = ", ".join([f"zeta={zeta}", f"seed={self.seed}", f"every={self.every}", *times, *rules])
        return f"{type(self).__name__}({settings}, layers=[{names}]{f', left={list(left)}' if left else ''})"

    def _settle(self) -> None:
        """Wait for the latest rewiring, long done as a rule; raises if it failed."""
        if self._pending is not None:
            self._pending.check()
            self._pending = None

    def _failed(self, outcome: Outcome) -> None:
        if outcome is self._pending:
            self._pending = None
            self._steps, calls, self.report = self._before
            # Besides those since: the optimizer's next step rewires, as after a failure at once.
            self._timetable.calls += calls
            self._observe_if_due()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which hold nothing that a device is yet to say.

        Raises:
            ValueError: as ``state_dict``.
        """
        self._settle()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._handle is not None:  # an optimizer's copy has none of its hooks
            self._watch(self._layers()[0])

    def _after_optimizer_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._observer is not None:
            self._observer.renew()
        if self.every is not None:
            self._timetable.note(skips_of(optimizer, kwargs))
            if self._timetable.due():
                self.step()
            else:
                self._observe_if_due()

    @property
    def _looks_at(self) -> set[str]:
        return {*self.drop_rule.looks_at, *self.grow_rule.looks_at}

    def _observe_if_due(self) -> None:
        """With ``every``: whether the optimizer's next step may be one that ends in a rewiring."""
        if self._looks_at and self._observer is None and self._timetable.due_next():
            self.observe()

    def _layers(self) -> tuple[list[Group], tuple[str, ...]]:
        """What is rewired, and the names of the layers that do not train; checked."""
        groups = groups_of(self.model, "rewired")
        trained = [group for group in groups if trains(group[2][0])]
        for _, name, layers in trained:
            for layer in layers:
                check_writable(name, layer)
            check_held(name, layers[0].weight, self.optimizer, "rewired")
        return trained, tuple(name for _, name, layers in groups if not trains(layers[0]))

    def _plan(
        self,
        name: str,
        layers: list[SparseLayer],
        zeta: float,
        step: int,
        index: int,
        companions: Companions,
        status: torch.Tensor | None,
    ) -> Rewiring:
        layer = layers[0]
        device = layer.weight.device
        check_shared(name, layers, status)
        k, dtype = _ops.share_of(zeta, layer.nnz), layer.weight.dtype
        home = _ops.home_of("weakest", device)
        ccol, row = (indices.to(home) for indices in layer.pattern[:2])
        observed = None if self._observer is None else self._observer.of(layer)
        self._turn = Turn(name, layer, k, zeta, self.seed, step, index, home, status, observed)
        try:
            dropped, left, row_left, *gone = _ops.plan_excision(
                ccol, row, self.importance(layer), k, sound=True, status=status
            )
            keys = self.grow(layer, left, row_left, k, step, index)
            del left, row_left  # a layer's plan may take no more memory than the layer
            values = self.draw(layer, k, step, index, home)
            if not isinstance(values, torch.Tensor):
                kind, got = str(dtype).removeprefix("torch."), type(values).__name__
                raise ValueError(f"values of new connections must be a {kind} tensor of shape ({k},), got {got}")
            *views, source, came_row, came_col = _ops.plan_rewiring(
                ccol, row, layer.out_features, dropped, k, keys, values, dtype=dtype, sound=True, status=status
            )
            values = directed(layer, row, ~dropped, came_row, values, self.seed, step, index)
            writes = companions.prepared(source, values)
        except (RuntimeError, ValueError) as error:
            raise of_layer(name, error) from None
        finally:
            self._turn = None
        went, came = ((row.to(device), col.to(device)) for row, col in (gone, (came_row, came_col)))
        report = LayerReport(name, k, went, came, layer.nnz)
        patterns = [layer._prepared(Pattern(*views)) for layer in layers] if k else []
        return Rewiring(layers, report, patterns, source, values, writes)

    def _check_shard(self, facts: Facts, name: str, layer: SparseLayer, entries: int, zeta: float, step: int) -> None:
        """What ranks that share a layer out must have in common, and what may fail on one of them."""
        sharded.note_layer(facts, name, layer, entries, seed=self.seed, step=step, zeta=zeta)
        if is_spread(layer.weight):
            try:
                check_observed(None if self._observer is None else self._observer.of(layer), self._looks_at)
            except ValueError as error:
                raise of_layer(name, error) from None

    @property
    def _reads_gradients(self) -> bool:
        """Whether a plan may look at the weights' gradients, as far as can be known."""
        own = type(self)
        variant = (own.importance, own.grow, own.draw) != (SET.importance, SET.grow, SET.draw)
        return variant or getattr(self.drop_rule, "reads_gradient", True)
