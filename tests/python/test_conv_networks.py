"""Networks with sparse convolutions: rewired, resized, converted, counted, and kept in the order they compute in."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dendnorm
from dendnorm import SparseConv1d, SparseConv2d, SparseLinear, analysis, batch_innermost
from dendnorm.integrations import averages
from dendnorm.nn import slab as slabs
from dendnorm.nn.slab import is_batch_innermost


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18 in small: its blocks, strides and shortcuts."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        sizes = [(width, width, 1), (width, width, 1)]
        for step in range(3):
            sizes += [(width << step, width << step + 1, 2), (width << step + 1, width << step + 1, 1)]
        self.layers = nn.Sequential(*(Block(*size) for size in sizes))
        self.depthwise = nn.Conv2d(8 * width, 8 * width, 3, padding=1, groups=8 * width)
        self.fc = nn.Linear(8 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.pool(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(F.adaptive_avg_pool2d(self.depthwise(x), 1).flatten(1))


def resnet(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNet()


KINDS = [nn.Conv2d, nn.Linear]


# Converted


@pytest.mark.feature("sparsify and densify of a ResNet: convolutions and the head, depthwise ones left with the reason")
def test_a_resnet_becomes_sparse_and_dense_again():
    model, x = resnet().eval(), torch.randn(2, 3, 16, 16)
    wanted = model(x)
    found = dendnorm.sparsify(model, 1.0, norm="joint", skip=["conv1"], types=KINDS)
    assert len(found) == 8 * 2 + 3 + 1
    assert found.left["conv1"] == "named in skip"
    assert "depthwise" in found.left["depthwise"] and isinstance(model.depthwise, nn.Conv2d)
    assert isinstance(model.layers[2].shortcut[0], SparseConv2d) and isinstance(model.fc, SparseLinear)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    back = dendnorm.densify(model)
    assert len(back) == len(found) and not any(isinstance(each, SparseConv2d) for each in model.modules())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in resnet().named_modules()]
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)


def test_by_default_convolutions_stay_and_the_report_says_so():
    model = resnet()
    found = dendnorm.sparsify(model, 0.5)
    assert list(found) == ["fc"]
    assert found.left["conv1"].endswith("Conv2d is not among types")
    with pytest.raises(ValueError, match=r"got an nn\.Conv2d; use SparseConv2d\.from_dense"):
        dendnorm.sparsify(nn.Conv2d(3, 3, 3), 0.5, types=KINDS)
    with pytest.raises(TypeError, match=r"types must hold nn\.Linear, nn\.Conv1d, nn\.Conv2d"):
        dendnorm.sparsify(model, 0.5, types=[nn.ConvTranspose2d])
    with pytest.raises(ValueError, match="got a SparseConv2d; use to_dense"):
        dendnorm.densify(SparseConv2d(3, 3, 3, density=0.5))
    signals = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3))
    dendnorm.sparsify(signals, 0.5, types=[nn.Conv1d])
    assert isinstance(signals[2], SparseConv1d)


def test_a_weight_that_is_read_from_outside_stays_dense():
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.plain = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.conv.weight
            return self.plain(F.conv2d(x, weight - weight.mean(), self.conv.bias))

    model = Standardised()
    found = dendnorm.sparsify(model, 0.5, types=KINDS)
    assert list(found) == ["plain"]
    assert "Standardised.forward" in found.left["conv"]


def test_erk_by_hand():
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, (1, 3), groups=2), nn.Flatten(), nn.Linear(100, 10))
    # As RigL has it: the sum of a weight's sizes over their product. 16 + 32 + 3 + 3 = 54 of 4608 weights,
    # 64 + 16 + 1 + 3 = 84 of 3072, 10 + 100 = 110 of 1000.
    factor = 0.2 * (4608 + 3072 + 1000) / (54 + 84 + 110)
    found = dendnorm.densities(model, 0.2, "erk", types=KINDS)
    for name, size, share in (("0", 4608, 54), ("1", 3072, 84), ("3", 1000, 110)):
        assert abs(found[name] * size - factor * share) <= 1
    assert sum(round(found[name] * size) for name, size in (("0", 4608), ("1", 3072), ("3", 1000))) == 1736
    dendnorm.sparsify(model, 0.2, distribution="erk", types=KINDS)
    assert {name: model.get_submodule(name).density for name in found} == found


# Rewired


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2, size: int = 10) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 3, size, size)), torch.randint(10, (4,))).backward()
        optimizer.step()


RULES = [("magnitude", "random"), ("sign", "gradient"), ("gradient", "cosine"), ("sensitivity", "gradient"),
         ("cosine", "cosine")]  # fmt: skip


@pytest.mark.feature("SparseConv2d: SET, RigL and every rule, with the optimizer's state, and resize")
@pytest.mark.parametrize(("drop", "grow"), RULES)
def test_a_resnet_is_rewired_by_every_rule(drop, grow):
    model = resnet()
    dendnorm.sparsify(model, 0.3, types=KINDS, skip=["conv1"])
    optimizer = torch.optim.AdamW(dendnorm.param_groups(model, 1e-2), lr=1e-3)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=1, drop=drop, grow=grow)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (SparseConv2d, SparseLinear))}
    for _ in range(2):
        train(model, optimizer)
        rewire.observe()
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 3, 10, 10)), torch.randint(10, (4,))).backward()
        before = {
            name: (layer.pattern.clone(), layer.weight.detach().clone(), id(layer.weight), layer.nnz,
                   optimizer.state[layer.weight]["exp_avg"].clone())
            for name, layer in layers.items()
        }  # fmt: skip
        report = rewire.step()
        assert [part.name for part in report] == list(layers)
        for part in report:
            layer, (pattern, weight, identity, nnz, moment) = layers[part.name], before[part.name]
            assert (id(layer.weight), layer.nnz, part.k) == (identity, nnz, round(0.3 * nnz))
            layer._check_pattern(*layer.pattern[:2])
            old = dict(zip(keys(pattern), zip(weight.tolist(), moment.tolist(), strict=True), strict=True))
            new = set(zip(*(side.tolist() for side in part.grown), strict=True))
            state = optimizer.state[layer.weight]["exp_avg"].tolist()
            for key, value, moved in zip(keys(layer.pattern), layer.weight.tolist(), state, strict=True):
                assert moved == 0 if key in new else old[key] == (value, moved)


def keys(pattern: dendnorm.Pattern) -> list[tuple[int, int]]:
    return list(zip(*(side.tolist() for side in pattern.edges()), strict=True))


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"padding_mode": "circular", "stride": 2, "dilation": 2}])
@pytest.mark.parametrize("dims", [1, 2])
def test_growth_by_gradient_is_where_the_dense_gradient_is_largest(options, dims):
    kind = (SparseConv1d, SparseConv2d)[dims - 1]
    layer = kind(4, 6, 3, padding=2, density=0.3, norm="l0", seed=0, dtype=torch.float64, **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    rewire = dendnorm.RigL(layer, optimizer, zeta=0.4, every=None)
    dense = layer.to_dense()
    with rewire.observe():
        for _ in range(2):  # two batches are one step
            x = torch.randn(3, 4, *[9] * dims, dtype=torch.float64)
            factor = torch.randn_like(layer(x).detach())
            (layer(x) * factor).sum().backward()
            (dense(x) * factor).sum().backward()
            layer(x).sum().detach()
    there = torch.zeros_like(dense.weight, dtype=torch.bool)
    there[layer.edges()] = True
    strength = layer.effective_weight().detach().abs()
    k = round(0.4 * layer.nnz)
    goes = strength.argsort(stable=True)[:k]
    there[tuple(side[goes] for side in layer.edges())] = False
    empty = dense.weight.grad.abs().masked_fill(there, -1).flatten()
    wanted = set(empty.topk(k).indices.tolist())
    report = rewire.step()
    filters, taps = report[0].grown
    assert set((filters * layer.in_features + taps).tolist()) == wanted


@pytest.mark.parametrize("options", [{}, {"groups": 2, "padding_mode": "reflect"}])
def test_cosine_compares_what_taps_see_with_what_filters_give(options):
    layer = SparseConv2d(4, 6, (2, 3), stride=(2, 1), padding=1, density=0.4, dtype=torch.float64, seed=0, **options)
    rewire = dendnorm.SET(layer, None, zeta=0.3, drop="cosine", grow="cosine")
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    with rewire.observe():
        y = layer(x).detach()
    mode = layer.padding_mode if layer.padding_mode != "zeros" else "constant"
    seen = F.unfold(F.pad(x, (1, 1, 1, 1), mode), (2, 3), stride=(2, 1))  # (B, C kh kw, positions)
    groups = layer.groups
    seen = seen.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)  # (groups, N, samples)
    given = y.transpose(0, 1).flatten(1).unflatten(0, (groups, -1))  # (groups, M / groups, samples)
    cosine = torch.cat([F.cosine_similarity(one[:, None], two[None], dim=-1) for one, two in
                        zip(given, seen, strict=True)])  # fmt: skip
    row, col = layer.pattern.edges()
    own, k = cosine[row, col], round(0.3 * layer.nnz)
    goes = own.argsort(stable=True)[:k]
    left = torch.zeros_like(cosine, dtype=torch.bool)
    left[row, col] = True
    left[row[goes], col[goes]] = False
    wanted = set(cosine.masked_fill(left, -2).flatten().topk(k).indices.tolist())
    removed = {(int(row[i]), int(col[i])) for i in goes}
    report = rewire.step()[0]
    assert set(zip(*(side.tolist() for side in report.removed), strict=True)) == removed
    assert set((report.grown[0] * layer.in_features + report.grown[1]).tolist()) == wanted


def test_resize_of_a_network():
    model = resnet()
    dendnorm.sparsify(model, 0.3, types=KINDS, skip=["conv1"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, optimizer)
    layer = model.layers[0].conv1
    kept = {key: value for key, value in zip(keys(layer.pattern), layer.weight.tolist(), strict=True)}
    changed = dendnorm.resize(model, 0.5, optimizer)
    assert changed["layers.0.conv1"] == (round(0.3 * 144), 72) and layer.nnz == 72
    now = dict(zip(keys(layer.pattern), layer.weight.tolist(), strict=True))
    assert all(now[key] == value for key, value in kept.items())
    dendnorm.resize(model, {"layers.0.conv1": 0.1}, optimizer)
    assert layer.nnz == round(14.4)
    train(model, optimizer)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_averages_follow_and_topology_tells():
    model = nn.Sequential(SparseConv2d(3, 4, 3, density=0.5, seed=0))
    averaged = copy.deepcopy(model)
    before = model[0].pattern.clone()
    report = dendnorm.SET(model, None, zeta=0.4).step()
    change = analysis.topology_change(before, model[0])
    assert change.before == change.after == 54 and 0 < change.removed <= round(0.4 * 54)
    averages.follow(averaged, model, report)
    assert torch.equal(averaged[0].row_indices, model[0].row_indices)
    layer = model[0]
    assert int(analysis.degree_histogram(layer, "out").sum()) == 3
    assert torch.equal(analysis.efferent_map(layer, (3, 1)).flatten(), layer.out_degrees())
    x = torch.randn(5, 3, 6, 6)
    plain = F.conv2d(x, layer.to_dense().weight).mean((0, 2, 3)).double()
    torch.testing.assert_close(analysis.mean_weighted_input(layer, x, batch=2), plain, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"inputs must have shape \(examples, 3, \*\)"):
        analysis.mean_weighted_input(layer, torch.randn(5, 4, 6, 6))


def test_values_of_filters_decay():
    model = nn.Sequential(SparseConv2d(3, 4, 3, density=0.5, norm="joint"), nn.BatchNorm2d(4))
    first, second = dendnorm.param_groups(model, 0.1)
    assert [id(each) for each in first["params"]] == [id(model[0].weight)]
    assert len(second["params"]) == 4


# Counted


@pytest.mark.feature("SparseConv2d: summary and torch.utils.flop_counter")
def test_summary_and_flops_by_hand():
    model = nn.Sequential(SparseConv2d(3, 8, 3, stride=2, padding=1, nnz=50, seed=0), nn.Flatten(), nn.Linear(128, 2))
    conv, linear = dendnorm.summary(model, (3, 8, 8))
    assert (conv.connections, conv.positions) == (50, 216)
    assert (conv.flops, conv.dense_flops) == (2 * 50 * 16, 2 * 216 * 16)  # 4 x 4 positions
    assert conv.value_bytes == 4 * (50 + 8 + 1)
    assert conv.index_bytes == 4 * (28 + 50 + 9 + 50 + 50) + 8 * 8
    assert conv.dense_bytes == 4 * (216 + 8)
    assert linear.flops == 2 * 256
    assert dendnorm.summary(model)[0].flops is None  # of an image of unknown size, as for nn.Conv2d
    x = torch.randn(5, 3, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = model[0](x)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert forward.get_total_flops() == 2 * 50 * 16 * 5
    assert backward.get_total_flops() == 2 * 2 * 50 * 16 * 5


# In the order that they compute in


def orders(model: nn.Module) -> list[bool]:
    """Of each sparse convolution's next call: whether input and output have their samples innermost."""
    seen: list[bool] = []
    for module in model.modules():
        if isinstance(module, (SparseConv2d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda module, args, output: seen.append(is_batch_innermost(output)))
    return seen


@pytest.mark.feature("Slab: a whole ResNet with samples innermost, forward and backward, training and evaluation")
@pytest.mark.parametrize("batch", [32, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slab_computes_what_its_network_does(batch, dtype):
    model = resnet().to(dtype)
    dendnorm.sparsify(model, 0.4, types=KINDS, skip=["conv1"])
    slab = dendnorm.Slab(copy.deepcopy(model))
    seen = orders(slab)
    room = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    for training in (True, True, False):
        model.train(training), slab.train(training)
        x = torch.randn(batch, 3, 16, 16, dtype=dtype)
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        found, wanted = slab(mine), model(theirs)
        torch.testing.assert_close(found, wanted, **room)
        assert found.is_contiguous()
        gradient = torch.randn_like(wanted)
        found.backward(gradient), wanted.backward(gradient)
        torch.testing.assert_close(mine.grad, theirs.grad, **room)
        for one, two in zip(slab.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, **room)
        for one, two in zip(slab.buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert len(seen) == 3 * (19 + 20) and set(seen) == {batch == 32}
    with torch.no_grad():
        torch.testing.assert_close(slab(x), model(x), **room)


@pytest.mark.slow
@pytest.mark.feature("Slab: torch.compile in one graph")
def test_a_slab_is_compiled():
    torch.manual_seed(0)
    block = Block(4, 8, 2)
    dendnorm.sparsify(block, 0.4, types=KINDS)
    slab = dendnorm.Slab(block)
    compiled = torch.compile(slab, backend="aot_eager", fullgraph=True)
    x = torch.randn(16, 4, 6, 6)
    found, wanted = compiled(x), slab(x)
    torch.testing.assert_close(found, wanted)
    seen = [torch.autograd.grad(each.square().sum(), list(slab.parameters())) for each in (found, wanted)]
    torch.testing.assert_close(*seen)


OPS = {
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d_indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "avg_pool2d": lambda x: F.avg_pool2d(x, (2, 3), stride=1, padding=1),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=3.0),
    "pad_reflect": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "relu": F.relu,
    "gelu": F.gelu,
    "add": lambda x: x + x,
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "evaluation": lambda x: F.batch_norm(x, torch.arange(5.0), torch.arange(5.0) + 1),
    "keyword": lambda x: F.avg_pool2d(kernel_size=2, input=x),
}


class Between(nn.Module):
    """An op between two convolutions."""

    def __init__(self, op) -> None:
        super().__init__()
        self.conv, self.op, self.seen = SparseConv2d(3, 5, 3, density=1.0, seed=0), op, []

    def forward(self, x: torch.Tensor) -> tuple:
        result = self.op(self.conv(x))
        first, *rest = result if isinstance(result, tuple) else (result,)
        self.seen.append(is_batch_innermost(first))
        return first * 1.0, *rest


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_ops_between_convolutions_keep_the_order(op):
    model = Between(op)
    slab = dendnorm.Slab(model)
    x = torch.randn(16, 3, 9, 10)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, wanted = slab(mine), model(theirs)
    assert model.seen == [True, False]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)
        assert one.is_contiguous()
    found[0].square().sum().backward(), wanted[0].square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_padding_of_samples_or_channels_is_left_to_torch():
    model = Between(lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)))
    x = torch.randn(16, 3, 9, 10)
    torch.testing.assert_close(dendnorm.Slab(model)(x)[0], model(x)[0])


