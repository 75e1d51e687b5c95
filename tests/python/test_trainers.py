"""Rewiring under other people's trainers: Hugging Face's, Lightning's two, and the core that they share."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dendnorm.schedules import Constant
from torch import nn

from dendnorm import SET, SparseLinear
from dendnorm.integrations.core import ScheduledRewiring, scalars

EXAMPLES, EPOCHS, BATCH = 24, 3, 4
STEPS = EXAMPLES // BATCH
SCHEDULES = {
    "steps": {"every_n_steps": 3, "start_after": 3, "stop_after": 15},
    "epochs": {"every_n_epochs": 1, "stop_after": 2},
}


def network() -> nn.Sequential:
    return nn.Sequential(
        SparseLinear(8, 16, density=0.4, norm="l0", seed=0),
        nn.Tanh(),
        SparseLinear(16, 4, density=0.4, norm="joint", seed=1),
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(EXAMPLES, 8, generator=generator), torch.randn(EXAMPLES, 4, generator=generator)


def by_hand(schedule: dict, epochs: int = EPOCHS) -> tuple[nn.Module, list[int]]:
    """The run that every trainer must reproduce, written out, and the steps after which it rewired."""
    model, (x, y), done = network(), data(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewiring, step = SET(model, optimizer, zeta=0.3, seed=5), 0
    first, last = schedule.get("start_after", 0), schedule.get("stop_after", 10**9)
    for epoch in range(1, epochs + 1):
        for start in range(0, EXAMPLES, BATCH):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[start : start + BATCH]), y[start : start + BATCH]).backward()
            optimizer.step()
            step += 1
            if "every_n_steps" in schedule and step % schedule["every_n_steps"] == 0 and first < step <= last:
                rewiring.step()
                done.append(step)
        if "every_n_epochs" in schedule and epoch % schedule["every_n_epochs"] == 0 and first < epoch <= last:
            rewiring.step()
            done.append(step)
    return model, done


def assert_same(model: nn.Module, wanted: nn.Module) -> None:
    for index in (0, 2):
        assert torch.equal(model[index].row_indices, wanted[index].row_indices)
        assert torch.equal(model[index].ccol_indices, wanted[index].ccol_indices)
    torch.testing.assert_close(model.state_dict(), wanted.state_dict(), rtol=1e-5, atol=1e-6)


def logged(folder: Path) -> dict[str, list[int]]:
    """The steps of every scalar in the TensorBoard files below a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found: dict[str, list[int]] = {}
    for path in sorted({file.parent for file in folder.rglob("events.out.tfevents*")}):
        events = accumulator.EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend(event.step for event in events.Scalars(tag))
    return found


every_schedule = pytest.mark.parametrize("name", SCHEDULES)


# The core


def test_due():
    rewiring = ScheduledRewiring(every_n_steps=3, start_after=3, stop_after=12)
    assert [count for count in range(20) if rewiring.due(count)] == [6, 9, 12]
    assert [count for count in range(6) if ScheduledRewiring(every_n_epochs=2).due(count)] == [2, 4]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of every_n_steps and every_n_epochs"),
        ({"every_n_steps": 1, "every_n_epochs": 1}, ValueError, "exactly one"),
        ({"every_n_steps": 0}, ValueError, r"every_n_steps must be in \[1, 2\^63\), got 0"),
        ({"every_n_epochs": 1.5}, TypeError, "every_n_epochs must be an int, got 1.5"),
        ({"every_n_steps": 1, "start_after": -1}, ValueError, r"start_after must be in \[0, 2\^63\), got -1"),
        ({"every_n_steps": 1, "stop_after": True}, TypeError, "stop_after must be an int"),
        ({"every_n_steps": 1, "every": 3}, TypeError, "every_n_steps or every_n_epochs"),
    ],
)
def test_a_wrong_schedule_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ScheduledRewiring(**arguments)


