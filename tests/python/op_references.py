"""What each op must give, by the op's name and with its arguments: the layer's from the oracle, the others from their
definitions, with plain Python and numpy.

A function returns one entry for each result (for a writer: what its first argument must hold afterwards): an
``oracle.Result`` to come close to, a tensor to equal, or None where nothing is promised.
"""

from __future__ import annotations

import math

import numpy as np
import oracle
import torch

CLEAR = 2**63 - 1
NOTHING = torch.zeros(0)  # what an op gives for a gradient that was not asked for

Expected = tuple[oracle.Result | torch.Tensor | None, ...]


# The layer


def pattern_of(ccol_indices: torch.Tensor, row_indices: torch.Tensor, crow_indices: torch.Tensor) -> oracle.Pattern:
    return oracle.pattern_of(_mask(ccol_indices, row_indices, len(crow_indices) - 1))


def _listed(result: oracle.Result, pattern: oracle.Pattern, skip: np.ndarray | None = None) -> oracle.Result:
    """A dense result in the order of weight."""
    where = pattern.rows_cols
    return oracle.Result(result.value[where], result.terms[where], skip)


def asked(mask: list[bool], results: list[oracle.Result | None]) -> Expected:
    return tuple(
        result if wanted and result is not None else NOTHING for wanted, result in zip(mask, results, strict=True)
    )


def sparse_linear(
    input, weight, bias, excitability, ccol_indices, row_indices, crow_indices, col_indices, perm, a, b, p
) -> Expected:
    pattern = pattern_of(ccol_indices, row_indices, crow_indices)
    zero = torch.zeros(*input.shape[:-1], pattern.mask.shape[0])
    return (oracle.sparse_linear(input, weight, bias, excitability, pattern, a, b, p, zero).output,)


def sparse_linear_backward(
    grad_output, input, weight, excitability, ccol_indices, row_indices, crow_indices, col_indices, perm, a, b, p,
    output_mask,
) -> Expected:  # fmt: skip
    pattern = pattern_of(ccol_indices, row_indices, crow_indices)
    want = oracle.sparse_linear(input, weight, None, excitability, pattern, a, b, p, grad_output)
    d_weight = oracle.Result(want.d_weight.value, want.d_weight.terms, want.undefined)
    return asked(output_mask, [want.d_input, d_weight, want.d_bias, want.d_excitability])


def effective_weight(
    weight, excitability, ccol_indices, row_indices, crow_indices, col_indices, perm, a, b, p
) -> Expected:
    pattern = pattern_of(ccol_indices, row_indices, crow_indices)
    dense = oracle.effective_weight(weight, excitability, pattern, a, b, p)
    return (_listed(oracle.Result(dense, np.abs(dense)), pattern),)


def effective_weight_backward(
    grad, weight, excitability, ccol_indices, row_indices, crow_indices, col_indices, perm, a, b, p, output_mask
) -> Expected:
    pattern = pattern_of(ccol_indices, row_indices, crow_indices)
    dense = oracle.dense_of(grad, pattern)
    d_weight, d_excitability, vanishing = oracle.effective_weight_backward(
        dense, np.abs(dense), weight, excitability, pattern, a, b, p
    )
    return asked(output_mask, [_listed(d_weight, pattern, vanishing[pattern.rows_cols[0]]), d_excitability])


def raw_values(effective, row_indices, rows, a, b, p, variable, excitability, start, name) -> Expected:
    """The inverse of w = (e / D) v: with one e for each row v is w, with one for all where a row is as the mean row.

    Where b is not 0, a row of zeros is e = 0 of a v of length 1, if e is free.
    """
    w, row = effective.numpy(), row_indices.numpy()
    count = np.bincount(row, minlength=rows).clip(1).astype(float)
    length = np.bincount(row, np.abs(w) ** p, minlength=rows) ** (1 / p)
    live = length > 0
    length[~live] = 1
    d = count**a * length**b
    still = ~live & (np.bincount(row, minlength=rows) > 0) & (b != 0)  # a row of zeros, which has no direction
    if excitability is not None:
        e = excitability.numpy()
    elif variable:
        e = np.where(live, d, np.where(still, 0, start))
    elif still.any() and not live.any():
        e = np.array(0.0)
    elif b == 0 or not live.any():
        e = np.array(start)
    else:
        e = np.array(d[live][0] if b == 1 else d[live].mean())
    of_row = np.broadcast_to(e, (rows,))
    scale = np.sign(of_row) if b == 1 else np.sign(of_row) * (d / np.abs(of_row)) ** (1 / (1 - b))
    v = w * (np.ones(rows) if variable and excitability is None else scale)[row]
    if excitability is None and (variable or not live.any()):
        v = np.where(still[row], count[row] ** (-1 / p), v)
    return oracle.Result(v, np.abs(v)), oracle.Result(e, np.abs(e))


def sampled_product(rows, columns, ccol_indices, row_indices, crow_indices, col_indices, perm) -> Expected:
    pattern = pattern_of(ccol_indices, row_indices, crow_indices)
    flat = math.prod(rows.shape[:-1])
    y, x = (tensor.detach().double().reshape(flat, tensor.shape[-1]).numpy() for tensor in (rows, columns))
    return (_listed(oracle.Result(y.T @ x, np.abs(y).T @ np.abs(x)), pattern),)


