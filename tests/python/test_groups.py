"""Parameter groups: which rate each parameter gets, and that a step then moves every layer as far as a dense one."""

from __future__ import annotations

import math

import pytest
import torch

import dendnorm
from dendnorm import SparseLinear

STEPS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def by_parameter(groups: list[dict]) -> dict[int, dict]:
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return found


def net(norm: str = "l0") -> torch.nn.Sequential:
    first, second = SparseLinear(20, 30, 0.1, norm=norm, seed=0), SparseLinear(30, 40, 0.25, norm=norm, seed=1)
    return torch.nn.Sequential(first, torch.nn.LayerNorm(30), second, torch.nn.Linear(40, 3))


@pytest.mark.parametrize(
    "norm, exponent", [("none", None), ("l0", 1), ("l0-variable", 1), ("lp:1", 0.5), ("weight_norm", 0), ("joint", 1)]
)
@pytest.mark.parametrize("optimizer, power, times", [("adam", 0.5, 1), ("sgd", 1, 2)])
def test_rates_by_density(norm, exponent, optimizer, power, times):
    model = net(norm)
    groups = dendnorm.param_groups(model, 0.3, lr=0.5, density_scaled=True, optimizer=optimizer)
    found = by_parameter(groups)
    assert set(found) == {id(parameter) for parameter in model.parameters()}
    for layer, density in ((model[0], 0.1), (model[2], 0.25)):
        values = found[id(layer.weight)]
        assert values["lr"] == pytest.approx(0.5 / density**power)
        assert values["lr"] * values["weight_decay"] == pytest.approx(0.5 * 0.3)
        assert (found[id(layer.bias)]["lr"], found[id(layer.bias)]["weight_decay"]) == (0.5, 0.0)
        if exponent is not None:
            scale = found[id(layer.norm.excitability)]
            assert (scale["lr"], scale["weight_decay"]) == (pytest.approx(0.5 * density ** (times * exponent)), 0.0)
    dense = found[id(model[3].weight)]
    assert (dense["lr"], dense["weight_decay"]) == (0.5, 0.3)
    assert all(found[id(parameter)]["lr"] == 0.5 for parameter in (*model[1].parameters(), model[3].bias))


def moved(
    density: float, norm: str, optimizer: str, power: float | None = None, inputs: int = 2000
) -> tuple[float, float]:
    """How far one step moves the mean output for constant inputs, and the share by which the excitability changes."""
    layer = SparseLinear(inputs, 300, density, norm=norm, bias=False, seed=0)
    kind = "sgd" if optimizer == "sgd" else "adam"
    # eps: the rate and not the size of the gradient decides.
    more = {} if optimizer == "sgd" else {"eps": 1e-30, "weight_decay": 0.0}
    groups = dendnorm.param_groups(layer, lr=1e-5, density_scaled=True, optimizer=kind, power=power)
    step = STEPS[optimizer](groups, **more)
    x = torch.ones(1, inputs)
    before = layer(x).double().mean().item()
    start = None if layer.norm.excitability is None else layer.norm.excitability.detach().double().clone()
    layer(x).sum().backward()
    step.step()
    share = 0.0 if start is None else ((layer.norm.excitability.double() - start).abs() / start).mean().item()
    return layer(x).double().mean().item() - before, share


@pytest.mark.parametrize("optimizer", list(STEPS))
@pytest.mark.parametrize("norm", ["none", "l0", "weight_norm", "joint"])
def test_one_step_moves_the_output_as_far_at_every_density(norm, optimizer):
    power = None if optimizer == "sgd" else 1.0
    dense, share = moved(1.0, norm, optimizer, power)
    assert dense < 0
    if norm == "none":
        assert dense == pytest.approx(-1e-5 * 2000, rel=1e-3)
    for density in (0.3, 0.1, 0.03):
        step, sparse_share = moved(density, norm, optimizer, power)
        assert step == pytest.approx(dense, rel=0.15)
        if optimizer != "sgd":  # whose gradient is the sum of w, which is random
            assert sparse_share == pytest.approx(share, rel=0.05, abs=1e-12)


@pytest.mark.parametrize("norm", ["none", "l0", "weight_norm"])
def test_a_step_of_adam_is_the_same_share_of_the_values_at_every_density(norm):
    def share(density: float) -> float:
        layer = SparseLinear(400, 300, density, norm=norm, seed=0)
        optimizer = torch.optim.Adam(dendnorm.param_groups(layer, lr=1e-3, density_scaled=True), eps=1e-30)
        before = layer.weight.detach().clone()
        layer(torch.rand(1, 400) + 1).square().sum().backward()
        optimizer.step()
        return ((layer.weight - before).square().mean() / before.square().mean()).sqrt().item()

    for density in (0.3, 0.1, 0.03):
        assert share(density) == pytest.approx(share(1.0), rel=0.05)


