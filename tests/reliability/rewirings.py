"""Rewirings of random layers: what must hold of every one, and the optimizer's state by a dictionary of (row, column).

What goes and what comes is chosen again here, by scores that are computed another way where they are not the layer's
own weights and gradients; where new connections are drawn, their places are counted for a chi-square test over all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from test_set import assert_pattern_is_sound, chi_square_z, identity

import dendnorm
from dendnorm.rewiring import moves

from .tally import Tally

LAYERS, STEPS, BINS = 4, 5, 16  # in each unit, for each layer, of the empty places in their order
NORMS = ("none", "l0", "l0-variable", "lp:2", "lp-variable:3.7", "weight_norm", "joint")
DROPS = ("magnitude", "magnitude", "sign", "gradient", "sensitivity", "cosine")
GROWS = ("random", "random", "gradient", "cosine")
OPTIMIZERS: dict[str, Callable] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.25),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Adadelta": torch.optim.Adadelta,
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
}
FRESH = {("Adagrad", "sum"): 0.25, ("Rprop", "step_size"): 0.01}  # what a fresh parameter has there; else 0

Edge = tuple[int, int]


def edges_of(rows_cols: Any) -> list[Edge]:
    row, col = rows_cols
    return list(zip(row.tolist(), col.tolist(), strict=True))


def layer_of(rng: np.random.Generator) -> tuple[Any, Callable[[int], torch.Tensor]]:
    """A layer and what makes a batch for it."""
    norm, seed = NORMS[rng.integers(len(NORMS))], int(rng.integers(2**31))
    dtype = (torch.float32, torch.float64)[rng.integers(2)]

    def count(size: int) -> int:
        return int(rng.choice([1, size, max(1, size - 1), rng.integers(1, size + 1), rng.integers(1, size + 1)]))

    def batch(shape: tuple[int, ...]) -> Callable[[int], torch.Tensor]:
        return lambda draw: torch.randn(shape, generator=torch.Generator().manual_seed(draw), dtype=torch.float64).to(
            dtype
        )

    if rng.random() < 0.6:
        rows, cols = (int(size) for size in rng.integers(1, 30, 2))
        layer: Any = dendnorm.SparseLinear(cols, rows, nnz=count(rows * cols), norm=norm, seed=seed, dtype=dtype)
        return layer, batch((int(rng.integers(1, 9)), cols))
    groups = int(rng.choice([1, 2]))
    inputs, outputs = (groups * int(size) for size in rng.integers(1, 4, 2))
    kernel = tuple(int(size) for size in rng.integers(1, 4, 2))
    layer = dendnorm.SparseConv2d(
        inputs, outputs, kernel, stride=int(rng.integers(1, 3)), padding=int(rng.integers(0, 2)),
        dilation=int(rng.integers(1, 3)), groups=groups, nnz=count(inputs // groups * math.prod(kernel) * outputs),
        norm=norm, seed=seed, dtype=dtype,
    )  # fmt: skip
    return layer, batch((int(rng.integers(1, 4)), inputs, 7, 8))


def pairs_of(layer: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sum x_j y_i over samples and places as (M, N), and the squares of what each tap and each filter has seen."""
    x, y = x.detach().double(), y.detach().double()
    if isinstance(layer, dendnorm.SparseLinear):
        taps, values, groups = x.T[None], y.T, 1
    else:
        options = {"dilation": layer.dilation, "padding": layer.padding, "stride": layer.stride}
        unfolded = torch.nn.functional.unfold(x, layer.kernel_size, **options)  # (B, C kh kw, L)
        groups = layer.groups
        taps = unfolded.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)
        values = y.flatten(2).permute(1, 0, 2).flatten(1)
    each = values.unflatten(0, (groups, -1))
    products = torch.einsum("gnb,gmb->gmn", taps, each).flatten(0, 1)
    squares = taps.square().sum(2).repeat_interleave(each.shape[1], 0)
    return products.numpy(), squares.numpy(), values.square().sum(1).numpy()


def cosine(layer: Any, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    products, taps, filters = pairs_of(layer, x, y)
    scale = np.sqrt(taps * filters[:, None])
    return np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)


def scores_of(layer: Any, rule: str, weight: torch.Tensor, gradient: torch.Tensor, alike: np.ndarray | None,
              edges: list[Edge]) -> torch.Tensor:  # fmt: skip
    """What a rule of excision looks at; of "sign" the weights themselves."""
    if rule == "cosine":
        assert alike is not None
        return torch.tensor([alike[edge] for edge in edges])
    if rule in ("magnitude", "sign"):
        return weight.abs() if rule == "magnitude" else weight
    return gradient.abs() if rule == "gradient" else (layer.weight.detach() * gradient).abs()


