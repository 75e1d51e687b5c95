"""The demonstration: dense, sparse and normalised networks on small data, what is chosen on what, what is written."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dendnorm import SparseLinear
from dendnorm.lab import cli, data, demo
from dendnorm.lab.demo import networks, picture, runner
from dendnorm.lab.settings import Settings
from dendnorm.lab.train import train_network

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

SMALL = {"activation": "relu", "matched": True, "batch": 100, "epochs": 2, "trials": 2}
SIZES = [Settings(hidden=(8,), epsilon=0.5, **SMALL), Settings(hidden=(40, 20), epsilon=0.1, **SMALL)]
GRID = replace(demo.GRIDS["digits"], lr=(1e-4, 0.1, 0.3), epochs=1)
KINDS = list(networks.NETWORKS)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The results, their folder, and of every network that was trained its kind, its data and its learning rate."""
    calls = []

    def watched(record, data, settings, *arguments, **more):
        calls.append((record["norm"], data, settings))
        train_network(record, data, settings, *arguments, **more)

    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "train_network", watched)
        results = demo.run(SIZES, GRID, out, progress=False)
    return results, out, calls


def test_learning_rates_are_chosen_on_held_out_training_images(shown):
    results, _, calls = shown
    whole = data.load("digits")
    searched = [call for call in calls if len(call[1].train_targets) < len(whole.train_targets)]
    assert len(searched) == len(SIZES) * len(KINDS) * len(GRID.lr)
    held = data.hold_out(whole, results["examples"]["validation"])
    for _, used, settings in searched:
        for name in ("train_inputs", "train_targets", "test_inputs", "test_targets"):
            assert torch.equal(getattr(used, name), getattr(held, name)), "none of the test images"
        assert settings.seed not in range(SIZES[0].trials) and settings.epochs == GRID.epochs
    for size in results["sizes"]:
        assert list(size["grid"]) == list(size["chosen"]) == KINDS
        for kind, points in size["grid"].items():
            assert tuple(point["lr"] for point in points) == GRID.lr, "the same for every network"
            best = max(points, key=lambda point: point["validation_accuracy"])
            assert size["chosen"][kind] == best["lr"] > 1e-4
    for kind, used, settings in calls:
        if len(used.train_targets) == len(whole.train_targets):
            (size,) = (s for s in results["sizes"] if s["settings"]["hidden"] == settings.hidden)
            assert settings.lr == size["chosen"][kind]
            assert torch.equal(used.test_inputs, whole.test_inputs)


def test_the_choice_does_not_depend_on_test_images(shown, tmp_path, monkeypatch):
    results, _, _ = shown
    whole = data.load("digits")
    other = replace(whole, test_inputs=255 - whole.test_inputs, test_targets=whole.test_targets.flip(0))
    monkeypatch.setattr(runner, "load_data", lambda settings, device: other)
    again = demo.run([replace(SIZES[1], trials=1, epochs=1)], GRID, tmp_path, progress=False)
    assert again["sizes"][0]["grid"] == results["sizes"][1]["grid"]
    assert again["sizes"][0]["chosen"] == results["sizes"][1]["chosen"]


def test_table_has_the_numbers(shown):
    results, out, _ = shown
    text = (out / "table.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| 64-")]
    for size in results["sizes"]:
        for kind in KINDS:
            values = np.array([r["epochs"][-1]["before"]["test_accuracy"] for r in size["runs"] if r["norm"] == kind])
            assert len(values) == 2
            cells = [size["network"], networks.NETWORKS[kind], f"{size['chosen'][kind]:g}", "2", "2",
                     f"{100 * values.mean():.2f} ± {100 * values.std(ddof=1):.2f} %",
                     f"{size['costs'][kind]['connections']:,}", f"{size['costs'][kind]['multiply_adds']:,}",
                     f"{size['summary'][kind]['seconds']:.3f}"]  # fmt: skip
            assert "| " + " | ".join(cells) + " |" in lines
    for reading in demo.readings(results):
        assert reading in text
    assert len(demo.readings(results)) == len(SIZES)
    assert json.loads((out / "results.json").read_text())["sizes"][0]["runs"] == results["sizes"][0]["runs"]


def test_costs_are_those_of_the_networks(shown):
    results, _, _ = shown
    small, wide = (size["costs"] for size in results["sizes"])
    assert small["dense"] == {"connections": 64 * 8, "multiply_adds": 64 * 8 + 80}
    assert small["none"] == small["l0"] == {"connections": 256, "multiply_adds": 256 + 80}
    assert wide["dense"] == {"connections": 64 * 40 + 40 * 20, "multiply_adds": 64 * 40 + 40 * 20 + 200}
    assert wide["l0"] == {"connections": 336, "multiply_adds": 336 + 200}


