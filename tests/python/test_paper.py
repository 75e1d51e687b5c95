"""The command that reproduces the paper: what it trains, that it can be stopped anywhere, and what it writes."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dendnorm
from dendnorm import analysis, plots
from dendnorm.lab import cli, comparison, data, networks, paper, train, trials
from dendnorm.lab.paper import Grid, Panel
from dendnorm.lab.results import PHASES
from dendnorm.lab.settings import Settings

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

SMALL = Settings(epochs=2, trials=2, batch=100, hidden=(10,), s=10.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Made images in the form of MNIST and Fashion-MNIST."""
    from test_data import write_idx

    folder = tmp_path_factory.mktemp("root")
    generator = np.random.default_rng(0)
    for name in ("mnist", "fashion-mnist"):
        arrays = {}
        for split, count in (("train", 60), ("t10k", 20)):
            labels = np.arange(count, dtype=np.uint8) % 10
            images = generator.integers(0, 80, (count, 28, 28), dtype=np.uint8)
            images[np.arange(count), labels + 8, 4:24] = 250  # a bar whose height tells the class
            arrays |= {f"{split}-images-idx3-ubyte": images, f"{split}-labels-idx1-ubyte": labels}
        write_idx(folder / name, arrays)
    return folder


def test_list_names_every_figure_and_the_table(capsys):
    assert cli.main(["paper", "--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"1D", "2A", "2B", "3C", "3D", "3E", "3F", "3G", "table1"} <= set(listed)


def test_networks_and_settings_are_those_of_the_paper():
    panels = {name: experiment.panels for name, experiment in paper.EXPERIMENTS.items()}
    assert {(p.settings.data, p.settings.hidden) for p in panels["1D"]} == {
        (name, (hidden,)) for name in ("mnist", "fashion-mnist") for hidden in (30, 100, 300)}  # fmt: skip
    assert [p.settings.hidden for p in panels["3C"]] == [(100, 100), (100, 100, 100)]
    assert panels["3D"][0].settings.convolution == 20 and panels["3E"][0].settings.activation == "relu"
    assert panels["3F"][0].settings.norms == ("l0", "weight_norm", "joint")
    assert len(panels["3G"][0].settings.norms) == 12
    for name in ("1D", "2A", "3C", "3D", "3E", "3F", "3G"):
        for panel in panels[name]:
            s = panel.settings
            assert (s.epsilon, s.zeta, s.batch, s.lr, s.momentum) == (0.2, 0.15, 10, 0.05, 0.0)
    assert [(p.settings.data, p.settings.hidden, p.settings.epsilon) for p in panels["table1"]] == [
        ("mnist", (1000,) * 3, 0.04), ("fashion-mnist", (200,) * 3, 0.2), ("cifar10", (1000,) * 3, 0.04),
        ("coil100", (1000,) * 3, 0.04)]  # fmt: skip


@pytest.mark.parametrize("name", ["1D", "2A", "2B", "3D"])
def test_quick_run_writes_picture_table_and_numbers(root, tmp_path, capsys, name):
    arguments = ["paper", name, "--quick", "--quiet", "--root", str(root), "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    results = json.loads((tmp_path / f"{name}.json").read_text())
    table = (tmp_path / f"{name}.md").read_text()
    assert table in capsys.readouterr().out
    assert "Quick" in table and "control" in table and "dendritic" in table and results["quick"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.json", f"{name}.md", f"{name}.png", "trials"]
    for panel in results["panels"]:
        assert len(panel["runs"]) == 2 and all(record["complete"] for record in panel["runs"])
        assert str(root) not in json.dumps(panel)
        for record in panel["runs"]:
            assert len({entry[phase]["train_cost"] for entry in record["epochs"] for phase in PHASES}) == 4


def test_orders_of_the_norm(root, tmp_path):
    results = paper.run("3G", tmp_path, root, quick=True, progress=False)
    assert len(results["panels"][0]["runs"]) == 12
    assert len({run["epochs"][0]["before"]["train_cost"] for run in results["panels"][0]["runs"]}) == 12
    assert (tmp_path / "3G.png").stat().st_size > 1000
    assert "one excitability per neuron" in (tmp_path / "3G.md").read_text()


def test_table_says_which_data_are_missing_and_where_to_get_them(root, tmp_path):
    results = paper.run("table1", tmp_path, root, data=["mnist", "coil100"], quick=True, progress=False)
    assert [panel["settings"]["data"] for panel in results["panels"]] == ["mnist"]
    text = (tmp_path / "table1.md").read_text()
    assert "Not measured: COIL-100" in text and data.COIL_SOURCE in text and "98.74" in text and "99.63" in text


def test_results_do_not_depend_on_the_number_of_processes(tmp_path):
    panels = [Panel("digits", SMALL)]
    one = paper.collect(panels, tmp_path / "one", workers=1, progress=False)
    three = paper.collect(panels, tmp_path / "three", workers=3, progress=False)
    assert one == three


def test_a_trial_is_what_train_gives(tmp_path):
    """The same numbers as the command that trains one after another, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = comparison.run(SMALL, tmp_path / "plain", progress=False)
    finally:
        torch.set_num_threads(threads)
    (panel,) = paper.collect([Panel("digits", SMALL)], tmp_path / "trials", progress=False)
    for mine, theirs in zip(panel["runs"], plain["runs"], strict=True):
        for entry, other in zip(mine["epochs"], theirs["epochs"], strict=True):
            assert entry == {key: value for key, value in other.items() if key != "seconds"}


def runs(group: int) -> bool:
    """Whether a process of a group does anything; what has ended may still be waiting for somebody to notice."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False


def test_killed_run_goes_on_to_the_same_file(root, tmp_path):
    def start(out):
        command = [sys.executable, "-m", "dendnorm", "paper", "1D", "--root", str(root), "--out", str(out)]
        command += ["--trials", "3", "--epochs", "3", "--data", "mnist", "--workers", "2", "--quiet"]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, env=os.environ.copy()
        )

    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=300) == 0, whole.stderr.read().decode()
    broken = tmp_path / "broken"
    process = start(broken)
    deadline = time.monotonic() + 120
    while not list(broken.glob("trials/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()  # the parent alone: its processes end with it
    process.wait()
    deadline = time.monotonic() + 60
    while runs(process.pid):
        assert time.monotonic() < deadline, "training processes go on without their parent"
        time.sleep(0.05)
    kept = {path.name: path.stat().st_mtime_ns for path in broken.glob("trials/*.json")}
    assert kept and not (broken / "1D.json").exists()
    again = start(broken)
    assert again.wait(timeout=300) == 0
    assert (broken / "1D.json").read_bytes() == (tmp_path / "whole" / "1D.json").read_bytes()
    for name, written in kept.items():
        assert (broken / "trials" / name).stat().st_mtime_ns == written, "a finished trial was trained again"


def test_grid_is_equal_and_chosen_on_held_out_training_data(tmp_path, monkeypatch):
    grid = Grid(lr=(1e-4, 0.1), s=(1.0, 10.0), dropout=(0.0, 0.9), epochs=3, validation=300)
    (result,) = paper.collect([Panel("digits", SMALL, grid)], tmp_path, progress=False)

    def tried(norm, *names):
        return [tuple(point[name] for name in names) for point in result["grid"][norm]]

    assert tried("l0", "lr", "s", "dropout") == list(itertools.product(grid.lr, grid.s, grid.dropout))
    assert tried("none", "lr", "dropout") == list(itertools.product(grid.lr, grid.dropout))
    for norm in ("none", "l0"):
        best = max(result["grid"][norm], key=lambda p: p["validation_accuracy"])
        assert result["chosen"][norm] == {name: best[name] for name in ("lr", "s", "dropout")}
        assert best["lr"] == 0.1
    identities = [json.loads(p.read_text())["identity"] for p in tmp_path.glob("*.json")]
    assert {i["seed"] for i in identities if i["validation"]} == {grid.seed}
    assert {i["validation"] for i in identities} == {0, 300}


def test_held_out_examples_are_training_examples_of_every_class():
    whole = train.load_data(replace(SMALL), torch.device("cpu"))
    order = whole.train_targets.argsort(stable=True)  # as files that are sorted by class come
    whole = replace(whole, train_inputs=whole.train_inputs[order], train_targets=whole.train_targets[order])
    split = data.hold_out(whole, 200)
    assert len(split.test_targets) == 200 and set(split.test_targets.tolist()) == set(range(10))

    def rows(inputs, targets):
        return sorted((*row, target) for row, target in zip(inputs.tolist(), targets.tolist(), strict=True))

    both = rows(split.train_inputs, split.train_targets) + rows(split.test_inputs, split.test_targets)
    assert sorted(both) == rows(whole.train_inputs, whole.train_targets)
    again = data.hold_out(whole, 200)
    assert torch.equal(again.test_inputs, split.test_inputs)
    with pytest.raises(ValueError, match="validation"):
        train.load_data(replace(SMALL, validation=10_000), torch.device("cpu"))


def test_identity_holds_what_decides_the_numbers():
    job = trials.Job(SMALL, "l0", 1)
    assert job.name == trials.Job(replace(SMALL, trials=9, norms=("l0",), root="x"), "l0", 1).name
    assert job.name == trials.Job(replace(SMALL, seed=1), "l0", 0).name
    different = {trials.Job(replace(SMALL, **change), "l0", 1).name
                 for change in ({"lr": 0.2}, {"epochs": 3}, {"seed": 5}, {"dropout": 0.1}, {"s": 3.0}, {})}  # fmt: skip
    different.add(trials.Job(SMALL, "none", 1).name)
    assert len(different) == 7


def test_diverging_trial_is_kept_with_its_reason(tmp_path):
    settings = replace(SMALL, activation="relu", lr=1e30, trials=1, norms=("none",))
    (result,) = paper.collect([Panel("digits", settings)], tmp_path, progress=False)
    (record,) = result["runs"]
    assert "cost became" in record["failed"] and not record["complete"]
    text = paper.table({"name": "1D", "title": "", "claim": "", "quick": False, "missing": [], "panels": [result]})
    assert "Failed: digits, control, trial 1" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["9Z"], "name must be one of 1D"),
        ([], "a NAME is needed"),
        (["1D"], "needs root"),
        (["1D", "--root", "/nowhere"], "root must be a folder"),
        (["1D", "--data", "cifar10", "--root", "."], "data must be among those of 1D"),
        (["1D", "--workers", "0", "--root", "ROOT"], "workers must be at least 1"),
        (["1D", "--trials", "-1", "--root", "ROOT"], "trials must be at least 1"),
        (["1D", "--epochs", "0", "--root", "ROOT"], "epochs must be at least 1"),
    ],
)
def test_wrong_input_is_one_sentence(root, tmp_path, capsys, arguments, message):
    arguments = [str(root) if text == "ROOT" else text for text in arguments]
    assert cli.main(["paper", *arguments, "--quiet", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.glob("out/*.json"))


# ---- COIL-100


def made_coil(folder, objects=3, angles=12, side=128):
    from PIL import Image

    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    for number in range(1, objects + 1):
        for view in range(angles):
            pixels = generator.integers(0, 40, (side, side, 3), dtype=np.uint8)
            pixels[:, :, :] += np.uint8(60 * number)
            Image.fromarray(pixels).save(folder / f"obj{number}__{5 * view}.png")


def test_coil_is_read(tmp_path):
    pytest.importorskip("PIL")
    made_coil(tmp_path / "coil-100")
    loaded = data.load("coil100", tmp_path)
    again = data.load("coil100", tmp_path / "coil-100")
    assert torch.equal(loaded.train_inputs, again.train_inputs)
    assert loaded.features == 1024 and loaded.image_shape == (1, 32, 32) and loaded.classes == ("1", "2", "3")
    assert len(loaded.test_targets) == round(36 * 1436 / 7200) and len(loaded.train_targets) == 36 - 7
    for inputs, targets in ((loaded.train_inputs, loaded.train_targets), (loaded.test_inputs, loaded.test_targets)):
        brightness = inputs.double().mean(1) / 60
        assert torch.equal(brightness.floor().long() - 1, targets), "an image keeps its label"
    (tmp_path / "coil-100" / "obj2__10.png").write_bytes(b"no picture")
    with pytest.raises(data.DataFileError, match=r"obj2__10\.png: expected an image"):
        data.load("coil100", tmp_path)


def test_coil_refuses_a_folder_with_gaps(tmp_path):
    pytest.importorskip("PIL")
    made_coil(tmp_path / "coil-100")
    for path in (tmp_path / "coil-100").glob("obj2__*"):
        path.unlink()
    with pytest.raises(data.DataFileError, match="without gaps, got 2, the last 3"):
        data.load("coil100", tmp_path)


def test_coil_that_is_not_there_says_where_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(data.COIL_SOURCE)):
        data.load("coil100", tmp_path)


# ---- what networks are made of


def srelu_reference(x, t_l, a_l, t_r, a_r):
    """The equation, case by case."""
    result = []
    for value in x:
        if value >= t_r:
            result.append(t_r + a_r * (value - t_r))
        elif value <= t_l:
            result.append(t_l + a_l * (value - t_l))
        else:
            result.append(value)
    return result


def test_srelu_is_its_equation():
    module = dendnorm.SReLU(3, dtype=torch.float64)
    values = {"t_l": [-1.0, 0.0, -0.5], "a_l": [0.3, 0.1, 2.0], "t_r": [1.0, 0.5, 0.25], "a_r": [0.5, 2.0, -1.0]}
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(torch.tensor(value))
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)
    out = module(x[:, None].expand(-1, 3))
    for column in range(3):
        wanted = srelu_reference(x.tolist(), *(values[n][column] for n in ("t_l", "a_l", "t_r", "a_r")))
        torch.testing.assert_close(out[:, column], torch.tensor(wanted, dtype=torch.float64))
    sample = (torch.randn(5, 3, dtype=torch.float64) + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: module(v), (sample,))
    out.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_srelu_begins_as_a_leaky_relu():
    x = torch.randn(7, 5)
    torch.testing.assert_close(dendnorm.SReLU(5)(x), nn.functional.leaky_relu(x, 0.2))
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        dendnorm.SReLU(0)


