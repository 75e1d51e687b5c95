"""A layer to time, and those that the table holds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["SHAPES", "Shape", "check_shape", "parsed"]


def parsed(kind: Any, text: str, form: str, example: str) -> Any:
    """Of a kind of shape, from whole numbers and last a density, with commas between them."""
    *sizes, density = text.split(",")
    try:
        if len(sizes) != form.count(","):
            raise ValueError
        return kind(*map(int, sizes), float(density))
    except ValueError as error:
        if str(error).startswith("shape:"):
            raise
        raise ValueError(f'shape must be "{form}" as in "{example}", got {text!r}') from None


def check_shape(shape: Any) -> None:
    """Refuse sizes below 1 and a density out of (0, 1], by the field's name.

    Args:
        shape: a dataclass whose fields are sizes and last a density.
    """
    *sizes, density = (field.name for field in fields(shape))
    for name in sizes:
        if getattr(shape, name) < 1:
            raise ValueError(f"shape: {name} must be at least 1, got {getattr(shape, name)}")
    if not 0 < getattr(shape, density) <= 1:
        raise ValueError(f"shape: {density} must be in (0, 1], got {getattr(shape, density)}")


@dataclass(frozen=True)
class Shape:
    """A layer and its batch.

    Raises:
        ValueError: names the field, what was expected and what came.
    """

    inputs: int
    outputs: int
    batch: int
    density: float

    def __post_init__(self) -> None:
        check_shape(self)

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From "IN,OUT,BATCH,DENSITY"."""
        return parsed(cls, text, "IN,OUT,BATCH,DENSITY", "784,1000,128,0.04")

    def __str__(self) -> str:
        return f"{self.inputs} -> {self.outputs}, batch {self.batch}, {self.density:.2%}"

    @property
    def nnz(self) -> int:
        return round(self.density * self.inputs * self.outputs)


SHAPES = tuple(
    Shape(*values)
    for values in (
        (784, 1000, 128, 0.04),
        (1000, 1000, 128, 0.02),
        (784, 100, 32, 0.20),
        (784, 100, 10, 0.20),
        (2048, 2048, 256, 0.05),
        (2048, 2048, 256, 0.10),
        (4096, 4096, 128, 0.01),
        (4000, 1000, 32, 0.05),
        (768, 3072, 1024, 0.10),
        (1000, 1000, 1, 0.05),
        (32768, 32768, 64, 0.001),
    )
)
