"""What the processes of ``test_sharded.py`` do: each starts once and runs everything.

All ranks see the same samples unless said otherwise. Then their mean gradient is each one's own, to the bit for 2 and 4
ranks, and so must be everything that follows from it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import dendnorm
from dendnorm import SET, RigL, SparseLinear
from dendnorm.integrations.averages import follow
from dendnorm.integrations.fsdp import keep_scalars

HALF, STEPS = 3, 6
CONNECTIONS = (77, 50, 3)  # 77 and 50 leave uneven shards on 4 ranks, 3 an empty one


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        SparseLinear(12, 16, nnz=CONNECTIONS[0], norm="l0-variable", seed=0),
        nn.Tanh(),
        SparseLinear(16, 8, nnz=CONNECTIONS[1], norm="joint", seed=1),
        nn.Tanh(),
        SparseLinear(8, 5, nnz=CONNECTIONS[2], norm="none", seed=2),
        nn.Linear(5, 3),
    )


def scalar_network() -> nn.Sequential:
    """With the default norm, one excitability for all neurons."""
    return nn.Sequential(SparseLinear(12, 16, nnz=77, seed=0), nn.Tanh(), SparseLinear(16, 3, nnz=21, seed=1))


def shard(model: nn.Sequential, mesh: Any, **options: Any) -> nn.Sequential:
    """Two layers by themselves, which go back to shards after the forward pass, and the rest as the root, which stays
    whole until the backward pass has used it."""
    from torch.distributed.fsdp import fully_shard

    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def batches(count: int, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 12, generator=generator) for _ in range(count)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "Adam": adam,
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "Adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.01, initial_accumulator_value=0.1),
    "ASGD": lambda model: torch.optim.ASGD(model.parameters(), lr=0.01),
}


def whole(tensor: Any) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, torch.Tensor]:
    """Edges, values, gradients and the optimizer's state, whole."""
    found = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters() if optimizer is not None else ():
        if parameter.grad is not None:
            found[f"grad of {name}"] = whole(parameter.grad)
        for key, value in optimizer.state[parameter].items():  # type: ignore[union-attr]
            found[f"{key} of {name}"] = whole(value)
    return found


# What one process does as well


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    rewire = SET(model, optimizer, zeta=0.3, seed=2)
    for x in batches(STEPS):
        step(model, optimizer, x)
        rewire.step()
    return everything(model, optimizer)


def rules(model: nn.Module, part: Callable[[torch.Tensor], torch.Tensor], sync: Callable[[bool], None]) -> dict:
    """RigL over accumulated batches, each of which every rank sees a part of."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rewire = RigL(model, optimizer, zeta=0.3, every=2)
    for x in batches(4):
        optimizer.zero_grad()
        for index, half in enumerate(x.split(4)):
            sync(index == 1)
            model(part(half)).square().mean().backward()
        optimizer.step()
    assert rewire.report is not None and rewire.report.step == 2
    return everything(model)


def alike(model: nn.Module, part: Callable[[torch.Tensor], torch.Tensor]) -> dict:
    rules = {"drop": dendnorm.drop.Cosine(torch.tanh), "grow": dendnorm.grow.Cosine(torch.tanh)}
    rewire = SET(model, None, zeta=0.3, **rules)
    with rewire.observe(), torch.no_grad():
        model(part(batches(1)[0]))
    rewire.step()
    return everything(model)


def averaged(model: nn.Module, average: nn.Module) -> dict:
    optimizer = adam(model)
    rewire = SET(model, optimizer, zeta=0.3, seed=5)
    for x in batches(3):
        step(model, optimizer, x)
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.3)
        follow(average, model, rewire.step())
    return everything(average)


# Checkpoints of torch.distributed


def pieces(model: nn.Module) -> tuple[torch.optim.Optimizer, SET]:
    optimizer = adam(model)
    return optimizer, SET(model, optimizer, zeta=0.3, seed=2)


def save(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer, rewire: SET) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments, "rewire": rewire.state_dict()}, checkpoint_id=folder)


def load(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer, rewire: SET) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "rewire": rewire.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    rewire.load_state_dict(state["rewire"])


def first_half(model: nn.Module, folder: str) -> None:
    optimizer, rewire = pieces(model)
    for x in batches(HALF):
        step(model, optimizer, x)
        rewire.step()
    save(folder, model, optimizer, rewire)


def second_half(model: nn.Module, folder: str) -> dict:
    for layer in model.modules():
        if isinstance(layer, SparseLinear):
            layer.reset_parameters(seed=99)
    optimizer, rewire = pieces(model)
    load(folder, model, optimizer, rewire)
    for x in batches(STEPS)[HALF:]:
        step(model, optimizer, x)
        rewire.step()
    return everything(model, optimizer)


# Traffic and memory

COLLECTIVES = ("all_reduce", "all_gather_single", "all_gather_into_tensor", "all_to_all_single")


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Bytes that this rank takes from the others, by collective; an all_reduce counts its tensor once."""
    found: dict[str, int] = {}
    kept = {name: getattr(dist, name) for name in COLLECTIVES if hasattr(dist, name)}

    def counting(name: str, function: Callable) -> Callable:
        def call(output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            own = 0
            if name == "all_to_all_single":
                own = arguments[1][dist.get_rank(options["group"])]
            elif name != "all_reduce":
                own = arguments[0].nbytes
            found[name] = found.get(name, 0) + output.nbytes - own
            return function(output, *arguments, **options)

        return call

    for name, function in kept.items():
        setattr(dist, name, counting(name, function))
    try:
        yield found
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)


