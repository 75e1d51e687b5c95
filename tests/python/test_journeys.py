"""Whole models through everything that is done with them: docs/compatibility.md has a table of these tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dendnorm
from dendnorm import SparseLinear
from dendnorm.integrations import averages

EXAMPLES, BATCH, STEPS, STOP = 8, 2, 4, 2  # a checkpoint after STOP of STEPS steps
EVERY = 1  # steps between two rewirings


class Task(nn.Module):
    """A model that is none of transformers', with its loss as those have it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.net(x)
        return {"loss": nn.functional.cross_entropy(out.flatten(1), labels), "logits": out}


def mlp() -> tuple[nn.Module, dict]:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    return Task(net), {"x": torch.randn(EXAMPLES, 8), "labels": torch.randint(4, (EXAMPLES,))}


def encoder() -> tuple[nn.Module, dict]:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Task(net), {"x": torch.randn(EXAMPLES, 3, 16), "labels": torch.randint(48, (EXAMPLES,))}


def vit() -> tuple[nn.Module, dict]:
    config = transformers().ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                      image_size=16, patch_size=8, num_labels=4)  # fmt: skip
    images = {"pixel_values": torch.randn(EXAMPLES, 3, 16, 16), "labels": torch.randint(4, (EXAMPLES,))}
    return transformers().ViTForImageClassification(config), images


def llama() -> tuple[nn.Module, dict]:
    config = transformers().LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, use_cache=False,
                                        num_attention_heads=2, num_key_value_heads=2, vocab_size=32)  # fmt: skip
    tokens = torch.randint(32, (EXAMPLES, 6))
    return transformers().LlamaForCausalLM(config), {"input_ids": tokens, "labels": tokens}


def t5() -> tuple[nn.Module, dict]:
    config = transformers().T5Config(d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8, vocab_size=32,
                                     use_cache=False, dropout_rate=0.0, decoder_start_token_id=0)  # fmt: skip
    tokens = torch.randint(1, 32, (EXAMPLES, 6))
    return transformers().T5ForConditionalGeneration(config), {"input_ids": tokens, "labels": tokens}


def transformers():
    return pytest.importorskip("transformers", reason="the package transformers is not installed")


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, dict]], int]] = {
    "MLP": (mlp, 3), "TransformerEncoder": (encoder, 4), "ViT": (vit, 13), "Llama": (llama, 14), "T5": (t5, 32),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, dict]:
    """A sparse model and its examples, the same at every call."""
    torch.manual_seed(0)
    make, layers = MODELS[name]
    model, data = make()
    skip = ["lm_head"] if hasattr(model, "lm_head") else []
    assert len(dendnorm.sparsify(model, 0.5, skip=skip)) == layers
    return model, data


def batch(data: dict, step: int) -> dict:
    start = step * BATCH % EXAMPLES
    return {key: value[start : start + BATCH] for key, value in data.items()}


def tools(model: nn.Module) -> tuple[torch.optim.Optimizer, dendnorm.SET]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return optimizer, dendnorm.SET(model, optimizer, zeta=0.2, seed=5)


def train(model: nn.Module, data: dict, optimizer, rewire, steps: range, backward=torch.Tensor.backward):
    for step in steps:
        optimizer.zero_grad()
        backward(model.train()(**batch(data, step))["loss"])
        optimizer.step()
        report = rewire.step()
    return report


def undisturbed(name: str) -> nn.Module:
    model, data = made(name)
    train(model, data, *tools(model), range(STEPS))
    return model


def logits(model: nn.Module, data: dict) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**data)["logits"]


def assert_same(model: nn.Module, wanted: nn.Module) -> None:
    one, two = model.state_dict(), wanted.state_dict()
    assert list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


# What is done with a model; each takes its name and a folder.


def trained(name: str, folder: Path) -> None:
    model, data = made(name)
    before, start = logits(model, data), copy.deepcopy(model)
    train(model, data, *tools(model), range(STEPS))
    assert not torch.allclose(logits(model, data), before)
    moved = [
        dendnorm.analysis.topology_change(old, new).changed
        for old, new in zip(start.modules(), model.modules(), strict=True)
        if isinstance(new, SparseLinear)
    ]
    assert min(moved) > 0


