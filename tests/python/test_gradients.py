"""Derivatives of the layer's op where the table of ops does not reach (test_ops.py): other ranks, one argument alone,
batched gradients, rows without a derivative."""

from __future__ import annotations

import pytest
import torch
from op_entry import SMALL
from op_table import FAMILY, TYPICAL_NORMS, layer_arguments

import dendnorm  # noqa: F401  (registers the ops)

ops = torch.ops.dendnorm
every_norm = pytest.mark.parametrize(
    "norm",
    [pytest.param(norm, marks=[] if norm in TYPICAL_NORMS else [pytest.mark.slow]) for norm in sorted(FAMILY)],
)
COLS = SMALL.cols


def small_case(norm: str):
    """A pattern with one empty row, the leaves of the layer (e where the norm has one), and the norm's numbers."""
    sample = layer_arguments(norm, torch.float64, SMALL)
    leaves = [sample[name] for name in ("input", "weight", "bias", "excitability")]
    leaves = [None if leaf is None else leaf.requires_grad_() for leaf in leaves]
    return SMALL.pattern(), *leaves, (sample["a"], sample["b"], sample["p"])


def linear_function(pattern, excitability, abp):
    def run(x, weight, bias, *e):
        return ops.sparse_linear(x, weight, bias, e[0] if e else None, *pattern.tensors, *abp)

    return run, () if excitability is None else (excitability,)


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
