"""Parameter groups for the optimizers of models that hold sparse layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._arguments import real
from ..nn.layer import SparseLayer
from ..nn.norms import Norm

__all__ = ["param_groups"]

# Of 1 / density in the rate of values, and of D in the rate with which e changes by the same share.
_POWERS = {"adam": (0.5, 1), "sgd": (1.0, 2)}


def param_groups(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    lr: float | None = None,
    density_scaled: bool = False,
    optimizer: str = "adam",
    power: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: what decays, what does not, and with ``density_scaled`` what has another rate.

    The values of sparse layers decay, and so do parameters of two or more dimensions (dense weights, filters); biases,
    excitabilities and every other scalar or vector do not. Each parameter is in one of the groups, once.

    With ``density_scaled`` the rate of a layer's values is lr / density^power, so that one lr suits all densities. For
    SGD the power is 1: a neuron with fewer inputs then moves as far by one step as that of an ``nn.Linear`` with all
    of them. For Adam it is 1/2: a step then is the same share of the values, which start larger where there are fewer.
    How far it moves a neuron asks for a power between 1/2 and 1, the nearer to 1 the more its inputs agree; 1/2 is
    what was measured to suit. The decay of values is multiplied by density^power, so that lr times weight decay, the
    share that a step of AdamW or SGD takes away, is the same for all. An excitability is given the rate with which it
    changes by the same share as that of a layer with all connections: lr times density^k, for Adam with
    k = a + b (1/p - 1/2), for SGD with twice that; that is density or density^2 for "l0", and lr itself for
    "weight_norm". Biases and all that is dense keep lr.

    Source: N. Dey et al, "Sparse maximal update parameterization", NeurIPS 2024, whose rate for sparse hidden weights
    with Adam has power 1. docs/maths.md derives the powers, docs/results.md measures them.

    Args:
        model: any module.
        weight_decay: of what decays, finite and at least 0. None: those groups say nothing of it, so that the
            optimizer's own applies, times the group's rate.
        lr: of all groups, or what their rates are made from; finite and at least 0. None: the optimizer's own.
        density_scaled: rates by the densities that the layers have now. Rewiring keeps these; after ``resize`` take
            the rates from a new call.
        optimizer: whether its steps are as long for small gradients as for large ones ("adam": Adam, AdamW, RMSprop,
            Lion and their like) or proportional to them ("sgd", with momentum or without).
        power: of 1 / density in the rates of values, finite; 0 leaves them at lr. None: 1/2 for "adam", 1 for "sgd".

    Returns:
        ``[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]``, with "lr" where
        it is given, and with ``density_scaled`` more such groups behind them, one for each rate, by the layers' order.

    Raises:
        TypeError, ValueError: an argument that is not as above; ``density_scaled`` without lr, or with a norm whose
            ``s`` is given, since then v is not the effective weight, whose step the rate is meant for.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(density_scaled, bool):
        raise TypeError(f"density_scaled must be a bool, got {density_scaled!r}")
    if optimizer not in _POWERS:
        raise ValueError(f'optimizer must be "adam" or "sgd", got {optimizer!r}')
    weight_decay, lr = _at_least_0("weight_decay", weight_decay), _at_least_0("lr", lr)
    if density_scaled and lr is None:
        raise ValueError("lr must be given with density_scaled, got None")
    sparse = {id(module.weight) for module in model.modules() if isinstance(module, SparseLayer)}
    excitabilities = {id(parameter) for module in model.modules() if isinstance(module, Norm)
                      for parameter in module.parameters()}  # fmt: skip
    values, share = _POWERS[optimizer]
    values = values if power is None else real("power", power)
    factors = _factors(model, values, share) if density_scaled else {}
    members: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for parameter in model.parameters():
        decaying = id(parameter) in sparse or (parameter.dim() >= 2 and id(parameter) not in excitabilities)
        members.setdefault((factors.get(id(parameter), 1.0), decaying), []).append(parameter)
    groups = []
    for (factor, decaying), parameters in members.items():
        group: dict[str, Any] = {"params": parameters}
        if not decaying:
            group["weight_decay"] = 0.0
        elif weight_decay is not None:
            group["weight_decay"] = weight_decay / factor
        if lr is not None:
            group["lr"] = lr * factor
        groups.append(group)
    return groups


def _at_least_0(name: str, value: object) -> float | None:
    if value is None:
        return None
    number = real(name, value)
    if number < 0:
        raise ValueError(f"{name} must be finite and at least 0, got {number}")
    return number


def _factors(model: nn.Module, power: float, share: int) -> dict[int, float]:
    """What the rates of values and excitabilities are multiplied with, by id; a shared one's first layer says it."""
    factors: dict[int, float] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, SparseLayer):
            continue
        norm, density = layer.norm, layer.density
        if norm.s is not None:
            raise ValueError(
                f"density_scaled needs values that are the effective weights; the norm of layer {name!r} starts at"
                f" s={norm.s:g} instead"
            )
        factors.setdefault(id(layer.weight), density**-power)
        if norm.excitability is not None:
            exponent = norm.a + norm.b * (1 / norm.p - 0.5)
            factors.setdefault(id(norm.excitability), density ** (share * exponent))
    return factors
