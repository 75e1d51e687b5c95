"""Trains a sparse network on scikit-learn's digits in several processes, with rewiring that needs no communication.

    torchrun --nproc-per-node 2 examples/ddp_train.py --epochs 3

Every rank sees its share of each batch, DistributedDataParallel averages the gradients, and SET draws the same edges on
every rank, because they depend on seed, step and the weights, which are the same. At the end the ranks compare what
they have.
"""

from __future__ import annotations

import argparse
import hashlib

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dendnorm
from dendnorm.lab.data import load


def fingerprint(model: nn.Module) -> str:
    """A hash of every edge and every value."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def accuracy(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(inputs).argmax(1) == targets).float().mean())


def train(epochs: int, batch: int, zeta: float) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    data = load("digits")
    inputs, test_inputs = (pixels.float() * data.scale for pixels in (data.train_inputs, data.test_inputs))
    model = nn.Sequential(
        dendnorm.SparseLinear(data.features, 128, density=0.2, seed=0),
        nn.ReLU(),
        dendnorm.SparseLinear(128, 64, density=0.2, seed=1),
        nn.ReLU(),
        nn.Linear(64, len(data.classes)),
    )
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(dendnorm.param_groups(model, weight_decay=1e-4), lr=2e-3)
    rewire = dendnorm.SET(model, optimizer, zeta=zeta, seed=0)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(data.train_targets), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(batch):
            mine = chosen[rank::ranks]
            if len(chosen) < ranks:
                continue
            loss = nn.functional.cross_entropy(wrapped(inputs[mine]), data.train_targets[mine])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch < epochs:  # a network that has just been rewired is not what is to be measured
            rewire.step()
        if rank == 0:
            print(f"epoch {epoch}: test accuracy {accuracy(model, test_inputs, data.test_targets):.4f}", flush=True)
    found: list[str] = [""] * ranks
    dist.all_gather_object(found, fingerprint(model))
    if len(set(found)) != 1:
        raise RuntimeError(f"the ranks have different networks: {found}")
    if rank == 0:
        print(f"{ranks} ranks have the same edges and values: {found[0][:16]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="of all ranks together")
    parser.add_argument("--zeta", type=float, default=0.15)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    try:
        train(arguments.epochs, arguments.batch, arguments.zeta)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
