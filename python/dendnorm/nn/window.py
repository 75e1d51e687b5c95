"""The window of a convolution: its sizes as ``nn.Conv2d`` takes them, checked, and as the op takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .._arguments import features, whole

__all__ = ["PADDING_MODES", "Sizes", "Window", "check_channels"]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
Sizes = int | Sequence[int]


def _sizes(name: str, value: object, dims: int, lowest: int) -> tuple[int, ...]:
    """One number for each dimension, or one for all."""
    if isinstance(value, (str, bytes)) or (isinstance(value, Sequence) and len(value) != dims):
        raise ValueError(f"{name} must be an int or {dims} of them, got {value!r}")
    given = value if isinstance(value, Sequence) else [value] * dims
    return tuple(whole(name, size, lowest) for size in given)


def check_channels(in_channels: object, out_channels: object, groups: object) -> tuple[int, int, int]:
    """The three as ints, of which the last divides the others."""
    inputs, outputs = features("in_channels", in_channels), features("out_channels", out_channels)
    count = whole("groups", groups, 1)
    if inputs % count or outputs % count:
        raise ValueError(f"groups must divide in_channels = {inputs} and out_channels = {outputs}, got {count}")
    return inputs, outputs, count


class Window(NamedTuple):
    """What a filter sees: attributes of ``nn.Conv1d`` or ``nn.Conv2d``, of 1 or 2 dimensions.

    Attributes:
        kernel_size, stride, dilation: a number for each dimension.
        padding: the same, or "same" or "valid".
        padding_mode: one of ``PADDING_MODES``.
        margins: what is added to an image, (before, after) for each dimension.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    padding_mode: str
    margins: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, dims: int, kernel_size: Sizes, stride: Sizes, padding: Sizes | str, dilation: Sizes, padding_mode: str
    ) -> Window:
        """From what a user gives.

        Raises:
            TypeError, ValueError: an argument that ``nn.Conv2d`` would not take.
        """
        kernel = _sizes("kernel_size", kernel_size, dims, 1)
        steps, apart = _sizes("stride", stride, dims, 1), _sizes("dilation", dilation, dims, 1)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {list(PADDING_MODES)}, got {padding_mode!r}")
        margins: tuple[tuple[int, int], ...]
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f'padding must be "same", "valid", an int or {dims} of them, got {padding!r}')
            if padding == "same" and any(step != 1 for step in steps):
                raise ValueError(f'stride must be 1 where padding is "same", got {steps}')
            total = [step * (size - 1) if padding == "same" else 0 for step, size in zip(apart, kernel, strict=True)]
            margins = tuple((each // 2, each - each // 2) for each in total)
            return cls(kernel, steps, padding, apart, padding_mode, margins)
        around = _sizes("padding", padding, dims, 0)
        return cls(kernel, steps, around, apart, padding_mode, tuple((each, each) for each in around))

    @property
    def pads(self) -> list[int]:
        """The margins as ``F.pad`` takes them, the last dimension first."""
        return [side for pair in reversed(self.margins) for side in pair]

    @property
    def fills(self) -> bool:
        """Whether the margins hold something else than zeros, which the op does not add by itself."""
        return self.padding_mode != "zeros" and any(self.pads)

    def of_op(self, groups: int, padded: bool) -> tuple[list[int], list[int], list[int], list[int], int]:
        """The op's last arguments; one dimension is an image of one row. ``padded``: the image has its margins."""
        one, none = (1,) * (2 - len(self.kernel_size)), (0,) * (4 - 2 * len(self.kernel_size))
        margins = [0] * 4 if padded else [*none, *(side for pair in self.margins for side in pair)]
        return [*one, *self.kernel_size], [*one, *self.stride], margins, [*one, *self.dilation], groups
