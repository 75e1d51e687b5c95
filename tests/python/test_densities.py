"""How connections are shared out among layers, and layers that get another number of them."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import dendnorm

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
given = hypothesis.given


def erk(shapes: list[tuple[int, ...]], density: float, kernels: bool) -> list[float]:
    """Densities as RigL's paper says, with its loop: layers above 1 become dense and leave the sum, until none is."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [(sum(s) / math.prod(s)) if kernels else (s[0] + s[1]) / (s[0] * s[1]) for s in shapes]
    dense: set[int] = set()
    while True:
        wanted = density * sum(sizes) - sum(sizes[i] for i in dense)
        divisor = sum(raw[i] * sizes[i] for i in range(len(shapes)) if i not in dense)
        epsilon = wanted / divisor if divisor else 0.0
        if not any(epsilon * raw[i] > 1 for i in range(len(shapes)) if i not in dense):
            return [1.0 if i in dense else epsilon * raw[i] for i in range(len(shapes))]
        highest = max(raw[i] for i in range(len(shapes)) if i not in dense)
        dense |= {i for i in range(len(shapes)) if i not in dense and raw[i] == highest}


SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 300), st.integers(1, 300)),
        st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=7,
)


@pytest.mark.feature("density over layers: uniform, ER, ERK with the total preserved, or by name")
@given(shapes=SHAPES, density=st.floats(0.001, 1.0), kernels=st.booleans())
def test_er_and_erk_are_rigls_with_the_total_exact(shapes, density, kernels):
    named = {str(index): shape for index, shape in enumerate(shapes)}
    found = dendnorm.densities(named, density, "erk" if kernels else "er")
    sizes = [math.prod(shape) for shape in shapes]
    counts = [found[name] * size for name, size in zip(named, sizes, strict=True)]
    assert all(abs(count - round(count)) < 1e-6 for count in counts)
    assert sum(map(round, counts)) == round(density * sum(sizes))
    assert all(0 <= value <= 1 for value in found.values())
    for wanted, size, count in zip(erk(shapes, density, kernels), sizes, counts, strict=True):
        # The total is a whole number here and is not there; what is rounded off may fall to one layer.
        assert abs(count - wanted * size) <= 2


def test_uniform_and_epsilon():
    shapes = {"a": (100, 784), "b": (10, 100)}
    assert dendnorm.densities(shapes, 0.1) == {"a": 0.1, "b": 0.1}
    found = dendnorm.densities(shapes, distribution="er", epsilon=20)
    assert found["a"] == pytest.approx(20 * (784 + 100) / (784 * 100))  # Mocanu et al
    assert found["b"] == 1.0


def mlp() -> torch.nn.Sequential:
    torch.manual_seed(0)
    linear = torch.nn.Linear
    return torch.nn.Sequential(linear(60, 40), torch.nn.ReLU(), linear(40, 30), torch.nn.ReLU(), linear(30, 5))


def test_sparsify_shares_out():
    model = mlp()
    before = dendnorm.densities(model, 0.1, "erk", skip=["4"])
    assert set(before) == {"0", "2"}
    assert before["2"] > before["0"]
    dendnorm.sparsify(model, 0.1, distribution="erk", skip=["4"])
    assert {name: model.get_submodule(name).density for name in before} == before
    assert model[0].nnz + model[2].nnz == round(0.1 * (2400 + 1200))
    assert isinstance(model[4], torch.nn.Linear)

    model, other = mlp(), mlp()
    dendnorm.sparsify(model, {"0": 0.05, "[24]": 0.5})
    assert [model[index].density for index in (0, 2, 4)] == [0.05, 0.5, 0.5]
    dendnorm.sparsify(other, dendnorm.densities(other, epsilon=4, distribution="er"))
    assert other[0].nnz == 4 * 100
    assert other[4].nnz == 4 * 35


