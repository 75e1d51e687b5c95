"""Networks whose images keep their samples next to one another in memory, the order that sparse convolutions take.

PyTorch's elementwise ops keep any order. Its normalisation, pooling, padding and interpolation do not know this one:
they would copy to the usual order and leave the images there. But all of them treat channels alike. With samples and
channels exchanged such an image is one in ``channels_last``, for which they have fast kernels, and for batch
normalisation it is one sample of C long signals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ..ops import library as _ops
from .marks import is_plain

__all__ = ["Slab", "batch_innermost", "is_batch_innermost"]

_PIECE = 2**17  # numbers that stay in a cache while they are copied from one order into another
_LANES = {2: 16, 4: 16, 8: 8}  # samples that kernels compute together, by the bytes of a number


def is_batch_innermost(images: torch.Tensor) -> bool:
    """Whether the samples of (B, C, *) are next to one another in memory: (C, *, B) is contiguous, and B above 1."""
    if images.dim() < 3 or images.shape[0] < 2 or images.stride(0) != 1:
        return False
    return images.movedim(0, -1).is_contiguous()


def batch_innermost(images: torch.Tensor) -> torch.Tensor:
    """The same values (B, C, *) with the samples next to one another in memory, as ``SparseConv2d`` computes.

    A sparse convolution gives its result in the order of its input, and has nothing to copy where that is this one and
    B a multiple of 16 (float64: of 8). ``Slab`` keeps a whole network in it. Differentiable; no copy where it is so
    already. ``images.contiguous()`` is the way back.

    Raises:
        ValueError: fewer than three dimensions.
    """
    if images.dim() < 3:
        raise ValueError(f"images must have shape (B, C, *), got {tuple(images.shape)}")
    if is_batch_innermost(images):
        return images
    return _Innermost.apply(images) if _in_pieces(images) else images.movedim(0, -1).contiguous().movedim(-1, 0)


def _in_pieces(images: torch.Tensor) -> bool:
    """Whether to copy piece by piece: of large images PyTorch's own copies visit every line of memory many times."""
    return (
        images.dim() == 4 and images.device.type == "cpu" and images.numel() > _PIECE and not is_compiling()
        and is_plain(images)
    )  # fmt: skip


def _order_of(images: torch.Tensor) -> torch.memory_format:
    usual = images.is_contiguous() or not images.movedim(1, -1).is_contiguous()
    return torch.contiguous_format if usual else torch.channels_last


def _to_innermost(images: torch.Tensor) -> torch.Tensor:
    if not is_plain(images) or _order_of(images) != torch.channels_last:
        return images.movedim(0, -1).contiguous().movedim(-1, 0)  # PyTorch's own is fast
    samples, channels, rows, columns = images.shape
    result = images.new_empty(channels, rows * columns, samples)
    _turn(result, images.permute(0, 2, 3, 1).view(samples, -1, channels))
    return result.view(channels, rows, columns, samples).permute(3, 0, 1, 2)


def _from_innermost(images: torch.Tensor, order: torch.memory_format) -> torch.Tensor:
    if not (is_plain(images) and is_batch_innermost(images)):
        if order == torch.channels_last:
            return images.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
        return images.clone(memory_format=order)
    samples, channels = images.shape[:2]
    result = torch.empty_like(images, memory_format=order)
    inner = images.permute(1, 2, 3, 0)
    if order == torch.channels_last:
        _turn(result.permute(0, 2, 3, 1).view(samples, -1, channels), inner.view(channels, -1, samples))
    else:
        _turn(result.view(samples, -1, 1), inner.view(1, -1, samples))
    return result