def frozen_linear(input, weight, bias, crow_indices, col_indices, in_features) -> Expected:
    dense = np.zeros((len(crow_indices) - 1, in_features))
    row = np.repeat(np.arange(len(dense)), np.diff(crow_indices.numpy()))
    narrow = col_indices.dtype == torch.int16  # with the bits of unsigned numbers
    dense[row, col_indices.long().numpy() % 2**16 if narrow else col_indices.numpy()] = weight.double().numpy()
    x, shift = input.double().numpy(), bias.double().numpy()
    return (oracle.Result(x @ dense.T + shift, np.abs(x) @ np.abs(dense).T + np.abs(shift)),)


# Patterns


def _mask(compressed: torch.Tensor, indices: torch.Tensor, size: int) -> np.ndarray:
    """The (size, segments) mask of a pattern whose segments are its columns."""
    pointers = compressed.numpy()
    mask = np.zeros((size, len(pointers) - 1), dtype=bool)
    mask[indices.numpy(), np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))] = True
    return mask


def _int32(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.int32))


def _keys(ccol_indices: torch.Tensor, row_indices: torch.Tensor, rows: int) -> list[int]:
    """The number of each connection's position, column by column."""
    return np.flatnonzero(_mask(ccol_indices, row_indices, rows).T.reshape(-1)).tolist()


def _from_keys(keys: list[int], rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    pointers = [sum(key < column * rows for key in keys) for column in range(columns + 1)]
    return _int32(pointers), _int32([key % rows for key in keys])


def check_pattern(compressed, indices, size, compressed_name, indices_name) -> Expected:
    return ()


def transpose_pattern(compressed, indices, size, sound=False) -> Expected:
    other = oracle.pattern_of(_mask(compressed, indices, size))
    return other.crow_indices, other.col_indices, other.perm


def pattern_mark(ccol_indices, row_indices) -> Expected:
    """The bytes of a sum of splitmix64 (S. Vigna) over positions and values, in Python's whole numbers."""

    def mixed(values, salt):
        total = 0
        for k, value in enumerate(values.tolist()):
            z = ((k << 32 | value) + salt) * 0x9E3779B97F4A7C15 % 2**64
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            total += z ^ z >> 31
        return total

    mark = (mixed(ccol_indices, 1) + mixed(row_indices, 2)) % 2**64
    return (torch.tensor([mark >> 8 * byte & 0xFF for byte in range(8)], dtype=torch.float64),)


# Patterns and weights from what users have


def check_view(compressed, indices, segments, size, compressed_name, indices_name) -> Expected:
    return ()


def both_views(compressed, indices, segments, size, compressed_name, indices_name) -> Expected:
    return compressed.int(), indices.int(), *transpose_pattern(compressed, indices, size)


def pattern_of_keys(keys, rows, cols) -> Expected:
    return _from_keys(keys.tolist(), rows, cols)


def largest_connections(dense, nnz, name) -> Expected:
    """By magnitude; of equals the later in column order."""
    by_column = dense.double().numpy().T.reshape(-1)
    order = np.argsort(np.abs(by_column), kind="stable")
    kept = np.sort(order[len(order) - nnz :] if nnz is not None else order[np.abs(by_column[order]) > 0])
    return *_from_keys(kept.tolist(), *dense.shape), torch.from_numpy(by_column[kept]).to(dense.dtype)


def connections_of_csr(crow_indices, col_indices, values, bias, rows, cols) -> Expected:
    dense = np.full((rows, cols), np.nan)
    dense[np.repeat(np.arange(rows), np.diff(crow_indices.numpy())), col_indices.numpy()] = values.numpy()
    by_column = dense.T.reshape(-1)
    keys = np.flatnonzero(~np.isnan(by_column))
    return *_from_keys(keys.tolist(), rows, cols), torch.from_numpy(by_column[keys]).to(values.dtype)


# Rewiring


def weakest(score, k, status=None) -> Expected:
    values = score.numpy()
    if np.isnan(values).any():
        return (None,)
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(values, kind="stable")[:k]] = True
    return (torch.from_numpy(chosen),)


def excise(ccol_indices, row_indices, dropped, k, sound=False, status=None) -> Expected:
    gone = np.concatenate([[0], np.cumsum(dropped.numpy())])
    if gone[-1] != k:
        return None, None, None
    pointers = ccol_indices.numpy()
    return _int32(pointers - gone[pointers]), row_indices[~dropped], dropped.nonzero().flatten().int()


def empty_positions(ccol_indices, row_indices, rows, k, seed, step, layer, sound=False) -> Expected:
    taken = set(_keys(ccol_indices, row_indices, rows))
    empty = [key for key in range(rows * (len(ccol_indices) - 1)) if key not in taken]
    numbers = range(k) if k == len(empty) else sorted(_shuffled(k, len(empty), _Stream(seed, step, layer, purpose=1)))
    return (torch.tensor([empty[number] for number in numbers], dtype=torch.int64),)


