"""Convolutions with few connections and a dendritic normalisation: ``torch.nn.Conv2d`` and ``Conv1d``."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_weight

from .._arguments import connections
from ..ops import library as _ops
from .layer import SparseLayer
from .making import bare, check_sizes, densified, fill_from_dense, start
from .norms import Norm
from .pattern import Pattern
from .row_view import Tables
from .window import Sizes, Window, check_channels

__all__ = ["SparseConv1d", "SparseConv2d"]


class SparseConv(SparseLayer):
    """What both convolutions are: a pattern of filters by taps, and a window."""

    _dims: ClassVar[int]
    _dense: ClassVar[type[nn.Conv1d] | type[nn.Conv2d]]
    _sizes: ClassVar[str]  # of an image, for messages
    _window: Window
    _of_op: tuple  # the op's last arguments

    in_channels: int
    out_channels: int
    groups: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        density: float | None = None,
        nnz: int | None = None,
        pattern: Pattern | None = None,
        norm: Norm | str | None = "l0",
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        window = Window.of(self._dims, kernel_size, stride, padding, dilation, padding_mode)
        taps = self._shape(in_channels, out_channels, groups, window)
        if pattern is None:
            count = connections(density, nnz, self.out_channels * taps)
        else:
            pattern = check_sizes(pattern, density, nnz)
            own, wanted = (pattern.out_features, pattern.in_features), (self.out_channels, taps)
            if own != wanted:
                raise ValueError(
                    f"pattern must have {wanted[0]} filters as outputs and {taps} taps, in_channels / groups times the"
                    f" kernel's, as inputs, got {own[0]} and {own[1]}"
                )
            count = pattern.nnz
        start(self, taps, self.out_channels, count, pattern, norm, bias, seed, device, dtype)

    def _shape(self, in_channels: object, out_channels: object, groups: object, window: Window) -> int:
        """Take channels and a window; returns how many taps a filter has."""
        self.in_channels, self.out_channels, self.groups = check_channels(in_channels, out_channels, groups)
        self._window, self._of_op = window, window.of_op(self.groups, window.fills)
        return self.in_channels // self.groups * math.prod(window.kernel_size)

    @classmethod
    def _from_dense(cls, conv: Any, density: float | None, norm: Norm | str | None) -> Self:
        if not isinstance(conv, cls._dense):
            raise TypeError(f"conv must be a torch.nn.{cls._dense.__name__}, got {type(conv).__name__}")
        layer = bare(cls)
        window = Window.of(cls._dims, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode)
        layer._shape(conv.in_channels, conv.out_channels, conv.groups, window)
        fill_from_dense(layer, "conv", conv, density, norm)
        return layer

    # The window, under torch's names

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self._window.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        return self._window.stride

    @property
    def padding(self) -> tuple[int, ...] | str:
        return self._window.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        return self._window.dilation

    @property
    def padding_mode(self) -> str:
        return self._window.padding_mode

    def window(self) -> dict[str, Any]:
        """The arguments of the constructor that give the layer its shape, in plain lists."""
        given = {"in_channels": self.in_channels, "out_channels": self.out_channels, "groups": self.groups}
        given |= {name: value for name, value in self._window._asdict().items() if name != "margins"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    # The pattern

    def edges(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """Of each entry of ``weight`` the filter, the channel within the filter's group, and the place in the kernel.

        Three int64 tensors (nnz,) in one dimension, four in two: indices of the dense layer's ``weight``.
        """
        row, col = self.pattern.edges()
        sizes = (self.in_channels // self.groups, *self.kernel_size)
        return row, *torch.unravel_index(col, sizes)

    def out_degrees(self) -> torch.Tensor:
        """The number of efferents of each input channel, over all filters and taps: (in_channels,), int64."""
        row, col = self.pattern.edges()
        group = row // (self.out_channels // self.groups)
        channel = group * (self.in_channels // self.groups) + col // math.prod(self.kernel_size)
        return torch.bincount(channel, minlength=self.in_channels)

    # The call

    def _images(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, *) of an input that may have no B."""
        batched = input.dim() == self._dims + 2
        if not (batched or input.dim() == self._dims + 1) or input.shape[-self._dims - 1] != self.in_channels:
            raise RuntimeError(
                f"{self._get_name()}: input must have shape (B, {self.in_channels}, {self._sizes}) or"
                f" ({self.in_channels}, {self._sizes}), got {tuple(input.shape)}"
            )
        return input if batched else input.unsqueeze(0)

    def _product(self, input: torch.Tensor, view: Tables) -> torch.Tensor:
        norm: Any = self._modules["norm"]
        buffers, window = self._buffers, self._window
        images = self._images(input)
        if window.fills:
            images = F.pad(images, window.pads, window.padding_mode)
        if self._dims == 1:
            images = images.unsqueeze(-2)
        output = _ops.sparse_conv2d(
            images,
            *self._values(),
            buffers["ccol_indices"],
            buffers["row_indices"],
            *view,
            norm.a,
            norm.b,
            norm.p,
            *self._of_op,
        )
        if self._dims == 1:
            output = output.squeeze(-2)
        return output if input.dim() == self._dims + 2 else output.squeeze(0)

    # What passed through, for the rules of rewiring

    def _seen(self, input: torch.Tensor) -> torch.Tensor:
        """Images with their margins."""
        images = self._images(input.detach())
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = F.pad(images, self._window.pads, mode) if any(self._window.pads) else images.clone()
        return padded.unsqueeze(-2) if self._dims == 1 else padded

    def _seen_output(self, output: torch.Tensor) -> torch.Tensor:
        places = output.shape[-self._dims :] if self._dims == 2 else (1, output.shape[-1])
        return output.detach().reshape(-1, self.out_channels, *places).clone()

    def _products(self, x: torch.Tensor, y: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        kernel, stride, _, dilation, groups = self._of_op
        first, last = start // math.prod(kernel), -(-stop // math.prod(kernel))
        part = x.unflatten(1, (groups, -1))[:, :, first:last].flatten(1, 2)
        size = [y.shape[1], last - first, *kernel]
        found = conv2d_weight(part, size, y, stride, 0, dilation, groups).flatten(1).T
        return found[start - first * math.prod(kernel) :][: stop - start]

    def _sampled(self, x: torch.Tensor, y: torch.Tensor, pattern: Pattern) -> torch.Tensor:
        values = torch.zeros(pattern.nnz, dtype=x.dtype, device=x.device)  # their product is bilinear
        window = self._window.of_op(self.groups, padded=True)
        mask = [False, True, False, False]
        return _ops.sparse_conv2d_backward(y, x, values, None, *pattern, 0.0, 0.0, 2.0, *window, mask)[1]

    def _energies(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride, _, dilation, groups = self._of_op
        sizes = [(x.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2)]
        ones = torch.ones(x.shape[0], groups, *sizes, dtype=x.dtype, device=x.device)
        size = [groups, x.shape[1] // groups, *kernel]
        return conv2d_weight(x.square(), size, ones, stride, 0, dilation, groups).flatten(1).T

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        usual = Window.of(self._dims, self.kernel_size, self.stride, 0, 1, "zeros")
        parts += [f"{name}={value!r}" for name in ("padding", "dilation", "padding_mode")
                  if (value := getattr(self, name)) != getattr(usual, name)]  # fmt: skip
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        return ", ".join([*parts, f"nnz={self.nnz}, density={self.density:.3g}, norm={self.norm.name}"])


class SparseConv2d(SparseConv):
    """A convolution with exactly nnz connections, where filter i has the weights w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i.

    Used like ``nn.Conv2d``: images (B, C, H, W) or (C, H, W), of any strides, give (B, M, H', W') or (M, H', W') of the
    input's dtype. In memory a result lies as its input does: samples next to one another (``batch_innermost``, the
    order that is computed in), ``channels_last``, or contiguous.

    A connection is one tap of one filter, so n_i is the number of taps that filter i has, whatever the size of the
    image. ``in_features``, N, is the number of taps that a filter may have, (C / groups) kh kw, and ``out_features``,
    M, that of filters. A fresh layer draws its connections uniformly without replacement and its values from
    N(0, 1 / n), n the mean number of a filter's taps, as ``SparseLinear`` does; its bias is 0.

    Formula: Bird and Cuntz, "Dendritic normalisation improves learning in sparsely connected artificial neural
    networks", Eq 1 to 6, a filter taken for a neuron.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as for
            ``nn.Conv2d``.
        density: share of the N M positions that are connected, in (0, 1]; or ``nnz``, their number.
        pattern: which connections there are, instead: M outputs by N inputs, tap (c, y, x) being input
            (c kh + y) kw + x; see ``dendnorm.patterns.convolution``. Copied.
        norm, seed, device, dtype: as for ``SparseLinear``.

    Attributes:
        weight: Parameter (nnz,), v in the layer's own order: ``edges()`` tells it.
        bias: Parameter (M,) or None.
        norm: the ``Norm`` that holds the excitability.
        ccol_indices: with ``row_indices`` the pattern, int32, in the state_dict; ``pattern`` has both views of it.
        row_indices: the filter of each connection.

    Raises:
        TypeError, ValueError: an argument that is not as above; names it, what was expected and what came.
        RuntimeError: when called, an input whose shape, dtype or device does not fit.
    """

    _dims, _dense, _sizes = 2, nn.Conv2d, "H, W"

    @classmethod
    def from_dense(
        cls, conv: nn.Conv2d, density: float | None = None, *, norm: Norm | str | None = "l0"
    ) -> SparseConv2d:
        """A layer that computes what `conv` does with its largest weights alone; see ``SparseLinear.from_dense``.

        Args:
            conv: left as it is.
            density: keeps the ``round(density * N * M)`` largest by magnitude, of equals the later in column order.
                None keeps exactly those that are not 0.
            norm: as for the constructor.

        Raises:
            TypeError: not an ``nn.Conv2d``, or complex weights.
            ValueError: as ``SparseLinear.from_dense``.
        """
        return cls._from_dense(conv, density, norm)

    def to_dense(self) -> nn.Conv2d:
        """An ``nn.Conv2d`` with the effective weights and a copy of the bias, of the same dtype, device and mode."""
        return _to_dense(self)


class SparseConv1d(SparseConv):
    """``SparseConv2d`` of one dimension: used like ``nn.Conv1d``, signals (B, C, L) or (C, L) give (B, M, L')."""

    _dims, _dense, _sizes = 1, nn.Conv1d, "L"

    @classmethod
    def from_dense(
        cls, conv: nn.Conv1d, density: float | None = None, *, norm: Norm | str | None = "l0"
    ) -> SparseConv1d:
        """A layer that computes what `conv` does with its largest weights alone; see ``SparseConv2d.from_dense``."""
        return cls._from_dense(conv, density, norm)

    def to_dense(self) -> nn.Conv1d:
        """An ``nn.Conv1d`` with the effective weights and a copy of the bias, of the same dtype, device and mode."""
        return _to_dense(self)


def _to_dense(layer: SparseConv) -> Any:
    return densified(
        layer,
        layer._dense,
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
    )
