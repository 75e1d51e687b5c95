"""First and second derivatives against finite differences, and PyTorch's own checks of how the ops are registered."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from test_oracle import FAMILY

import dendnorm  # noqa: F401  (registers the ops)

ops = torch.ops.dendnorm
every_norm = pytest.mark.parametrize("norm", sorted(FAMILY))
ROWS, COLS, BATCH = 4, 5, 3


def small_case(norm: str, seed: int = 0):
    """A pattern with one empty row, values away from 0 (where p = 1 has a corner), and the norm's e."""
    rng = np.random.default_rng(seed)
    mask = rng.random((ROWS, COLS)) < 0.6
    mask[2] = False
    mask[0, 0] = True
    pattern = oracle.pattern_of(mask)
    a, b, p, kind = FAMILY[norm]

    def leaf(array) -> torch.Tensor:
        return torch.tensor(array, dtype=torch.float64).requires_grad_()

    weight = leaf(rng.choice([-1.0, 1.0], pattern.nnz) * rng.uniform(0.4, 1.5, pattern.nnz))
    excitability = None if kind is None else leaf(rng.uniform(0.5, 2.0, ROWS if kind == "own" else ()))
    x, bias = leaf(rng.standard_normal((BATCH, COLS))), leaf(rng.standard_normal(ROWS))
    return pattern, x, weight, bias, excitability, (a, b, p)


def linear_function(pattern, excitability, abp):
    def run(x, weight, bias, *e):
        return ops.sparse_linear(x, weight, bias, e[0] if e else None, *pattern.tensors, *abp)

    return run, () if excitability is None else (excitability,)


@every_norm
def test_sparse_linear_gradcheck(norm):
    pattern, x, weight, bias, e, abp = small_case(norm)
    run, extra = linear_function(pattern, e, abp)
    assert torch.autograd.gradcheck(run, (x, weight, bias, *extra))


@every_norm
def test_sparse_linear_gradgradcheck(norm):
    pattern, x, weight, bias, e, abp = small_case(norm)
    run, extra = linear_function(pattern, e, abp)
    assert torch.autograd.gradgradcheck(run, (x, weight, bias, *extra))


@every_norm
def test_sparse_linear_forward_mode(norm):
    pattern, x, weight, bias, e, abp = small_case(norm)
    run, extra = linear_function(pattern, e, abp)
    assert torch.autograd.gradcheck(run, (x, weight, bias, *extra), check_forward_ad=True, check_backward_ad=False)


@every_norm
def test_sparse_linear_batched_gradients(norm):
    pattern, x, weight, bias, e, abp = small_case(norm)
    run, extra = linear_function(pattern, e, abp)
    assert torch.autograd.gradcheck(run, (x, weight, bias, *extra), check_batched_grad=True)


@pytest.mark.parametrize("shape", [(COLS,), (2, 0, COLS), (2, 1, 2, COLS)])
def test_sparse_linear_gradcheck_of_other_ranks(shape):
    pattern, _, weight, bias, e, abp = small_case("joint")
    run, extra = linear_function(pattern, e, abp)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, weight, bias, *extra))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias, *extra))


@every_norm
@pytest.mark.parametrize("needed", range(4))
def test_sparse_linear_gradgradcheck_of_one_argument_alone(norm, needed):
    pattern, *leaves, abp = small_case(norm)
    if leaves[needed] is None:
        pytest.skip("this norm has no excitability")
    fixed = [None if leaf is None else leaf.detach() for leaf in leaves]

    def run(alone):
        return ops.sparse_linear(*fixed[:needed], alone, *fixed[needed + 1 :], *pattern.tensors, *abp)

    assert torch.autograd.gradcheck(run, (leaves[needed],))
    assert torch.autograd.gradgradcheck(run, (leaves[needed],))


@every_norm
def test_effective_weight_gradcheck_and_gradgradcheck(norm):
    pattern, _, weight, _, e, abp = small_case(norm)

    def run(values, *extra):
        return ops.effective_weight(values, extra[0] if extra else None, *pattern.tensors, *abp)

    inputs = (weight,) if e is None else (weight, e)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_sampled_product_gradcheck_and_gradgradcheck():
    pattern, x, *_ = small_case("none")
    rows = torch.randn(BATCH, ROWS, dtype=torch.float64, requires_grad=True)

    def run(left, right):
        return ops.sampled_product(left, right, *pattern.tensors)

    assert torch.autograd.gradcheck(run, (rows, x))
    assert torch.autograd.gradgradcheck(run, (rows, x))


