"""What can be known of a CUDA build without a GPU: it imports, has a CUDA kernel for every op, and its fake tensors on
"cuda" are what the CPU's are. Run by the interpreter whose PyTorch the build is for; see tests/run_all.py."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from op_entry import SHAPES, Sample
from op_table import OPS
from torch._subclasses import FakeTensorMode

import dendnorm  # noqa: F401  (loads the ops)
from dendnorm import info

DEVICE = torch.device("cuda", 0)
LAYER_OPS = {op for op, entry in OPS.items() if entry.differentiable}
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


def check_fake(op: str, sample: Sample) -> None:
    function = getattr(torch.ops.dendnorm, op)
    on_cpu = function(**sample)
    with FakeTensorMode():
        result = function(**{name: moved(value) for name, value in sample.items()})
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            assert not isinstance(tensor, torch.Tensor) or tensor.device == DEVICE
    assert described(result) == described(on_cpu)


def with_gradients(op: str, sample: Sample) -> Sample:
    leaves = {name: sample[name] for name in OPS[op].differentiable if sample[name] is not None}
    return sample | {name: tensor.clone().requires_grad_() for name, tensor in leaves.items()}


@pytest.mark.parametrize("differentiated", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_fake_results_of_the_layer_are_the_cpus(norm, differentiated):
    for op in LAYER_OPS:
        for dtype in OPS[op].dtypes:
            for sample in OPS[op].samples(norm, dtype, SHAPES["small"]):
                check_fake(op, with_gradients(op, sample) if differentiated else sample)


@pytest.mark.parametrize("op", sorted(OPS.keys() - LAYER_OPS))
def test_fake_results_of_the_pattern_ops_are_the_cpus(op):
    for dtype in OPS[op].dtypes:
        for sample in OPS[op].samples("none", dtype, SHAPES["small"]):
            check_fake(op, sample)


def test_every_op_is_among_them():
    assert {name.removeprefix("dendnorm::") for name in SCHEMAS} == OPS.keys()


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
