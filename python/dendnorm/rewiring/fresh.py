"""What a fresh parameter's state would be: what the state of a fresh connection becomes."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .optimizers import is_leaf

__all__ = ["VALUE", "Fresh", "Probe", "Value"]


class Value:
    """The new connection's own value."""


VALUE = Value()
Fresh = float | torch.Tensor | Value

# What every optimizer means by these, and starts with 0.
_MOMENTS = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "acc_delta", "grad_avg"}
    | {"state1", "state2", "exp_avg_slow", "exp_avg_fast", "variance", "master_grad"}
)
# Copies of the weight, under the names that optimizers and wrappers in use give them.
_COPIES = re.compile(
    r"(z|ax|x0|p0|old_p|anchor|backup|param_copy|params?_ema|ema_params?"
    r"|(lookahead_|cached_)?slow(_\w+)?(?<!momentum)|cached_params?"
    r"|((fp32|float32|master|init|initial|prev|previous|old|start|shadow)_?)(params?|weights?|p|copy)?)"
)


class Probe:
    """A second optimizer of the same class and settings, which has made one step with a gradient of 0.

    It trains one small parameter of its own, so that it shows what a fresh parameter's state is, and which sizes do not
    depend on the parameter's. It is made only for state whose name says too little. Of a wrapper there is none, nor of
    what cannot be made from its ``defaults``.
    """

    def __init__(self, optimizer: Any, weight: nn.Parameter) -> None:
        self._optimizer, self._weight = optimizer, weight
        self._found: dict[str, Any] | None = None
        self._values = torch.tensor([0.7, -1.3, 2.1, 0.4, -0.2, 1.7, -0.9], dtype=weight.dtype)
        if weight.numel() == len(self._values):
            self._values = self._values[:-2]

    def fresh(self, path: str, key: str) -> Fresh:
        """What a new connection's entry becomes in the state of a path, such as "exp_avg" or "history[3]"."""
        group = self._group()
        if isinstance(self._optimizer, torch.optim.Rprop):
            return group["lr"] if key == "step_size" else 0.0
        if isinstance(self._optimizer, torch.optim.Adagrad) and key == "sum":
            return group.get("initial_accumulator_value", 0.0)
        if key in _MOMENTS:
            return 0.0
        seen = self._seen(path)
        if isinstance(seen, torch.Tensor) and seen.shape == self._values.shape and not seen.is_complex():
            numbers = seen.detach().to("cpu", torch.float64)
            if torch.allclose(numbers, self._values.double(), rtol=1e-3, atol=0):
                return VALUE
            if bool((numbers == numbers[0]).all()):
                return float(numbers[0])
        return VALUE if _COPIES.fullmatch(key) else 0.0

    def has_own_size(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether the state of a path has this shape whatever the size of the parameter."""
        seen = None if path.rsplit(".", 1)[-1] in _MOMENTS else self._seen(path)
        if isinstance(seen, torch.Tensor):
            return tuple(seen.shape) == shape
        return isinstance(seen, (list, tuple)) and (len(seen),) == shape

    def _group(self) -> dict[str, Any]:
        for group in self._optimizer.param_groups:
            if any(param is self._weight for param in group["params"]):
                return group
        return {}

    def _seen(self, path: str) -> Any:
        if self._found is None:
            try:
                self._found = self._state()
            except Exception:  # anything: it is somebody else's code, called in a way of our own
                self._found = {}
        return self._found.get(path, self._found.get(re.sub(r"\[\d+\]", "[0]", path)))

    @torch.no_grad()
    def _state(self) -> dict[str, Any]:
        kind, group = type(self._optimizer), self._group()
        package = kind.__module__.split(".")
        known = package[:2] == ["torch", "optim"]
        if known or not group or not is_leaf(self._optimizer) or "distributed" in package:
            return {}
        own = {name: _copied(value) for name, value in group.items() if name != "params"}
        own |= {name: 0.0 for name, value in own.items() if "weight_decay" in name and isinstance(value, float)}
        settings = {**vars(self._optimizer), **self._optimizer.defaults, **own}
        names = list(inspect.signature(kind.__init__).parameters.values())[2:]
        given = {one.name: _copied(settings[one.name]) for one in names if one.name in settings}
        parameter = nn.Parameter(self._values.clone())
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            probe = kind([{"params": [parameter], **own}], **given)
            if not isinstance(probe, torch.optim.Optimizer):
                return {}
            parameter.grad = torch.zeros_like(parameter)
            kind.step(probe)
        return dict(_paths(probe.state.get(parameter, {}), ""))


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _paths(value: Any, path: str) -> list[tuple[str, Any]]:
    found = [(path, value)] if path else []
    if isinstance(value, Mapping):
        for key, item in value.items():
            found += _paths(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            found += _paths(item, f"{path}[{index}]")
    return found