def peak(action: Callable[[], object]) -> int:
    """The most memory above what there was before that torch's allocator handed out at a time, ops' own included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest


WIDE, LAYERS, ZETA = 500, 4, 0.1


def wide_network() -> nn.Sequential:
    return nn.Sequential(*(SparseLinear(WIDE, WIDE, density=0.2, norm="l0-variable", seed=i) for i in range(LAYERS)))


def measured(mesh: Any) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    model = wide_network()
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer, torch.randn(2, WIDE, generator=torch.Generator().manual_seed(0)))
    rewire = SET(model, optimizer, zeta=ZETA)
    rewire.step()
    with counted() as traffic:
        rewire.step()
    peaks = []
    for _ in range(5):  # gloo's threads free what they sent when they come to it
        rewire.report = None
        peaks.append(peak(lambda: rewire.step()))
    highest = min(peaks)
    return {"traffic": traffic, "peak": highest, "nnz": model[0].nnz}


# What is refused


def unchanged(model: nn.Module, optimizer: Any, act: Callable[[], object]) -> tuple[str, bool]:
    """The message of a ValueError and whether everything that this rank holds is as it was."""

    def held() -> list[torch.Tensor]:
        state = [v for each in (optimizer.state.values() if optimizer is not None else ()) for v in each.values()]
        tensors = [*model.parameters(), *model.buffers(), *state]
        return [(t.to_local() if hasattr(t, "to_local") else t).detach().clone() for t in tensors]

    before = held()
    try:
        act()
    except ValueError as error:
        same = all(torch.equal(mine.nan_to_num(7), now.nan_to_num(7)) for mine, now in zip(before, held(), strict=True))
        return str(error), same
    return "nothing was refused", False


class _Drifting(SET):
    """Ranks that choose for themselves."""

    def draw(self, layer, k, step, index, device):
        return super().draw(layer, k, step, index, device) + dist.get_rank()


class _FailsOnOne(SET):
    def importance(self, layer):
        if dist.get_rank() == 1:
            raise ValueError("it rains")
        return super().importance(layer)


def refusals(rank: int, mesh: Any) -> dict[str, tuple[str, bool]]:
    x = batches(1)[0]
    found = {}

    def fresh(stepped: bool = True) -> tuple[nn.Sequential, torch.optim.Optimizer]:
        model = shard(network(), mesh)
        optimizer = adam(model)
        if stepped:
            step(model, optimizer, x)
        return model, optimizer

    model, optimizer = fresh()
    if rank == 1:
        optimizer.state[model[2].weight]["odd"] = torch.zeros(5)
    found["odd state"] = unchanged(model, optimizer, SET(model, optimizer).step)
    model, optimizer = fresh()
    optimizer.state[model[2].weight]["exp_avg"] = torch.zeros(50)
    found["whole state"] = unchanged(model, optimizer, SET(model, optimizer).step)
    model, optimizer = fresh()
    if rank == 0:
        del optimizer.state[model[0].weight]["exp_avg"]
    found["less state"] = unchanged(model, optimizer, SET(model, optimizer).step)
    model, optimizer = fresh()
    found["seeds"] = unchanged(model, optimizer, SET(model, optimizer, seed=rank).step)
    found["choices"] = unchanged(model, optimizer, _Drifting(model, optimizer).step)
    found["one fails"] = unchanged(model, optimizer, _FailsOnOne(model, optimizer).step)
    found["resize"] = unchanged(model, optimizer, lambda: dendnorm.resize(model, 0.1, optimizer))
    found["save"] = unchanged(model, optimizer, lambda: dendnorm.save("never.safetensors", model, optimizer))
    found["effective"] = unchanged(model, optimizer, model[0].effective_weight)
    found["densify"] = unchanged(model, optimizer, lambda: dendnorm.densify(model))
    whole_state = network().state_dict() | {"0.row_indices": torch.zeros(77, dtype=torch.int32)}
    try:
        model.load_state_dict(whole_state)
    except RuntimeError as error:
        found["whole state_dict"] = str(error), not bool((model[0].row_indices == 0).all())
    rewire = SET(model, optimizer, grow="gradient")
    with rewire.observe():
        model(x).square().mean().backward()
    if rank == 1:
        rewire._observer._record.clear()
    found["one saw nothing"] = unchanged(model, optimizer, rewire.step)
    model, optimizer = fresh()
    with torch.no_grad():
        if rank == 1:
            model[2].weight.to_local().fill_(torch.nan)
    found["nan"] = unchanged(model, optimizer, SET(model, optimizer).step)
    model = network()
    model[2].reset_parameters(seed=5 + rank)
    shard(model, mesh)
    found["patterns"] = unchanged(model, None, SET(model, None).step)
    model, optimizer = fresh(stepped=False)
    model.set_requires_gradient_sync(False)
    model(x).square().mean().backward()
    found["accumulating"] = unchanged(model, optimizer, _step(model, optimizer))
    model, optimizer = fresh()
    with torch.no_grad():
        model(x)  # leaves the root's layers whole
    found["of an outer module"] = unchanged(model, None, lambda: SET(model[4], None))
    return found


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    return lambda: SET(model, optimizer).step()


def first_generation(rank: int) -> dict[str, tuple[str, bool]]:
    """FullyShardedDataParallel, which flattens."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    found = {}
    cpu = torch.device("cpu")
    for original in (True, False):
        for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.NO_SHARD):
            model = network()
            wrapped = FullyShardedDataParallel(
                model, use_orig_params=original, device_id=cpu, sharding_strategy=strategy
            )
            optimizer = torch.optim.Adam(wrapped.parameters())
            step(wrapped, optimizer, batches(1)[0])
            for name, outer in (("outer", wrapped), ("inner", model)):
                act = _step(outer, optimizer if name == "outer" else None)  # type: ignore[arg-type]
                found[f"{name}, {strategy.name}, use_orig_params={original}"] = unchanged(wrapped, optimizer, act)
    model = network()
    aside = [layer for layer in model if isinstance(layer, SparseLinear)]
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=cpu, ignored_states=aside)
    optimizer = torch.optim.Adam(wrapped.parameters())
    step(wrapped, optimizer, batches(1)[0])
    found["left out"] = str(SET(wrapped, optimizer).step()), True
    return found


