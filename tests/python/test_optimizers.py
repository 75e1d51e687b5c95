"""Whatever an optimizer keeps: it moves with its connection, stays where it belongs to none, or is refused by name."""

from __future__ import annotations

import copy
import importlib
import pickle
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dendnorm

Edge = tuple[int, int]


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [dendnorm.SparseLinear(12, 10, nnz=40, seed=0, **options), nn.Tanh()]
    return nn.Sequential(*layers, dendnorm.SparseLinear(10, 8, nnz=30, norm="joint", seed=1, **options))


def train(model: nn.Module, optimizer: Any, steps: int = 1, seed: int = 0) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(6, next(model.modules())[0].in_features if isinstance(model, nn.Sequential)
                        else model.in_features, generator=generator)  # fmt: skip
        model(x).square().mean().backward()
        optimizer.step()


def layers_of(model: nn.Module) -> list[dendnorm.SparseLinear]:
    return [module for module in model.modules() if isinstance(module, dendnorm.SparseLinear)]


def edges_of(layer: dendnorm.SparseLinear) -> list[Edge]:
    row, col = layer.edges()
    return list(zip(row.tolist(), col.tolist(), strict=True))


def grown_of(report: Any) -> list[Edge]:
    row, col = report.grown
    return list(zip(row.tolist(), col.tolist(), strict=True))


def by_edge(layer: dendnorm.SparseLinear, values: torch.Tensor) -> dict[Edge, float]:
    return dict(zip(edges_of(layer), values.tolist(), strict=True))


def entries(state: Any, nnz: int, path: str = "") -> dict[str, torch.Tensor]:
    """The tensors of one entry for each connection in a parameter's state, by where they are."""
    found: dict[str, torch.Tensor] = {}
    if isinstance(state, torch.Tensor):
        return {path: state} if state.shape == (nnz,) else {}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    for key, item in items:
        found |= entries(item, nnz, f"{path}.{key}" if path else str(key))
    return found


def check_moves(model: nn.Module, optimizer: Any, states: Callable[[nn.Parameter], Any], rewire: Any,
                fresh: dict[str, Any], rounds: int = 4) -> None:  # fmt: skip
    """Train and rewire, and compare all state with a dictionary of the connections.

    `fresh` says what new connections have in the state of a path: a number, "value" for their own; 0 if not named.
    """
    for number in range(rounds):
        train(model, optimizer, 3, number)
        layers = layers_of(model)
        before = [
            {"weight": by_edge(layer, layer.weight), "grad": by_edge(layer, layer.weight.grad)}
            | {path: by_edge(layer, tensor) for path, tensor in entries(states(layer.weight), layer.nnz).items()}
            for layer in layers
        ]
        reports = list(rewire.step())
        for layer, was, report in zip(layers, before, reports, strict=True):
            grown, value = set(grown_of(report)), by_edge(layer, layer.weight)
            assert grown
            now = {"grad": by_edge(layer, layer.weight.grad)}
            now |= {path: by_edge(layer, tensor) for path, tensor in entries(states(layer.weight), layer.nnz).items()}
            assert now.keys() == was.keys() - {"weight"}
            for path, found in now.items():
                new = fresh.get(path, 0.0)
                for edge, entry in found.items():
                    expected = was[path][edge] if edge not in grown else value[edge] if new == "value" else new
                    assert entry == pytest.approx(expected, rel=1e-6, abs=0), (path, edge, edge in grown)
    train(model, optimizer)


# Every class of torch.optim that takes these parameters, and what new connections have besides 0.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ASGD": ({"lr": 0.01, "t0": 2}, {"ax": "value"}),
    "Adadelta": ({}, {}),
    "Adafactor": ({}, {}),
    "Adagrad": ({"initial_accumulator_value": 0.25}, {"sum": 0.25}),
    "Adam": ({"amsgrad": True}, {}),
    "AdamW": ({"amsgrad": True, "maximize": True}, {}),
    "Adamax": ({}, {}),
    "NAdam": ({"decoupled_weight_decay": True, "weight_decay": 0.1}, {}),
    "RAdam": ({}, {}),
    "RMSprop": ({"centered": True, "momentum": 0.9}, {}),
    "Rprop": ({"lr": 0.0625}, {"step_size": 0.0625}),
    "SGD": ({"momentum": 0.9, "nesterov": True, "lr": 0.01}, {}),
}
REFUSED = {"LBFGS", "Muon", "SparseAdam"}  # directions of all parameters; only matrices; only sparse gradients
FUSED = {"Adam", "AdamW", "SGD", "Adagrad"}
WAYS = [(name, way) for name in CASES for way in ("loop", "foreach", "fused") if way != "fused" or name in FUSED]


def test_every_class_of_torch_is_here():
    classes = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)} - {"Optimizer"}
    assert classes == CASES.keys() | REFUSED


