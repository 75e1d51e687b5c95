"""The command that asks what sparsity is worth: equal starts and searches, statistics, what it draws and says."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from dendnorm import SparseLinear, analysis
from dendnorm.lab import asked, cli, data, degrees, equal, networks, results, study, train, trials
from dendnorm.lab.movement import Movement
from dendnorm.lab.search import Grid
from dendnorm.lab.settings import Settings
from dendnorm.lab.study import clock, mechanism, pictures, tables
from dendnorm.lab.study.collect import compare, measured

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
stats = pytest.importorskip("scipy.stats")

SMALL = Settings(start="equal", hidden=(12,), epsilon=0.25, activation="relu", epochs=3, trials=3, batch=100, lr=0.3,
                 regrowth="zero", sample=50)  # fmt: skip
ONE, OTHER, NARROW = (
    study.Arm("one", "none"),
    study.Arm("other", "l0"),
    study.Arm("narrow", "dense-narrow", {"zeta": 0.0}),
)
GRID = Grid(lr=(1e-4, 0.3), s=(25.0,), epochs=1, validation=300, also={"scale": (0.5, 1.0)})
PLAN = study.Study("a title", "a question?", "differences", (study.Panel("digits, 25%", SMALL),), (ONE, OTHER, NARROW),
                   GRID, (("other", "one"), ("one", "narrow")))  # fmt: skip


# ---- statistics


@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_paired_differences_are_scipy_s(n):
    generator = np.random.default_rng(n)
    first, second = generator.normal(1, 2, n), generator.normal(0, 1, n)
    mine, theirs = study.paired(first, second), stats.ttest_rel(first, second)
    interval = theirs.confidence_interval(0.95)
    assert mine.n == n and mine.mean == pytest.approx((first - second).mean())
    assert (mine.low, mine.high, mine.p) == pytest.approx((interval.low, interval.high, theirs.pvalue), rel=1e-9)
    wider = study.paired(first, second, confidence=0.99)
    assert wider.low < mine.low and wider.p == mine.p


def test_too_few_pairs_tell_nothing_and_equal_ones_all():
    assert study.paired([], []).n == 0 and math.isnan(study.paired([], []).mean)
    single = study.paired([2.0], [1.0])
    assert single.mean == 1 and math.isnan(single.p) and math.isnan(single.low)
    assert study.paired([1.0, 2.0], [1.0, 2.0]).p == 1
    same = study.paired([2.0, 3.0], [1.0, 2.0])
    assert (same.low, same.high, same.p) == (1, 1, 0)
    with pytest.raises(ValueError, match="zip"):
        study.paired([1.0], [1.0, 2.0])


def test_interval_holds_what_it_says_in_19_of_20_cases():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        found = study.paired(generator.normal(0.3, 1, 6), generator.normal(0, 1, 6))
        held += found.low <= 0.3 <= found.high
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


def test_holm_is_its_definition():
    assert study.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert study.holm([0.9, 0.8]) == [1.0, 1.0] and study.holm([]) == []
    with_gap = study.holm([0.01, math.nan, 0.04])
    assert with_gap[0] == pytest.approx(0.02) and math.isnan(with_gap[1]) and with_gap[2] == pytest.approx(0.04)
    generator = np.random.default_rng(1)
    p = generator.uniform(0, 0.3, 12)
    for level in (0.01, 0.05, 0.2):  # rejected one after the other, until one is not
        order, rejected = np.argsort(p), set()
        for rank, index in enumerate(order):
            if p[index] > level / (len(p) - rank):
                break
            rejected.add(int(index))
        assert {i for i, value in enumerate(study.holm(p)) if value <= level} == rejected


# ---- equal starts


@pytest.mark.parametrize("kind", ["l0", "l0-variable", "l0-mean", "weight_norm", "lp-variable:1"])
@pytest.mark.parametrize("shape", list(degrees.DEGREES))
def test_every_kind_begins_as_the_same_function(kind, shape):
    settings = replace(SMALL, hidden=(40, 30), degrees=shape, scale=0.7)
    x = torch.rand(9, 64)
    control = networks.build_network((1, 8, 8), 10, settings, "none", 5)
    model = networks.build_network((1, 8, 8), 10, settings, kind, 5)
    torch.testing.assert_close(model(x), control(x))
    assert (networks.build_network((1, 8, 8), 10, settings, kind, 6)(x) - control(x)).abs().max() > 0.1


def test_a_first_step_is_that_of_equation_2():
    """A value of a neuron with n_i inputs goes (s / n_i) times as far as without a norm, and s begins at the mean n."""
    x, y = torch.rand(20, 64), torch.arange(20) % 10
    steps = {}
    for kind in ("none", "l0", "l0-mean"):
        model = networks.build_network((1, 8, 8), 10, SMALL, kind, 0)
        layer = analysis.first_sparse(model)[1]
        before = layer.weight.detach().clone()
        train.Descent(model, SMALL).step(torch.nn.functional.cross_entropy(model(x), y), 0.1)
        steps[kind] = layer.weight.detach() - before
    degree = layer.in_degrees()
    assert degree.unique().numel() > 3
    torch.testing.assert_close(steps["l0-mean"], steps["none"], atol=1e-7, rtol=1e-3)
    factor = (degree.sum() / len(degree) / degree)[layer.edges()[0]]
    torch.testing.assert_close(steps["l0"], steps["none"] * factor, atol=1e-7, rtol=1e-3)


def test_layer_norm_and_scale_and_dense():
    settings = replace(SMALL, hidden=(300,), scale=2.0)
    sparse = networks.build_network((1, 20, 20), 10, settings, "layer_norm", 0)
    assert isinstance(sparse[1], torch.nn.LayerNorm) and sparse[0].norm.name == "none"
    assert sparse[0].effective_weight().std().item() == pytest.approx(2 * math.sqrt(2 / 100), rel=0.05)
    dense = networks.build_network((1, 20, 20), 10, settings, "dense", 0)
    assert dense[0].weight.std().item() == pytest.approx(2 * math.sqrt(2 / 400), rel=0.05)
    assert not any(isinstance(module, SparseLinear) for module in dense)
    with pytest.raises(ValueError, match="convolution must be 0"):
        networks.build_network((1, 20, 20), 10, replace(SMALL, convolution=3), "l0", 0)
    with pytest.raises(ValueError, match="scale and degrees"):
        Settings(scale=2.0)


@pytest.mark.parametrize(("hidden", "density"), [((100,), 0.05), ((200, 100), 0.1), ((50,), 1.0), ((40,), 1e-4)])
def test_a_narrow_network_has_nearest_to_as_many_parameters(hidden, density):
    settings = replace(SMALL, hidden=hidden, epsilon=density)

    def parameters(kind):
        model = networks.build_network((1, 28, 28), 10, settings, kind, 0)
        return sum(parameter.numel() for parameter in model.parameters())

    narrow, wanted = parameters("dense-narrow"), parameters("none")
    assert abs(narrow - wanted) <= 784 + 11 + max(hidden)
    if density == 1.0:
        assert equal.narrowed(784, hidden, 10, density) == hidden


@pytest.mark.parametrize("kind", ["lognormal", "power-law"])
def test_degrees_vary_and_their_total_does_not(kind):
    pattern = degrees.pattern(kind, 300, 100, 0.05, 3)
    counts = pattern.crow_indices.diff()
    assert pattern.nnz == 1500 and counts.min() >= 1 and counts.max() <= 300
    assert counts.max() > 5 * counts.median()
    again = degrees.pattern(kind, 300, 100, 0.05, 3)
    assert torch.equal(again.col_indices, pattern.col_indices)
    assert not torch.equal(degrees.pattern(kind, 300, 100, 0.05, 4).crow_indices, pattern.crow_indices)


@pytest.mark.parametrize(("total", "most"), [(7, 5), (20, 5), (3, 9), (12, 12), (0, 3)])
def test_shares_are_whole_and_sum_to_the_total(total, most):
    shares = torch.tensor([5.0, 1.0, 0.1, 3.0], dtype=torch.float64)
    counts = degrees.shared_out(shares, total, most)
    assert counts.sum() == total and counts.min() >= (1 if total >= 4 else 0) and counts.max() <= most
    assert (counts[shares.argsort()].diff() >= 0).all()


# ---- what is rewired, and what is recorded


@pytest.mark.parametrize("start", ["zero", "normal", "matched"])
def test_new_connections_have_the_values_that_are_asked_for(start):
    settings = replace(SMALL, hidden=(40,), epsilon=0.5, zeta=0.5, regrowth=start)
    model = networks.build_network((1, 20, 20), 10, settings, "none", 0)
    layer = model[0]
    spread = layer.weight.std().item()
    (report,) = networks.rewirer(model, None, settings, 0).step()
    row, col = layer.edges()
    new = layer.weight.detach()[torch.isin(col * 40 + row, report.grown[1] * 40 + report.grown[0])]
    wanted = {"zero": 0.0, "normal": 1.0, "matched": spread}[start]
    assert new.std().item() == pytest.approx(wanted, rel=0.1)


def test_growing_by_gradient_observes_the_last_minibatch():
    settings = replace(SMALL, grow="gradient", epochs=1, zeta=0.3)
    loaded = train.load_data(settings, torch.device("cpu"))
    record = results.new_record(settings, "none", 0)
    train.train_network(record, loaded, settings, torch.device("cpu"), lambda done, loss: None)
    random = results.new_record(settings, "none", 0)
    plain = replace(settings, grow="random")
    train.train_network(random, loaded, plain, torch.device("cpu"), lambda done, loss: None)
    assert record["epochs"][0]["before"] == random["epochs"][0]["before"]
    assert record["epochs"][0]["after"] == pytest.approx(random["epochs"][0]["after"], abs=0.1)


def test_nothing_is_rewired_and_the_cost_is_of_a_sample():
    settings = replace(SMALL, zeta=0.0, epochs=1)
    loaded = train.load_data(settings, torch.device("cpu"))
    record = results.new_record(settings, "l0", 0)
    train.train_network(record, loaded, settings, torch.device("cpu"), lambda done, loss: None)
    (entry,) = record["epochs"]
    assert entry["before"] == entry["after"]
    whole = results.new_record(settings, "l0", 0)
    train.train_network(whole, loaded, replace(settings, sample=0), torch.device("cpu"), lambda done, loss: None)
    assert whole["epochs"][0]["before"]["test_cost"] == entry["before"]["test_cost"]
    assert whole["epochs"][0]["before"]["train_cost"] != entry["before"]["train_cost"]


def test_movement_is_steps_and_flips_of_each_neuron():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    layer = SparseLinear(pattern=degrees.Pattern.from_mask(mask), norm="none", seed=0)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        moved = Movement(layer)
        layer.weight[layer.edges()[0] == 0] = -1.0
        layer.weight[layer.edges()[0] == 2] = 1.0
    ended = moved.ended()
    assert ended["afferents"] == [2, 0, 3]
    assert ended["step"] == [1.5, None, 0.5] and ended["flips"] == [1.0, None, 0.0]


def test_hubs_and_poorly_connected_neurons_are_the_tenths_at_the_ends():
    moves = {
        "epoch": 1,
        "afferents": list(range(21)),
        "step": [None, *map(float, range(1, 21))],
        "flips": [None, *[0.5] * 20],
    }
    found = mechanism.contrast({"moves": [moves]})
    assert found["poor"] == {"afferents": 1.5, "step": 1.5, "flips": 0.5}
    assert found["hubs"] == {"afferents": 19.5, "step": 19.5, "flips": 0.5}
    assert mechanism.contrast({}) is None
    assert mechanism.by_degree([{"moves": [moves]}], "step")[0] == list(map(float, range(1, 21)))


# ---- the catalogue


@pytest.mark.parametrize("name", list(study.STUDIES))
def test_studies_are_whole(name):
    one = study.STUDIES[name]
    arms = [arm.name for arm in one.arms]
    assert len(set(arms)) == len(arms) and {name for pair in one.pairs for name in pair} <= set(arms)
    assert len({panel.title for panel in one.panels}) == len(one.panels) and one.layout in pictures.PICTURES
    assert one.grid.validation == 10_000 and one.grid.seed > 100 and len(one.grid.lr) >= 4
    for panel in one.panels:
        assert panel.settings.start == "equal" and panel.settings.trials >= 10
        assert panel.settings.data in data.NAMES and study.LAST in one.measures
    for arm, panel in itertools.product(one.arms, one.panels):
        settings = replace(panel.settings, hidden=(20,), **arm.changes)
        assert networks.build_network((1, 28, 28), 10, settings, arm.kind, 0)(torch.rand(2, 784)).shape == (2, 10)


def test_studies_are_those_of_the_questions():
    scale, fan_in, dense = (study.STUDIES[name] for name in ("scale", "fan-in", "dense"))
    assert [arm.kind for arm in scale.arms] == ["none", "l0", "l0-mean", "weight_norm", "layer_norm"]
    assert {(p.settings.data, p.settings.epsilon) for p in scale.panels} == set(
        itertools.product(("mnist", "fashion-mnist"), (0.2, 0.05, 0.02)))  # fmt: skip
    assert scale.grid.also["regrowth"] == ("zero", "matched", "normal")
    assert {p.settings.degrees for p in fan_in.panels} == set(degrees.DEGREES)
    assert all(p.settings.moves and p.settings.zeta == 0 for p in fan_in.panels)
    assert {p.settings.epsilon for p in dense.panels} == {0.3, 0.1, 0.03, 0.01}
    assert study.STUDIES["extreme"].panels[0].settings.epsilon == 0.001


# ---- choice, comparison, files


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    panels = study.collect(PLAN, PLAN.panels, folder, 2, False)
    return panels, folder


def test_the_search_is_equal_and_on_held_out_training_images(collected):
    (panel,), folder = collected
    for arm in panel["arms"].values():
        points = [(point["lr"], point["scale"]) for point in arm["grid"]]
        assert points == list(itertools.product(GRID.lr, GRID.also["scale"]))
        best = max(arm["grid"], key=lambda point: point["validation_accuracy"])
        assert arm["chosen"] == {"lr": best["lr"], "scale": best["scale"]} and arm["chosen"]["lr"] == 0.3
        assert arm["at_an_end"] == ["lr", "scale"], "two values are both ends"
        assert [run["seed"] for run in arm["runs"]] == [0, 1, 2]
    identities = [json.loads(path.read_text())["identity"] for path in folder.glob("*.json")]
    assert {i["seed"] for i in identities if i["validation"]} == {GRID.seed}
    assert {i["validation"] for i in identities} == {0, 300}


def test_all_can_be_given_the_point_that_is_best_for_their_mean(collected):
    (own,), folder = collected
    (panel,) = study.collect(replace(PLAN, same=True), PLAN.panels, folder, 1, False)
    arms = panel["arms"].values()
    means = [np.mean([arm["grid"][index]["validation_accuracy"] for arm in arms]) for index in range(4)]
    best = own["arms"]["one"]["grid"][int(np.argmax(means))]
    assert all(arm["chosen"] == {"lr": best["lr"], "scale": best["scale"]} for arm in arms)


def test_comparisons_are_of_the_same_seeds(collected):
    panels, _ = collected
    rows = compare(PLAN, panels)
    assert [(row["arm"], row["against"], row["measure"]) for row in rows] == [
        (one, other, measure) for measure in PLAN.measures for one, other in PLAN.pairs]  # fmt: skip
    arms = panels[0]["arms"]
    last = next(row for row in rows if row["measure"] == study.LAST)
    values = [[100 * run["before"][-1] for run in arms[name]["runs"]] for name in ("other", "one")]
    assert last["p"] == pytest.approx(stats.ttest_rel(*values).pvalue) and last["n"] == 3
    assert last["mean"] == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert [row["corrected"] for row in rows] == study.holm([row["p"] for row in rows])
    run = arms["one"]["runs"][0]
    assert measured(run, study.AREA) == pytest.approx(100 * np.mean(run["before"]))
    assert measured(run, 1) == 100 * run["before"][0]


def test_a_run_that_failed_takes_its_pair_out(collected):
    panels = json.loads(json.dumps(collected[0]))
    panels[0]["arms"]["one"]["runs"][1] |= {"failed": "the cost became nan", "before": [], "after": []}
    rows = compare(PLAN, panels)
    assert {row["n"] for row in rows} == {2}
    text = tables.table(whole(panels, rows))
    assert "Failed: digits, 25%, one, seed 1: the cost became nan." in text


def whole(panels, rows, **more):
    told = {
        "name": "scale",
        "title": "a title",
        "question": "a question?",
        "quick": False,
        "same": False,
        "missing": [],
    }
    return told | {"missing": [], "panels": panels, "comparisons": rows} | more


def test_table_and_csv_have_the_numbers(collected, tmp_path):
    panels, _ = collected
    rows = compare(PLAN, panels)
    told = whole(panels, rows, missing=["CIFAR-10, 5%"])
    text = tables.table(told)
    accuracy = [100 * run["before"][-1] for run in panels[0]["arms"]["other"]["runs"]]
    assert f"{np.mean(accuracy):.2f} ± {np.std(accuracy, ddof=1):.2f}" in text and "0.3 (end)" in text
    assert f"corrected for {len(rows)} comparisons" in text and "Not measured: CIFAR-10, 5%" in text
    costs = panels[0]["arms"]["one"]["costs"]
    assert costs == {"connections": 192 + 120, "multiply_adds": 192 + 120, "parameters": 192 + 12 + 130}
    read = list(csv.DictReader(tables.comparisons_csv(told).splitlines()))
    assert [float(row["mean"]) for row in read] == [row["mean"] for row in rows]
    assert len(study.reading(told)) == len(PLAN.pairs)


def made_row(mean, corrected):
    return {"panel": "a", "measure": study.LAST, "arm": "other", "against": "one", "n": 3, "mean": mean, "p": corrected,
            "low": mean - 1, "high": mean + 1, "corrected": corrected}  # fmt: skip


def test_a_reading_counts_only_what_is_shown_after_correction():
    rows = [made_row(2.0, 0.01), made_row(-2.0, 0.01), made_row(-3.0, 0.2), made_row(1.0, math.nan)]
    (line,) = study.reading({"comparisons": rows})
    assert "ahead in 1, behind in 1 and not to be told apart in 2 of 4" in line and "-3.00 to +2.00" in line


def test_picture_of_differences_shows_intervals(collected):
    panels, _ = collected
    rows = compare(PLAN, panels)
    figure = pictures.differences(whole(panels, rows))
    assert [axes.get_title() for axes in figure.axes] == ["epoch 2", study.LAST, study.AREA]
    for axes, measure in zip(figure.axes, PLAN.measures, strict=True):
        drawn = [container.lines[0].get_xdata()[0] for container in axes.containers]
        assert drawn == [row["mean"] for row in rows if row["measure"] == measure]
        for container, row in zip(axes.containers, [r for r in rows if r["measure"] == measure], strict=True):
            (segment,) = container.lines[2][0].get_segments()
            np.testing.assert_allclose(segment[:, 0], [row["low"], row["high"]])
            hollow = container.lines[0].get_markerfacecolor() == "white"
            assert hollow == (row["corrected"] >= tables.SHOWN)


def test_picture_of_costs_shows_every_arm(collected):
    panels, _ = collected
    seconds = {panels[0]["title"]: {name: {"median": 0.001 * n} for n, name in enumerate(panels[0]["arms"], 1)}}
    figure = pictures.pareto(whole(panels, [], times={"seconds": seconds}))
    for axes, costs in zip(figure.axes, ("connections", "multiply_adds", None), strict=True):
        points = [container.lines[0].get_xydata()[0] for container in axes.containers]
        arms = panels[0]["arms"].items()
        wanted = [(arm["costs"][costs] if costs else 1000 * seconds[panels[0]["title"]][name]["median"],
                   np.mean([100 * run["before"][-1] for run in arm["runs"]])) for name, arm in arms]  # fmt: skip
        np.testing.assert_allclose(points, wanted)


def test_times_are_measured_in_turns_and_kept(collected, tmp_path):
    panels, _ = collected
    path = tmp_path / "times.json"
    times = clock.measure(PLAN, PLAN.panels, panels, path, steps=2, turns=3)
    assert set(times["seconds"]["digits, 25%"]) == {"one", "other", "narrow"} and times["machine"]
    for taken in times["seconds"]["digits, 25%"].values():
        assert 0 < taken["low"] <= taken["median"] <= taken["high"]
    assert clock.measure(PLAN, PLAN.panels, panels, path, steps=2, turns=3) == times
    path.write_text("{")
    assert clock.measure(PLAN, PLAN.panels, panels, path, steps=2, turns=1)["turns"] == 1


def test_a_file_answers_a_request_that_it_holds(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "x", "panels": [{"title": "t", "runs": [1]}], "more": 1}))
    assert asked.answers(path, {"name": "x", "panels": [{"title": "t"}]})
    for other in ({"name": "y"}, {"panels": []}, {"panels": [{"title": "u"}]}, {"none": None}, {"name": ["x"]}):
        assert not asked.answers(path, other)
    path.write_text("{")
    assert not asked.answers(path, {}) and not asked.answers(tmp_path / "none.json", {})


# ---- the command


def test_list_names_every_study(capsys):
    assert cli.main(["study", "--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(study.STUDIES) and listed[:4] == ["scale", "fan-in", "dense", "extreme"]


@pytest.mark.parametrize(("name", "density"), [("scale", "0.05"), ("fan-in", "0.05"), ("dense", "0.1")])
def test_quick_run_on_bundled_digits_writes_all_files(tmp_path, capsys, name, density):
    arguments = ["study", name, "--quick", "--quiet", "--density", density, "--trials", "2", "--epochs", "1"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    held = json.loads((tmp_path / f"{name}.json").read_text())
    assert held["quick"] and {panel["settings"]["data"] for panel in held["panels"]} == {"digits"}
    assert (tmp_path / f"{name}.md").read_text() in out and "Quick" in out
    assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / f"{name}.csv").read_text().startswith("panel,measure,arm,against")
    assert (tmp_path / f"{name}-times.json").exists() == study.STUDIES[name].timed
    assert "times" not in held and str(tmp_path) not in json.dumps(held)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "name must be one of scale, fan-in, dense, extreme, got 'nothing'"),
        ([], "a NAME is needed, or --list"),
        (["scale"], "data 'mnist' needs root"),
        (["scale", "--root", "/nowhere"], "root must be a folder"),
        (["scale", "--data", "cifar10", "--root", "."], "data must be among those of scale (fashion-mnist, mnist)"),
        (
            ["dense", "--density", "0.5", "--quick"],
            "density must be among those of dense (0.01, 0.03, 0.1, 0.3), got 0.5",
        ),
        (["scale", "--quick", "--workers", "0"], "workers must be at least 1, got 0"),
        (["scale", "--quick", "--trials", "0"], "trials must be at least 1, got 0"),
        (["scale", "--quick", "--epochs", "0"], "epochs must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, capsys, arguments, message):
    assert cli.main(["study", *arguments, "--quiet", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and "Traceback" not in error
    assert not list(tmp_path.glob("out/*.json"))


def test_what_one_trial_cannot_tell_is_null(tmp_path):
    study.run("scale", tmp_path, densities=[0.05], trials=1, epochs=1, quick=True, workers=1, progress=False)
    text = (tmp_path / "scale.json").read_text()
    assert "NaN" not in text and all(row["p"] is None for row in json.loads(text)["comparisons"])
    assert "| - | - |" in (tmp_path / "scale.md").read_text()


def test_results_of_another_request_are_not_overwritten_unasked(tmp_path, capsys):
    arguments = ["study", "fan-in", "--quick", "--quiet", "--trials", "1", "--epochs", "1", "--out", str(tmp_path)]
    (tmp_path / "fan-in.json").write_text("held")
    assert cli.main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "fan-in.json").read_text() == "held"


def test_killed_run_goes_on_to_the_same_file(tmp_path):
    def start(out):
        command = [sys.executable, "-m", "dendnorm", "study", "scale", "--quick", "--quiet", "--density", "0.05"]
        command += ["--workers", "1", "--out", str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ.copy())

    broken = tmp_path / "broken"
    process = start(broken)
    deadline = time.monotonic() + 300
    while not list(broken.glob("trials/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in broken.glob("trials/*.json")}
    assert kept and not (broken / "scale.json").exists()
    again = start(broken)
    assert again.wait(timeout=300) == 0, again.stderr.read().decode()
    uninterrupted = start(tmp_path / "whole")
    assert uninterrupted.wait(timeout=300) == 0
    assert (broken / "scale.json").read_bytes() == (tmp_path / "whole" / "scale.json").read_bytes()
    for name, written in kept.items():
        assert (broken / "trials" / name).stat().st_mtime_ns == written, "a finished trial was trained again"


def test_results_do_not_depend_on_the_number_of_processes(collected, tmp_path):
    panels, _ = collected
    assert study.collect(PLAN, PLAN.panels, tmp_path, 1, False) == panels
    assert trials.Job(SMALL, "l0", 0).name != trials.Job(replace(SMALL, scale=0.5), "l0", 0).name