def tensor_parallel(rank: int, mesh: Any) -> dict[str, str]:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    found = {}
    for style in (ColwiseParallel(), RowwiseParallel()):
        model = network()
        try:
            parallelize_module(model, mesh, {"0": style})
        except NotImplementedError as error:
            found[type(style).__name__] = str(error)
        step(model, adam(model), batches(1)[0])
    x = batches(1)[0]
    layer = network()[0]
    for name in ("input", "weight"):
        if name == "weight":
            layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Replicate()]))
        try:
            layer(distribute_tensor(x, mesh, [Shard(0)]) if name == "input" else x)
        except ValueError as error:
            found[name] = str(error)
    dense = nn.Linear(8, 8)
    dense.weight = nn.Parameter(distribute_tensor(dense.weight.detach(), mesh, [Shard(0)]))
    try:
        dendnorm.sparsify(nn.Sequential(dense), 0.5)
    except ValueError as error:
        found["sparsify"] = str(error)
    return found


def policies(mesh: Any) -> dict[str, Any]:
    """What fully_shard can be told."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
    from torch.utils.checkpoint import checkpoint

    found: dict[str, Any] = {"CPUOffloadPolicy": trained(
        model := shard(network(), mesh, offload_policy=CPUOffloadPolicy(pin_memory=False)), adam(model))}  # fmt: skip
    for dtype in (torch.bfloat16, torch.float16):
        model = shard(network(), mesh, mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32))
        found[str(dtype)] = trained(model, adam(model)) | {"output": model(batches(1)[0])}
    found["reduce"] = trained(
        model := shard(network(), mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.bfloat16)), adam(model)
    )
    model = shard(network(), mesh)
    inner = model.forward
    model.forward = lambda x: checkpoint(inner, x, use_reentrant=False)
    found["checkpoint"] = trained(model, adam(model))
    # Scaled, with a step that one rank's infinity makes all of them skip.
    model = shard(network(), mesh)
    optimizer = adam(model)
    rewire, scaler = SET(model, optimizer, every=1), torch.amp.GradScaler("cpu", init_scale=4.0)
    found["scaler"] = []
    for number, x in enumerate(batches(3)):
        optimizer.zero_grad()
        infinite = number == 1 and dist.get_rank() == 1
        scaler.scale(model(x).square().mean() * (torch.inf if infinite else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        found["scaler"].append(rewire.state_dict()["steps"])
    # An evaluation leaves the root's layers whole; a step puts them back first.
    model = shard(network(), mesh)
    optimizer = adam(model)
    rewire = SET(model, optimizer, zeta=0.3, seed=2)
    for x in batches(STEPS):
        step(model, optimizer, x)
        with torch.no_grad():
            model(x)
        rewire.step()
        with torch.no_grad():
            model(x)
    found["evaluated"] = everything(model, optimizer)
    return found


def from_meta(mesh: Any) -> dict:
    from torch.distributed.tensor import distribute_tensor

    with torch.device("meta"):
        model = network()
    shard(model, mesh)
    model.to_empty(device="cpu")
    for seed, layer in enumerate(layer for layer in model if isinstance(layer, SparseLinear)):
        layer.reset_parameters(seed)
    whole_model = network()
    with torch.no_grad():
        for mine, theirs in zip(model[5].parameters(), whole_model[5].parameters(), strict=True):
            mine.copy_(distribute_tensor(theirs.detach(), mesh, mine.placements))
    return trained(model, adam(model))


# Processes


def everything_of(rank: int, ranks: int, folder: str, came: str | None) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (ranks,))
    found: dict[str, Any] = {name: trained(model := shard(network(), mesh), make(model))
                             for name, make in OPTIMIZERS.items()}  # fmt: skip
    first_half(shard(network(), mesh), f"{folder}/of{ranks}")
    if came is not None:
        found["came"] = second_half(shard(network(), mesh), came)
    if ranks == 2 and came is not None:
        return found
    scalars = scalar_network()
    fully_shard(scalars, mesh=mesh, ignored_params=keep_scalars(scalars))
    found["scalars"] = trained(scalars, adam(scalars))
    model = shard(network(), mesh)
    found["rigl"] = rules(model, lambda x: x[rank::ranks], model.set_requires_gradient_sync)
    found["cosine"] = alike(shard(network(), mesh), lambda x: x[rank::ranks])
    found["averaged"] = averaged(shard(network(), mesh), shard(network(), mesh))
    found["meta"] = from_meta(mesh)
    found["measured"] = measured(mesh)
    if ranks == 4:
        grid = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        model = shard(network(), grid)
        found["hybrid"] = trained(model, adam(model))
        return found
    found["refusals"] = refusals(rank, mesh)
    found["FSDP1"] = first_generation(rank)
    found["tensor parallel"] = tensor_parallel(rank, mesh)
    found["policies"] = policies(mesh)
    return found


def _rank(rank: int, ranks: int, store: str, out: str, arguments: tuple) -> None:
    warnings.simplefilter("ignore")
    faulthandler.dump_traceback_later(900, exit=True)  # ranks that wait for each other show where
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        torch.save(everything_of(rank, ranks, *arguments), f"{out}.{rank}")
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the others may wait for this one
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way


def launch(ranks: int, folder: Path, came: str | None) -> list[dict[str, Any]]:
    """What each of the ranks found."""
    name = f"{ranks}-{'first' if came is None else 'second'}"
    out = str(folder / f"{name}.out")
    arguments = (ranks, str(folder / f"{name}.store"), out, (str(folder / name), came))
    torch.multiprocessing.spawn(_rank, arguments, nprocs=ranks)
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(ranks)]