@pytest.mark.feature("every optimizer of torch.optim: state is that of a dictionary of the connections")
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_state_is_that_of_a_dictionary_of_connections(name, way):
    options, fresh = CASES[name]
    options = options | ({"foreach": False} if way == "loop" else {way: True})
    model = network()
    optimizer = getattr(torch.optim, name)(model.parameters(), **options)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=4)
    check_moves(model, optimizer, lambda weight: optimizer.state[weight], rewire, fresh, 2 if way == "loop" else 4)


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("density", [0.15, 0.6])
def test_resize_moves_the_same(name, density):
    options, fresh = CASES[name]
    model = network()
    optimizer = getattr(torch.optim, name)(model.parameters(), **options)
    train(model, optimizer, 4)
    layer = model[0]
    was = {path: by_edge(layer, tensor) for path, tensor in entries(optimizer.state[layer.weight], 40).items()}
    dendnorm.resize(model, {"0": density}, optimizer, start="normal", seed=3)
    value = by_edge(layer, layer.weight)
    state = entries(optimizer.state[layer.weight], layer.nnz)
    assert state.keys() == was.keys()
    for path, tensor in state.items():
        for edge, entry in by_edge(layer, tensor).items():
            new = fresh.get(path, 0.0)
            expected = was[path].get(edge, value[edge] if new == "value" else new)
            assert entry == pytest.approx(expected, rel=1e-6, abs=0)
    train(model, optimizer)


def test_the_learning_rate_of_the_moment_is_a_new_step_size():
    model = network()
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.5)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3)
    train(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.125
    (report, _) = rewire.step()
    sizes = by_edge(model[0], optimizer.state[model[0].weight]["step_size"])
    assert {sizes[edge] for edge in grown_of(report)} == {0.125}


# Optimizers of one's own


class Own(torch.optim.Optimizer):
    """State of every kind under names that say nothing, and some that does not belong to connections."""

    def __init__(self, params: Any, lr: float = 0.01, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["first"] = param.clone()
                    state["second"] = torch.full_like(param, 3.0)
                    state["third"] = [torch.zeros_like(param), {"deep": param.double()}]
                    state["table"] = torch.arange(4.0)
                    state["age"] = 0
                state["age"] += 1
                state["third"][0] += param.grad
                param -= group["lr"] * (param.grad + group["weight_decay"] * param)


class OwnFromTheStart(Own):
    """The same, made with the optimizer."""

    def __init__(self, params: Any, lr: float = 0.01, weight_decay: float = 0.1) -> None:
        super().__init__(params, lr, weight_decay)
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["first"] = param.detach().clone()
                self.state[param]["second"] = torch.full_like(param, 3.0)
                self.state[param] |= {"third": [torch.zeros_like(param), {}], "age": 0}


@pytest.mark.parametrize("kind", [Own, OwnFromTheStart])
def test_an_unknown_optimizer_is_asked_what_it_gives_a_fresh_parameter(kind):
    model = network()
    optimizer = kind(model.parameters())
    rewire = dendnorm.SET(model, optimizer, zeta=0.3)
    before = torch.get_rng_state()
    fresh = {"first": "value", "second": 3.0, "third.1.deep": "value"}
    check_moves(model, optimizer, lambda weight: optimizer.state[weight], rewire, fresh)
    assert torch.equal(before, torch.get_rng_state())


def test_a_table_as_long_as_the_weight_is_still_a_table():
    layer = dendnorm.SparseLinear(5, 5, nnz=4, norm="none", seed=0)
    optimizer = Own(layer.parameters())
    train(layer, optimizer)
    dendnorm.SET(layer, optimizer, zeta=0.5).step()
    assert torch.equal(optimizer.state[layer.weight]["table"], torch.arange(4.0))


@pytest.mark.parametrize(
    ("key", "fresh"),
    [("z", "value"), ("slow_buffer", "value"), ("lookahead_slow_buff", "value"), ("slow_params", "value"),
     ("master_param", "value"), ("param_copy", "value"), ("x0", "value"), ("old_p", "value"), ("slow_momentum", 0.0),
     ("exp_avg_slow", 0.0), ("velocity", 0.0)],
)  # fmt: skip
def test_what_a_wrapper_puts_into_the_state_goes_by_its_name(key, fresh):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for layer in layers_of(model):
        optimizer.state[layer.weight][key] = torch.rand(layer.nnz)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3)
    check_moves(model, optimizer, lambda weight: optimizer.state[weight], rewire, {key: fresh})


# Refusals


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    return copy.deepcopy([model.state_dict(), [param.grad for param in model.parameters()],
                          [optimizer.state.get(param) for param in model.parameters()]])  # fmt: skip


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.to_dense(), other.to_dense())
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other)


