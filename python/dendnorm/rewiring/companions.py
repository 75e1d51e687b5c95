"""What belongs to a layer's weight entry by entry, and how it moves: its gradient and its optimizer's state.

Everything that is found is one of three: it moves, it says nothing about single connections and stays, or the act is
refused with a message that names the layer, the optimizer, the state and a remedy. The plan is made before anything is
written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from ..nn.spread import Spread, is_spread
from .fresh import Probe
from .moves import Companions, Dense, Quantised
from .optimizers import attributes, check_held, check_kind, described, inside
from .quantised import Codes, block_of, codes_of, wraps_codes

__all__ = ["Companions", "companions_of", "keys_of", "replaced"]

_COUNTS = ("step", "steps", "eta", "mu", "mu_product")
_QUANTISED = frozenset(
    {"absmax1", "absmax2", "qmap1", "qmap2", "max1", "max2", "new_max1", "new_max2", "gnorm_vec", "unorm_vec"}
)
_REMEDY = "train the layer with an optimizer whose state has one entry for each connection, such as torch.optim.AdamW"


def companions_of(name: str, weight: nn.Parameter, optimizer: Any, act: str = "rewired") -> Companions:
    """Plan what moves with a weight.

    Args:
        name: the layer's.
        optimizer: the one that trains it, wrapped or not, or None.
        act: what is about to be done to the layer.

    Raises:
        ValueError: state that can neither move nor stay; names layer, optimizer, state and remedy.
    """
    if weight.is_meta:
        raise ValueError(f"layer {name!r} must have values to be {act}, got one on the meta device")
    check_kind(optimizer)
    check_held(name, weight, optimizer, act)
    plan = _Plan(name, weight, optimizer)
    if weight.grad is not None:
        plan.tensor(weight.grad, "the gradient", "grad", None)
    everyone = inside(optimizer)
    seen: list[Any] = []
    for member in reversed(everyone):  # a wrapper may show the state of what it wraps
        for key, state in _own_state(member, weight):
            if state is not None and not any(state is other for other in seen):
                seen.append(state)
                plan.value(state, key, Probe(member, weight))
    for member in everyone:
        plan.elsewhere(member)
    plan.attached()
    return Companions(plan.companions())


def _own_state(member: Any, weight: nn.Parameter) -> list[tuple[str, Any]]:
    state = member.state
    if not isinstance(state, Mapping):
        return [("state", state)]
    return [("", state[key]) for key in keys_of(state, weight)]


def keys_of(state: Mapping[Any, Any], weight: nn.Parameter) -> list[Any]:
    """Those of an optimizer's state that stand for a parameter: itself, or its id."""
    return [key for key in state if key is weight or (isinstance(key, int) and key == id(weight))]


