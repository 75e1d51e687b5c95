"""A little of everything, for compute-sanitizer: every norm forward and backward in every dtype and both layouts, each
kernel with few and with many samples, rows that a whole block shares, dense products, and rewirings.

--quick does the smallest of it.
"""

from __future__ import annotations

import os
import sys

# Dense products where every position is connected, however small the layer.
os.environ["DENDNORM_CUDA_DENSE"] = "1"

import torch

import dendnorm

CUDA = "cuda"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def train(layer: dendnorm.SparseLinear, batch: int, dtype: torch.dtype = torch.float32) -> None:
    """Forward and backward with activations of either order in memory."""
    inputs = layer.in_features
    for made in (torch.randn(batch, inputs, device=CUDA), torch.randn(inputs, batch, device=CUDA).t()):
        x = made.to(dtype).requires_grad_()
        layer(x).square().mean().backward()
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(layer.weight.grad).all()
        layer.zero_grad()


def layer_of(inputs: int, outputs: int, density: float, norm: str, dtype: torch.dtype = torch.float32):
    own = torch.float64 if dtype == torch.float64 else torch.float32
    return dendnorm.SparseLinear(inputs, outputs, density=density, norm=norm, seed=0, device=CUDA, dtype=own)


def rewire(layer: dendnorm.SparseLinear) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(3, layer.in_features, device=CUDA, dtype=layer.weight.dtype)).sum().backward()
    optimizer.step()
    print(dendnorm.SET(layer, optimizer, zeta=0.3, seed=0).step())


def small(batches: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    # Norms with b other than 0 read the values through the permutation of the row view.
    for norm in ("none", "l0", "lp:2", "joint"):
        for dtype in dtypes:
            layer = layer_of(130, 70, 0.2, norm, dtype)
            for batch in batches:
                train(layer, batch, dtype)
        rewire(layer_of(130, 70, 0.2, norm))


def large() -> None:
    train(layer_of(1500, 40, 0.9, "joint"), 20)  # rows of more than 1024 connections
    train(layer_of(40, 1500, 0.9, "l0"), 20)  # and columns
    train(layer_of(130, 70, 0.2, "joint"), 1030)  # more samples than a tile has
    train(layer_of(784, 1000, 0.1, "l0"), 128)  # a tile of the inputs in shared memory, above 48 KB
    # Both gradients of the same loads, through L2 and from shared memory.
    for dtype in DTYPES:
        train(layer_of(300, 200, 0.5, "l0", dtype), 260, dtype)
    train(layer_of(300, 200, 0.5, "joint"), 1100)
    rewire(layer_of(1500, 400, 0.3, "joint"))


def dense() -> None:
    for norm in ("none", "joint"):
        for dtype in DTYPES:
            train(layer_of(60, 40, 1.0, norm, dtype), 33, dtype)


if __name__ == "__main__":
    if "--quick" in sys.argv:
        small((7,), (torch.float32,))
    else:
        small((1, 10, 70), DTYPES)
        large()
    dense()
    torch.cuda.synchronize()
    print("done")