class Subclass(torch.Tensor):
    def __deepcopy__(self, memo: dict) -> Subclass:
        return self.clone().as_subclass(Subclass)


def put(**state: Any) -> Callable:
    """The state of the second layer, which is looked at last."""

    def change(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.state[model[2].weight].update(state)

    return change


def attribute(value: Callable[[nn.Parameter], Any]) -> Callable:
    def change(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.kept = value(model[2].weight)

    return change


def in_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["moments"] = [torch.zeros(30)]


def under_a_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.state["all of them"] = {"moment": torch.zeros(30)}


def of_all_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    total = sum(param.numel() for param in model.parameters())
    optimizer.state[model[0].bias]["directions"] = [torch.zeros(total)]


def on_the_parameter(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model[2].weight.average = model[2].weight.detach().clone()


STATES = {
    "on the parameter": (on_the_parameter, r"weight\.average of Adam must have one entry"),
    "a column": (put(odd=torch.zeros(30, 1)), r"state 'odd' of Adam .* got a tensor of shape \(30, 1\)"),
    "a row": (put(odd=torch.zeros(1, 30)), r"\(1, 30\)"),
    "another view": (put(odd=torch.zeros(5, 6)), r"\(5, 6\)"),
    "two rows": (put(odd=torch.zeros(2, 30)), r"\(2, 30\)"),
    "a preconditioner": (put(deep={"odd": [torch.eye(30)]}), r"state 'deep.odd\[0\]' of Adam"),
    "blocks": (put(odd=torch.zeros(6)), r"\(6,\)"),
    "padding": (put(odd=torch.zeros(32)), r"\(32,\)"),
    "an array": (put(odd=np.zeros(30)), r"got a ndarray of shape \(30,\)"),
    "a list": (put(odd=[0.5] * 30), "got a list of 30 numbers"),
    "an object": (
        put(odd=types.SimpleNamespace(moments=torch.zeros(30))),
        r"SimpleNamespace with a tensor in .moments",
    ),
    "sparse": (put(odd=torch.zeros(30).to_sparse()), "must be dense and writable"),
    "one for all": (put(odd=torch.zeros(1).expand(30)), "must be dense and writable"),
    "a subclass": (put(odd=torch.zeros(30).as_subclass(Subclass)), r"got a Subclass of shape \(30,\)"),
    "codes alone": (put(state1=torch.zeros(30, dtype=torch.uint8), qmap1=torch.linspace(-1, 1, 256)), "codes of shape"),
    "an attribute": (attribute(lambda weight: {"odd": [torch.zeros(30)]}), r"Adam\.kept\['odd'\]\[0\]"),
    "slow weights": (attribute(lambda weight: [[weight.detach().clone()]]), r"Adam\.kept\[0\]\[0\]"),
    "in a group": (in_group, r"Adam\.param_groups\[0\]\['moments'\]\[0\]"),
    "under a name": (under_a_name, r"Adam\.state\['all of them'\]"),
    "of all parameters": (of_all_parameters, r"state '\[?.*directions.*' of Adam"),
}


@pytest.mark.feature("optimizer state that can neither move nor stay is refused by name, and nothing has changed")
@pytest.mark.parametrize("act", ["rewired", "resized"])
@pytest.mark.parametrize("name", STATES)
def test_a_refusal_names_everything_and_changes_nothing(name, act):
    change, message = STATES[name]
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    rewire = dendnorm.SET(model, optimizer, zeta=0.3)
    train(model, optimizer)
    change(model, optimizer)
    before = snapshot(model, optimizer)
    weights = [id(layer.weight) for layer in layers_of(model)]
    with pytest.raises(ValueError, match=message) as refusal:
        rewire.step() if act == "rewired" else dendnorm.resize(model, 0.2, optimizer)
    assert "layer '" in str(refusal.value)
    assert_same(snapshot(model, optimizer), before)
    assert weights == [id(layer.weight) for layer in layers_of(model)]
    assert rewire.state_dict()["steps"] == 0


@pytest.mark.parametrize("act", ["rewired", "resized"])
def test_lbfgs_is_refused_at_once(act):
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match=r"optimizer must keep its state parameter by parameter.*LBFGS"):
        dendnorm.SET(model, optimizer) if act == "rewired" else dendnorm.resize(model, 0.2, optimizer)


def test_numbers_and_small_things_stay():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    kept = {
        "a": 3,
        "b": 0.5,
        "c": "word",
        "d": None,
        "e": torch.tensor(2.0),
        "f": torch.tensor([2.0]),
        "g": torch.zeros(0),
        "h": (1, 2),
        "i": torch.float32,
        "j": [torch.tensor(1)],
        "k": np.float32(2),
    }
    optimizer.state[model[0].weight].update(kept)
    dendnorm.SET(model, optimizer, zeta=0.3).step()
    state = optimizer.state[model[0].weight]
    assert all(state[key] is value for key, value in kept.items())


# Wrappers


class Plain:
    """Wraps without being an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list:
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.optimizer.step()


class Lookahead(torch.optim.Optimizer):
    """With state of its own beside that of the one inside; its constructor is not called, as many do it."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self._base = [inner]
        self.param_groups = inner.param_groups
        self.state = {}
        self.count = 0

    def zero_grad(self) -> None:
        self._base[0].zero_grad()

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        self._base[0].step()
        self.count += 1
        for group in self.param_groups:
            for param in group["params"]:
                slow = self.state.setdefault(param, {}).setdefault("slow_buffer", param.clone())
                if self.count % 2 == 0:
                    slow.lerp_(param, 0.5)
                    param.copy_(slow)


class Masters:
    """Trains copies of the parameters."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        self.param_groups, self.state = [{"params": params}], {}
        self.inner = torch.optim.Adam([param.detach().clone() for param in params])


def test_a_wrapper_is_as_what_it_wraps():
    results = []
    for wrap in (lambda one: one, Plain, lambda one: Plain(Plain(one))):
        model = network()
        optimizer = wrap(torch.optim.Adam(model.parameters(), lr=0.01))
        rewire = dendnorm.SET(model, optimizer, zeta=0.3, every=2, grow="gradient")
        train(model, optimizer, 5)
        assert rewire.state_dict() == {"seed": 0, "steps": 2, "calls": 1}
        results.append(model.state_dict())
        dendnorm.resize(model, 0.1, optimizer)
        train(model, optimizer)
    for other in results[1:]:
        assert_same(results[0], other)


def test_state_inside_and_outside_moves():
    model = network()
    inner = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer = Lookahead(inner)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3)
    states = lambda weight: [inner.state[weight], optimizer.state[weight]]  # noqa: E731
    check_moves(model, optimizer, states, rewire, {"1.slow_buffer": "value"})
    by_itself = dendnorm.SET(model, optimizer, zeta=0.3, every=2)
    train(model, optimizer, 4)
    assert by_itself.state_dict()["steps"] == 2


def test_an_optimizer_of_copies_is_refused():
    model = network()
    with pytest.raises(ValueError, match="layer '0': optimizer must train the weight itself, got Masters around Adam"):
        dendnorm.SET(model, Masters(model.parameters()))


def test_an_optimizer_within_the_backward_pass_is_refused():
    from torch.distributed.optim import _apply_optimizer_in_backward

    model = network()
    _apply_optimizer_in_backward(torch.optim.SGD, model[2].parameters(), {"lr": 0.01})
    for optimizer in (torch.optim.Adam(model.parameters()), None):
        with pytest.raises(ValueError, match="layer '2': weight must be trained by the optimizer that is given"):
            dendnorm.SET(model, optimizer)


def test_what_is_no_optimizer_is_refused():
    model = network()
    for wrong in ([torch.optim.Adam(model.parameters())], "adam", torch.optim.Adam):
        with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer or None"):
            dendnorm.SET(model, wrong)
        with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer or None"):
            dendnorm.resize(model, 0.2, wrong)
    for kind in (dendnorm.SET, dendnorm.RigL):
        with pytest.raises(TypeError, match="optimizer"):
            kind(model)


@pytest.mark.feature("the optimizers of accelerate and Lightning: rewiring as with the optimizer inside")
def test_lightning_and_accelerate():
    results = []
    for name in ("none", "lightning", "accelerate"):
        model = network()
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=0.01)
        if name == "lightning":
            module = pytest.importorskip("lightning.pytorch.core.optimizer")
            optimizer = module.LightningOptimizer(optimizer)
            step = optimizer.optimizer
        elif name == "accelerate":
            accelerate = pytest.importorskip("accelerate")
            model, optimizer = accelerate.Accelerator(cpu=True).prepare(model, optimizer)
            step = optimizer
        else:
            step = optimizer
        rewire = dendnorm.SET(model, optimizer, zeta=0.3, every=2, grow="gradient")
        train(model, step, 5)
        assert rewire.state_dict()["steps"] == 2
        results.append(model.state_dict())
    for other in results[1:]:
        assert_same(results[0], other)


# From other packages


SCHEDULE_FREE = ("AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree")


@pytest.mark.feature("schedulefree: state moves, and a new connection's z is its value")
@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedule_free(name):
    schedulefree = pytest.importorskip("schedulefree")
    model = network()
    optimizer = getattr(schedulefree, name)(model.parameters(), lr=0.01)
    optimizer.train()
    rewire = dendnorm.SET(model, optimizer, zeta=0.3)
    check_moves(model, optimizer, lambda weight: optimizer.state[weight], rewire, {"z": "value"})
    optimizer.eval()
    (report, _) = rewire.step()
    z, now = (by_edge(model[0], tensor) for tensor in (optimizer.state[model[0].weight]["z"], model[0].weight))
    assert all(z[edge] == now[edge] for edge in grown_of(report))


def test_schedule_free_around_another():
    schedulefree = pytest.importorskip("schedulefree")
    model = nn.Sequential(dendnorm.SparseLinear(12, 10, nnz=40, seed=0, norm="none"))
    optimizer = schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    optimizer.train()
    rewire = dendnorm.SET(model, optimizer, zeta=0.3)
    check_moves(model, optimizer, lambda weight: optimizer.state[weight], rewire, {"z": "value"})
    by_itself = dendnorm.SET(model, optimizer, zeta=0.3, every=1)
    train(model, optimizer, 3)
    assert by_itself.state_dict()["steps"] == 3


def wide(nnz: int) -> dendnorm.SparseLinear:
    torch.manual_seed(0)
    return dendnorm.SparseLinear(300, 300, nnz=nnz, seed=0, norm="none")


def numbers_of(state: dict[str, Any], key: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the codes stand for, the largest of each entry's block, and the table or a fine one."""
    value = state[key]
    if key.startswith("state"):
        number = key[-1]
        table, scale, block = state[f"qmap{number}"], state[f"absmax{number}"], 256
        values = table[value.long()] * scale.repeat_interleave(block)[: len(value)]
    else:
        table = getattr(value, "qmap", None)
        table = torch.arange(0, 257) / 256 if table is None else table
        scale, block, values = value.scale, value.block_size, value.dequantize()
        scale = scale if hasattr(value, "qmap") else scale * 448
    return values, scale.repeat_interleave(block)[: len(values)], table


def check_blocks(make: Callable, keys: tuple[str, ...], nnz: int, after: float) -> None:
    layer = wide(nnz)
    optimizer = make(layer.parameters())
    rewire = dendnorm.SET(layer, optimizer, zeta=0.3)
    for number in range(3):
        train(layer, optimizer, 5, number)
        state = optimizer.state[layer.weight]
        was = [by_edge(layer, numbers_of(state, key)[0]) for key in keys]
        (report,) = rewire.step()
        grown = set(grown_of(report))
        for key, old in zip(keys, was, strict=True):
            values, scale, table = numbers_of(state, key)
            gap = float(table.diff().max()) / 2 * 1.01
            lowest = float(table.abs().min())  # where a table has no 0
            for edge, new, top in zip(edges_of(layer), values.tolist(), scale.tolist(), strict=True):
                expected = 0.0 if edge in grown else old[edge]
                assert abs(new - expected) <= max(gap, lowest) * top + 1e-30, (key, edge)
                assert expected == 0 or new != 0 or key not in ("state2", "exp_avg_sq"), (key, edge)
        before = layer.weight.detach().clone()
        train(layer, optimizer, 1, 17)
        assert float((layer.weight.detach() - before).abs().max()) < after


@pytest.mark.feature("bitsandbytes: state in blocks of 8-bit codes moves as numbers")
@pytest.mark.parametrize("nnz", [4096, 9000, 9001])
@pytest.mark.parametrize(("name", "keys"), [("Adam8bit", ("state1", "state2")), ("AdamW8bit", ("state1", "state2")),
                                            ("Lion8bit", ("state1",)), ("RMSprop8bit", ("state1",))])  # fmt: skip
def test_bitsandbytes(name, keys, nnz):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    check_blocks(lambda params: getattr(bitsandbytes.optim, name)(params, lr=1e-3), keys, nnz, 0.1)


def test_bitsandbytes_with_few_connections_and_in_32_bits():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for kind in (bitsandbytes.optim.Adam8bit, bitsandbytes.optim.Adam32bit):
        model = network()
        optimizer = kind(model.parameters())
        rewire = dendnorm.SET(model, optimizer, zeta=0.3)
        check_moves(model, optimizer, lambda weight, one=optimizer: one.state[weight], rewire, {})


def test_bitsandbytes_with_two_rows_is_refused():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = wide(9000)
    optimizer = bitsandbytes.optim.AdEMAMix8bit(layer.parameters())
    optimizer.state[layer.weight].update(
        state1=torch.zeros(2, 9000, dtype=torch.uint8), qmap1=torch.linspace(-1, 1, 256), absmax1=torch.zeros(2, 36)
    )
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="layer '': state 'state1' of AdEMAMix8bit"):
        dendnorm.SET(layer, optimizer).step()
    assert_same(before, layer.state_dict())


TORCHAO = ("AdamW8bit", "AdamW4bit", "AdamWFp8", "Adam8bit")


@pytest.mark.feature("torchao: state in blocks of 8-bit, 4-bit and float8 codes moves as numbers")
@pytest.mark.parametrize("name", TORCHAO)
@pytest.mark.parametrize("nnz", [8192, 8200])
def test_torchao(name, nnz):
    optim = pytest.importorskip("torchao.optim")
    layer = wide(nnz)
    optimizer = getattr(optim, name)(layer.parameters(), lr=1e-3)
    for key, signed in (("exp_avg", True), ("exp_avg_sq", False)):  # its step compiles; its tensors do not need it
        state = optimizer._new_buffer(layer.weight.detach(), signed)
        values = torch.rand(nnz) - 0.5 * signed
        state.copy_(values)
        optimizer.state[layer.weight][key] = state
    optimizer.state[layer.weight]["step"] = torch.tensor(3.0)
    quantised = nnz == 8192
    found = lambda key: (optimizer.state[layer.weight][key].dequantize() if quantised  # noqa: E731
                         else optimizer.state[layer.weight][key])  # fmt: skip
    keys = ("exp_avg", "exp_avg_sq")
    was = {key: by_edge(layer, found(key)) for key in keys}
    objects = [id(optimizer.state[layer.weight][key]) for key in keys]
    (report,) = dendnorm.SET(layer, optimizer, zeta=0.3).step()
    assert objects == [id(optimizer.state[layer.weight][key]) for key in keys]
    grown = set(grown_of(report))
    gap = {"8bit": 0.0075, "4bit": 0.0901, "Fp8": 0.036}[name.removeprefix("AdamW").removeprefix("Adam")]
    for key in keys:
        for edge, new in by_edge(layer, found(key)).items():
            assert abs(new - (0 if edge in grown else was[key][edge])) <= (gap if quantised else 0)
    wide_again = dendnorm.resize(layer, 4096 / 90000, optimizer)
    assert wide_again == {"": (nnz, 4096)}
    assert optimizer.state[layer.weight]["exp_avg"].shape == (4096,)


def test_codes_that_stay_in_their_block_are_the_same_codes():
    from dendnorm.rewiring.quantised import Codes

    table = torch.cat([torch.linspace(-0.99, 0, 129)[:-1], torch.linspace(0, 1, 128)])
    codes = torch.randint(256, (1000,), dtype=torch.uint8)
    codes[::256] = torch.tensor([0, 255, 0, 255], dtype=torch.uint8)  # each block has its largest
    one = Codes(codes, torch.rand(4) + 0.1, table, 256)
    again, scale = one.quantised(one.values())
    torch.testing.assert_close(scale, one.scale)
    assert torch.equal(again, codes)


def test_block_quantised_state_is_resized():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = wide(9000)
    optimizer = bitsandbytes.optim.Adam8bit(layer.parameters())
    train(layer, optimizer, 3)
    dendnorm.resize(layer, 5000 / 90000, optimizer)
    state = optimizer.state[layer.weight]
    assert state["state1"].shape == (5000,) and state["absmax1"].shape == (20,)
    train(layer, optimizer, 3)


# Layers that do not train


@pytest.mark.feature("layers that do not train are left alone by a rewiring")
def test_frozen_layers_are_left_alone_and_named():
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.Adam([param for param in model.parameters() if param.requires_grad])
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=3)
    before = copy.deepcopy(model[0].state_dict())
    train(model, optimizer)
    report = rewire.step()
    assert [layer.name for layer in report] == ["2"] and report.left == ("0",)
    assert torch.equal(model[0].weight, before["weight"])
    assert torch.equal(model[0].row_indices, before["row_indices"])
    assert "left=('0',)" in repr(report) and "0: left alone, it does not train" in str(report)
    assert "layers=[2]" in repr(rewire) and "left=['0']" in repr(rewire)
    assert copy.deepcopy(report).left == ("0",)
    # What the other draws does not depend on it.
    other = network()
    whole = dendnorm.SET(other, None, zeta=0.3, seed=3)
    with torch.no_grad():
        other[2].load_state_dict(model[2].state_dict())
    second = [rewirer.step()[-1] for rewirer in (rewire, whole) for _ in range(3 - len(rewirer.report or "xx"))]
    assert second[0].name == second[-1].name == "2"