def test_analysis_is_what_dense_arrays_say():
    layer = dendnorm.SparseLinear(12, 7, density=0.4, norm="l0", seed=3, dtype=torch.float64)
    inputs = torch.rand(2503, 12, dtype=torch.float64)
    dense = layer.to_dense().weight.detach()
    mask = dense != 0
    assert torch.equal(analysis.efferent_map(layer, (3, 4)), mask.sum(0).view(3, 4))
    torch.testing.assert_close(analysis.mean_weighted_input(layer, inputs, 100), (inputs @ dense.T).mean(0))
    look = analysis.snapshot(layer, inputs)
    assert look["afferents"] == mask.sum(1).tolist() and look["efferents"] == mask.sum(0).tolist()
    np.testing.assert_allclose(look["weights"], dense[layer.edges()].numpy())
    with pytest.raises(ValueError, match="12 pixels"):
        analysis.efferent_map(layer, (5, 5))
    with pytest.raises(ValueError, match=r"\(examples, 12\)"):
        analysis.mean_weighted_input(layer, inputs[0])
    with pytest.raises(ValueError, match="SparseLinear"):
        analysis.first_sparse(nn.Sequential(nn.Linear(2, 2)))


def test_convolution_is_the_paper_s_size():
    model = networks.build_network((1, 28, 28), 10, Settings(convolution=20), "l0", 0)
    _, layer = analysis.first_sparse(model)
    assert (layer.in_features, layer.out_features) == (2880, 100) and layer.nnz == round(0.2 * 2880 * 100)
    assert model(torch.rand(3, 784)).shape == (3, 10)
    with pytest.raises(ValueError, match="6 pixels a side"):
        networks.build_network((1, 5, 9), 10, Settings(convolution=2), "l0", 0)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.01, "momentum": 0.5}])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_descent_is_torch_s_sgd(options, schedule):
    settings = replace(SMALL, schedule=schedule, epochs=1, **options)
    loaded = train.load_data(settings, torch.device("cpu"))
    model = networks.build_network(loaded.image_shape, 10, settings, "l0", 0)
    twin = networks.build_network(loaded.image_shape, 10, settings, "l0", 0)
    train.train_epoch(model, train.Descent(model, settings), loaded, settings, 1,
                          torch.Generator().manual_seed(3), lambda n, loss: None)  # fmt: skip
    decay = options.get("weight_decay", 0.0)
    decayed = [p for n, p in twin.named_parameters() if n.endswith("weight")]
    rest = [p for n, p in twin.named_parameters() if not n.endswith("weight")]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": decay}, {"params": rest}], lr=settings.lr,
                                momentum=options.get("momentum", 0.0))  # fmt: skip
    steps = math.ceil(len(loaded.train_targets) / settings.batch)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.randperm(len(loaded.train_targets), generator=torch.Generator().manual_seed(3))
    for rows in order.split(settings.batch):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(twin(loaded.train_inputs[rows] * loaded.scale), loaded.train_targets[rows])
        loss.backward()
        optimizer.step()
        if schedule == "cosine":
            cosine.step()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "l0", "l0-variable"])