def _turn(to: torch.Tensor, images: torch.Tensor) -> None:
    """Copy (A, N, B) into (B, N, A), piece by piece of N."""
    step = max(1, _PIECE // (to.shape[0] * to.shape[2]))
    for begin in range(0, to.shape[1], step):
        piece = slice(begin, begin + step)
        to[:, piece].copy_(images[:, piece].permute(2, 1, 0))


class _Innermost(torch.autograd.Function):
    """The way into the order; back goes a gradient in the order of the images."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> torch.Tensor:
        ctx.order = _order_of(images)
        return _to_innermost(images)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return _Usual.apply(grad, ctx.order)

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        return _to_innermost(tangent)


class _Usual(torch.autograd.Function):
    """The way back."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, order: torch.memory_format) -> torch.Tensor:
        ctx.order = order
        return _from_innermost(images, order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return batch_innermost(grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: Any) -> torch.Tensor:
        return _from_innermost(tangent, ctx.order)


def _suits(images: Any) -> bool:
    """Whether kernels gain by this order."""
    if not isinstance(images, torch.Tensor) or images.dim() != 4 or images.device.type != "cpu":
        return False
    return images.shape[0] > 0 and images.shape[0] % _LANES.get(images.element_size(), 16) == 0


class _BatchNorm(torch.autograd.Function):
    """In training, of one sample (1, C, L): PyTorch's own takes the statistics of so long signals number by number."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, weight: Any, bias: Any, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean = x.mean((0, 2))
        square = torch.linalg.vector_norm(x - mean[:, None], dim=(0, 2)).square()
        variance = square / x.shape[2]
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, eps = inputs
        _, mean, variance = output
        ctx.mark_non_differentiable(mean, variance)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inverse, True, ctx.eps, needs
        )
        return *(each if needed else None for each, needed in zip(found, needs, strict=True)), None


def _batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    inner = input.movedim(0, -1)
    x = inner.reshape(1, inner.shape[0], -1)
    own = all(tensor is None or tensor.dtype == x.dtype for tensor in (running_mean, weight))
    if not training or not own or x.shape[2] < 2:
        output = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    else:
        output, mean, variance = _BatchNorm.apply(x, weight, bias, eps)
        with torch.no_grad():
            for running, now, share in ((running_mean, mean, 1.0), (running_var, variance, x.shape[2])):
                if running is not None:
                    unbiased = now if running is running_mean else now * (share / (share - 1))
                    running.lerp_(unbiased, momentum)
    return output.view(inner.shape).movedim(-1, 0)


def _exchanged(function: Callable) -> Callable:
    """With samples for channels and channels for samples."""

    def call(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = function(input.transpose(0, 1), *args, **kwargs)
        return tree_map_only(torch.Tensor, lambda tensor: tensor.transpose(0, 1), result)

    return call


def _pad(input: torch.Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> torch.Tensor:
    if len(pad) > 2 * (input.dim() - 2):
        return F.pad(input, pad, mode, value)  # samples or channels, too
    return F.pad(input.transpose(0, 1), pad, mode, value).transpose(0, 1)


def _sparse_conv2d(input: torch.Tensor, *args: Any) -> torch.Tensor:
    return _ops.sparse_conv2d(batch_innermost(input) if _suits(input) else input, *args)


def _conv2d(*args: Any, **kwargs: Any) -> torch.Tensor:
    output = torch.conv2d(*args, **kwargs)
    return batch_innermost(output) if _suits(output) else output


# What is done with images in this order, and what brings them into it.
_POOLS = (torch.max_pool2d, F.max_pool2d, F.max_pool2d_with_indices, F.avg_pool2d, F.adaptive_avg_pool2d,
          F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices, F.interpolate)  # fmt: skip
_KEEPING: dict[Any, Callable] = {each: _exchanged(each) for each in _POOLS}
_KEEPING |= {F.batch_norm: _batch_norm, F.pad: _pad}
_BRINGING: dict[Any, Callable] = {torch.conv2d: _conv2d, _ops.sparse_conv2d: _sparse_conv2d}


class _Order(TorchFunctionMode):
    """Within it, images come into this order at the first convolution, and stay in it."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _BRINGING:
            return _BRINGING[function](*args, **kwargs)
        if function in _KEEPING:
            image = args[0] if args else kwargs.get("input")
            if isinstance(image, torch.Tensor) and is_batch_innermost(image):
                return _KEEPING[function](*args, **kwargs)
        return function(*args, **kwargs)


class Slab(nn.Module):
    """A network whose images keep their samples next to one another in memory from the first convolution to its end.

        model = dendnorm.Slab(resnet)   # any network, made sparse before or after

    It computes what the network does; no sparse convolution has to copy its images into another order and back. Batch
    normalisation, max and average pooling, padding and interpolation work on that order with PyTorch's own kernels, and
    elementwise ops keep it. After an op that does not keep it the next convolution copies. Outputs are contiguous.

    On the CPU, with batches of a multiple of 16 (float64: of 8); anything else runs as without it. Batch normalisation
    in training has no forward-mode derivative here.

    Args:
        module: the network. Its parameters are the Slab's under the prefix ``module.``.

    Raises:
        TypeError: not a module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Order():
            result = self.module(*args, **kwargs)
        return tree_map_only(torch.Tensor, _usual, result)


def _usual(tensor: torch.Tensor) -> torch.Tensor:
    adjacent = tensor.dim() > 1 and tensor.shape[0] > 1 and tensor.stride(0) == 1
    if not adjacent:
        return tensor
    pieces = _in_pieces(tensor) and is_batch_innermost(tensor)
    return _Usual.apply(tensor, torch.contiguous_format) if pieces else tensor.contiguous()