def test_freezing_is_looked_at_anew():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    rewire = dendnorm.SET(model, optimizer, zeta=0.3)
    model[2].requires_grad_(False)
    assert rewire.step().left == ("2",)
    model.requires_grad_(False)
    nothing = rewire.step()
    assert len(nothing) == 0 and nothing.left == ("0", "2")
    model.requires_grad_(True)
    assert len(rewire.step()) == 2
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model must hold a SparseLinear or SparseConv2d whose weight trains"):
        dendnorm.SET(model, optimizer)


def test_a_frozen_norm_or_bias_keeps_nothing_from_being_rewired():
    model = network()
    for name, param in model.named_parameters():
        param.requires_grad_(name.endswith("weight"))
    optimizer = torch.optim.Adam([param for param in model.parameters() if param.requires_grad])
    assert dendnorm.SET(model, optimizer, zeta=0.3).step().left == ()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_layer_may_be_computed_from_others(frozen):
    model = network()
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
    model[0].requires_grad_(not frozen)
    optimizer = torch.optim.Adam([param for param in model.parameters() if param.requires_grad])
    if frozen:
        assert dendnorm.SET(model, optimizer, zeta=0.3).step().left == ("0",)
    else:
        with pytest.raises(ValueError, match="layer '0': weight must be a Parameter of the layer"):
            dendnorm.SET(model, optimizer)


