"""Other people's models: GPT-2 of transformers made sparse, trained, saved, loaded; the examples that show it."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

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


@pytest.mark.feature("examples/resnet_cifar.py: dense, SET and RigL on a few images; goes on where it stopped")
def test_the_resnet_example_runs_and_goes_on(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="the package pillow is not installed")
    for split, count in (("train", 4), ("test", 2)):
        for label in range(10):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                image.new("RGB", (32, 32), (25 * label, 20 * number, 50)).save(folder / f"{number}.png")
    runs = ["dense", "SET l0 90%", "RigL none 95%"]

    def run(out: str, *more: str) -> dict:
        sizes = ["--width", "8", "--batch", "16", "--every", "1", "--epochs", "2", "--examples", "32"]
        run_example("resnet_cifar.py", "--root", str(tmp_path), "--out", str(tmp_path / out), *sizes, "--runs", *runs,
                    *more)  # fmt: skip
        return json.loads((tmp_path / out / "results.json").read_text())

    whole = run("whole")
    assert list(whole) == runs and "| RigL none 95% |" in (tmp_path / "whole" / "results.md").read_text()
    assert whole["SET l0 90%"]["bytes"] < 0.5 * whole["dense"]["bytes"]
    assert all(len(found["history"]) == 1 for found in run("parts", "--until", "1").values())
    for name, found in run("parts").items():
        seen = [[(epoch["accuracy"], epoch["loss"]) for epoch in each["history"]] for each in (found, whole[name])]
        assert seen[0] == seen[1]


@pytest.mark.feature("examples/char_transformer.py: sparse against dense with equal numbers of parameters")
def test_the_transformer_example_runs():
    out = run_example("char_transformer.py", "--steps", "4", "--batch", "4", "--context", "16", "--width", "16")
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert len(cells) == 2 and cells[0][0] == "dense" and cells[1][0].startswith("sparse")
    dense, sparse = (int(row[1].replace(",", "")) for row in cells)
    assert dense == sparse


# What is replaced, what is left and why


class Reads(nn.Module):
    """Layers whose weights are read from outside in several ways, and some that only seem so."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcdefg":
            setattr(self, name, nn.Linear(4, 4))
        self.each = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.fine, self.started, self.block = nn.Linear(4, 4), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))
        nn.init.zeros_(self.started.weight)

    @property
    def turned(self) -> torch.Tensor:
        return self.e.weight.t()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.linear(x, self.a.weight, self.a.bias)
        layer = self.b
        x = x @ layer.weight.T
        x = outside(x, layer=self.c)
        x = self.inner(x)
        x = x @ self.turned
        x = x @ getattr(self.f, "weight")  # noqa: B009
        for index, each in enumerate(self.each):
            x = x @ each.weight * index
        if self.training:
            x = x @ self.block[0].weight
        if isinstance(self.fine.weight, torch.Tensor) and x.dtype != self.fine.weight.dtype:
            x = x.to(self.fine.weight.dtype)
        return self.started(self.fine(self.g(x)))

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ij,bj->bi", self.d.weight, x)


