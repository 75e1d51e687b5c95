"""What only a device shows: the CPU's results, edges and errors, the same bits every run, streams and CUDA graphs.

The whole suite of tests/python runs on the device too, with DENDNORM_TEST_DEVICE=cuda: see tests/gpu/check.py.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import dendnorm
from dendnorm import SparseLinear
from dendnorm.ops.library import cuda_plan

ops = torch.ops.dendnorm
NORMS = ("none", "l0", "l0-variable", "lp:2", "lp-variable:3", "weight_norm", "joint")
every_norm = pytest.mark.parametrize("norm", NORMS)
slow = pytest.mark.slow  # on a processor that stands in for the device


def step(layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The output and every gradient."""
    y = layer(x)
    return (y, *torch.autograd.grad(y, [x, *layer.parameters()], dy))


def case(norm: str, batch: int, inputs: int = 300, outputs: int = 200, dtype: torch.dtype = torch.float32,
         density: float = 0.1) -> tuple:  # fmt: skip
    layer = SparseLinear(inputs, outputs, density=density, norm=norm, seed=0, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, inputs, generator=generator, dtype=dtype, device="cpu")
    dy = torch.randn(batch, outputs, generator=generator, dtype=dtype, device="cpu")
    return layer, x, dy


def on_device(layer: SparseLinear, x: torch.Tensor, dy: torch.Tensor) -> tuple:
    return copy.deepcopy(layer).cuda(), x.cuda().requires_grad_(), dy.cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 7, 10, 33, pytest.param(128, marks=slow), pytest.param(1000, marks=slow)])
@every_norm
def test_results_are_the_cpus(norm, batch, dtype):
    layer, x, dy = case(norm, batch, dtype=dtype)
    expected = step(layer, x.clone().requires_grad_(), dy)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-10
    for got, want in zip(step(*on_device(layer, x, dy)), expected, strict=True):
        size = want.abs().max().item() + 1e-30
        torch.testing.assert_close(got.cpu(), want, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 10, 128])
def test_16_bit_results_are_the_cpus(batch, half):
    layer, x, dy = case("joint", batch)
    x, dy = x.to(half), dy.to(half)
    expected = step(layer, x.clone().requires_grad_(), dy)
    for got, want in zip(step(*on_device(layer, x, dy)), expected, strict=True):
        size = want.abs().max().item() + 1e-30
        torch.testing.assert_close(got.cpu(), want, rtol=2e-2, atol=2e-2 * size)


# Excitabilities: none, one that all neurons share, and one for each.
@pytest.mark.parametrize("norm", ["none", "l0", "joint"])
def test_gradients_of_the_same_loads_are_the_cpus(norm):
    layer, x, dy = case(norm, 128, 200, 150, density=0.5)
    # By the model's choice on a large device.
    assert cuda_plan(200, 150, layer.nnz, 128)["weight gradient"]["kernel"] == "fused"
    expected = step(layer, x.clone().requires_grad_(), dy)
    for got, want in zip(step(*on_device(layer, x, dy)), expected, strict=True):
        size = want.abs().max().item()
        torch.testing.assert_close(got.cpu(), want, rtol=2e-4, atol=2e-4 * size)


# Shapes that take the different kernels: few and many samples, narrow and wide, rows longer than a block.
@pytest.mark.parametrize(
    ("inputs", "outputs", "batch"),
    [
        (64, 50, 1),
        pytest.param(784, 1000, 10, marks=slow),
        pytest.param(784, 1000, 128, marks=slow),
        pytest.param(20000, 30, 64, marks=slow),
        pytest.param(30, 20000, 64, marks=slow),
        pytest.param(4096, 4096, 1024, marks=slow),
    ],
)
def test_same_bits_every_time(inputs, outputs, batch):
    layer, x, dy = on_device(*case("joint", batch, inputs, outputs))
    first = step(layer, x, dy)
    for _ in range(5):
        for one, two in zip(first, step(layer, x, dy), strict=True):
            assert torch.equal(one, two)