def test_each_count_rewires_once_and_a_missed_one_is_made_up_for():
    model = network()
    rewiring = ScheduledRewiring(every_n_epochs=1, zeta=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert rewiring.start(model, [optimizer], 0, 0) is None
    assert rewiring.done("step", 1) is None
    assert rewiring.done("epoch", 1)["rewiring/number"] == 1
    assert rewiring.done("epoch", 1) is None
    saved = json.loads(json.dumps(rewiring.state_dict()))
    again = ScheduledRewiring(every_n_epochs=1, zeta=0.5)
    again.load_state_dict(saved)
    assert again.state_dict() == saved
    assert again.start(model, [optimizer], 6, 1) is None
    late = ScheduledRewiring(every_n_epochs=1, zeta=0.5)
    late.load_state_dict(saved)
    assert late.start(model, [optimizer], 12, 2)["rewiring/number"] == 2
    for wrong in ({}, {"latest": 1}, {"latest": "1", "rewirer": None}, None):
        with pytest.raises((ValueError, TypeError), match="state_dict"):
            late.load_state_dict(wrong)
    assert late.state_dict()["latest"] == 2


def test_a_second_training_counts_anew_and_draws_on():
    model = network()
    rewiring = ScheduledRewiring(every_n_steps=3, zeta=0.3, grow="gradient")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    numbers = []
    for _ in range(2):
        rewiring.start(model, [optimizer], 0, 0)
        for step in range(1, 4):
            optimizer.zero_grad()
            model(data()[0]).square().mean().backward()
            optimizer.step()
            values = rewiring.done("step", step)
        numbers.append(values["rewiring/number"])
    assert numbers == [1, 2]
    assert len(optimizer._optimizer_step_post_hooks) == 2  # of rewirer and schedule; the first training's are gone


def test_scalars_are_what_the_layers_show():
    model = network()
    report = SET(model, None, zeta=0.5).step()
    values = scalars(model, report)
    degrees = model[0].in_degrees().double()
    assert values["rewiring/0/replaced"] == report[0].k / model[0].nnz
    assert values["rewiring/0/density"] == model[0].density
    assert values["rewiring/0/in_degree_std"] == pytest.approx(float(((degrees - degrees.mean()) ** 2).mean() ** 0.5))
    assert values["rewiring/replaced"] == sum(part.k for part in report) / sum(part.nnz for part in report)


def test_several_optimizers_keep_their_state_with_the_connections():
    model, (x, y) = network(), data()
    optimizers = [torch.optim.Adam(model[0].parameters()), torch.optim.SGD(model[2].parameters(), 0.1, momentum=0.9)]
    rewiring = ScheduledRewiring(every_n_steps=1, zeta=0.3)
    rewiring.start(model, optimizers, 0, 0)
    nn.functional.mse_loss(model(x), y).backward()
    for optimizer in optimizers:
        optimizer.step()
    states = [optimizers[0].state[model[0].weight]["exp_avg"], optimizers[1].state[model[2].weight]["momentum_buffer"]]
    before = [state.clone() for state in states]
    rewiring.done("step", 1)
    for layer, state, old in zip(rewiring.rewirer.report, states, before, strict=True):
        assert not torch.equal(state, old) and int((state == 0).sum()) >= layer.k


def test_rules_that_look_at_gradients_are_given_the_step_before():
    model, (x, y) = network(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rewiring = ScheduledRewiring(every_n_steps=2, grow="gradient", zeta=0.3)
    rewiring.start(model, [optimizer], 0, 0)
    for step in range(1, 5):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        values = rewiring.done("step", step)
        assert (values is not None) == (step % 2 == 0)


MISSING = """
import sys
sys.modules[{package!r}] = None
try:
    import dendnorm.integrations.{module}
except ImportError as error:
    print(error)
"""


@pytest.mark.feature("integrations: a missing trainer is named together with the command that installs it")
@pytest.mark.parametrize("module", ["transformers", "lightning", "pytorch_lightning"])
def test_a_missing_package_names_its_extra(module):
    code = MISSING.format(package=module, module=module)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    extra = "transformers" if module == "transformers" else "lightning"
    package = module.replace("_", "-")
    assert f"the package {package} for {extra}" in out and f"pip install {package}" in out


# Hugging Face


class Examples(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.x, self.y = data()

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.net(x)
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


def hugging_face(
    folder: Path,
    *schedules: dict,
    save_steps: int = 1000,
    report_to: str = "none",
    attach: bool = True,
    max_steps: int = -1,
    dataset: torch.utils.data.Dataset | None = None,
):
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    pytest.importorskip("accelerate", reason="the package accelerate is not installed")
    from transformers import Trainer, TrainingArguments

    from dendnorm.integrations.transformers import RewiringCallback

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=0.01,
        lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0, optim="adamw_torch", report_to=report_to,
        save_steps=save_steps, save_strategy="steps", logging_steps=4, use_cpu=True, disable_tqdm=True, seed=0,
        max_steps=max_steps,
    )  # fmt: skip
    callbacks = [RewiringCallback(**{"zeta": 0.3, "seed": 5, **schedule}) for schedule in schedules]
    model = WithLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = InOrder(
        model, arguments, train_dataset=dataset or Examples(), callbacks=callbacks, optimizers=(optimizer, None)
    )
    for callback in callbacks if attach else ():
        callback.log_to(trainer)
    return model, trainer


@pytest.mark.feature("Hugging Face Trainer: RewiringCallback equals the loop written by hand, by steps and by epochs")
@every_schedule
def test_hugging_face_equals_by_hand(name, tmp_path):
    wanted, steps = by_hand(SCHEDULES[name])
    model, trainer = hugging_face(tmp_path, SCHEDULES[name])
    trainer.train()
    assert_same(model.net, wanted)
    entries = [entry for entry in trainer.state.log_history if "rewiring/number" in entry]
    assert [entry["step"] for entry in entries] == steps
    assert all("rewiring/net.0/in_degree_std" in entry for entry in entries)


@pytest.mark.feature("Hugging Face Trainer: resumed from a checkpoint, the same edges as an undisturbed run")
@pytest.mark.parametrize("save", [5, STEPS], ids=["within an epoch", "between an epoch and its rewiring"])
@every_schedule
def test_hugging_face_resumes(name, save, tmp_path):
    wanted, _ = by_hand(SCHEDULES[name])
    hugging_face(tmp_path, SCHEDULES[name], save_steps=save)[1].train()
    model, trainer = hugging_face(tmp_path, SCHEDULES[name])
    with torch.no_grad():
        model.net[0].reset_parameters(seed=99)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{save}"))
    assert_same(model.net, wanted)


def test_hugging_face_resumes_several_callbacks(tmp_path):
    both = [{"every_n_steps": 3, "zeta": 0.2, "seed": 1}, {"every_n_epochs": 1, "zeta": 0.3, "seed": 2}]
    undisturbed, trainer = hugging_face(tmp_path / "whole", *both)
    trainer.train()
    hugging_face(tmp_path, *both, save_steps=4)[1].train()  # three checkpoints before the one that is used
    model, trainer = hugging_face(tmp_path, *both)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-16"))
    assert_same(model.net, undisturbed.net)
    with pytest.raises(ValueError, match="resume with the options that they were saved with"):
        hugging_face(tmp_path, both[0], {**both[1], "zeta": 0.1})[1].train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-16")
        )


def test_hugging_face_resumes_callbacks_whose_options_are_objects(tmp_path):
    both = [{"every_n_steps": 3, "zeta": Constant(0.2), "seed": 1}, {"every_n_epochs": 1, "zeta": lambda step: 0.3}]
    undisturbed, trainer = hugging_face(tmp_path / "whole", *both)
    trainer.train()
    hugging_face(tmp_path, *both, save_steps=4)[1].train()
    model, trainer = hugging_face(tmp_path, *both)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-16"))
    assert_same(model.net, undisturbed.net)


def test_hugging_face_rewires_no_more_where_training_is_stopped_within_an_epoch(tmp_path):
    _, trainer = hugging_face(tmp_path, {"every_n_epochs": 1})
    callback_class = pytest.importorskip("transformers").TrainerCallback

    class Stop(callback_class):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == STEPS + 2

    trainer.add_callback(Stop())
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "rewiring/number" in entry] == [STEPS]


