"""What hands tensors to the CUDA kernels, executed on devices that the host stands in for (CMakeLists.txt): devices,
streams, memory, autocast, launches. The tests of tests/gpu and tests/python run on them too: see tests/run_all.py."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import on_host
import pytest
import torch

import dendnorm
from dendnorm import info

FOLDER = Path(__file__).parent
if on_host.LIBRARY is None:
    pytest.skip("needs DENDNORM_ON_HOST, the library that the build with tests makes", allow_module_level=True)

NORMS = ("none", "l0", "l0-variable", "lp:2", "joint")


def step(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and every gradient, on the CPU."""
    x = x.detach().requires_grad_()
    y = layer(x)
    dy = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).reshape(y.shape)
    return [part.cpu() for part in (y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy))]


def layer_of(norm: str = "joint", inputs: int = 40, outputs: int = 30, density: float = 0.3, **options):
    return dendnorm.SparseLinear(inputs, outputs, density=density, norm=norm, seed=0, **options)


def check(layer: dendnorm.SparseLinear, x: torch.Tensor, device: str = "cuda", tolerance: float = 2e-5) -> None:
    wanted = step(layer, x)
    got = step(copy.deepcopy(layer).to(device), x.to(device))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * (1e-30 + other.abs().max().item()))


def test_the_kernels_and_not_the_cpu_did_it():
    before = on_host.LIBRARY.dendnorm_on_host_launches()
    check(layer_of(), torch.randn(7, 40))
    assert on_host.LIBRARY.dendnorm_on_host_launches() > before
    for name in (schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("dendnorm::")):
        if name != "dendnorm::raw_values":
            assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("current", [0, 1])
def test_work_is_done_on_the_tensors_device_whichever_is_current(norm, current):
    torch.cuda.set_device(current)
    try:
        for device in ("cuda:0", "cuda:1"):
            layer = layer_of(norm)
            check(layer, torch.randn(7, 40), device)
            twin = copy.deepcopy(layer).to(device)
            for one in (layer, twin):
                report = dendnorm.SET(one, None, zeta=0.3, seed=1).step()
                assert len(list(report)) == 1
            for mine, other in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
                assert other.device == torch.device(device)
                torch.testing.assert_close(other.cpu(), mine, rtol=1e-6, atol=1e-6)
            assert torch.cuda.current_device() == current
    finally:
        torch.cuda.set_device(0)


@pytest.mark.parametrize("norm", NORMS)
def test_work_goes_to_the_current_stream(norm):
    layer, x = layer_of(norm), torch.randn(9, 40)
    wanted = step(layer, x)
    twin, x = copy.deepcopy(layer).cuda(), x.cuda()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        got = step(twin, x)
        dendnorm.SET(twin, None, zeta=0.3, seed=1).step()
        rewired = twin.row_indices.cpu()
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5 * (1e-30 + other.abs().max().item()))
    dendnorm.SET(layer, None, zeta=0.3, seed=1).step()
    assert torch.equal(rewired, layer.row_indices)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_autocast_casts_activations_alone(half, density):
    layer = layer_of("joint", density=density)
    twin = copy.deepcopy(layer).cuda()
    x = torch.randn(9, 40).to(half).float()  # so that casting loses nothing
    with torch.autocast("cpu", dtype=half):
        wanted = layer(x)
    with torch.autocast("cuda", dtype=half):
        got = twin(x.cuda())
        got.float().square().mean().backward()
    assert got.dtype == wanted.dtype == half
    torch.testing.assert_close(got.cpu(), wanted, rtol=2e-2, atol=2e-2)
    assert twin.weight.grad.dtype == torch.float32
    exact = layer_of("joint", density=density, dtype=torch.float64)
    with torch.autocast("cuda", dtype=half):
        check(exact, x.double(), tolerance=1e-12)


def test_a_step_of_set_waits_for_nothing_and_says_later_what_was_wrong():
    model = torch.nn.Sequential(layer_of("l0"), layer_of("joint", 30, 20)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 40, device="cuda")).sum().backward()
    optimizer.step()
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        report = rewire.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(list(report)) == 2
    with torch.no_grad():
        model[1].weight[7] = float("nan")
    report = rewire.step()
    with pytest.raises(ValueError, match="layer '1': dendnorm::weakest: score must be a number everywhere, got nan"):
        list(report)


def test_a_rewiring_with_cuda_as_the_default_device():
    torch.set_default_device("cuda")
    try:
        layer = layer_of()
        assert len(list(dendnorm.SET(layer, None, zeta=0.3, seed=0).step())) == 1
    finally:
        torch.set_default_device(None)


def counted(action) -> tuple[int, int, int]:
    """Kernels launched, tensors allocated, and questions to the device."""
    names = ("launches", "allocations", "questions")
    counters = [getattr(on_host.LIBRARY, f"dendnorm_on_host_{name}") for name in names]
    before = [counter() for counter in counters]
    action()
    torch.cuda.synchronize()
    launched, allocated, asked = (counter() - start for counter, start in zip(counters, before, strict=True))
    return launched, allocated, asked


