"""What a model is told to be and to cost, against counts on dense masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dendnorm
from dendnorm import analysis


def network() -> torch.nn.Sequential:
    shared = dendnorm.norms.l0()
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        dendnorm.SparseLinear(144, 20, nnz=300, norm=shared, seed=0),
        dendnorm.SparseLinear(20, 10, nnz=50, norm=shared, bias=False, seed=1),
        torch.nn.Linear(10, 3),
    )


def hooks_of(model: torch.nn.Module) -> list:
    """The hooks of a model's modules but for the one that a norm is made with."""
    found = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    for module in model.modules():
        own = 1 if isinstance(module, dendnorm.Norm) else 0
        found += list(module._forward_pre_hooks.values())[own:]
    return found


@pytest.mark.feature("summary: density, connections, bytes and FLOPs of sparse and dense layers")
def test_summary_counts_connections_bytes_and_flops():
    rows = {row.name: row for row in dendnorm.summary(network(), (1, 8, 8))}
    conv, norm, first, second, dense = (rows[name] for name in "01345")
    assert (conv.connections, conv.value_bytes, conv.index_bytes) == (36, 144, 0)
    assert conv.flops == conv.dense_flops == 2 * 36 * 6 * 6
    assert (norm.connections, norm.flops, norm.value_bytes) == (0, 0, 4 * 4 * 4)  # weight, bias, mean, variance
    assert (first.connections, first.positions) == (300, 144 * 20)
    assert first.density == 300 / 2880
    assert first.value_bytes == 4 * (300 + 20 + 1)
    assert first.index_bytes == 4 * (145 + 300 + 21 + 300 + 300) + 8 * 8
    assert first.dense_bytes == 4 * (2880 + 20)
    assert (first.flops, first.dense_flops) == (600, 5760)
    assert first.flops_ratio == 600 / 5760
    assert first.bytes_ratio == (first.value_bytes + first.index_bytes) / first.dense_bytes
    assert second.value_bytes == 4 * 50  # its s is the first one's, and it has no bias
    assert (dense.connections, dense.positions, dense.flops, dense.density) == (30, 30, 60, 1)
    total = dendnorm.summary(network(), (1, 8, 8)).total
    assert total.flops == 2592 + 600 + 100 + 60
    assert total.dense_flops == 2592 + 5760 + 400 + 60
    assert total.connections == 36 + 300 + 50 + 30


def test_summary_is_a_table_and_a_sequence():
    found = dendnorm.summary(network(), (1, 8, 8))
    lines = str(found).splitlines()
    assert len(lines) == 1 + 1 + len(found) + 1 + 1
    assert found[0].name == "0"
    assert [row.name for row in found[1:3]] == ["1", "3"]
    (line,) = (line for line in lines if line.startswith("3 "))
    assert line.split() == ["3", "SparseLinear", "10.4", "%", "300", "1.254", "KiB", "4.227", "KiB", "48.4", "%", "600", "10.4", "%"]  # fmt: skip  # noqa: E501
    assert lines[-1].startswith("total")


def test_summary_without_an_input_knows_linear_layers_alone():
    rows = {row.name: row for row in dendnorm.summary(network())}
    assert rows["0"].flops is None
    assert (rows["3"].flops, rows["3"].dense_flops, rows["5"].flops, rows["1"].flops) == (600, 5760, 60, 0)
    assert dendnorm.summary(network()).total.flops is None
    assert "-" in str(dendnorm.summary(network())).splitlines()[-1]
    assert dendnorm.summary(network()[2:]).total.flops == 600 + 100 + 60