def test_matched_networks_start_and_regrow_with_the_weights_of_he(norm):
    # 400 inputs at 25 %: 100 afferents for each neuron, so that weights that act are N(0, 2 / 100)
    settings = replace(SMALL, matched=True, hidden=(40,), epsilon=0.25, s=8.0, zeta=0.5)
    model = networks.build_network((1, 20, 20), 10, settings, norm, 0)
    layer = analysis.first_sparse(model)[1]
    wanted = math.sqrt(2 / 100)
    assert layer.effective_weight().std().item() == pytest.approx(wanted, rel=0.1)
    assert not layer.bias.any() and not model[-1].bias.any()
    factor = 8 / 100 if norm != "none" else 1.0
    (report,) = networks.rewirer(model, None, settings, 0).step()
    row, col = layer.edges()
    new = layer.weight.detach()[torch.isin(col * 40 + row, report.grown[1] * 40 + report.grown[0])]
    assert len(new) == layer.nnz // 2 and new.std().item() * factor == pytest.approx(wanted, rel=0.1)


def test_no_start_is_matched_by_an_excitability_of_0():
    assert replace(SMALL, s=0.0).s == 0
    with pytest.raises(ValueError, match="s must be other than 0 where starts are matched"):
        replace(SMALL, s=0.0, matched=True)
    settings = replace(SMALL, matched=True, hidden=(1,), epsilon=1e-9)  # rounds to no connection
    assert analysis.first_sparse(networks.build_network((1, 4, 4), 10, settings, "l0", 0))[1].nnz == 0