def test_resize_leaves_frozen_layers_alone_unless_they_are_named():
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam([param for param in model.parameters() if param.requires_grad])
    assert dendnorm.resize(model, 0.2, optimizer) == {"2": (30, 16)}
    assert dendnorm.resize(model, {"0": 0.2}, optimizer) == {"0": (40, 24)}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="density must name layers where none of them trains"):
        dendnorm.resize(model, 0.1)


# Steps that a GradScaler skips


def scaled(
    model: nn.Module, optimizer: Any, scaler: Any, skipped: bool, batches: int = 1, unscale: bool = False
) -> None:
    optimizer.zero_grad()
    for batch in range(batches):
        x = torch.randn(4, 12)
        factor = torch.inf if skipped and batch == 0 else 1.0
        scaler.scale((model(x).square().mean()) * factor).backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.feature("GradScaler: skipped steps count for nothing, fused or not")
@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rules", [{}, {"drop": "gradient"}, {"drop": "sensitivity", "grow": "gradient"}])
def test_skipped_steps_count_for_nothing(fused, rules, unscale, batches):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, every=2, **rules)
    seen = []
    for skipped in (True, False, True, True, False, False, True, True, False, False, True):
        scaled(model, optimizer, scaler, skipped, batches, unscale)
        seen.append(tuple(rewire.state_dict()[key] for key in ("steps", "calls")))
    assert seen == [(0, 0), (0, 1), (0, 1), (0, 1), (1, 0), (1, 1), (1, 1), (1, 1), (2, 0), (2, 1), (2, 1)]


