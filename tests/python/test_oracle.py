"""The ops against the float64 oracle: generated cases, and by name the corners where such code usually breaks."""

from __future__ import annotations

import os

import numpy as np
import oracle
import pytest
import torch
from op_table import FAMILY, NORMS, POWERS
from oracle_inputs import LAYOUTS, excitability_of, laid_out, leading_shape, random_mask, random_values

import dendnorm

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
given = hypothesis.given


def examples(count: int) -> hypothesis.settings:
    """So many generated cases; no more than DENDNORM_TEST_EXAMPLES, where the device is a slow stand-in."""
    return hypothesis.settings(max_examples=min(count, int(os.environ.get("DENDNORM_TEST_EXAMPLES", count))))


ops = torch.ops.dendnorm

BATCHES = st.one_of(st.sampled_from([1, 7, 10, 16, 17, 33, 64, 65, 129]), st.integers(0, 70))
SIZES = st.integers(0, 40)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def check(x, weight, bias, excitability, pattern, a, b, p, grad_output, wanted=(True,) * 4, tolerance=None) -> None:
    """Runs the op forward and backward for the wanted subset of gradients and compares everything."""
    tolerance = tolerance or oracle.TOLERANCE[weight.dtype]
    arguments = [x, weight, bias, excitability]
    leaves = [
        None if argument is None else argument.detach().requires_grad_(want)
        for argument, want in zip(arguments, wanted, strict=True)
    ]
    got = ops.sparse_linear(*leaves, *pattern.tensors, a, b, p)
    assert got.dtype == x.dtype
    want = oracle.sparse_linear(x, weight, bias, excitability, pattern, a, b, p, grad_output)
    oracle.assert_close("output", got, want.output, tolerance)
    named = ("input", "weight", "bias", "excitability")
    asked = [(name, leaf) for name, leaf in zip(named, leaves, strict=True) if leaf is not None and leaf.requires_grad]
    assert got.requires_grad == bool(asked)
    if not asked:
        return
    gradients = torch.autograd.grad(got, [leaf for _, leaf in asked], grad_output)
    for (name, leaf), gradient in zip(asked, gradients, strict=True):
        assert gradient.dtype == leaf.dtype
        skip = want.undefined if name == "weight" else None
        oracle.assert_close(f"gradient of {name}", gradient, getattr(want, f"d_{name}"), tolerance, skip)


@examples(1500)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=SIZES,
    cols=SIZES,
    batch=BATCHES,
    density=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])),
    norm=st.sampled_from(sorted(FAMILY)),
    dtype=DTYPES,
    rank=st.integers(1, 4),
    layout=st.sampled_from(LAYOUTS),
    grad_layout=st.sampled_from(LAYOUTS),
    with_bias=st.booleans(),
    wanted=st.tuples(*[st.booleans()] * 4),
)
def test_sparse_linear_equals_oracle(
    seed, rows, cols, batch, density, norm, dtype, rank, layout, grad_layout, with_bias, wanted
):
    rng = np.random.default_rng(seed)
    a, b, p, kind = FAMILY[norm]
    pattern = oracle.pattern_of(random_mask(rng, rows, cols, density))
    lead = leading_shape(rng, rank, batch)
    check(
        laid_out(rng, (*lead, cols), layout, dtype),
        random_values(rng, pattern, dtype),
        laid_out(rng, (rows,), "contiguous", dtype) if with_bias else None,
        excitability_of(rng, kind, rows, dtype),
        pattern,
        a,
        b,
        p,
        laid_out(rng, (*lead, rows), grad_layout, dtype),
        wanted,
    )


@examples(500)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=SIZES,
    cols=SIZES,
    batch=BATCHES,
    density=st.floats(0, 1),
    a=st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.0]),
    b=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]),
    p=st.one_of(st.sampled_from(POWERS), st.floats(1, 6)),
    kind=st.sampled_from([None, "shared", "own"]),
    dtype=DTYPES,
    exponent=st.sampled_from([-20, -6, 0, 6, 20]),
)
def test_whole_family_at_any_scale_equals_oracle(seed, rows, cols, batch, density, a, b, p, kind, dtype, exponent):
    # 1e20 squared overflows float32 and 1e-20 squared vanishes in it; results that leave the type's range are no test.
    if dtype is torch.float32 and abs(exponent) == 20:
        b = min(b, 1.0)
    rng = np.random.default_rng(seed)
    pattern = oracle.pattern_of(random_mask(rng, rows, cols, density))
    check(
        laid_out(rng, (batch, cols), "contiguous", dtype),
        random_values(rng, pattern, dtype) * 10.0**exponent,
        laid_out(rng, (rows,), "contiguous", dtype),
        excitability_of(rng, kind, rows, dtype),
        pattern,
        a,
        b,
        p,
        laid_out(rng, (batch, rows), "contiguous", dtype),
    )


