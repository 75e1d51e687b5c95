"""The rules of rewiring, each against its paper's formula on dense numpy arrays, and everything that feeds them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import dendnorm
from dendnorm import drop, grow, schedules

Mask = np.ndarray


def dense(layer: dendnorm.SparseLinear, values: torch.Tensor | None = None) -> tuple[np.ndarray, Mask]:
    """Effective weights (or other values, by connection) as a dense float64 array, and where connections are."""
    row, col = (index.numpy() for index in layer.edges())
    full, mask = (
        np.zeros((layer.out_features, layer.in_features)),
        np.zeros((layer.out_features, layer.in_features), bool),
    )
    full[row, col] = (layer.effective_weight() if values is None else values).detach().double().numpy()
    mask[row, col] = True
    return full, mask


def positions(edges) -> set[tuple[int, int]]:
    return set(zip(*(index.tolist() for index in edges), strict=True))


def lowest(score: np.ndarray, among: Mask, k: int) -> set[tuple[int, int]]:
    """The k positions of the lowest score, of equals the earlier by column, then by row."""
    rows, cols = np.nonzero(among)
    order = np.lexsort((rows, cols, score[rows, cols]))[:k]
    return set(zip(rows[order].tolist(), cols[order].tolist(), strict=True))


class Net(torch.nn.Module):
    def __init__(self, norm: str | None = "l0", dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = dendnorm.SparseLinear(13, 11, density=0.3, norm=norm, seed=seed, dtype=dtype)
        self.second = dendnorm.SparseLinear(11, 7, density=0.4, norm=norm, seed=seed + 1, dtype=dtype)
        self.head = torch.nn.Linear(7, 3, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))

    @property
    def layers(self) -> list[dendnorm.SparseLinear]:
        return [self.first, self.second]


def loss_of(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - torch.linspace(-1, 1, 3, dtype=x.dtype)).square().mean()


def batch(seed: int = 0, size: int = 9, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(
        size, 13, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def dense_gradients(model: Net, *batches: torch.Tensor) -> list[np.ndarray]:
    """dC/dW of both layers at every position, from a dense network with autograd; summed over batches."""
    totals = [np.zeros((layer.out_features, layer.in_features)) for layer in model.layers]
    for x in batches:
        first, second = (layer.to_dense().weight.detach().clone().requires_grad_() for layer in model.layers)
        hidden = torch.tanh(torch.nn.functional.linear(x, first, model.first.bias))
        hidden = torch.tanh(torch.nn.functional.linear(hidden, second, model.second.bias))
        loss = (model.head(hidden) - torch.linspace(-1, 1, 3, dtype=x.dtype)).square().mean()
        for total, gradient in zip(totals, torch.autograd.grad(loss, [first, second]), strict=True):
            total += gradient.double().numpy()
    return totals


NORMS = [None, "l0", "lp:2", "joint"]


# What goes


@pytest.mark.feature('rewiring: sign-split excision as in Mocanu et al 2018 (drop="sign")')
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("zeta", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_sign_split_takes_the_fraction_of_each_sign(norm, zeta):
    for seed, shift in itertools.product(range(4), (-2.0, -0.3, 0.0, 0.8, 2.5)):
        layer = dendnorm.SparseLinear(17, 12, density=0.35, norm=norm, seed=seed, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.add_(shift)
            layer.weight[seed::9] = 0.5  # ties
        weight, mask = dense(layer)
        (report,) = dendnorm.SET(layer, None, zeta=zeta, drop="sign").step()
        positive, negative = mask & (weight >= 0), mask & (weight < 0)
        removed = positions(report.removed)
        ups, downs = (sum(bool(sign[edge]) for edge in removed) for sign in (positive, negative))
        assert ups + downs == report.k == round(zeta * layer.nnz)
        assert abs(ups - zeta * positive.sum()) <= 0.5
        assert abs(downs - zeta * negative.sum()) <= 1
        assert removed == lowest(weight, positive, ups) | lowest(-weight, negative, downs)


@pytest.mark.parametrize("zeta", [0.15, 0.5, 0.85])
def test_sign_split_counts_are_never_out_of_range(zeta):
    for positive, negative in itertools.product(range(8), repeat=2):
        if positive + negative == 0:
            continue
        values = torch.tensor([1.0] * positive + [-1.0] * negative) * torch.arange(1, positive + negative + 1)
        crow = torch.tensor([0, positive + negative])
        layer = dendnorm.SparseLinear.from_csr(
            crow, torch.arange(positive + negative), values, shape=(1, 20), norm=None
        )
        (report,) = dendnorm.SET(layer, None, zeta=zeta, drop=drop.SignSplit(), seed=0).step()
        ups = sum(col < positive for _, col in positions(report.removed))
        assert ups == min(max(round(zeta * positive), report.k - negative), positive)


def test_a_weight_of_0_goes_with_the_positive_ones():
    values = torch.tensor([-3.0, -2.0, -1.0, -0.0, 0.0, 5.0, 6.0, 7.0])
    layer = dendnorm.SparseLinear.from_csr(torch.tensor([0, 8]), torch.arange(8), values, shape=(1, 30), norm=None)
    (report,) = dendnorm.SET(layer, None, zeta=0.5, drop="sign").step()
    assert positions(report.removed) == {(0, 3), (0, 4), (0, 1), (0, 2)}


@pytest.mark.feature('rewiring: excision by gradient or sensitivity (drop="gradient", "sensitivity")')
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["gradient", "sensitivity"])
def test_gradient_and_sensitivity(norm, name):
    model = Net(norm)
    loss_of(model, batch()).backward()
    wanted = []
    for layer in model.layers:
        gradient, mask = dense(layer, layer.weight.grad)
        value, _ = dense(layer, layer.weight)
        score = np.abs(gradient if name == "gradient" else value * gradient)
        wanted.append(lowest(score, mask, round(0.3 * layer.nnz)))
    report = dendnorm.SET(model, None, zeta=0.3, drop=name).step()
    assert [positions(layer.removed) for layer in report] == wanted


def test_sensitivity_is_the_change_of_the_loss_to_first_order():
    model = Net("l0")
    loss = loss_of(model, batch())
    loss.backward()
    turn_score = (model.first.weight * model.first.weight.grad).abs().detach()
    step = 1e-6
    for position in range(0, model.first.nnz, 5):
        weight = model.first.weight.detach().clone()
        with torch.no_grad():
            model.first.weight[position] *= 1 - step
            change = (loss_of(model, batch()) - loss) / step
            model.first.weight.copy_(weight)
        assert abs(change) == pytest.approx(float(turn_score[position]), rel=1e-3, abs=1e-7)


def test_a_missing_gradient_is_named():
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"layer 'first'.*weight\.grad.*None"):
        dendnorm.SET(model, None, drop="gradient").step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# What comes: RigL


@pytest.mark.feature('rewiring: RigL, growth by the largest dense gradient (grow="gradient")')
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_rigl_is_its_paper_on_a_dense_network(norm, block):
    for seed in range(3):
        model = Net(norm, seed=seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=seed, grow=grow.Gradient(block=block))
        gradients = dense_gradients(model, batch(seed))
        weights = [dense(layer) for layer in model.layers]
        rewire.observe()
        loss_of(model, batch(seed)).backward()
        optimizer.step()
        report = rewire.step()
        for layer, came, gradient, (weight, mask) in zip(model.layers, report, gradients, weights, strict=True):
            k = round(0.3 * mask.sum())
            gone = lowest(np.abs(weight), mask, k)
            left = mask.copy()
            left[tuple(np.array(sorted(gone)).T)] = False
            assert positions(came.removed) == gone
            assert positions(came.grown) == lowest(-np.abs(gradient), ~left, k)
            values, _ = dense(layer, layer.weight)
            buffers, _ = dense(layer, optimizer.state[layer.weight]["momentum_buffer"])
            left_in_row = left.sum(1)
            for row, col in positions(came.grown):
                # A neuron that has nothing else would never learn from 0 where its values' length divides them.
                assert (values[row, col] == 0) == (layer.norm.b == 0 or left_in_row[row] > 0)
                assert buffers[row, col] == 0


UNDIRECTED = {
    "RigL": lambda layer, optimizer: dendnorm.RigL(layer, optimizer, zeta=0.4, every=None),
    "SET": lambda layer, optimizer: dendnorm.SET(layer, optimizer, zeta=0.4, grow=grow.Random(start="zero")),
    "resize": None,
}


@pytest.mark.feature("growth at 0 under a norm that divides by the length of v: no neuron is left without a direction")
@pytest.mark.parametrize("norm", ["l0", "weight_norm", "joint", "lp:1", "lp-variable:3"])
@pytest.mark.parametrize("act", UNDIRECTED)
def test_no_neuron_has_connections_and_nothing_but_zeros(norm, act):
    layer = dendnorm.SparseLinear(20, 10, nnz=40, norm=norm, seed=1)
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    x, target = (torch.randn(64, size, generator=generator) for size in (20, 10))
    target[:, 4] += 5 * x[:, :5].sum(1)
    with torch.no_grad():
        layer.weight[layer.edges()[0] == 4] = 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02, momentum=0.9)
    make = UNDIRECTED[act]
    rewire = make(layer, optimizer) if make else None
    for turn in range(4):
        if rewire is not None:
            rewire.observe()
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
        before = layer.weight.detach().clone()
        if rewire is None:
            dendnorm.resize(layer, 0.25 + 0.1 * turn, optimizer, seed=turn)
        else:
            rewire.step()
        row = layer.edges()[0]
        length = torch.zeros(10).index_add_(0, row, layer.weight.detach().abs())
        count = torch.bincount(row, minlength=10)
        if layer.norm.b == 0:
            continue
        assert (length[count > 0] > 0).all()
        assert layer.weight.detach().abs().max() <= 5 * before.std() + before.abs().max()
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        reached = torch.zeros(10).index_add_(0, row, layer.weight.grad.abs())
        assert (reached[count > 1] > 0).all()  # of one connection alone only the sign counts, and e


def test_a_layer_of_zeros_grows_with_the_values_of_a_fresh_one():
    layer = dendnorm.SparseLinear(20, 10, nnz=40, norm="weight_norm", seed=1)
    with torch.no_grad():
        layer.weight.zero_()
    dendnorm.SET(layer, None, zeta=1.0, grow=grow.Random(start="zero")).step()
    assert 0.5 / 2 < layer.weight.std() < 2 / 2  # N(0, 1 / 4): four connections in the mean


def test_rigl_sums_over_accumulated_batches_and_forgets_earlier_steps():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, grow="gradient")
    rewire.observe()
    for seed in (5, 6):  # of these nothing may be left
        optimizer.zero_grad()
        loss_of(model, batch(seed)).backward()
        optimizer.step()
    gradients = dense_gradients(model, batch(7), batch(8))
    weights = [dense(layer) for layer in model.layers]
    optimizer.zero_grad()
    for seed in (7, 8):
        loss_of(model, batch(seed)).backward()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    report = rewire.step()
    for came, gradient, (weight, mask) in zip(report, gradients, weights, strict=True):
        left = mask.copy()
        left[tuple(np.array(sorted(lowest(np.abs(weight), mask, came.k))).T)] = False
        assert positions(came.grown) == lowest(-np.abs(gradient), ~left, came.k)


def test_ties_of_the_gradient_go_by_position():
    layer = dendnorm.SparseLinear(6, 5, nnz=10, norm=None, seed=0)
    _, mask = dense(layer)
    rewire = dendnorm.SET(layer, None, zeta=0.5, grow=grow.Gradient(block=1))
    with rewire.observe():
        layer(torch.ones(2, 6)).sum().backward()  # the same gradient everywhere
    weight, _ = dense(layer)
    (report,) = rewire.step()
    left = mask.copy()
    left[tuple(np.array(sorted(lowest(np.abs(weight), mask, 5))).T)] = False
    assert positions(report.grown) == lowest(np.zeros((5, 6)), ~left, 5)


def test_a_neuron_without_connections_can_win_some():
    crow = torch.tensor([0, 0, 6])
    layer = dendnorm.SparseLinear.from_csr(crow, torch.arange(6), torch.arange(1.0, 7.0), shape=(2, 8), norm="l0")
    rewire = dendnorm.SET(layer, None, zeta=0.5, grow="gradient")
    with rewire.observe():
        (layer(torch.arange(1.0, 9.0)[None]) * torch.tensor([100.0, 1.0])).sum().backward()
    (report,) = rewire.step()
    assert positions(report.grown) == {(0, 5), (0, 6), (0, 7)}
    assert layer.in_degrees().tolist() == [3, 3]


def test_a_layer_used_twice_and_layers_that_share_a_weight_are_observed_together():
    layer = dendnorm.SparseLinear(6, 6, nnz=12, norm=None, seed=0, dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64)
    dense_weight = layer.to_dense().weight.detach().requires_grad_()
    inner = torch.nn.functional.linear(x, dense_weight, layer.bias)
    torch.nn.functional.linear(torch.tanh(inner), dense_weight, layer.bias).square().sum().backward()
    weight, mask = dense(layer)
    rewire = dendnorm.SET(torch.nn.Sequential(layer, torch.nn.Tanh(), layer), None, zeta=0.5, grow="gradient")
    with rewire.observe():
        rewire.model(x).square().sum().backward()
    (report,) = rewire.step()
    left = mask.copy()
    left[tuple(np.array(sorted(lowest(np.abs(weight), mask, 6))).T)] = False
    assert positions(report.grown) == lowest(-np.abs(dense_weight.grad.numpy()), ~left, 6)


def test_every_observes_the_last_batch_by_itself():
    runs = []
    for every in (3, None):
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=1, every=every, grow="gradient")
        for step in range(9):
            if every is None and step % 3 == 2:
                rewire.observe()
            optimizer.zero_grad()
            loss_of(model, batch(step)).backward()
            optimizer.step()
            if every is None and step % 3 == 2:
                rewire.step()
            assert bool(model.first._forward_hooks) == (every == 3 and step % 3 == 1)
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][name], value) for name, value in runs[1].items())


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_rigl_run_goes_on_bit_for_bit(every, tmp_path):
    pytest.importorskip("safetensors")

    def fresh(seed: int) -> tuple:
        model = Net(seed=seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        zeta = schedules.Cosine(0.4, steps=6)
        return (
            model,
            optimizer,
            dendnorm.SET(model, optimizer, zeta=zeta, seed=1, every=every, grow="gradient", drop="sign"),
        )

    def go_on(model, optimizer, _, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            loss_of(model, batch(step)).backward()
            optimizer.step()

    straight = fresh(0)
    go_on(*straight, range(5))  # with every=3 the next step ends in a rewiring
    dendnorm.save(tmp_path / "a.safetensors", *straight)
    go_on(*straight, range(5, 14))
    resumed = fresh(3)
    dendnorm.load(tmp_path / "a.safetensors", *resumed)
    go_on(*resumed, range(5, 14))
    for name, value in straight[0].state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[name]), name
    assert resumed[2].state_dict() == straight[2].state_dict()


def test_what_was_not_observed_is_named_and_nothing_changes():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for kwargs, word in (
        ({"grow": "gradient"}, "backward"),
        ({"grow": "cosine"}, "forward"),
        ({"drop": "cosine"}, "forward"),
    ):
        rewire = dendnorm.SET(model, optimizer, **kwargs)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=rf"layer 'first': must have been observed in a .*{word}.*observe\(\)"):
            rewire.step()
        with rewire.observe(), torch.no_grad():
            model(batch())
        if word == "backward":  # a forward pass alone is not enough
            with pytest.raises(ValueError, match="must have been observed"):
                rewire.step()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        rewire.remove()
    assert not any(module._forward_hooks for module in model.modules())


def test_an_observation_is_used_once_and_ends_with_its_block():
    model = Net()
    rewire = dendnorm.SET(model, None, zeta=0.3, grow="gradient")
    with rewire.observe():
        loss_of(model, batch()).backward()
    assert not model.first._forward_hooks
    rewire.step()
    with pytest.raises(ValueError, match="must have been observed"):
        rewire.step()
    rewire.observe()
    assert model.first._forward_hooks
    rewire.observe()
    assert len(model.first._forward_hooks) == 1
    rewire.remove()
    assert not model.first._forward_hooks


def test_inputs_may_be_overwritten_after_the_batch():
    states = []
    for overwrite in (False, True):
        model, x = Net(), batch()
        rewire = dendnorm.SET(model, None, zeta=0.3, grow="gradient")
        with rewire.observe():
            loss_of(model, x).backward()
        if overwrite:
            x.fill_(1e3)
        rewire.step()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_a_batch_that_a_scaler_skips_is_left_out():
    states = []
    for broken in (False, True):
        model = Net()
        rewire = dendnorm.SET(model, None, zeta=0.3, grow="gradient")
        with rewire.observe():
            if broken:
                (loss_of(model, batch(1)) * math.inf).backward()
            loss_of(model, batch()).backward()
        rewire.step()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_activations_are_observed(dtype):
    layer = dendnorm.SparseLinear(20, 15, density=0.2, seed=0)
    rewire = dendnorm.SET(layer, None, zeta=0.3, grow="gradient", drop=drop.Cosine())
    x = torch.randn(3, 4, 20).to(dtype)
    with rewire.observe():
        layer(x).float().square().sum().backward()
    (report,) = rewire.step()
    assert len(positions(report.grown)) == report.k == 18


def test_memory_is_bounded_by_the_block():
    layer = dendnorm.SparseLinear(1500, 1000, density=0.002, seed=0)
    rewire = dendnorm.SET(layer, None, zeta=0.3, grow=grow.Gradient(block=20_000))
    with rewire.observe():
        layer(torch.randn(2, 1500)).square().sum().backward()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        rewire.step()
    assert 20_000 <= largest <= 20_000 + layer.nnz  # not the 1,500,000 of the whole


# Cosine similarity


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(y, axis=0)[:, None] * np.linalg.norm(x, axis=0)[None]
    return np.divide(y.T @ x, lengths, out=np.zeros_like(lengths), where=lengths > 0)


@pytest.mark.feature('rewiring: cosine similarity of activations, Pieterse and Mocanu 2019 (drop, grow="cosine")')
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("block", [1, 30, 1 << 22])
def test_cosine_rules_are_the_dense_cosines(absolute, block):
    for seed in range(3):
        model = Net("weight_norm", seed=seed)
        x = batch(seed, 20)
        x[:, 3] = 0  # a silent input
        settings = {"activation": torch.tanh, "absolute": absolute}
        rules = {"drop": drop.Cosine(**settings), "grow": grow.Cosine(**settings, block=block)}
        rewire = dendnorm.SET(model, None, zeta=0.3, **rules)
        with torch.no_grad():
            hidden = torch.tanh(model.first(x))
            pairs = [(x, hidden), (hidden, torch.tanh(model.second(hidden)))]
            with rewire.observe():  # over several passes
                model(x[:7]), model(x[7:])
        masks = [dense(layer)[1] for layer in model.layers]
        report = rewire.step()
        for came, (before, after), mask in zip(report, pairs, masks, strict=True):
            similarity = cosines(before.numpy(), after.numpy())
            similarity = np.abs(similarity) if absolute else similarity
            similarity = similarity.round(12)  # ties of the silent input stay ties
            gone = positions(came.removed)
            assert gone == lowest(similarity, mask, came.k)
            left = mask.copy()
            left[tuple(np.array(sorted(gone)).T)] = False
            assert positions(came.grown) == lowest(-similarity, ~left, came.k)


@pytest.mark.parametrize(
    ("drops", "grows"), list(itertools.product(sorted(drop.DROPS.named), sorted(grow.GROWS.named)))
)
def test_every_rule_goes_with_every_other(drops, grows):
    model = Net("joint", dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewire = dendnorm.SET(model, optimizer, zeta=0.25, drop=drops, grow=grows, every=2)
    for step in range(8):
        before = [positions(layer.edges()) for layer in model.layers]
        optimizer.zero_grad()
        loss_of(model, batch(step, dtype=torch.float32)).backward()
        optimizer.step()
        if step % 2:
            for layer, old, report in zip(model.layers, before, rewire.report, strict=True):
                removed, grown = positions(report.removed), positions(report.grown)
                assert removed <= old
                assert len(removed) == len(grown) == report.k == round(0.25 * layer.nnz)
                assert not (old - removed) & grown
                assert positions(layer.edges()) == old - removed | grown
    assert rewire.report.step == 4
    assert all(torch.isfinite(layer.weight).all() for layer in model.layers)


@pytest.mark.parametrize("name", ["random", "gradient", "cosine"])
@pytest.mark.parametrize("norm", [None, "l0", "weight_norm", "joint"])
def test_new_values_start_as_the_rule_says(name, norm):
    zero = name == "gradient" or norm in (None, "l0")
    for given in (None, "normal", "matched", "zero"):
        rule = grow.resolve(name) if given is None else type(grow.resolve(name))(start=given)
        layer = dendnorm.SparseLinear(30, 20, density=0.2, norm=norm, seed=0)
        rewire = dendnorm.SET(layer, None, zeta=0.5, grow=rule)
        with rewire.observe():
            layer(torch.randn(4, 30)).square().sum().backward()
        (report,) = rewire.step()
        values, _ = dense(layer, layer.weight)
        new = np.array([values[edge] for edge in positions(report.grown)])
        assert (new == 0).all() if given == "zero" or (given is None and zero) else len(np.unique(new)) == report.k


@pytest.mark.parametrize("norm", ["l0", "weight_norm", "joint", "lp-variable:3"])
def test_a_neuron_that_lost_all_connections_learns_again_with_new_ones(norm):
    tried = 0
    for seed in range(8):
        crow, col = torch.tensor([0, 3, 6]), torch.tensor([0, 2, 4, 1, 3, 5])
        values = torch.tensor([0.01, 0.02, 0.03, 1.0, 2.0, 3.0])
        layer = dendnorm.SparseLinear.from_csr(crow, col, values, shape=(2, 6), norm=norm)
        dendnorm.SET(layer, None, zeta=0.5, seed=seed).step()  # the first neuron loses all three
        layer(torch.arange(1.0, 7.0)[None]).sum().backward()
        first = layer.weight.grad[layer.edges()[0] == 0]
        if len(first) > 1:  # with a single one w = e, whatever v is, if b = 1
            assert (first != 0).any()
            tried += 1
    assert tried > 2


# As on a GPU: faults in values are noted, and nothing waits for them


@pytest.mark.parametrize("drops", sorted(drop.DROPS.named))
@pytest.mark.parametrize("grows", sorted(grow.GROWS.named))
def test_rules_choose_the_same_where_faults_are_noted_and_note_theirs(drops, grows, monkeypatch):
    from dendnorm.rewiring import set as rewiring

    def run(deferred: bool, fault: bool) -> tuple:
        monkeypatch.setattr(rewiring, "_defers", lambda devices: deferred)
        model = Net()
        rewire = dendnorm.SET(model, None, zeta=0.3, seed=2, drop=drops, grow=grows)
        x = batch()
        with rewire.observe():
            loss_of(model, x).backward()
        if fault:  # in whatever a rule may look at
            with torch.no_grad():
                model.second.weight[3] = torch.nan
                model.second.weight.grad[3] = torch.nan
            if (seen := rewire._observer.of(model.second)) is not None:
                for inputs, _ in (*seen.activations, *seen.gradients):
                    inputs[0, 0] = torch.nan
        before = {name: value.clone() for name, value in model.state_dict().items()}
        return rewire.step(), model, before

    waited, noted = run(False, False), run(True, False)
    for name, value in waited[1].state_dict().items():
        assert torch.equal(value, noted[1].state_dict()[name]), name
    for mine, theirs in zip(waited[0], noted[0], strict=True):
        assert positions(mine.grown) == positions(theirs.grown)
    report, model, before = run(True, True)
    with pytest.raises(ValueError, match="layer 'second'"):
        list(report)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or value.isnan().any(), name
    for name in ("ccol_indices", "row_indices"):
        for layer in ("first", "second"):
            assert torch.equal(model.state_dict()[f"{layer}.{name}"], before[f"{layer}.{name}"])


# Several ranks


def _rank(rank: int, folder: str, rule: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = Net()
    if rule == "gradient":
        rules = {"grow": grow.Gradient(reduce=dist.all_reduce, block=30)}
    else:
        rules = {"grow": grow.Cosine(reduce=dist.all_reduce), "drop": drop.Cosine(reduce=dist.all_reduce)}
    rewire = dendnorm.SET(model, None, zeta=0.3, **rules)
    with rewire.observe():
        loss_of(model, batch(3, 16)[8 * rank : 8 * rank + 8]).backward()
    rewire.step()
    torch.save({name: value for name, value in model.state_dict().items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.feature(
    "rewiring on several ranks: RigL and cosine with a summed gradient choose the same edges everywhere"
)
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("rule", ["gradient", "cosine"])
def test_ranks_agree_where_the_sums_are_reduced(rule, tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path), rule), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model = Net()
    rules = {"grow": "gradient"} if rule == "gradient" else {"grow": "cosine", "drop": "cosine"}
    rewire = dendnorm.SET(model, None, zeta=0.3, **rules)
    with rewire.observe():
        loss_of(model, batch(3, 16)).backward()
    rewire.step()
    for name, value in model.state_dict().items():  # as one rank would that sees the whole batch
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.equal(ranks[0][name], value)


# Schedules


@pytest.mark.feature("schedules of zeta: constant, cosine (RigL eq. 1), linear, cubic")
def test_schedules_are_their_formulas():
    alpha, every, end = 0.3, 100, 1000
    cosine = schedules.Cosine(alpha, steps=end // every)
    for step in range(1, 14):
        t = step * every
        assert cosine(step) == pytest.approx(alpha / 2 * (1 + math.cos(t * math.pi / end)) if t < end else 0, abs=1e-15)
    line, cube = schedules.Linear(0.4, 8, 0.2), schedules.Cubic(0.5, 8, 0.1)
    for step in range(9):
        assert line(step) == pytest.approx(0.4 - 0.2 * step / 8)
        sparsity = 0.9 + (0.5 - 0.9) * (1 - step / 8) ** 3  # Zhu and Gupta: s_f + (s_i - s_f) (1 - t / n)^3
        assert cube(step) == pytest.approx(1 - sparsity)
    assert line(50) == 0.2 and cube(50) == 0.1
    assert schedules.Constant(0.3)(7) == 0.3


def test_a_schedule_decides_how_many_are_replaced():
    layer = dendnorm.SparseLinear(30, 30, nnz=400, seed=0)
    rewire = dendnorm.SET(layer, None, zeta=schedules.Linear(0.4, steps=4))
    assert [rewire.step()[0].k for _ in range(5)] == [120, 80, 40, 0, 0]
    seen = []
    rewire.zeta = lambda step: seen.append(step) or 0.1
    assert rewire.step()[0].k == 40
    assert seen == [6]
    rewire.zeta = lambda step: 1.5
    before = positions(layer.edges())
    with pytest.raises(ValueError, match=r"zeta must be in \[0, 1\], got 1.5"):
        rewire.step()
    assert positions(layer.edges()) == before
    assert rewire.report.step == 6
    assert "Cosine" in repr(dendnorm.SET(layer, None, zeta=schedules.Cosine(0.3, 5), drop="sign"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Cosine(1.5, 3), r"start must be in \[0, 1\]"),
        (lambda: schedules.Linear(0.5, 0), "steps must be at least 1"),
        (lambda: schedules.Linear(0.5, 2.5), "steps must be an int"),
        (lambda: schedules.Cubic(0.5, 3, "x"), "stop must be a number"),
        (lambda: schedules.Constant(float("nan")), "value must be in"),
        (lambda: drop.resolve("biggest"), "drop must be one of .*'magnitude'"),
        (lambda: drop.resolve(drop.SignSplit), "drop must be a rule"),
        (lambda: grow.resolve("dense"), "grow must be one of .*'gradient'"),
        (lambda: grow.resolve(3), "grow must be a rule"),
        (lambda: grow.Gradient(start="ones"), "start must be"),
        (lambda: grow.Gradient(block=0), "block must be"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_rule_of_ones_own():
    class Oldest:
        """The first connections in the order of the layer go, whatever they weigh."""

        looks_at = ()

        def importance(self, turn) -> torch.Tensor:
            return torch.arange(turn.layer.nnz, dtype=torch.float64)

    layer = dendnorm.SparseLinear(9, 8, nnz=30, seed=0)
    first = set(itertools.islice(zip(*(part.tolist() for part in layer.edges()), strict=True), 6))
    (report,) = dendnorm.SET(layer, None, zeta=0.2, drop=Oldest()).step()
    assert positions(report.removed) == first


@pytest.mark.parametrize(
    "values",
    [lambda k: torch.ones(2), lambda k: torch.ones(k, dtype=torch.float64), lambda k: torch.ones(k, 1), lambda k: 1.0],
    ids=["too few", "another dtype", "two dimensions", "no tensor"],
)
def test_values_that_do_not_fit_are_refused_and_change_nothing(values):
    class Odd(dendnorm.grow.Random):
        def values(self, turn):
            return values(turn.k)

    layer = dendnorm.SparseLinear(20, 30, density=0.2, seed=0)
    before = [tensor.clone() for tensor in (*layer.pattern, layer.weight.detach())]
    rewirer = dendnorm.SET(layer, None, zeta=0.5, grow=Odd())
    with pytest.raises(ValueError, match=r"values of new connections must be a float32 tensor of shape \(60,\)"):
        rewirer.step()
    assert all(map(torch.equal, before, (*layer.pattern, layer.weight.detach())))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused_and_change_nothing(wrong):
    class Odd(dendnorm.grow.Random):
        def values(self, turn):
            return torch.ones(turn.k).index_fill(0, torch.tensor([7, 9]), wrong)

    layer = dendnorm.SparseLinear(20, 30, density=0.2, seed=0)
    before = [tensor.clone() for tensor in (*layer.pattern, layer.weight.detach())]
    rewirer = dendnorm.SET(torch.nn.Sequential(layer), None, zeta=0.5, grow=Odd())
    message = (
        r"layer '0': values of new connections must be finite, got nan or infinite values, the first at position 7"
    )
    with pytest.raises(ValueError, match=message):
        rewirer.step()
    assert all(map(torch.equal, before, (*layer.pattern, layer.weight.detach())))


def test_inference_tensors_are_refused_before_anything_changes():
    first = dendnorm.SparseLinear(20, 30, density=0.2, seed=0)
    with torch.inference_mode():
        second = dendnorm.SparseLinear(30, 20, density=0.2, seed=1)
    before = [tensor.clone() for tensor in (*first.pattern, first.weight.detach())]
    with pytest.raises(ValueError, match=r"layer '1': weight and pattern must be ordinary tensors.*inference_mode"):
        dendnorm.SET(torch.nn.Sequential(first, second), None, zeta=0.5).step()
    assert all(map(torch.equal, before, (*first.pattern, first.weight.detach())))


def test_a_layer_called_by_keyword_is_observed():
    layer = dendnorm.SparseLinear(20, 30, density=0.2, seed=0)
    rewirer = dendnorm.SET(layer, None, zeta=0.5, grow="gradient")
    with rewirer.observe():
        layer(input=torch.rand(4, 20)).sum().backward()
    assert rewirer.step()[0].k == 60