class Inherits(Reads):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def outside(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    return x @ layer.weight


@pytest.mark.feature("sparsify finds layers whose weight is read from outside, before anything runs")
@pytest.mark.parametrize("kind", [Reads, Inherits])
def test_weights_that_are_read_from_outside_stay_dense(kind):
    model, x = kind(), torch.randn(2, 4)
    replaced = dendnorm.sparsify(model, 0.5)
    assert list(replaced) == ["g", "fine", "started"]
    assert set(replaced.left) == {*"abcdef", "each.0", "each.1", "block.0"}
    assert replaced.left["a"] == f"its weight is read by {kind.__name__}.forward, which takes it for a matrix"
    assert f"{kind.__name__}.forward (outside)" in replaced.left["c"]
    for mode in (True, False):
        assert model.train(mode)(x).shape == (2, 4)


def test_a_class_without_source_is_looked_through_all_the_same():
    space = {"nn": nn}
    exec(
        "class Hidden(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.read, self.free = nn.Linear(4, 4), nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        return self.free(x @ self.read.weight)\n",
        space,
    )
    replaced = dendnorm.sparsify(nn.Sequential(space["Hidden"]()), 0.5)
    assert "0.read" in replaced.left and list(replaced) == ["0.free"]


class Subclass(nn.Linear):
    pass


def test_the_report_says_what_and_why():
    lazy = nn.LazyLinear(3)
    model = nn.ModuleDict({
        "body": nn.Linear(10, 10), "head": nn.Linear(10, 2), "lazy": lazy, "sub": Subclass(10, 10),
        "conv": nn.Conv2d(3, 4, 3), "normed": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        "old": nn.utils.spectral_norm(nn.Linear(4, 4)), "attention": nn.MultiheadAttention(8, 2),
        "sparse": SparseLinear(4, 4, 0.5), "lstm": nn.LSTM(3, 2), "cell": nn.GRUCell(3, 2),
        "offloaded": nn.Linear(4, 4), "hooked": nn.Linear(4, 4), "watched": nn.Linear(4, 4),
    })  # fmt: skip
    offloaded, hooked, watched = (model[name] for name in ("offloaded", "hooked", "watched"))
    offloaded.forward = functools.partial(nn.Linear.forward, offloaded)
    hooked.weight.register_hook(lambda gradient: gradient * 0)
    watched.bias.register_post_accumulate_grad_hook(lambda parameter: None)
    before = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("lazy"))
    replaced = dendnorm.sparsify(model, 0.2, skip=["head"])
    assert list(replaced) == ["body"] and (replaced.connections, replaced.positions) == ({"body": 20}, {"body": 100})
    assert replaced.density == 0.2 and replaced.dense_parameters == before
    assert replaced.parameters == before - 80 + 1  # the norm's excitability
    text = str(replaced)
    for name, reason in {
        "head": "named in skip", "lazy": "run one through the model", "sub": "subclass of nn.Linear not among types",
        "conv": "Conv2d is not among types", "normed": "a parametrization computes",
        "old": "SpectralNorm computes its weight", "attention.out_proj": "read by MultiheadAttention.forward",
        "attention.in_proj_weight": "a Parameter of MultiheadAttention itself", "sparse": "sparse already",
        "lstm.weight_hh_l0": "a Parameter of LSTM itself", "cell.weight_ih": "a Parameter of GRUCell itself",
        "offloaded": "its forward was replaced on the module itself", "hooked": "a hook is registered on its weight",
        "watched": "a hook is registered on its bias",
    }.items():  # fmt: skip
        assert reason in replaced.left[name] and reason in text and name in text
    assert "1 layer replaced" in text and "0.2 (20 of 100)" in text
    assert replaced.overall_density == replaced.parameters / before


def test_types_name_subclasses():
    for types in ([Subclass], [f"{__name__}.Subclass"]):
        model = nn.Sequential(Subclass(6, 6), nn.Linear(6, 6))
        assert list(dendnorm.sparsify(model, 0.5, types=types)) == ["0"]
        assert list(dendnorm.densities(nn.Sequential(Subclass(6, 6)), 0.5, types=types)) == ["0"]
    for wrong in ([nn.Conv3d], [3], nn.Linear, "Subclass"):
        with pytest.raises(TypeError, match="types must"):
            dendnorm.sparsify(nn.Sequential(nn.Linear(6, 6)), 0.5, types=wrong)


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: nn.MultiheadAttention(32, 4), r"nothing was replaced: out_proj: its weight is read by Multihead"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "run one through the model"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "Conv2d is not among types"),
        (lambda: nn.Sequential(nn.ReLU()), "got none"),
    ],
)
def test_nothing_replaced_says_why(model, message):
    with pytest.raises(ValueError, match=message):
        dendnorm.sparsify(model(), 0.5)


def test_a_lazy_layer_is_replaced_after_its_first_batch():
    model = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 2))
    assert list(dendnorm.sparsify(model, 0.5)) == ["1"]
    model(torch.randn(2, 5))
    assert list(dendnorm.sparsify(model, 0.5)) == ["0"]


