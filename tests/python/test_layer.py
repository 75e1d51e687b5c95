"""SparseLinear as a module: built, converted, copied, saved, moved and cast like nn.Linear."""

from __future__ import annotations

import copy
import io
import json
import pickle

import op_references as references
import pytest
import torch

import dendnorm
from dendnorm import SparseLinear, functional, norms

NORMS = ["none", "l0", "l0-variable", "lp:3", "weight_norm", "joint"]
every_norm = pytest.mark.parametrize("norm", NORMS)


def assert_same(one: SparseLinear, two: SparseLinear) -> None:
    state = two.state_dict()
    assert one.state_dict().keys() == state.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for mine, theirs in zip(one.pattern, two.pattern, strict=True):
        assert torch.equal(mine, theirs)


def identity(layer: SparseLinear) -> list[tuple]:
    return [(id(t), t.data_ptr(), tuple(t.shape)) for t in (*layer.parameters(), *layer.buffers())]


# Built


@pytest.mark.parametrize("sizes", [(784, 100), (1, 1), (1, 7), (7, 1), (33, 65)])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_a_fresh_layer_has_exactly_the_connections_asked_for(sizes, density):
    layer = SparseLinear(*sizes, density=density, seed=3)
    positions = sizes[0] * sizes[1]
    assert layer.nnz == len(layer.weight) == round(density * positions)
    assert layer.density == layer.nnz / positions
    row, col = layer.edges()
    assert row.dtype == col.dtype == torch.int64
    keys = col * sizes[1] + row
    assert (keys.diff() > 0).all()  # column order, no duplicates
    assert torch.equal(layer.in_degrees(), torch.bincount(row, minlength=sizes[1]))
    assert torch.equal(layer.out_degrees(), torch.bincount(col, minlength=sizes[0]))
    assert layer(torch.ones(2, sizes[0])).shape == (2, sizes[1])
    assert torch.equal(layer.bias, torch.zeros(sizes[1]))


@pytest.mark.parametrize(("norm", "variance"), [("l0", 1 / 250), ("none", 1 / 250), ("joint", 1 / 250),
                                                (norms.l0(gain=3.0), 9 / 250), (norms.l0(s=25.0), 1)])  # fmt: skip
def test_values_are_normal_with_the_variance_of_a_layer_that_keeps_its_inputs(norm, variance):
    values = SparseLinear(500, 400, density=0.5, norm=norm, seed=0).weight.double() / variance**0.5
    assert abs(values.mean().item()) * len(values) ** 0.5 < 4.5
    assert abs(values.var().item() - 1) * (len(values) / 2) ** 0.5 < 4.5


def test_the_seed_decides_edges_and_values_whatever_norm_and_dtype():
    first = SparseLinear(60, 50, density=0.3, seed=7)
    torch.manual_seed(99)
    assert_same(first, SparseLinear(60, 50, density=0.3, seed=7))
    other = SparseLinear(60, 50, density=0.3, norm="joint", bias=False, seed=7, dtype=torch.float64)
    assert torch.equal(first.row_indices, other.row_indices)
    torch.testing.assert_close(first.weight.double(), other.weight, rtol=1e-6, atol=1e-6)
    assert not torch.equal(first.row_indices, SparseLinear(60, 50, density=0.3, seed=8).row_indices)


def test_without_a_seed_torch_decides():
    torch.manual_seed(1)
    first, second = (SparseLinear(60, 50, density=0.3) for _ in range(2))
    torch.manual_seed(1)
    assert_same(first, SparseLinear(60, 50, density=0.3))
    assert not torch.equal(first.row_indices, second.row_indices)


def test_reset_parameters_is_a_fresh_layer_in_place():
    layer = SparseLinear(20, 10, density=0.3, norm="joint", seed=1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1.0)
    before = identity(layer)
    layer.reset_parameters(seed=2)
    assert identity(layer) == before
    assert_same(layer, SparseLinear(20, 10, density=0.3, norm="joint", seed=2))


def test_the_default_dtype_is_followed_where_it_can_be():
    default = torch.get_default_dtype()
    try:
        for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
            torch.set_default_dtype(dtype)
            assert SparseLinear(5, 4, nnz=3).weight.dtype == expected
    finally:
        torch.set_default_dtype(default)