def test_norms_of_the_length_of_v_start_and_regrow_as_ever():
    settings = replace(SMALL, matched=True, hidden=(40,), epsilon=0.25)
    layer = analysis.first_sparse(networks.build_network((1, 20, 20), 10, settings, "weight_norm", 0))[1]
    assert layer.weight.std().item() == pytest.approx(1, rel=0.1)


def test_the_share_that_is_rewired_falls_to_nothing_as_a_cosine(tmp_path):
    settings = replace(SMALL, epochs=4, trials=1, norms=("l0",), zeta=0.4, zeta_schedule="cosine", hidden=(40,))
    model = networks.build_network((1, 20, 20), 10, settings, "l0", 0)
    rewirer = networks.rewirer(model, None, settings, 0)
    nnz = analysis.first_sparse(model)[1].nnz
    replaced = [rewirer.step().layers[0].k for _ in range(4)]
    assert replaced == [round(0.4 * (1 + math.cos(math.pi * step / 4)) / 2 * nnz) for step in (1, 2, 3, 4)]
    (record,) = comparison.run(settings, tmp_path, progress=False)["runs"]
    last = record["epochs"][-1]
    assert last["before"] == last["after"] and record["epochs"][0]["before"] != record["epochs"][0]["after"]


def test_dropout_is_off_when_measured_and_repeats_with_the_seed(tmp_path):
    settings = replace(SMALL, dropout=0.5, trials=1, norms=("l0",))
    runs = [comparison.run(settings, tmp_path / str(i), progress=False)["runs"] for i in range(2)]
    plain = comparison.run(replace(settings, dropout=0.0), tmp_path / "plain", progress=False)["runs"]
    costs = [[e["before"]["train_cost"] for e in r[0]["epochs"]] for r in (*runs, plain)]
    assert costs[0] == costs[1] != costs[2]


