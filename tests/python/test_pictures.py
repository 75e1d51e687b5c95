"""What pictures draw: the numbers in their lines, what the legend says of them, units, and that nothing is cut off."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dendnorm
from dendnorm import analysis, plots
from dendnorm.lab import results as lab_results
from dendnorm.lab.paper import EXPERIMENTS

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex  # noqa: E402

from dendnorm.analysis import style  # noqa: E402
from dendnorm.lab import curves  # noqa: E402
from dendnorm.lab.bench import picture  # noqa: E402
from dendnorm.lab.paper import figures  # noqa: E402

MEANT = {"before": "-", "after": "--"}  # written out: a table that is swapped must not agree with itself


def assert_whole(figure):
    """Every text, legend and panel lies within the figure."""
    figure.draw_without_rendering()
    for part in [*figure.axes, *figure.legends, *figure.texts]:  # the heading is one of the texts
        box = part.get_tightbbox()
        named = getattr(part, "get_text", lambda part=part: repr(part))()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{named}: {box} is not within {figure.bbox}"


def legend_of(figure):
    """The handles of a figure's legend, by label."""
    (legend,) = figure.legends
    return {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}


def line_with(axes, values):
    """The one line that has these values."""
    found = [line for line in axes.get_lines() if len(line.get_ydata()) == len(values)
             and np.allclose(line.get_ydata(), values)]  # fmt: skip
    assert len(found) == 1, f"{len(found)} lines have the values {values}"
    return found[0]


def measured(panel, trials=3):
    """A panel of the paper with made numbers, all different."""
    generator = np.random.default_rng(0)
    runs = []
    for trial in range(trials):
        for norm in panel.settings.norms:
            record = {"norm": norm, "label": lab_results.label(norm), "trial": trial, "complete": True}
            record["epochs"] = [
                {"epoch": epoch + 1} | {
                    phase: {"train_cost": 2 / (1 + epoch) + generator.random(), "test_cost": 3 + generator.random(),
                            "test_accuracy": 0.6 + 0.3 * generator.random()}
                    for phase in MEANT}
                for epoch in range(panel.settings.epochs)]  # fmt: skip
            if panel.settings.inspect:
                record["inside"] = [
                    {"epoch": epoch, "efferents": generator.integers(0, 30, 784).tolist(),
                     "afferents": generator.integers(100, 200, 100).tolist(),
                     "weights": generator.normal(size=900).tolist(),
                     "weighted_input": generator.normal(size=100).tolist()}
                    for epoch in panel.settings.inspect]  # fmt: skip
            runs.append(record)
    result = {"title": panel.title, "settings": panel.settings.recorded(), "published": panel.published, "runs": runs}
    return result | {"summary": lab_results.summarise(result)}


def drawn(name, quick=False):
    experiment = EXPERIMENTS[name]
    results = {"name": name, "title": experiment.title, "claim": experiment.claim, "quick": quick,
               "panels": [measured(panel) for panel in experiment.panels]}  # fmt: skip
    return results, figures.FIGURES[experiment.layout](results)


def check_curves(cost, accuracy, summary, legend):
    """Two panels show a summary as the legend and the labels of the axes say."""
    assert "cost" in cost.get_ylabel() and "accuracy" in accuracy.get_ylabel() and "%" in accuracy.get_ylabel()
    for entry in summary.values():
        for phase, meant in MEANT.items():
            for axes, quantity, factor in ((cost, "train_cost", 1), (accuracy, "test_accuracy", 100)):
                line = line_with(axes, factor * np.array(entry[phase][quantity]["mean"]))
                assert line.get_linestyle() == meant
                assert line.get_linestyle() == legend[f"{phase} rewiring"].get_linestyle()
                assert to_hex(line.get_color()) == to_hex(legend[entry["label"]].get_color())
                assert list(line.get_xdata()) == entry["epochs"]
                (shade,) = [s for s in axes.collections if to_hex(s.get_facecolor()[0]) == to_hex(line.get_color())
                            and np.allclose(extent(s), factor * extremes(entry[phase][quantity]))]  # fmt: skip
                assert shade is not None


def extent(shade):
    points = shade.get_paths()[0].vertices[:, 1]
    return [points.min(), points.max()]


def extremes(values):
    mean, spread = np.array(values["mean"]), np.array(values["std"])
    return np.array([(mean - spread).min(), (mean + spread).max()])


def test_curves_say_what_they_show():
    panel = measured(EXPERIMENTS["1D"].panels[0])
    figure = curves.curves({"interrupted": True}, panel["summary"], "fashion-mnist, 784-30-10, and a long title " * 4)
    check_curves(*figure.axes, panel["summary"], legend_of(figure))
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "epoch"]
    assert "interrupted" in figure.get_suptitle() and "mean of 3 trials" in figure.get_suptitle()
    assert_whole(figure)


