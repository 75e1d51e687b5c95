"""The norms: their names, where the excitability starts, who shares it, and that the formula can be undone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from dendnorm.functional import effective_weight

import dendnorm
from dendnorm import SparseLinear, norms

# name -> (a, b, p or None where it plays no part, variable); "Notation" of the paper's table
TABLE = {
    "none": (0, 0, None, False),
    "l0": (1, 0, None, False),
    "l0-variable": (1, 0, None, True),
    "lp:1": (0, 1, 1, False),
    "lp:2": (0, 1, 2, False),
    "lp:3.7": (0, 1, 3.7, False),
    "lp-variable:2": (0, 1, 2, True),
    "lp-variable:5": (0, 1, 5, True),
    "weight_norm": (0, 1, 2, True),
    "joint": (1, 1, 2, True),
}
every_name = pytest.mark.parametrize("name", TABLE)


@every_name
def test_string_forms_mean_what_the_paper_says_and_come_back(name):
    norm = norms.resolve(name)
    a, b, p, variable = TABLE[name]
    assert (norm.a, norm.b, norm.variable) == (a, b, variable)
    assert p is None or norm.p == p
    assert norm.name == name
    assert norm.excitability is None
    assert copy.deepcopy(norm).name == name


def test_factories_equal_the_strings():
    made = {
        "none": norms.none(),
        "l0": norms.l0(),
        "l0-variable": norms.l0(variable=True),
        "lp:1": norms.lp(1),
        "lp:2": norms.lp(2),
        "lp:3.7": norms.lp(3.7),
        "lp-variable:2": norms.lp(2, variable=True),
        "lp-variable:5": norms.lp(5, variable=True),
        "weight_norm": norms.weight_norm(),
        "joint": norms.joint(),
    }
    for name, norm in made.items():
        assert norm.name == name
        order = f", p={norm.p:g}" if norm.b else ""
        assert repr(norm) == f"Norm({name}{order})"
    assert norms.resolve(None).name == "none"
    assert norms.resolve(made["l0"]) is made["l0"]
    assert repr(norms.Norm(0.5, -1, 3, variable=True, s=2)) == "Norm(a=0.5, b=-1, p=3, variable=True, s=2)"


@pytest.mark.parametrize("name", ["lp: 3", "lp:3 ", "lp:+3", "lp:3e0"])
def test_an_order_is_any_way_to_write_a_number(name):
    assert norms.resolve(name).name == "lp:3"


@pytest.mark.parametrize(("name", "message"), [
    ("lp:two", "p in norm must be a number of at least 1, got 'lp:two'"),
    ("lp:inf", "p must be finite, got inf"),
    ("lp:0.5", "p must be at least 1, got 0.5"),
    ("l0:2", 'norm must be "none", "l0", .* or "[a-z_]+", got \'l0:2\''),
])  # fmt: skip
def test_what_is_no_name_of_a_norm_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        norms.resolve(name)


def moment(p: float) -> float:
    """E|z|^p of a standard normal by quadrature, not by the gamma function."""
    z = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    return float((z.abs() ** p * torch.exp(-(z**2) / 2)).sum() * (80 / 400_000) / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("abp", [(1, 0, 2), (0, 1, 1), (0, 1, 2), (0, 1, 3.7), (1, 1, 2), (0.5, 0.5, 2.5)])
@pytest.mark.parametrize("gain", [1.0, 1.7])
def test_the_start_is_the_typical_d_so_that_values_are_weights(abp, gain):
    a, b, p = abp
    layer = SparseLinear(50, 20, nnz=240, norm=norms.Norm(a, b, p, gain=gain), seed=0, dtype=torch.float64)
    n = 12.0
    expected = n**a * (gain / math.sqrt(n) * (n * moment(p)) ** (1 / p)) ** b
    assert layer.norm.excitability.item() == pytest.approx(expected, rel=1e-7)
    assert layer.norm.excitability.shape == ()


def test_the_start_of_l0_is_the_mean_in_degree():
    layer = SparseLinear(784, 100, density=0.2, seed=0)
    assert layer.norm.excitability.item() == pytest.approx(156.8, rel=1e-6)


def test_the_papers_start_is_one_argument():
    layer = SparseLinear(784, 100, density=0.2, norm=norms.l0(s=25.0), seed=0)
    assert layer.norm.excitability.item() == 25
    assert layer.weight.std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", [name for name in TABLE if name != "none"])
def test_a_fresh_layer_keeps_the_variance_of_its_input(name):
    torch.manual_seed(1)
    layer = SparseLinear(400, 300, density=0.3, norm=name, seed=1)
    variance = layer(torch.randn(500, 400)).var().item()
    assert variance == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    "norm", [norms.l0(s=25.0), norms.lp(3, s=25.0), norms.joint(s=25.0), norms.Norm(0, 0, s=25.0), norms.l0(True, s=25)]
)
def test_s_fixes_the_start(norm):
    layer = SparseLinear(40, 30, density=0.3, norm=norm)
    assert torch.equal(norm.excitability, torch.full((30,) if norm.variable else (), 25.0))
    assert layer.norm is norm
    with torch.no_grad():
        norm.excitability.add_(1.0)
    layer.reset_parameters()
    assert norm.excitability.flatten()[0] == 25.0


@pytest.mark.parametrize("nnz", [0, 1])
@every_name
def test_a_layer_of_few_connections_starts_finite(name, nnz):
    layer = SparseLinear(5, 4, nnz=nnz, norm=name, seed=0)
    assert all(torch.isfinite(parameter).all() for parameter in layer.parameters())
    assert torch.isfinite(layer(torch.ones(2, 5))).all()


def test_one_object_is_one_parameter_of_many_layers():
    norm = norms.l0()
    model = torch.nn.Sequential(
        SparseLinear(9, 8, density=0.5, norm=norm), torch.nn.ReLU(), SparseLinear(8, 7, density=0.9, norm=norm)
    )
    e = norm.excitability
    assert sum(parameter is e for parameter in model.parameters()) == 1
    assert e.item() == pytest.approx(36 / 8)  # of the first layer
    for twin in (copy.deepcopy(model), model.double()):
        assert twin[0].norm is twin[2].norm
        assert twin[0].norm.excitability is twin[2].norm.excitability
    assert norm.excitability.dtype == torch.float64
    strings = [SparseLinear(9, 8, density=0.5, norm="l0") for _ in range(2)]
    assert strings[0].norm is not strings[1].norm


def test_a_second_layer_does_not_move_a_trained_excitability():
    norm = norms.l0()
    SparseLinear(9, 8, density=0.5, norm=norm)
    with torch.no_grad():
        norm.excitability.fill_(3.0)
    SparseLinear(9, 8, density=0.5, norm=norm)
    SparseLinear.from_dense(torch.nn.Linear(9, 8), norm=norm)
    assert norm.excitability.item() == 3.0


FAMILY = {
    **{name: name for name in TABLE if not name.startswith("lp:")},
    "family": norms.Norm(0.5, 0.5, 2.5),
    "family-variable": norms.Norm(0.5, 0.5, 2.5, variable=True),
    "family-s": norms.Norm(0.5, 0.5, 2.5, s=-2.0),
    "b of 2": norms.Norm(0, 2, 3),
    "l0-s": norms.l0(s=25.0),
    "l0-variable-s": norms.l0(True, s=-25.0),
    "joint-s": norms.joint(s=25.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
@pytest.mark.parametrize("name", FAMILY)
def test_from_dense_gives_the_same_effective_weights(name, scale, dtype):
    linear = torch.nn.Linear(11, 7, dtype=dtype)
    with torch.no_grad():
        linear.weight.mul_(scale).mul_(torch.rand(7, 1, dtype=dtype) + 0.1)
        linear.weight[2] = 0.0  # a row that keeps nothing
        linear.weight[torch.rand(7, 11) < 0.5] = 0.0
    layer = SparseLinear.from_dense(linear, norm=copy.deepcopy(FAMILY[name]))
    back = layer.to_dense()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(back.weight, linear.weight, rtol=tolerance, atol=0)
    assert layer.nnz == int((linear.weight != 0).sum())
    if (layer.norm.s is None and layer.norm.variable) or name == "none":  # v is w
        torch.testing.assert_close(layer.weight, layer.effective_weight(), rtol=tolerance, atol=0)
    elif layer.norm.s is None and layer.norm.b == 0:  # v is w where a neuron has the mean number of connections
        mean = layer.nnz / layer.out_features
        assert layer.norm.excitability.item() == pytest.approx(mean**layer.norm.a, rel=1e-6)
    elif layer.norm.s is None and layer.norm.b != 1:  # or where D, of w, is its mean
        row, counts = layer.edges()[0], layer.in_degrees().double()
        power = torch.zeros(7, dtype=torch.float64)
        power.index_add_(0, row, (layer.effective_weight().detach().double() / scale).abs() ** layer.norm.p)
        length = (power ** (1 / layer.norm.p) * scale)[power > 0]
        d = counts[power > 0] ** layer.norm.a * length**layer.norm.b
        assert layer.norm.excitability.item() == pytest.approx(d.mean().item(), rel=1e-4)


def test_from_dense_with_one_excitability_for_lp_needs_rows_of_one_length():
    linear = torch.nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight.div_(linear.weight.norm(dim=1, keepdim=True)).mul_(3.0)
    layer = SparseLinear.from_dense(linear, norm="lp:2")
    assert layer.norm.excitability.item() == pytest.approx(3.0)
    torch.testing.assert_close(layer.to_dense().weight, linear.weight, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["lp:2", "weight_norm", "joint", "l0"])
def test_stored_zeros_stay_connections_that_give_zero(name):
    crow, col = torch.tensor([0, 2, 4]), torch.tensor([0, 1, 0, 2])
    layer = SparseLinear.from_csr(crow, col, torch.tensor([0.0, 0.0, 3.0, 4.0]), shape=(2, 3), norm=name)
    assert layer.nnz == 4
    expected = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    torch.testing.assert_close(layer.to_dense().weight.detach(), expected)
    layer(torch.ones(1, 3)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_functional_takes_the_excitability_of_the_norm_object_unless_given():
    layer = SparseLinear(9, 8, density=0.5, norm="l0", seed=0)
    norm, weight, pattern = layer.norm, layer.weight, layer.pattern
    own = effective_weight(weight, pattern, norm)
    torch.testing.assert_close(own, layer.effective_weight())
    one = effective_weight(weight, pattern, "l0")
    torch.testing.assert_close(own, one * norm.excitability)
    torch.testing.assert_close(effective_weight(weight, pattern, norm, torch.tensor(2.0)), 2 * one)
    x = torch.randn(3, 9)
    got = dendnorm.functional.sparse_linear(x, weight, pattern, layer.bias, norm)
    torch.testing.assert_close(got, layer(x))


def test_param_groups_decay_values_and_matrices_alone():
    model = torch.nn.Sequential(
        SparseLinear(9, 8, density=0.5, norm="joint"), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)
    )
    decays, stays = dendnorm.param_groups(model, weight_decay=1e-4)
    assert [id(p) for p in decays["params"]] == [id(model[0].weight), id(model[2].weight)]
    others = [model[0].bias, model[0].norm.excitability, *model[1].parameters(), model[2].bias]
    assert {id(p) for p in stays["params"]} == {id(p) for p in others}
    assert (decays["weight_decay"], stays["weight_decay"]) == (1e-4, 0.0)
    torch.optim.AdamW([decays, stays], lr=0.1)


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["l0", "l0-variable", "lp:2", "joint"])
@pytest.mark.parametrize("written_out", [False, True])
def test_a_neuron_without_connections_gives_its_bias_whatever_its_excitability(name, special, written_out):
    # Neuron 1 has no connections, and in neuron 3, a dead one where b != 0, all values are 0.
    crow, col = torch.tensor([0, 2, 2, 4, 6]), torch.tensor([0, 2, 0, 1, 1, 2])
    layer = SparseLinear.from_csr(crow, col, torch.ones(6), shape=(4, 3), bias=torch.arange(4.0), norm="l0")
    pattern, (a, b, p, variable) = layer.pattern, TABLE[name]
    p = 2.0 if p is None else p
    dead = [1, 3] if b else [1]
    values = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0, 2.0])[pattern.perm.argsort()]
    values[pattern.row_indices == 3] = 0.0
    e = torch.full((4,), 2.0) if variable else torch.tensor(special)
    if variable:
        e[[1, 3]] = special
    x, weight, excitability = (tensor.requires_grad_() for tensor in (torch.randn(5, 3), values, e))
    op = torch.ops.dendnorm.sparse_linear
    out = op(x, weight, layer.bias, excitability, *pattern, float(a), float(b), p)
    assert torch.equal(out[:, dead], layer.bias[dead].expand(5, -1))
    assert torch.equal(
        op(x.detach(), weight, None, excitability, *pattern, float(a), float(b), p)[:, dead],
        out.new_zeros(5, len(dead)),
    )
    alive = [row for row in range(4) if row not in dead]
    if not variable or not b:
        assert not torch.isfinite(out[:, alive]).all()

    # Through the dead neurons nothing comes back that is not a number.
    loss = out[:, dead if not variable else [*dead, 0, 2]].sum()
    dx, dv, de = torch.autograd.grad(loss, (x, weight, excitability), create_graph=written_out)
    of_dead = torch.isin(pattern.row_indices, torch.tensor(dead))
    assert torch.equal(dv[of_dead], torch.zeros(int(of_dead.sum())))
    if variable and b:
        for gradient in (dx, dv, de):
            assert torch.isfinite(gradient).all()
        assert torch.equal(de[dead], torch.zeros(len(dead)))
    if written_out and variable and b:
        second = torch.autograd.grad(dv[~of_dead].square().sum(), (weight, excitability), allow_unused=True)
        assert torch.isfinite(second[0]).all()


@pytest.mark.feature("a dense layer that starts at 0 becomes sparse and learns, under every norm")
@pytest.mark.parametrize("norm", ["none", "l0", "l0-variable", "weight_norm", "joint", "lp:2", "lp-variable:1"])
@pytest.mark.parametrize("rows", ["all", "one"])
def test_weights_of_zero_can_be_learnt_from(norm, rows):
    if (norm, rows) == ("lp:2", "one"):
        pytest.skip("one excitability for all neurons stands for rows of one length alone")
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    x, target = (torch.randn(64, size, generator=generator) for size in (20, 10))
    linear = torch.nn.Linear(20, 10)
    with torch.no_grad():
        (linear.weight if rows == "all" else linear.weight[3]).zero_()
    layer = dendnorm.SparseLinear.from_dense(linear, 0.3 if rows == "all" else 1.0, norm=norm)
    assert torch.equal(layer.to_dense().weight[3], torch.zeros(20))
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    learnt = layer.to_dense().weight.abs().amax(1)
    assert (learnt[layer.in_degrees() > 0] > 1e-4).all(), learnt


def test_the_lengths_of_rows_go_from_the_forward_pass_to_the_backward_one():
    """Where b is not 0 the graph keeps them; they are measured once."""
    for norm, kept in (("l0", 0), ("lp:2", 1), ("joint", 1)):
        layer = dendnorm.SparseLinear(20, 30, density=0.3, norm=norm, seed=0)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            layer(torch.randn(4, 20))
        assert sum(tensor.dtype == torch.float64 and tensor.shape[0] == 30 for tensor in saved) == kept
