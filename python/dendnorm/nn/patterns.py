"""Makers of patterns: which of the (M, N) connections of a layer exist.

Each returns a ``dendnorm.Pattern`` for M output and N input neurons. Whatever is drawn is drawn on the CPU from the
seed alone, so a pattern is the same on every device. Memory is of the number of connections, not of positions. Images
are taken as ``nn.Flatten`` lays them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .._arguments import connections, features, real, seed_of, whole
from ..ops import library as _ops
from .drawing import boxes, power_law
from .pattern import Pattern
from .window import check_channels

__all__ = ["banded", "block_diagonal", "blocks", "branches", "convolution", "from_csr", "from_mask", "local",
           "scale_free", "somata", "uniform"]  # fmt: skip

Shape = int | Sequence[int]


def uniform(
    in_features: int,
    out_features: int,
    density: float | None = None,
    *,
    nnz: int | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> Pattern:
    """Connections drawn uniformly without replacement: those of a fresh ``SparseLinear`` with this seed.

    Args:
        in_features, out_features: N and M.
        density: share of the positions, in (0, 1]; or ``nnz``, their number.
        seed: in [0, 2^63); None draws one from torch's default generator.
        device: where the pattern is to be; None: torch's default device.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """
    cols, rows = features("in_features", in_features), features("out_features", out_features)
    count = connections(density, nnz, rows * cols)
    none = torch.zeros(cols + 1, dtype=torch.int32, device="cpu")
    keys = _ops.empty_positions(none, none[:0], rows, count, seed_of(seed), 0, 0)
    return _of_edges(keys % rows, keys // rows, rows, cols, device)


def blocks(
    in_features: int,
    out_features: int,
    size: Shape,
    density: float,
    *,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> Pattern:
    """Whole blocks of connections, drawn uniformly without replacement: ``round(density * number of blocks)`` of them.

    Args:
        in_features, out_features: N and M.
        size: of a block, (outputs, inputs) or one number for both; must divide M and N.
        density: share of the blocks, in (0, 1].
        seed, device: as for ``uniform``.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """
    cols, rows = features("in_features", in_features), features("out_features", out_features)
    high, wide = _sizes("size", size, 2) if not isinstance(size, int) else (whole("size", size, 1),) * 2
    if rows % high or cols % wide:
        raise ValueError(f"size must divide (out_features, in_features) = ({rows}, {cols}), got ({high}, {wide})")
    coarse = uniform(cols // wide, rows // high, density, seed=seed, device="cpu")
    row, col = coarse.edges()
    down, along = torch.arange(high, device="cpu"), torch.arange(wide, device="cpu")
    row = (row[:, None, None] * high + down[:, None]).expand(-1, high, wide)
    col = (col[:, None, None] * wide + along).expand(-1, high, wide)
    return _of_edges(row.flatten(), col.flatten(), rows, cols, device)


def convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: Shape,
    density: float,
    *,
    unit: str = "tap",
    groups: int = 1,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> Pattern:
    """For a ``SparseConv2d`` or ``SparseConv1d``: single taps, whole kernels or whole channels, drawn uniformly.

    Filters are the outputs of the pattern; tap (y, x) of channel c within the group is input (c kh + y) kw + x.

    Args:
        in_channels, out_channels, groups: of the layer.
        kernel_size: of the layer, (height, width), (width,) for one dimension, or one number for a square.
        density: share of the units that are there, in (0, 1]: ``round(density * number of units)`` of them.
        unit: "tap": any connection; "kernel": all taps of a filter in a channel, or none; "channel": a channel for all
            filters of its group, or for none.
        seed, device: as for ``uniform``.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """
    inputs, outputs, count = check_channels(in_channels, out_channels, groups)
    area = math.prod(_sizes("kernel_size", (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size))
    sizes = {"tap": (1, 1), "kernel": (1, area), "channel": (outputs // count, area)}
    if unit not in sizes:
        raise ValueError(f'unit must be "tap", "kernel" or "channel", got {unit!r}')
    return blocks(inputs // count * area, outputs, sizes[unit], density, seed=seed, device=device)


def block_diagonal(
    in_features: int, out_features: int, count: int, *, device: torch.device | str | None = None
) -> Pattern:
    """``count`` equal blocks on the diagonal: groups of inputs, each for a group of outputs of its own.

    Raises:
        TypeError, ValueError: count does not divide in_features and out_features, or is no number of at least 1.
    """
    cols, rows = features("in_features", in_features), features("out_features", out_features)
    count = whole("count", count, 1)
    if rows % count or cols % count:
        raise ValueError(f"count must divide in_features = {cols} and out_features = {rows}, got {count}")
    high, wide = rows // count, cols // count
    row = torch.arange(rows, device="cpu").repeat_interleave(wide)
    col = (row // high) * wide + torch.arange(wide, device="cpu").repeat(rows)
    return _of_edges(row, col, rows, cols, device)


def banded(in_features: int, out_features: int, radius: int, *, device: torch.device | str | None = None) -> Pattern:
    """Each output neuron sees the inputs at most ``radius`` from its own place on a line.

    Output i of M has its place at (i + 1/2) N / M - 1/2 among the N inputs; with M = N that is a band matrix.

    Raises:
        TypeError, ValueError: an argument that is not a number of at least 1, or 0 for radius.
    """
    cols = features("in_features", in_features)
    return local((cols,), (features("out_features", out_features),), radius, device=device)


def local(
    shape: Sequence[int],
    out: Shape,
    radius: float,
    *,
    synapses: int | None = None,
    channels: int = 1,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> Pattern:
    """Local receptive fields: each output neuron sees a square of the image around its place.

    Args:
        shape: of the image, (height, width), or any number of dimensions.
        out: the output neurons: a grid of as many dimensions, spread evenly over the image, or their number, which are
            then spread over the smallest grid of the image's proportions that holds them.
        radius: of a field, at least 0: 3 gives 7 x 7 pixels, cut at the edges of the image.
        synapses: so many of the pixels of each field, drawn from the seed, or all where it has fewer; None: all.
        channels: of the image: (channels, height, width), all of which a neuron sees.
        seed, device: as for ``uniform``.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """
    sizes = _sizes("shape", shape)
    grid = _grid(sizes, whole("out", out, 1)) if isinstance(out, int) else _sizes("out", out, len(sizes))
    count = out if isinstance(out, int) else math.prod(grid)
    places = torch.cartesian_prod(*(
        (torch.arange(cells, dtype=torch.float64, device="cpu") + 0.5) * size / cells - 0.5
        for cells, size in zip(grid, sizes, strict=True)
    )).view(-1, len(sizes))[:count]  # fmt: skip
    draw = None if synapses is None else _generator(seed_of(seed))
    return _fields(places, sizes, radius, synapses, whole("channels", channels, 1), draw, device)


def branches(
    inputs: Shape,
    somata: int,
    dendrites: int,
    synapses: int,
    *,
    fields: str = "random",
    radius: float | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> Pattern:
    """From inputs to dendritic branches: each of ``somata * dendrites`` branches samples ``synapses`` inputs.

    Source: S. Chavlis and P. Poirazi, "Dendrites endow artificial neural networks with accurate, robust and
    parameter-efficient learning", Nature Communications 16, 2025. ``somata(somata, dendrites)`` is the layer after it:

        first, then = patterns.branches((28, 28), 64, 8, 16), patterns.somata(64, 8)
        nn.Sequential(SparseLinear(pattern=first), nn.LeakyReLU(0.1), SparseLinear(pattern=then))

    Args:
        inputs: their number, or the shape of an image.
        somata: neurons; the branches of each lie next to one another.
        dendrites: of each soma.
        synapses: of each branch; of fewer inputs in reach, all.
        fields: "random": of all inputs; "local": each branch from a square around a random pixel of its own; "global":
            the branches of a soma from the square of one pixel.
        radius: of the squares.
        seed, device: as for ``uniform``.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """
    if fields not in ("random", "local", "global"):
        raise ValueError(f'fields must be "random", "local" or "global", got {fields!r}')
    if (radius is None) != (fields == "random"):
        raise ValueError(f'radius must be given for "local" and "global" fields alone, got {radius!r} for {fields!r}')
    sizes = (whole("inputs", inputs, 1),) if isinstance(inputs, int) else _sizes("inputs", inputs)
    cells, each = whole("somata", somata, 1), whole("dendrites", dendrites, 1)
    reach: float = max(sizes) if radius is None else radius
    draw = _generator(seed_of(seed))
    pixels = torch.randint(math.prod(sizes), (cells if fields == "global" else cells * each,), generator=draw,
                           device="cpu")  # fmt: skip
    places = torch.stack(torch.unravel_index(pixels, sizes), 1).double()
    if fields == "global":
        places = places.repeat_interleave(each, 0)
    return _fields(places, sizes, reach, synapses, 1, draw, device)


def somata(somata: int, dendrites: int, *, device: torch.device | str | None = None) -> Pattern:
    """From dendritic branches to somata: each soma has its own ``dendrites`` branches; see ``branches``."""
    cells, each = whole("somata", somata, 1), whole("dendrites", dendrites, 1)
    return block_diagonal(cells * each, cells, cells, device=device)


def scale_free(
    in_features: int,
    out_features: int,
    density: float | None = None,
    *,
    nnz: int | None = None,
    exponent: float = 2.5,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> Pattern:
    """A bipartite scale-free graph: the degrees of both sides fall off as P(k) ~ k^-exponent, as far as sizes allow.

    Each neuron has an expected share of (rank + 1)^(-1 / (exponent - 1)) at a random rank, and connections are drawn
    without replacement in proportion to the product of their ends' shares.

    Source: the static model, K.-I. Goh, B. Kahng and D. Kim, "Universal behavior of load distribution in scale-free
    networks", Physical Review Letters 87, 2001, for two kinds of nodes.

    Args:
        in_features, out_features, density, nnz, seed, device: as for ``uniform``.
        exponent: above 1.

    Raises:
        TypeError, ValueError: an argument that is not as above.
    """
    cols, rows = features("in_features", in_features), features("out_features", out_features)
    count, power = connections(density, nnz, rows * cols), real("exponent", exponent)
    if power <= 1:
        raise ValueError(f"exponent must be above 1, got {exponent}")
    row, col = power_law(rows, cols, count, 1 / (power - 1), _generator(seed_of(seed)))
    return _of_edges(row, col, rows, cols, device)


def from_mask(mask: torch.Tensor) -> Pattern:
    """From a bool tensor (M, N): a connection wherever it is True; see ``Pattern.from_mask``."""
    return Pattern.from_mask(mask)


def from_csr(crow_indices: torch.Tensor, col_indices: torch.Tensor, shape: tuple[int, int]) -> Pattern:
    """From the row view of a matrix of ``shape`` (M, N); see ``Pattern.from_csr``."""
    return Pattern.from_csr(crow_indices, col_indices, shape)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(seed)


def _of_edges(row: torch.Tensor, col: torch.Tensor, rows: int, cols: int, device: torch.device | str | None) -> Pattern:
    """From distinct edges in any order, on the CPU."""
    keys = (row.long() * cols + col.long()).sort().values
    crow = torch.zeros(rows + 1, dtype=torch.int64, device="cpu")
    crow[1:] = torch.bincount(keys // cols, minlength=rows).cumsum(0)
    pattern = Pattern.from_csr(crow, keys % cols, (rows, cols))
    return pattern.to(torch.get_default_device() if device is None else device)


def _sizes(name: str, values: object, length: int | None = None) -> tuple[int, ...]:
    if isinstance(values, (str, int)) or not isinstance(values, Sequence) or not len(values):
        raise TypeError(f"{name} must be a tuple of sizes, got {values!r}")
    if length is not None and len(values) != length:
        raise ValueError(f"{name} must have {length} sizes, got {tuple(values)}")
    return tuple(whole(name, value, 1) for value in values)


def _grid(sizes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The smallest grid of about the proportions of ``sizes`` with at least ``count`` cells."""
    scale = (count / math.prod(sizes)) ** (1 / len(sizes))
    grid = [max(1, round(size * scale)) for size in sizes[:-1]]
    return (*grid, math.ceil(count / math.prod(grid)))


def _fields(
    places: torch.Tensor,
    sizes: tuple[int, ...],
    radius: float,
    synapses: int | None,
    channels: int,
    draw: torch.Generator | None,
    device: torch.device | str | None,
) -> Pattern:
    """For each place (rows, dimensions) the pixels at most ``radius`` away in every dimension, or some of them."""
    reach = real("radius", radius)
    if reach < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    if synapses is not None:
        synapses = whole("synapses", synapses, 1)
    # Half a pixel at the least, so that every neuron sees the pixel that it lies in.
    row, col = boxes(places, sizes, max(reach, 0.5), channels, synapses, draw)
    return _of_edges(row, col, len(places), math.prod(sizes) * channels, device)