@every_norm
def test_forward_mode_of_the_other_ops_is_right_or_refused_by_name(norm):
    pattern, x, weight, _, e, abp = small_case(norm)
    rows = torch.randn(BATCH, ROWS, dtype=torch.float64, requires_grad=True)
    cases = [
        (lambda v: ops.effective_weight(v, e if e is None else e.detach(), *pattern.tensors, *abp), (weight,)),
        (lambda left, right: ops.sampled_product(left, right, *pattern.tensors), (rows, x)),
    ]
    for run, inputs in cases:
        try:
            assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_backward_ad=False)
        except (NotImplementedError, RuntimeError) as error:
            refused = "dendnorm" in str(error) and not isinstance(error, torch.autograd.gradcheck.GradcheckError)
            assert refused, error


@every_norm
def test_first_derivatives_have_the_same_bits_whether_or_not_their_own_may_be_asked_for(norm):
    for dtype in (torch.float32, torch.float64):
        pattern, x, weight, bias, e, abp = small_case(norm)
        leaves = [
            tensor.detach().to(dtype).requires_grad_() for tensor in (x, weight, bias, *([] if e is None else [e]))
        ]
        grad = torch.randn(pattern.nnz, dtype=dtype)

        def run(x, weight, bias, e=None, pattern=pattern, abp=abp):
            return ops.sparse_linear(x, weight, bias, e, *pattern.tensors, *abp).square().sum()

        def scaled(x, weight, bias, e=None, pattern=pattern, abp=abp, grad=grad):
            return (ops.effective_weight(weight, e, *pattern.tensors, *abp) * grad).sum()

        for function in (run, scaled):
            once, again = (
                torch.autograd.grad(function(*leaves), leaves, create_graph=create, allow_unused=True)
                for create in (False, True)
            )
            for mine, other in zip(once, again, strict=True):
                assert (mine is None) == (other is None)
                assert mine is None or torch.equal(mine, other)


@every_norm
def test_third_derivatives(norm):
    pattern, x, weight, _, e, abp = small_case(norm)
    x = x.detach()[:1].requires_grad_()

    def first(x, weight, *extra):
        output = ops.sparse_linear(x, weight, None, extra[0] if extra else None, *pattern.tensors, *abp)
        return torch.autograd.grad(output.pow(3).sum(), (x, weight), create_graph=True)

    assert torch.autograd.gradgradcheck(first, (x, weight) if e is None else (x, weight, e))


def test_a_zero_row_has_finite_second_derivatives():
    for norm in sorted(FAMILY):
        pattern, x, weight, bias, e, abp = small_case(norm)
        row, _ = pattern.rows_cols
        values = weight.detach().clone()
        values[torch.from_numpy(row == 0)] = 0.0
        values.requires_grad_()
        run, extra = linear_function(pattern, e, abp)
        leaves = (x, values, bias, *extra)
        first = torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, allow_unused=True)
        for gradient in (*first, *(g for g in second if g is not None)):
            assert torch.isfinite(gradient).all(), norm


# opcheck: schema, autograd registration, fake tensors, compilation with dynamic shapes