def test_repr_is_one_line():
    layer = SparseLinear(784, 100, density=0.2, norm="l0")
    line = "SparseLinear(in_features=784, out_features=100, bias=True, nnz=15680, density=0.2, norm=l0, s=156.8)"
    assert repr(layer) == line
    assert repr(torch.nn.Sequential(layer)) == f"Sequential(\n  (0): {line}\n)"
    for norm, told in [
        (None, "norm=none)"),
        (dendnorm.norms.l0(s=25.0), "norm=l0, s=25)"),
        (dendnorm.norms.joint(s=2.0), "norm=joint, p=2, s=2)"),
        ("lp-variable:3", "norm=lp-variable:3, p=3, s=0.7961)"),
        (dendnorm.norms.Norm(0.5, 1, 3, s=2.0), "norm=Norm(a=0.5, b=1, p=3, s=2))"),
    ]:
        assert told in repr(SparseLinear(20, 10, density=0.5, norm=norm))
    pattern = repr(layer.pattern)
    assert pattern == "Pattern(out_features=100, in_features=784, nnz=15680, device='cpu')"


# Converted


@every_norm
def test_dense_and_back(norm):
    layer = SparseLinear(30, 20, density=0.3, norm=norm, seed=0)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(6, 30)
    linear = layer.to_dense()
    assert type(linear) is torch.nn.Linear
    torch.testing.assert_close(linear(x), layer(x), rtol=1e-4, atol=1e-5)
    row, col = layer.edges()
    assert torch.equal(linear.weight[row, col], layer.effective_weight())
    assert linear.weight.count_nonzero() == layer.nnz
    again = SparseLinear.from_dense(linear, norm="none" if norm == "lp:3" else norm)
    torch.testing.assert_close(again(x), layer(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(again.row_indices, layer.row_indices)


def test_from_dense_keeps_the_largest():
    linear = torch.nn.Linear(30, 20)
    layer = SparseLinear.from_dense(linear, density=0.1)
    assert layer.nnz == 60
    magnitude = linear.weight.abs()
    bound = magnitude.flatten().topk(60).values[-1]
    expected = torch.where(magnitude >= bound, linear.weight, 0.0)
    torch.testing.assert_close(layer.to_dense().weight, expected, rtol=1e-5, atol=0)
    assert torch.equal(layer.bias, linear.bias)
    assert layer.bias is not linear.bias


def test_from_dense_keeps_mode_dtype_and_what_is_frozen():
    linear = torch.nn.Linear(5, 4, bias=False, dtype=torch.float64).eval()
    linear.weight.requires_grad_(False)
    layer = SparseLinear.from_dense(linear, density=0.5)
    assert not layer.training
    assert layer.bias is None
    assert layer.weight.dtype == torch.float64
    assert not layer.weight.requires_grad
    assert not layer.norm.excitability.requires_grad  # a factor of the weight
    shared = norms.l0()
    assert SparseLinear.from_dense(linear, density=0.5, norm=shared).norm.excitability.requires_grad  # of others, too
    half = SparseLinear.from_dense(torch.nn.Linear(5, 4, dtype=torch.bfloat16), density=0.5)
    assert half.weight.dtype == torch.float32
    assert half(torch.ones(2, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_csr_and_back(index):
    dense = torch.randn(6, 8) * (torch.rand(6, 8) < 0.4)
    given = dense.to_sparse_csr()
    crow, col = given.crow_indices().to(index), given.col_indices().to(index)
    layer = SparseLinear.from_csr(crow, col, given.values(), shape=(6, 8), bias=torch.arange(6.0), norm="l0")
    back = layer.to_sparse_csr()
    assert back.layout == torch.sparse_csr
    assert torch.equal(back.crow_indices().long(), given.crow_indices())
    assert torch.equal(back.col_indices().long(), given.col_indices())
    torch.testing.assert_close(back.values(), given.values())
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), x @ dense.T + torch.arange(6.0))


def test_a_pattern_is_the_same_from_every_side():
    mask = torch.rand(9, 13) < 0.3
    from_mask = functional.Pattern.from_mask(mask)
    csr, csc = mask.float().to_sparse_csr(), mask.float().to_sparse_csc()
    from_csr = functional.Pattern.from_csr(csr.crow_indices(), csr.col_indices(), (9, 13))
    from_csc = functional.Pattern.from_csc(csc.ccol_indices(), csc.row_indices(), (9, 13))
    for one, two, three in zip(from_mask, from_csr, from_csc, strict=True):
        assert one.dtype == torch.int32
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    row, col = from_mask.edges()
    assert torch.equal(torch.zeros(9, 13, dtype=torch.bool).index_put_((row, col), torch.tensor(True)), mask)
    assert (from_mask.out_features, from_mask.in_features, from_mask.nnz) == (9, 13, int(mask.sum()))


def test_sparsify_replaces_in_place_and_returns_what_it_replaced():
    shared = torch.nn.Linear(6, 6)
    model = torch.nn.ModuleDict(
        {
            "body": torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU(), shared, shared),
            "head": torch.nn.Linear(6, 3),
            "other": torch.nn.ModuleDict({"head": torch.nn.Linear(6, 3)}),
        }
    )
    old = model["body"][0], shared, model["other"]["head"]
    x = torch.randn(4, 6)
    before = model["body"](x)
    replaced = dendnorm.sparsify(model, norm="l0", skip=["head"])
    assert replaced == {"body.0": old[0], "body.2": shared, "other.head": old[2]}
    assert isinstance(model["body"][0], SparseLinear)
    assert model["body"][2] is model["body"][3]
    assert type(model["head"]) is torch.nn.Linear
    torch.testing.assert_close(model["body"](x), before, rtol=1e-4, atol=1e-5)


def test_sparsify_with_patterns_in_skip_and_one_norm_for_all():
    model = torch.nn.ModuleDict({name: torch.nn.Sequential(torch.nn.Linear(6, 6)) for name in ("a1", "a2", "b1")})
    norm = norms.l0()
    replaced = dendnorm.sparsify(model, 0.5, norm=norm, skip=["b?"])
    assert list(replaced) == ["a1.0", "a2.0"]
    assert model["a1"][0].norm is model["a2"][0].norm is norm
    assert model["a1"][0].nnz == 18


# Copied and saved


@pytest.mark.feature("deepcopy, pickle and torch.save of a layer")
@every_norm
def test_deepcopy_pickle_and_torch_save(norm):
    layer = SparseLinear(12, 9, density=0.4, norm=norm, seed=0)
    x = torch.randn(3, 12)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stream, weights_only=False),
    ):
        assert_same(twin, layer)
        assert torch.equal(twin(x), layer(x))
        assert twin.weight is not layer.weight
        assert repr(twin) == repr(layer)


