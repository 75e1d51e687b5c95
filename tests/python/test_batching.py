"""The batching rules of the ops: every combination of batched arguments, as blocks of one layer and one by one."""

from __future__ import annotations

from itertools import product

import op_table
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from dendnorm import SparseLinear
from dendnorm.ops import vmap as rules

ops = torch.ops.dendnorm
SIZE, INPUTS, OUTPUTS, CONNECTIONS = 3, 7, 5, 17
FAMILY = {name: op_table.FAMILY[name][:3] for name in ("none", "l0", "joint", "lp:3")}
# Which of these are batched; a pattern is batched as a whole.
EVERY_CHOICE = list(product([False, True], repeat=5))
both_ways = pytest.mark.parametrize("joined", [True, False], ids=["blocks", "one by one"])


@pytest.fixture(autouse=True)
def _one_way(request, monkeypatch):
    if "joined" in request.fixturenames:
        joined = request.getfixturevalue("joined")
        monkeypatch.setattr(rules, "joins", lambda *_: joined)


class Arguments:
    """Slices of what an op takes, and the same stacked along some dimension, for a choice of what is batched."""

    def __init__(self) -> None:
        self.values, self.dims, self.slices = [], [], [[] for _ in range(SIZE)]

    def add(self, batched: bool, tensors: list[torch.Tensor | None], dim: int = 0) -> None:
        batched = batched and tensors[0] is not None
        self.values.append(torch.stack(tensors, dim) if batched else tensors[0])
        self.dims.append(dim if batched else None)
        for index, slice in enumerate(self.slices):
            slice.append(tensors[index if batched else 0])

    def pattern(self, batched: bool) -> None:
        layers = [SparseLinear(INPUTS, OUTPUTS, nnz=CONNECTIONS, seed=seed) for seed in range(SIZE)]
        for tensors in zip(*(layer.pattern for layer in layers), strict=True):
            self.add(batched, list(tensors))

    def check(self, op, *rest) -> None:
        tensors = [index for index, value in enumerate(self.values) if value is not None]
        assert any(self.dims[index] is not None for index in tensors)

        def run(*given):
            full = [None] * len(self.values)
            for index, value in zip(tensors, given, strict=True):
                full[index] = value
            return op(*full, *rest)

        got = vmap(run, in_dims=tuple(self.dims[i] for i in tensors))(*(self.values[i] for i in tensors))
        wanted = [op(*slice, *rest) for slice in self.slices]
        if isinstance(got, torch.Tensor):
            got, wanted = (got,), [(result,) for result in wanted]
        for place, result in enumerate(got):
            torch.testing.assert_close(result, torch.stack([each[place] for each in wanted]))


def normal(*shape: int) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for _ in range(SIZE)]


def excitabilities(shape: tuple[int, ...] | None) -> list[torch.Tensor | None]:
    return [None] * SIZE if shape is None else normal(*shape)


@pytest.mark.feature("torch.func.vmap of the layer's op, every combination of batched arguments")
@both_ways
@pytest.mark.parametrize("norm", FAMILY)
def test_forward(norm, joined):
    for shape, samples in [((), (4,)), ((1,), ()), ((OUTPUTS,), (2, 3)), (None, (0,))]:
        for x, w, b, e, pattern in EVERY_CHOICE:
            if not (x or w or b or pattern or (e and shape is not None)):
                continue
            arguments = Arguments()
            arguments.add(x, normal(*samples, INPUTS), dim=len(samples))
            arguments.add(w, normal(CONNECTIONS), dim=1)
            arguments.add(b, normal(OUTPUTS))
            arguments.add(e, excitabilities(shape), dim=-1 if shape else 0)
            arguments.pattern(pattern)
            arguments.check(ops.sparse_linear.default, *FAMILY[norm])


