"""Other people's models: GPT-2 of transformers made sparse, trained, saved, loaded; the examples that show it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import dendnorm
from dendnorm import SparseLinear

ROOT = Path(__file__).resolve().parents[2]


def gpt2(seed: int = 0, **options) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    torch.manual_seed(seed)
    options = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 64, "n_positions": 32} | options
    config = transformers.GPT2Config(bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                     **options)  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.feature("transformers' Conv1D: sparsify computes what the dense layer did")
@pytest.mark.parametrize("norm", ["l0", "joint"])
def test_conv1d_becomes_a_sparse_layer(norm):
    model, tokens = gpt2().eval(), torch.randint(64, (2, 16))
    conv = model.transformer.h[0].mlp.c_fc
    nn.init.normal_(conv.bias)
    weight = conv.weight.detach().clone()
    wanted = model(tokens).logits
    replaced = dendnorm.sparsify(model, 1.0, norm=norm, skip=["lm_head"])
    assert len(replaced) == 8 and replaced["transformer.h.0.mlp.c_fc"] is conv
    layer = model.transformer.h[0].mlp.c_fc
    assert isinstance(layer, SparseLinear) and (layer.in_features, layer.out_features) == (32, 128)
    torch.testing.assert_close(layer.to_dense().weight, weight.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(tokens).logits, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(conv.weight, weight)  # what was replaced is as it was


def test_conv1d_keeps_the_largest_weights():
    model = gpt2()
    conv = model.transformer.h[1].attn.c_attn
    dense = conv.weight.detach().T.clone()
    shares = dendnorm.densities(model, 0.2, "erk", skip=["lm_head"])
    dendnorm.sparsify(model, 0.1, skip=["lm_head"])
    layer = model.transformer.h[1].attn.c_attn
    kept = layer.to_dense().weight != 0
    assert int(kept.sum()) == round(0.1 * dense.numel()) == layer.nnz
    assert dense[kept].abs().min() >= dense[~kept].abs().max()
    assert len(shares) == 8


def test_a_class_of_that_name_from_elsewhere_is_left_alone():
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))

    with pytest.raises(ValueError, match=r"nothing was replaced: 0: Conv1D is not among types"):
        dendnorm.sparsify(nn.Sequential(Conv1D()), 0.5)


@pytest.mark.feature("GPT-2 (transformers): made sparse in two lines, trained, rewired, saved, loaded, same outputs")
def test_gpt2_trains_and_is_loaded_again(tmp_path):
    pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    model, tokens = gpt2(), torch.randint(64, (2, 16))
    with pytest.raises(ValueError, match="lm_head"):  # tied to the embedding
        dendnorm.sparsify(model, 0.2)
    dendnorm.sparsify(model, 0.2, skip=["lm_head"])
    optimizer = torch.optim.AdamW(dendnorm.param_groups(model, weight_decay=0.01), lr=3e-3)
    rewiring = dendnorm.SET(model, optimizer, zeta=0.1, seed=0)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    rewiring.step()
    dendnorm.save(tmp_path / "gpt2.safetensors", model)
    other = gpt2(seed=1)
    dendnorm.sparsify(other, 0.2, skip=["lm_head"])
    dendnorm.load(tmp_path / "gpt2.safetensors", other, adopt_pattern=True)
    with torch.no_grad():
        assert torch.equal(other.eval()(tokens).logits, model.eval()(tokens).logits)


@pytest.mark.feature("transformers: save_pretrained writes a sparse model's weights; load_state_dict takes them")
def test_save_pretrained_and_load(tmp_path):
    reader = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    model, tokens = gpt2().eval(), torch.randint(64, (2, 16))
    dendnorm.sparsify(model, 0.2, skip=["lm_head"])
    model.save_pretrained(tmp_path)
    other = gpt2(seed=1).eval()
    dendnorm.sparsify(other, 0.2, skip=["lm_head"])
    missing, unexpected = other.load_state_dict(reader.load_file(tmp_path / "model.safetensors"), strict=False)
    assert missing in ([], ["lm_head.weight"]) and unexpected == []  # tied, and so written once
    with torch.no_grad():
        assert torch.equal(other(tokens).logits, model(tokens).logits)


def run_example(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.feature("examples/gpt2_sparsify.py, on a small configuration")
def test_the_gpt2_example_runs(tmp_path):
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    out = run_example("gpt2_sparsify.py", "--layers", "2", "--width", "64", "--tokens", "32", "--out", str(tmp_path))
    assert "the same outputs" in out and (tmp_path / "gpt2.safetensors").exists()


@pytest.mark.feature("examples/char_transformer.py: sparse against dense with equal numbers of parameters")
def test_the_transformer_example_runs():
    out = run_example("char_transformer.py", "--steps", "4", "--batch", "4", "--context", "16", "--width", "16")
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert len(cells) == 2 and cells[0][0] == "dense" and cells[1][0].startswith("sparse")
    dense, sparse = (int(row[1].replace(",", "")) for row in cells)
    assert dense == sparse