def test_steps_are_counted_without_waiting(monkeypatch):
    """As on a GPU: what was skipped is asked only when a rewiring may be due."""
    from dendnorm.rewiring import steps

    asked = []
    settle = steps.StepCount._settle
    monkeypatch.setattr(steps.StepCount, "_settle", lambda self: asked.append(self.at_most) or settle(self))
    timetable = steps.Timetable(4, 0, None)
    due = []
    for skips in (0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0):
        note = torch.tensor(skips)
        with monkeypatch.context() as patch:
            patch.setattr(steps, "_waits", lambda device: True)
            timetable.note(note)
        due.append(timetable.due())
        if due[-1]:
            timetable.calls = 0
    assert due == [False, False, False, False, False, True, False]
    assert asked == [4, 1, 1]


def test_a_step_with_a_closure_counts_once():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rewire = dendnorm.SET(model, optimizer, every=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(4, 12)).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    assert rewire.state_dict() == {"seed": 0, "steps": 1, "calls": 1}


@pytest.mark.parametrize("fused", [False, True])
def test_a_schedule_waits_for_a_step_that_is_one(fused):
    from dendnorm.integrations.core import ScheduledRewiring

    model = network()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for unit in ("step", "epoch"):
        rewiring = ScheduledRewiring(**{f"every_n_{unit}s": 2}, zeta=0.3, drop="gradient", grow="gradient")
        rewiring.start(model, [optimizer], 0, 0)
        done = []
        for count, skipped in enumerate((True, True, True, False, False, True, False, False), 1):
            scaled(model, optimizer, scaler, skipped)
            reports = [rewiring.done("step", count)]
            if unit == "epoch" and count % 2 == 0:
                reports.append(rewiring.done("epoch", count // 2))
            done += [count for report in reports if report is not None]
        assert done == ([4, 7, 8] if unit == "step" else [4, 8])


# Start, stop and RigL


def test_start_and_stop():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rewire = dendnorm.SET(model, optimizer, every=np.int64(2), start=np.int32(3), stop=np.int64(8))
    changed, steps = [], 0
    for step in range(1, 13):
        train(model, optimizer)
        if rewire.state_dict()["steps"] > steps:
            changed, steps = [*changed, step], steps + 1
    assert changed == [5, 7]
    assert rewire.state_dict() == {"seed": 0, "steps": 2, "calls": 5, "optimizer_steps": 12}
    assert "start=3, stop=8" in repr(rewire)


def test_start_and_stop_go_on_from_a_state():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first = dendnorm.SET(model, optimizer, every=2, start=3, stop=8)
    train(model, optimizer, 4)
    saved = first.state_dict()
    first.remove()
    second = dendnorm.SET(model, optimizer, every=2, start=3, stop=8)
    second.load_state_dict(saved)
    train(model, optimizer, 8)
    assert second.state_dict() == {"seed": 0, "steps": 2, "calls": 5, "optimizer_steps": 12}
    third = dendnorm.SET(model, optimizer, every=2, stop=8)
    third.load_state_dict({"seed": 0, "steps": 3, "calls": 1})
    assert third.state_dict()["optimizer_steps"] == 7


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({"start": 3}, ValueError, "every must be given with start and stop"),
     ({"stop": 3}, ValueError, "every must be given with start and stop"),
     ({"every": 2, "start": -1}, ValueError, "start must be in"),
     ({"every": 2, "start": 1.5}, TypeError, "start must be an int"),
     ({"every": 2, "stop": 0}, ValueError, "stop must be in"),
     ({"every": 2, "start": 5, "stop": 5}, ValueError, "stop must be above start = 5, got 5"),
     ({"every": 0}, ValueError, "every must be in")],
)  # fmt: skip
def test_wrong_times_are_named(options, error, message):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(error, match=message):
        dendnorm.SET(model, optimizer, **options)