@slow
@every_norm
def test_same_edges_as_on_the_cpu_over_1000_rewirings(norm):
    """Ten layers, a hundred rewirings each, with values that training would have moved."""
    for seed in range(10):
        layer = SparseLinear(83, 61, density=0.15, norm=norm, seed=seed)
        twin = copy.deepcopy(layer).cuda()
        rewire, rewire_twin = (dendnorm.SET(one, None, zeta=0.2, seed=seed) for one in (layer, twin))
        for turn in range(100):
            change = torch.randn(layer.nnz, generator=torch.Generator().manual_seed(turn), device="cpu")
            with torch.no_grad():
                layer.weight.add_(change, alpha=0.1)
                twin.weight.copy_(layer.weight)
            rewire.step()
            rewire_twin.step()
            for one, two in zip(layer.pattern, twin.pattern, strict=True):
                assert torch.equal(one, two.cpu()), f"seed {seed}, rewiring {turn}"
            torch.testing.assert_close(twin.weight.cpu(), layer.weight, rtol=1e-6, atol=1e-6)


def test_optimizer_state_follows_its_connection_on_the_device():
    layer = SparseLinear(60, 40, density=0.2, norm="l0", seed=0, device="cuda")
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(16, 60, device="cuda")).square().sum().backward()
    optimizer.step()
    state = optimizer.state[layer.weight]
    before = {edge: (v, m) for edge, v, m in zip(edges_of(layer), layer.weight.tolist(), state["exp_avg"].tolist(),
                                                 strict=True)}  # fmt: skip
    dendnorm.SET(layer, optimizer, zeta=0.3, seed=0).step()
    stayed = 0
    for edge, v, m in zip(edges_of(layer), layer.weight.tolist(), state["exp_avg"].tolist(), strict=True):
        if edge in before and before[edge][0] == v:
            assert before[edge][1] == m
            stayed += 1
        else:
            assert m == 0
    assert stayed == layer.nnz - round(0.3 * layer.nnz)


def edges_of(layer: SparseLinear) -> list[tuple[int, int]]:
    row, col = layer.edges()
    return list(zip(row.tolist(), col.tolist(), strict=True))


