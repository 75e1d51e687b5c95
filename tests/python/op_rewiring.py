"""Entries of the table of ops for those of patterns and of rewiring."""

from __future__ import annotations

import dataclasses

import numpy as np
import op_references as references
import torch
from op_entry import FLOATS, HALVES, SMALL, Op, Sample, Shape, Wrong, elsewhere, longer, number, put, told

CLEAR = references.CLEAR


def clear() -> torch.Tensor:
    """A status without a fault."""
    return torch.tensor([CLEAR, 0, 0, 0])


def at_once_and_later(samples: list[Sample]) -> list[Sample]:
    """Each sample as it is, and with a status and the word that its pattern is sound."""
    return samples + [sample | {"status": clear()} for sample in samples]


def looked_at_or_not(samples: list[Sample]) -> list[Sample]:
    return samples + [sample | {"sound": True} for sample in samples]


def columns_of(shape: Shape) -> Sample:
    pattern = shape.pattern()
    return {"ccol_indices": pattern.ccol_indices, "row_indices": pattern.row_indices}


def dropped_of(shape: Shape) -> torch.Tensor:
    """A third of the connections."""
    return torch.arange(shape.pattern().nnz) % 3 == 1


def check_pattern(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    pattern = shape.pattern()
    names = {"compressed_name": "compressed", "indices_name": "indices"}
    return [
        {"compressed": pattern.ccol_indices, "indices": pattern.row_indices, "size": shape.rows, **names},
        {"compressed": pattern.crow_indices, "indices": pattern.col_indices, "size": shape.cols, **names},
    ]


def transpose_pattern(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    names = ("compressed", "indices", "size")
    return looked_at_or_not([{n: sample[n] for n in names} for sample in check_pattern(norm, dtype, shape)])


def pattern_mark(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    return [{"ccol_indices": sample["compressed"], "row_indices": sample["indices"]}
            for sample in check_pattern(norm, dtype, shape)]  # fmt: skip


NAMES = {"compressed_name": "compressed", "indices_name": "indices"}


def check_view(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    pattern = shape.pattern()
    columns = {"compressed": pattern.ccol_indices, "indices": pattern.row_indices}
    rows = {"compressed": pattern.crow_indices, "indices": pattern.col_indices}
    return [columns | {"segments": shape.cols, "size": shape.rows} | NAMES,
            rows | {"segments": shape.rows, "size": shape.cols} | NAMES]  # fmt: skip


def both_views(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    samples = check_view(norm, dtype, shape)
    return samples + [sample | {name: sample[name].long() for name in ("compressed", "indices")} for sample in samples]


def pattern_of_keys(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    row, col = shape.pattern().rows_cols
    keys = torch.from_numpy(np.sort(col * shape.rows + row))
    return [{"keys": keys, "rows": shape.rows, "cols": shape.cols}, {"keys": keys[:0], "rows": 0, "cols": 0}]


def largest_connections(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    size = (shape.rows, shape.cols)
    # Many of equal magnitude, and zeros.
    dense = torch.tensor(np.random.default_rng(0).integers(-4, 5, size) / 4, dtype=dtype)
    counts = (dense.numel() // 3, 0, 1, dense.numel())
    return [{"dense": dense, "nnz": nnz, "name": "linear.weight"} for nnz in counts]


def connections_of_csr(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    pattern, rng = shape.pattern(), np.random.default_rng(0)
    values, bias = (torch.tensor(rng.standard_normal(n), dtype=dtype) for n in (pattern.nnz, shape.rows))
    sample = {"crow_indices": pattern.crow_indices, "col_indices": pattern.col_indices, "values": values}
    sizes = {"rows": shape.rows, "cols": shape.cols}
    wide = {name: sample[name].long() for name in ("crow_indices", "col_indices")}
    return [sample | sizes | {"bias": bias}, sample | wide | sizes | {"bias": None}]


def weakest(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    rng = np.random.default_rng(0)
    nnz = shape.pattern().nnz
    # Ties, both zeros and infinity among others.
    score = torch.tensor(rng.choice([*rng.random(5), 0.0, -0.0, 1e-40, 1e20, np.inf], nnz), dtype=dtype)
    samples = [{"score": score, "k": k} for k in sorted({0, nnz // 3, nnz})]
    nan = {"score": torch.full((nnz,), torch.nan, dtype=dtype), "k": nnz // 3}
    return [*at_once_and_later(samples), nan | {"status": clear()}]


def excise(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    dropped = dropped_of(shape)
    sample = columns_of(shape) | {"dropped": dropped, "k": int(dropped.sum())}
    samples = looked_at_or_not(at_once_and_later([sample]))
    return [*samples, sample | {"k": len(dropped), "status": clear(), "sound": True}]


def empty_positions(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    empty = shape.rows * shape.cols - shape.pattern().nnz
    keys = ({"seed": 1, "step": 2, "layer": 3}, {"seed": 2**63 - 1, "step": 2**40, "layer": 2**32 - 1})
    return looked_at_or_not(
        [
            columns_of(shape) | {"rows": shape.rows, "k": k} | key
            for k in sorted({0, empty // 5, empty * 2 // 3, empty})
            for key in keys
        ]
    )


def replace_connections(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    pattern, dropped = shape.pattern(), dropped_of(shape)
    row, col = pattern.rows_cols
    kept = np.zeros(pattern.mask.size, dtype=bool)
    kept[(col * shape.rows + row)[~dropped.numpy()]] = True
    keys = np.sort(np.random.default_rng(2).choice(np.flatnonzero(~kept), int(dropped.sum()), replace=False))
    sample = columns_of(shape) | {"rows": shape.rows, "dropped": dropped, "keys": torch.from_numpy(keys)}
    return looked_at_or_not(at_once_and_later([sample]))


def plan_excision(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    def renamed(sample: Sample) -> Sample:
        return {"importance" if name == "score" else name: value for name, value in sample.items()}

    return [columns_of(shape) | renamed(sample) | {"sound": sound}
            for sample in weakest(norm, dtype, shape) for sound in (False, True)]  # fmt: skip


def plan_rewiring(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    samples = replace_connections(norm, dtype, shape)
    k = len(samples[0]["keys"])
    values = torch.tensor(np.random.default_rng(3).standard_normal(k), dtype=dtype)
    faulty = {"values": torch.cat([values[1:], values[:1] / 0]), "status": clear()}
    samples = [sample | {"k": k, "values": values, "dtype": dtype} for sample in samples]
    return [*samples, samples[0] | faulty] if k else samples


def spread(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    values = np.random.default_rng(0).standard_normal(shape.pattern().nnz)
    return [{"values": torch.tensor(scale * values, dtype=dtype)} for scale in (1, 1e-12, 3e4, 0)]


def counter_normal(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    keys = ({"seed": 1, "step": 2, "layer": 3}, {"seed": 2**63 - 1, "step": 2**40, "layer": 2**32 - 1})
    device = torch.get_default_device()
    sizes = (0, 7, 8, shape.rows * shape.cols)
    return [{"n": n, **key, "dtype": dtype, "device": device} for n in sizes for key in keys]


def carry_(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    rng = np.random.default_rng(0)
    n = shape.pattern().nnz
    source = rng.permutation(n)
    source[rng.random(n) < 0.3] = -1
    fresh = int((source < 0).sum())

    def tensor(size: tuple[int, ...]) -> torch.Tensor:
        if dtype.is_complex:
            return torch.tensor(rng.standard_normal(size) + 1j * rng.standard_normal(size), dtype=dtype)
        return torch.tensor(rng.integers(-3, 4, size), dtype=dtype)

    values = {"values": tensor((n,)), "source": torch.tensor(source, dtype=torch.int32)}
    samples = at_once_and_later([values | {"fill": tensor((fresh,))}, values | {"fill": tensor(())}])
    return looked_at_or_not(samples)


def assign_(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    rng = np.random.default_rng(0)
    size = (shape.rows, shape.cols)
    values, new = (torch.tensor(rng.integers(-3, 4, size), dtype=dtype) for _ in range(2))
    vectors = {"values": values.flatten(), "new_values": new.flatten()}
    return at_once_and_later([{"values": values, "new_values": new}, vectors])


def raise_fault(norm: str, dtype: torch.dtype, shape: Shape) -> list[Sample]:
    return [{"status": clear()}]


# Mistakes, in what the shape SMALL gives: 4 by 5


def swapped(tensor: torch.Tensor) -> torch.Tensor:
    """The first two of what ascends, the other way round."""
    return torch.cat([tensor[:2].flip(0), tensor[2:]])


def of_pattern(compressed: str, indices: str, size: str) -> dict[str, Wrong]:
    """What check_pattern refuses, which every op does that takes a pattern."""
    last = int(SMALL.pattern().ccol_indices[-1])
    return {
        f"{compressed} of int64": Wrong(put(compressed, torch.Tensor.long), (f"{compressed} must have dtype int32",)),
        f"{indices} of int64": Wrong(put(indices, torch.Tensor.long), (f"{indices} must have dtype int32",)),
        f"{compressed} a matrix": Wrong(put(compressed, lambda t: t[None]), (f"{compressed} must be one-dimensional",)),
        f"{indices} a matrix": Wrong(put(indices, lambda t: t[None]), (f"{indices} must be one-dimensional",)),
        f"{indices} elsewhere": elsewhere(indices),
        f"{compressed} empty": Wrong(put(compressed, lambda t: t[:0]), (f"{compressed} must have", "got none")),
        f"{compressed} not from 0": Wrong(
            put(compressed, lambda t: t + 1), (f"{compressed} must start with 0, got 1",), values=True
        ),
        f"{compressed} falling": Wrong(
            put(compressed, lambda t: torch.cat([t[:1], t[:1] + 3, t[2:]]).index_fill(0, torch.tensor([2]), 1)),
            (f"{compressed} must never fall, got 1 after 3 at position 2",),
            values=True,
        ),
        f"{compressed} with a wrong end": Wrong(
            put(compressed, lambda t: torch.cat([t[:-1], t[-1:] + 1])),
            (f"{compressed} must end with {last}", indices, f"got {last + 1}"),
            values=True,
        ),
        f"{indices} descending": Wrong(
            put(indices, swapped), (f"{indices} must be strictly ascending", "at position 1"), values=True
        ),
        f"{indices} negative": Wrong(
            put(indices, lambda t: torch.cat([t[:1] - 1, t[1:]])),
            (f"{indices} must be in [0, ", "got -1 at position 0"),
            values=True,
        ),
        **({f"{size} negative": number(size, -1, "in [0, ")} if size else {}),
    }


COLUMNS = of_pattern("ccol_indices", "row_indices", "rows")
STATUS = {
    "status of float32": Wrong(lambda s: s | {"status": torch.zeros(4)}, ("status must have dtype int64", "float32")),
    "status of three": Wrong(
        lambda s: s | {"status": torch.zeros(3, dtype=torch.int64)}, ("status must be contiguous of shape (4,)", "3")
    ),
}
DROPPED = {
    "dropped of int32": Wrong(put("dropped", torch.Tensor.int), ("dropped must have dtype bool, got int32",)),
    "dropped a matrix": Wrong(put("dropped", lambda t: t[None]), ("dropped must be one-dimensional",)),
    "dropped too long": Wrong(put("dropped", longer), ("dropped must have one entry for each of the", "got")),
    "dropped elsewhere": elsewhere("dropped"),
}
DRAW = {
    "seed negative": number("seed", -1, "in [0, 2^63), got"),
    "step negative": number("step", -1, "in [0, 2^63), got"),
    "layer negative": number("layer", -1, "in [0, 2^32), got"),
    "layer too large": Wrong(lambda s: s | {"layer": 2**32}, ("layer must be in [0, 2^32), got 4294967296",)),
}
K = {
    "k negative": number("k", -1),
    "k too large": Wrong(lambda s: s | {"k": 21}, ("k must be in [0, ", "got 21")),
}

VIEW = {
    **told(of_pattern("compressed", "indices", "size"), error=ValueError),
    "compressed empty": Wrong(
        put("compressed", lambda t: t[:0]),
        ("compressed must have 5 + 1 = 6 entries, got 0",),
        prefix="",
        error=ValueError,
    ),
    "too few segments": Wrong(
        lambda s: s | {"segments": 4}, ("compressed must have 4 + 1 = 5 entries, got 6",), prefix="", error=ValueError
    ),
}
INDICES = {
    f"{name} of float32": Wrong(
        put(name, torch.Tensor.float),
        (f"{name} must be of dtype int32 or int64, got float32",),
        prefix="",
        error=TypeError,
    )
    for name in ("compressed", "indices")
} | {
    "indices beyond int32": Wrong(
        put("indices", lambda t: t.long() + 2**32), ("indices must be in [0, 2^31), got",), True, "", ValueError
    )
}
KEYS = {
    "keys of int32": Wrong(put("keys", torch.Tensor.int), ("keys must have dtype int64, got int32",)),
    "keys a matrix": Wrong(put("keys", lambda t: t[None]), ("keys must be one-dimensional",)),
}


def csr_values(name: str, size: int) -> dict[str, Wrong]:
    return {
        f"{name} of int64": Wrong(
            put(name, torch.Tensor.long), (f"{name} must be of dtype float32 or float64, got int64",), error=TypeError
        ),
        f"{name} too long": Wrong(put(name, longer), (f"{name} must have shape ({size},), got",), error=ValueError),
        f"{name} elsewhere": dataclasses.replace(elsewhere(name), error=ValueError),
        f"{name} nan": Wrong(
            put(name, lambda t: t * torch.nan), (f"{name} must be finite, got nan",), True, None, ValueError
        ),
    }


OPS: dict[str, Op] = {
    "check_view": Op(
        samples=check_view, reference=references.check_view, errors=VIEW, strided=("compressed", "indices")
    ),
    "both_views": Op(
        samples=both_views,
        reference=references.both_views,
        errors={name: wrong for name, wrong in VIEW.items() if "of int64" not in name and "matrix" not in name}
        | INDICES,
        strided=("compressed", "indices"),
    ),
    "pattern_of_keys": Op(
        samples=pattern_of_keys,
        reference=references.pattern_of_keys,
        errors=KEYS | {name: number(name.split()[0], -1, "in [0, ") for name in ("rows negative", "cols negative")},
        strided=("keys",),
    ),
    "largest_connections": Op(
        samples=largest_connections,
        reference=references.largest_connections,
        errors={
            "dense a vector": Wrong(put("dense", torch.Tensor.flatten), ("dense must have two dimensions, got shape",)),
            "dense integers": Wrong(put("dense", torch.Tensor.long), ("dense must have a floating dtype, got int64",)),
            "nnz negative": number("nnz", -1, "in [0, number of entries of dense] = [0, 20]"),
            "nnz too large": number("nnz", 21, "in [0, number of entries of dense] = [0, 20]"),
            "dense nan": Wrong(
                put("dense", lambda t: t / 0), ("linear.weight must be finite, got nan",), True, "", ValueError
            ),
        },
        dtypes=(*FLOATS, *HALVES),
        strided=("dense",),
    ),
    "connections_of_csr": Op(
        samples=connections_of_csr,
        reference=references.connections_of_csr,
        errors=told(csr_values("values", SMALL.pattern().nnz), error=ValueError)
        | told(csr_values("bias", SMALL.rows), error=ValueError)
        | told(
            {
                name: wrong
                for argument in ("values", "bias")
                for name, wrong in csr_values(argument, 0).items()
                if name.endswith("of int64")
            }
            | {"bias of float32": Wrong(put("bias", torch.Tensor.float), ("bias must be of values' dtype float64",))},
            error=TypeError,
        ),
        dtypes=FLOATS,
        strided=("crow_indices", "col_indices", "values", "bias"),
    ),
    "check_pattern": Op(
        samples=check_pattern,
        reference=references.check_pattern,
        errors=of_pattern("compressed", "indices", "size"),
        strided=("compressed", "indices"),
    ),
    "transpose_pattern": Op(
        samples=transpose_pattern,
        reference=references.transpose_pattern,
        vmap=(("compressed", "indices"),),
        errors=of_pattern("compressed", "indices", "size"),
        strided=("compressed", "indices"),
    ),
    "pattern_mark": Op(
        samples=pattern_mark,
        reference=references.pattern_mark,
        errors={
            "ccol_indices of int64": Wrong(put("ccol_indices", torch.Tensor.long), ("ccol_indices must", "int32")),
            "row_indices of int64": Wrong(put("row_indices", torch.Tensor.long), ("row_indices must", "int32")),
            "row_indices a matrix": Wrong(put("row_indices", lambda t: t[None]), ("row_indices must be one-dim",)),
        },
        strided=("ccol_indices", "row_indices"),
    ),
    "weakest": Op(
        samples=weakest,
        reference=references.weakest,
        errors=K
        | STATUS
        | {
            "score integers": Wrong(put("score", torch.Tensor.long), ("score must have dtype float32 or float64",)),
            "score a matrix": Wrong(put("score", lambda t: t[None]), ("score must be one-dimensional",)),
            "score nan": Wrong(
                put("score", lambda t: torch.cat([t[:2], t[:1] * torch.nan, t[3:]])),
                ("score must be a number everywhere, got nan at position 2",),
                values=True,
            ),
        },
        dtypes=FLOATS,
        strided=("score",),
    ),
    "excise": Op(
        samples=excise,
        reference=references.excise,
        errors=of_pattern("ccol_indices", "row_indices", "") | DROPPED | K | STATUS,
        strided=("ccol_indices", "row_indices", "dropped"),
    ),
    "empty_positions": Op(
        samples=empty_positions,
        reference=references.empty_positions,
        errors=COLUMNS | DRAW | K,
        strided=("ccol_indices", "row_indices"),
    ),
    "replace_connections": Op(
        samples=replace_connections,
        reference=references.replace_connections,
        errors=COLUMNS
        | DROPPED
        | STATUS
        | {
            "keys of int32": Wrong(put("keys", torch.Tensor.int), ("keys must have dtype int64, got int32",)),
            "keys a matrix": Wrong(put("keys", lambda t: t[None]), ("keys must be one-dimensional",)),
            "keys elsewhere": elsewhere("keys"),
            "keys too many": Wrong(put("keys", longer), ("keys must have one entry for each of the",), values=True),
            "keys descending": Wrong(put("keys", swapped), ("keys must be strictly ascending",), values=True),
            "keys too large": Wrong(
                put("keys", lambda t: torch.cat([t[:-1], t.new_tensor([20])])),
                ("keys must be in [0, rows * columns) = [0, 20), got 20",),
                values=True,
            ),
        },
        strided=("ccol_indices", "row_indices", "dropped", "keys"),
    ),
    "plan_excision": Op(
        samples=plan_excision,
        reference=references.plan_excision,
        errors=told(of_pattern("ccol_indices", "row_indices", ""), "dendnorm::excise: ")
        | told(STATUS | K, "dendnorm::weakest: ")
        | told(
            {"importance integers": Wrong(put("importance", torch.Tensor.long), ("score must have dtype float32",))},
            "dendnorm::weakest: ",
        ),
        dtypes=FLOATS,
        strided=("ccol_indices", "row_indices", "importance"),
    ),
    "plan_rewiring": Op(
        samples=plan_rewiring,
        reference=references.plan_rewiring,
        errors=told(COLUMNS | DROPPED | STATUS | KEYS, "dendnorm::replace_connections: ")
        | told(
            {
                "values too many": Wrong(
                    put("values", longer), ("values of new connections must be a", "tensor of shape")
                ),
                "values a matrix": Wrong(put("values", lambda t: t[None]), ("values of new connections must be a",)),
                "values of 16 bits": Wrong(put("values", torch.Tensor.half), ("values of new", "got float16 of shape")),
                "values elsewhere": Wrong(
                    put("values", lambda t: t.to("meta")), ("values of new connections must be on cpu",)
                ),
            },
            error=ValueError,
        )
        | told(
            {
                "values infinite": Wrong(
                    put("values", lambda t: torch.cat([t[:1], t[1:] / 0])),
                    ("values of new connections must be finite, got nan or infinite values, the first at position 1",),
                    values=True,
                )
            }
        ),
        dtypes=FLOATS,
        strided=("ccol_indices", "row_indices", "dropped", "keys", "values"),
    ),
    "spread": Op(samples=spread, reference=references.spread, errors={}, dtypes=FLOATS, strided=("values",)),
    "counter_normal": Op(
        samples=counter_normal,
        reference=references.counter_normal,
        errors=DRAW
        | {
            "n negative": number("n", -1, "at least 0"),
            "dtype of 16 bits": Wrong(
                lambda s: s | {"dtype": torch.bfloat16}, ("dtype must be float32 or float64, got bfloat16",)
            ),
        },
        dtypes=FLOATS,
    ),
    "carry_": Op(
        samples=carry_,
        reference=references.carry_,
        errors=STATUS
        | {
            "values a matrix": Wrong(put("values", lambda t: t[None]), ("values must be one-dimensional",)),
            "source of int64": Wrong(put("source", torch.Tensor.long), ("source must have dtype int32, got int64",)),
            "source a matrix": Wrong(put("source", lambda t: t[None]), ("source must be one-dimensional",)),
            "source too long": Wrong(put("source", longer), ("source must have one entry for each of the", "got")),
            "source elsewhere": elsewhere("source"),
            "source out of range": Wrong(
                put("source", lambda t: torch.cat([t[:-1], t.new_tensor([99])])),
                ("source must be in [-1, ", "got 99"),
                values=True,
            ),
            "fill of int64": Wrong(put("fill", torch.Tensor.long), ("fill must have dtype", "got int64")),
            "fill a matrix": Wrong(put("fill", lambda t: t[None]), ("fill must have shape",)),
            "fill elsewhere": elsewhere("fill"),
            "fill too long": Wrong(put("fill", longer), ("fill must have shape () or",), values=True),
        },
        dtypes=(*FLOATS, torch.bool, torch.bfloat16, torch.int64, torch.complex128),
        strided=("values", "source", "fill"),
        writes="values",
    ),
    "assign_": Op(
        samples=assign_,
        reference=references.assign_,
        errors=STATUS
        | {
            "new_values shorter": Wrong(put("new_values", lambda t: t[1:]), ("new_values must have", "shape", "got")),
            "new_values of int64": Wrong(put("new_values", torch.Tensor.long), ("new_values must have dtype", "int64")),
            "new_values elsewhere": elsewhere("new_values"),
        },
        dtypes=(*FLOATS, torch.int32, torch.bfloat16),
        strided=("values", "new_values"),
        writes="values",
    ),
    "raise_fault": Op(
        samples=raise_fault,
        reference=references.raise_fault,
        errors={name: dataclasses.replace(wrong, values=True) for name, wrong in STATUS.items()}
        | {
            "status of no fault": Wrong(
                lambda s: s | {"status": torch.tensor([99 << 32, 0, 0, 0])}, ("status must begin with",), values=True
            )
        },
    ),
}