def replace_connections(ccol_indices, row_indices, rows, dropped, keys, sound=False, status=None) -> Expected:
    before = _keys(ccol_indices, row_indices, rows)
    source = {key: position for position, key in enumerate(before) if not dropped[position]}
    source |= dict.fromkeys(keys.tolist(), -1)
    after = sorted(source)
    return (*_from_keys(after, rows, len(ccol_indices) - 1), _int32([source[key] for key in after]))


def _ends(keys: list[int], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column."""
    return torch.tensor([key % rows for key in keys], dtype=torch.int64), torch.tensor(
        [key // rows for key in keys], dtype=torch.int64
    )


def plan_excision(ccol_indices, row_indices, importance, k, sound=False, status=None) -> Expected:
    (dropped,) = weakest(importance, k)
    if dropped is None:
        return (None,) * 5
    ccol_left, row_left, removed = excise(ccol_indices, row_indices, dropped, k)
    rows = int(row_indices.max()) + 1 if len(row_indices) else 1
    keys = _keys(ccol_indices, row_indices, rows)
    return dropped, ccol_left, row_left, *_ends([keys[position] for position in removed.tolist()], rows)


def plan_rewiring(
    ccol_indices, row_indices, rows, dropped, k, keys, values, dtype, sound=False, status=None
) -> Expected:
    if not torch.isfinite(values).all():
        return (None,) * 8
    ccol, row, source = replace_connections(ccol_indices, row_indices, rows, dropped, keys)
    return ccol, row, *transpose_pattern(ccol, row, rows), source, *_ends(keys.tolist(), rows)


def spread(values) -> Expected:
    """The root mean square with ten binary digits."""
    if not len(values):
        return (torch.tensor(1.0, dtype=torch.float64),)
    digits, exponent = math.frexp(math.sqrt(math.fsum(value * value for value in values.tolist()) / len(values)))
    return (torch.tensor(math.ldexp(round(digits * 1024) / 1024, exponent), dtype=torch.float64),)


def counter_normal(n, seed, step, layer, dtype, device) -> Expected:
    """Box and Muller's; the second of each pair of numbers gives the angle, its two top bits the quadrant."""
    stream = _Stream(seed, step, layer, purpose=2)
    values = []
    for pair in range(-(-n // 2)):
        first, second = stream.bits(pair)
        radius = math.sqrt(-2 * math.log(((first >> 12) << 1 | 1) / 2**53))
        fraction = ((second & (2**52 - 1)) << 1 | 1) / 2**53 - 0.5
        angle = (fraction + (second >> 62)) * math.pi / 2
        values += [radius * math.cos(angle), radius * math.sin(angle)]
    array = np.array(values[:n])
    return (oracle.Result(array, np.abs(array) + 1),)


def carry_(values, source, fill, sound=False, status=None) -> Expected:
    fresh = iter(fill.expand(int((source < 0).sum())) if fill.dim() == 0 else fill)
    moved = [values[position] if position >= 0 else next(fresh) for position in source.tolist()]
    return (torch.stack(moved) if moved else values,)


def assign_(values, new_values, status=None) -> Expected:
    return (new_values,)


def raise_fault(status) -> Expected:
    return ()


# Random numbers: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011), and a Feistel network on pairs of numbers that
# shuffles [0, size) (Black and Rogaway, CT-RSA 2002)


def _philox(counter: list[int], key: list[int]) -> list[int]:
    for bump in range(10):
        first, second = ((word + bump * step) % 2**32 for word, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        even, odd = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [odd >> 32 ^ counter[1] ^ first, odd % 2**32, even >> 32 ^ counter[3] ^ second, even % 2**32]
    return counter


class _Stream:
    def __init__(self, seed: int, step: int, layer: int, purpose: int) -> None:
        self.base = _philox([step % 2**32, step >> 32, layer, purpose], [seed % 2**32, seed >> 32])

    def bits(self, index: int) -> tuple[int, int]:
        word = _philox([index % 2**32, index >> 32, *self.base[2:]], self.base[:2])
        return word[0] << 32 | word[1], word[2] << 32 | word[3]


def _mixed(word: int, limit: int) -> int:
    """A number in [0, limit): the finaliser of SplitMix64, scaled."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return ((word ^ word >> 31) >> 32) * limit >> 32


def _shuffled(count: int, size: int, stream: _Stream) -> list[int]:
    """Where a bijection of [0, size) sends the first `count` numbers."""
    key, _ = stream.bits(0)
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    rounds = 8 + 48 // max(b.bit_length() - 1, 1)

    def once(value: int) -> int:
        left, right = value % a, value // a
        for number in range(0, rounds, 2):
            left = (left + _mixed((key + (number << 32 | right)) % 2**64, a)) % a
            right = (right + _mixed((key + (number + 1 << 32 | left)) % 2**64, b)) % b
        return left + a * right

    results = []
    for value in range(count):
        value = once(value)
        while value >= size:
            value = once(value)
        results.append(value)
    return results