@every_norm
def test_one_captured_graph_stays_right_when_the_pattern_is_rewired(norm):
    layer, x, dy = on_device(*case(norm, 64))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(layer, x, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(layer, x, dy)
    rewire = dendnorm.SET(layer, None, zeta=0.4, seed=0)
    for turn in range(3):
        if turn:
            rewire.step()
        with torch.no_grad():
            x.normal_()
        graph.replay()
        for got, want in zip(captured, step(layer, x, dy), strict=True):
            assert torch.equal(got, want), f"after {turn} rewirings"


def test_work_goes_to_the_current_stream():
    layer, x, dy = on_device(*case("l0", 64))
    want = step(layer, x, dy)
    side = torch.cuda.Stream()
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # what comes next on another stream would read zeros
        late.copy_(x.detach())
        got = step(layer, late.requires_grad_(), dy)
    side.synchronize()
    for one, two in zip(got, want, strict=True):
        assert torch.equal(one, two)


def test_nothing_waits_for_the_device():
    layer, x, dy = on_device(*case("joint", 64))
    rewire = dendnorm.SET(layer, None, zeta=0.2, seed=0)
    step(layer, x, dy)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(layer, x, dy)
        # A rewiring may look at the device once it is done: its checks answer then.
    finally:
        torch.cuda.set_sync_debug_mode("default")
    rewire.step()


# ---- Errors: the CPU's own words, and a context that lives on ----


def tensor(*values: int, dtype: torch.dtype = torch.int32) -> Callable[[str], torch.Tensor]:
    return lambda device: torch.tensor(values, dtype=dtype, device=device)


WRONG = {
    "start": ("check_pattern", tensor(1, 2, 3), tensor(0, 1, 0), 3, "compressed", "indices"),
    "falling": ("check_pattern", tensor(0, 2, 1, 3), tensor(0, 1, 0), 3, "compressed", "indices"),
    "range": ("check_pattern", tensor(0, 2, 3), tensor(0, 3, 0), 3, "compressed", "indices"),
    "order": ("check_pattern", tensor(0, 2, 3), tensor(1, 1, 0), 3, "compressed", "indices"),
    "nan": ("weakest", tensor(1, 2, dtype=torch.float32), 3),
    "full": ("empty_positions", tensor(0, 1, 2), tensor(0, 1), 2, 3, 0, 0, 0),
    "taken": (
        "replace_connections",
        tensor(0, 1, 2),
        tensor(0, 1),
        2,
        tensor(1, 0, dtype=torch.bool),
        tensor(3, dtype=torch.int64),
    ),
    "keys": (
        "replace_connections",
        tensor(0, 1, 2),
        tensor(0, 1),
        2,
        tensor(1, 0, dtype=torch.bool),
        tensor(7, dtype=torch.int64),
    ),
    "source": ("carry_", tensor(1, 2, dtype=torch.float32), tensor(0, 5), tensor(1, dtype=torch.float32)),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_the_cpus_and_leave_the_device_usable(name):
    op, *arguments = WRONG[name]
    messages = []
    for device in ("cpu", "cuda"):
        given = [argument(device) if callable(argument) else argument for argument in arguments]
        with pytest.raises(RuntimeError) as caught:
            getattr(ops, op)(*given)
            torch.cuda.synchronize()
        messages.append(str(caught.value).splitlines()[0])
    assert messages[0] == messages[1]
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_tensors_on_two_devices_are_refused_by_name():
    layer, x, _ = case("l0", 4)
    with pytest.raises(RuntimeError, match="input"):
        copy.deepcopy(layer).cuda()(x)


DENSE_STEP = """
import copy, torch, dendnorm
for norm in ("none", "l0", "l0-variable", "lp:2", "joint"):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        exact = dtype in (torch.float32, torch.float64)
        layer = dendnorm.SparseLinear(40, 30, density=0.5, norm=norm, seed=0, bias=norm != "l0")
        layer = layer.to(torch.float64 if dtype == torch.float64 else torch.float32)
        x = torch.randn(17, 40).to(dtype)
        dy = torch.randn(17, 30).to(dtype)
        steps = []
        for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
            twin = copy.deepcopy(layer).to(device)
            if device == "cpu":
                twin = twin.double()
            inputs = x.to(device, kind).requires_grad_()
            y = twin(inputs)
            grads = torch.autograd.grad(y, [inputs, *twin.parameters()], dy.to(device, kind))
            steps.append([part.detach().cpu() for part in (y, *grads)])
        wanted, got = steps
        assert got[0].dtype == got[1].dtype == dtype, norm
        for number, (one, other) in enumerate(zip(got, wanted)):
            # Output and dX have the type of the activations, and so has the dense weight; gradients of the values are
            # added up and kept in float32.
            size = 2e-2 if number < 2 and not exact else 2e-5
            error = (one.double() - other).abs().max().item()
            assert error <= size * (1e-30 + other.abs().max().item()), (norm, dtype, number, error)
x = torch.ones(3, 40, device="cuda")
x[0, 0] = float("inf")
assert twin.to("cuda").float()(x).isnan().any()
print("good")
"""


def test_dense_products_agree_with_the_sparse_ones_in_every_type():
    # The environment is read once.
    result = subprocess.run([sys.executable, "-c", DENSE_STEP], capture_output=True, text=True,
                            env=os.environ | {"DENDNORM_CUDA_DENSE": "0.1"})  # fmt: skip
    assert result.stdout.strip() == "good", result.stderr