@examples(400)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=SIZES,
    cols=SIZES,
    density=st.floats(0, 1),
    norm=st.sampled_from(sorted(FAMILY)),
    dtype=DTYPES,
    wanted=st.tuples(st.booleans(), st.booleans()),
)
def test_effective_weight_equals_oracle(seed, rows, cols, density, norm, dtype, wanted):
    rng = np.random.default_rng(seed)
    a, b, p, kind = FAMILY[norm]
    pattern = oracle.pattern_of(random_mask(rng, rows, cols, density))
    row, col = pattern.rows_cols
    weight = random_values(rng, pattern, dtype).requires_grad_(wanted[0])
    excitability = excitability_of(rng, kind, rows, dtype)
    if excitability is not None:
        excitability.requires_grad_(wanted[1])
    got = ops.effective_weight(weight, excitability, *pattern.tensors, a, b, p)
    want = oracle.effective_weight(weight, excitability, pattern, a, b, p)[row, col]
    tolerance = oracle.TOLERANCE[dtype]
    oracle.assert_close("effective weight", got, oracle.Result(want, np.abs(want)), tolerance)
    asked = [leaf for leaf in (weight, excitability) if leaf is not None and leaf.requires_grad]
    if not asked:
        return
    gradient = torch.tensor(rng.standard_normal(pattern.nnz), dtype=dtype)
    dense = oracle.dense_of(gradient, pattern)
    d_weight, d_excitability, vanishing = oracle.effective_weight_backward(
        dense, np.abs(dense), weight, excitability, pattern, a, b, p
    )
    for leaf, result in zip(asked, torch.autograd.grad(got, asked, gradient), strict=True):
        if leaf is weight:
            wanted_result = oracle.Result(d_weight.value[row, col], d_weight.terms[row, col])
            oracle.assert_close("gradient of weight", result, wanted_result, tolerance, vanishing[row])
        else:
            oracle.assert_close("gradient of excitability", result, d_excitability, tolerance)


@examples(300)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=SIZES,
    cols=SIZES,
    batch=BATCHES,
    density=st.floats(0, 1),
    dtype=DTYPES,
    rank=st.integers(1, 4),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
)
def test_sampled_product_equals_oracle(seed, rows, cols, batch, density, dtype, rank, layouts):
    rng = np.random.default_rng(seed)
    pattern = oracle.pattern_of(random_mask(rng, rows, cols, density))
    lead = leading_shape(rng, rank, batch)
    left = laid_out(rng, (*lead, rows), layouts[0], dtype)
    right = laid_out(rng, (*lead, cols), layouts[1], dtype)
    flat = int(np.prod(lead, dtype=np.int64))
    y, x = left.double().reshape(flat, rows).numpy(), right.double().reshape(flat, cols).numpy()
    row, col = pattern.rows_cols
    want = oracle.Result((y.T @ x)[row, col], (np.abs(y).T @ np.abs(x))[row, col])
    got = ops.sampled_product(left, right, *pattern.tensors)
    oracle.assert_close("sampled product", got, want, oracle.TOLERANCE[dtype])


# Corners, by name


def corner(norm: str, dtype: torch.dtype, mask: np.ndarray, values: np.ndarray, batch: int = 17) -> None:
    rng = np.random.default_rng(5)
    rows, cols = mask.shape
    a, b, p, kind = FAMILY[norm]
    check(
        laid_out(rng, (batch, cols), "contiguous", dtype),
        torch.tensor(values, dtype=dtype),
        laid_out(rng, (rows,), "contiguous", dtype),
        excitability_of(rng, kind, rows, dtype),
        oracle.pattern_of(mask),
        a,
        b,
        p,
        laid_out(rng, (batch, rows), "contiguous", dtype),
    )


both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
every_norm = pytest.mark.parametrize("norm", sorted(FAMILY))


@both_types
@every_norm
def test_empty_rows_give_the_bias_and_zero_gradients(norm, dtype):
    mask = np.random.default_rng(0).random((9, 11)) < 0.5
    mask[[0, 4, 8]] = False
    corner(norm, dtype, mask, np.random.default_rng(1).standard_normal(mask.sum()))


@both_types
@every_norm
def test_no_connection_at_all(norm, dtype):
    corner(norm, dtype, np.zeros((5, 6), dtype=bool), np.zeros(0))


@both_types
@every_norm
def test_all_zero_rows_are_zero_with_finite_gradients(norm, dtype):
    mask = np.random.default_rng(0).random((9, 11)) < 0.5
    values = np.random.default_rng(1).standard_normal(mask.sum())
    row, _ = oracle.pattern_of(mask).rows_cols
    values[(row == 2) | (row == 7)] = 0.0
    corner(norm, dtype, mask, values)
    corner(norm, dtype, mask, np.zeros(mask.sum()))