class Stream(torch.utils.data.IterableDataset):
    """Examples of unknown number: three steps of them."""

    def __iter__(self):
        return (Examples()[index] for index in range(3 * BATCH))


@pytest.mark.parametrize(
    ("max_steps", "dataset", "wanted"),
    [(STEPS + 4, None, [STEPS]), (2 * STEPS, None, [STEPS, 2 * STEPS]), (10, Stream(), [3, 6, 9])],
    ids=["ends within an epoch", "ends with an epoch", "stream"],
)
def test_hugging_face_counts_epochs_that_are_done(max_steps, dataset, wanted, tmp_path):
    _, trainer = hugging_face(tmp_path, {"every_n_epochs": 1}, max_steps=max_steps, dataset=dataset)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "rewiring/number" in entry] == wanted


@pytest.mark.feature("Hugging Face Trainer: rewiring in its TensorBoard log")
def test_hugging_face_logs_to_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    _, trainer = hugging_face(tmp_path, SCHEDULES["steps"], report_to="tensorboard")
    trainer.train()
    found = logged(tmp_path)
    tags = [tag for tag in found if tag.endswith("rewiring/net.0/replaced")]
    assert len(tags) == 1 and found[tags[0]] == [6, 9, 12, 15]


def test_hugging_face_keeps_what_happened_without_log_to(tmp_path):
    _, trainer = hugging_face(tmp_path, SCHEDULES["epochs"], attach=False)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "rewiring/number" in entry] == [STEPS, 2 * STEPS]


