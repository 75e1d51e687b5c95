"""The normalisations: one family, w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i, and the module that holds its e.

| string                       | paper (Bird and Cuntz)               | a | b | p | e          |
|------------------------------|--------------------------------------|---|---|---|------------|
| "none", None                 | control                              | 0 | 0 | - | 1, fixed   |
| "l0"                         | dendritic, Eq 1 and 2                | 1 | 0 | - | s, shared  |
| "l0-variable"                | Fig 3G, p = 0                        | 1 | 0 | - | per neuron |
| "lp:2", any p >= 1           | Eq 5                                 | 0 | 1 | p | s, shared  |
| "lp-variable:2", any p >= 1  | Eq 6                                 | 0 | 1 | p | per neuron |
| "weight_norm"                | heterosynaptic, Fig 3F               | 0 | 1 | 2 | per neuron |
| "joint"                      | Eq 3 and 4                           | 1 | 1 | 2 | per neuron |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .._arguments import real
from ..ops import library as _ops

__all__ = ["Norm", "joint", "l0", "lp", "none", "resolve", "weight_norm"]


def keeps_values(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What ``Module._apply`` may do to values and indices: ``fn``, but values stay in 32 bits, indices stay integers.

    The ops take 16-bit activations with float32 values, and sums of many small steps need them.
    """

    def apply(tensor: torch.Tensor) -> torch.Tensor:
        result = fn(tensor)
        if not tensor.is_floating_point():
            return result if result.dtype == tensor.dtype else tensor.to(result.device)
        if result.dtype in (torch.float16, torch.bfloat16):
            # From the original, which has the digits that `result` has lost.
            return tensor.to(device=result.device, dtype=torch.float32)
        if result.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                "dtype of a sparse layer must be float32 or float64 (float16 and bfloat16 keep float32 values),"
                f" got {result.dtype}"
            )
        return result

    return apply


def _never_called(norm: nn.Module, args: tuple) -> None:
    """A hook that PyTorch's fused transformer layers see, and so leave a layer's ``forward`` to itself."""


