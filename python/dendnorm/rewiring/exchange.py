"""How the entries of a tensor that is spread over ranks come to their new places."""

from __future__ import annotations

import torch

from ..nn.spread import Spread

__all__ = ["exchanged"]


def exchanged(spread: Spread, local: torch.Tensor, source: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """This rank's entries of a tensor after every entry has gone to its new place: a collective.

    Args:
        spread: how the tensor lies on the ranks, more than one.
        local: this rank's entries, on any device.
        source: int32 (nnz,), the same on every rank: where each entry was, ascending, or -1 where it is new.
        fill: of new entries, () or (k,) in order.

    Returns:
        As ``local``.
    """
    start, stop = spread.start, spread.stop
    stays = source[start:stop] >= 0
    if fill.dim():
        first = int(torch.count_nonzero(source[:start] < 0))
        fill = fill[first : first + len(stays) - int(torch.count_nonzero(stays))]
    here = local.to(source.device)
    leaves = (source >= start).logical_and_(source < stop).nonzero().flatten()
    # Both ascend, so what is of one rank lies together.
    borders = torch.arange(1, spread.ranks, device=source.device) * spread.chunk
    takes, gives = (_lengths(places, borders.to(places.dtype)) for places in (source[start:stop][stays], leaves))
    sent = here[source[leaves].sub_(start)]
    del leaves
    taken = torch.empty(sum(takes) * local.element_size(), dtype=torch.uint8, device=spread.device)
    torch.distributed.all_to_all_single(
        taken,
        sent.view(torch.uint8).to(spread.device),  # bytes: whatever the dtype, the ranks can speak of it
        [count * local.element_size() for count in takes],
        [count * local.element_size() for count in gives],
        group=spread.group,
    )
    result = torch.empty_like(here)
    result.masked_scatter_(stays, taken.view(local.dtype).to(result.device))
    fill = fill.to(result.device, result.dtype)
    stays.logical_not_()
    return (result.masked_scatter_(stays, fill) if fill.dim() else result.masked_fill_(stays, fill)).to(local.device)


def _lengths(places: torch.Tensor, borders: torch.Tensor) -> list[int]:
    """How many of ascending places lie before the first border, between it and the next, and so on."""
    found = torch.searchsorted(places, borders).tolist()
    return [after - before for before, after in zip([0, *found], [*found, len(places)], strict=True)]