class _Plan:
    def __init__(self, name: str, weight: nn.Parameter, optimizer: Any) -> None:
        self._name, self._weight, self._optimizer = name, weight, optimizer
        self._found: dict[tuple, Dense | Quantised] = {}
        self._kept: list[torch.Tensor] = []  # say nothing about single connections
        self._spread = Spread.of(weight) if is_spread(weight) else None

    def companions(self) -> list[Dense | Quantised]:
        self._found.pop(_place(self._weight), None)
        return list(self._found.values())

    def value(self, value: Any, path: str, probe: Probe) -> None:
        """One part of the weight's state."""
        key = path.rsplit(".", 1)[-1].partition("[")[0]
        if isinstance(value, torch.Tensor):
            self.tensor(value, f"state {path!r}", key, probe, path)
        elif isinstance(value, Mapping):
            rest = self._blocks(value, path)
            for name, item in rest.items():
                self.value(item, f"{path}.{name}" if path else str(name), probe)
        elif isinstance(value, (list, tuple, deque)):
            numbers = len(value) == len(self._weight) > 1 and all(isinstance(item, (int, float)) for item in value)
            if numbers and not probe.has_own_size(path, (len(value),)):
                self._refuse(f"state {path!r}", f"a {type(value).__name__} of {len(value)} numbers")
            for index, item in enumerate(value):
                self.value(item, f"{path}[{index}]", probe)
        elif getattr(value, "size", 0) not in (0, 1) and hasattr(value, "__array__"):
            self._refuse(f"state {path!r}", f"a {type(value).__name__} of shape {value.shape}")
        else:
            for name, item in getattr(value, "__dict__", {}).items():
                if isinstance(item, torch.Tensor) and item.numel() > 1:
                    self._refuse(f"state {path!r}", f"a {type(value).__name__} with a tensor in .{name}")

    def tensor(self, tensor: torch.Tensor, what: str, key: str, probe: Probe | None, path: str = "") -> None:
        shape, expected = tuple(tensor.shape), tuple(self._weight.shape)
        if wraps_codes(tensor) and shape == expected:
            self._codes(codes_of(tensor))
            return
        plain = type(tensor) in (torch.Tensor, nn.Parameter) if not self._spread else self._is_spread_alike(tensor)
        if tensor.numel() == 0 or (tensor.numel() == 1 and (shape != expected or key in _COUNTS)):
            self._kept.append(tensor)
        elif not plain:
            as_weight = ", not sharded as the weight is" if self._spread else ""
            self._refuse(what, f"a {type(tensor).__name__} of shape {shape}{as_weight}")
        elif tensor.device.type == "meta":
            self._kept.append(tensor)  # without values, nothing moves
        elif shape != expected or (probe is not None and probe.has_own_size(path, shape)):
            if probe is None or not probe.has_own_size(path, shape):
                self._refuse(what, f"a tensor of shape {shape}")
            self._kept.append(tensor)
        else:
            self._check_writable(tensor, what)
            fresh = 0.0 if probe is None else probe.fresh(path, key)
            self._found.setdefault(_place(tensor), Dense(tensor, fresh))

    def _is_spread_alike(self, tensor: Any) -> bool:
        """Whether each rank has the tensor's entries for those of the weight that it has."""
        if not is_spread(tensor) or tensor.shape != self._weight.shape or type(tensor.to_local()) is not torch.Tensor:
            return False
        try:
            return Spread.of(tensor) == self._spread
        except ValueError:
            return False

    def elsewhere(self, member: Any) -> None:
        """Whether an optimizer keeps something for each connection outside the state of the weight."""
        kind = type(member).__name__
        own = {f".{name}": value for name, value in attributes(member).items() if name not in _BOOKS}
        groups = list(member.param_groups)
        for number, group in enumerate(groups):
            own |= {f".param_groups[{number}][{key!r}]": value for key, value in group.items() if key != "params"}
        if isinstance(member.state, Mapping):
            # Of other parameters only what may be one for all of them is looked at.
            own |= {f".state[{key!r}]": value for key, value in member.state.items()
                    if not isinstance(key, torch.Tensor) and key != id(self._weight)}  # fmt: skip
        sizes = [sum(param.numel() for param in group["params"]) for group in groups if len(group["params"]) > 1]
        together = {*sizes, sum(sizes)} if sizes else set()
        known = {id(param) for group in groups for param in group["params"]}
        known |= {id(param.grad) for group in groups for param in group["params"] if param.grad is not None}
        known |= {id(tensor) for entry in self._found.values() for tensor in entry.tensors}
        storage = _storage(self._weight)
        for path, tensor in _tensors(own, ""):
            if id(tensor) in known or any(tensor is other for other in self._kept) or tensor.numel() < 2:
                continue
            each = tensor.shape == self._weight.shape
            flat = tensor.dim() == 1 and len(tensor) in together
            if (each or flat) and _storage(tensor) != storage:
                self._refuse(f"{kind}{path}", f"a {type(tensor).__name__} of shape {tuple(tensor.shape)}")
        for param, state in member.state.items() if isinstance(member.state, Mapping) else ():
            for path, tensor in _tensors(state, "") if isinstance(param, torch.Tensor) else ():
                if tensor.dim() == 1 and len(tensor) in together and tensor.shape != param.shape:
                    self._refuse(f"state {path!r}", f"a tensor of shape {tuple(tensor.shape)} for all parameters")

    def attached(self) -> None:
        """Whether something for each connection hangs on the Parameter itself, as some optimizers keep averages."""
        storage = _storage(self._weight)
        known = {id(tensor) for entry in self._found.values() for tensor in entry.tensors}
        for path, tensor in _tensors({f".{name}": value for name, value in vars(self._weight).items()}, ""):
            if tensor.shape == self._weight.shape and id(tensor) not in known and _storage(tensor) != storage:
                self._refuse(f"weight{path}", f"a {type(tensor).__name__} of shape {tuple(tensor.shape)}")

    def _blocks(self, state: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The state without that of bitsandbytes in blocks, which is planned here."""
        numbers = [n for n in (1, 2) if getattr(state.get(f"state{n}"), "dtype", None) == torch.uint8]
        if not any(isinstance(state.get(f"qmap{n}"), torch.Tensor) for n in numbers):
            return dict(state)
        codes: Any
        scale: Any
        table: Any
        for n in numbers:
            codes, scale, table = (state.get(f"{part}{n}") for part in ("state", "absmax", "qmap"))
            what = f"state '{path + '.' if path else ''}state{n}'"
            block = None
            if isinstance(scale, torch.Tensor) and scale.dim() == 1 and codes.shape == self._weight.shape:
                block = block_of(len(codes), len(scale))
            if block is None:
                shapes = [tuple(getattr(part, "shape", ())) for part in (codes, scale)]
                self._refuse(what, f"codes of shape {shapes[0]} with scales of shape {shapes[1]}")
            self._codes(Codes(codes, scale, table, block))
        done = {f"state{n}" for n in numbers} | _QUANTISED
        self._kept += [value for key, value in state.items() if key in done and isinstance(value, torch.Tensor)]
        return {key: value for key, value in state.items() if key not in done}

    def _codes(self, codes: Codes) -> None:
        self._found.setdefault((codes.codes.device, codes.codes.data_ptr(), "codes"), Quantised(codes))

    def _check_writable(self, tensor: Any, what: str) -> None:
        tensor = tensor.to_local() if is_spread(tensor) else tensor
        if tensor.layout != torch.strided or tensor.is_inference() or (tensor.stride(0) == 0 and len(tensor) > 1):
            raise ValueError(
                f"layer {self._name!r}: optimizer state of the weight's shape must be dense and writable in place, got"
                f" for {what} of {described(self._optimizer)} layout {tensor.layout}, stride"
                f" {tensor.stride() if tensor.layout == torch.strided else None}, inference tensor"
                f" {tensor.is_inference()}"
            )

    def _refuse(self, what: str, got: str) -> NoReturn:
        raise ValueError(
            f"layer {self._name!r}: {what} of {described(self._optimizer) or 'no optimizer'} must have one entry for"
            f" each of the {len(self._weight)} connections, to move with them, or a size that does not depend on their"
            f" number, got {got}; {_REMEDY}"
        )


# What an optimizer's attributes hold that is looked at by itself, or is not state: torch's books, bitsandbytes' tables.
_BOOKS = {"state", "param_groups", "defaults", "name2qmap"}


def _place(tensor: Any) -> tuple:
    """The same for two tensors that are the same memory. Parts of no entries have none: each is its own."""
    local = tensor.to_local() if is_spread(tensor) else tensor
    memory = local.data_ptr() if local.numel() else id(tensor)
    return local.device, memory, local.stride(), local.dtype


def _storage(tensor: Any) -> int | None:
    tensor = tensor.to_local() if is_spread(tensor) else tensor
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor subclass without one
        return None


def _tensors(value: Any, path: str, depth: int = 4) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif depth and isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield from _tensors(item, f"{path}{key if not path else f'[{key!r}]'}", depth - 1)
    elif depth and isinstance(value, (list, tuple, deque)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{path}[{index}]", depth - 1)


def replaced(value: Any, by_id: Mapping[int, Any]) -> Any:
    """The same nest of dicts, lists and tuples with other tensors in it."""
    if id(value) in by_id:
        return by_id[id(value)]
    if isinstance(value, Mapping):
        return {key: replaced(item, by_id) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(replaced(item, by_id) for item in value)
    if isinstance(value, deque):
        return deque((replaced(item, by_id) for item in value), value.maxlen)
    return value
