"""The command that trains: real networks on small data, what it writes, and how it ends when something goes wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import dendnorm
from dendnorm import info
from dendnorm.analysis.style import save
from dendnorm.lab import cli, comparison, curves, data, networks, train
from dendnorm.lab.device import choose_device
from dendnorm.lab.results import label, summarise
from dendnorm.lab.settings import Settings

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

QUICK = {"epochs": 2, "trials": 2, "batch": 50, "hidden": (20,)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "not" / "there"
    return comparison.run(Settings(**QUICK), out, progress=False), out


def test_writes_a_result_for_every_network(trained):
    results, out = trained
    written = json.loads((out / "results.json").read_text())
    assert written["runs"] == results["runs"]
    assert [(r["norm"], r["trial"], r["seed"]) for r in results["runs"]] == [
        ("none", 0, 0), ("l0", 0, 0), ("none", 1, 1), ("l0", 1, 1)]  # fmt: skip
    assert results["network"] == [64, 20, 10]
    assert not results["interrupted"]
    assert "root" not in written["settings"]
    for record in results["runs"]:
        assert record["complete"] and [entry["epoch"] for entry in record["epochs"]] == [1, 2]
        for entry in record["epochs"]:
            assert entry["seconds"] > 0
            for phase in ("before", "after"):
                assert 0 < entry[phase]["train_cost"] < 10 and 0 <= entry[phase]["test_accuracy"] <= 1
            assert entry["before"] != entry["after"], "rewiring changes what the network computes"


def test_leaves_nothing_half_written(trained):
    _, out = trained
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "results.json", "table.md"]
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_summary_is_mean_and_deviation_over_trials(trained):
    results, _ = trained
    summary = summarise(results)
    assert list(summary) == ["none", "l0"]
    for norm, entry in summary.items():
        values = np.array([[e["after"]["test_accuracy"] for e in r["epochs"]]
                           for r in results["runs"] if r["norm"] == norm])  # fmt: skip
        np.testing.assert_allclose(entry["after"]["test_accuracy"]["mean"], values.mean(0))
        np.testing.assert_allclose(entry["after"]["test_accuracy"]["std"], values.std(0, ddof=1))
        assert entry["trials"] == 2 and entry["epochs"] == [1, 2]


def test_table_names_networks_and_numbers(trained):
    results, out = trained
    table = (out / "table.md").read_text()
    summary = summarise(results)
    for norm in ("none", "l0"):
        mean = summary[norm]["before"]["test_accuracy"]["mean"][-1]
        line = next(line for line in table.splitlines() if label(norm) in line)
        assert f"{100 * mean:.2f} ±" in line
    assert "64-20-10" in table and "Interrupted" not in table


def test_same_seed_same_numbers(trained, tmp_path):
    results, _ = trained
    again = comparison.run(Settings(**QUICK), tmp_path, progress=False)

    def without_times(runs):
        return [[{k: v for k, v in entry.items() if k != "seconds"} for entry in run["epochs"]] for run in runs]

    assert without_times(again["runs"]) == without_times(results["runs"])


def test_learns_the_digits(tmp_path):
    results = comparison.run(Settings(epochs=8, trials=1, lr=0.1), tmp_path, progress=False)
    for entry in summarise(results).values():
        cost = entry["before"]["train_cost"]["mean"]
        assert cost[-1] < cost[0]
        assert entry["before"]["test_accuracy"]["mean"][-1] > 0.7  # chance is 0.1


def test_keeps_what_is_done_when_interrupted(tmp_path, monkeypatch):
    rewire, calls = dendnorm.SET.step, []

    def step(self):
        calls.append(self)
        if len(calls) == 4:  # the second epoch of the second network
            raise KeyboardInterrupt
        return rewire(self)

    monkeypatch.setattr(dendnorm.SET, "step", step)
    assert (
        cli.main(["train", "--epochs", "2", "--trials", "1", "--batch", "100", "--out", str(tmp_path), "--quiet"])
        == 130
    )
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["interrupted"]
    assert [(len(r["epochs"]), r["complete"]) for r in written["runs"]] == [(2, True), (1, False)]
    assert "Interrupted" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").exists()


def test_interrupted_before_the_first_epoch(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_epoch", interrupt)
    assert cli.main(["train", "--out", str(tmp_path), "--quiet"]) == 130
    assert json.loads((tmp_path / "results.json").read_text())["summary"] == {}


def test_a_diverging_network_is_kept_with_its_reason(tmp_path, capsys):
    # The excitability of the second makes its first cost infinite; the control goes on.
    status = cli.main(["train", "--epochs", "1", "--trials", "1", "--activation", "relu", "--s", "1e38", "--lr", "1e30",
                       "--norm", "l0", "--out", str(tmp_path), "--quiet"])  # fmt: skip
    assert status == 1
    (record,) = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert "smaller learning rate" in record["failed"] and not record["complete"]
    assert "Failed: dendritic" in capsys.readouterr().out


def test_command_line_trains_every_norm_and_says_where(tmp_path, capsys):
    norms = ["none", "l0", "l0-variable", "lp:1", "lp:2", "lp-variable:2", "weight_norm", "joint"]
    options = [option for norm in norms for option in ("--norm", norm)]
    out = tmp_path / "out"
    status = cli.main(["train", "--epochs", "1", "--trials", "1", "--batch", "100", "--hidden", "30", "20",
                       "--out", str(out), "--quiet", *options])  # fmt: skip
    assert status == 0
    printed = capsys.readouterr().out
    assert all(label(norm) in printed for norm in norms)
    assert str(out) in printed
    assert "64-30-20-10" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--trials", "-1"], "trials must be at least 1, got -1"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--lr", "nan"], "lr must be finite and positive, got nan"),
        (["--epsilon", "0"], "epsilon must be in (0, 1], got 0.0"),
        (["--zeta", "1.5"], "zeta must be in [0, 1], got 1.5"),
        (["--s", "inf"], "s must be finite, got inf"),
        (["--hidden", "0"], "hidden must be one or more positive sizes, got (0,)"),
        (["--norm", "l0", "--norm", "l0"], "norms must be one or more different norms"),
        (["--norm", "l7"], "l7"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--data", "mnist"], "mnist"),
        (["--data", "mnist", "--root", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["train", "--out", str(out), "--quiet", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (out / "results.json").exists(), "nothing was trained"


def test_unknown_device_is_refused():
    with pytest.raises((ValueError, RuntimeError), match=r"cuda|banana"):
        choose_device("banana")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' needs a GPU and a build with CUDA"):
            choose_device("cuda")
        assert choose_device("auto").type == "cpu"


def test_networks_of_one_seed_start_alike():
    settings = Settings(hidden=(30, 20))
    nets = {norm: networks.build_network((1, 8, 8), 10, settings, norm, seed=3) for norm in ("none", "l0", "joint")}
    control = nets["none"]
    assert [type(layer) for layer in control] == [
        dendnorm.SparseLinear, nn.Sigmoid, dendnorm.SparseLinear, nn.Sigmoid, nn.Linear]  # fmt: skip
    for net in nets.values():
        for mine, theirs in zip(net, control, strict=True):
            if isinstance(mine, nn.Sigmoid):
                continue
            assert torch.equal(mine.weight, theirs.weight) and torch.equal(mine.bias, theirs.bias)
    assert nets["l0"][0].norm is nets["l0"][2].norm, "hidden layers share one excitability"
    assert nets["l0"][0].nnz == round(0.2 * 64 * 30)
    variable = networks.build_network((1, 8, 8), 10, settings, "l0-variable", seed=3)
    assert variable[0].norm is not variable[2].norm
    other = networks.build_network((1, 8, 8), 10, settings, "none", seed=4)
    assert not torch.equal(other[0].weight, control[0].weight)


def test_evaluate_against_one_pass(monkeypatch):
    monkeypatch.setattr(train, "EVALUATION_BATCH", 7)
    torch.manual_seed(0)
    model = nn.Linear(12, 5)
    inputs, targets = torch.randint(0, 256, (45, 12), dtype=torch.uint8), torch.randint(0, 5, (45,))
    scores = model(inputs.float() / 255).double()
    cost, accuracy = train.evaluate(model, inputs, targets, 1 / 255)
    assert math.isclose(cost, nn.functional.cross_entropy(scores, targets).item(), rel_tol=1e-6)
    assert accuracy == (scores.argmax(1) == targets).double().mean().item()


def test_an_epoch_sees_every_example_once(monkeypatch):
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(x.detach().clone())
            return super().forward(x)

    monkeypatch.setattr(train, "CHUNK", 30)
    inputs = torch.arange(101, dtype=torch.uint8)[:, None]
    targets = torch.zeros(101, dtype=torch.int64)
    digits = data.DataSet("made", inputs, targets, inputs, targets, 1.0, ("0", "1"), (1, 1, 1))
    model, steps = Spy(1, 2), []
    generator = torch.Generator().manual_seed(1)
    settings = Settings(batch=10, lr=1e-6)
    descent = train.Descent(model, settings)
    train.train_epoch(model, descent, digits, settings, 1, generator, lambda n, _: steps.append(n))
    assert sorted(torch.cat(seen).flatten().int().tolist()) == list(range(101))
    assert torch.cat(seen).flatten().int().tolist() != list(range(101)), "in a new order"
    assert sum(steps) == len(seen) == 11


def test_labels_are_the_papers_words():
    assert label("none") == "control"
    assert label("l0") == "dendritic (L0)"
    assert label("lp:3") == "L3"
    assert label("lp-variable:3") == "L3, one excitability per neuron"


def test_curves_draw_one_trial_and_many(trained, tmp_path):
    results, _ = trained
    summary = summarise(results)
    save(curves.curves(results, summary, "title"), tmp_path / "many.png")
    save(curves.curves(results, {"l0": summary["l0"]}, "title"), tmp_path / "one.png")
    sizes = [(tmp_path / name).stat().st_size for name in ("many.png", "one.png")]
    assert min(sizes) > 10_000


def test_info_reports_the_build(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    facts = info.collect()
    json.dumps(facts)
    assert facts["cpu"]["instruction set"] in ("default", "neon", "avx2", "avx512")
    for fact in (facts["versions"]["dendnorm"], torch.__version__, facts["build"]["compiler"], "cuda kernels"):
        assert fact in printed