def averaged(name: str, folder: Path) -> None:
    model, data = made(name)
    optimizer, rewire = tools(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for step in range(STEPS):
        report = train(model, data, optimizer, rewire, range(step, step + 1))
        averages.follow(average, model, report)
        average.update_parameters(model)
    for mine, theirs in zip(average.module.modules(), model.modules(), strict=True):
        if isinstance(theirs, SparseLinear):
            assert all(torch.equal(one, two) for one, two in zip(mine.edges(), theirs.edges(), strict=True))
    assert not torch.equal(logits(average.module, data), logits(model, data))


def checkpointed(name: str, folder: Path) -> None:
    model, data = made(name)
    optimizer, rewire = tools(model)
    train(model, data, optimizer, rewire, range(STOP))
    dendnorm.save(folder / "run.safetensors", model, optimizer, rewire)
    again, _ = made(name)
    parts = tools(again)
    dendnorm.load(folder / "run.safetensors", again, *parts)
    train(again, data, *parts, range(STOP, STEPS))
    assert_same(again, undisturbed(name))


def in_accelerate(name: str, folder: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="the package accelerate is not installed")

    def start():
        accelerator = accelerate.Accelerator(cpu=True)
        model, data = made(name)
        optimizer, rewire = tools(model)
        prepared = accelerator.prepare(model, optimizer)
        accelerator.register_for_checkpointing(rewire)
        return accelerator, model, data, (*prepared, rewire)

    accelerator, _, data, (net, optimizer, rewire) = start()
    train(net, data, optimizer, rewire, range(STOP), accelerator.backward)
    accelerator.save_state(str(folder))
    accelerator, again, _, (net, optimizer, rewire) = start()
    accelerator.load_state(str(folder))
    train(net, data, optimizer, rewire, range(STOP, STEPS), accelerator.backward)
    assert_same(again, undisturbed(name))


def in_lightning(name: str, folder: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="the package lightning is not installed")
    from dendnorm.integrations.lightning import RewiringCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.data = made(name)

        def training_step(self, index, _):
            return self.net(**batch(self.data, self.trainer.global_step))["loss"]

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), lr=1e-2)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(range(EXAMPLES), batch_size=BATCH)

    def run(steps: int, **options) -> nn.Module:
        module = Module()
        trainer = pl.Trainer(
            default_root_dir=folder, max_steps=steps, accelerator="cpu", devices=1, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            callbacks=[RewiringCallback(every_n_steps=EVERY, zeta=0.2, seed=5)],
        )  # fmt: skip
        trainer.fit(module, **options)
        trainer.save_checkpoint(folder / "run.ckpt")
        return module.net

    wanted = run(STEPS)
    run(STOP)
    assert_same(run(STEPS, ckpt_path=folder / "run.ckpt"), wanted)


def in_hugging_face(name: str, folder: Path) -> None:
    pytest.importorskip("accelerate", reason="the package accelerate is not installed")
    package = transformers()
    from dendnorm.integrations.transformers import RewiringCallback

    class Rows(torch.utils.data.Dataset):
        def __init__(self, data: dict) -> None:
            self.data = data

        def __len__(self) -> int:
            return EXAMPLES

        def __getitem__(self, index: int) -> dict:
            return {key: value[index] for key, value in self.data.items()}

    if name == "ViT":
        pytest.skip("transformers' Trainer saves a ViT under names that it does not load, dense ones, too")

    def run(where: str, steps: int, **options) -> nn.Module:
        model, data = made(name)
        arguments = package.TrainingArguments(
            output_dir=str(folder / where), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=1e-2,
            save_steps=STOP, save_strategy="steps", report_to="none", use_cpu=True, disable_tqdm=True, seed=0,
            lr_scheduler_type="constant",
        )  # fmt: skip
        callback = RewiringCallback(every_n_steps=EVERY, zeta=0.2, seed=5)
        trainer = package.Trainer(model, arguments, train_dataset=Rows(data), callbacks=[callback])
        trainer.train(**options)
        return model

    wanted = run("whole", STEPS)
    again = run("again", STEPS, resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{STOP}"))
    assert_same(again, wanted)


def densified(name: str, folder: Path) -> None:
    model, data = undisturbed(name), made(name)[1]
    wanted = logits(model, data)
    assert len(dendnorm.densify(model)) == MODELS[name][1]
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    torch.testing.assert_close(logits(model, data), wanted, rtol=1e-4, atol=1e-5)


def exported(name: str, folder: Path) -> None:
    model, data = undisturbed(name), made(name)[1]
    wanted = logits(model, data)
    with torch.no_grad():
        program = torch.export.export(model, (), kwargs=data, strict=False)
        program = program.run_decompositions(dendnorm.decompositions())
        assert not any("dendnorm" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(**data)["logits"], wanted, rtol=1e-4, atol=1e-5)


STAGES = {
    "trained and rewired": trained, "averaged": averaged, "saved and loaded": checkpointed, "accelerate": in_accelerate,
    "Lightning": in_lightning, "Hugging Face Trainer": in_hugging_face, "densified": densified, "exported": exported,
}  # fmt: skip


@pytest.mark.feature("whole models: trained, averaged, saved, resumed in each trainer, dense again, exported")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name, stage, tmp_path):
    STAGES[stage](name, tmp_path)
