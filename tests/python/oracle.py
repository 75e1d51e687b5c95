"""The paper's equations on dense float64 arrays, written from the formulas and sharing nothing with the package.

    w_i = (e_i / D_i) v_i,   D_i = n_i^a ||v_i||_p^b
    dC/de_i = dot_i / D_i
    dC/dv_i = (e_i / D_i) (G_i - b (dot_i / ||v_i||_p^p) sign(v_i) |v_i|^(p-1)),   dot_i = sum_j G_ij v_ij

Every result has a twin that holds the sum of the absolute values of the terms that were added up. A sum that cancels
cannot be better than rounding error times that sum, in any order of addition, so it is what an error is measured by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@dataclass
class Pattern:
    """A boolean (M, N) mask and both compressed views of it, made with plain numpy."""

    mask: np.ndarray
    ccol_indices: torch.Tensor
    row_indices: torch.Tensor
    crow_indices: torch.Tensor
    col_indices: torch.Tensor
    perm: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.ccol_indices, self.row_indices, self.crow_indices, self.col_indices, self.perm

    @property
    def nnz(self) -> int:
        return int(self.mask.sum())

    @property
    def rows_cols(self) -> tuple[np.ndarray, np.ndarray]:
        """Output and input neuron of every connection, by input neuron, then by output neuron."""
        col, row = np.nonzero(self.mask.T)
        return row, col


def pattern_of(mask: np.ndarray) -> Pattern:
    rows, cols = mask.shape
    col_of, row_of = np.nonzero(mask.T)
    row_csr, col_csr = np.nonzero(mask)
    position = np.full((rows, cols), -1, dtype=np.int64)
    position[row_of, col_of] = np.arange(len(row_of))

    def int32(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array).astype(np.int32))

    return Pattern(
        mask=mask,
        ccol_indices=int32(np.concatenate([[0], np.cumsum(mask.sum(0))])),
        row_indices=int32(row_of),
        crow_indices=int32(np.concatenate([[0], np.cumsum(mask.sum(1))])),
        col_indices=int32(col_csr),
        perm=int32(position[row_csr, col_csr]),
    )


def dense_of(values: torch.Tensor, pattern: Pattern) -> np.ndarray:
    dense = np.zeros(pattern.mask.shape)
    row, col = pattern.rows_cols
    dense[row, col] = values.detach().double().numpy()
    return dense


@dataclass
class Rows:
    """What a row of v contributes: u = v / max|v|, S = sum |u|^p and e / D, all finite for any finite v."""

    dense: np.ndarray  # v (M, N)
    unit: np.ndarray  # v / max|v| (M, N); dividing first keeps |v|^p away from overflow and underflow
    power_sum: np.ndarray  # S (M,), in [1, n]; 1 for a row without a norm
    inverse: np.ndarray  # 1 / D (M,); 0 where D is 0
    factor: np.ndarray  # e / D (M,)
    vanishing: np.ndarray  # (M,) rows with ||v|| = 0 where b > 0: there v -> w has no derivative


def rows_of(v: np.ndarray, mask: np.ndarray, excitability: np.ndarray | None, a: float, b: float, p: float) -> Rows:
    count = mask.sum(1).astype(float)
    top = np.abs(v).max(1, initial=0.0)
    safe = np.where(top > 0, top, 1.0)
    unit = v / safe[:, None]
    power_sum = np.where(top > 0, np.where(mask, np.abs(unit) ** p, 0.0).sum(1), 1.0)
    vanishing = (top == 0) & (b != 0)
    dead = (count == 0) | vanishing
    denominator = np.where(count > 0, count, 1.0) ** a * (safe * power_sum ** (1.0 / p)) ** b
    inverse = np.where(dead, 0.0, 1.0 / denominator)
    e = np.ones(len(count)) if excitability is None else np.broadcast_to(excitability.reshape(-1), count.shape)
    return Rows(v, unit, power_sum, inverse, inverse * e, vanishing & (count > 0))


@dataclass
class Result:
    """A value and, of the same shape, the sum of the absolute values of its terms."""

    value: np.ndarray
    terms: np.ndarray
    skip: np.ndarray | None = None  # entries that only have to be finite


def _numpy(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().double().numpy()


def effective_weight(weight, excitability, pattern: Pattern, a: float, b: float, p: float) -> np.ndarray:
    """w as a dense (M, N) array."""
    rows = rows_of(dense_of(weight, pattern), pattern.mask, _numpy(excitability), a, b, p)
    return rows.factor[:, None] * rows.dense


def effective_weight_backward(gradient, gradient_terms, weight, excitability, pattern: Pattern, a, b, p):
    """From G = dC/dw and its terms, both dense (M, N): dC/dv (M, N), dC/de of e's own shape, and vanishing rows."""
    e = _numpy(excitability)
    rows = rows_of(dense_of(weight, pattern), pattern.mask, e, a, b, p)
    gradient = np.where(pattern.mask, gradient, 0.0)
    gradient_terms = np.where(pattern.mask, gradient_terms, 0.0)
    slope = np.where(pattern.mask, np.sign(rows.unit) * np.abs(rows.unit) ** (p - 1), 0.0)
    # (dot / ||v||^p) |v|^(p-1) with v = max|v| u: the powers of max|v| cancel.
    pull = (gradient * rows.unit).sum(1) / rows.power_sum
    pull_terms = (gradient_terms * np.abs(rows.unit)).sum(1) / rows.power_sum
    value = rows.factor[:, None] * (gradient - b * pull[:, None] * slope)
    terms = np.abs(rows.factor)[:, None] * (gradient_terms + abs(b) * pull_terms[:, None] * np.abs(slope))
    de = None
    if e is not None:
        by_row = (gradient * rows.dense).sum(1) * rows.inverse
        by_row_terms = (gradient_terms * np.abs(rows.dense)).sum(1) * rows.inverse
        if e.size == len(by_row) and e.ndim == 1 and not (e.size == 1 and len(by_row) != 1):
            de = Result(by_row, by_row_terms)
        else:
            de = Result(by_row.sum().reshape(e.shape), by_row_terms.sum().reshape(e.shape))
    return Result(value, terms), de, rows.vanishing