def weakest(score: list[float], k: int) -> set[int]:
    """Positions of the k smallest, of equals the earlier."""
    return set(np.argsort(np.array(score), kind="stable")[:k].tolist())


def check_dropped(layer: Any, rule: str, zeta: float, k: int, before: list[Edge], scores: list[float],
                  removed: list[Edge], expect: Callable) -> None:  # fmt: skip
    place = {edge: index for index, edge in enumerate(before)}
    gone = {place[edge] for edge in removed}
    if rule == "sign":
        up = [index for index, score in enumerate(scores) if score >= 0]
        down = [index for index, score in enumerate(scores) if score < 0]
        ups, downs = len(gone & set(up)), len(gone & set(down))
        wanted = {up[i] for i in weakest([scores[i] for i in up], ups)}
        wanted |= {down[i] for i in weakest([-scores[i] for i in down], downs)}
        expect(gone == wanted, "the weakest of each sign were not those that went")
        expect(abs(ups - zeta * len(up)) <= 0.5 + 1e-9 and abs(downs - zeta * len(down)) <= 1 + 1e-9, "signs' shares")
    elif rule == "cosine":  # another sum: nearly equal ones may change places
        kept = [score for index, score in enumerate(scores) if index not in gone]
        expect(max((scores[i] for i in gone), default=-9) <= min(kept, default=9) + close(layer), "not the least alike")
    else:
        expect(gone == weakest(scores, k), f"not exactly the k = {k} weakest went")


def close(layer: Any) -> float:
    return 1e-10 if layer.weight.dtype == torch.float64 else 1e-4


def check_grown(layer: Any, rule: str, score: np.ndarray, left: set[Edge], grown: list[Edge], tally: Tally,
                expect: Callable) -> None:  # fmt: skip
    rows, cols = layer.out_features, layer.in_features
    empty = [(row, col) for col in range(cols) for row in range(rows) if (row, col) not in left]
    expect(set(grown) <= set(empty), "grew where there was a connection")
    if rule == "random":
        count_places(empty, grown, tally)
        return
    came = set(grown)
    best = max((score[edge] for edge in empty if edge not in came), default=-np.inf)
    worst = min((score[edge] for edge in grown), default=np.inf)
    scale = max(1.0, float(np.abs(score).max(initial=0)))
    expect(worst >= best - close(layer) * scale, f"{rule}: grew at {worst}, and {best} was empty")