def test_hugging_face_state_restores_as_exportable_state():
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    from dendnorm.integrations.transformers import RewiringCallback

    callback = RewiringCallback(every_n_steps=3, zeta=0.2)
    state = json.loads(json.dumps(callback.state()))
    assert RewiringCallback.from_state(state).rewiring.options == {"zeta": 0.2}
    with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint"):
        RewiringCallback.from_state(RewiringCallback(every_n_steps=3, zeta=lambda step: 0.1).state())


# Lightning, under both names


def lightning(package: str, folder: Path, schedule: dict, accumulate: int = 1, **options):
    name = "lightning.pytorch" if package == "lightning" else package
    pl = pytest.importorskip(name, reason=f"the package {package} is not installed")
    integration = pytest.importorskip(f"dendnorm.integrations.{package}")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch, index):
            # Lightning starts its loader anew where it resumes within an epoch: the step tells which examples come.
            x, y = data()
            size = BATCH // accumulate
            start = self.trainer.global_step % STEPS * BATCH + index % accumulate * size
            return nn.functional.mse_loss(self.net(x[start : start + size]), y[start : start + size])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

        def train_dataloader(self):
            dataset = torch.utils.data.TensorDataset(*data())
            return torch.utils.data.DataLoader(dataset, batch_size=BATCH // accumulate)

    callbacks = [integration.RewiringCallback(**schedule, zeta=0.3, seed=5), *options.pop("callbacks", [])]
    trainer = pl.Trainer(
        default_root_dir=folder, max_epochs=EPOCHS, accelerator="cpu", devices=1, callbacks=callbacks,
        accumulate_grad_batches=accumulate, enable_progress_bar=False, enable_model_summary=False,
        **({"logger": False, "enable_checkpointing": False} | options),
    )  # fmt: skip
    return pl, Module(), trainer


both_names = pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
quiet = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and logging


@pytest.mark.feature("Lightning (both names): RewiringCallback equals the loop written by hand, by steps and by epochs")
@quiet
@both_names
@every_schedule
def test_lightning_equals_by_hand(name, package, tmp_path):
    wanted, _ = by_hand(SCHEDULES[name])
    _, module, trainer = lightning(package, tmp_path, SCHEDULES[name])
    trainer.fit(module)
    assert_same(module.net, wanted)


@quiet
@both_names
def test_lightning_counts_steps_of_the_optimizer_under_accumulation(package, tmp_path):
    wanted, _ = by_hand(SCHEDULES["steps"])
    _, module, trainer = lightning(package, tmp_path, SCHEDULES["steps"], accumulate=2)
    trainer.fit(module)
    assert_same(module.net, wanted)


@pytest.mark.feature("Lightning (both names): resumed from a checkpoint, the same edges as an undisturbed run")
@quiet
@both_names
@pytest.mark.parametrize(
    "save", [5, STEPS, None], ids=["within an epoch", "between an epoch and its rewiring", "after an epoch"]
)
@every_schedule
def test_lightning_resumes(name, save, package, tmp_path):
    wanted, _ = by_hand(SCHEDULES[name])
    pl = pytest.importorskip("lightning.pytorch" if package == "lightning" else package)
    when = {"every_n_epochs": 1, "save_on_train_epoch_end": True} if save is None else {"every_n_train_steps": save}
    keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **when)
    _, module, trainer = lightning(package, tmp_path, SCHEDULES[name], callbacks=[keep], enable_checkpointing=True)
    trainer.fit(module)
    _, module, trainer = lightning(package, tmp_path, SCHEDULES[name])
    with torch.no_grad():
        module.net[0].reset_parameters(seed=99)
    trainer.fit(module, ckpt_path=str(tmp_path / f"step={save or STEPS}.ckpt"), weights_only=False)
    assert_same(module.net, wanted)


