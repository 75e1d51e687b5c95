"""Trains a sparse network on scikit-learn's digits whose layers are sharded over processes, with rewiring.

    torchrun --nproc-per-node 2 --max-restarts 3 examples/fsdp_train.py --folder run

Every rank holds its part of values and moments (FSDP2). Each epoch ends in a checkpoint, from which any number of ranks
goes on: start it again with another --nproc-per-node, or kill a rank. At the end one rank tells a hash of all edges.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import dendnorm
from dendnorm.integrations.fsdp import keep_scalars
from dendnorm.lab.data import load


def build(features: int, classes: int) -> nn.Sequential:
    """A network whose sparse layers are sharded one by one, and the rest with the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(
        dendnorm.SparseLinear(features, 128, density=0.2, seed=0),
        nn.ReLU(),
        dendnorm.SparseLinear(128, 64, density=0.2, seed=1),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
    kept = keep_scalars(model)
    for layer in model:
        if isinstance(layer, dendnorm.SparseLinear):
            fully_shard(layer, ignored_params=kept)
    return fully_shard(model, ignored_params=kept)


class Progress:
    """All that a run goes on with, as torch.distributed.checkpoint saves and loads it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rewire: dendnorm.SET) -> None:
        self.model, self.optimizer, self.rewire = model, optimizer, rewire

    def state_dict(self) -> dict:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "rewire": self.rewire.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.rewire.load_state_dict(state["rewire"])


def train(folder: Path, epochs: int, batch: int, zeta: float) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    data = load("digits")
    inputs, test_inputs = (pixels.float() * data.scale for pixels in (data.train_inputs, data.test_inputs))
    model = build(data.features, len(data.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rewire = dendnorm.SET(model, optimizer, zeta=zeta, seed=0)
    progress = Progress(model, optimizer, rewire)
    done = max((int(path.parent.name) for path in folder.glob("[0-9]*/.metadata")), default=0)
    if done:
        dcp.load({"run": progress}, checkpoint_id=folder / str(done))
    for epoch in range(done + 1, epochs + 1):
        order = torch.randperm(len(data.train_targets), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(batch):
            mine = chosen[rank::ranks]
            if len(chosen) < ranks:
                continue
            loss = nn.functional.cross_entropy(model(inputs[mine]), data.train_targets[mine])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rewire.step()
        dcp.save({"run": progress}, checkpoint_id=folder / str(epoch))
    with torch.no_grad():
        accuracy = float((model(test_inputs).argmax(1) == data.test_targets).float().mean())
    edges = hashlib.sha256(b"".join(model[number].row_indices.numpy().tobytes() for number in (0, 2))).hexdigest()
    if rank == 0:
        print(f"{ranks} ranks, from epoch {done}: test accuracy {accuracy:.3f}, edges {edges[:16]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--zeta", type=float, default=0.15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        train(arguments.folder, arguments.epochs, arguments.batch, arguments.zeta)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