class Norm(nn.Module):
    """One member of the family w_i = (e_i / D_i) v_i with D_i = n_i^a ||v_i||_p^b.

    Layers that are given the same object share its excitability, whose gradient is then summed over them.

    Args:
        a, b: exponents, any finite numbers.
        p: order of the norm, finite and at least 1; plays no part where b = 0.
        variable: one e for each output neuron instead of one for all.
        s: where e starts (the paper: 25), with values v from N(0, 1). None: e starts at D of a neuron with the layer's
            mean in-degree n and values from N(0, gain^2 / n), ||v||_p = gain / sqrt(n) (n E|z|^p)^(1/p), so that v is
            the effective weight there: a step of v is one of w, and a learning rate means what it means for
            ``nn.Linear``.
        gain: the output of a fresh layer has about gain^2 times its input's variance. No part where ``s`` is given.

    Attributes:
        excitability: Parameter, shape () or (M,), made when the first layer takes this norm. None before, and always
            where there is nothing to scale (a = b = 0, not variable and no s).

    Raises:
        TypeError, ValueError: an argument that is not of the type or in the range above.
    """

    excitability: nn.Parameter | None

    def __init__(
        self, a: float, b: float, p: float = 2.0, variable: bool = False, s: float | None = None, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.a, self.b, self.p = real("a", a), real("b", b), real("p", p)
        if self.p < 1:
            raise ValueError(f"p must be at least 1, got {p}")
        if not isinstance(variable, bool):
            raise TypeError(f"variable must be a bool, got {variable!r}")
        self.variable = variable
        self.s = None if s is None else real("s", s)
        self.gain = real("gain", gain)
        self.start: float | None = None
        self._alias: str | None = None
        self.register_parameter("excitability", None)
        # nn.TransformerEncoderLayer hands the weights of its layers to a fused kernel in evaluation, unless a module in
        # it has a hook. A norm is in every sparse layer and is itself never called, so this costs nothing.
        self.register_forward_pre_hook(_never_called)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self._forward_pre_hooks:  # pickled by version 0.1
            self.register_forward_pre_hook(_never_called)

    @property
    def scales(self) -> bool:
        """Whether there is an excitability at all."""
        return self.variable or self.s is not None or self.a != 0 or self.b != 0

    @property
    def name(self) -> str:
        """The string form, where there is one."""
        if self._alias is not None:
            return self._alias
        return _ops.name_of_norm(self.a, self.b, self.p, self.variable, self.scales)

    def extra_repr(self) -> str:
        parts = [self.name] if not self.name.startswith("Norm(") else [self.name[5:-1]]
        return ", ".join(parts + ([f"s={self.s:g}"] if self.s is not None else []))

    def check(self, out_features: int, dtype: torch.dtype, device: torch.device) -> None:
        """Whether a layer of this size, dtype and device may take this norm; changes nothing.

        Raises:
            ValueError: another layer has it already, and this one needs another shape, dtype or device of e.
        """
        e = self.excitability
        if e is None:
            return
        if self.variable and len(e) != out_features:
            raise ValueError(
                f"norm has one excitability for each of {len(e)} neurons; out_features must be {len(e)} to share it,"
                f" got {out_features}"
            )
        if e.dtype != dtype or e.device != device:
            raise ValueError(
                f"norm is shared with a layer of {e.dtype} on {e.device}; dtype and device must be the same, got"
                f" {dtype} on {device}"
            )

    def initialise(self, out_features: int, nnz: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the excitability for a layer, the first that takes this norm; for every later one only check.

        Args:
            out_features, nnz: M, and the layer's number of connections.
            dtype, device: of the layer's values.

        Raises:
            ValueError: as ``check``.
        """
        self.check(out_features, dtype, device)
        if not self.scales or self.excitability is not None:
            return
        self.start = self._start(nnz / out_features)
        shape = (out_features,) if self.variable else ()
        self.excitability = nn.Parameter(torch.full(shape, self.start, dtype=dtype, device=device))

    def forward(self) -> torch.Tensor | None:
        """The excitability."""
        return self.excitability

    def reset_parameters(self) -> None:
        """Put the excitability, if there is one, back to where it started."""
        if self.excitability is not None and self.start is not None:
            nn.init.constant_(self.excitability, self.start)

    def deviation(self, degree: float) -> float:
        """Standard deviation of the values of a fresh layer with this mean in-degree.

        1 where ``s`` is given, which is the paper's start; else gain / sqrt(degree), with which the output has about
        gain^2 times the variance of the input.
        """
        return 1.0 if self.s is not None else _ops.value_deviation(degree, self.gain)

    def _start(self, degree: float) -> float:
        """Where e starts: at D of a mean neuron, so that w = v there, unless ``s`` says otherwise."""
        if self.s is not None:
            return self.s
        return _ops.excitability_start(self.a, self.b, self.p, degree, self.deviation(degree))

    @torch.no_grad()
    def raw_values(
        self, effective: torch.Tensor, row_indices: torch.Tensor, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The inverse of the formula: v and e with (e_i / D_i) v_i = the given w_i.

        An excitability that is there already is kept, and so is one that ``s`` gives unless b = 1, where the given w
        decide it. A free one is chosen so that v is w: with one for each neuron, everywhere; with one for all, where a
        neuron has the mean number of connections (b = 0) or the mean D.

        Args:
            effective: (nnz,), w, finite.
            row_indices: (nnz,), int32, the output neuron of each.
            rows: M.

        Returns:
            v (nnz,), float64; e of shape () or (M,), float64, or None where there is none.

        Raises:
            ValueError: no v gives this w, because e is 0, or (b = 1 and e given) because v's length plays no part.
        """
        w = effective.double()
        if not self.scales:
            return w, None
        given: torch.Tensor | None = None
        if self.excitability is not None:
            given = self.excitability.detach().double().contiguous()
        elif self.s is not None and self.b != 1:
            given = torch.full((rows,) if self.variable else (), self.s, dtype=torch.float64, device=w.device)
        start = self.start if self.start is not None else self._start(len(w) / rows)
        try:
            w, row = w.contiguous(), row_indices.contiguous()
            return _ops.raw_values(w, row, rows, self.a, self.b, self.p, self.variable, given, start, self.name)
        except (RuntimeError, ValueError) as error:
            raise ValueError(str(error).partition("\n")[0]) from None

    def _apply(self, fn: Callable, recurse: bool = True) -> Norm:
        return super()._apply(keeps_values(fn), recurse)


def _named(name: str, p: float | None = None, s: float | None = None, gain: float = 1.0) -> Norm:
    """A member of the family by its name (csrc/core/members.h lists them); another order than that may be given."""
    a, b, order, variable = _ops.norm_named(name)
    norm = Norm(a, b, order if p is None else p, variable, s, gain)
    if ":" not in name and norm.name != name:  # one of two names
        norm._alias = name
    return norm


def none() -> Norm:
    """No normalisation: w = v, the paper's control."""
    return _named("none")


def l0(variable: bool = False, *, s: float | None = None, gain: float = 1.0) -> Norm:
    """Dendritic normalisation, w_i = (e_i / n_i) v_i (Eq 1 and 2); arguments as in ``Norm``."""
    return _named(_variable("l0", variable), s=s, gain=gain)


def lp(p: float, variable: bool = False, *, s: float | None = None, gain: float = 1.0) -> Norm:
    """L^p normalisation, w_i = (e_i / ||v_i||_p) v_i (Eq 5, and with ``variable`` Eq 6); arguments as in ``Norm``."""
    return _named(f"{_variable('lp', variable)}:2", p, s, gain)


def weight_norm(*, s: float | None = None, gain: float = 1.0) -> Norm:
    """The paper's heterosynaptic one, w_i = (g_i / ||v_i||_2) v_i; arguments as in ``Norm``."""
    return _named("weight_norm", s=s, gain=gain)


def joint(*, s: float | None = None, gain: float = 1.0) -> Norm:
    """Both together, w_i = (g_i / (n_i ||v_i||_2)) v_i (Eq 3 and 4); arguments as in ``Norm``."""
    return _named("joint", s=s, gain=gain)


def resolve(norm: Norm | str | None) -> Norm:
    """A ``Norm`` from its string form, or the same object.

    Raises:
        ValueError: an unknown string, or a p that is not a number of at least 1.
        TypeError: neither a Norm, a string nor None.
    """
    if isinstance(norm, Norm):
        return norm
    if norm is None:
        return none()
    if not isinstance(norm, str):
        raise TypeError(f"norm must be a Norm, a string or None, got {type(norm).__name__}")
    return _named(norm)


def _variable(name: str, variable: bool) -> str:
    if not isinstance(variable, bool):
        raise TypeError(f"variable must be a bool, got {variable!r}")
    return f"{name}-variable" if variable else name