def test_summary_counts_every_use_and_leaves_the_model_alone():
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = dendnorm.SparseLinear(8, 8, nnz=20, seed=0)
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            self.drop = torch.nn.Dropout(0.5)
            self.norm = torch.nn.BatchNorm1d(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(self.layer(x))
            return self.norm(self.drop(self.attention(x, x, x, need_weights=False)[0] @ x.mT))

    model = Twice()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    rows = {row.name: row for row in dendnorm.summary(model, (5, 8))}
    assert rows["layer"].flops == 2 * 5 * 2 * 20
    assert rows["layer"].dense_flops == 2 * 5 * 2 * 64
    attention = 2 * 5 * (3 * 64 + 64) + 2 * (2 * 5 * 5 * 8)  # projections, then scores and weighted values
    assert rows["attention"].flops == attention
    assert rows[""].flops == 2 * 5 * 8 * 5  # the product outside every child
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert torch.equal(generator, torch.get_rng_state())
    assert model.training and model.drop.training and not model.norm.training
    assert hooks_of(model) == []
    assert torch.backends.mha.get_fastpath_enabled()
    batch = dendnorm.summary(model, torch.randn(7, 5, 8))
    assert batch.total.flops == sum(row.flops for row in rows.values())


def test_summary_on_the_meta_device_and_of_an_empty_layer():
    with torch.device("meta"):
        model = torch.nn.Sequential(dendnorm.SparseLinear(1000, 1000, density=0.01), torch.nn.Linear(1000, 10))
    assert dendnorm.summary(model, (1000,)).total.flops == 2 * (10_000 + 10_000)
    empty = dendnorm.SparseLinear(4, 3, nnz=0)
    row = dendnorm.summary(empty, (4,))[0]
    assert (row.flops, row.dense_flops, row.flops_ratio, row.density) == (0, 24, 0.0, 0.0)


def test_summary_refuses_by_name():
    with pytest.raises(TypeError, match="model must be"):
        dendnorm.summary(3)
    for shape in ((0,), (2.5,), (True,), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="input_shape must"):
            dendnorm.summary(network(), shape)
    model = network()
    with pytest.raises(ValueError, match=r"input_shape must be one that the model takes, got a batch of \(1, 3\)"):
        dendnorm.summary(model, (3,))
    assert hooks_of(model) == []
    assert model.training


@pytest.mark.feature("torch.utils.flop_counter counts the sparse ops, forward and backward")
def test_the_flop_counter_of_torch_knows_the_ops():
    layer = dendnorm.SparseLinear(12, 9, nnz=40, norm="joint", seed=0)
    x = torch.randn(3, 5, 12, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = layer(x)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    with FlopCounterMode(display=False) as values_alone:
        layer(x.detach()).sum().backward()
    assert forward.get_total_flops() == 2 * 15 * 40
    assert backward.get_total_flops() == 2 * 2 * 15 * 40
    assert values_alone.get_total_flops() == 2 * 2 * 15 * 40


# Distributions


def test_degree_histogram_counts_neurons():
    layer = dendnorm.SparseLinear(30, 20, density=0.1, seed=3)
    mask = layer.to_dense().weight.detach().numpy() != 0
    for side, axis in (("in", 1), ("out", 0)):
        want = np.bincount(mask.sum(axis))
        np.testing.assert_array_equal(analysis.degree_histogram(layer, side).numpy(), want)
    with pytest.raises(ValueError, match="side must be"):
        analysis.degree_histogram(layer, "both")


def test_weight_histogram_counts_connections():
    layer = dendnorm.SparseLinear(30, 20, density=0.3, norm="weight_norm", seed=3)
    counts, edges = analysis.weight_histogram(layer, bins=7)
    weights = layer.to_dense().weight.detach().double().numpy()
    weights = weights[weights != 0]
    assert counts.sum() == layer.nnz == len(weights)
    assert (edges[0], edges[-1]) == (weights.min(), weights.max())
    for index in range(7):
        inside = (weights >= float(edges[index])) & ((weights < float(edges[index + 1])) | (index == 6))
        assert counts[index] == inside.sum()
    raw, _ = analysis.weight_histogram(layer, limits=(-1.0, 1.0), effective=False)
    assert raw.sum() == ((layer.weight >= -1) & (layer.weight <= 1)).sum()
    assert analysis.weight_histogram(dendnorm.SparseLinear(4, 3, nnz=0))[0].sum() == 0
    with torch.no_grad():
        layer.weight[0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        analysis.weight_histogram(layer)
    for kwargs in ({"bins": 0}, {"bins": 2.0}, {"limits": (1.0, 1.0)}, {"limits": (0.0, float("inf"))}):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            analysis.weight_histogram(layer, **kwargs)


@pytest.mark.feature("analysis.topology_change: share of changed edges and Jaccard overlap of two patterns")
def test_topology_change_is_set_arithmetic():
    layer = dendnorm.SparseLinear(15, 11, density=0.3, seed=3)
    before = layer.pattern.clone()
    rewire = dendnorm.SET(layer, None, zeta=0.4, seed=0)
    first = set(zip(*(part.tolist() for part in before.edges()), strict=True))
    assert analysis.topology_change(before, layer) == analysis.TopologyChange(layer.nnz, layer.nnz, layer.nnz)
    for _ in range(4):
        rewire.step()
        now = set(zip(*(part.tolist() for part in layer.edges()), strict=True))
        change = analysis.topology_change(before, layer)
        assert change.shared == len(first & now)
        assert change.jaccard == len(first & now) / len(first | now)
        assert change.changed == len(first - now) / len(first)
        assert (change.removed, change.grown) == (len(first - now), len(now - first))
    other = dendnorm.SparseLinear(15, 11, nnz=20, seed=3)
    assert analysis.topology_change(layer, other).grown == 20 - analysis.topology_change(other, layer).shared
    nothing = dendnorm.SparseLinear(15, 11, nnz=0)
    assert (analysis.topology_change(nothing, nothing).jaccard, analysis.topology_change(nothing, layer).changed) == (
        1,
        0,
    )
    with pytest.raises(ValueError, match=r"one size.*\(11, 15\) and \(15, 11\)"):
        analysis.topology_change(layer, dendnorm.SparseLinear(11, 15, nnz=20))


class Recorder:
    def __init__(self) -> None:
        self.scalars, self.histograms = {}, {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag, step] = value

    def add_histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        self.histograms[tag, step] = values


def test_log_rewiring_writes_shares_and_distributions():
    model = torch.nn.Sequential(*(dendnorm.SparseLinear(9, 9, density=0.6, seed=seed) for seed in range(2)))
    before = model[1].pattern.clone()
    report = dendnorm.SET(model, None, zeta=0.5, seed=0).step()
    writer = Recorder()
    analysis.log_rewiring(writer, report, 40, model)
    change = analysis.topology_change(before, model[1])
    assert writer.scalars["rewiring/1/replaced", 40] == report[1].k / model[1].nnz
    assert writer.scalars["rewiring/1/changed", 40] == change.changed < report[1].k / model[1].nnz
    assert torch.equal(writer.histograms["rewiring/0/in_degree", 40], model[0].in_degrees())
    assert torch.equal(writer.histograms["rewiring/0/weight", 40], model[0].effective_weight())
    assert len(writer.scalars) == 4 and len(writer.histograms) == 6
    plain = Recorder()
    analysis.log_rewiring(plain, report, 1)
    assert not plain.histograms


@pytest.mark.feature("TensorBoard: analysis.log_rewiring writes what a rewiring did")
def test_log_rewiring_to_tensorboard(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    layer = dendnorm.SparseLinear(9, 9, density=0.6, seed=0)
    report = dendnorm.SET(layer, None, zeta=0.5, seed=0).step()
    with tensorboard.SummaryWriter(tmp_path) as writer:
        analysis.log_rewiring(writer, report, 3, layer)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Scalars("rewiring/layer/replaced")
    assert event.step == 3
    assert event.value == pytest.approx(report[0].k / layer.nnz)
    assert "rewiring/layer/weight" in events.Tags()["histograms"]


def test_distributions_are_drawn(tmp_path):
    image = pytest.importorskip("PIL.Image")
    from dendnorm import plots

    plots.distributions(network(), tmp_path / "d.png")
    assert image.open(tmp_path / "d.png").size[0] > 1000
    with pytest.raises(ValueError, match="must hold a SparseLinear"):
        plots.distributions(torch.nn.Linear(2, 2), tmp_path / "e.png")
