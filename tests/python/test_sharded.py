"""Sharded sparse layers on 2 and 4 processes against one: what they hold, what travels, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sharded_runs import (
    HALF,
    LAYERS,
    OPTIMIZERS,
    WIDE,
    ZETA,
    adam,
    alike,
    averaged,
    batches,
    everything,
    launch,
    network,
    rules,
    scalar_network,
    second_half,
    trained,
)

from dendnorm import SET, SparseLinear

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]

PATTERN = ("row_indices", "ccol_indices", "pattern_mark")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def two(folder) -> list[dict[str, Any]]:
    return launch(2, folder, None)


@pytest.fixture(scope="module")
def four(folder, two) -> list[dict[str, Any]]:
    return launch(4, folder, str(folder / "2-first" / "of2"))


@pytest.fixture(scope="module")
def two_again(folder, four) -> list[dict[str, Any]]:
    return launch(2, folder, str(folder / "4-second" / "of4"))


@pytest.fixture(params=["two", "four"])
def ranks(request) -> list[dict[str, Any]]:
    return request.getfixturevalue(request.param)


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same connections, values to rounding."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        if name.endswith(PATTERN):
            assert torch.equal(found[name], wanted[name]), name
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.feature(
    "fully_shard (FSDP2): edges, values, gradients and moments of 2 and 4 ranks, to the bit those of one"
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shards_are_those_of_one_process(name, ranks):
    model = network()
    before = everything(model)
    wanted = trained(model, OPTIMIZERS[name](model))
    for number in (0, 2, 4):
        assert not torch.equal(wanted[f"{number}.row_indices"], before[f"{number}.row_indices"])
    for found in ranks:
        assert_equal(found[name], wanted)


@pytest.mark.feature("fully_shard over a mesh of two dimensions (HSDP): rewired as on one process, to the bit")
def test_replicas_of_shards(four):
    model = network()
    wanted = trained(model, adam(model))
    for found in four:
        assert_equal(found["hybrid"], wanted)


@pytest.mark.feature("fully_shard with keep_scalars: the default norm, whose one excitability stays whole")
def test_scalar_excitabilities_stay_whole(ranks):
    model = scalar_network()
    wanted = trained(model, adam(model))
    for found in ranks:
        assert_equal(found["scalars"], wanted)


@pytest.mark.feature(
    "fully_shard: RigL over accumulated batches and cosine, each rank seeing its samples, choose alike"
)
def test_rules_that_look_at_samples_sum_over_the_ranks(ranks):
    wanted = rules(network(), lambda x: x, lambda last: None), alike(network(), lambda x: x)
    for found in ranks:
        assert_close(found["rigl"], wanted[0])
        assert_close(found["cosine"], wanted[1])
        for name, tensor in ranks[0]["rigl"].items():
            assert torch.equal(tensor, found["rigl"][name]), name


@pytest.mark.feature("fully_shard: a sharded average follows each rewiring (integrations.averages.follow)")
def test_sharded_averages_follow(ranks):
    wanted = averaged(network(), network())
    for found in ranks:
        assert_equal(found["averaged"], wanted)


@pytest.mark.feature(
    "fully_shard of a model on the meta device: to_empty and reset_parameters, each rank its own entries"
)
def test_made_on_the_meta_device(ranks):
    model = network()
    wanted = trained(model, adam(model))
    for found in ranks:
        assert_equal(found["meta"], wanted)


@pytest.mark.feature(
    "torch.distributed.checkpoint: saved by 2 and loaded by 4, by 4 and loaded by 2, by 2 and loaded by 1"
)
def test_checkpoints_on_another_number_of_ranks(folder, two, four, two_again):
    model = network()
    wanted = trained(model, adam(model))
    for found in (*four, *two_again):
        assert_equal(found["came"], wanted)
    assert_equal(second_half(network(), str(folder / "2-first" / "of2")), wanted)
    assert HALF > 0


# What travels, and how much memory it takes


@pytest.mark.feature("rewiring a sharded layer: one gather of its values, and next to nothing for everything else")
def test_traffic(ranks):
    size, count = round(0.2 * WIDE * WIDE), len(ranks)
    for found in ranks:
        traffic = found["measured"]["traffic"]
        gathers = traffic.get("all_gather_single", 0) + traffic.get("all_gather_into_tensor", 0)
        # The values of every layer, and its excitabilities and biases, once; a padded chunk of each other rank.
        chunks = [-(-length // count) * (count - 1) for length in (size, WIDE, WIDE)]
        assert gathers == LAYERS * sum(chunks) * 4
        # Gradient, values and both moments: what crosses a border is about the root of what moves.
        moving = found["measured"]["traffic"]["all_to_all_single"]
        assert moving <= LAYERS * 4 * 4 * 2 * 4 * (ZETA * size) ** 0.5
        assert moving < gathers / 20
        assert traffic["all_reduce"] <= 24 * (LAYERS + 1)


@pytest.mark.feature("rewiring a sharded model: at most one whole layer of memory above the shards")
def test_memory(ranks):
    for found in ranks:
        nnz = found["measured"]["nnz"]
        layer = nnz * (4 + 4 + 8 + 12)  # values, gradient, two moments; row, column and place of each connection
        moves = LAYERS * 24 * ZETA * nnz  # the plans and the report, in host memory
        small = 1 << 16  # what does not grow with the layer
        assert found["measured"]["peak"] <= layer + moves + small, found["measured"]["peak"] / nnz


# Refusals


REFUSALS = {
    "odd state": r"layer '2': state 'odd' of Adam must have one entry .* got a Tensor of shape \(5,\)",
    "whole state": "layer '2': state 'exp_avg' of Adam must .* not sharded as the weight is",
    "less state": "layer '0': number of moving tensors must be the same on every rank, got 3 on rank 0 and 4 on rank 1",
    "seeds": "seed must be the same on every rank, got 0 on rank 0 and 1 on rank 1",
    "choices": r"layer '0': choice of connections must be the same on every rank, .* \(reduce=\)",
    "one fails": "layer '0': it rains",
    "resize": "layer '0': weight must be whole to be resized, got a DTensor .* do it before fully_shard",
    "save": r"model\[0.weight\] must be a plain tensor, whole on this rank, .* torch.distributed.checkpoint",
    "effective": "SparseLinear.* must be plain tensors, whole on this rank, .* unshard",
    "densify": "SparseLinear.* must be plain tensors, whole on this rank, .* unshard",
    "whole state_dict": "0: weight must be sharded as the layer's is, .*set_model_state_dict",
    "one saw nothing": "layer '0': must have been observed in a forward and backward pass",
    "nan": "layer '2': .*weakest: score must be a number everywhere",
    "patterns": "layer '2': pattern must be the same on every rank, .* before fully_shard",
    "accumulating": "layer '0': gradients must be reduced before .* after the optimizer's step",
    "of an outer module": "layer '': weight must be sharded .* give the whole model",
}


@pytest.mark.feature("sharded layers: what one rank cannot do, all refuse by name, before anything is written")
@pytest.mark.parametrize("name", REFUSALS)
def test_all_ranks_refuse_what_one_refuses(name, two):
    import re

    for found in two:
        message, same = found["refusals"][name]
        assert re.search(REFUSALS[name], message, re.DOTALL), message
        assert same
    assert set(two[0]["refusals"]) == set(REFUSALS)


def test_the_other_ranks_say_which_one_it_was(two):
    assert two[0]["refusals"]["odd state"][0].endswith("(on rank 1)")
    assert two[0]["refusals"]["one fails"][0] == "layer '0': it rains (on rank 1)"
    assert two[1]["refusals"]["one fails"][0] == "layer '0': it rains"


@pytest.mark.feature("FullyShardedDataParallel (FSDP1): refused by name; works with sparse layers left out of it")
def test_fsdp1_is_refused(two):
    for found in two:
        messages = found["FSDP1"]
        assert "0: 12 of 77 connections replaced" in messages.pop("left out")[0]
        assert len(messages) == 8
        for case, (message, same) in messages.items():
            assert "0': weight must be a Parameter of the layer to be rewired" in message, (case, message)
            assert "(FSDP1) has flattened" in message and same, (case, message)


@pytest.mark.feature("tensor parallelism (parallelize_module) and DTensor inputs: refused by name")
def test_tensor_parallelism_is_refused(two):
    for found in two:
        messages = found["tensor parallel"]
        for style in ("ColwiseParallel", "RowwiseParallel"):  # by PyTorch, which leaves the model as it was
            assert f"{style} currently only support nn.Linear" in messages[style]
        for name in ("input", "weight"):
            assert messages[name].startswith("SparseLinear(in_features=12"), messages[name]
            assert "got a DTensor" in messages[name] and "out of tensor parallelism" in messages[name]
        assert "linear.weight must be whole, got a DTensor" in messages["sparsify"]


# What fully_shard can be told


def test_policies_that_change_no_number(two):
    model = network()
    wanted = trained(model, adam(model))
    for found in two:
        for name in ("CPUOffloadPolicy", "checkpoint", "evaluated"):
            assert_equal(found["policies"][name], wanted)


@pytest.mark.feature(
    "fully_shard with MixedPrecisionPolicy: gathers in 16 bits, computes and rewires with 32-bit values"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype, two):
    model = network()
    before = everything(model)
    for found in two:
        state = dict(found["policies"][str(dtype)])
        assert state.pop("output").dtype == dtype
        assert state["0.weight"].dtype == torch.float32
        assert not torch.equal(state["0.row_indices"], before["0.row_indices"])
        assert_equal(state, {k: v for k, v in two[0]["policies"][str(dtype)].items() if k != "output"})
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_reduction_in_16_bits(two):
    for found in two:
        assert_equal(found["policies"]["reduce"], two[0]["policies"]["reduce"])


def test_a_skipped_step_counts_on_no_rank(two):
    for found in two:
        assert found["policies"]["scaler"] == [1, 1, 2]


# Elastic

WORKER = """
import faulthandler, os, signal, sys
from pathlib import Path
import torch
import torch.distributed as dist
from sharded_runs import batches, everything, load, network, pieces, save, shard, step