@both_types
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("kind", ["lp", "lp-variable"])
def test_p_of_one_odd_and_fractional(kind, p, dtype):
    # Negative values and exact zeros tell sign(v)|v|^(p-1) from v^(p-1).
    mask = np.ones((4, 6), dtype=bool)
    values = np.random.default_rng(1).standard_normal(24)
    values[::5] = 0.0
    values[1::5] = -np.abs(values[1::5])
    corner(f"{kind}:{p:g}", dtype, mask, values)


@both_types
@every_norm
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_values_of_1e_minus_20_and_1e20(norm, dtype, scale):
    mask = np.random.default_rng(0).random((9, 11)) < 0.6
    corner(norm, dtype, mask, np.random.default_rng(1).standard_normal(mask.sum()) * scale)


# One excitability for all rows goes into the results and 1 / D into dY, except beyond 2^40 either way.
@pytest.mark.parametrize("e", [0.0, -3.0, 1e-11, 1e-13, 1e11, 1e13])
@pytest.mark.parametrize("a", [1.0, -2.0, 8.0, 14.0])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_a_shared_excitability_of_any_size(a, e, batch):
    rng = np.random.default_rng(7)
    pattern = oracle.pattern_of(random_mask(rng, 23, 31, 0.4))
    weight, excitability = random_values(rng, pattern, torch.float32), torch.tensor(e, dtype=torch.float32)
    x, bias, grad = (
        torch.tensor(rng.standard_normal(shape), dtype=torch.float32) for shape in ((batch, 31), 23, (batch, 23))
    )
    check(x, weight, bias, excitability, pattern, a, 0.0, 2.0, grad)
    check(x, weight, bias, excitability, pattern, a, 0.0, 2.0, grad, wanted=(False, True, False, True))


@both_types
@every_norm
def test_tiny_and_huge_values_in_one_row(norm, dtype):
    mask = np.ones((6, 8), dtype=bool)
    rng = np.random.default_rng(1)
    corner(norm, dtype, mask, rng.choice([-1e-20, 1e-20, -1e20, 1e20, 1.0], 48))


@both_types
@every_norm
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 3)])
def test_empty_batch(norm, dtype, shape):
    rng = np.random.default_rng(3)
    a, b, p, kind = FAMILY[norm]
    pattern = oracle.pattern_of(rng.random((5, 7)) < 0.5)
    weight, bias = random_values(rng, pattern, dtype), laid_out(rng, (5,), "contiguous", dtype)
    e = excitability_of(rng, kind, 5, dtype)
    check(torch.zeros(*shape, 7, dtype=dtype), weight, bias, e, pattern, a, b, p, torch.zeros(*shape, 5, dtype=dtype))