@pytest.mark.feature("RigL by its own name")
def test_rigl_is_set_with_growth_by_gradient():
    results = []
    for make in (
        lambda model, optimizer: dendnorm.RigL(model, optimizer, zeta=0.3, every=3),
        lambda model, optimizer: dendnorm.SET(model, optimizer, zeta=0.3, every=3, grow="gradient"),
    ):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        rewire = make(model, optimizer)
        train(model, optimizer, 10)
        assert rewire.state_dict() == {"seed": 0, "steps": 3, "calls": 1}
        results.append(model.state_dict())
    assert_same(*results)


def test_rigl_falls_with_half_a_cosine():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rigl = dendnorm.RigL(model, optimizer, zeta=0.5, every=2, stop=8)
    replaced = []
    for _ in range(12):
        train(model, optimizer)
        if rigl.report is not None and len(replaced) < rigl.report.step:
            replaced.append(rigl.report[0].k)
    shares = [0.25 * (1 + np.cos(np.pi * t / 8)) for t in (2, 4, 6, 8)]
    assert replaced == [round(share * 40) for share in shares] == [17, 10, 3, 0]
    assert rigl.zeta == 0.5


def test_rigl_takes_a_callable_and_the_trainers_give_it_its_times():
    from dendnorm.integrations.core import ScheduledRewiring

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rigl = dendnorm.RigL(model, optimizer, zeta=dendnorm.schedules.Constant(0.25), every=1, stop=4)
    train(model, optimizer, 3)
    assert rigl.report[0].k == 10
    rigl.remove()
    rewiring = ScheduledRewiring(every_n_steps=2, rewirer=dendnorm.RigL)
    rewiring.start(model, [optimizer], 0, 0)
    for step in (1, 2):
        train(model, optimizer)
        values = rewiring.done("step", step)
    assert values["rewiring/number"] == 1 and rewiring.rewirer.every is None