def test_a_module_in_two_places_has_one_density():
    shared = torch.nn.Linear(20, 20)
    model = torch.nn.Sequential(shared, torch.nn.ReLU(), shared, torch.nn.Linear(20, 4))
    assert set(dendnorm.densities(model, 0.5, "er")) == {"0", "3"}
    dendnorm.sparsify(model, {"0": 0.1, "3": 0.5})
    assert model[0] is model[2]
    assert model[0].nnz == 40


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: dendnorm.sparsify(m, 0.1, distribution="best"), "distribution must be one of"),
        (lambda m: dendnorm.sparsify(m, distribution="er"), "density must be a number"),
        (lambda m: dendnorm.sparsify(m, 1.5, distribution="erk"), r"density must be in \(0, 1\]"),
        (lambda m: dendnorm.sparsify(m, {"0": 0.1, "2": 0.1}), r"got none for \['4'\]"),
        (lambda m: dendnorm.sparsify(m, {"*": 0.1, "head": 0.1}), "density must name layers .*'head'"),
        (lambda m: dendnorm.sparsify(m, {"*": 0.1}, distribution="er"), "distribution must be left out"),
        (lambda m: dendnorm.sparsify(m, {"*": 0.0}), r"0: density must be in \(0, 1\]"),
        (lambda m: dendnorm.densities(m, 0.1, "er", epsilon=3), "epsilon must be given without density"),
        (lambda m: dendnorm.densities(m, epsilon=3), "epsilon must be given without density"),
        (lambda m: dendnorm.densities(m, distribution="er", epsilon=-1), "epsilon must be a positive number"),
        (lambda m: dendnorm.densities([3], 0.1), "model must be"),
        (lambda m: dendnorm.densities({"a": (3,)}, 0.1), "shape of 'a'"),
    ],
)
def test_bad_densities_are_named_and_nothing_changes(call, message):
    model = mlp()
    modules = list(model)
    with pytest.raises((TypeError, ValueError), match=message):
        call(model)
    assert list(model) == modules


# Another number of connections


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        dendnorm.SparseLinear(20, 16, density=0.4, norm="l0", seed=0),
        torch.nn.Tanh(),
        dendnorm.SparseLinear(16, 6, density=0.5, norm=None, seed=1),
    )


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()


def by_edge(layer: dendnorm.SparseLinear, values: torch.Tensor) -> dict:
    return dict(zip(zip(*(part.tolist() for part in layer.edges()), strict=True), values.tolist(), strict=True))


@pytest.mark.feature("another number of connections: resize moves values and any optimizer's state")
@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
])  # fmt: skip
@pytest.mark.parametrize("density", [0.15, 0.4, 0.75, 1.0])
def test_resize_moves_values_and_state_with_the_connections(make, density):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    layer, other = model[0], model[2]
    old_weight, kept = layer.weight, other.weight
    values, grads = by_edge(layer, layer.weight.detach()), by_edge(layer, layer.weight.grad)
    strength = by_edge(layer, layer.effective_weight().detach().abs())
    state = {key: by_edge(layer, value) if value.shape == old_weight.shape else copy.deepcopy(value)
             for key, value in optimizer.state[old_weight].items()}  # fmt: skip
    nnz = layer.nnz
    changed = dendnorm.resize(model, {"0": density}, optimizer, seed=3)
    wanted = round(density * 320)
    assert changed == ({} if wanted == nnz else {"0": (nnz, wanted)})
    assert layer.nnz == len(layer.weight) == wanted
    assert other.weight is kept
    now = by_edge(layer, layer.weight.detach())
    if wanted <= nnz:
        assert set(now) == set(sorted(values, key=lambda edge: strength[edge])[nnz - wanted :])
    else:
        assert set(values) < set(now)
    for edge, value in now.items():
        assert value == values.get(edge, 0.0)
    for edge, value in by_edge(layer, layer.weight.grad).items():
        assert value == grads.get(edge, 0.0)
    if wanted != nnz:
        assert old_weight not in optimizer.state
    for key, value in optimizer.state[layer.weight].items():
        if value.shape == layer.weight.shape:
            assert all(entry == state[key].get(edge, 0.0) for edge, entry in by_edge(layer, value).items())
        else:
            assert torch.equal(value, state[key])
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in model.parameters()}
    dense = layer.to_dense()
    x = torch.randn(5, 20)
    torch.testing.assert_close(layer(x), dense(x))  # both views of the pattern agree
    train(model, optimizer, 2)
    dendnorm.SET(model, optimizer, zeta=0.3).step()
    fresh = network()
    dendnorm.resize(fresh, {"0": density})
    fresh.load_state_dict(model.state_dict())