def count_places(empty: list[Edge], grown: list[Edge], tally: Tally) -> None:
    """Where in the order of the empty places they came, in bins; with the mean and covariance of a uniform draw."""
    size, k = len(empty), len(grown)
    if size < BINS or k == 0 or k == size:
        return
    bin_of = {edge: index * BINS // size for index, edge in enumerate(empty)}
    share = np.bincount([index * BINS // size for index in range(size)], minlength=BINS) / size
    counts = np.bincount([bin_of[edge] for edge in grown], minlength=BINS)
    tally.add("grown", counts)
    tally.add("expected", k * share)
    tally.add("covariance", k * (size - k) / (size - 1) * (np.diag(share) - np.outer(share, share)))
    tally.count("grown at random", k)


def state_of(layer: Any, optimizer: Any, edges: list[Edge]) -> dict[str, dict[Edge, float]]:
    """Everything that belongs to single connections, by them."""
    tensors = {"value": layer.weight, "gradient": layer.weight.grad, **optimizer.state.get(layer.weight, {})}
    return {
        name: dict(zip(edges, tensor.detach().tolist(), strict=True))
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor) and tensor.shape == layer.weight.shape and name != "step"
    }


def rest_of(layer: Any, optimizer: Any) -> list:
    """What does not belong to single connections."""
    state = optimizer.state.get(layer.weight, {})
    others = [p.detach().clone() for p in layer.parameters() if p is not layer.weight]
    return others + [
        value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
        if name == "step" or not isinstance(value, torch.Tensor) or value.shape != layer.weight.shape
    ]


def rewired(rng: np.random.Generator, label: str, tally: Tally) -> None:
    layer, batch = layer_of(rng)
    name = list(OPTIMIZERS)[rng.integers(len(OPTIMIZERS))]
    optimizer = OPTIMIZERS[name](layer.parameters())
    drop, grow = DROPS[rng.integers(len(DROPS))], GROWS[rng.integers(len(GROWS))]
    zeta, seed = float(rng.choice([0.05, 0.15, 0.3, 0.5, 0.9])), int(rng.integers(2**31))
    rewirer = dendnorm.SET(layer, optimizer, zeta=zeta, seed=seed, drop=drop, grow=grow)
    where = f"{label}: {layer}, {name}, {drop}, {grow}, zeta {zeta}"
    for step in range(STEPS):

        def expect(good: object, text: str, step: int = step) -> None:
            tally.expect(good, f"{where}, rewiring {step}: {text}")

        rewirer.observe()
        x = batch(int(rng.integers(2**31)))
        optimizer.zero_grad()
        y = layer(x)
        y.retain_grad()
        (y.sin() + 0.1 * y.square()).sum().backward()
        seen = (x, y.detach().clone(), y.grad.clone())
        optimizer.step()
        if rng.random() < 0.3:
            with torch.no_grad():  # ties
                layer.weight[torch.from_numpy(rng.random(layer.nnz) < 0.3)] = float(rng.choice([0.0, 0.25]))
        before, same = edges_of(layer.pattern.edges()), identity(layer)
        weight, gradient = layer.effective_weight().detach(), layer.weight.grad
        alike = cosine(layer, seen[0], seen[1]) if "cosine" in (drop, grow) else None
        scores = scores_of(layer, drop, weight, gradient, alike, before).tolist()
        state, rest = state_of(layer, optimizer, before), rest_of(layer, optimizer)
        (report,) = list(rewirer.step())
        after, removed, grown = edges_of(layer.pattern.edges()), edges_of(report.removed), edges_of(report.grown)
        k = round(zeta * len(before))
        tally.count("rewirings")
        tally.count("connections moved", len(before))
        expect(report.k == k == len(removed) == len(grown) == len(set(grown)), "another k")
        expect(identity(layer) == same, "another object, storage or number of connections")
        try:
            assert_pattern_is_sound(layer)
        except AssertionError as error:
            expect(False, f"a pattern that is not sound: {error}")
        check_dropped(layer, drop, zeta, k, before, scores, removed, expect)
        left = set(before) - set(removed)
        score = (
            alike if grow == "cosine" else np.abs(pairs_of(layer, seen[0], seen[2])[0]) if grow != "random" else None
        )
        check_grown(layer, grow, score, left, grown, tally, expect)
        expect(set(after) == left | set(grown), "the pattern is not what stayed and what came")
        now = state_of(layer, optimizer, after)
        expect(now.keys() == state.keys(), "another state")
        for key, values in now.items():
            kept = all(values[edge] == state[key][edge] for edge in left)
            expect(kept, f"{key} did not stay with its connection")
            fresh = FRESH.get((name, key), 0.0)
            if key == "value" or (name == "ASGD" and key == "ax"):
                fine = all(values[edge] == now["value"][edge] and math.isfinite(values[edge]) for edge in grown)
            else:
                fine = all(abs(values[edge] - fresh) < 1e-8 for edge in grown)
            expect(fine, f"{key} of a new connection is not {fresh}")
            tally.count("entries of state", len(values))
        pairs = zip(rest, rest_of(layer, optimizer), strict=True)
        expect(all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs), "what is no entry")


def unit(number: int, tally: Tally) -> None:
    rng = np.random.default_rng(number)
    for index in range(LAYERS):
        rewired(rng, f"{number}.{index}", tally)


def summary(tally: Tally) -> None:
    """Whether the places in which connections grew are uniform: as a standard normal deviate."""
    if "grown" not in tally.sums:
        return
    off = tally.sums["grown"] - tally.sums["expected"]
    statistic = float(off @ np.linalg.pinv(tally.sums["covariance"], rcond=1e-9) @ off)
    tally.most("deviate", abs(chi_square_z(statistic, BINS - 1)))
    tally.expect(tally.largest["deviate"] < 4.5, f"growth is not uniform: chi-square {statistic} of {BINS - 1}")


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """New connections that begin with what the optimizer knew of others."""
    kept = moves.Dense.fill
    moves.Dense.fill = lambda self, values: kept(self, values) + 0.5  # type: ignore[method-assign]
    try:
        yield
    finally:
        moves.Dense.fill = kept  # type: ignore[method-assign]