@pytest.mark.parametrize("name", ["1D", "3C", "3E", "3F", "table1"])
def test_learning_figures_say_what_they_show(name):
    results, figure = drawn(name, quick=name == "3E")
    count = len(results["panels"])
    for column, panel in enumerate(results["panels"]):
        cost, accuracy = figure.axes[column], figure.axes[count + column]
        if column == 0:
            check_curves(cost, accuracy, panel["summary"], legend_of(figure))
        for norm, published in panel["published"].items():
            line = line_with(accuracy, [published, published])
            assert line.get_linestyle() == ":" and to_hex(line.get_color()) == style.NORM_COLOURS[norm]
        assert accuracy.get_xlabel() == "epoch" and cost.get_title().startswith(panel["title"].split(",")[0])
    assert ("published in the paper" in legend_of(figure)) == any(panel["published"] for panel in results["panels"])
    assert ("QUICK" in figure.get_suptitle()) == results["quick"]
    assert_whole(figure)


def test_orders_are_drawn_apart():
    results, figure = drawn("3G")
    summary = results["panels"][0]["summary"]
    for row, epoch in enumerate((1, 5, 10, 20)):
        for column, phase in enumerate(MEANT):
            axes = figure.axes[2 * row + column]
            assert axes.get_title() == f"epoch {epoch}, {phase} rewiring"
            places, markers = [], set()
            for kind in ("", "-variable"):
                names = [f"l0{kind}", *(f"lp{kind}:{p}" for p in range(1, 6))]
                means = [100 * summary[name][phase]["test_accuracy"]["mean"][epoch - 1] for name in names]
                line = line_with(axes, means)
                np.testing.assert_allclose(line.get_xdata(orig=False), range(6), atol=0.2)
                assert to_hex(line.get_color()) == style.NORM_COLOURS[f"l0{kind}"]
                places.append(line.get_xdata(orig=False))
                markers.add(line.get_marker())
            assert len(markers) == 2 and np.all(np.abs(places[0] - places[1]) > 0.05)
    assert figure.axes[0].get_ylabel() == "test accuracy (%)" and figure.axes[-1].get_xlabel().startswith("p")
    assert_whole(figure)


def test_maps_show_the_mean_over_trials():
    results, figure = drawn("2A")
    panel = results["panels"][0]
    shown = [axes for axes in figure.axes if axes.images]
    looks = len(panel["settings"]["inspect"])
    for row, norm in enumerate(("none", "l0")):
        records = [record for record in panel["runs"] if record["norm"] == norm]
        assert shown[row * looks].get_ylabel() == lab_results.label(norm)
        for column in range(looks):
            (image,) = shown[row * looks + column].images
            want = np.mean([record["inside"][column]["efferents"] for record in records], 0).reshape(28, 28)
            np.testing.assert_allclose(image.get_array(), want)
            assert to_hex(image.get_cmap()(1.0)) == style.NORM_COLOURS[norm]
            assert image.get_clim() == shown[0].images[0].get_clim()
    assert [axes.get_title() for axes in shown[:looks]] == ["epoch 0", "epoch 1", "epoch 5", "epoch 10"]
    assert_whole(figure)


def test_neurons_are_counted():
    _, figure = drawn("2B")
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == ["control", "dendritic (L0)"]
    faces = [to_hex(handle.get_facecolor()) for handle in legend.legend_handles]
    assert faces == [style.NORM_COLOURS["none"], style.NORM_COLOURS["l0"]]
    for axes in figure.axes:
        for container in axes.containers:  # each is a density
            assert math.isclose(sum(bar.get_height() * bar.get_width() for bar in container), 1, rel_tol=1e-6)
    assert [axes.get_xlabel() for axes in figure.axes] == ["afferents of a neuron", "weight", "mean weighted input"]
    assert_whole(figure)


def test_distributions_are_the_histograms(tmp_path):
    model = torch.nn.Sequential(*(dendnorm.SparseLinear(30, 20, density=0.2, seed=seed) for seed in range(2)))
    figure = plots.distributions(model, tmp_path / "d.png")
    for row, layer in enumerate(model):
        for column, side in enumerate(("in", "out")):
            axes = figure.axes[3 * row + column]
            heights = [bar.get_height() for bar in axes.patches]
            assert heights == analysis.degree_histogram(layer, side).tolist()
        (stairs,) = figure.axes[3 * row + 2].patches
        counts, edges = analysis.weight_histogram(layer)
        np.testing.assert_allclose(stairs.get_data().values, counts)
        np.testing.assert_allclose(stairs.get_data().edges, edges)
    assert_whole(figure)
    assert [path.name for path in tmp_path.iterdir()] == ["d.png"]


