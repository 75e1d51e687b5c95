"""Two processes and gloo: DDP, rewiring without communication, fully_shard, and a rank that starts again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from sharded_runs import batches, step
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dendnorm
from dendnorm import SET, SparseLinear
from dendnorm.integrations.fsdp import keep_whole

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


def network(norm: str = "l0") -> nn.Sequential:
    return nn.Sequential(
        SparseLinear(12, 16, density=0.4, norm=norm, seed=0),
        nn.Tanh(),
        SparseLinear(16, 8, density=0.4, norm="joint", seed=1),
        nn.Tanh(),
        nn.Linear(8, 3),
    )


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# Gloo's threads outlive their process group, and one that lets go of a Python tensor while Python ends aborts with
# these words: now and then on a busy machine, after all work is done.
AT_EXIT = "terminate called without an active exception"


def _rank(rank: int, store: str, job: Callable, out: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    try:
        torch.manual_seed(0)
        torch.save(job(rank, *arguments), f"{out}.{rank}")
    finally:
        dist.destroy_process_group()
    os._exit(0)  # see AT_EXIT


def run(job: Callable, folder: Path, *arguments) -> list:
    """What each rank returned."""
    out = str(folder / f"{job.__name__}.out")
    torch.multiprocessing.spawn(_rank, (str(folder / f"{job.__name__}.store"), job, out, arguments), nprocs=RANKS)
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(RANKS)]


# Optimizers that share the work out


def _zero(rank: int, shared_out: bool) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = network()
    kind, *inner = [ZeroRedundancyOptimizer, torch.optim.Adam] if shared_out else [torch.optim.Adam]
    optimizer = kind(list(model.parameters()), *inner, lr=0.01)
    rewiring = SET(model, optimizer, zeta=0.3, seed=2, every=2)
    wrapped = nn.parallel.DistributedDataParallel(model)
    found = []
    for index, x in enumerate(batches(9)):
        step(wrapped, optimizer, x[rank::RANKS])
        if index == 6:
            rewiring.step()
        found.append(state(model))
    if shared_out:
        with pytest.raises(ValueError, match=r"layer '0': optimizer must know its parameters by its groups alone"):
            dendnorm.resize(model, 0.1, optimizer)
        own = [rank for rank in range(RANKS) for each in [optimizer._partition_parameters()[rank]] if each[0]["params"]]
        assert len(own) == RANKS
        optimizer = optimizer.optim  # which trains this rank's share
    moments = {name: optimizer.state[parameter]["exp_avg_sq"] for name, parameter in model.named_parameters()
               if optimizer.state.get(parameter)}  # fmt: skip
    return found, moments


@pytest.mark.feature("ZeroRedundancyOptimizer on two ranks: rewiring as with the optimizer inside")
def test_zero_redundancy_is_the_optimizer_inside(tmp_path):
    results = []
    for name, shared_out in (("plain", False), ("zero", True)):
        (tmp_path / name).mkdir()
        results += run(_zero, tmp_path / name, shared_out)
    for other, _ in results[1:]:
        for wanted, got in zip(results[0][0], other, strict=True):
            for name in wanted:
                assert "indices" not in name or torch.equal(got[name], wanted[name]), name
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    wanted, *shares = results[0][1], *(moments for _, moments in results[RANKS:])
    assert sorted(name for share in shares for name in share) == sorted(wanted)
    assert all(len(share) < len(wanted) for share in shares)
    for share in shares:
        torch.testing.assert_close(share, {name: wanted[name] for name in share}, rtol=1e-5, atol=1e-9)


def _refused(rank: int) -> list[str]:
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    model = network()
    optimizer = PostLocalSGDOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), PeriodicModelAverager(period=4))
    with pytest.raises(ValueError, match="the same on every rank, got PostLocalSGDOptimizer") as refusal:
        SET(model, optimizer)
    return [str(refusal.value)]


def test_an_optimizer_that_lets_the_ranks_drift_is_refused(tmp_path):
    assert len(run(_refused, tmp_path)) == RANKS


# DistributedDataParallel


def _wrapped(rank: int) -> None:
    dense = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    for model, act, words in ((dense, lambda model: dendnorm.sparsify(model, 0.5), "made sparse"),
                              (network(), dendnorm.densify, "made dense"),
                              (network(), lambda model: dendnorm.resize(model, 0.5, None), "resized")):  # fmt: skip
        wrapped = DistributedDataParallel(model)
        before = [id(parameter) for parameter in model.parameters()]
        for outer, where in ((wrapped, "wrapped: take"), (nn.Sequential(wrapped), "wrapped at '0': take")):
            with pytest.raises(ValueError, match=f"model must be {words} before .* got one that is {where}"):
                act(outer)
        assert before == [id(parameter) for parameter in model.parameters()]
        act(model)


def test_what_ddp_knows_is_not_replaced(tmp_path):
    run(_wrapped, tmp_path)


def train_with_ddp(rank: int, count: int, folder: str) -> dict:
    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewiring = SET(model, optimizer, zeta=0.3, seed=2)
    found = {}
    for number, x in enumerate(batches(count)):
        step(wrapped, optimizer, x[rank::RANKS])
        if number == 0:
            found["gradients"] = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        rewiring.step()
        if number == count // 2 and rank == 0:
            dendnorm.save(Path(folder) / "half.safetensors", model, optimizer, rewiring)
        # Every rank moves torch's own generator as it likes: edges and values do not depend on it.
        torch.randn(rank + 1)
    found["state"] = state(model)
    found["moments"] = [optimizer.state[model[0].weight][key].clone() for key in ("exp_avg", "exp_avg_sq")]
    return found


@pytest.fixture(scope="module")
def ddp(tmp_path_factory) -> tuple[list[dict], Path]:
    folder = tmp_path_factory.mktemp("ddp")
    return run(train_with_ddp, folder, 6, str(folder)), folder


@pytest.mark.feature("DistributedDataParallel: averaged gradients are those of the joint batch in one process")
def test_ddp_averages_gradients(ddp):
    model = network()
    model(batches(1)[0]).square().mean().backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    for found in ddp[0]:
        torch.testing.assert_close(found["gradients"], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.feature("DistributedDataParallel: rewiring is the same on every rank, bit for bit, without communication")
def test_ranks_have_the_same_edges_values_and_moments(ddp):
    first, second = ddp[0]
    fresh = state(network())
    assert not torch.equal(first["state"]["0.row_indices"], fresh["0.row_indices"])
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    assert all(map(torch.equal, first["moments"], second["moments"]))


def test_ddp_with_rewiring_is_the_run_of_one_process(ddp):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewiring = SET(model, optimizer, zeta=0.3, seed=2)
    for x in batches(6):
        step(model, optimizer, x)
        rewiring.step()
    found = ddp[0][0]["state"]
    assert torch.equal(found["0.row_indices"], model[0].row_indices)
    torch.testing.assert_close(found, state(model), rtol=1e-3, atol=1e-5)


def resume_with_ddp(rank: int, count: int, folder: str) -> dict:
    model = network()
    with torch.no_grad():
        model[0].reset_parameters(seed=50 + rank)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewiring = SET(model, optimizer, zeta=0.3, seed=0)
    dendnorm.load(Path(folder) / "half.safetensors", model, optimizer, rewiring)
    wrapped = DistributedDataParallel(model)
    for x in batches(count)[count // 2 + 1 :]:
        step(wrapped, optimizer, x[rank::RANKS])
        rewiring.step()
    return state(model)


@pytest.mark.feature(
    "DistributedDataParallel: ranks that restart from a checkpoint go on with the same edges and values"
)
def test_ranks_restart_from_a_checkpoint(ddp, tmp_path):
    pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    wanted = ddp[0][0]["state"]
    for found in run(resume_with_ddp, tmp_path, 6, str(ddp[1])):
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name


# fully_shard


def train_sharded(rank: int) -> dict:
    from torch.distributed.fsdp import fully_shard

    found: dict = {}
    # A scalar excitability cannot be sharded: PyTorch says so.
    try:
        fully_shard(network("l0"), mesh=dist.init_device_mesh("cpu", (RANKS,)))
    except ValueError as error:
        found["scalar"] = str(error)
    # Whole on every rank: trains and is rewired, whatever norm it has.
    torch.manual_seed(0)
    model = network("l0")
    if rank == 1:
        model[0].reset_parameters(seed=77)  # the first rank decides
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (RANKS,)), ignored_params=keep_whole(model))
    found["dense is sharded"] = isinstance(model[4].weight, torch.distributed.tensor.DTensor)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewiring = SET(model, optimizer, zeta=0.3, seed=2)
    for x in batches(4):
        step(model, optimizer, x[rank::RANKS])
        rewiring.step()
    found["whole"] = {
        name: tensor.full_tensor() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor
        for name, tensor in state(model).items()
    }
    return found


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> list[dict]:
    return run(train_sharded, tmp_path_factory.mktemp("fsdp"))


def test_a_scalar_excitability_is_not_sharded(sharded):
    assert all("scalar parameters" in found["scalar"] for found in sharded)


@pytest.mark.feature("fully_shard (FSDP2) with keep_whole: sparse layers whole on every rank, trained and rewired")
def test_whole_layers_are_rewired_beside_sharded_ones(sharded):
    model = network("l0")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewiring = SET(model, optimizer, zeta=0.3, seed=2)
    for x in batches(4):
        step(model, optimizer, x)
        rewiring.step()
    wanted = state(model)
    for found in sharded:
        assert found["dense is sharded"]
        assert torch.equal(found["whole"]["0.row_indices"], wanted["0.row_indices"])
        torch.testing.assert_close(found["whole"], wanted, rtol=1e-3, atol=1e-5)
    for name, tensor in sharded[0]["whole"].items():
        assert torch.equal(tensor, sharded[1]["whole"][name]), name


def test_keep_whole_names_what_is_wrong():
    with pytest.raises(ValueError, match="model must hold a SparseLinear or SparseConv2d, got none in Linear"):
        keep_whole(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="init_process_group"):
        keep_whole(network())


# The example


@pytest.mark.feature("torchrun: examples/ddp_train.py on two processes")
def test_the_example_runs_under_torchrun():
    pytest.importorskip("sklearn", reason="the package scikit-learn is not installed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "examples" / "ddp_train.py"), "--epochs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        if AT_EXIT not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    assert "2 ranks have the same edges and values" in done.stdout
    assert done.stdout.count("test accuracy") == 2
