"""Makers of patterns: what they connect, and that a layer with one is a layer like any other."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import dendnorm
from dendnorm import SET, Pattern, SparseLinear, patterns
from dendnorm.nn import drawing

MAKERS = {
    "uniform": lambda seed: patterns.uniform(49, 40, 0.2, seed=seed),
    "blocks": lambda seed: patterns.blocks(49, 40, (4, 7), 0.3, seed=seed),
    "block_diagonal": lambda seed: patterns.block_diagonal(49, 42, 7),
    "banded": lambda seed: patterns.banded(49, 40, 3),
    "local": lambda seed: patterns.local((7, 7), 40, radius=2, synapses=6, seed=seed),
    "branches": lambda seed: patterns.branches((7, 7), 10, 4, 5, seed=seed),
    "local branches": lambda seed: patterns.branches((7, 7), 10, 4, 5, fields="local", radius=2, seed=seed),
    "global branches": lambda seed: patterns.branches((7, 7), 10, 4, 5, fields="global", radius=2, seed=seed),
    "scale_free": lambda seed: patterns.scale_free(49, 40, 0.1, seed=seed),
    "from_mask": lambda seed: patterns.from_mask(torch.eye(40, 49) > 0),
    "from_csr": lambda seed: patterns.from_csr(torch.arange(41), torch.arange(40) % 49, (40, 49)),
}
DRAWN = ("uniform", "blocks", "local", "branches", "local branches", "global branches", "scale_free")
every_maker = pytest.mark.parametrize("name", MAKERS)


def mask_of(pattern: Pattern) -> torch.Tensor:
    mask = torch.zeros(pattern.out_features, pattern.in_features, dtype=torch.bool)
    mask[pattern.edges()] = True
    return mask


def layer_of(pattern: Pattern, norm: str | None = "l0") -> SparseLinear:
    return SparseLinear(pattern=pattern, norm=norm)


@every_maker
def test_the_seed_alone_decides(name):
    first, again, other = MAKERS[name](3), MAKERS[name](3), MAKERS[name](4)
    assert isinstance(first, Pattern)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    if name in DRAWN:
        assert not torch.equal(mask_of(first), mask_of(other))
        torch.manual_seed(9)  # which has no say
        assert torch.equal(mask_of(MAKERS[name](3)), mask_of(first))


@pytest.mark.feature(
    "dendnorm.patterns: layers with blocks, bands, local fields, dendrites, power laws train and rewire"
)
@every_maker
@pytest.mark.parametrize("norm", ["l0", "joint", "none"])
def test_a_layer_of_any_pattern_trains_and_is_rewired(name, norm):
    pattern = MAKERS[name](0)
    model = nn.Sequential(layer_of(pattern, norm))
    layer = model[0]
    assert torch.equal(mask_of(layer.pattern), mask_of(pattern))
    x = torch.randn(5, pattern.in_features)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    optimizer = torch.optim.Adam(dendnorm.param_groups(model), lr=0.1)
    layer(x).square().sum().backward()
    optimizer.step()
    assert SET(model, optimizer, zeta=0.2, seed=0).step().step == 1
    assert layer.nnz == pattern.nnz


def test_uniform_is_a_fresh_layers_pattern():
    layer = SparseLinear(49, 40, 0.2, seed=5)
    assert torch.equal(mask_of(patterns.uniform(49, 40, 0.2, seed=5)), mask_of(layer.pattern))


def test_blocks_are_whole():
    mask = mask_of(patterns.blocks(12, 20, (5, 3), 0.5, seed=0))
    shares = mask.view(4, 5, 4, 3).float().mean((1, 3))
    assert set(shares.unique().tolist()) == {0.0, 1.0} and int(shares.sum()) == 8
    assert patterns.blocks(12, 20, 4, 0.5, seed=0).nnz == round(0.5 * 15) * 16
    mask = mask_of(patterns.block_diagonal(6, 4, 2))
    assert torch.equal(mask, torch.block_diag(torch.ones(2, 3), torch.ones(2, 3)).bool())


def test_bands_and_fields_are_near():
    row, col = patterns.banded(9, 9, 2).edges()
    assert int((row - col).abs().max()) == 2 and len(row) == 9 * 5 - 6
    pattern = patterns.local((28, 28), 100, radius=3)
    assert (pattern.in_features, pattern.out_features) == (784, 100)
    fields = mask_of(pattern).view(100, 28, 28)
    middle = fields[44]
    rows, cols = middle.any(1).nonzero().flatten(), middle.any(0).nonzero().flatten()
    assert (
        int(middle.sum()) == len(rows) * len(cols) and len(rows) in (6, 7) and int(rows[-1] - rows[0]) == len(rows) - 1
    )
    assert fields.any(0).all()  # every pixel is seen
    same = mask_of(patterns.local((5, 5), (5, 5), 1)).view(25, 5, 5)
    assert torch.equal(same[12].nonzero(), torch.cartesian_prod(torch.arange(1, 4), torch.arange(1, 4)))
    coloured = mask_of(patterns.local((5, 5), (5, 5), 1, channels=3)).view(25, 3, 5, 5)
    assert all(torch.equal(coloured[:, channel], same) for channel in range(3))
    assert patterns.local((2, 2), 1, radius=0).nnz >= 1


def test_branches_and_somata():
    first, second = patterns.branches((9, 9), 6, 4, 5, fields="local", radius=2, seed=1), patterns.somata(6, 4)
    assert (first.out_features, second.in_features, second.out_features) == (24, 24, 6)
    assert set(first.crow_indices.diff().tolist()) == {5} and set(second.crow_indices.diff().tolist()) == {4}
    fields = mask_of(first).view(24, 9, 9)
    for field in fields:
        rows, cols = field.nonzero().unbind(1)
        assert int(rows.max() - rows.min()) <= 4 and int(cols.max() - cols.min()) <= 4
    shared = mask_of(patterns.branches((9, 9), 6, 4, 5, fields="global", radius=2, seed=1)).view(6, 4, 9, 9).any(1)
    for field in shared:
        rows, cols = field.nonzero().unbind(1)
        assert int(rows.max() - rows.min()) <= 4 and int(cols.max() - cols.min()) <= 4
    model = nn.Sequential(layer_of(first), nn.LeakyReLU(0.1), layer_of(second))
    assert model(torch.randn(3, 81)).shape == (3, 6)


def test_scale_free_degrees_have_a_heavy_tail():
    pattern = patterns.scale_free(400, 300, nnz=3000, exponent=2.2, seed=0)
    assert pattern.nnz == 3000
    plain = patterns.uniform(400, 300, nnz=3000, seed=0)
    for degrees in (lambda p: p.crow_indices.diff(), lambda p: p.ccol_indices.diff()):
        assert int(degrees(pattern).max()) > 3 * int(degrees(plain).max())


def test_a_field_has_so_many_of_its_pixels_and_each_as_often():
    seen = torch.zeros(8, 6, 6)
    for seed in range(400):
        mask = mask_of(patterns.local((6, 6), 8, radius=2, synapses=7, seed=seed)).view(8, 6, 6)
        seen += mask
    whole = mask_of(patterns.local((6, 6), 8, radius=2)).view(8, 6, 6)
    assert torch.equal(seen > 0, whole)
    for counts, field in zip(seen, whole, strict=True):
        size, share = int(field.sum()), 7 / int(field.sum())
        assert size > 7 and int(counts.sum()) == 7 * 400
        assert float((counts[field] - 400 * share).abs().max()) < 5 * (400 * share * (1 - share)) ** 0.5
    few = patterns.local((6, 6), (6, 6), radius=1, synapses=9, seed=0).crow_indices.diff()
    assert set(few.tolist()) == {4, 6, 9}  # at the edges fields are cut


@pytest.mark.parametrize(
    ("exponent", "rows", "cols", "trials"),
    # The second is large enough that positions are not looked at one by one.
    [(1.5, 9, 12, 3000), (2.2, 9, 12, 3000), (4.0, 9, 12, 3000), (1.5, 16, 40, 700), (2.2, 16, 40, 700)],
)
def test_scale_free_is_drawn_in_proportion(exponent, rows, cols, trials, monkeypatch):
    """Against the definition: one position after the other, in proportion to its weight, of those that are left."""
    count, power = 10, 1 / (exponent - 1)
    came = []
    monkeypatch.setattr(drawing, "_come", lambda *given, come=drawing._come: came.append(1) or come(*given))
    weights = torch.outer(torch.arange(1, rows + 1) ** -power, torch.arange(1, cols + 1) ** -power).double().flatten()
    generator = torch.Generator().manual_seed(0)
    wanted = torch.zeros(rows * cols).double()
    for _ in range(trials):
        wanted[torch.multinomial(weights, count, generator=generator)] += 1
    got = torch.zeros_like(wanted)
    for seed in range(trials):
        row, col = drawing.power_law(rows, cols, count, power, torch.Generator().manual_seed(seed))
        order = torch.Generator().manual_seed(seed)  # its ranks are random, and drawn first
        ranks = [torch.randperm(size, generator=order).argsort() for size in (rows, cols)]
        got[ranks[0][row] * cols + ranks[1][col]] += 1
    assert len(came) == (trials if rows == 16 else 0)
    share = (got + wanted) / (2 * trials)
    error = (2 * trials * share * (1 - share)).sqrt()
    assert float(((got - wanted).abs() / error.clamp(min=1)).max()) < 4.5


def test_scale_free_may_be_dense():
    for density in (0.3, 0.9, 1.0):
        assert patterns.scale_free(30, 20, density, seed=0).nnz == round(density * 600)


LARGE = """
import resource, torch
from dendnorm import patterns
size = 100_000  # positions: 10 GB of bool
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
made = [
    patterns.uniform(size, size, nnz=300_000, seed=0),
    patterns.banded(size, size, 1),
    patterns.local((250, 400), size, 1),
    patterns.local((250, 400), size, 200, synapses=3, seed=0),
    patterns.branches((250, 400), size // 4, 4, 3, seed=0),
    patterns.branches((250, 400), size // 4, 4, 3, fields="local", radius=9, seed=0),
    patterns.scale_free(size, size, nnz=300_000, seed=0),
    patterns.blocks(size, size, 10, 3e-5, seed=0),
    patterns.block_diagonal(size, size, size // 2),
]
assert all((each.in_features, each.out_features) == (size, size) for each in made)
print(*(each.nnz for each in made))
"""


@pytest.mark.slow
def test_memory_is_that_of_the_connections():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    uniform, banded, near, *drawn, scale_free, blocks, diagonal = map(int, done.stdout.split())
    assert drawn == [300_000] * 3 and uniform == scale_free == blocks == 300_000
    assert banded == 3 * 100_000 - 2 and diagonal == 200_000 and 600_000 < near < 900_000


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: patterns.uniform(4, 4), "exactly one of density and nnz"),
        (lambda: patterns.uniform(0, 4, 0.5), "in_features must be in"),
        (lambda: patterns.blocks(9, 9, 2, 0.5), r"size must divide .* got \(2, 2\)"),
        (lambda: patterns.block_diagonal(9, 9, 2), "count must divide"),
        (lambda: patterns.banded(9, 9, -1), "radius must be at least 0"),
        (lambda: patterns.local(28, 100, 3), "shape must be a tuple"),
        (lambda: patterns.local((28, 28), (4,), 3), "out must have 2 sizes"),
        (lambda: patterns.local((28, 28), 4, "3"), "radius must be a number"),
        (lambda: patterns.branches(9, 2, 2, 2, fields="near"), "fields must be"),
        (lambda: patterns.branches(9, 2, 2, 2, fields="local"), "radius must be given"),
        (lambda: patterns.branches(9, 2, 2, 0), "synapses must be in"),
        (lambda: patterns.scale_free(9, 9, 0.1, exponent=1), "exponent must be above 1"),
        (lambda: patterns.from_mask(torch.eye(3)), "mask must be a bool tensor"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
