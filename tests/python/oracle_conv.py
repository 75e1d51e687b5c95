"""The convolution from its definition, in float64: one connection after the other, at every position that it reaches.

    y[b, o, i, j] = bias[o] + sum over the connections (o, c, y, x) of w x[b, c, i s + y d - p, j s + x d - p]

with the norms of ``oracle`` on the rows of the pattern, one for each filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import oracle


@dataclass(frozen=True)
class Window:
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def positions(self, axis: int, size: int) -> int:
        rest = size + sum(self.padding[2 * axis : 2 * axis + 2]) - self.dilation[axis] * (self.kernel_size[axis] - 1)
        return (rest - 1) // self.stride[axis] + 1

    def reached(self, axis: int, tap: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Output positions whose tap lies on the image, and where."""
        outputs = np.arange(self.positions(axis, size))
        inputs = outputs * self.stride[axis] + tap * self.dilation[axis] - self.padding[2 * axis]
        inside = (inputs >= 0) & (inputs < size)
        return outputs[inside], inputs[inside]


def connections(pattern: oracle.Pattern, window: Window, shape: tuple[int, ...]) -> Iterator[tuple]:
    """Row and column of each connection, and the parts of output and input that it joins."""
    filters = pattern.mask.shape[0]
    height, width = window.kernel_size
    for row, column in zip(*pattern.rows_cols, strict=True):
        channel, tap = divmod(int(column), height * width)
        channel += row // (filters // window.groups) * (shape[1] // window.groups)
        (i, h), (j, w) = (window.reached(a, t, shape[2 + a]) for a, t in enumerate(divmod(tap, width)))
        yield row, column, (slice(None), row, *np.ix_(i, j)), (slice(None), channel, *np.ix_(h, w))


@dataclass
class Everything:
    output: oracle.Result
    d_input: oracle.Result
    d_weight: oracle.Result
    d_bias: oracle.Result
    d_excitability: oracle.Result | None
    undefined: np.ndarray


def sparse_conv2d(input, weight, bias, excitability, pattern, a, b, p, window: Window, grad_output=None) -> Everything:
    """Output and all gradients of sum(output * grad_output)."""
    x, shift = (None if t is None else t.detach().double().numpy() for t in (input, bias))
    sizes = (x.shape[0], pattern.mask.shape[0], window.positions(0, x.shape[2]), window.positions(1, x.shape[3]))
    dy = np.zeros(sizes) if grad_output is None else grad_output.detach().double().numpy()
    w = oracle.effective_weight(weight, excitability, pattern, a, b, p)
    y, dx, g = (np.zeros(shape) for shape in (sizes, x.shape, w.shape))
    y_terms, dx_terms, g_terms = (np.zeros(shape) for shape in (sizes, x.shape, w.shape))
    for row, column, outputs, inputs in connections(pattern, window, x.shape):
        value = w[row, column]
        y[outputs] += value * x[inputs]
        y_terms[outputs] += abs(value) * abs(x[inputs])
        dx[inputs] += value * dy[outputs]
        dx_terms[inputs] += abs(value) * abs(dy[outputs])
        g[row, column] = (dy[outputs] * x[inputs]).sum()
        g_terms[row, column] = abs(dy[outputs] * x[inputs]).sum()
    if shift is not None:
        y, y_terms = y + shift[:, None, None], y_terms + abs(shift[:, None, None])
    d_dense, de, vanishing = oracle.effective_weight_backward(g, g_terms, weight, excitability, pattern, a, b, p)
    row, column = pattern.rows_cols
    return Everything(
        output=oracle.Result(y, y_terms),
        d_input=oracle.Result(dx, dx_terms),
        d_weight=oracle.Result(d_dense.value[row, column], d_dense.terms[row, column]),
        d_bias=oracle.Result(dy.sum((0, 2, 3)), abs(dy).sum((0, 2, 3))),
        d_excitability=de,
        undefined=vanishing[row],
    )
