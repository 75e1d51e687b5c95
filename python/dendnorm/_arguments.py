"""What numbers a caller may give: one place for the checks and for how they are worded. NumPy's numbers are numbers."""

from __future__ import annotations

import math
import numbers

import torch

from . import _C

__all__ = ["INT32_MAX", "SEED_END", "connections", "features", "real", "seed_of", "value_dtype", "whole"]

INT32_MAX = 2**31 - 1
SEED_END = 2**63


def whole(name: str, value: object, lowest: int, highest: int = SEED_END - 1, bounds: str = "[{}, 2^63)") -> int:
    """An int in [lowest, highest], from any integer type but bool.

    Raises:
        TypeError, ValueError: another type, or out of range; `bounds` says the range, with a place for the lowest.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not lowest <= int(value) <= highest:
        raise ValueError(f"{name} must be in {bounds.format(lowest)}, got {value}")
    return int(value)


def real(name: str, value: object) -> float:
    """A finite float, from any real type but bool."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def features(name: str, value: object) -> int:
    """A number of neurons."""
    return whole(name, value, 1, INT32_MAX - 1, "[{}, 2^31 - 1)")


def seed_of(seed: object) -> int:
    """A seed, from torch's default generator where it is None."""
    if seed is None:
        return int(torch.randint(SEED_END - 1, (), dtype=torch.int64, device="cpu"))
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed must be an int or None, got {seed!r}")
    return whole("seed", seed, 0)


def connections(density: object, nnz: object, positions: int) -> int:
    """The number of connections that `density` or `nnz` asks for, among `positions`.

    Raises:
        TypeError, ValueError: both or neither is given, or one out of range; density must be in (0, 1].
    """
    if density is not None and (isinstance(density, bool) or not isinstance(density, numbers.Real)):
        raise TypeError(f"density must be a number, got {density!r}")
    if nnz is not None and (isinstance(nnz, bool) or not isinstance(nnz, numbers.Integral)):
        raise TypeError(f"nnz must be an int, got {nnz!r}")
    share = None if density is None else float(density)
    count = None if nnz is None else min(max(int(nnz), -SEED_END), SEED_END - 1)  # of 64 bits
    return _C.connections(share, count, positions)


def value_dtype(dtype: object) -> torch.dtype:
    """Of a layer's values; None: float64 where that is torch's default, else float32."""
    if dtype is None:
        default = torch.get_default_dtype()
        return default if default == torch.float64 else torch.float32
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"dtype must be torch.float32 or torch.float64, got {dtype}; a float32 layer takes bfloat16 and float16"
            " inputs as they are"
        )
    return dtype
