"""Every op and every norm, once: what to call an op with, what it must give, which calls it must refuse.

The generic tests (test_ops.py) run over this table, so an entry is all that a new op or norm needs: values against the
reference, dtypes, layouts, first and second derivatives, forward mode, opcheck, compilation, vmap, threads, meta
tensors and errors. They also fail for an op or a name of a norm that is missing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import op_conv
import op_references as references
import op_rewiring
import torch
from op_entry import (
    FLOATS,
    HALVES,
    SMALL,
    Op,
    Sample,
    Shape,
    Wrong,
    arguments_of,
    doubled,
    elsewhere,
    longer,
    number,
    put,
)  # fmt: skip

# Norms: name -> (a, b, p, which excitability: none, one for all rows ("shared"), or one for each ("own"))

POWERS = (1.0, 1.5, 2.0, 3.0, 3.7, 5.0)
NORMS: dict[str, tuple[float, float, float, str | None]] = {
    "none": (0.0, 0.0, 2.0, None),
    "l0": (1.0, 0.0, 2.0, "shared"),
    "l0-variable": (1.0, 0.0, 2.0, "own"),
    "weight_norm": (0.0, 1.0, 2.0, "own"),
    "joint": (1.0, 1.0, 2.0, "own"),
    **{f"lp:{p:g}": (0.0, 1.0, p, "shared") for p in POWERS},
    **{f"lp-variable:{p:g}": (0.0, 1.0, p, "own") for p in POWERS},
}
# With members of the family that have no name in dendnorm.norms.
FAMILY = {**NORMS, "family": (0.5, 0.5, 2.5, "own"), "family-shared": (0.5, 0.5, 2.5, "shared")}
# One for each way in which kernels and derivatives differ, for tests that take long.
TYPICAL_NORMS = ("none", "l0", "joint", "lp-variable:3")

PATTERN = ("ccol_indices", "row_indices", "crow_indices", "col_indices", "perm")


def layer_arguments(norm: str, dtype: torch.dtype, shape: Shape = SMALL) -> Sample:
    """All that any op of a layer takes. Values are away from 0, where p = 1 has a corner; 16 bits are activations'."""
    rng = np.random.default_rng(0)
    pattern = shape.pattern()
    a, b, p, kind = FAMILY[norm]
    values = torch.float32 if dtype in HALVES else dtype

    def tensor(array: np.ndarray | float, dtype: torch.dtype = values) -> torch.Tensor:
        return torch.tensor(array, dtype=dtype)

    inputs, outputs = (tensor(rng.standard_normal((*shape.lead, size)), dtype) for size in (shape.cols, shape.rows))
    return {
        "input": inputs,
        "columns": inputs,
        "grad_output": outputs,
        "rows": outputs,
        "weight": tensor(rng.choice([-1.0, 1.0], pattern.nnz) * rng.uniform(0.4, 1.5, pattern.nnz)),
        "grad": tensor(rng.standard_normal(pattern.nnz)),
        "bias": tensor(rng.standard_normal(shape.rows)),
        "excitability": None if kind is None else tensor(rng.uniform(0.5, 2.0, shape.rows if kind == "own" else ())),
        **dict(zip(PATTERN, pattern.tensors, strict=True)),
        "a": a,
        "b": b,
        "p": p,
    }