@pytest.mark.feature("gradual magnitude pruning: a cubic schedule of density and resize")
def test_gradual_pruning_follows_its_schedule():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewire = dendnorm.SET(model, optimizer, zeta=0.1)
    schedule = dendnorm.schedules.Cubic(0.5, steps=5, stop=0.1)
    for step in range(1, 7):
        train(model, optimizer, 2)
        rewire.step()
        dendnorm.resize(model, schedule(step), optimizer, seed=step)
        want = 1 - (0.9 + (0.5 - 0.9) * (1 - min(step, 5) / 5) ** 3)
        assert model[0].nnz == round(want * 320)
        assert model[2].nnz == round(want * 96)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_new_connections_are_uniform_and_start_as_asked():
    counts = np.zeros((6, 7))
    for seed in range(200):
        layer = dendnorm.SparseLinear(7, 6, nnz=12, seed=1)
        before = set(by_edge(layer, layer.weight))
        dendnorm.resize(layer, 22 / 42, start="normal", seed=seed)
        new = {edge: value for edge, value in by_edge(layer, layer.weight.detach()).items() if edge not in before}
        assert len(new) == 10 and 0 not in new.values()
        for edge in new:
            counts[edge] += 1
    taken = counts[counts > 0]
    assert len(taken) == 30
    assert abs(taken - 200 / 3).max() < 5 * math.sqrt(200 * 2 / 9)


def test_layers_that_share_a_weight_and_a_layer_used_twice():
    first = dendnorm.SparseLinear(8, 8, nnz=30, norm=None, seed=0)
    second = dendnorm.SparseLinear(8, 8, nnz=30, norm=None, seed=0)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second, first)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    assert dendnorm.resize(model, 0.25, optimizer) == {"0": (30, 16)}
    assert first.weight is second.weight
    assert first.pattern.perm is not second.pattern.perm
    assert torch.equal(first.to_dense().weight, second.to_dense().weight)
    dendnorm.SET(model, optimizer).step()


def test_to_nothing_is_refused_and_other_mistakes_are_named():
    model = network()
    model.append(torch.nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model[2:].parameters(), lr=0.1)
    tied = torch.nn.Sequential(model[0], torch.nn.Module())
    tied[1].register_parameter("again", model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cases = (
        (lambda: dendnorm.resize(model, 0.0), r"density must be in \(0, 1\]"),
        (lambda: dendnorm.resize(model, {"1": 0.5}), "density must name sparse layers.*'1'"),
        (lambda: dendnorm.resize(model, 0.3, optimizer), "layer '0': optimizer must hold"),
        (lambda: dendnorm.resize(model, 0.3, drop="cosine"), "needs nothing observed"),
        (lambda: dendnorm.resize(model, 0.3, drop="gradient"), r"layer '0': must have a gradient"),
        (lambda: dendnorm.resize(model, 0.3, start="ones"), "start must be"),
        (lambda: dendnorm.resize(model, 0.3, seed=-1), "seed must be"),
        (lambda: dendnorm.resize(torch.nn.ReLU(), 0.3), "model must hold a SparseLinear"),
        (lambda: dendnorm.resize({}, 0.3), "model must be"),
        (lambda: dendnorm.resize(tied, 0.3), r"1\.again must not be the weight"),
        (lambda: dendnorm.resize(dendnorm.SparseLinear(4, 4, nnz=4, device="meta"), 0.5), "meta"),
    )
    for call, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    computed = dendnorm.SparseLinear(4, 4, nnz=8)
    torch.nn.utils.parametrize.register_parametrization(computed, "weight", torch.nn.Tanh())
    with pytest.raises(ValueError, match="weight must be a Parameter of the layer"):
        dendnorm.resize(computed, 0.3)
    weights = [model[0].weight, model[2].weight]
    with torch.no_grad():
        model[2].weight[3] = float("nan")
    with pytest.raises(ValueError, match="layer '2'"):
        dendnorm.resize(model, 0.3)  # the first layer would do; nothing is written until all are planned
    assert model[0].weight is weights[0]
    assert model[2].weight is weights[1]
