"""Wrong calls, by name: the error tells the argument, what was expected and what came; the layer stays as it was."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable

import pytest
import torch

import dendnorm
from dendnorm import SparseLinear, functional, norms

MISTAKE = (ValueError, TypeError, RuntimeError)


def layer_of(norm: str = "l0", **options) -> SparseLinear:
    return SparseLinear(6, 4, nnz=10, norm=norm, seed=0, **options)


def csr(crow=(0, 2, 3), col=(0, 2, 1), values=(1.0, 2.0, 3.0), shape=(2, 3), **options) -> SparseLinear:
    return SparseLinear.from_csr(torch.tensor(crow), torch.tensor(col), torch.tensor(values), shape=shape, **options)


def linear(*values: float) -> torch.nn.Linear:
    made = torch.nn.Linear(len(values), 1)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([values]))
    return made


# name -> (the call, what its message must hold, in this order)
CALLS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "density 0": (lambda: SparseLinear(6, 4, density=0), ("density", "(0, 1]", "0")),
    "density negative": (lambda: SparseLinear(6, 4, density=-0.1), ("density", "(0, 1]", "-0.1")),
    "density above 1": (lambda: SparseLinear(6, 4, density=1.5), ("density", "(0, 1]", "1.5")),
    "density nan": (lambda: SparseLinear(6, 4, density=math.nan), ("density", "(0, 1]", "nan")),
    "density a string": (lambda: SparseLinear(6, 4, density="all"), ("density", "number", "'all'")),
    "density a bool": (lambda: SparseLinear(6, 4, density=True), ("density", "number", "True")),
    "density and nnz": (lambda: SparseLinear(6, 4, density=0.5, nnz=3), ("density and nnz", "0.5", "3")),
    "neither density nor nnz": (lambda: SparseLinear(6, 4), ("density and nnz", "neither")),
    "nnz negative": (lambda: SparseLinear(6, 4, nnz=-1), ("nnz", "[0, ", "24]", "-1")),
    "nnz above all positions": (lambda: SparseLinear(6, 4, nnz=25), ("nnz", "24]", "25")),
    "nnz a float": (lambda: SparseLinear(6, 4, nnz=3.0), ("nnz", "int", "3.0")),
    "nnz of 2^31": (lambda: SparseLinear(2**20, 2**20, nnz=2**31, device="meta"), ("nnz", "2^31", str(2**31))),
    "in_features 0": (lambda: SparseLinear(0, 4, density=0.5), ("in_features", "[1, ", "0")),
    "in_features a float": (lambda: SparseLinear(6.0, 4, density=0.5), ("in_features", "int", "6.0")),
    "out_features negative": (lambda: SparseLinear(6, -4, density=0.5), ("out_features", "[1, ", "-4")),
    "bias a tensor": (lambda: layer_of(bias=torch.zeros(4)), ("bias", "bool", "tensor")),
    "seed negative": (lambda: SparseLinear(6, 4, nnz=3, seed=-1), ("seed", "[0, 2^63)", "-1")),
    "seed a float": (lambda: SparseLinear(6, 4, nnz=3, seed=0.5), ("seed", "int", "0.5")),
    "dtype float16": (lambda: layer_of(dtype=torch.float16), ("dtype", "float32", "float16")),
    "dtype int64": (lambda: layer_of(dtype=torch.int64), ("dtype", "float32", "int64")),
    "device unknown": (lambda: layer_of(device="gpu"), ("gpu",)),
    "norm unknown": (lambda: layer_of("l1"), ("norm", "lp:P", "'l1'")),
    "norm without p": (lambda: layer_of("lp"), ("norm", "lp:P", "'lp'")),
    "norm with p no number": (lambda: layer_of("lp:two"), ("p in norm", "number", "lp:two")),
    "norm with p below 1": (lambda: layer_of("lp:0.5"), ("p", "at least 1", "0.5")),
    "norm with p infinite": (lambda: layer_of("lp:inf"), ("p", "finite", "inf")),
    "norm with p nan": (lambda: layer_of("lp:nan"), ("p", "finite", "nan")),
    "norm a number": (lambda: layer_of(2), ("norm", "string", "int")),
    "s nan": (lambda: norms.l0(s=math.nan), ("s", "finite", "nan")),
    "s infinite": (lambda: norms.joint(s=math.inf), ("s", "finite", "inf")),
    "s a string": (lambda: norms.l0(s="25"), ("s", "number", "'25'")),
    "a nan": (lambda: norms.Norm(math.nan, 0), ("a", "finite", "nan")),
    "b infinite": (lambda: norms.Norm(0, -math.inf), ("b", "finite", "-inf")),
    "gain nan": (lambda: norms.l0(gain=math.nan), ("gain", "finite", "nan")),
    "variable no bool": (lambda: norms.l0(variable=1), ("variable", "bool", "1")),
    "crow_indices not from 0": (lambda: csr(crow=(1, 2, 3)), ("crow_indices", "0", "1")),
    "crow_indices falling": (lambda: csr(crow=(0, 4, 3)), ("crow_indices",)),
    "crow_indices with a wrong end": (lambda: csr(crow=(0, 2, 2)), ("crow_indices", "3", "2")),
    "crow_indices of wrong length": (lambda: csr(crow=(0, 2, 3, 3)), ("crow_indices", "3", "4")),
    "crow_indices floats": (lambda: csr(crow=(0.0, 2.0, 3.0)), ("crow_indices", "int32", "float32")),
    "col_indices out of range": (lambda: csr(col=(0, 3, 1)), ("col_indices", "3")),
    "col_indices negative": (lambda: csr(col=(-1, 2, 1)), ("col_indices", "[0, ", "-1")),
    "col_indices past int32": (lambda: csr(col=(0, 2**32, 1)), ("col_indices", "2^31", str(2**32))),
    "col_indices unsorted": (lambda: csr(col=(2, 0, 1)), ("col_indices", "ascending")),
    "col_indices duplicated": (lambda: csr(col=(2, 2, 1)), ("col_indices", "ascending")),
    "col_indices of two dimensions": (lambda: csr(col=((0, 2, 1),)), ("col_indices", "one dimension", "(1, 3)")),
    "values of wrong length": (lambda: csr(values=(1.0, 2.0)), ("values", "(3,)", "(2,)")),
    "values integers": (lambda: csr(values=(1, 2, 3)), ("values", "float32", "int64")),
    "values nan": (lambda: csr(values=(1.0, math.nan, 3.0)), ("values", "finite", "nan")),
    "bias of wrong length": (lambda: csr(bias=torch.zeros(3)), ("bias", "(2,)", "(3,)")),
    "bias of another dtype": (lambda: csr(bias=torch.zeros(2).double()), ("bias", "float32", "float64")),
    "shape no pair": (lambda: csr(shape=3), ("shape", "pair", "3")),
    "from_dense of a tensor": (lambda: SparseLinear.from_dense(torch.ones(2, 2)), ("linear", "nn.Linear", "Tensor")),
    "from_dense of nan": (lambda: SparseLinear.from_dense(linear(1.0, math.nan)), ("weight", "finite", "nan")),
    "from_dense of density 2": (lambda: SparseLinear.from_dense(linear(1.0), density=2), ("density", "(0, 1]", "2")),
    "from_dense, rows of unequal length": (
        lambda: SparseLinear.from_dense(torch.nn.Linear(5, 3), norm="lp:2"),
        ("norm 'lp:2'", "every row", "row", "lp-variable"),
    ),
    "from_dense with s = 0": (
        lambda: SparseLinear.from_dense(linear(1.0), norm=norms.l0(s=0.0)),
        ("excitability", "must not be 0", "0"),
    ),
    "sparsify no module": (lambda: dendnorm.sparsify([linear(1.0)], 0.5), ("model", "Module", "list")),
    "sparsify a Linear": (lambda: dendnorm.sparsify(linear(1.0), 0.5), ("model", "from_dense")),
    "sparsify, skip of nothing": (
        lambda: dendnorm.sparsify(torch.nn.Sequential(linear(1.0)), 0.5, skip=["head"]),
        ("skip", "'head'"),
    ),
    "sparsify, skip a string": (
        lambda: dendnorm.sparsify(torch.nn.Sequential(linear(1.0)), 0.5, skip="0"),
        ("skip", "list", "'0'"),
    ),
    "weight_decay negative": (lambda: dendnorm.param_groups(layer_of(), -1.0), ("weight_decay", "at least 0", "-1")),
    "weight_decay nan": (lambda: dendnorm.param_groups(layer_of(), math.nan), ("weight_decay", "finite", "nan")),
    "param_groups of a list": (lambda: dendnorm.param_groups([]), ("model", "Module", "list")),
    "mask of floats": (lambda: functional.Pattern.from_mask(torch.ones(2, 2)), ("mask", "bool", "float32")),
    "mask of one dimension": (
        lambda: functional.Pattern.from_mask(torch.ones(2, dtype=torch.bool)),
        ("mask", "two dimensions", "(2,)"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_named(name):
    call, parts = CALLS[name]
    with pytest.raises(MISTAKE) as caught:
        call()
    assert re.search(".*".join(map(re.escape, parts)), str(caught.value), re.DOTALL), str(caught.value)


def snapshot(layer: SparseLinear) -> tuple:
    tensors = [*layer.parameters(), *layer.buffers()]
    return [t.detach().clone() for t in tensors], [(id(t), t.data_ptr()) for t in tensors], repr(layer)


def assert_untouched(layer: SparseLinear, before: tuple) -> None:
    now = snapshot(layer)
    assert now[1:] == before[1:]
    assert all(torch.equal(one, two) for one, two in zip(now[0], before[0], strict=True))


# What is done to a layer -> what the message must hold
ON_A_LAYER: dict[str, tuple[Callable[[SparseLinear], object], tuple[str, ...]]] = {
    "input of wrong width": (lambda layer: layer(torch.ones(2, 5)), ("input", "6", "5")),
    "input without dimensions": (lambda layer: layer(torch.tensor(1.0)), ("input",)),
    "input of integers": (lambda layer: layer(torch.ones(2, 6, dtype=torch.int64)), ("input",)),
    "input of float64": (lambda layer: layer(torch.ones(2, 6).double()), ("input",)),
    "input no tensor": (lambda layer: layer([1.0] * 6), ("input", "list")),
    "input on another device": (lambda layer: layer(torch.ones(2, 6, device="meta")), ()),
    "reset with a bad seed": (lambda layer: layer.reset_parameters(seed=-3), ("seed", "[0, 2^63)", "-3")),
    "cast to complex": (lambda layer: layer.to(torch.complex64), ("dtype", "float32", "complex64")),
    "cast to 8 bits": (lambda layer: layer.to(torch.float8_e4m3fn), ("dtype", "float32", "float8")),
    "a pattern that is not sorted": (
        lambda layer: layer._write_pattern(layer.ccol_indices.clone(), layer.row_indices.flip(0)),
        ("row_indices", "ascending"),
    ),
    "a pattern of another size": (
        lambda layer: layer._write_pattern(layer.ccol_indices.clone(), layer.row_indices[1:]),
        ("row_indices", "10", "9"),
    ),
    "a pattern of int64": (
        lambda layer: layer._write_pattern(layer.ccol_indices.long(), layer.row_indices.long()),
        ("ccol_indices", "int32", "int64"),
    ),
}


@pytest.mark.parametrize("name", ON_A_LAYER)
def test_a_wrong_use_leaves_the_layer_as_it_was(name):
    call, parts = ON_A_LAYER[name]
    layer = layer_of("joint")
    before = snapshot(layer)
    with pytest.raises(MISTAKE) as caught:
        call(layer)
    assert re.search(".*".join(map(re.escape, parts)), str(caught.value), re.DOTALL), str(caught.value)
    assert_untouched(layer, before)


def _put(state: dict, name: str, position: int, value: float) -> None:
    state[name] = state[name].clone()
    state[name][position] = value


BAD_STATES: dict[str, tuple[Callable[[dict], object], tuple[str, ...]]] = {
    "row out of range": (lambda s: _put(s, "row_indices", -1, 4), ("row_indices", "4")),
    "row negative": (lambda s: _put(s, "row_indices", 0, -1), ("row_indices", "-1")),
    "rows duplicated": (
        lambda s: s.update(row_indices=torch.zeros(10, dtype=torch.int32)),
        ("row_indices", "ascending"),
    ),
    "pointers not from 0": (lambda s: _put(s, "ccol_indices", 0, 1), ("ccol_indices", "0", "1")),
    "pointers with a wrong end": (lambda s: _put(s, "ccol_indices", -1, 11), ("ccol_indices", "11")),
    "pointers falling": (lambda s: _put(s, "ccol_indices", 1, 10), ("ccol_indices",)),
    "pointers of int64": (lambda s: s.update(ccol_indices=s["ccol_indices"].long()), ("ccol_indices", "int32")),
    "one connection less": (
        lambda s: s.update(weight=s["weight"][1:], row_indices=s["row_indices"][1:]),
        ("weight", "(10,)", "(9,)", "nnz=9"),
    ),
    "excitability of another shape": (lambda s: s.update({"norm.excitability": torch.ones(5)}), ("(4,)", "(5,)")),
    "bias of another shape": (lambda s: s.update(bias=torch.ones(5)), ("bias", "(4,)", "(5,)")),
    "no row_indices": (lambda s: s.pop("row_indices"), ("row_indices",)),
    "no excitability": (lambda s: s.pop("norm.excitability"), ("norm.excitability",)),
    "weight a list": (lambda s: s.update(weight=[1.0] * 10), ("weight", "tensor", "list")),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", BAD_STATES)
def test_a_bad_state_dict_is_refused_before_anything_changes(name, nested, assign):
    damage, parts = BAD_STATES[name]
    layer = layer_of("joint")
    other = SparseLinear(6, 4, nnz=10, norm="joint", seed=5)
    with torch.no_grad():
        other.norm.excitability.add_(1.0)
        other.bias.add_(1.0)
    state = dict(other.state_dict())
    damage(state)
    model = torch.nn.ModuleDict({"inner": layer}) if nested else layer
    if nested:
        state = {f"inner.{key}": value for key, value in state.items()}
    given = copy.copy(state)
    before = snapshot(layer)
    with pytest.raises(MISTAKE) as caught:
        model.load_state_dict(state, assign=assign)
    assert re.search(".*".join(map(re.escape, parts)), str(caught.value), re.DOTALL), str(caught.value)
    assert_untouched(layer, before)
    assert state.keys() == given.keys()
    assert all(state[key] is given[key] for key in given), "the caller's state_dict was written to"


def test_a_pattern_without_its_values_is_refused_even_when_not_strict():
    layer = layer_of("joint")
    state = dict(SparseLinear(6, 4, nnz=10, norm="joint", seed=5).state_dict())
    del state["weight"]
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match="weight"):
        layer.load_state_dict(state, strict=False)
    assert_untouched(layer, before)


@pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="to read a pattern, the host would wait for it")
def test_a_row_view_of_another_pattern_is_refused_by_every_op():
    ops = torch.ops.dendnorm
    mine, other = (SparseLinear(60, 40, nnz=300, norm="l0", seed=seed) for seed in (0, 1))
    mixed = (mine.ccol_indices, mine.row_indices, *other.pattern[2:])
    x, y, e, abp = torch.randn(2, 60), torch.randn(2, 40), mine.norm.excitability, (1.0, 0.0, 2.0)
    weight = mine.weight.detach()
    calls = {
        "sparse_linear": (x, weight, None, e, *mixed, *abp),
        "sparse_linear_backward": (y, x, weight, e, *mixed, *abp, [True] * 4),
        "effective_weight": (weight, e, *mixed, *abp),
        "effective_weight_backward": (weight, weight, e, *mixed, *abp, [True] * 2),
        "sampled_product": (y, x, *mixed),
    }
    for name, arguments in calls.items():
        with torch.no_grad(), pytest.raises(ValueError, match=rf"dendnorm::{name}: crow_indices.*views of different"):
            getattr(ops, name)(*arguments)
    with pytest.raises(ValueError, match="views of different patterns"):
        functional.sparse_linear(x, weight, dendnorm.Pattern(*mixed))


def test_views_without_connections_are_those_of_one_pattern():
    layer = SparseLinear(6, 4, nnz=0, norm="joint")
    assert torch.equal(layer(torch.randn(3, 6)), layer.bias.expand(3, -1))
    layer(torch.randn(3, 6)).sum().backward()
    assert layer.weight.grad.shape == (0,)


def test_a_norm_cannot_be_shared_where_it_does_not_fit():
    variable = norms.l0(variable=True)
    SparseLinear(6, 4, nnz=10, norm=variable)
    with pytest.raises(ValueError, match=r"out_features must be 4 .* got 5"):
        SparseLinear(6, 5, nnz=10, norm=variable)
    shared = norms.l0()
    SparseLinear(6, 4, nnz=10, norm=shared)
    with pytest.raises(ValueError, match=r"float32.*float64"):
        SparseLinear(6, 4, nnz=10, norm=shared, dtype=torch.float64)


def test_a_refused_conversion_leaves_model_and_norm_as_they_were():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    norm = norms.lp(2)
    modules = list(model)
    with pytest.raises(ValueError, match=r"1: .*finite"):
        dendnorm.sparsify(model, 0.5)
    with pytest.raises(ValueError, match=r"0: .*every row"):
        dendnorm.sparsify(model, norm=norm)
    assert list(model) == modules
    assert norm.excitability is None


def test_a_tied_weight_is_not_silently_untied():
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    with pytest.raises(ValueError, match=r"'head' to skip"):
        dendnorm.sparsify(model, 0.5)
    assert type(model["head"]) is torch.nn.Linear
    with pytest.raises(ValueError, match=r"nothing was replaced: .*head: named in skip"):
        dendnorm.sparsify(model, 0.5, skip=["head"])


def test_a_missing_optional_package_is_named():
    from dendnorm._extras import require

    assert require("math", "train") is math
    with pytest.raises(ImportError, match=r"no_such_package.*pip install no_such_package"):
        require("no_such_package.inside", "train")


def test_a_missing_build_is_named(tmp_path):
    import os
    import shutil
    import subprocess
    import sys
    from pathlib import Path

    source = Path(dendnorm.__file__).parent
    shutil.copytree(source, tmp_path / "dendnorm", ignore=shutil.ignore_patterns("*.so", "lib", "__pycache__"))
    command = [sys.executable, "-c", "import dendnorm"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"no compiled library is in .*--no-build-isolation", done.stderr, re.DOTALL), done.stderr