def test_train_takes_the_options(tmp_path, capsys):
    options = ["--momentum", "0.9", "--weight-decay", "0.0002", "--dropout", "0.3", "--schedule", "cosine", "--matched"]
    options += ["--activation", "srelu", "--lr", "0.003", "--s", "3", "--epochs", "1", "--trials", "1", "--quiet"]
    assert (
        cli.main(
            ["train", *options, "--hidden", "10", "10", "--convolution", "3", "--batch", "100", "--out", str(tmp_path)]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "momentum 0.9" in text and "cosine" in text and "srelu" in text
    recorded = json.loads((tmp_path / "results.json").read_text())["settings"]
    chosen = {key: recorded[key] for key in ("momentum", "dropout", "convolution", "matched")}
    assert chosen == {"momentum": 0.9, "dropout": 0.3, "convolution": 3, "matched": True}
    assert set(recorded) <= set(asdict(Settings())) | {"device", "threads"}


@pytest.mark.parametrize(
    "option, value",
    [("momentum", 1.0), ("weight_decay", -1.0), ("dropout", 1.0), ("schedule", "step"), ("zeta_schedule", "step"),
     ("convolution", -1),
     ("validation", -1)],
)  # fmt: skip
def test_settings_name_what_is_wrong(option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        Settings(**{option: value})


def test_pictures_of_anyone_s_layers(tmp_path):
    layers = {name: dendnorm.SparseLinear(12, 7, density=0.4, norm=name, seed=3) for name in ("l0", "none")}
    maps = {name: [analysis.efferent_map(layer, (3, 4))] * 2 for name, layer in layers.items()}
    plots.efferent_maps(maps, tmp_path / "maps.png", ["before", "after"], "a heading")
    plots.neurons({name: analysis.snapshot(layer, torch.rand(5, 12)) for name, layer in layers.items()},
                  tmp_path / "neurons.png")  # fmt: skip
    assert all((tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for name in ("maps.png", "neurons.png"))
    with pytest.raises(ValueError, match="as many images"):
        plots.efferent_maps(maps | {"other": []}, tmp_path / "no.png")
    with pytest.raises(ValueError, match="at least one snapshot"):
        plots.neurons({}, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()