def test_state_dict_holds_the_pattern_once():
    names = list(SparseLinear(12, 9, density=0.4, norm="joint").state_dict())
    assert names == ["weight", "bias", "ccol_indices", "row_indices", "pattern_mark", "norm.excitability"]


@every_norm
def test_load_state_dict_takes_over_the_pattern_in_place(norm):
    layer, other = (SparseLinear(12, 9, density=0.4, norm=norm, seed=seed) for seed in (0, 1))
    stream = io.BytesIO()
    torch.save(other.state_dict(), stream)
    stream.seek(0)
    before = identity(layer)
    layer.load_state_dict(torch.load(stream, weights_only=True))
    assert identity(layer) == before
    assert_same(layer, other)
    x = torch.randn(3, 12)
    assert torch.equal(layer(x), other(x))


@pytest.mark.feature("load_state_dict between dtypes")
def test_loading_between_dtypes_keeps_the_layers_own():
    layer, other = (SparseLinear(12, 9, density=0.4, seed=seed, dtype=dtype) for seed, dtype in
                    ((0, torch.float32), (1, torch.float64)))  # fmt: skip
    layer.load_state_dict(other.state_dict())
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer.weight, other.weight.float())
    half = {name: t.half() if t.is_floating_point() else t for name, t in other.state_dict().items()}
    layer.load_state_dict(half)
    assert layer.weight.dtype == torch.float32


# Moved and cast


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
@every_norm
def test_16_bit_modules_keep_their_values_and_take_16_bit_activations(norm, cast):
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), SparseLinear(12, 9, density=0.4, norm=norm, seed=0))
    before = copy.deepcopy(model[1])
    ids = [id(parameter) for parameter in model[1].parameters()]
    getattr(model, cast)()
    dtype = getattr(torch, {"half": "float16", "bfloat16": "bfloat16"}[cast])
    assert model[0].weight.dtype == dtype
    assert_same(model[1], before)
    assert [id(parameter) for parameter in model[1].parameters()] == ids
    out = model(torch.randn(3, 8, dtype=dtype))
    assert out.dtype == dtype
    out.sum().backward()
    assert model[1].weight.grad.dtype == torch.float32
    model.to(dtype)
    assert_same(model[1], before)
    back = SparseLinear(12, 9, density=0.4, norm=norm, seed=0, dtype=torch.float64).to(dtype)
    assert all(parameter.dtype == torch.float32 for parameter in back.parameters())


@every_norm
def test_double_and_float(norm):
    layer = SparseLinear(12, 9, density=0.4, norm=norm, seed=0)
    before = copy.deepcopy(layer)
    layer.double()
    assert all(parameter.dtype == torch.float64 for parameter in layer.parameters())
    assert all(tensor.dtype == torch.int32 for tensor in layer.pattern)
    assert layer.pattern_mark.dtype == torch.float64
    assert layer(torch.ones(2, 12, dtype=torch.float64)).dtype == torch.float64
    assert_same(layer.float(), before)
    layer.type(torch.float64)  # casts buffers too, in nn.Module
    assert all(tensor.dtype == torch.int32 for tensor in layer.pattern)
    assert layer.pattern_mark.dtype == torch.float64


