"""The way back to dense layers, what tools do with them, and programs that run without dendnorm."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import dendnorm
from dendnorm import SparseLinear

NORMS = ["l0", "l0-variable", "lp:3", "lp-variable:1", "weight_norm", "joint", "none"]


def network(norm: str = "joint") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseLinear(12, 16, density=0.2, norm=norm, seed=0), nn.ReLU(), SparseLinear(16, 4, density=0.4, seed=1)
    )
    nn.init.normal_(model[0].bias)
    return model


@pytest.mark.feature("densify: the way back in place, to nn.Linear layers that compute the same")
@pytest.mark.parametrize("norm", NORMS)
def test_densify_computes_the_same(norm):
    model, x = network(norm).eval(), torch.randn(5, 12)
    old, wanted = [model[0], model[2]], model(x)
    old[1].weight.requires_grad_(False)
    replaced = dendnorm.densify(model)
    assert replaced == {"0": old[0], "2": old[1]} and replaced.left == {}
    assert replaced.density == (38 + 26) / (12 * 16 + 16 * 4)
    assert "densify: 2 layers replaced" in str(replaced) and "(38 of 192)" in str(replaced)
    torch.testing.assert_close(model(x), wanted)
    assert type(model[0]) is nn.Linear and not model[0].training
    assert model[0].weight.requires_grad and not model[2].weight.requires_grad
    assert dendnorm.densify(model) == {}


def test_what_is_shared_stays_shared():
    layer = SparseLinear(6, 6, density=0.5, norm="none", seed=0)
    twin = SparseLinear(6, 6, density=0.5, norm=layer.norm, seed=0)
    twin.weight, twin.bias = layer.weight, layer.bias
    other = SparseLinear(6, 6, density=0.5, norm="none", seed=1)  # the same values elsewhere
    other.weight = layer.weight
    model = nn.Sequential(layer, layer, twin, other)
    dendnorm.densify(model)
    assert model[0] is model[1] and model[2] is not model[0]
    assert model[2].weight is model[0].weight and model[2].bias is model[0].bias
    assert model[3].weight is not model[0].weight


def test_densify_keeps_dtype_and_meta_and_skips():
    model = network().double()
    dendnorm.densify(model, skip=["2"])
    assert model[0].weight.dtype == torch.float64 and isinstance(model[2], SparseLinear)
    with torch.device("meta"):
        model = network()
    dendnorm.densify(model)
    assert model[0].weight.is_meta


def test_densify_refuses_by_name():
    with pytest.raises(TypeError, match="model must be"):
        dendnorm.densify([network()])
    with pytest.raises(ValueError, match=r"use to_dense\(\)"):
        dendnorm.densify(SparseLinear(3, 3, 0.5))
    with pytest.raises(ValueError, match="skip must name modules"):
        dendnorm.densify(network(), skip=["head"])
    model = network()
    nn.utils.spectral_norm(model[0])
    with pytest.raises(ValueError, match="spectral_norm"):
        dendnorm.densify(model)
    assert isinstance(model[2], SparseLinear)


# Tools on the dense form


@pytest.mark.feature("torch.nn.utils.prune on a densified model, and sparsify(density=None) keeps the mask")
def test_pruning_tools():
    model, x = network(), torch.randn(5, 12)
    dendnorm.densify(model)
    prune.global_unstructured([(model[0], "weight"), (model[2], "weight")], prune.L1Unstructured, amount=0.9)
    wanted = model(x)
    kept = sum(int((model[index].weight != 0).sum()) for index in (0, 2))
    replaced = dendnorm.sparsify(model)
    assert sum(replaced.connections.values()) == kept
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.feature("torch.ao: dynamic quantisation of a densified model")
def test_dynamic_quantisation():
    if not {"fbgemm", "x86", "onednn", "qnnpack"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("this build of torch has no engine for quantised layers")
    model, x = network().eval(), torch.randn(5, 12)
    wanted = model(x)
    dendnorm.densify(model)
    try:
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    except AttributeError:
        pytest.skip("this torch has no torch.ao.quantization.quantize_dynamic")
    assert type(quantised[0]) is not nn.Linear
    torch.testing.assert_close(quantised(x), wanted, rtol=0.1, atol=0.1)


@pytest.mark.feature("torchao: weights in int8 of a densified model")
def test_torchao():
    quantization = pytest.importorskip("torchao.quantization", reason="the package torchao is not installed")
    model, x = network().eval(), torch.randn(5, 12)
    wanted = model(x)
    dendnorm.densify(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    torch.testing.assert_close(model(x), wanted, rtol=0.1, atol=0.1)


@pytest.mark.feature("PEFT: LoRA adapters on a densified model, trained and merged")
def test_lora():
    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    model, x = network(), torch.randn(5, 12)
    dendnorm.densify(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    torch.testing.assert_close(adapted(x), model(x))
    optimizer = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(2):  # the second factor starts at 0
        adapted(x).square().sum().backward()
        optimizer.step()
    wanted = adapted(x)
    torch.testing.assert_close(adapted.merge_and_unload()(x), wanted, rtol=1e-4, atol=1e-4)


def onnx_outputs(program: torch.export.ExportedProgram, x: torch.Tensor, path) -> torch.Tensor:
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    torch.onnx.export(program, dynamo=True).save(path)
    session = runtime.InferenceSession(path)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.feature("torch.onnx.export of a sparse model: works with dynamo=True, else names densify")
def test_onnx_of_a_sparse_model(tmp_path):
    model, x = network().eval(), torch.randn(9, 12)
    with pytest.raises(RuntimeError, match=r"dynamo=True\).*dendnorm\.densify\(model\)"):
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=False)
    with torch.no_grad():
        wanted = model(x)
    program = exported(model, torch.randn(4, 12))
    torch.testing.assert_close(onnx_outputs(program, x, tmp_path / "model.onnx"), wanted)
    torch.onnx.export(model, (x,), tmp_path / "direct.onnx", dynamo=True)
    assert any("dendnorm" in str(node.target) for node in program.graph.nodes)  # nothing else decomposes it


def test_inductor_finds_no_decomposition_of_ours():
    # It calls the ops as they are; one that could be decomposed instead it refuses where the environment says CI.
    from torch._decomp import get_decompositions

    ops = [op for op in dendnorm.decompositions() if op.namespace == "dendnorm"]
    assert len(ops) == 4 and get_decompositions(ops) == {}


def exported(model: nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


@pytest.mark.feature("torch.onnx.export of a densified model, and of a sparse one through decompositions()")
@pytest.mark.parametrize("sparse", [True, False])
def test_onnx(sparse, tmp_path):
    model, x = network().eval(), torch.randn(9, 12)
    with torch.no_grad():
        wanted = model(x)
    if not sparse:
        dendnorm.densify(model)
    program = exported(model, torch.randn(4, 12))
    if sparse:
        program = program.run_decompositions(dendnorm.decompositions())
    torch.testing.assert_close(onnx_outputs(program, x, tmp_path / "model.onnx"), wanted)


# Programs without dendnorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", NORMS)
def test_decompositions_are_the_ops(norm, dtype):
    layer = SparseLinear(30, 20, nnz=25, norm=norm, seed=1)  # with neurons that have no connections
    layer = layer.double() if dtype == torch.float64 else layer
    nn.init.normal_(layer.bias)
    assert int(layer.in_degrees().min()) == 0
    with torch.no_grad():
        layer.weight[layer.edges()[0] == layer.edges()[0][0]] = 0  # and one whose values are all 0
    model = nn.Sequential(layer)
    program = exported(model, torch.randn(4, 30).to(dtype)).run_decompositions(dendnorm.decompositions())
    assert not any("dendnorm" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(7, 30).to(dtype)
    torch.testing.assert_close(program.module()(x), model(x))


def test_decomposed_effective_weight_and_no_bias():
    class Penalty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = SparseLinear(9, 7, 0.3, norm="joint", seed=0, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).sum() + self.layer.effective_weight().abs().sum()

    model, x = Penalty(), torch.randn(3, 9)
    program = torch.export.export(model, (x,)).run_decompositions(dendnorm.decompositions())
    torch.testing.assert_close(program.module()(x), model(x))


PROGRAM = """
import sys
sys.modules["dendnorm"] = None  # as if it were not installed
import torch
x, wanted = torch.load(sys.argv[2])
torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(x), wanted)
assert not any(name.startswith("dendnorm.") for name in sys.modules)
"""


@pytest.mark.feature("decompositions(): an exported program runs where dendnorm is not installed")
@pytest.mark.parametrize("norm", ["l0", "joint", "lp-variable:1"])
def test_a_program_runs_without_dendnorm(norm, tmp_path):
    model = network(norm).eval()
    program = exported(model, torch.randn(4, 12)).run_decompositions(dendnorm.decompositions())
    torch.export.save(program, tmp_path / "model.pt2")
    x = torch.randn(9, 12)
    torch.save((x, model(x).detach()), tmp_path / "wanted.pt")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model.pt2"), str(tmp_path / "wanted.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}, timeout=300)
    assert done.returncode == 0, done.stderr