# ---- the benchmark's


def entry(shape, *, slow=1.0):
    inputs, outputs, batch, density = shape
    times = {name: slow * (rank + 1) * (0.1 + density) * batch / 100 for rank, name in enumerate(picture.COLOURS)}
    contenders = {name: {"median_ms": ms, "quartiles_ms": [0.8 * ms, 1.5 * ms]} for name, ms in times.items()}
    return {"shape": {"in": inputs, "out": outputs, "batch": batch, "density": density},
            "nnz": round(density * inputs * outputs), "contenders": contenders}  # fmt: skip


def benchmark(threads=1):
    machine = {"processor": "a processor with a name of some length", "threads": threads, "instruction set": "avx2",
               "torch": "2.13.0"}  # fmt: skip
    sweeps = {"density": [entry((784, 1000, 128, density)) for density in (0.01, 0.1, 1.0)],
              "nnz": [entry((side, side, 128, 0.01)) for side in (1000, 3000)],
              "batch": [entry((784, 1000, batch, 0.04)) for batch in (1, 10, 1000)]}  # fmt: skip
    return {"machine": machine, "crossover": 0.6, "shapes": [entry((784, 1000, 128, 0.04))], "sweeps": sweeps}


def test_the_benchmark_shows_medians_and_quartiles():
    results = benchmark()
    figure = picture.picture(results)
    legend = legend_of(figure)
    factors = {
        "density": lambda e: 1,
        "nnz": lambda e: 1e6 / e["nnz"],
        "batch": lambda e: 1e3 / e["shape"]["batch"],
    }
    for axes, (sweep, factor) in zip(figure.axes, factors.items(), strict=True):
        for name in picture.COLOURS:
            times = [(factor(e), e["contenders"][name]) for e in results["sweeps"][sweep]]
            line = line_with(axes, [scale * time["median_ms"] for scale, time in times])
            assert to_hex(line.get_color()) == to_hex(legend[name].get_color())
            shades = [extent(shade) for shade in axes.collections
                      if to_hex(shade.get_facecolor()[0]) == to_hex(line.get_color())]  # fmt: skip
            quartiles = np.array([[scale * ms for ms in time["quartiles_ms"]] for scale, time in times])
            np.testing.assert_allclose(shades, [[quartiles[:, 0].min(), quartiles[:, 1].max()]])
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "ms per step", "ns per step and connection", "µs per step and sample"]  # fmt: skip
    assert_whole(figure)
    ticks = {tick.get_text() for tick in figure.axes[0].get_xticklabels()}
    assert {"1 %", "10 %", "100 %"} <= ticks


def test_the_benchmark_counts_threads():
    assert ", 1 thread," in picture.picture(benchmark(1)).get_suptitle()
    assert ", 2 threads," in picture.picture(benchmark(2)).get_suptitle()


# ---- the style


def test_every_norm_has_one_colour_of_the_palette():
    assert len(set(style.NORM_COLOURS.values())) == len(style.NORM_COLOURS)
    assert {*style.NORM_COLOURS.values(), *style.SPARE} <= set(style.PALETTE.values())
    assert len(set(picture.COLOURS.values())) == len(picture.COLOURS)
    assert set(picture.COLOURS.values()) <= set(style.PALETTE.values())
    assert picture.COLOURS["dendnorm"] == style.NORM_COLOURS["none"]
    assert picture.COLOURS["dendnorm, l0"] == style.NORM_COLOURS["l0"]
    chosen = style.colours(["lp:2", "none", "l0", "lp:3", "mine"])
    assert chosen["none"] == style.NORM_COLOURS["none"] and chosen["l0"] == style.NORM_COLOURS["l0"]
    assert len(set(chosen.values())) == 5


def test_a_picture_appears_whole_or_not_at_all(tmp_path):
    figure = style.new_figure(2, 2)
    with pytest.raises(ValueError, match="nonsense"):
        style.save(figure, tmp_path / "picture.nonsense")
    assert not list(tmp_path.iterdir())
    style.save(figure, tmp_path / "picture.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.svg"]


def test_what_is_cut_off_is_seen():
    figure = style.new_figure(3, 2)
    figure.subplots()
    figure.suptitle("a heading that is longer than the picture is wide")
    with pytest.raises(AssertionError, match="is not within"):
        assert_whole(figure)
    style.heading(figure, "a heading that is longer than the picture is wide")
    assert_whole(figure)
