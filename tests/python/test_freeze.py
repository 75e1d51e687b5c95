"""Frozen layers: what they compute, hold, save and refuse."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import dendnorm
from dendnorm import FrozenLinear, SparseLinear

NORMS = ["none", "l0", "l0-variable", "lp:2", "lp:3", "weight_norm", "joint"]


def network(norm: str = "joint", sizes: tuple[int, int, int] = (12, 16, 4)) -> nn.Sequential:
    torch.manual_seed(0)
    a, b, c = sizes
    model = nn.Sequential(
        SparseLinear(a, b, density=0.2, norm=norm, seed=0),
        nn.ReLU(),
        SparseLinear(b, c, density=0.4, bias=False, seed=1),
    )
    nn.init.normal_(model[0].bias)
    return model


def frozen(norm: str = "joint") -> nn.Sequential:
    model = network(norm)
    dendnorm.freeze(model)
    return model


@pytest.mark.feature("freeze: effective weights in row order for inference, in place")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("samples", [1, 2, 5, 32, 100])
def test_a_frozen_model_computes_the_same(norm, samples):
    model, x = network(norm, (200, 150, 40)).eval(), torch.randn(samples, 200)
    dense = copy.deepcopy(model).double()
    dendnorm.densify(dense)
    layers = [model[0], model[2]]
    replaced = dendnorm.freeze(model)
    assert replaced == {"0": layers[0], "2": layers[1]} and replaced.left == {}
    assert "freeze: 2 layers replaced" in str(replaced)
    torch.testing.assert_close(model(x), dense(x.double()).float(), rtol=1e-5, atol=1e-5)
    assert list(model.parameters()) == []
    assert dendnorm.freeze(model) == {}


@pytest.mark.parametrize("samples", [1, 3, 32, 65])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_takes_16_bit_activations_with_32_bit_values(dtype, samples):
    model, x = frozen(), torch.randn(samples, 12).to(dtype)
    model.to(dtype)
    assert model[0].weight.dtype == torch.float32 and model[0].col_indices.dtype == torch.int16
    want = model[0].double()(x.double())
    bound = torch.finfo(dtype).eps * (want.abs() + 1e-2)
    assert ((model[0].float()(x).double() - want).abs() <= bound).all()


def test_holds_at_most_half_the_bytes():
    layer = SparseLinear(500, 400, density=0.1, seed=0)
    small = FrozenLinear.from_sparse(layer)

    def held(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    whole = held([layer.weight, *layer.pattern])
    assert held([small.weight, small.crow_indices, small.col_indices]) <= 0.5 * whole
    assert small.to_sparse_csr().to_dense().equal(layer.to_sparse_csr().to_dense())


@pytest.mark.parametrize(("inputs", "dtype"), [(65_536, torch.int16), (65_537, torch.int32)])
def test_indices_are_as_wide_as_they_need_to_be(inputs, dtype):
    layer = SparseLinear(inputs, 3, nnz=500, norm="l0", seed=0)
    small = FrozenLinear.from_sparse(layer)
    assert small.col_indices.dtype == dtype and small.to_sparse_csr().col_indices().equal(layer.col_indices)
    x = torch.randn(3, inputs)
    with torch.no_grad():
        torch.testing.assert_close(small(x), layer(x))
    fresh = FrozenLinear(inputs, 3, 500)
    fresh.load_state_dict(small.state_dict())
    assert fresh(x).equal(small(x))


def test_memory_is_its_own_and_flags_are_kept():
    layer = SparseLinear(6, 5, density=0.5, norm="none", seed=0)
    small = FrozenLinear.from_sparse(layer)
    x = torch.randn(2, 6)
    before = small(x)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.add_(1)
    assert small(x).equal(before)
    assert not small.training and FrozenLinear.from_sparse(layer.double()).weight.dtype == torch.float64


def test_state_dict_pickle_and_copies():
    model, x = frozen(), torch.randn(7, 12)
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other(x).equal(want)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = nn.Sequential(FrozenLinear(12, 16, model[0].nnz), nn.ReLU(), FrozenLinear(16, 4, model[2].nnz, bias=False))
    fresh.load_state_dict(torch.load(file))
    assert fresh(x).equal(want)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("col_indices", lambda t: t + 12),
        ("crow_indices", lambda t: t.flip(0)),
        ("crow_indices", lambda t: t - 1),
    ],
)
def test_a_state_dict_that_is_no_pattern_is_refused(name, spoil):
    model, x = frozen(), torch.randn(7, 12)
    want, state = model(x), model.state_dict()
    state = {key: value.clone() for key, value in state.items()}
    state[f"0.{name}"] = spoil(state[f"0.{name}"])
    with pytest.raises(RuntimeError, match=name):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=name):
        model.load_state_dict({f"0.{name}": state[f"0.{name}"]}, strict=False)
    assert model(x).equal(want)


def test_a_state_dict_with_indices_of_another_width_is_taken():
    layer = FrozenLinear.from_sparse(SparseLinear(65_536, 3, nnz=500, seed=0))
    wide, x = FrozenLinear(65_537, 3, 500), torch.randn(3, 65_537)
    wide.load_state_dict(layer.state_dict())
    torch.testing.assert_close(wide(x), layer(x[:, :-1].contiguous()))


def test_training_and_derivatives_are_refused_by_name():
    model, x = frozen(), torch.randn(3, 12)
    with pytest.raises(RuntimeError, match=r"FrozenLinear.*cannot train; call eval\(\)"):
        model.train()(x)
    model.eval()
    with pytest.raises(NotImplementedError, match="has no derivatives"):
        model(x.requires_grad_())
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model(x)


def test_freeze_skips_shares_and_refuses():
    model = network()
    assert set(dendnorm.freeze(model, skip=["2"])) == {"0"} and isinstance(model[2], SparseLinear)
    mixed = nn.Sequential(dendnorm.SparseConv2d(2, 3, 1, density=0.5, seed=0), nn.Flatten(1), network()[0])
    assert set(dendnorm.freeze(mixed).left.items()) == {("0", "a convolution")}
    layer = SparseLinear(6, 6, density=0.5, seed=0)
    twice = nn.Sequential(layer, layer)
    dendnorm.freeze(twice)
    assert twice[0] is twice[1]
    with pytest.raises(ValueError, match="from_sparse"):
        dendnorm.freeze(SparseLinear(3, 3, 0.5))
    with pytest.raises(TypeError, match="model must be"):
        dendnorm.freeze([network()])
    with pytest.raises(ValueError, match="skip must name modules"):
        dendnorm.freeze(network(), skip=["head"])
    with pytest.raises(TypeError, match="layer must be a SparseLinear"):
        FrozenLinear.from_sparse(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"nnz must be in .* = \[0, 6\]"):
        FrozenLinear(2, 3, 7)
    with pytest.raises(TypeError, match="dtype must be"):
        FrozenLinear(2, 3, 4, dtype=torch.float16)


def test_freeze_on_meta():
    with torch.device("meta"):
        model = network()
    dendnorm.freeze(model)
    assert model[0].weight.is_meta and model(torch.empty(3, 12, device="meta")).shape == (3, 4)


@pytest.mark.slow
def test_compiles_and_exports():
    model, x = frozen(), torch.randn(5, 12)
    want = model(x)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), want)
    plain = program.run_decompositions(dendnorm.decompositions())
    assert "dendnorm" not in str(plain.graph)
    torch.testing.assert_close(plain.module()(x), want)


def test_bits_do_not_depend_on_threads():
    layer = FrozenLinear.from_sparse(SparseLinear(300, 400, density=0.2, norm="lp:2", seed=0))
    before = torch.get_num_threads()
    try:
        for samples in (1, 9, 70):
            x = torch.randn(samples, 300)
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(layer(x))
            assert results[1].equal(results[0]) and results[2].equal(results[0])
    finally:
        torch.set_num_threads(before)
