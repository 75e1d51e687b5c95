"""The buffers that a layer saves of its pattern, and the mark that tells patterns apart."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["MARK", "SAVED", "is_plain", "same_marks"]

SAVED = ("ccol_indices", "row_indices")
MARK = "pattern_mark"
_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is memory of its own: not traced, batched or distributed."""
    return (
        type(tensor) in _PLAIN
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
    )


def same_marks(mine: torch.Tensor, known: torch.Tensor | None) -> bool:
    """Whether two marks are of one pattern, as far as averaging and 16 bits leave that to be seen."""
    if known is None:
        return False
    # An average that is hardly begun differs by little, and the rounding of one with equals by less.
    room = 1e-6 if mine.dtype == torch.float64 else 1e-2
    return bool(((mine.detach().double().cpu() - known.double().cpu()).abs() < room).all())