@both_types
@pytest.mark.parametrize("which", ["weight", "bias", "excitability"])
def test_strided_parameters(which, dtype):
    rng = np.random.default_rng(3)
    pattern = oracle.pattern_of(rng.random((8, 9)) < 0.5)
    sizes = {"weight": pattern.nnz, "bias": 8, "excitability": 8}
    given_ = {
        name: laid_out(rng, (size,), "sliced" if name == which else "contiguous", dtype) for name, size in sizes.items()
    }
    check(
        laid_out(rng, (6, 9), "contiguous", dtype), *given_.values(), pattern, 1.0, 1.0, 2.0, torch.ones(6, 8).to(dtype)
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@every_norm
def test_16_bit_activations_with_32_bit_values(norm, half):
    rng = np.random.default_rng(3)
    a, b, p, kind = FAMILY[norm]
    pattern = oracle.pattern_of(rng.random((20, 30)) < 0.5)
    x = laid_out(rng, (17, 30), "contiguous", torch.float32).to(half).requires_grad_()
    weight = random_values(rng, pattern, torch.float32, zero_rows=False).requires_grad_()
    bias = laid_out(rng, (20,), "contiguous", torch.float32)
    e = excitability_of(rng, kind, 20, torch.float32)
    dy = laid_out(rng, (17, 20), "contiguous", torch.float32).to(half)
    got = ops.sparse_linear(x, weight, bias, e, *pattern.tensors, a, b, p)
    want = oracle.sparse_linear(x, weight, bias, e, pattern, a, b, p, dy)
    dx, dv = torch.autograd.grad(got, [x, weight], dy)
    assert got.dtype == dx.dtype == half
    assert dv.dtype == torch.float32
    # One rounding to 16 bits at the end; everything before it in 32.
    rounding = torch.finfo(half).eps
    oracle.assert_close("output", got, want.output, rounding)
    oracle.assert_close("gradient of input", dx, want.d_input, rounding)
    oracle.assert_close("gradient of weight", dv, want.d_weight, 2e-5)


# A layer: the names of the norms mean what the paper says


@both_types
@pytest.mark.parametrize("norm", sorted(NORMS))
def test_layer_with_named_norm_equals_oracle(norm, dtype):
    a, b, p, kind = NORMS[norm]
    layer = dendnorm.SparseLinear(23, 11, density=0.4, norm=norm, seed=3, dtype=dtype)
    row, col = (index.numpy() for index in layer.edges())
    mask = np.zeros((11, 23), dtype=bool)
    mask[row, col] = True
    pattern = oracle.pattern_of(mask)
    assert layer.nnz == pattern.nnz == round(0.4 * 23 * 11)
    np.testing.assert_array_equal((row, col), pattern.rows_cols)
    e = layer.norm.excitability
    assert (e is None) == (kind is None)
    assert e is None or tuple(e.shape) == {"shared": (), "own": (11,)}[kind]
    rng = np.random.default_rng(0)
    x, dy = laid_out(rng, (10, 23), "contiguous", dtype), laid_out(rng, (10, 11), "contiguous", dtype)
    x.requires_grad_()
    out = layer(x)
    out.backward(dy)
    want = oracle.sparse_linear(x, layer.weight, layer.bias, e, pattern, a, b, p, dy)
    tolerance = oracle.TOLERANCE[dtype]
    oracle.assert_close("output", out, want.output, tolerance)
    oracle.assert_close("gradient of input", x.grad, want.d_input, tolerance)
    oracle.assert_close("gradient of weight", layer.weight.grad, want.d_weight, tolerance)
    oracle.assert_close("gradient of bias", layer.bias.grad, want.d_bias, tolerance)
    if e is not None:
        oracle.assert_close("gradient of excitability", e.grad, want.d_excitability, tolerance)


@both_types
def test_shared_norm_sums_its_gradient_over_layers(dtype):
    norm = dendnorm.norms.l0()
    first = dendnorm.SparseLinear(9, 7, density=0.5, norm=norm, seed=0, dtype=dtype)
    second = dendnorm.SparseLinear(9, 6, density=0.5, norm=norm, seed=1, dtype=dtype)
    x = laid_out(np.random.default_rng(0), (5, 9), "contiguous", dtype)
    singles = [torch.autograd.grad(layer(x).sum(), norm.excitability)[0] for layer in (first, second)]
    (both,) = torch.autograd.grad(first(x).sum() + second(x).sum(), norm.excitability)
    torch.testing.assert_close(both, singles[0] + singles[1])


@both_types
@pytest.mark.parametrize("shape", [(13,), (1, 13), (10, 13), (65, 13), (2, 3, 13), (0, 13)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_density_1_without_norm_is_linear(shape, with_bias, dtype):
    linear = torch.nn.Linear(13, 8, bias=with_bias, dtype=dtype)
    layer = dendnorm.SparseLinear.from_dense(linear, density=1.0, norm=None)
    x = torch.randn(shape, dtype=dtype)
    dy = torch.randn(*shape[:-1], 8, dtype=dtype)
    results = []
    for module in (linear, layer):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.backward(dy)
        results.append((out.detach(), leaf.grad))
    tolerance = {"rtol": oracle.TOLERANCE[dtype], "atol": oracle.TOLERANCE[dtype]}
    torch.testing.assert_close(results[1], results[0], **tolerance)
    row, col = layer.edges()
    torch.testing.assert_close(layer.weight.grad, linear.weight.grad[row.long(), col.long()], **tolerance)
    if with_bias:
        torch.testing.assert_close(layer.bias.grad, linear.bias.grad, **tolerance)


@pytest.mark.slow
@both_types
@pytest.mark.parametrize("norm", ["none", "l0", "l0-variable", "joint", "lp:3.7", "family-shared"])
@pytest.mark.parametrize("batch", [1, 10, 64, 129, 1000])
def test_same_bits_on_1_2_and_3_threads(norm, batch, dtype):
    rng = np.random.default_rng(7)
    a, b, p, kind = FAMILY[norm]
    pattern = oracle.pattern_of(rng.random((203, 311)) < 0.3)
    x = laid_out(rng, (batch, 311), "contiguous", dtype).requires_grad_()
    weight = random_values(rng, pattern, dtype).requires_grad_()
    bias = laid_out(rng, (203,), "contiguous", dtype).requires_grad_()
    e = excitability_of(rng, kind, 203, dtype)
    leaves = [x, weight, bias] + ([] if e is None else [e.requires_grad_()])
    dy = laid_out(rng, (batch, 203), "contiguous", dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = ops.sparse_linear(x, weight, bias, e, *pattern.tensors, a, b, p)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, dy)))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)