def test_picture_shows_what_was_measured(shown):
    results, out, _ = shown
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    figure = picture.picture(results)
    curves, connections, times = figure.axes
    wide = results["sizes"][-1]
    for line, kind in zip(curves.lines, KINDS, strict=True):
        mean = wide["summary"][kind]["before"]["test_accuracy"]["mean"]
        np.testing.assert_allclose(line.get_ydata(), [100 * value for value in mean])
    for axes, cost in ((connections, lambda size, kind: size["costs"][kind]["connections"]),
                       (times, lambda size, kind: size["summary"][kind]["seconds"])):  # fmt: skip
        points = [container.lines[0].get_xydata()[0] for container in axes.containers]
        expected = [(cost(size, kind), 100 * size["summary"][kind]["before"]["test_accuracy"]["mean"][-1])
                    for size in results["sizes"] for kind in KINDS]  # fmt: skip
        np.testing.assert_allclose(points, expected)
    heading = " ".join(figure.get_suptitle().split())
    assert all(" ".join(reading.split()) in heading for reading in demo.readings(results))
    colours = [line.get_color() for line in curves.lines]
    assert len(set(colours)) == 3 and colours[1:] == [picture.colours(KINDS)[kind] for kind in KINDS[1:]]


def test_networks_start_at_one_scale():
    settings = Settings(hidden=(400, 300), epsilon=0.1, **SMALL)
    built = {kind: networks.build_network((1, 20, 20), 10, settings, kind, 3) for kind in KINDS}
    for kind, model in built.items():
        inputs = (400, 400, 300)
        layers = [module for module in model if isinstance(module, nn.Linear | SparseLinear)]
        assert len(layers) == 3 and isinstance(layers[-1], nn.Linear)
        for layer, count in zip(layers, inputs, strict=True):
            share = layer.density if isinstance(layer, SparseLinear) else 1.0
            weights = layer.effective_weight() if isinstance(layer, SparseLinear) else layer.weight
            assert weights.std().item() == pytest.approx((share * count) ** -0.5, rel=0.1), kind
            assert not layer.bias.any()
    for sparse, normalised in zip(built["none"], built["l0"], strict=True):
        if isinstance(sparse, SparseLinear):
            assert torch.equal(sparse.row_indices, normalised.row_indices) and torch.equal(
                sparse.weight, normalised.weight
            )


@pytest.mark.parametrize("dense, sparse, told", [(4.0, 1.0, "4.0 times as fast"), (1.0, 1.05, "nothing is won"),
                                                 (1.0, 2.0, "a loss")])  # fmt: skip
def test_says_where_it_loses(shown, dense, sparse, told):
    results = json.loads(json.dumps(shown[0]))
    for kind in KINDS:
        results["sizes"][0]["summary"][kind]["seconds"] = dense if kind == "dense" else sparse
    reading = demo.readings(results)[0]
    assert told in reading and f"{sparse:.3f} s against {dense:.3f} s" in reading


@pytest.mark.parametrize("normalised, told", [(0.9, "10.00 points ahead of"), (0.7, "10.00 points behind"),
                                              (0.801, "not to be told from")])  # fmt: skip
def test_says_only_what_the_trials_show(shown, normalised, told):
    results = json.loads(json.dumps(shown[0]))
    for kind, mean in zip(KINDS, (0.8, 0.8, normalised), strict=True):
        results["sizes"][0]["summary"][kind]["before"]["test_accuracy"] = {"mean": [mean], "std": [0.01]}
    assert f"{told} dense" in demo.readings(results)[0].replace("(", "")


def test_the_command_runs_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "plan", lambda **given: ([replace(SIZES[0], **given)], GRID))
    command = ["demo", "--out", str(tmp_path), "--trials", "1", "--epochs", "1", "--quiet"]
    assert cli.main(command) == 0
    assert "64-8-10" in capsys.readouterr().out
    assert cli.main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite", "--seed", "5"]) == 0
    assert {run["seed"] for run in json.loads((tmp_path / "results.json").read_text())["sizes"][0]["runs"]} == {5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "results.json", "table.md"]


@pytest.mark.parametrize("stop", [1, 11])  # in the search, and in the trials
def test_an_interruption_keeps_what_is_done(tmp_path, monkeypatch, capsys, stop):
    calls = []

    def train(*arguments, **more):
        calls.append(arguments)
        if len(calls) == stop:
            raise KeyboardInterrupt
        train_network(*arguments, **more)

    monkeypatch.setattr(runner, "train_network", train)
    monkeypatch.setattr(demo, "plan", lambda **given: (SIZES[:1], GRID))
    assert cli.main(["demo", "--out", str(tmp_path), "--quiet"]) == 130
    assert "Interrupted" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").exists() == (stop > 9)


def test_a_failing_network_is_kept_with_its_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "plan", lambda **given: (SIZES[:1], replace(GRID, lr=(1e30,))))
    assert cli.main(["demo", "--out", str(tmp_path), "--quiet"]) == 1
    text = (tmp_path / "table.md").read_text()
    assert "smaller learning rate" in text and "failed" in text
    assert not (tmp_path / "curves.png").exists()


def test_the_plan_takes_settings_and_knows_the_data():
    sizes, grid = demo.plan(epochs=3, seed=4)
    assert [size.hidden for size in sizes] == [(100,), (1000, 1000)]
    assert all(size.epochs == 3 and size.seed == 4 and size.data == "digits" and size.matched for size in sizes)
    other, more = demo.plan(data="mnist", root="x")
    assert other[0].batch > sizes[0].batch and more.validation > grid.validation and more.lr == grid.lr