OF_MATRICES = {
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "ln_structured": lambda layer: prune.ln_structured(layer, "weight", 0.5, 2, 0),
    "random_structured": lambda layer: prune.random_structured(layer, "weight", 0.5, 0),
}


@pytest.mark.feature("spectral_norm, weight_norm, orthogonal, pruning of rows on a sparse weight: refused by name")
@pytest.mark.parametrize("name", OF_MATRICES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_made_for_matrices_is_refused_on_a_sparse_weight(name):
    model, x = nn.Sequential(SparseLinear(6, 4, 0.5, seed=0)), torch.randn(2, 6)
    wanted = model(x)
    message = rf"weight must not be computed by {name.split()[-1]}.*sparse layer.*densify"
    with pytest.raises(ValueError, match=message):
        OF_MATRICES[name](model[0])
    assert torch.equal(model(x), wanted) and not model[0]._forward_pre_hooks
    dendnorm.densify(model)
    assert OF_MATRICES[name](model[0])(x).shape == (2, 4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_old_spectral_norm_is_refused_when_it_computes():
    layer = nn.utils.spectral_norm(SparseLinear(6, 4, 0.5, seed=0))
    for call in (lambda: layer(torch.randn(2, 6)), layer.effective_weight, layer.to_dense):
        with pytest.raises(ValueError, match=r"weight must not be computed by spectral_norm.*sparse layer"):
            call()


@pytest.mark.parametrize("name", [*OF_MATRICES, "old spectral_norm", "l1_unstructured"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_computes_a_weight_before_is_right_or_named(name):
    """sparsify comes afterwards."""
    more = {"old spectral_norm": nn.utils.spectral_norm,
            "l1_unstructured": lambda layer: prune.l1_unstructured(layer, "weight", 0.5)}  # fmt: skip
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4)).eval(), torch.randn(2, 6)
    (OF_MATRICES | more)[name](model[0])
    wanted = model(x)
    replaced = dendnorm.sparsify(model, None, norm="none")
    pruned = "structured" in name
    assert list(replaced) == (["0", "2"] if pruned else ["2"])
    if not pruned:
        assert "computes its weight" in replaced.left["0"] and "remove" in replaced.left["0"]
    torch.testing.assert_close(model(x), wanted)


# Layouts of inputs


@pytest.mark.feature("nested tensors (strided and jagged) and sparse COO and CSR inputs")
@pytest.mark.filterwarnings("ignore:.*(prototype|beta state)")
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_inputs(layout, mode):
    layer = SparseLinear(6, 4, 0.5, norm="joint", seed=0)
    with mode():
        parts = [torch.randn(length, 6).requires_grad_(mode is torch.enable_grad) for length in (3, 2, 0)]
        out = layer(torch.nested.as_nested_tensor(parts, layout=layout))
        assert out.is_nested and out.layout == layout
        got, wanted = list(out.unbind()), [layer(part) for part in parts]
        torch.testing.assert_close(got, wanted)
    if mode is torch.enable_grad:
        leaves = [*parts, layer.weight, layer.bias, layer.norm.excitability]
        gradients = [torch.autograd.grad(sum(part.square().sum() for part in each), leaves) for each in (got, wanted)]
        torch.testing.assert_close(*gradients)
    if layout == torch.strided:
        with pytest.raises(RuntimeError, match="6 features"):
            layer(torch.nested.as_nested_tensor([torch.randn(3, 5)]))


@pytest.mark.filterwarnings("ignore:.*beta state")
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_inputs(convert):
    layer, x = SparseLinear(6, 4, 0.5, norm="joint", seed=0), torch.randn(3, 6).relu()
    out = layer(convert(x))
    torch.testing.assert_close(out, layer(x))
    gradients = [torch.autograd.grad(each.square().sum(), list(layer.parameters())) for each in (out, layer(x))]
    torch.testing.assert_close(*gradients)


# Whole models


def encoder(**options) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options)


@pytest.mark.feature("nn.TransformerEncoder: training and evaluation, padding masks, layers put in by hand")
@pytest.mark.filterwarnings("ignore:.*prototype")
@pytest.mark.parametrize("options", [{}, {"norm_first": True}])
@pytest.mark.parametrize("by_hand", [True, False])
def test_transformer_encoder(by_hand, options):
    model, x = encoder(**options), torch.randn(3, 5, 16)
    if by_hand:
        model.layers[1].linear2 = SparseLinear.from_dense(model.layers[1].linear2, 0.3)
    else:
        assert len(dendnorm.sparsify(model, 0.3)) == 4
    dense = copy.deepcopy(model)
    dendnorm.densify(dense)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    for training in (True, False):
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            for given in ({}, {"src_key_padding_mask": padding}, {"mask": causal, "is_causal": True}):
                with mode():
                    outputs = [each.train(training)(x, **given) for each in (model, dense)]
                torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    again = pickle.loads(pickle.dumps(model.eval()))
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))


