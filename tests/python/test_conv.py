"""SparseConv2d and SparseConv1d as modules: what nn.Conv2d computes with the same weights, however they are used."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import dendnorm
from dendnorm import SparseConv1d, SparseConv2d, norms, patterns

NORMS = ["none", "l0", "l0-variable", "lp:3", "weight_norm", "joint"]
every_norm = pytest.mark.parametrize("norm", NORMS)
float64 = {"dtype": torch.float64}


def effective(layer: SparseConv2d) -> torch.Tensor:
    """The filters (M, C / groups, kh, kw) in float64, from the saved tensors alone and by the definition."""
    taps = torch.repeat_interleave(torch.arange(layer.in_features), layer.ccol_indices.diff().long())
    filters, v = layer.row_indices.long(), layer.weight.detach().double()
    e = layer.norm.excitability
    result = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    for i in range(layer.out_features):
        own = filters == i
        if not own.any():
            continue
        factor = 1.0 if e is None else float(e.detach().expand(layer.out_features)[i])
        factor /= int(own.sum()) ** layer.norm.a
        if layer.norm.b:
            factor /= float(v[own].abs().pow(layer.norm.p).sum() ** (1 / layer.norm.p)) ** layer.norm.b
        result[i, taps[own]] = factor * v[own]
    return result.view(layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)


def dense(layer: SparseConv2d) -> nn.Module:
    """The torch layer with these filters, in float64."""
    kind = nn.Conv2d if isinstance(layer, SparseConv2d) else nn.Conv1d
    conv = kind(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                layer.groups, layer.bias is not None, layer.padding_mode, dtype=torch.float64)  # fmt: skip
    with torch.no_grad():
        conv.weight.copy_(effective(layer))
        if layer.bias is not None:
            conv.bias.copy_(layer.bias)
    return conv


def filled(layer: SparseConv2d) -> SparseConv2d:
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name != "weight":
                parameter.add_(torch.rand_like(parameter))
    return layer


# The same as torch's


@st.composite
def cases(draw) -> dict:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    dims = draw(st.sampled_from([1, 2, 2]))
    pair = lambda low, high: draw(st.one_of(st.integers(low, high), st.tuples(*[st.integers(low, high)] * dims)))  # noqa: E731
    padding = draw(st.sampled_from(["number", "number", "same", "valid"]))
    return {
        "dims": dims, "in_channels": groups * draw(st.integers(1, 3)), "out_channels": groups * draw(st.integers(1, 4)),
        "kernel_size": pair(1, 3), "stride": 1 if padding == "same" else pair(1, 3), "dilation": pair(1, 2),
        "padding": pair(0, 2) if padding == "number" else padding, "groups": groups, "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
        "density": draw(st.sampled_from([0.1, 0.5, 1.0])), "norm": draw(st.sampled_from(NORMS)),
        "batch": draw(st.sampled_from([None, 0, 1, 2, 17])), "size": draw(st.tuples(*[st.integers(6, 9)] * dims)),
        "order": draw(st.sampled_from(["contiguous", "innermost", "strided", "channels_last"])),
    }  # fmt: skip


def ordered(images: torch.Tensor, order: str) -> torch.Tensor:
    if order == "innermost":
        return dendnorm.batch_innermost(images)
    if order == "strided":
        return torch.stack([images, images], -1)[..., 1]
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


@pytest.mark.feature("SparseConv2d and SparseConv1d: what nn.Conv2d and nn.Conv1d compute, whatever the arguments")
@settings(max_examples=120)
@given(case=cases())
def test_it_is_the_dense_convolution(case):
    case = dict(case)
    dims, batch, size, order = (case.pop(key) for key in ("dims", "batch", "size", "order"))
    kind = SparseConv2d if dims == 2 else SparseConv1d
    layer = filled(kind(**case, seed=3, dtype=torch.float64))
    shape = ([] if batch is None else [batch]) + [case["in_channels"], *size]
    images = torch.randn(shape, dtype=torch.float64)
    if batch is not None and order != "contiguous":
        images = ordered(images, order)
    mine, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    reference = dense(layer)
    found, wanted = layer(mine), reference(theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    gradient = torch.randn_like(wanted)
    found.backward(gradient)
    wanted.backward(gradient)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, reference.bias.grad, rtol=1e-9, atol=1e-9)
    if case["norm"] == "none":
        torch.testing.assert_close(layer.weight.grad, reference.weight.grad[layer.edges()], rtol=1e-9, atol=1e-9)


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_conversions_are_exact(norm, dtype):
    conv = nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, dtype=dtype)
    conv.eval().weight.requires_grad_(False)
    if norm == "lp:3":  # of one e for all: the rows must have one length
        with torch.no_grad():
            conv.weight.div_(conv.weight.flatten(1).norm(p=3, dim=1).view(-1, 1, 1, 1))
    x = torch.randn(4, 6, 9, 8, dtype=dtype)
    density = 1.0 if norm == "lp:3" else 0.4
    layer = SparseConv2d.from_dense(conv, density, norm=norm)
    assert layer.nnz == round(density * conv.weight.numel())
    assert not layer.training and not layer.weight.requires_grad and layer.bias.requires_grad
    back = layer.to_dense()
    kept = back.weight != 0
    torch.testing.assert_close(back.weight[kept], conv.weight[kept])
    assert density == 1 or conv.weight[kept].abs().min() >= conv.weight[~kept].abs().max()
    assert repr(back) == repr(conv) and torch.equal(back.bias, conv.bias)
    torch.testing.assert_close(layer(x), back(x))
    again = SparseConv2d.from_dense(back, norm=norm)  # what is not 0
    assert torch.equal(again.row_indices, layer.row_indices)


def test_edges_and_degrees():
    layer = SparseConv2d(6, 8, (2, 3), groups=2, density=0.3, norm="joint", seed=1)
    filter, channel, y, x = layer.edges()
    weight = torch.zeros(8, 3, 2, 3)
    weight[filter, channel, y, x] = layer.effective_weight().detach()
    torch.testing.assert_close(weight.double(), effective(layer), rtol=1e-5, atol=1e-6)
    there = weight != 0
    assert torch.equal(layer.in_degrees(), there.sum((1, 2, 3)))
    by_channel = torch.cat([there[:4].sum((0, 2, 3)), there[4:].sum((0, 2, 3))])
    assert torch.equal(layer.out_degrees(), by_channel)
    assert (layer.in_features, layer.out_features, layer.density) == (18, 8, layer.nnz / 144)
    assert layer.to_sparse_csr().shape == (8, 18)
    assert len(SparseConv1d(4, 4, 3, density=0.5).edges()) == 3


def test_a_fresh_layer_keeps_its_inputs_variance():
    layer = SparseConv2d(64, 64, 3, padding=1, padding_mode="circular", density=0.1, seed=0)
    x = torch.randn(4, 64, 16, 16)
    assert 0.8 < layer(x).var().item() < 1.2
    assert layer.nnz == round(0.1 * 64 * 576)


def test_repr_names_what_is_unusual():
    plain = SparseConv2d(3, 8, 3, density=0.5, seed=0)
    assert repr(plain) == "SparseConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), nnz=108, density=0.5, norm=l0)"
    other = SparseConv1d(4, 8, 3, padding="same", dilation=2, groups=2, bias=False, padding_mode="reflect",
                         nnz=5, norm=None)  # fmt: skip
    assert repr(other) == (
        "SparseConv1d(4, 8, kernel_size=(3,), stride=(1,), padding='same', dilation=(2,), padding_mode='reflect',"
        " groups=2, bias=False, nnz=5, density=0.104, norm=none)"
    )


@pytest.mark.parametrize("unit", ["tap", "kernel", "channel"])
@pytest.mark.parametrize("groups", [1, 2])
def test_patterns_of_convolutions(unit, groups):
    pattern = patterns.convolution(8, 6, (3, 2), 0.5, unit=unit, groups=groups, seed=0)
    layer = SparseConv2d(8, 6, (3, 2), groups=groups, pattern=pattern, norm="l0")
    there = torch.zeros(6, 8 // groups, 3, 2, dtype=torch.bool)
    there[layer.edges()] = True
    assert layer.nnz == there.numel() // 2
    kernels = there.flatten(2)
    if unit != "tap":
        assert bool((kernels.all(2) == kernels.any(2)).all())
    if unit == "channel":
        of_groups = kernels.any(2).view(groups, 6 // groups, -1)
        assert bool((of_groups == of_groups[:, :1]).all())
    x = torch.randn(2, 8, 7, 7)
    torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="unit must be"):
        patterns.convolution(8, 6, 3, 0.5, unit="row")
    with pytest.raises(ValueError, match="pattern must have 6 filters as outputs and 72 taps"):
        SparseConv2d(8, 6, 3, pattern=pattern)


# Derivatives, dtypes, programs


@pytest.mark.parametrize("norm", ["none", "joint"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_gradients_of_both_orders(norm, mode):
    layer = filled(SparseConv2d(4, 4, (2, 3), (2, 1), 1, groups=2, density=0.6, norm=norm, padding_mode=mode, seed=0,
                                dtype=torch.float64))  # fmt: skip
    names = [name for name, _ in layer.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True), *layer.parameters())
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.feature("SparseConv2d: 16-bit activations, with float32 weights, and autocast")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype):
    layer = SparseConv2d(8, 8, 3, padding=1, density=0.3, seed=0)
    reference = dense(layer)
    x = torch.randn(3, 8, 6, 6)
    with torch.autocast("cpu", dtype):
        under = layer(x)
    assert under.dtype == dtype
    layer.to(dtype)
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer(x.to(dtype)), under)
    room = 0.02 if dtype == torch.bfloat16 else 0.003
    torch.testing.assert_close(under.double(), reference(x.to(dtype).double()), rtol=room, atol=room)


@pytest.mark.feature("SparseConv2d: torch.compile in one graph, and torch.export with and without dendnorm's ops")
@pytest.mark.parametrize("options", [{}, {"padding_mode": "circular", "groups": 2}, {"stride": 2, "padding": (2, 1)}])
def test_compile_and_export(options):
    layer = filled(SparseConv2d(4, 6, 3, density=0.4, norm="joint", **({"padding": 1} | options)))
    x = torch.randn(5, 4, 7, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    mine = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad)
    dendnorm.SET(layer, None, zeta=0.3).step()
    torch.testing.assert_close(compiled(x), layer(x))
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    plain = program.run_decompositions(dendnorm.decompositions())
    assert not any("dendnorm" in str(node.target) for node in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(x), layer(x))


# Copies, files, devices


@pytest.mark.parametrize("kind", [SparseConv2d, SparseConv1d])
def test_copies_and_files(kind):
    layer = filled(kind(4, 6, 3, 1, "same", groups=2, density=0.4, norm="joint", padding_mode="circular"))
    x = torch.randn(2, 4, *[6] * len(layer.kernel_size))
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    other = kind(4, 6, 3, 1, "same", groups=2, nnz=layer.nnz, norm="joint", padding_mode="circular")
    other.load_state_dict(layer.state_dict())
    copies = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stream, weights_only=False), other)
    for each in copies:
        assert torch.equal(each(x), layer(x)) and repr(each) == repr(layer)
        dendnorm.SET(each, None, zeta=0.3).step()
        torch.testing.assert_close(each(x).double(), dense(each)(x.double()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x).double(), dense(layer)(x.double()), rtol=1e-5, atol=1e-5)


def test_the_meta_device():
    layer = SparseConv2d(4, 6, 3, density=0.4, device="meta")
    assert layer(torch.empty(2, 4, 6, 6, device="meta")).shape == (2, 6, 4, 4)
    assert layer.to_dense().weight.shape == (6, 4, 3, 3)
    layer.to_empty(device="cpu").reset_parameters(seed=5)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(layer(x), SparseConv2d(4, 6, 3, density=0.4, seed=5)(x))
    conv = nn.Conv2d(4, 6, 3, device="meta", dtype=torch.float64)
    made = SparseConv2d.from_dense(conv, 0.5)
    assert made.weight.is_meta and made.weight.dtype == torch.float64 and made.nnz == 108


def test_checkpoints_know_the_window(tmp_path):
    model = nn.Sequential(SparseConv2d(3, 4, 3, padding=1, density=0.5, seed=0), nn.ReLU())
    dendnorm.save(tmp_path / "a.dendnorm", model)
    other = nn.Sequential(SparseConv2d(3, 4, 3, padding=1, density=0.5, seed=1), nn.ReLU())
    dendnorm.load(tmp_path / "a.dendnorm", other, adopt_pattern=True)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(other(x), model(x))
    wrong = nn.Sequential(SparseConv2d(3, 4, 3, density=0.5, seed=1), nn.ReLU())
    before = copy.deepcopy(wrong.state_dict())
    with pytest.raises(ValueError, match=r"layer '0' must be .*'padding': \[0, 0\]"):
        dendnorm.load(tmp_path / "a.dendnorm", wrong, adopt_pattern=True)
    assert all(torch.equal(before[name], value) for name, value in wrong.state_dict().items())
    window = dendnorm.checkpoint.describe(tmp_path / "a.dendnorm")["layers"]["0"]["window"]
    assert window["kernel_size"] == [3, 3] and window["padding"] == [1, 1]


# Refusals


BAD = {
    "in_channels": ({"in_channels": 0}, "in_channels must be in"),
    "groups": ({"groups": 3}, "groups must divide in_channels = 4 and out_channels = 6, got 3"),
    "kernel": ({"kernel_size": (3, 3, 3)}, "kernel_size must be an int or 2 of them"),
    "kernel 0": ({"kernel_size": 0}, "kernel_size must be in"),
    "stride": ({"stride": 1.5}, "stride must be an int"),
    "padding": ({"padding": -1}, "padding must be in"),
    "padding name": ({"padding": "full"}, 'padding must be "same", "valid"'),
    "same": ({"padding": "same", "stride": 2}, 'stride must be 1 where padding is "same"'),
    "mode": ({"padding_mode": "mirror"}, "padding_mode must be one of"),
    "density": ({"density": 2}, "density must be in"),
    "both": ({"nnz": 3}, "exactly one of density and nnz"),
    "bias": ({"bias": 1}, "bias must be a bool"),
    "norm": ({"norm": "l7"}, "norm must be"),
    "dtype": ({"dtype": torch.complex64}, "dtype must be"),
    "pattern": ({"pattern": 3, "density": None}, "pattern must be"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(change, message):
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "density": 0.5} | change
    with pytest.raises((TypeError, ValueError), match=message):
        SparseConv2d(**arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(2, 3, 6, 6), r"input must have shape \(B, 4, H, W\) or \(4, H, W\), got \(2, 3, 6, 6\)"),
        (torch.randn(4, 6), "input must have shape"),
        (torch.randn(1, 2, 4, 6, 6), "input must have shape"),
        (torch.randn(2, 4, 2, 6), "input must have at least 3 rows"),
        (torch.randn(2, 4, 6, 6).to(torch.complex64), "input must (be of|have) .*complex|ComplexFloat"),
        (torch.ones(2, 4, 6, 6, dtype=torch.int64), "input must .*(int|Long)"),
        (torch.randn(2, 4, 6, 6, dtype=torch.float64), "input must"),
    ],
)
def test_bad_inputs_are_named(images, message):
    layer = SparseConv2d(4, 6, 3, density=0.5)
    with pytest.raises(RuntimeError, match=message):
        layer(images)


def test_bad_conversions_are_named():
    with pytest.raises(TypeError, match=r"conv must be a torch.nn.Conv2d, got Linear"):
        SparseConv2d.from_dense(nn.Linear(3, 3), 0.5)
    with pytest.raises(TypeError, match=r"conv.weight must be of a real floating dtype, got torch.complex64"):
        SparseConv2d.from_dense(nn.Conv2d(3, 3, 3, dtype=torch.complex64), 0.5)
    conv = nn.Conv2d(3, 3, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"conv\.weight must be finite"):
        SparseConv2d.from_dense(conv, 0.5)


def test_the_function_is_the_module():
    layer = filled(SparseConv2d(4, 6, (3, 2), (1, 2), (1, 2), 2, 2, density=0.5, norm="joint", seed=0))
    x = torch.randn(2, 4, 9, 9)
    found = dendnorm.functional.sparse_conv2d(x, layer.weight, layer.pattern, (3, 2), layer.bias, (1, 2), (1, 2), 2, 2,
                                              norm=layer.norm)  # fmt: skip
    assert torch.equal(found, layer(x))
    with pytest.raises(ValueError, match="stride must be 1"):
        dendnorm.functional.sparse_conv2d(x, layer.weight, layer.pattern, 3, stride=2, padding="same")


def test_a_shared_norm():
    shared = norms.l0()
    first, second = (SparseConv2d(4, 4, 3, density=0.5, norm=shared, padding=1) for _ in range(2))
    (first(torch.randn(1, 4, 5, 5)) + second(torch.randn(1, 4, 5, 5))).sum().backward()
    assert first.norm.excitability is second.norm.excitability
    assert shared.excitability.grad is not None