@dataclass
class Everything:
    output: Result
    d_input: Result
    d_weight: Result  # (nnz,), in the order of weight
    d_bias: Result
    d_excitability: Result | None
    undefined: np.ndarray  # (nnz,): entries of d_weight that only have to be finite


def sparse_linear(input, weight, bias, excitability, pattern: Pattern, a, b, p, grad_output) -> Everything:
    """Output and all gradients of sum(output * grad_output)."""
    x, dy, shift = _numpy(input), _numpy(grad_output), _numpy(bias)
    out_features, in_features = pattern.mask.shape
    lead = x.shape[:-1]
    flat = int(np.prod(lead, dtype=np.int64))
    x2, dy2 = x.reshape(flat, in_features), dy.reshape(flat, out_features)
    w = effective_weight(weight, excitability, pattern, a, b, p)
    y, y_terms = x2 @ w.T, np.abs(x2) @ np.abs(w).T
    if shift is not None:
        y, y_terms = y + shift, y_terms + np.abs(shift)
    d_dense, de, vanishing = effective_weight_backward(
        dy2.T @ x2, np.abs(dy2).T @ np.abs(x2), weight, excitability, pattern, a, b, p
    )
    row, col = pattern.rows_cols
    return Everything(
        output=Result(y.reshape(*lead, out_features), y_terms.reshape(*lead, out_features)),
        d_input=Result((dy2 @ w).reshape(x.shape), (np.abs(dy2) @ np.abs(w)).reshape(x.shape)),
        d_weight=Result(d_dense.value[row, col], d_dense.terms[row, col]),
        d_bias=Result(dy2.sum(0), np.abs(dy2).sum(0)),
        d_excitability=de,
        undefined=vanishing[row],
    )


def assert_close(name: str, got: torch.Tensor, want: Result, tolerance: float, skip: np.ndarray | None = None) -> None:
    """Every entry within `tolerance` of the sum of its terms; a floor of 1e-12 of the largest covers underflow."""
    assert tuple(got.shape) == want.value.shape, f"{name}: shape {tuple(got.shape)}, expected {want.value.shape}"
    values = got.detach().double().numpy()
    assert np.isfinite(values).all(), f"{name}: not finite"
    if values.size == 0:
        return
    bound = tolerance * (want.terms + 1e-12 * want.terms.max())
    excess = np.abs(values - want.value) - bound
    for finite_only in (skip, want.skip):
        if finite_only is not None:
            excess = np.where(finite_only, -1.0, excess)
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    assert excess[worst] <= 0, (
        f"{name}{[int(i) for i in worst]}: got {values[worst]!r}, expected {want.value[worst]!r}, "
        f"sum of |terms| {want.terms[worst]!r}, tolerance {tolerance}"
    )