@pytest.mark.slow
@pytest.mark.feature("torch.func.vmap of the layer's backward op, every combination of batched arguments")
@both_ways
@pytest.mark.parametrize("norm", FAMILY)
def test_backward(norm, joined):
    masks = [[True] * 4, [True, False, False, False], [False, True, False, True], [False, False, True, False]]
    for mask, (shape, samples) in product(masks, [((), (4,)), ((OUTPUTS,), ()), (None, (2, 3))]):
        for g, x, w, e, pattern in EVERY_CHOICE:
            if not (g or x or w or pattern or (e and shape is not None)):
                continue
            arguments = Arguments()
            arguments.add(g, normal(*samples, OUTPUTS), dim=len(samples))
            arguments.add(x, normal(*samples, INPUTS))
            arguments.add(w, normal(CONNECTIONS))
            arguments.add(e, excitabilities(shape))
            arguments.pattern(pattern)
            arguments.check(ops.sparse_linear_backward.default, *FAMILY[norm], mask)


@both_ways
@pytest.mark.parametrize("norm", FAMILY)
def test_effective_weight_and_its_gradient(norm, joined):
    for shape, (g, w, e, pattern) in product([(), (1,), (OUTPUTS,), None], product([False, True], repeat=4)):
        forward, backward = Arguments(), Arguments()
        backward.add(g, normal(CONNECTIONS), dim=1)
        for arguments in (forward, backward):
            arguments.add(w, normal(CONNECTIONS))
            arguments.add(e, excitabilities(shape))
            arguments.pattern(pattern)
        if w or pattern or (e and shape is not None):
            forward.check(ops.effective_weight.default, *FAMILY[norm])
        if g or w or pattern or (e and shape is not None):
            for mask in ([True, True], [True, False], [False, True]):
                backward.check(ops.effective_weight_backward.default, *FAMILY[norm], mask)


@both_ways
def test_sampled_product(joined):
    for samples, (r, c, pattern) in product([(), (4,), (2, 3)], product([False, True], repeat=3)):
        if r or c or pattern:
            arguments = Arguments()
            arguments.add(r, normal(*samples, OUTPUTS))
            arguments.add(c, normal(*samples, INPUTS), dim=len(samples))
            arguments.pattern(pattern)
            arguments.check(ops.sampled_product.default)


@pytest.mark.feature("an ensemble under vmap trains: gradients of any order through the stacked parameters")
@both_ways
@pytest.mark.parametrize("norm", ["l0", "joint"])
def test_an_ensemble_is_differentiable_again(norm, joined):
    layers = [SparseLinear(4, 3, density=0.5, norm=norm, seed=0, dtype=torch.float64) for _ in range(2)]
    stacked, _ = stack_module_state(layers)
    names = list(stacked)
    values = [(stacked[name] + torch.randn_like(stacked[name])).detach().requires_grad_() for name in names]
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        return vmap(lambda x, values: functional_call(layers[0], dict(zip(names, values, strict=True)), (x,)))(
            x, list(values)
        )

    assert torch.autograd.gradcheck(run, (x, *values))
    assert torch.autograd.gradgradcheck(run, (x, *values))


def test_no_slices():
    layer = SparseLinear(INPUTS, OUTPUTS, nnz=CONNECTIONS, norm="joint")
    none = {name: value.detach().new_zeros(0, *value.shape) for name, value in layer.named_parameters()}
    x = torch.randn(4, INPUTS)
    assert vmap(lambda p: functional_call(layer, p, (x,)))(none).shape == (0, 4, OUTPUTS)
    gradients = vmap(grad(lambda p: functional_call(layer, p, (x,)).sum()))(none)
    assert {name: value.shape for name, value in gradients.items()} == {n: v.shape for n, v in none.items()}


def test_small_slices_are_joined_and_large_ones_are_not():
    calls = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is ops.sparse_linear.default:
                calls.append(args[1].shape[0])
            return func(*args, **(kwargs or {}))

    for samples, counts in ((2, [3 * CONNECTIONS]), (10_000, [CONNECTIONS] * 3)):
        layer, x = SparseLinear(INPUTS, OUTPUTS, nnz=CONNECTIONS), torch.randn(samples, INPUTS)
        weights = torch.randn(3, CONNECTIONS)
        calls.clear()
        with torch.no_grad(), Count():
            vmap(lambda w, layer=layer, x=x: functional_call(layer, {"weight": w}, (x,)))(weights)
        assert calls == counts
    assert not rules.joins(2**20, 2**12, 1, 10, "cpu")  # indices of the blocks must fit in int32
