"""What can be known of a CUDA build without a GPU: it imports, has a CUDA kernel for every op, and its fake tensors on
"cuda" are what the CPU's are. Run by the interpreter whose PyTorch the build is for; see tests/run_all.py."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from test_gradients import op_arguments, pattern_op_arguments
from torch._subclasses import FakeTensorMode

import dendnorm  # noqa: F401  (loads the ops)
from dendnorm import info

DEVICE = torch.device("cuda", 0)
NORMS = ("none", "l0", "joint", "lp:2", "lp-variable:3")
SCHEMAS = {schema.name: schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("dendnorm::")}


def test_the_build_has_cuda():
    build = info.collect()["build"]
    assert build["cuda kernels"] is True
    assert build["torch's cuda"] == torch.version.cuda


@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_every_op_has_a_cuda_kernel_of_its_own(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), f"{op} has no CUDA kernel"


def moved(value):
    """Tensors as fake ones on cuda, of the same shape, dtype and strides."""
    if isinstance(value, torch.Tensor):
        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
        return fake.requires_grad_(value.requires_grad)
    return DEVICE if isinstance(value, torch.device) else value


def described(result) -> list[tuple]:
    results = result if isinstance(result, (tuple, list)) else [result]
    return [
        (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad)
        for tensor in results
        if isinstance(tensor, torch.Tensor)
    ]


def check_fake(op: str, positional: tuple, named: dict) -> None:
    function = getattr(torch.ops.dendnorm, op)
    on_cpu = function(*positional, **named)
    with FakeTensorMode():
        result = function(*map(moved, positional), **{name: moved(value) for name, value in named.items()})
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            assert not isinstance(tensor, torch.Tensor) or tensor.device == DEVICE
    assert described(result) == described(on_cpu)


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_fake_results_of_the_layer_are_the_cpus(norm, with_gradients):
    for op, arguments in op_arguments(norm, with_gradients).items():
        check_fake(op, arguments, {})


@pytest.mark.parametrize("op", sorted(pattern_op_arguments()))
def test_fake_results_of_the_pattern_ops_are_the_cpus(op):
    for positional, named in pattern_op_arguments()[op]:
        check_fake(op, positional, named)


def test_every_op_is_among_them():
    tried = set(op_arguments("joint", False)) | set(pattern_op_arguments())
    assert {name.removeprefix("dendnorm::") for name in SCHEMAS} == tried


@pytest.mark.parametrize("feature_major", [False, True])
def test_a_layer_keeps_the_order_in_memory(feature_major):
    with FakeTensorMode():
        x = torch.empty(8, 6, device=DEVICE)
        x = torch.empty(6, 8, device=DEVICE).t() if feature_major else x
        pattern = [moved(tensor) for tensor in pattern_op_tensors()]
        y = torch.ops.dendnorm.sparse_linear(x, torch.empty(3, device=DEVICE), None, None, *pattern, 0.0, 0.0, 2.0)
        assert (y.stride(0) == 1) == feature_major


def pattern_op_tensors() -> list[torch.Tensor]:
    """Three connections between 6 inputs and 5 outputs."""
    return [torch.zeros(size, dtype=torch.int32) for size in (7, 3, 6, 3, 3)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
@pytest.mark.parametrize("arguments", [["train", "--epochs", "1"], ["bench", "--no-sweeps"]])
def test_without_a_device_a_command_says_so_in_one_sentence(arguments, tmp_path):
    command = [sys.executable, "-m", "dendnorm", *arguments, "--device", "cuda", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "cuda" in result.stderr.lower()