def layer_samples(op: str, masks: int) -> Callable[[str, torch.dtype, Shape], list[Sample]]:
    """Samples of an op of the layer; with an output_mask of `masks` entries, all wanted and each of them alone."""

    def samples(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
        given = layer_arguments(norm, dtype, shape)
        sample = {name: given[name] for name in arguments_of(op) if name in given}
        if not masks:
            return [sample]
        # The excitability's gradient comes last, where there is one.
        choices = [[True] * (masks - 1) + [given["excitability"] is not None]]
        choices += [[index == chosen for index in range(masks)] for chosen in range(masks)]
        return [sample | {"output_mask": choice} for choice in choices]

    return samples


def raw_values(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    """Weights whose excitability is free, and the same with e given."""
    given = layer_arguments(norm, dtype, shape)
    pattern, kind = shape.pattern(), FAMILY[norm][3]
    row, w = given["row_indices"], given["weight"]
    if given["b"] == 1 and kind == "shared":  # which can only stand for rows of one length
        lengths = torch.zeros(shape.rows, dtype=dtype).index_add_(0, row, w.abs() ** given["p"]) ** (1 / given["p"])
        w = w / lengths[row]
    sample = {name: given[name] for name in ("row_indices", "a", "b", "p")}
    sample |= {"effective": w, "rows": shape.rows, "variable": kind == "own", "excitability": None, "start": 1.7}
    free = sample | {"name": norm}
    chosen = references.raw_values(**free)[1]
    assert isinstance(chosen, references.oracle.Result) and pattern.nnz == len(w)
    return [free, free | {"excitability": -torch.tensor(chosen.value, dtype=dtype)}]


# Calls in float64 with the norm "joint" and the shape SMALL, 4 by 5 with 3 samples, that are refused; each by the name
# of the argument, for every op that has it.
LAYER_ERRORS: dict[str, Wrong] = {
    "a nan": number("a", math.nan, "finite"),
    "b infinite": number("b", math.inf, "finite"),
    "p below 1": number("p", 0.5, "at least 1"),
    "p infinite": number("p", math.inf, "finite"),
    "weight integers": Wrong(put("weight", torch.Tensor.long), ("weight must have dtype", "float32", "float64")),
    "weight a matrix": Wrong(put("weight", lambda w: w[None]), ("weight must", "got")),
    "weight too long": Wrong(put("weight", longer), ("row_indices must have one entry for each", "got")),
    "input too wide": Wrong(put("input", doubled), ("input must have shape", "5", "10")),
    "input a scalar": Wrong(put("input", torch.Tensor.sum), ("input must have shape", "got")),
    "input integers": Wrong(put("input", torch.Tensor.long), ("input must have dtype", "float64")),
    "input float32": Wrong(put("input", torch.Tensor.float), ("input must have dtype", "float64")),
    "bias too long": Wrong(put("bias", longer), ("bias must have shape", "4", "5")),
    "bias a matrix": Wrong(put("bias", lambda b: b[None]), ("bias must have shape", "4")),
    "bias float32": Wrong(put("bias", torch.Tensor.float), ("bias must have",)),
    "excitability too long": Wrong(put("excitability", longer), ("excitability must have shape", "4", "5")),
    "excitability a matrix": Wrong(put("excitability", lambda e: e[None]), ("excitability must have shape", "4")),
    "excitability float32": Wrong(put("excitability", torch.Tensor.float), ("excitability must have",)),
    "grad_output too wide": Wrong(put("grad_output", doubled), ("grad_output must have shape", "4", "8")),
    "grad_output of more samples": Wrong(put("grad_output", lambda g: torch.cat([g, g])),
                                         ("grad_output must have the leading sizes of input", "3", "6")),
    "grad too long": Wrong(put("grad", longer), ("grad must have", "shape", "got")),
    "grad float32": Wrong(put("grad", torch.Tensor.float), ("grad must have",)),
    "rows too wide": Wrong(put("rows", doubled), ("rows must have shape", "4", "8")),
    "rows of more samples": Wrong(put("rows", lambda y: torch.cat([y, y])),
                                  ("rows must have the leading sizes of columns", "3", "6")),
    "rows float32": Wrong(put("rows", torch.Tensor.float), ("rows must have",)),
    "columns too wide": Wrong(put("columns", doubled), ("columns must have shape", "5", "10")),
    "columns integers": Wrong(put("columns", torch.Tensor.long), ("columns must have dtype", "float32", "float64")),
    "ccol_indices empty": Wrong(put("ccol_indices", lambda t: t[:0]), ("ccol_indices must have", "got none")),
    "crow_indices empty": Wrong(put("crow_indices", lambda t: t[:0]), ("crow_indices must have", "got none")),
    "col_indices too long": Wrong(put("col_indices", longer), ("col_indices must have one entry for each", "got")),
    "perm too long": Wrong(put("perm", longer), ("perm must have one entry for each", "got")),
}  # fmt: skip
for _name in ("input", "bias", "excitability", "grad_output", "grad", "rows", *PATTERN):
    LAYER_ERRORS[f"{_name} elsewhere"] = elsewhere(_name)
for _name in PATTERN:
    LAYER_ERRORS[f"{_name} of int64"] = Wrong(put(_name, torch.Tensor.long), (f"{_name} must have dtype", "int32"))
    LAYER_ERRORS[f"{_name} a matrix"] = Wrong(put(_name, lambda t: t[None]), (f"{_name} must be one-dimensional",))
    LAYER_ERRORS[f"{_name} strided"] = Wrong(
        put(_name, lambda t: t.repeat_interleave(2)[::2]), (f"{_name} must be contiguous", "2")
    )


def layer_op(name: str, differentiable: tuple[str, ...], masks: int = 0) -> Op:
    """An op that takes a layer's arguments, under the names that they have in ``layer_arguments``."""
    given = arguments_of(name)
    return Op(
        samples=layer_samples(name, masks),
        reference=getattr(references, name),
        errors={label: wrong for label, wrong in LAYER_ERRORS.items() if label.split()[0] in given},
        norms=tuple(sorted(FAMILY)) if "a" in given else ("none",),
        dtypes=(*FLOATS, *HALVES) if {"input", "columns"} & set(given) else FLOATS,
        differentiable=differentiable,
        strided=differentiable,
        vmap=(*((argument,) for argument in differentiable), PATTERN),
        # Second derivatives of a derivative are third ones.
        thorough=TYPICAL_NORMS if masks else (),
    )


def conv_op(name: str, differentiable: tuple[str, ...], masks: int = 0) -> Op:
    images = ("input", "grad_output")  # of the other shape
    shared = {label: wrong for label, wrong in LAYER_ERRORS.items() if label.split()[0] not in images}
    return op_conv.entry(name, differentiable, masks, shared, tuple(sorted(FAMILY)), TYPICAL_NORMS)


def frozen_linear(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    """With indices of 32 bits and of 16."""
    given = layer_arguments(norm, dtype, shape)
    sample = {name: given[name] for name in arguments_of("frozen_linear") if name in given}
    sample["in_features"] = shape.cols
    return [sample, sample | {"col_indices": sample["col_indices"].to(torch.int16)}]


FROZEN_ERRORS = {
    label: wrong
    for label, wrong in LAYER_ERRORS.items()
    if label.split()[0] in ("input", "weight", "bias", "crow_indices", "col_indices") and label != "weight too long"
} | {
    "weight too long": Wrong(put("weight", longer), ("col_indices must have one entry for each", "got")),
    "crow_indices of another": Wrong(put("crow_indices", lambda t: t - 1), ("crow_indices must go from 0 to",), True),
    "in_features another": Wrong(lambda sample: sample | {"in_features": 6}, ("input must have shape", "6", "5")),
    "in_features negative": Wrong(lambda sample: sample | {"in_features": -1}, ("in_features must be at least 0",)),
    "in_features too many": Wrong(
        lambda sample: sample | {"in_features": 65537, "col_indices": sample["col_indices"].to(torch.int16)},
        ("in_features must be", "at most 65536", "65537"),
    ),
}


OPS: dict[str, Op] = {
    "sparse_conv2d": conv_op("sparse_conv2d", ("input", "weight", "bias", "excitability")),
    "sparse_conv2d_backward": conv_op(
        "sparse_conv2d_backward", ("grad_output", "input", "weight", "excitability"), masks=4
    ),
    "sparse_linear": layer_op("sparse_linear", ("input", "weight", "bias", "excitability")),
    "sparse_linear_backward": layer_op(
        "sparse_linear_backward", ("grad_output", "input", "weight", "excitability"), masks=4
    ),
    "effective_weight": layer_op("effective_weight", ("weight", "excitability")),
    "effective_weight_backward": layer_op("effective_weight_backward", ("grad", "weight", "excitability"), masks=2),
    "frozen_linear": Op(
        samples=frozen_linear,
        reference=references.frozen_linear,
        errors=FROZEN_ERRORS,
        dtypes=(*FLOATS, *HALVES),
        refuses_gradients=True,
        strided=("input", "weight", "bias"),
        vmap=(("input",), ("weight",), ("bias",)),
    ),
    "sampled_product": layer_op("sampled_product", ("rows", "columns")),
    "raw_values": Op(
        samples=raw_values,
        reference=references.raw_values,
        errors={
            "a nan": LAYER_ERRORS["a nan"],
            "p below 1": LAYER_ERRORS["p below 1"],
            "effective of float32": Wrong(put("effective", torch.Tensor.float), ("effective must have dtype float64",)),
            "effective a matrix": Wrong(put("effective", lambda w: w[None]), ("effective must be one-dimensional",)),
            "row_indices of int64": Wrong(put("row_indices", torch.Tensor.long), ("row_indices must", "int32")),
            "row_indices too long": Wrong(put("row_indices", longer), ("row_indices must have", "shape", "got")),
            "row_indices elsewhere": elsewhere("row_indices"),
            "row_indices out of range": Wrong(
                put("row_indices", lambda t: t + 4), ("row_indices must be in [0, 4)",), values=True
            ),
            "rows 0": Wrong(lambda sample: sample | {"rows": 0}, ("rows must be at least 1, got 0",)),
            "excitability too many": Wrong(
                lambda sample: sample | {"excitability": torch.ones(5, dtype=torch.float64)},
                ("excitability must have 1 or 4 entries, got 5",),
            ),
        },
        norms=tuple(sorted(FAMILY)),
        dtypes=(torch.float64,),
    ),
    **op_rewiring.OPS,
}