def table_of_launches() -> dict[str, list[int]]:
    """Norm by norm from docs/cuda.md: launches of the forward and the backward pass, and tensors allocated by each."""
    text = (FOLDER.parents[2] / "docs" / "cuda.md").read_text(encoding="utf-8")
    lines = text.partition("| norm | launches: forward | backward |")[2].splitlines()[2:]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return {norm: [int(number) for number in numbers] for norm, *numbers in rows}


def test_launches_and_allocations_are_those_of_the_documentation():
    table = table_of_launches()
    assert set(table) == {"none", "l0", "l0-variable", "lp:2", "lp-variable:2", "joint"}
    for norm, wanted in table.items():
        layer = layer_of(norm, 300, 200, 0.1).cuda()
        for _ in range(2):  # only what goes before the first step asks about the device
            x = torch.randn(64, 300, device="cuda", requires_grad=True)
            layer.zero_grad(set_to_none=True)
            results = []
            forward = counted(lambda layer=layer, x=x, results=results: results.append(layer(x)))
            dy = torch.ones_like(results[0])
            backward = counted(lambda y=results[0], dy=dy: y.backward(dy))
        assert [forward[0], backward[0], forward[1], backward[1]] == wanted, norm
        assert forward[2] + backward[2] == 0, norm


def probe(code: str, *, library: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Another process on the same devices."""
    path = library or os.environ["DENDNORM_ON_HOST"]
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"DENDNORM_ON_HOST": path} | environment)  # fmt: skip


DENSE = """
import torch, dendnorm
layer = dendnorm.SparseLinear(40, 30, density=0.5, norm="joint", seed=0, device="cuda")
x = torch.randn(9, 40, device="cuda")
x[0, 0] = float("inf")
print(layer(x)[0].isnan().any().item())
"""


@pytest.mark.parametrize(
    ("threshold", "printed"), [("", "False"), ("auto", "False"), ("0.5", "True"), ("0.6", "False"), ("off", "False")]
)
def test_the_density_from_which_on_products_are_dense(threshold, printed):
    # An absent connection multiplies like a zero there: 0 * inf is NaN.
    result = probe(DENSE, DENDNORM_CUDA_DENSE=threshold)
    assert result.stdout.strip() == printed, result.stderr


def test_a_threshold_that_is_none_is_refused_by_name():
    result = probe(DENSE, DENDNORM_CUDA_DENSE="much")
    assert result.returncode != 0
    assert 'DENDNORM_CUDA_DENSE must be "auto", "off" or a density above 0, got "much"' in result.stderr


AUTO = """
import torch, dendnorm
def fills(connected, dtype, batch=256):
    layer = dendnorm.SparseLinear(300, 300, density=connected, norm="none", seed=0, device="cuda")
    x = torch.ones(batch, 300, device="cuda", dtype=dtype)
    x[0, 0] = float("inf")
    return layer(x)[0].isnan().any().item()
print(fills(0.9, torch.bfloat16), fills(0.01, torch.bfloat16), fills(0.9, torch.bfloat16, 1))
"""


def test_the_cost_model_chooses_dense_products_where_it_is_asked():
    result = probe(AUTO, DENDNORM_CUDA_DENSE="auto")
    assert result.stdout.strip() == "True False False", result.stderr


def test_info_tells_of_the_devices():
    facts = info.collect()
    assert facts["build"]["cuda kernels"] is True
    assert len(facts["devices"]) >= 2


# ---- The checkers are checked: a fault in the glue, and the test above that finds it ----

# What is planted -> the test, and what its process then says.
PLANTED = {
    "stream": ("test_work_goes_to_the_current_stream", "AssertionError"),
    "device": ("test_work_is_done_on_the_tensors_device", "AssertionError|invalid resource handle"),
    "workspace": ("test_work_goes_to_the_current_stream", "heap-use-after-free"),
    "stride": ("test_work_is_done_on_the_tensors_device", "AssertionError|heap-buffer-overflow"),
}


@pytest.mark.parametrize("fault", ["nothing", *PLANTED])
def test_a_planted_fault_is_found(fault):
    if fault == "workspace" and not os.environ.get("LD_PRELOAD"):
        pytest.skip("needs AddressSanitizer")
    here = Path(os.environ["DENDNORM_ON_HOST"])
    library = here.parent.parent / "on_host_planted" / here.name
    name, says = PLANTED.get(fault, ("test_work_goes_to_the_current_stream", "passed"))
    # What AddressSanitizer writes is not kept from us.
    arguments = [str(Path(__file__)), "-q", "-x", "-p", "no:cacheprovider", "--capture=sys", "-k", name]
    result = probe(f"import pytest; raise SystemExit(pytest.main({arguments!r}))", library=str(library),
                   DENDNORM_PLANTED=fault)  # fmt: skip
    assert (result.returncode == 0) == (fault == "nothing"), result.stdout + result.stderr
    assert any(word in result.stdout + result.stderr for word in says.split("|"))
