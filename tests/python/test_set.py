"""Sparse evolutionary training: what goes, what comes, and that the optimizer's state stays with its connection."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import dendnorm

ops = torch.ops.dendnorm
Edge = tuple[int, int]


def edges_of(layer: dendnorm.SparseLinear) -> list[Edge]:
    row, col = layer.edges()
    return list(zip(row.tolist(), col.tolist(), strict=True))


def pairs(rows_cols) -> list[Edge]:
    row, col = rows_cols
    return list(zip(row.tolist(), col.tolist(), strict=True))


def assert_pattern_is_sound(layer: dendnorm.SparseLinear) -> None:
    """Both views: right type, pointers, sorted, in range, without duplicates, and agreeing with each other."""
    rows, cols, nnz = layer.out_features, layer.in_features, layer.nnz
    ccol, row, crow, col, perm = (tensor.numpy().astype(np.int64) for tensor in layer.pattern)
    assert all(tensor.dtype == torch.int32 for tensor in layer.pattern)
    for pointers, indices, segments, size in ((ccol, row, cols, rows), (crow, col, rows, cols)):
        assert len(pointers) == segments + 1
        assert pointers[0] == 0
        assert pointers[-1] == nnz == len(indices)
        assert (np.diff(pointers) >= 0).all()
        assert ((indices >= 0) & (indices < size)).all()
        keys = np.repeat(np.arange(segments), np.diff(pointers)) * size + indices
        assert (np.diff(keys) > 0).all()
    col_of = np.repeat(np.arange(cols), np.diff(ccol))
    row_of = np.repeat(np.arange(rows), np.diff(crow))
    np.testing.assert_array_equal(np.sort(perm), np.arange(nnz))
    np.testing.assert_array_equal(row[perm], row_of)
    np.testing.assert_array_equal(col_of[perm], col)


def identity(layer: dendnorm.SparseLinear) -> tuple:
    tensors = [layer.weight, *layer.pattern]
    return (id(layer.weight), layer.nnz, *((t.data_ptr(), tuple(t.shape), t.dtype) for t in tensors))


def round_half_even(zeta: float, nnz: int) -> int:
    return round(zeta * nnz)


def check_one_rewiring(layer: dendnorm.SparseLinear, rewire: dendnorm.SET, zeta: float) -> None:
    before, identity_before = edges_of(layer), identity(layer)
    values = dict(zip(before, layer.weight.detach().tolist(), strict=True))
    strength = layer.effective_weight().detach().abs().double().numpy()
    k = round_half_even(zeta, layer.nnz)
    weakest = np.argsort(strength, kind="stable")[:k]  # stable: of equals, the earlier position goes
    (report,) = list(rewire.step())
    after = edges_of(layer)
    removed, grown = pairs(report.removed), pairs(report.grown)
    assert (report.k, report.nnz) == (k, len(before))
    assert identity(layer) == identity_before
    assert_pattern_is_sound(layer)
    assert sorted(removed) == sorted(before[position] for position in weakest)
    assert len(set(grown)) == len(grown) == k
    stayed = set(before) - set(removed)
    assert not stayed & set(grown)
    assert set(after) == stayed | set(grown)
    now = dict(zip(after, layer.weight.detach().tolist(), strict=True))
    assert all(now[edge] == values[edge] for edge in stayed)
    assert all(math.isfinite(now[edge]) for edge in grown)
    assert layer.weight.requires_grad


NORMS = ["none", "l0", "l0-variable", "lp:2", "lp-variable:3.7", "weight_norm", "joint"]


@pytest.mark.parametrize("part", range(10))
def test_1000_rewirings_hold_every_invariant(part):
    # 10 parts of 10 layers of 10 rewirings in a row.
    rng = np.random.default_rng(part)
    for _ in range(10):
        rows, cols = (int(size) for size in rng.integers(1, 40, 2))
        nnz = int(rng.choice([1, rows * cols, max(1, rows * cols - 1), rng.integers(1, rows * cols + 1)]))
        zeta = float(rng.choice([0.05, 0.15, 0.3, 0.5, 0.9]))
        seed = int(rng.integers(2**31))
        dtype = [torch.float32, torch.float64][int(rng.integers(2))]
        layer = dendnorm.SparseLinear(cols, rows, nnz=nnz, norm=NORMS[rng.integers(len(NORMS))], seed=seed, dtype=dtype)
        rewire = dendnorm.SET(layer, None, zeta=zeta, seed=seed)
        for _ in range(10):
            check_one_rewiring(layer, rewire, zeta)
            with torch.no_grad():  # as training would, and with ties
                layer.weight.mul_(0.9).add_(0.1)
                layer.weight[torch.from_numpy(rng.random(nnz) < 0.2)] = float(rng.choice([0.0, 0.25]))


def test_excised_are_the_k_smallest_effective_weights_not_raw_values():
    # Row 0 has large values but many connections, row 1 small values and one: the effective order is the other way.
    crow, col = torch.tensor([0, 9, 10]), torch.tensor([*range(9), 0])
    layer = dendnorm.SparseLinear.from_csr(crow, col, torch.ones(10), shape=(2, 9), norm="l0")
    with torch.no_grad():
        row, _ = layer.edges()
        layer.weight.copy_(torch.where(row == 0, 2.0, 1.0))
    (report,) = list(dendnorm.SET(layer, None, zeta=0.9, seed=0).step())
    assert report.k == 9
    assert set(pairs(report.removed)) == {(0, j) for j in range(9)}


def test_ties_are_broken_by_position():
    layer = dendnorm.SparseLinear(20, 10, nnz=100, norm=None, seed=0)
    with torch.no_grad():
        layer.weight.fill_(-0.5)
    first = edges_of(layer)[:15]
    (report,) = list(dendnorm.SET(layer, None, zeta=0.15, seed=0).step())
    assert sorted(pairs(report.removed)) == sorted(first)


@pytest.mark.parametrize(("nnz", "expected"), [(1, 0), (2, 0), (6, 2), (10, 2), (14, 4), (30, 8)])
def test_k_is_rounded_half_to_even(nnz, expected):
    layer = dendnorm.SparseLinear(10, 10, nnz=nnz, seed=0)
    (report,) = list(dendnorm.SET(layer, None, zeta=0.25, seed=0).step())
    assert report.k == len(pairs(report.removed)) == len(pairs(report.grown)) == expected


def test_weakest_is_exact_with_ties_zeros_and_infinities():
    rng = np.random.default_rng(0)
    for dtype in (torch.float32, torch.float64):
        for _ in range(200):
            size = int(rng.integers(0, 200))
            choices = np.concatenate([rng.random(5), [0.0, -0.0, 1e-40, 1e20, np.inf]])
            score = torch.tensor(rng.choice(choices, size), dtype=dtype)
            k = int(rng.integers(0, size + 1))
            want = np.zeros(size, dtype=bool)
            want[np.argsort(score.numpy(), kind="stable")[:k]] = True
            np.testing.assert_array_equal(ops.weakest(score, k).numpy(), want)


# Where connections grow


def chi_square_z(statistic: float, degrees: int) -> float:
    """Wilson and Hilferty: the cube root of a chi-square value is nearly normal."""
    spread = 2 / (9 * degrees)
    return ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def test_grown_positions_are_uniform():
    layer = dendnorm.SparseLinear(12, 10, nnz=60, seed=1)
    ccol, row, *_ = layer.pattern
    occupied = {col * 10 + line for line, col in edges_of(layer)}
    empty = [key for key in range(120) if key not in occupied]
    for vary in range(3):  # the seed, the step and the layer
        counts, draws, k = np.zeros(120), 4000, 9
        for draw in range(draws):
            key = [5, 6, 7]
            key[vary] = draw
            keys = ops.empty_positions(ccol, row, 10, k, *key)
            assert (keys.diff() > 0).all()
            counts[keys.numpy()] += 1
        assert counts.sum() == counts[empty].sum() == draws * k
        # Without replacement the counts of one draw repel each other: the usual statistic shrinks by (E - k) / (E - 1).
        size = len(empty)
        expected = draws * k / size
        statistic = ((counts[empty] - expected) ** 2 / expected).sum() * (size - 1) / (size - k)
        assert abs(chi_square_z(statistic, size - 1)) < 4.5


def test_grown_sets_are_uniform_not_only_single_positions():
    mask_empty = [1, 4, 6, 7, 9, 14, 17, 19]  # keys of a 4 x 5 layer
    occupied = [key for key in range(20) if key not in mask_empty]
    ccol = torch.tensor([sum(key < 4 * j for key in occupied) for j in range(6)], dtype=torch.int32)
    row = torch.tensor([key % 4 for key in occupied], dtype=torch.int32)
    counts: dict[tuple, int] = {}
    draws = 56 * 150
    for step in range(draws):
        chosen = tuple(ops.empty_positions(ccol, row, 4, 3, 11, step, 0).tolist())
        assert set(chosen) <= set(mask_empty)
        counts[chosen] = counts.get(chosen, 0) + 1
    assert len(counts) == 56
    statistic = sum((count - 150) ** 2 / 150 for count in counts.values())
    assert abs(chi_square_z(statistic, 55)) < 4.5


def test_rewired_positions_are_uniform_over_seeds():
    layer = dendnorm.SparseLinear(10, 8, nnz=40, seed=2)
    counts, runs = np.zeros((8, 10)), 1500
    saved = copy.deepcopy(layer.state_dict())
    for seed in range(runs):
        layer.load_state_dict(saved)
        (report,) = list(dendnorm.SET(layer, None, zeta=0.15, seed=seed).step())
        for edge in pairs(report.grown):
            counts[edge] += 1
    k, size = 6, 80 - 40 + 6
    reached = counts[counts > 0]
    assert len(reached) == size
    expected = runs * k / size
    statistic = ((reached - expected) ** 2 / expected).sum() * (size - 1) / (size - k)
    assert abs(chi_square_z(statistic, size - 1)) < 4.5


@pytest.mark.parametrize("start", ["normal", "matched"])
def test_new_values_are_normal_and_differ_between_steps(start):
    layer = dendnorm.SparseLinear(300, 200, density=0.5, norm=None, seed=0)
    with torch.no_grad():
        layer.weight.mul_(7)
    rewire = dendnorm.SET(layer, None, zeta=0.5, seed=0, grow=dendnorm.grow.Random(start=start))
    drawn = []
    for _ in range(2):
        spread = layer.weight.square().mean().sqrt().item() if start == "matched" else 1.0
        (report,) = list(rewire.step())
        now = dict(zip(edges_of(layer), layer.weight.detach().tolist(), strict=True))
        drawn.append(np.array([now[edge] for edge in pairs(report.grown)]) / spread)
    assert not np.array_equal(drawn[0], drawn[1])
    for values in drawn:
        n = len(values)
        assert abs(values.mean()) * math.sqrt(n) < 4.5
        assert abs(values.var() - 1) / math.sqrt(2 / n) < 4.5
        assert abs((np.abs(values) < 0.6744897501960817).mean() - 0.5) * 2 * math.sqrt(n) < 4.5


# The optimizer's state


class Exotic(torch.optim.Optimizer):
    """From outside torch.optim: two float states, one of integers, one of another shape, and one that is no tensor."""

    def __init__(self, params, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["velocity"] = torch.zeros_like(param)
                    state["widest"] = torch.zeros_like(param, dtype=torch.float64)
                    state["age"] = torch.zeros_like(param, dtype=torch.int64)
                    state["norms"] = torch.zeros(3)
                    state["calls"] = 0
                state["calls"] += 1
                state["age"] += 1 + torch.arange(param.numel()).reshape(param.shape)
                state["norms"][state["calls"] % 3] = param.grad.norm()
                state["velocity"].mul_(0.9).add_(param.grad)
                state["widest"].copy_(torch.maximum(state["widest"], param.grad.abs().double()))
                param.sub_(state["velocity"], alpha=group["lr"])


OPTIMIZERS = {
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "exotic": Exotic,
}


def network(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        dendnorm.SparseLinear(20, 16, density=0.3, norm="l0", seed=seed),
        torch.nn.Sigmoid(),
        dendnorm.SparseLinear(16, 12, density=0.4, norm="joint", seed=seed + 1),
        torch.nn.Sigmoid(),
        torch.nn.Linear(12, 4),
    )


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(10, 20, generator=generator)
        y = torch.randint(4, (10,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def sparse_layers(model: torch.nn.Module) -> list[dendnorm.SparseLinear]:
    return [module for module in model.modules() if isinstance(module, dendnorm.SparseLinear)]


@pytest.mark.feature("the state of every torch optimizer moves with the connections")
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizer_state_follows_its_connection(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=4)
    for round_ in range(3):
        train(model, optimizer, 3, round_)
        layers = sparse_layers(model)
        edges = [edges_of(layer) for layer in layers]
        state = {param: copy.deepcopy(dict(optimizer.state[param])) for param in model.parameters()}
        objects = {param: {key: id(value) for key, value in optimizer.state[param].items()} for param in state}
        reports = list(rewire.step())
        assert len(reports) == 2
        for layer, old_edges, report in zip(layers, edges, reports, strict=True):
            new_edges, grown = edges_of(layer), set(pairs(report.grown))
            carried = 0
            for key, old in state.pop(layer.weight).items():
                new = optimizer.state[layer.weight][key]
                if not (torch.is_tensor(old) and old.shape == layer.weight.shape):
                    assert torch.equal(new, old) if torch.is_tensor(old) else new == old
                    continue
                carried += 1
                assert new.dtype == old.dtype
                was = dict(zip(old_edges, old.tolist(), strict=True))
                fresh = torch.tensor(0.1).item() if (name, key) == ("adagrad", "sum") else 0
                for edge, value in zip(new_edges, new.tolist(), strict=True):
                    assert value == (fresh if edge in grown else was[edge]), (key, edge)
            assert carried >= 1
            assert {k: id(v) for k, v in optimizer.state[layer.weight].items() if torch.is_tensor(v)} == {
                k: objects[layer.weight][k] for k, v in optimizer.state[layer.weight].items() if torch.is_tensor(v)
            }
        for param, old_state in state.items():  # biases, excitabilities and the dense head are left alone
            for key, old in old_state.items():
                new = optimizer.state[param][key]
                assert torch.equal(new, old) if torch.is_tensor(old) else new == old
    train(model, optimizer, 2)


def test_rewiring_before_the_first_optimizer_step():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    dendnorm.SET(model, optimizer, zeta=0.3, seed=4).step()
    train(model, optimizer, 2)


# Seeds, hooks, resuming


def test_same_seed_same_edges_whatever_the_torch_seed():
    runs = []
    for torch_seed in (1, 2):
        model = network(3)
        torch.manual_seed(torch_seed)
        rewire = dendnorm.SET(model, None, zeta=0.2, seed=9)
        for _ in range(4):
            rewire.step()
        runs.append(model.state_dict())
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_other_seeds_steps_and_layers_give_other_edges():
    layer = dendnorm.SparseLinear(50, 40, density=0.2, seed=0)
    ccol, row, *_ = layer.pattern
    drawn = {tuple(ops.empty_positions(ccol, row, 40, 60, *key).tolist()) for key in np.ndindex(3, 3, 3)}
    assert len(drawn) == 27
    again = [ops.empty_positions(ccol, row, 40, 60, 1, 2, 0) for _ in range(2)]
    assert torch.equal(*again)


def test_every_rewires_as_a_hook_of_the_optimizer():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=4, every=3)
    changed = []
    for step in range(1, 10):
        before = [edges_of(layer) for layer in sparse_layers(model)]
        train(model, optimizer, 1, step)
        if before != [edges_of(layer) for layer in sparse_layers(model)]:
            changed.append(step)
    assert changed == [3, 6, 9]
    del rewire


def test_hook_equals_calling_step_by_hand():
    states = []
    for every in (2, None):
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=4, every=every)
        for step in range(1, 7):
            train(model, optimizer, 1, step)
            if every is None and step % 2 == 0:
                rewire.step()
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("every", [None, 4])
def test_state_dict_round_trip_goes_on_with_the_same_edges(every):
    def fresh():
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        return model, optimizer, dendnorm.SET(model, optimizer, zeta=0.3, seed=4, every=every)

    def go_on(model, optimizer, rewire, steps) -> None:
        for step in steps:
            train(model, optimizer, 1, step)
            if every is None:
                rewire.step()

    straight = fresh()
    go_on(*straight, range(6))
    saved = [copy.deepcopy(part.state_dict()) for part in straight]
    go_on(*straight, range(6, 14))
    resumed = fresh()
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    go_on(*resumed, range(6, 14))
    for name, value in straight[0].state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[name]), name


# Full, empty, nearly full, shared


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("zeta", [0.15, 0.5, 0.99])
def test_full_and_nearly_full_layers(missing, zeta):
    layer = dendnorm.SparseLinear(9, 7, nnz=63 - missing, seed=0)
    rewire = dendnorm.SET(layer, None, zeta=zeta, seed=1)
    for _ in range(10):
        check_one_rewiring(layer, rewire, zeta)


def test_empty_layer_is_left_alone():
    nothing = torch.zeros(0, dtype=torch.int64)
    crow = torch.zeros(5, dtype=torch.int64)
    layer = dendnorm.SparseLinear.from_csr(crow, nothing, torch.zeros(0), shape=(4, 6))
    rewire = dendnorm.SET(layer, None, zeta=0.5, seed=1)
    for _ in range(3):
        check_one_rewiring(layer, rewire, 0.5)
    assert layer(torch.ones(2, 6)).shape == (2, 4)


def test_a_layer_used_twice_is_rewired_once():
    layer = dendnorm.SparseLinear(8, 8, density=0.5, seed=0)
    model = torch.nn.Sequential(layer, torch.nn.Sigmoid(), layer)
    assert len(list(dendnorm.SET(model, None, zeta=0.3, seed=0).step())) == 1
    assert_pattern_is_sound(layer)


def test_report_names_the_layers():
    reports = list(dendnorm.SET(network(), None, zeta=0.3, seed=0).step())
    assert [report.name for report in reports] == ["0", "2"]


def test_gradients_after_rewiring_belong_to_the_new_edges():
    layer = dendnorm.SparseLinear(12, 9, density=0.4, norm=None, seed=0, dtype=torch.float64)
    rewire = dendnorm.SET(layer, None, zeta=0.5, seed=0)
    x, dy = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    for _ in range(3):
        rewire.step()
        layer.zero_grad()
        layer(x).backward(dy)
        row, col = layer.edges()
        torch.testing.assert_close(layer.weight.grad, (dy.T @ x)[row.long(), col.long()])
