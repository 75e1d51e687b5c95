"""The benchmark: that contenders compute the same, what is written, how it ends. No test depends on a time."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

import dendnorm
from dendnorm.lab import bench, cli
from dendnorm.lab.bench import contenders, cuda, runner

SMALL = bench.Shape(40, 30, 8, 0.2)


@pytest.mark.parametrize("name", bench.CONTENDERS)
@pytest.mark.parametrize("batch", [1, 8])
def test_contenders_compute_the_same(name, batch):
    layer = dendnorm.SparseLinear(40, 30, density=0.2, norm=None, seed=0)
    try:
        module = bench.CONTENDERS[name](layer)
    except bench.Unavailable as error:
        pytest.skip(str(error))
    x, dy = torch.randn(batch, 40), torch.randn(batch, 30)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(inputs[0]), module(inputs[1])]
    room = 5e-2 if "bfloat16" in name else 1e-4
    torch.testing.assert_close(outputs[1], outputs[0], rtol=room, atol=room)
    for output in outputs:
        output.backward(dy)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=room, atol=room)
    if name in ("torch.sparse", "SparseProp"):  # values in the order of rows
        values = module.values if name == "torch.sparse" else module.W_val
        torch.testing.assert_close(values.grad, layer.weight.grad[layer.perm.long()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", bench.conv.CONTENDERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_compute_the_same(name, stride):
    layer = dendnorm.SparseConv2d(6, 8, 3, stride, 1, bias=False, density=0.2, norm=None, seed=0)
    make, ordered = bench.conv.CONTENDERS[name]
    try:
        module = make(layer)
    except bench.Unavailable as error:
        pytest.skip(str(error))
    x = torch.randn(16, 6, 8, 8)
    inputs = [x.clone().requires_grad_(), ordered(x).clone().requires_grad_()]
    outputs = [layer(inputs[0]), module(inputs[1])]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    dy = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(dy)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-4)


def test_convolutions_are_measured_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench.conv, "DENSITIES", (0.5,))
    given = ["--conv", "--shape", "4,6,3,2,9,16,0.2", "--contender", "dense", "dense, channels_last", "dendnorm"]
    assert cli.main(["bench", *given, "--rounds", "1", "--quiet", "--out", str(tmp_path / "a")]) == 0
    results = json.loads((tmp_path / "a" / "bench.json").read_text("utf-8"))
    name = "4 -> 6, 3 x 3 stride 2 @ 9"
    assert [(entry["shape"]["density"], entry["nnz"]) for entry in results["shapes"]] == [(0.2, 43), (0.5, 108)]
    for entry in results["shapes"]:
        times = {contender: found["median_ms"] for contender, found in entry["contenders"].items()}
        assert entry["dense_over_ours"] == min(times["dense"], times["dense, channels_last"]) / times["dendnorm"]
        # 5 x 5 places of 16 samples; forward, dX and dV
        gflops = 6 * entry["nnz"] * 16 * 25 / times["dendnorm"] * 1e-6
        assert math.isclose(entry["contenders"]["dendnorm"]["gflops"], gflops)
    assert set(results["crossover"]) == {name}
    text = (tmp_path / "a" / "bench.md").read_text("utf-8")
    assert text in capsys.readouterr().out and f"{name}, 16, 20 %" in text


def test_measures_every_contender():
    names = [name for name in bench.CONTENDERS if name not in ("SparseProp", "SparseLab")]
    result = bench.measure(SMALL, names, rounds=2)
    assert result["nnz"] == 240
    assert list(result["contenders"]) == names
    for entry in result["contenders"].values():
        low, high = entry["quartiles_ms"]
        assert 0 < entry["minimum_ms"] <= low <= entry["median_ms"] <= high
        assert entry["alone_ms"] > 0
        assert math.isclose(entry["gflops"], 6 * 240 * 8 / entry["median_ms"] * 1e-6)
    assert set(result["speedup"]) == set(names) - {"dendnorm"}


def test_memory_counts_every_table():
    layer = dendnorm.SparseLinear(400, 300, density=0.3, norm=None)
    size = bench.memory(layer)
    tables = 4 * (401 + 301 + 3 * layer.nnz) + 8 * 8  # both views and the mark
    assert size["index_tables"] == tables
    assert size["per_connection"] == (8 * layer.nnz + tables) / layer.nnz


def test_leaves_out_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(contenders, "DENSE_LIMIT", 1000)
    result = bench.measure(SMALL, ("dense", "dendnorm"), rounds=1)
    assert "GiB" in result["contenders"]["dense"]["unavailable"]
    assert "median_ms" in result["contenders"]["dendnorm"]


def test_measures_nobody(monkeypatch):
    monkeypatch.setattr(contenders, "DENSE_LIMIT", 1000)
    for names in ((), ("dense", "masked")):
        result = bench.measure(SMALL, names, rounds=2)
        assert all("unavailable" in entry for entry in result["contenders"].values())


def test_a_contender_that_computes_something_else_is_out(monkeypatch):
    monkeypatch.setitem(bench.CONTENDERS, "dense", lambda layer: torch.nn.Linear(40, 30))
    result = bench.measure(SMALL, ("dense", "dendnorm"), rounds=1)
    assert "computed something else" in result["contenders"]["dense"]["unavailable"]


def test_keeps_the_number_of_threads():
    before = torch.get_num_threads()
    assert bench.measure(SMALL, ("dendnorm",), rounds=1, threads=1)["threads"] == 1
    assert torch.get_num_threads() == before


def test_crossover_is_to_the_better_dense_one():
    def entry(density, ours, *dense):
        times = {"dendnorm": ours} | dict(zip(bench.conv.DENSE, dense, strict=True))
        return {"shape": {"density": density},
                "contenders": {name: {"median_ms": time} for name, time in times.items()}}  # fmt: skip

    results = [entry(0.1, 1, 4, 2), entry(0.4, 4, 8, 2)]
    assert bench.crossover(results, bench.conv.DENSE) == pytest.approx(0.2)
    assert bench.crossover(results) is None


def test_crossover_lies_between_the_measured_densities():
    def entry(density, ours, dense):
        return {"shape": {"density": density}, "contenders": {
            "dendnorm": {"median_ms": ours}, "dense": {"median_ms": dense}}}  # fmt: skip

    assert bench.crossover([entry(0.1, 1, 4), entry(0.4, 4, 4)]) == pytest.approx(0.4)
    assert bench.crossover([entry(0.4, 8, 4), entry(0.1, 2, 4)]) == pytest.approx(0.2)
    assert bench.crossover([entry(0.1, 1, 4), entry(1.0, 3, 4)]) is None
    assert bench.crossover([entry(0.1, 5, 4), entry(1.0, 9, 4)]) == 0.1


def test_roofline_interpolates(tmp_path):
    path = tmp_path / "roofline.json"
    load = [{"bytes": 1024, "gb_per_s": 100.0}, {"bytes": 4096, "gb_per_s": 50.0}]
    path.write_text(json.dumps({"threads": 2, "fma_gflops": 200.0, "load": load}))
    roofline = bench.Roofline.read(path)
    assert [roofline.rate(size) for size in (10, 1024, 2048, 4096, 10**9)] == [100, 100, 75, 50, 50]
    forward, backward = roofline.floor_ms(bench.Shape(4, 16, 64, 1.0))  # slabs of 1024 and 4096 bytes
    loaded = 4 * 64 * 64
    assert forward == pytest.approx(loaded / 100 * 1e-6)
    assert backward == pytest.approx(loaded / 50 * 1e-6)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"roofline must be a file that benchmarks/roofline wrote"):
        bench.Roofline.read(path)


def test_command_line_writes_table_and_json(tmp_path, capsys):
    arguments = ["bench", "--shape", "40,30,8,0.2", "--shape", "30,20,1,0.5", "--rounds", "1", "--no-sweeps", "--quiet"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "40 → 30, 8, 20 %" in printed and "bytes per connection" in printed
    written = json.loads((tmp_path / "bench.json").read_text())
    assert len(written["shapes"]) == 2 and written["machine"]["torch"] == torch.__version__
    assert (tmp_path / "bench.md").read_text().strip() in printed


def test_sweeps_are_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    real = bench.measure

    def tiny(shape, contenders, rounds, dtype, threads=None, device="cpu"):
        small = bench.Shape(min(shape.inputs, 50), min(shape.outputs, 50), min(shape.batch, 64), shape.density)
        return real(small, contenders, 1, dtype, threads) | {"nnz": shape.nnz}

    monkeypatch.setattr(runner, "measure", tiny)
    times = {"step_ms": 1.0, "rewiring_ms": 2.0, "steps": 2.0}
    monkeypatch.setattr(runner, "measure_rewiring", lambda shape, device: {"nnz": shape.nnz} | times)
    results = bench.run([SMALL], tmp_path, rounds=1, progress=False)
    assert set(results["sweeps"]) == {"density", "nnz", "batch", "threads", "rewiring"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert "Against batch" in (tmp_path / "bench.md").read_text()


def test_results_are_kept_after_every_shape(tmp_path, monkeypatch):
    real, seen = bench.measure, []

    def fails_at_the_third(*arguments):
        if len(seen) == 2:
            raise MemoryError("no more")
        seen.append(real(*arguments))
        return seen[-1]

    monkeypatch.setattr(runner, "measure", fails_at_the_third)
    with pytest.raises(MemoryError):
        bench.run([SMALL] * 3, tmp_path, contenders=("dendnorm",), sweeps=False, rounds=1, progress=False)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert len(written["shapes"]) == 2


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(runner, "_sweep", lambda results, *_: results["sweeps"].update(density=results["shapes"]))
    bench.run([SMALL], tmp_path, contenders=("dendnorm",), rounds=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md"]
    assert "No picture: dendnorm needs the package matplotlib" in capsys.readouterr().err


def test_our_steps_are_captured_first(monkeypatch):
    captured = []
    monkeypatch.setattr(cuda, "captured", lambda step: captured.append(step))
    steps = {name: (lambda: None) for name in bench.CONTENDERS}
    cuda.add_variants(steps, {})
    names = [next(name for name, step in steps.items() if step is one) for one in captured]
    ours = sum(name.startswith("dendnorm") for name in bench.CONTENDERS)
    assert [name.startswith("dendnorm") for name in names] == [True] * ours + [False] * (len(names) - ours)


def test_rewiring_is_measured_in_steps():
    result = bench.measure_rewiring(bench.Shape(30, 20, 4, 0.3), rounds=2)
    assert result["nnz"] == 180
    assert result["steps"] == pytest.approx(result["rewiring_ms"] / result["step_ms"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conv", "--shape", "64,64,3"], "CHANNELS,FILTERS,KERNEL,STRIDE,SIZE,BATCH,DENSITY"),
        (["--conv", "--shape", "4,4,2,1,9,16,0.5"], "kernel must be odd, got 2"),
        (["--conv", "--contender", "torch.sparse"], "contender must be one of 'dense', 'dense, channels_last'"),
        (["--conv", "--device", "cuda"], "convolutions are timed on the CPU"),
        (["--shape", "1,2,3"], 'shape must be "IN,OUT,BATCH,DENSITY"'),
        (["--shape", "a,2,3,0.1"], "got 'a,2,3,0.1'"),
        (["--shape", "0,2,3,0.1"], "inputs must be at least 1, got 0"),
        (["--shape", "1,2,3,1.5"], "density must be in (0, 1], got 1.5"),
        (["--contender", "nobody"], "contender must be one of 'dense'"),
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--roofline", "nowhere.json"], "nowhere.json"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["bench", "--out", str(out), "--quiet", "--no-sweeps", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not out.exists()


def test_a_peer_that_fails_on_a_device_is_left_out(monkeypatch):
    class Fails(torch.nn.Linear):
        def forward(self, x):
            raise RuntimeError("no kernel for this device\nand more")

    monkeypatch.setitem(bench.CONTENDERS, "dense", lambda layer: Fails(layer.in_features, layer.out_features))
    result = bench.measure(bench.Shape(20, 10, 4, 0.5), ("dendnorm", "dense"), rounds=2)
    assert result["contenders"]["dense"] == {"unavailable": "fails: no kernel for this device"}
    assert "median_ms" in result["contenders"]["dendnorm"]
    monkeypatch.setitem(bench.CONTENDERS, "dendnorm", bench.CONTENDERS["dense"])
    with pytest.raises(RuntimeError, match="no kernel for this device"):
        bench.measure(bench.Shape(20, 10, 4, 0.5), ("dendnorm",), rounds=2)


def test_the_bound_on_a_gpu_follows_the_level_that_holds_the_activations():
    rates = cuda.Rates(shared=30e12, l2=10e12, l2_bytes=50 << 20, memory=4e12)
    small = bench.Shape(784, 1000, 128, 0.2)  # both sides fit shared memory, and are read often enough
    wide = bench.Shape(4096, 4096, 128, 0.01)  # L2
    huge = bench.Shape(4_000_000, 4_000_000, 128, 1e-7)  # 4 samples of all neurons are 64 MB
    few = bench.Shape(784, 1000, 8, 0.2)  # too few samples for both gradients of the same loads
    for shape, seconds in ((small, 2 / 30e12), (wide, 2 / 10e12), (huge, 2 / 4e12), (few, 3 / 10e12)):
        assert cuda.bound_ms(shape, rates) == pytest.approx(1e3 * 4 * shape.nnz * shape.batch * seconds)
    assert cuda.rates_of("NVIDIA H100 80GB HBM3") is not None
    assert cuda.rates_of("a new one") is None


def test_variants_on_a_gpu_come_after_what_they_vary():
    names = ["dendnorm, graph", "dense, TF32, graph", "dendnorm", "dense", "dense, TF32"]
    entries = {name: {} for name in names}
    assert cuda.in_order(("dense", "torch.sparse", "dendnorm"), entries) == [
        "dense", "dense, TF32", "dense, TF32, graph", "dendnorm", "dendnorm, graph"]  # fmt: skip


def test_tf32_is_set_for_the_step_alone():
    seen = []
    before = torch.backends.cuda.matmul.allow_tf32
    for allowed in (True, False):
        cuda.with_tf32(lambda: seen.append(torch.backends.cuda.matmul.allow_tf32), allowed)()
    assert seen == [True, False]
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="'cuda' needs a GPU"):
        bench.run([SMALL], tmp_path, device="cuda", sweeps=False)
