"""Convolutions of ResNet-18: in turns with dense ones in both orders of memory, masked ones and SparseProp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...nn.conv import SparseConv2d
from ...nn.slab import batch_innermost
from .contenders import NO_SPARSEPROP, OURS, Unavailable
from .shape import check_shape, parsed
from .timing import compared, same, step_of

__all__ = ["CONTENDERS", "DENSE", "DENSITIES", "SHAPES", "ConvShape", "measure"]

DENSE = ("dense", "dense, channels_last")
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class ConvShape:
    """A convolution of square images and windows, padded so that stride 1 keeps their size, and its batch.

    Raises:
        ValueError: names the field, what was expected and what came.
    """

    channels: int
    filters: int
    kernel: int
    stride: int
    size: int
    batch: int
    density: float

    def __post_init__(self) -> None:
        check_shape(self)
        if self.kernel % 2 == 0:
            raise ValueError(f"shape: kernel must be odd, got {self.kernel}")

    @classmethod
    def parse(cls, text: str) -> ConvShape:
        """From "CHANNELS,FILTERS,KERNEL,STRIDE,SIZE,BATCH,DENSITY"."""
        return parsed(cls, text, "CHANNELS,FILTERS,KERNEL,STRIDE,SIZE,BATCH,DENSITY", "64,128,3,2,56,64,0.1")

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}, {self.density:.2%}"

    @property
    def name(self) -> str:
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{self.channels} -> {self.filters}, {self.kernel} x {self.kernel}{stride} @ {self.size}"

    @property
    def nnz(self) -> int:
        return max(1, round(self.density * self.channels * self.filters * self.kernel**2))


SHAPES = tuple(
    ConvShape(*values, batch=64, density=0.1)
    for values in (
        (64, 64, 3, 1, 56),
        (128, 128, 3, 1, 28),
        (256, 256, 3, 1, 14),
        (512, 512, 3, 1, 7),
        (64, 128, 3, 2, 56),
        (128, 256, 1, 2, 28),
        (256, 512, 1, 2, 14),
    )
)


class MaskedConv2d(nn.Module):
    """The weight times a mask of zeros and ones, then a dense convolution."""

    def __init__(self, dense: nn.Conv2d) -> None:
        super().__init__()
        self.conv = dense
        self.register_buffer("mask", (dense.weight != 0).to(dense.weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv = self.conv
        return nn.functional.conv2d(x, conv.weight * self.mask, conv.bias, conv.stride, conv.padding)


def _masked(layer: SparseConv2d) -> nn.Module:
    return MaskedConv2d(_dense(layer))


def _dense(layer: SparseConv2d) -> nn.Conv2d:
    return layer.to_dense()


def _sparseprop(layer: SparseConv2d) -> nn.Module:
    if layer.weight.dtype != torch.float32:
        raise Unavailable("float32 only")
    try:
        from sparseprop.modules.conv2d import SparseConv2d as SparseProp
    except ImportError:
        raise Unavailable(NO_SPARSEPROP) from None
    return SparseProp.from_dense(_dense(layer))


def _ours(layer: SparseConv2d) -> nn.Module:
    return layer


def _with_l0(layer: SparseConv2d) -> nn.Module:
    return SparseConv2d.from_dense(_dense(layer), norm="l0")


def _contiguous(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous()


def _channels_last(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last)


# What makes a module with the edges and values of a layer, and the order of its images in memory.
CONTENDERS: dict[str, tuple[Callable[[SparseConv2d], nn.Module], Callable[[torch.Tensor], torch.Tensor]]] = {
    "dense": (_dense, _contiguous),
    "dense, channels_last": (_dense, _channels_last),
    "masked": (_masked, _channels_last),
    "SparseProp": (_sparseprop, _contiguous),
    OURS: (_ours, batch_innermost),
    f"{OURS}, l0": (_with_l0, batch_innermost),
    f"{OURS}, channels_last": (_ours, _channels_last),
}


def measure(
    shape: ConvShape,
    contenders: Sequence[str] = tuple(CONTENDERS),
    rounds: int = 15,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Time one training step (forward, dX, dV) of every contender on one shape, in turns.

    Images, results and their gradients are in the contender's order: ``dendnorm`` has samples innermost.

    Returns:
        as ``measure`` of the linear layers; "dense_over_ours": how many times the better dense order takes as long.
    """
    generator = torch.Generator().manual_seed(0)
    layer = SparseConv2d(
        shape.channels, shape.filters, shape.kernel, shape.stride, shape.kernel // 2, bias=False, nnz=shape.nnz,
        norm=None, seed=0, dtype=dtype,
    )  # fmt: skip
    images = torch.randn(shape.batch, shape.channels, shape.size, shape.size, generator=generator, dtype=dtype)
    side = -(-shape.size // shape.stride)
    gradient = torch.randn(shape.batch, shape.filters, side, side, generator=generator, dtype=dtype)
    steps, entries = {}, {}
    for name in contenders:
        make, ordered = CONTENDERS[name]
        try:
            module = make(layer)
            x = ordered(images).clone().requires_grad_()
            same(name, module, layer, x)
            steps[name] = step_of(module, x, ordered(gradient).clone())
        except Unavailable as error:
            entries[name] = {"unavailable": str(error)}
    flop = 6 * layer.nnz * shape.batch * side**2
    speedup = compared(steps, entries, rounds, flop)
    dense = [entries[name]["median_ms"] for name in DENSE if "median_ms" in entries.get(name, {})]
    ours = entries.get(OURS, {}).get("median_ms")
    return {
        "shape": {"name": shape.name, "batch": shape.batch, "density": shape.density},
        "nnz": layer.nnz,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "contenders": {name: entries[name] for name in contenders},
        "speedup": speedup,
        "dense_over_ours": min(dense) / ours if dense and ours else None,
    }
