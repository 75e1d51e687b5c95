"""Rewiring on a GPU: the edges and values of the CPU, and no wait for the device."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import dendnorm

ops = torch.ops.dendnorm


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        dendnorm.SparseLinear(300, 200, density=0.1, norm="l0", seed=0, device="cpu"),
        torch.nn.Sigmoid(),
        dendnorm.SparseLinear(200, 1, density=1.0, norm="weight_norm", seed=1, device="cpu"),
    )


def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    model = network()
    return model, copy.deepcopy(model).cuda()


@pytest.fixture
def no_waiting():
    mode = torch.cuda.get_sync_debug_mode()
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode(mode)


def test_rewirings_give_the_edges_and_values_of_the_cpu():
    models = pair()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    rules = [
        dendnorm.SET(model, optimizer, zeta=0.3, seed=5) for model, optimizer in zip(models, optimizers, strict=True)
    ]
    rng = torch.Generator().manual_seed(0)
    for _ in range(30):
        for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=rng)
            theirs.grad = mine.grad.cuda()
        for optimizer in optimizers:
            optimizer.step()
        # An update may be rounded differently, which must not decide a near tie.
        for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
            with torch.no_grad():
                theirs.copy_(mine)
        for rule in rules:
            rule.step()
        for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(theirs.detach().cpu(), mine.detach())
            one, other = (
                rule.optimizer.state[p]["momentum_buffer"] for rule, p in zip(rules, (mine, theirs), strict=True)
            )
            torch.testing.assert_close(other.cpu(), one)
        for mine, theirs in zip(rules[0].report, rules[1].report, strict=True):
            assert all(
                torch.equal(a, b.cpu())
                for a, b in zip(mine.removed + mine.grown, theirs.removed + theirs.grown, strict=True)
            )
        for name, buffer in models[0].named_buffers():
            assert torch.equal(buffer, models[1].get_buffer(name).cpu()), name


def test_a_step_waits_for_nothing(no_waiting):
    model = network().cuda()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 300, device="cuda")).sum().backward()
    optimizer.step()
    rule = dendnorm.SET(model, optimizer, zeta=0.3, seed=5)
    rule.step()  # what is loaded and allocated once
    torch.cuda.synchronize()
    no_waiting()
    for _ in range(3):
        rule.step()


def test_a_nan_stops_the_step_and_is_told_later():
    model = network().cuda()
    with torch.no_grad():
        model[2].weight[7] = math.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rule = dendnorm.SET(model, None, zeta=0.3, seed=5)
    report = rule.step()
    with pytest.raises(ValueError, match="layer '2': dendnorm::weakest: score must be a number everywhere, got nan"):
        list(report)
    assert rule.state_dict()["steps"] == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(123.0), before[name].nan_to_num(123.0)), name


def layer_pattern(rng: np.random.Generator, rows: int, cols: int, nnz: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys = np.unique(rng.integers(0, rows * cols, nnz))
    ccol = np.searchsorted(keys, np.arange(cols + 1, dtype=np.int64) * rows)
    return torch.from_numpy(ccol.astype(np.int32)), torch.from_numpy((keys % rows).astype(np.int32))


def one_rewiring(
    ccol: torch.Tensor, row: torch.Tensor, score: torch.Tensor, rows: int, k: int
) -> tuple[torch.Tensor, ...]:
    dropped = ops.weakest(score, k)
    left = ops.excise(ccol, row, dropped, k)
    keys = ops.empty_positions(*left[:2], rows, k, 1, 2, 3)
    replaced = ops.replace_connections(ccol, row, rows, dropped, keys)
    view = ops.transpose_pattern(replaced[0], replaced[1], rows)
    values = ops.counter_normal(k, 1, 2, 3, dtype=score.dtype, device=score.device)
    carried = score.clone()
    ops.carry_(carried, replaced[2], values)
    return dropped, *left, keys, *replaced, *view, values, carried


SHAPES = [
    (1, 1, 1),
    (500, 1, 300),
    (1, 500, 300),
    pytest.param(70000, 70000, 50000, marks=pytest.mark.slow),
    pytest.param(3000, 4000, 2_000_000, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("rows", "cols", "nnz"), SHAPES)
def test_each_op_gives_the_bits_of_the_cpu(rows, cols, nnz):
    rng = np.random.default_rng(0)
    ccol, row = layer_pattern(rng, rows, cols, nnz)
    nnz = len(row)
    for dtype in (torch.float32, torch.float64):
        score = torch.from_numpy(rng.standard_normal(nnz)).to(dtype).abs().round(decimals=2)
        for k in {0, nnz // 7, nnz}:
            want = one_rewiring(ccol, row, score, rows, k)
            got = one_rewiring(ccol.cuda(), row.cuda(), score.cuda(), rows, k)
            assert all(torch.equal(a, b.cpu()) for a, b in zip(want, got, strict=True))