def test_batch_innermost():
    x = torch.randn(6, 3, 4, 5, requires_grad=True)
    inner = batch_innermost(x)
    assert inner.stride() == (1, 4 * 5 * 6, 5 * 6, 6) and torch.equal(inner, x) and is_batch_innermost(inner)
    assert batch_innermost(inner) is inner and not is_batch_innermost(x)
    assert is_batch_innermost(batch_innermost(torch.randn(6, 3, 5)))
    inner.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
    layer = SparseConv2d(3, 4, 3, density=0.5, seed=0)
    assert is_batch_innermost(layer(inner)) and layer(x).is_contiguous()
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, \*\)"):
        batch_innermost(torch.randn(3, 4))
    with pytest.raises(TypeError, match="module must be"):
        dendnorm.Slab(F.relu)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("piece", [1, 100, 2**17])
def test_images_are_copied_in_pieces(order, piece, monkeypatch):
    monkeypatch.setattr(slabs, "_PIECE", piece)
    x = torch.randn(6, 5, 7, 4, dtype=torch.float64).contiguous(memory_format=order).requires_grad_()
    inner = batch_innermost(x)
    assert is_batch_innermost(inner) and torch.equal(inner, x)
    back = slabs._usual(inner)
    assert back.is_contiguous() and torch.equal(back, x)
    (gradient,) = torch.autograd.grad((inner * x.detach()).sum(), x)
    assert torch.equal(gradient, x) and gradient.is_contiguous(memory_format=order)
    for function in (batch_innermost, lambda images: slabs._usual(batch_innermost(images).exp())):
        assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, (x,))
    torch.testing.assert_close(torch.func.vmap(batch_innermost)(x.detach()[None]), x.detach()[None])


def test_statistics_of_batch_norm_with_a_large_mean():
    norm = nn.BatchNorm2d(3, momentum=0.3, dtype=torch.float32)
    other = copy.deepcopy(norm).double()
    x = torch.randn(16, 3, 4, 4) * 0.01 + 100
    slab = dendnorm.Slab(nn.Sequential(SparseConv2d.from_dense(identity(3), 1.0, norm=None), norm))
    wanted = other(slab.module[0](x).double())
    torch.testing.assert_close(slab(x).double(), wanted, rtol=1e-2, atol=1e-2)
    for mine, theirs in zip(norm.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-4, atol=1e-6)


def identity(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(channels).view(channels, channels, 1, 1))
    return conv