def test_plain_rates_move_a_sparse_layer_less():
    def plain(density: float) -> float:
        layer = SparseLinear(500, 100, density, norm=None, bias=False, seed=0)
        optimizer = torch.optim.SGD(dendnorm.param_groups(layer), lr=1e-3)
        before = layer(torch.ones(1, 500)).mean().item()
        layer(torch.ones(1, 500)).sum().backward()
        optimizer.step()
        return layer(torch.ones(1, 500)).mean().item() - before

    assert plain(0.1) == pytest.approx(0.1 * plain(1.0), rel=1e-2)


def test_a_rate_without_scaling_is_that_of_all_groups():
    model = net()
    assert [group["lr"] for group in dendnorm.param_groups(model, lr=0.25)] == [0.25, 0.25]
    assert all("lr" not in group for group in dendnorm.param_groups(model))
    assert "weight_decay" not in dendnorm.param_groups(model, lr=0.25, density_scaled=True)[0]


def test_layers_of_one_density_share_a_group_and_a_dense_one_the_first():
    layers = [SparseLinear(10, 10, density, norm="weight_norm") for density in (0.5, 0.5, 1.0)]
    groups = dendnorm.param_groups(torch.nn.Sequential(*layers), lr=0.1, density_scaled=True)
    assert [len(group["params"]) for group in groups] == [1, 6, 2]
    assert groups[0]["params"][0] is layers[2].weight
    assert [parameter is layer.weight for parameter, layer in zip(groups[2]["params"], layers[:2], strict=True)] == [
        True, True]  # fmt: skip


def test_a_shared_excitability_and_a_tied_weight_are_in_one_group():
    norm = dendnorm.norms.l0()
    model = torch.nn.Sequential(SparseLinear(20, 20, 0.5, norm=norm), SparseLinear(20, 20, 0.1, norm=norm))
    found = by_parameter(dendnorm.param_groups(model, lr=1.0, density_scaled=True))
    assert found[id(norm.excitability)]["lr"] == pytest.approx(0.5)  # of the layer that made it
    assert found[id(model[1].weight)]["lr"] == pytest.approx(10**0.5)


def test_rates_survive_rewiring_and_are_taken_anew_after_resize():
    model = net()
    optimizer = torch.optim.AdamW(dendnorm.param_groups(model, 0.1, lr=0.01, density_scaled=True))

    def train() -> None:
        optimizer.zero_grad()
        model(torch.rand(6, 20)).square().mean().backward()
        optimizer.step()

    train()
    rates = {key: group["lr"] for key, group in by_parameter(optimizer.param_groups).items()}
    dendnorm.SET(model, optimizer, 0.3).step()
    dendnorm.RigL(model, optimizer, every=1)
    train()
    assert {key: group["lr"] for key, group in by_parameter(optimizer.param_groups).items()} == rates
    dendnorm.resize(model, {"0": 0.2, "2": 0.5}, optimizer)
    wanted = dendnorm.param_groups(model, 0.1, lr=0.01, density_scaled=True)
    for group, fresh in zip(optimizer.param_groups, wanted, strict=True):
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in fresh["params"]]
        group.update(lr=fresh["lr"], weight_decay=fresh["weight_decay"])
    found = by_parameter(optimizer.param_groups)
    assert found[id(model[0].weight)]["lr"] == pytest.approx(0.01 / 0.2**0.5)
    assert found[id(model[2].weight)]["lr"] == pytest.approx(0.01 / 0.5**0.5)
    train()


def test_schedulers_and_checkpoints_keep_the_ratios():
    model = net()
    optimizer = torch.optim.SGD(dendnorm.param_groups(model, lr=0.1, density_scaled=True, optimizer="sgd"))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    before = [group["lr"] for group in optimizer.param_groups]
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate / 2 for rate in before])
    again = torch.optim.SGD(dendnorm.param_groups(model, lr=0.7, density_scaled=True, optimizer="sgd"))
    again.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"density_scaled": True}, ValueError, "lr must be given with density_scaled, got None"),
        ({"density_scaled": 1, "lr": 0.1}, TypeError, "density_scaled must be a bool, got 1"),
        ({"lr": -0.1}, ValueError, "lr must be finite and at least 0, got -0.1"),
        ({"lr": math.nan}, ValueError, "lr must be finite, got nan"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"power": math.inf, "lr": 0.1}, ValueError, "power must be finite, got inf"),
        ({"optimizer": "adamw", "lr": 0.1}, ValueError, '"adam" or "sgd", got \'adamw\''),
    ],
)
def test_arguments_are_checked(arguments, error, words):
    with pytest.raises(error, match=words):
        dendnorm.param_groups(net(), **arguments)


def test_values_that_are_not_the_effective_weights_are_refused_by_name():
    model = torch.nn.Sequential(SparseLinear(8, 8, 0.5), SparseLinear(8, 8, 0.5, norm=dendnorm.norms.l0(s=25.0)))
    with pytest.raises(ValueError, match="layer '1' starts at s=25"):
        dendnorm.param_groups(model, lr=0.1, density_scaled=True)
    assert len(dendnorm.param_groups(model, lr=0.1)) == 2