@pytest.mark.feature("Lightning: the averages of its own callbacks follow each rewiring")
@quiet
@both_names
@pytest.mark.parametrize("kind", ["StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"])
@pytest.mark.parametrize("first", [True, False])
def test_lightning_averages_follow(kind, first, package, tmp_path):
    pl = pytest.importorskip("lightning.pytorch" if package == "lightning" else package)
    if not hasattr(pl.callbacks, kind):
        pytest.skip(f"this {package} has no {kind}")
    options = {"swa_lrs": 0.01, "swa_epoch_start": 1} if kind == "StochasticWeightAveraging" else {}
    averaging = getattr(pl.callbacks, kind)(**options)
    _, module, trainer = lightning(package, tmp_path, {"every_n_steps": 1}, callbacks=[averaging])
    if first:
        trainer.callbacks.reverse()
    values = []  # of each connection, by its ends, after each step

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            values.append([by_edge(layer) for layer in (module.net[0], average()[0])])

    def average():
        inner = averaging._average_model
        return getattr(inner, "module", inner).net

    trainer.callbacks.append(Watch())
    trainer.fit(module)
    assert module.net[0].pattern_mark.equal(average()[0].pattern_mark)
    rewirings = 0
    for (_, before), (current, after) in itertools.pairwise(values):
        assert after.keys() == current.keys()
        rewirings += before.keys() != after.keys()
        if kind == "StochasticWeightAveraging":
            continue  # updates once an epoch
        for edge in after.keys() - before.keys():
            assert after[edge] == current[edge]  # the average of a new connection begins with it
    assert rewirings > 3
    for layer in (module.net[0], average()[0]):
        assert torch.isfinite(layer(torch.ones(2, layer.in_features))).all()


def by_edge(layer) -> dict[tuple[int, int], float]:
    row, col = layer.edges()
    return dict(zip(zip(row.tolist(), col.tolist(), strict=True), layer.weight.detach().tolist(), strict=True))


@pytest.mark.feature("Lightning: rewiring in its TensorBoard log")
@quiet
@both_names
def test_lightning_logs_to_tensorboard(package, tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    pl = pytest.importorskip("lightning.pytorch" if package == "lightning" else package)
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    _, module, trainer = lightning(package, tmp_path, SCHEDULES["steps"], logger=logger)
    trainer.fit(module)
    logger.finalize("success")
    assert logged(tmp_path)["rewiring/net.0/replaced"] == [6, 9, 12, 15]


def test_the_package_itself_imports_no_trainer():
    code = "import sys, dendnorm, dendnorm.integrations; print({'transformers', 'lightning'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
