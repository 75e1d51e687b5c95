"""What only values can show to be wrong: raised at once, or noted in a status for later, with nothing half-changed."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import dendnorm
from dendnorm.rewiring import set as rewiring

ops = torch.ops.dendnorm
CLEAR = 2**63 - 1


def clear() -> torch.Tensor:
    return torch.tensor([CLEAR, 0, 0, 0])


def pattern_of(rng: np.random.Generator, rows: int, cols: int, nnz: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys = np.sort(rng.choice(rows * cols, nnz, replace=False))
    ccol = np.searchsorted(keys, np.arange(cols + 1) * rows)
    return torch.from_numpy(ccol.astype(np.int32)), torch.from_numpy((keys % rows).astype(np.int32))


CCOL = torch.tensor([0, 2, 3, 4], dtype=torch.int32)  # 4 x 3, with keys 0, 2, 5, 11
ROW = torch.tensor([0, 2, 1, 3], dtype=torch.int32)
DROPPED = torch.tensor([True, False, False, True])

FAULTS = {
    "a score that is nan": (
        lambda status: ops.weakest(torch.tensor([1.0, 0.5, math.nan, -math.nan]), 2, status=status),
        r"dendnorm::weakest: score must be a number everywhere, got nan at position 2",
    ),
    "too many dropped": (
        lambda status: ops.excise(CCOL, ROW, DROPPED, 1, status=status),
        r"dendnorm::excise: dropped must be true for k = 1 connections, got 2",
    ),
    "too few dropped": (
        lambda status: ops.excise(CCOL, ROW, DROPPED, 4, status=status),
        r"dendnorm::excise: dropped must be true for k = 4 connections, got 2",
    ),
    "too few keys": (
        lambda status: ops.replace_connections(CCOL, ROW, 4, DROPPED, torch.tensor([7]), status=status),
        r"keys must have one entry for each of the 2 dropped connections, got 1",
    ),
    "a key out of range": (
        lambda status: ops.replace_connections(CCOL, ROW, 4, DROPPED, torch.tensor([0, 12]), status=status),
        r"keys must be in \[0, rows \* columns\) = \[0, 12\), got 12 at position 1",
    ),
    "a negative key": (
        lambda status: ops.replace_connections(CCOL, ROW, 4, DROPPED, torch.tensor([-3, 12]), status=status),
        r"keys must be in \[0, rows \* columns\) = \[0, 12\), got -3 at position 0",
    ),
    "keys that fall": (
        lambda status: ops.replace_connections(CCOL, ROW, 4, DROPPED, torch.tensor([7, 1]), status=status),
        r"keys must be strictly ascending, got 1 after 7 at position 1",
    ),
    "an occupied key": (
        lambda status: ops.replace_connections(CCOL, ROW, 4, DROPPED, torch.tensor([3, 5]), status=status),
        r"got the connection 5 \(row 1, column 1\) at position 1",
    ),
}


def parts(result) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_raised_or_noted(name):
    call, message = FAULTS[name]
    with pytest.raises(RuntimeError, match=message):
        call(None)
    status = clear()
    results = parts(call(status))
    assert status[0] != CLEAR
    with pytest.raises(RuntimeError, match=message):
        ops.raise_fault(status)
    # Safe to go on with: a mask with k entries, or patterns.
    if len(results) == 1:
        assert results[0].sum() == 2
        return
    ops.check_pattern(results[0], results[1], 4, "ccol_indices", "row_indices")
    if "dropped" in name:
        k = len(results[2])
        assert len(results[1]) == len(ROW) - k
        assert results[2].tolist() == list(range(k))
    else:
        assert torch.equal(results[0], CCOL) and torch.equal(results[1], ROW)
        assert results[2].tolist() == [0, 1, 2, 3]


def test_a_value_that_is_not_finite_is_raised_or_noted():
    keys, values = torch.tensor([3, 7]), torch.tensor([1.0, -math.inf])
    message = r"values of new connections must be finite, got nan or infinite values, the first at position 1"
    arguments = {"k": 2, "keys": keys, "values": values, "dtype": torch.float32}
    with pytest.raises(RuntimeError, match=message):
        ops.plan_rewiring(CCOL, ROW, 4, DROPPED, **arguments)
    status = clear()
    results = ops.plan_rewiring(CCOL, ROW, 4, DROPPED, **arguments, status=status)
    ops.check_pattern(results[0], results[1], 4, "ccol_indices", "row_indices")
    with pytest.raises(RuntimeError, match=message):
        ops.raise_fault(status)
    earlier = torch.tensor([1 << 32, 0, 0, 0])
    ops.plan_rewiring(CCOL, ROW, 4, DROPPED, **arguments, status=earlier)
    assert earlier.tolist() == [1 << 32, 0, 0, 0]


def test_the_first_kind_of_fault_is_the_one_that_is_told():
    status = clear()
    ops.excise(CCOL, ROW, DROPPED, 1, status=status)
    ops.weakest(torch.tensor([1.0, math.nan]), 1, status=status)
    first = status.clone()
    ops.replace_connections(CCOL, ROW, 4, DROPPED, torch.tensor([7]), status=status)
    ops.weakest(torch.tensor([1.0, 2.0, math.nan]), 1, status=status)
    assert torch.equal(status, first)
    with pytest.raises(RuntimeError, match="nan at position 1"):
        ops.raise_fault(status)
    ops.raise_fault(clear())


def test_writers_heed_the_status():
    source, fill = torch.tensor([1, -1, 0], dtype=torch.int32), torch.tensor([7.0])
    faulty = torch.tensor([1 << 32, 0, 0, 0])
    for status, carried, assigned in ((None, [2.0, 7.0, 1.0], 5), (clear(), [2.0, 7.0, 1.0], 5), (faulty, None, None)):
        values, other = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(2, 2, dtype=torch.int32)
        ops.carry_(values, source, fill, status=status)
        ops.assign_(other, torch.full((2, 2), 5, dtype=torch.int32), status=status)
        assert values.tolist() == (carried or [1.0, 2.0, 3.0])
        assert (other == (assigned or 0)).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128])
def test_values_are_carried_in_any_order_and_in_place_where_the_order_is_kept(dtype):
    rng = np.random.default_rng(0)
    for case in range(300):
        size = int(rng.integers(0, 40))
        stay, count = np.arange(size), int(rng.integers(0, size + 1))
        source = np.full(size, -1)
        chosen = rng.choice(size, count, replace=False)
        source[np.sort(rng.choice(size, count, replace=False))] = np.sort(stay[chosen]) if case % 2 else chosen
        values = torch.from_numpy(rng.integers(0, 200, size)).to(dtype)
        fill = torch.from_numpy(rng.integers(0, 200, (source < 0).sum())).to(dtype) if case % 3 else values.new_ones(())
        wanted = values[torch.from_numpy(source.clip(0))] if size else values.clone()
        wanted[torch.from_numpy(source < 0)] = fill
        strided = torch.zeros(2 * size, dtype=dtype)[::2].copy_(values)
        for tensor in (values, strided):
            place, version = tensor.data_ptr(), tensor._version
            ops.carry_(tensor, torch.from_numpy(source.astype(np.int32)), fill)
            assert torch.equal(tensor, wanted) and tensor.data_ptr() == place and tensor._version > version


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.weakest(torch.rand(3), 1, status=torch.zeros(4)), "status must have dtype int64, got float32"),
        (lambda: ops.weakest(torch.rand(3), 1, status=torch.zeros(3, dtype=torch.int64)), r"shape \(4,\), got .*3"),
        (lambda: ops.excise(CCOL, ROW, DROPPED, 5), r"k must be in \[0, nnz\] = \[0, 4\], got 5"),
        (lambda: ops.excise(CCOL, ROW, DROPPED, -1), r"k must be in \[0, nnz\] = \[0, 4\], got -1"),
        (lambda: ops.excise(CCOL, ROW, DROPPED[:3], 1), "dropped must have one entry for each of the 4"),
        (lambda: ops.excise(CCOL, ROW, DROPPED.int(), 1), "dropped must have dtype bool, got int32"),
        (lambda: ops.excise(CCOL.flip(0), ROW, DROPPED, 2), "ccol_indices must start with 0, got 4"),
        (lambda: ops.assign_(ROW.clone(), ROW[:3]), r"new_values must have values' shape, \[4\], got \[3\]"),
        (lambda: ops.assign_(ROW.clone(), ROW.long()), "new_values must have dtype int32, got int64"),
        (lambda: ops.assign_(ROW.clone(), ROW.to("meta")), "device of values, .*, got meta"),
        (lambda: ops.raise_fault(torch.tensor([99 << 32, 0, 0, 0])), "status must begin with"),
        (lambda: ops.raise_fault(torch.zeros(4, dtype=torch.int32)), "status must have dtype int64, got int32"),
    ],
)
def test_arguments_that_do_not_fit(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


def test_excise_splits_a_pattern():
    rng = np.random.default_rng(0)
    for _ in range(300):
        rows, cols = (int(size) for size in rng.integers(1, 12, 2))
        nnz = int(rng.choice([0, rows * cols, rng.integers(0, rows * cols + 1)]))
        ccol, row = pattern_of(rng, rows, cols, nnz)
        k = int(rng.choice([0, nnz, rng.integers(0, nnz + 1)]))
        dropped = np.zeros(nnz, dtype=bool)
        dropped[rng.choice(nnz, k, replace=False)] = True
        left, row_left, removed = ops.excise(ccol, row, torch.from_numpy(dropped), k)
        col = np.repeat(np.arange(cols), np.diff(ccol.numpy()))
        assert [t.dtype for t in (left, row_left, removed)] == [torch.int32] * 3
        np.testing.assert_array_equal(removed.numpy(), np.flatnonzero(dropped))
        np.testing.assert_array_equal(row_left.numpy(), row.numpy()[~dropped])
        np.testing.assert_array_equal(left.numpy(), np.searchsorted(col[~dropped], np.arange(cols + 1)))


# A step whose faults come to light later: the tests ask for it, or against it, whatever the device.


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        dendnorm.SparseLinear(20, 16, density=0.3, norm="l0", seed=0),
        torch.nn.Sigmoid(),
        dendnorm.SparseLinear(16, 12, density=0.4, norm="joint", seed=1),
    )


def trained(model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        generator = torch.Generator(torch.get_default_device()).manual_seed(1)
        model(torch.randn(10, 20, generator=generator)).square().mean().backward()
        optimizer.step()
    return optimizer


def all_tensors(model, optimizer) -> dict[str, torch.Tensor]:
    found = {f"model.{name}": tensor for name, tensor in model.named_parameters()}
    found |= {f"model.{name}": tensor for name, tensor in model.named_buffers()}
    found |= {f"{name}.grad": param.grad for name, param in model.named_parameters()}
    for name, param in model.named_parameters():
        found |= {f"{name}.{key}": value for key, value in optimizer.state[param].items()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name].nan_to_num(123.0), second[name].nan_to_num(123.0)), name


@pytest.fixture(params=[False, True], ids=["at once", "deferred"])
def deferred(request, monkeypatch) -> bool:
    monkeypatch.setattr(rewiring, "_defers", lambda devices: request.param)
    return request.param


def test_deferring_changes_nothing_but_when(monkeypatch):
    runs = []
    for defers in (False, True):
        monkeypatch.setattr(rewiring, "_defers", lambda devices, defers=defers: defers)
        model = network()
        optimizer = trained(model)
        rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=5)
        reports = [rewire.step() for _ in range(20)]
        edges = [[*layer.removed, *layer.grown] for report in reports for layer in report]
        runs.append((all_tensors(model, optimizer), edges, rewire.state_dict(), str(reports[-1])))
    assert_same(runs[0][0], runs[1][0])
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        assert all(map(torch.equal, one, other))
    assert runs[0][2:] == runs[1][2:]


def failing(rewire: dendnorm.SET, deferred: bool, reader) -> None:
    if deferred:
        report = rewire.step()
        with pytest.raises(ValueError, match="layer '2': dendnorm::weakest: score must be a number"):
            reader(report, rewire)
    else:
        with pytest.raises(ValueError, match="layer '2': dendnorm::weakest: score must be a number"):
            rewire.step()


READERS = {
    "layers": lambda report, rewire: report.layers,
    "iteration": lambda report, rewire: list(report),
    "indexing": lambda report, rewire: report[0],
    "str": lambda report, rewire: str(report),
    "own report": lambda report, rewire: rewire.report.layers,
    "state_dict": lambda report, rewire: rewire.state_dict(),
    "step": lambda report, rewire: rewire.step(),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_nan_stops_the_whole_step(deferred, reader):
    model = network()
    optimizer = trained(model)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=5)
    rewire.step()
    saved, report = rewire.state_dict(), rewire.report
    with torch.no_grad():
        good = model[2].weight[7].item()
        model[2].weight[7] = math.nan
    before = all_tensors(model, optimizer)
    failing(rewire, deferred, READERS[reader])
    assert_same(before, all_tensors(model, optimizer))
    assert rewire.state_dict() == saved
    assert rewire.report is report
    # With the value mended the same rewiring happens after all.
    with torch.no_grad():
        model[2].weight[7] = good
    other = network()
    other_optimizer = trained(other)
    again = dendnorm.SET(other, other_optimizer, zeta=0.3, seed=5)
    for _ in range(2):
        again.step()
    assert rewire.step().step == 2
    assert [layer.k for layer in rewire.report] == [layer.k for layer in again.report]
    assert_same(all_tensors(model, optimizer), all_tensors(other, other_optimizer))


def test_a_failure_is_told_once_unless_its_report_is_read(monkeypatch):
    monkeypatch.setattr(rewiring, "_defers", lambda devices: True)
    model = network()
    with torch.no_grad():
        model[2].weight[3] = math.nan
    rewire = dendnorm.SET(model, None, zeta=0.3, seed=5)
    report = rewire.step()
    assert len(report) == 2 and "SparseLinear" not in repr(report)
    for _ in range(2):
        with pytest.raises(ValueError, match="got nan at position"):
            list(report)
    assert rewire.state_dict()["steps"] == 0
    rewire.step()
    rewire.load_state_dict({"seed": 1, "steps": 40, "calls": 0})  # another run: what failed before has no say in it
    assert rewire.state_dict()["steps"] == 40


@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_after_a_failure_the_next_step_of_the_optimizer_rewires(deferred, grow):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=5, every=3, grow=grow)

    def step(value: float | None = None) -> None:
        optimizer.zero_grad()
        model(torch.randn(4, model[0].in_features)).square().sum().backward()
        if value is not None:
            with torch.no_grad():
                model[2].weight[7] = value
        optimizer.step()

    good = model[2].weight[7].item()
    step(), step()
    with pytest.raises(ValueError, match="layer '2'"):
        step(math.nan)
        rewire.state_dict()
    assert rewire.state_dict() == {"seed": 5, "steps": 0, "calls": 3}
    with torch.no_grad():
        model[2].weight[7] = good
    step()
    assert rewire.state_dict() == {"seed": 5, "steps": 1, "calls": 0}


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_copies_of_a_rewirer_and_of_its_report_wait_for_the_device(deferred, copied):
    model = network()
    rewire = dendnorm.SET(model, None, zeta=0.3, seed=5)
    report = rewire.step()
    theirs, again = copied(report), copied(rewire)
    assert again.state_dict() == rewire.state_dict() and str(theirs) == str(report)
    for mine, other in zip(report, theirs, strict=True):
        assert all(map(torch.equal, (*mine.removed, *mine.grown), (*other.removed, *other.grown)))
    assert [layer.k for layer in again.step()] == [layer.k for layer in rewire.step()]
    with torch.no_grad():
        model[2].weight[7] = math.nan
    if deferred:
        report = rewire.step()
        for value in (report, rewire):
            with pytest.raises(ValueError, match="layer '2'"):
                copied(value)
            rewire.step()  # told once; this one fails, too


class Occupied(dendnorm.SET):
    """Grows where there are connections."""

    def grow(self, layer, ccol_indices, row_indices, k, step, index):
        return row_indices[:k].long().sort().values.unique()[:k]


def test_wrong_keys_of_a_variant_are_refused(deferred):
    model = torch.nn.Sequential(dendnorm.SparseLinear(1, 9, nnz=6, seed=0))
    before = copy.deepcopy(model.state_dict())
    rewire = Occupied(model, None, zeta=0.5, seed=0)
    with pytest.raises(ValueError, match=r"layer '0': dendnorm::replace_connections: keys must be empty positions"):
        list(rewire.step())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_share_a_weight_must_share_the_pattern(deferred):
    model = torch.nn.ModuleList([dendnorm.SparseLinear(8, 8, nnz=20, seed=seed) for seed in (0, 0, 0)])
    for layer in model:
        layer.weight = model[0].weight
    list(dendnorm.SET(model, None, zeta=0.3, seed=0).step())
    for layer in model:
        assert all(map(torch.equal, layer.pattern, model[0].pattern))
    model[2].reset_parameters(seed=4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"layer '0': layers that share its weight must have its pattern, got another"):
        list(dendnorm.SET(model, None, zeta=0.3, seed=0).step())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