faulthandler.dump_traceback_later(580, exit=True)  # whoever has lost its torchrun waits for ever
folder = Path(sys.argv[1])
torch.set_num_threads(1)
# A store for each life: torchrun's may still hold the addresses of those that were killed.
rank, ranks, life = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
dist.init_process_group("gloo", store=dist.FileStore(str(folder / f"store{life}"), ranks), rank=rank, world_size=ranks)
model = shard(network(), dist.init_device_mesh("cpu", (dist.get_world_size(),)))
optimizer, rewire = pieces(model)
first_life = life == 0
done = max((int(path.name) for path in folder.glob("[0-9]*") if (path / ".metadata").exists()), default=0)
assert first_life == (done == 0), done
if done:
    load(str(folder / str(done)), model, optimizer, rewire)
for number, x in list(enumerate(batches(6), 1))[done:]:
    step(model, optimizer, x)
    rewire.step()
    if number % 2 == 0:
        save(str(folder / str(number)), model, optimizer, rewire)
    if number == 3 and first_life and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
state = everything(model, optimizer)
torch.save(state, folder / f"rank{dist.get_rank()}.pt")
dist.barrier()
os._exit(0)
"""


@pytest.mark.feature("torchrun --max-restarts: a killed rank, all start again from the last checkpoint, the same edges")
def test_an_elastic_restart_goes_on(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "--max-restarts", "1", "--monitor-interval", "0.1", str(script), str(tmp_path)]  # fmt: skip
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode: -9" in done.stderr or "exitcode  : -9" in done.stderr
    model = network()
    wanted = trained(model, adam(model))
    for rank in range(2):
        assert_equal(torch.load(tmp_path / f"rank{rank}.pt"), wanted)


def test_nothing_is_asked_of_ranks_where_nothing_is_sharded():
    model = torch.nn.Sequential(SparseLinear(12, 3, density=0.5, seed=0))
    optimizer = adam(model)
    rewire = SET(model, optimizer)
    for x in batches(2):
        model(x).sum().backward()
        optimizer.step()
        assert rewire.step()[0].k == 3
