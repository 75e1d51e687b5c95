"""The ops of the convolution, for the table of ops (op_table.py): images and windows in the place of its shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import op_references as references
import oracle
import oracle_conv
import torch
from op_entry import HALVES, SHAPES, SHARED, Op, Sample, Shape, Wrong, doubled, elsewhere, put
from oracle_conv import Window

PATTERN = ("ccol_indices", "row_indices", "crow_indices", "col_indices", "perm")


@dataclasses.dataclass(frozen=True)
class Case:
    filters: int
    input: tuple[int, int, int, int]
    window: Window
    density: float = 0.5
    empty: int | None = None  # a filter without connections

    def pattern(self, turned: int) -> oracle.Pattern:
        columns = self.input[1] // self.window.groups * int(np.prod(self.window.kernel_size))
        mask = np.random.default_rng(0).random((self.filters, columns)) < self.density
        if self.empty is not None:
            mask[self.empty] = False
        return oracle.pattern_of(np.roll(mask, turned, axis=1))

    @property
    def output(self) -> tuple[int, int, int, int]:
        sizes = (self.window.positions(axis, self.input[2 + axis]) for axis in range(2))
        return (self.input[0], self.filters, *sizes)


# What a kernel may find: one sample, several tiles, phases of unequal length, groups, images smaller than a run,
# windows of one place with and without steps, no samples and no connections.
UNEVEN = Window((3, 2), (2, 1), (1, 0, 1, 2), (1, 2), 2)
CASES: dict[Shape, list[Case]] = {
    SHAPES["small"]: [Case(4, (2, 4, 5, 4), UNEVEN, empty=2)],
    SHAPES["one sample"]: [Case(3, (1, 2, 9, 17), Window(padding=(1, 1, 1, 1)))],
    SHAPES["deep"]: [Case(5, (3, 3, 7, 7), Window((1, 1))), Case(4, (5, 3, 8, 9), Window((1, 1), (2, 3)))],
    SHAPES["no samples"]: [Case(4, (0, 3, 5, 5), Window())],
    SHAPES["no connections"]: [Case(4, (3, 3, 5, 5), Window(), density=0.0)],
    SHAPES["dense"]: [Case(6, (17, 3, 6, 7), Window((2, 3), (1, 2), (0, 1, 1, 1)), density=1.0)],
    SHAPES["wide"]: [
        Case(9, (35, 7, 14, 16), Window(padding=(1, 1, 1, 1)), density=0.3),
        Case(8, (16, 4, 11, 13), Window((3, 3), (3, 2), (2, 0, 1, 3), (2, 1), 4), density=0.7),
    ],
    SHARED: [Case(24, (33, 16, 15, 29), Window(padding=(1, 1, 1, 1)), density=0.3)],
}


def samples(op: str, masks: int) -> Callable[[str, torch.dtype, Shape], list[Sample]]:
    def of(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
        return [
            sample
            for case in CASES[dataclasses.replace(shape, turned=0)]
            for sample in of_case(op, masks, norm, dtype, case, shape.turned)
        ]

    return of


def of_case(op: str, masks: int, norm: str, dtype: torch.dtype, case: Case, turned: int) -> list[Sample]:
    """All results wanted, and each of them alone."""
    from op_table import FAMILY

    rng = np.random.default_rng(0)
    pattern = case.pattern(turned)
    a, b, p, kind = FAMILY[norm]
    values = torch.float32 if dtype in HALVES else dtype

    def tensor(array: np.ndarray | float, dtype: torch.dtype = values) -> torch.Tensor:
        return torch.tensor(array, dtype=dtype)

    sample: Sample = {} if masks == 0 else {"grad_output": tensor(rng.standard_normal(case.output), dtype)}
    sample["input"] = tensor(rng.standard_normal(case.input), dtype)
    sample["weight"] = tensor(rng.choice([-1.0, 1.0], pattern.nnz) * rng.uniform(0.4, 1.5, pattern.nnz))
    if masks == 0:
        sample["bias"] = tensor(rng.standard_normal(case.filters))
    sample["excitability"] = (
        None if kind is None else tensor(rng.uniform(0.5, 2.0, case.filters if kind == "own" else ()))
    )
    sample |= dict(zip(PATTERN, pattern.tensors, strict=True)) | {"a": a, "b": b, "p": p}
    sample |= {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(case.window).items()
    }
    if masks == 0:
        return [sample]
    choices = [[True] * (masks - 1) + [kind is not None]]
    choices += [[index == chosen for index in range(masks)] for chosen in range(masks)]
    return [sample | {"output_mask": choice} for choice in choices]


def _window(kernel_size, stride, padding, dilation, groups) -> Window:
    return Window(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups)


def sparse_conv2d(
    input, weight, bias, excitability, ccol_indices, row_indices, crow_indices, col_indices, perm, a, b, p, **window
) -> references.Expected:
    pattern = references.pattern_of(ccol_indices, row_indices, crow_indices)
    want = oracle_conv.sparse_conv2d(input, weight, bias, excitability, pattern, a, b, p, _window(**window))
    return (want.output,)


def sparse_conv2d_backward(
    grad_output, input, weight, excitability, ccol_indices, row_indices, crow_indices, col_indices, perm, a, b, p,
    output_mask, **window,
) -> references.Expected:  # fmt: skip
    pattern = references.pattern_of(ccol_indices, row_indices, crow_indices)
    want = oracle_conv.sparse_conv2d(
        input, weight, None, excitability, pattern, a, b, p, _window(**window), grad_output
    )
    d_weight = oracle.Result(want.d_weight.value, want.d_weight.terms, want.undefined)
    return references.asked(output_mask, [want.d_input, d_weight, want.d_bias, want.d_excitability])


def _changed(name: str, value: object, *message: str) -> Wrong:
    return Wrong(lambda sample: sample | {name: value}, (f"{name} must", *message))


# Of images (2, 4, 5, 4), 4 filters, a window of 3 by 2 and 2 groups.
ERRORS: dict[str, Wrong] = {
    "input of more channels": Wrong(put("input", lambda x: torch.cat([x, x], 1)),
                                    ("input must have shape (B, 4, H, W)", "8")),
    "input of three dimensions": Wrong(put("input", lambda x: x[0]), ("input must have shape (B, 4, H, W)", "got")),
    "input too low": Wrong(put("input", lambda x: x[:, :, :1]), ("input must have at least 3 rows", "got 2")),
    "input integers": Wrong(put("input", torch.Tensor.long), ("input must have dtype", "float64")),
    "input float32": Wrong(put("input", torch.Tensor.float), ("input must have dtype", "float64")),
    "grad_output too wide": Wrong(put("grad_output", doubled), ("grad_output must have shape [2, 4, 2, 5]", "got")),
    "grad_output float32": Wrong(put("grad_output", torch.Tensor.float), ("grad_output must have dtype", "float64")),
    "kernel_size 0": _changed("kernel_size", [0, 2], "be at least 1", "0, 2"),
    "kernel_size of another area": _changed("kernel_size", [3, 5], "area", "12", "3, 5"),
    "stride 0": _changed("stride", [0, 1], "be at least 1", "0, 1"),
    "padding below 0": _changed("padding", [0, 0, -1, 0], "be at least 0", "0, 0, -1, 0"),
    "dilation 0": _changed("dilation", [1, 0], "be at least 1", "1, 0"),
    "groups 0": _changed("groups", 0, "be at least 1, got 0"),
    "groups 3": _changed("groups", 3, "divide the 4 filters", "got 3"),
}  # fmt: skip
for _name in ("input", "grad_output"):
    ERRORS[f"{_name} elsewhere"] = elsewhere(_name)


def entry(
    name: str, differentiable: tuple[str, ...], masks: int, shared_errors: dict[str, Wrong], norms, typical
) -> Op:
    """`shared_errors` are those of any layer, whose arguments the op has."""
    given = {*differentiable, *PATTERN, "a", "b", "p", *dataclasses.asdict(Window())}
    return Op(
        samples=samples(name, masks),
        reference=globals()[name],
        errors={k: wrong for k, wrong in (shared_errors | ERRORS).items() if k.split()[0] in given},
        norms=norms,
        dtypes=(torch.float32, torch.float64, *HALVES),
        differentiable=differentiable,
        strided=differentiable,
        vmap=(*((argument,) for argument in differentiable), PATTERN),
        thorough=typical,
    )
