"""A little of everything, for compute-sanitizer: every norm forward and backward, both layouts, and a rewiring."""

from __future__ import annotations

import torch

import dendnorm

for norm in ("none", "l0", "lp:2", "joint"):
    for batch in (1, 10, 70):
        layer = dendnorm.SparseLinear(130, 70, density=0.2, norm=norm, seed=0, device="cuda")
        rewire = dendnorm.SET(layer, torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9), zeta=0.3, seed=0)
        for x in (torch.randn(batch, 130, device="cuda"), torch.randn(130, batch, device="cuda").t()):
            x.requires_grad_()
            layer(x).square().sum().backward()
        rewire.step()
        layer(x).square().sum().backward()
        assert torch.isfinite(layer.weight.grad).all()
torch.cuda.synchronize()
print("done")