def test_numbers_of_numpy_are_numbers():
    model = network()
    dendnorm.SET(model, None, zeta=np.float32(0.25), seed=np.int64(3)).step()
    assert dendnorm.schedules.Cosine(np.float32(0.5), steps=np.int64(4))(4) == 0
    assert dendnorm.grow.Gradient(block=np.int64(8)).block == 8


def test_the_module_is_where_it_was():
    assert importlib.import_module("dendnorm.rewiring").RigL is dendnorm.RigL


# Copies


@pytest.mark.feature("copies and pickles of a rewiring go on by themselves, with the copy of their optimizer")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
@pytest.mark.parametrize("rules", [{}, {"grow": "gradient"}, {"drop": "cosine", "grow": "cosine"}])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_copied_rewiring_goes_on_by_itself(copied, rules, before):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, every=2, **rules)
    train(model, optimizer, before)
    other = copied((model, optimizer, rewire))
    train(model, optimizer, 4)
    train(*other[:2], 4)
    assert other[2].state_dict() == rewire.state_dict() != {"seed": 0, "steps": 0, "calls": 0}
    torch.testing.assert_close(other[0].state_dict(), model.state_dict(), rtol=0, atol=0)


def test_resize_hands_on_what_is_attached_to_the_parameter():
    model, seen = network(), []
    weight = model[0].weight
    handles = [weight.register_hook(lambda gradient: seen.append("gradient")),
               weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(len(parameter)))]  # fmt: skip
    weight.tag = "decays"
    dendnorm.resize(model, 0.6, None)
    assert model[0].weight is not weight and model[0].weight.tag == "decays"
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert seen == ["gradient", model[0].nnz]
    for handle in handles:
        handle.remove()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert len(seen) == 2