@pytest.mark.feature("the meta device: reset_parameters or load_state_dict afterwards")
@every_norm
def test_meta_device_then_reset_or_load(norm):
    real = SparseLinear(12, 9, density=0.4, norm=norm, seed=5)
    with torch.device("meta"):
        within = SparseLinear(12, 9, density=0.4, norm=norm)
    for layer in (SparseLinear(12, 9, density=0.4, norm=norm, device="meta"), within):
        assert all(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))
        assert layer(torch.ones(7, 12, device="meta")).shape == (7, 9)
        assigned = copy.deepcopy(layer)
        layer.to_empty(device=torch.get_default_device())
        loaded = copy.deepcopy(layer)
        layer(torch.ones(7, 12))  # unknown values, but a sound pattern: no wild read
        layer.reset_parameters(seed=5)
        loaded.load_state_dict(real.state_dict())
        assigned.load_state_dict(real.state_dict(), assign=True)
        for made in (layer, loaded, assigned):
            assert_same(made, real)
            assert torch.equal(made(torch.ones(7, 12)), real(torch.ones(7, 12)))
    on_meta = SparseLinear.from_dense(torch.nn.Linear(5, 4, device="meta"), density=0.5)
    assert on_meta.weight.is_meta
    assert real.to("meta").to_dense().weight.is_meta


class _Double(torch.nn.Module):
    def forward(self, value):
        return 2 * value


def test_parametrizations_act_on_values_bias_and_excitability():
    layer, x = SparseLinear(6, 4, density=0.5, norm="l0", seed=0), torch.randn(3, 6)
    with torch.no_grad():
        layer.bias.normal_()
        expected = 4 * layer(x) - 2 * layer.bias
    register = torch.nn.utils.parametrize.register_parametrization
    register(layer, "weight", _Double())
    register(layer, "bias", _Double())
    register(layer.norm, "excitability", _Double())
    got = layer(x)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    for module, name in ((layer, "weight"), (layer, "bias"), (layer.norm, "excitability")):
        assert module.parametrizations[name].original.grad.abs().sum() > 0, name


def test_info_tells_versions_build_and_devices():
    from dendnorm import info

    facts = info.collect()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["devices"][0]["name"] == "cpu"
    report = info.report()
    for word in ("dendnorm", "torch", "python", "build", "instruction set", "devices", "cuda"):
        assert word in report


def test_the_mark_of_a_pattern():
    mark_of = torch.ops.dendnorm.pattern_mark
    # The kernel of devices that have none goes by the CPU.
    elsewhere = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)

    for nnz in (0, 1, 100, 7 * 33):
        layer = SparseLinear(33, 7, nnz=nnz, norm="l0", seed=nnz)
        saved = layer.ccol_indices, layer.row_indices
        mark = mark_of(*saved)
        assert mark.dtype == torch.float64
        assert torch.equal(mark, references.pattern_mark(*saved)[0])
        assert torch.equal(mark, mark_of.default.redispatch(elsewhere, *saved))
        assert torch.equal(mark, layer.pattern_mark)
    odd = torch.tensor([-1, 2**31 - 1, -(2**31), 5], dtype=torch.int32)
    strided = torch.stack([odd, odd], 1)[:, 0]
    assert torch.equal(mark_of(odd, strided), references.pattern_mark(odd, odd)[0])
    assert mark_of(odd.to("meta"), odd.to("meta")).shape == (8,)


def test_without_a_count_the_largest_connections_are_those_that_are_not_zero():
    dense = torch.tensor([[0.0, -0.0, 1e-45], [-2.0, 0.0, 0.0]])
    ccol, row, weights = torch.ops.dendnorm.largest_connections(dense, None, "linear.weight")
    assert (ccol.tolist(), row.tolist(), weights.tolist()) == ([0, 1, 1, 2], [1, 0], [-2.0, dense[0, 2].item()])
    with pytest.raises(RuntimeError, match="nnz must be given for tensors without values, got none"):
        torch.ops.dendnorm.largest_connections(dense.to("meta"), None, "linear.weight")


def test_a_state_dict_is_loaded_with_one_look_at_its_mark(monkeypatch):
    from dendnorm.ops import library

    layer, other = SparseLinear(33, 7, nnz=40, seed=0), SparseLinear(33, 7, nnz=40, seed=1)
    state, calls, mark_of = other.state_dict(), [], library.pattern_mark
    monkeypatch.setattr(library, "pattern_mark", lambda *saved: calls.append(saved) or mark_of(*saved))
    layer.load_state_dict(state)
    assert len(calls) == 1
    assert torch.equal(layer.pattern_mark, state["pattern_mark"])