def op_arguments(norm: str, with_gradients: bool) -> dict[str, tuple]:
    pattern, x, weight, bias, e, abp = small_case(norm)
    dy = torch.randn(BATCH, ROWS, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(pattern.nnz, dtype=torch.float64, requires_grad=True)
    if not with_gradients:
        x, weight, bias, dy, grad = (tensor.detach() for tensor in (x, weight, bias, dy, grad))
        e = None if e is None else e.detach()
    tensors = pattern.tensors
    return {
        "sparse_linear": (x, weight, bias, e, *tensors, *abp),
        "sparse_linear_backward": (dy, x, weight, e, *tensors, *abp, [True, True, True, e is not None]),
        "effective_weight": (weight, e, *tensors, *abp),
        "effective_weight_backward": (grad, weight, e, *tensors, *abp, [True, e is not None]),
        "sampled_product": (dy, x, *tensors),
    }


@every_norm
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("op", ["sparse_linear", "effective_weight"])
def test_opcheck_of_every_norm(op, with_gradients, norm):
    torch.library.opcheck(getattr(ops, op).default, op_arguments(norm, with_gradients)[op])


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("norm", ["none", "l0", "joint", "lp-variable:3"])
@pytest.mark.parametrize("op", ["sparse_linear_backward", "effective_weight_backward", "sampled_product"])
def test_opcheck_of_the_other_differentiable_ops(op, norm, with_gradients):
    torch.library.opcheck(getattr(ops, op).default, op_arguments(norm, with_gradients)[op])


def pattern_op_arguments() -> dict[str, list[tuple[tuple, dict]]]:
    pattern = small_case("none")[0]
    ccol, row, crow, col, _ = pattern.tensors
    nnz = pattern.nnz
    dropped = torch.zeros(nnz, dtype=torch.bool)
    dropped[[1, nnz - 1]] = True
    kept = pattern.mask.copy()
    for position in (1, nnz - 1):
        kept[pattern.rows_cols[0][position], pattern.rows_cols[1][position]] = False
    keys = torch.from_numpy(np.flatnonzero(~kept.T.reshape(-1))[[0, 3]].astype(np.int64))
    source = torch.arange(nnz, dtype=torch.int32)
    source[[0, 2]] = -1
    clear = torch.tensor([2**63 - 1, 0, 0, 0])
    return {
        "check_pattern": [((ccol, row, ROWS, "ccol_indices", "row_indices"), {})],
        "pattern_mark": [((ccol, row), {})],
        "transpose_pattern": [((ccol, row, ROWS), {}), ((crow, col, COLS), {"sound": True})],
        "weakest": [
            *(((torch.rand(nnz, dtype=dtype), 3), {}) for dtype in (torch.float32, torch.float64)),
            ((torch.full((nnz,), torch.nan), 3), {"status": clear.clone()}),
        ],
        "excise": [((ccol, row, dropped, 2), {}), ((ccol, row, dropped, 3), {"sound": True, "status": clear.clone()})],
        "empty_positions": [((ccol, row, ROWS, 3, 1, 2, 3), {}), ((ccol, row, ROWS, 0, 1, 2, 3), {"sound": True})],
        "replace_connections": [
            ((ccol, row, ROWS, dropped, keys), {}),
            ((ccol, row, ROWS, dropped, keys.flip(0)), {"sound": True, "status": clear.clone()}),
        ],
        "counter_normal": [
            ((7, 1, 2, 3), {"dtype": dtype, "device": torch.device("cpu")}) for dtype in (torch.float32, torch.float64)
        ],
        "carry_": [
            ((torch.rand(nnz), source, torch.rand(2)), {}),
            ((torch.rand(nnz, dtype=torch.float64), source, torch.tensor(0.0, dtype=torch.float64)), {}),
            ((torch.rand(nnz), source, torch.rand(2)), {"sound": True, "status": clear}),
        ],
        "assign_": [((row.clone(), row.flip(0)), {}), ((row.clone(), row.flip(0)), {"status": clear})],
        "raise_fault": [((clear,), {})],
    }


# counter_normal takes no tensor, so there is nothing to be checked about it here.
@pytest.mark.parametrize("op", sorted(set(pattern_op_arguments()) - {"counter_normal"}))
def test_opcheck_of_the_pattern_ops(op):
    for positional, named in pattern_op_arguments()[op]:
        torch.library.opcheck(getattr(ops, op).default, positional, named)


def test_every_op_with_a_tensor_argument_is_checked_here():
    checked = set(op_arguments("joint", False)) | set(pattern_op_arguments())
    registered = {
        schema.name.removeprefix("dendnorm::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("dendnorm::") and any("Tensor" in str(argument.type) for argument in schema.arguments)
    }
    assert registered, "no op is registered"
    assert registered <= checked, f"without an opcheck: {sorted(registered - checked)}"