def vision_transformer() -> tuple[nn.Module, dict]:
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        pytest.skip(f"the package timm is not installed with torchvision: {str(error).splitlines()[0]}")
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=4)
    return model, {"x": torch.randn(2, 3, 16, 16)}


def llama() -> tuple[nn.Module, dict]:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    config = transformers.LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                      num_key_value_heads=2, vocab_size=32, use_cache=False)  # fmt: skip
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.randint(32, (2, 6))}


def t5() -> tuple[nn.Module, dict]:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    config = transformers.T5Config(d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8, vocab_size=32,
                                   use_cache=False, dropout_rate=0.0)  # fmt: skip
    tokens = torch.randint(1, 32, (2, 6))
    return transformers.T5ForConditionalGeneration(config), {"input_ids": tokens, "decoder_input_ids": tokens}


MODELS = {
    "ViT": (vision_transformer, 8, ["head"]),
    "Llama": (llama, 14, ["lm_head"]),
    "T5": (t5, 32, ["lm_head"]),
    "encoder": (lambda: (encoder(), {"src": torch.randn(2, 5, 16)}), 4, []),
    "MLP": (
        lambda: (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), {"input": torch.randn(3, 8)}),
        2,
        [],
    ),
}


@pytest.mark.feature(
    "ViT (timm), Llama and T5 (transformers), an encoder, an MLP: sparse, trained, exported, dense again"
)
@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name, tmp_path):
    make, layers, skip = MODELS[name]
    torch.manual_seed(0)
    model, inputs = make()
    replaced = dendnorm.sparsify(model, 0.5, skip=skip)
    assert len(replaced) == layers and abs(replaced.density - 0.5) < 0.01, replaced
    optimizer = torch.optim.AdamW(dendnorm.param_groups(model), lr=1e-2)

    def run(each: nn.Module) -> torch.Tensor:
        out = each(**inputs)
        return out if isinstance(out, torch.Tensor) else out["logits"]

    run(model).square().mean().backward()
    before = [module.weight.detach().clone() for module in model.modules() if isinstance(module, SparseLinear)]
    optimizer.step()
    after = [module.weight for module in model.modules() if isinstance(module, SparseLinear)]
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    with torch.no_grad():
        wanted = run(model.eval())
        program = torch.export.export(model, (), kwargs=inputs, strict=False)
        program = program.run_decompositions(dendnorm.decompositions())
        assert not any("dendnorm" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(run(program.module()), wanted, rtol=1e-4, atol=1e-4)
        assert len(dendnorm.densify(model)) == layers
        assert not any(isinstance(module, SparseLinear) for module in model.modules())
        torch.testing.assert_close(run(model), wanted, rtol=1e-4, atol=1e-4)


def test_groups_without_weight_decay_leave_the_optimizers_own():
    model = nn.Sequential(SparseLinear(6, 4, 0.5), nn.LayerNorm(4))
    assert "weight_decay" not in dendnorm.param_groups(model)[0]
    optimizer = torch.optim.AdamW(dendnorm.param_groups(model), weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
