"""The layer inside what PyTorch users have around their layers: compilers, wrappers, loaders, averages, optimizers."""

from __future__ import annotations

import copy
import multiprocessing

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from dendnorm import SET, SparseLinear
from dendnorm.integrations.averages import follow


def network() -> nn.Sequential:
    return nn.Sequential(
        SparseLinear(12, 16, density=0.4, norm="joint", seed=0),
        nn.Sigmoid(),
        SparseLinear(16, 3, density=0.4, norm="l0", seed=1),
    )


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


# Compilers


@pytest.mark.feature("torch.compile: training with rewiring between calls, several batch sizes, one graph")
def test_a_compiled_model_trains_and_is_rewired_without_recompiling():
    models = [network() for _ in range(2)]
    runs = [torch.compile(models[0], fullgraph=True, dynamic=True), models[1]]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.05) for model in models]
    rewirings = [SET(*pair, zeta=0.3, seed=1) for pair in zip(models, optimizers, strict=True)]
    before = models[0][0].row_indices.clone()
    counters.clear()
    for batch in (10, 33, 7, 64):
        x = torch.randn(batch, 12)
        losses = [train_step(run, optimizer, x) for run, optimizer in zip(runs, optimizers, strict=True)]
        torch.testing.assert_close(*losses)
        for rewiring in rewirings:
            rewiring.step()
        torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())
    assert counters["stats"]["unique_graphs"] == 1
    assert not torch.equal(models[0][0].row_indices, before)


@pytest.mark.feature("torch.export: save, load, other batch sizes")
def test_an_exported_program_is_saved_and_loaded(tmp_path):
    model = network().eval()
    program = torch.export.export(model, (torch.randn(4, 12),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (2, 9):
        x = torch.randn(batch, 12)
        assert torch.equal(loaded(x), model(x))


@pytest.mark.feature("AOTInductor: a compiled package with a dynamic batch")
def test_an_ahead_of_time_compiled_package(tmp_path):
    model = SparseLinear(12, 16, density=0.4, norm="joint", seed=0).eval()
    program = torch.export.export(model, (torch.randn(4, 12),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    run = torch._inductor.aoti_load_package(path)
    for batch in (2, 9):
        x = torch.randn(batch, 12)
        torch.testing.assert_close(run(x), model(x))


# Modes


@pytest.mark.feature("autocast on the CPU, bfloat16 and float16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_the_cpu(dtype):
    model = nn.Sequential(nn.Linear(12, 12), network())
    x = torch.randn(5, 12)
    with torch.autocast("cpu", dtype=dtype):
        out = model(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), model(x), rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.feature('autocast on "cuda": the dtypes, without a device')
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_cuda_as_far_as_shapes_go(dtype):
    from torch._subclasses import FakeTensorMode

    layer = network()[0]
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        indices = [torch.empty(tensor.shape, dtype=torch.int32, device="cuda") for tensor in layer.pattern]
        x, weight = torch.empty(3, 12, device="cuda"), torch.empty(layer.nnz, device="cuda")
        try:
            # torch.autocast itself turns off where no device is.
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", dtype)
            out = torch.ops.dendnorm.sparse_linear(x, weight, None, None, *indices, 1.0, 0.0, 2.0)
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
    assert out.dtype == dtype and out.device.type == "cuda" and out.shape == (3, 16)


@pytest.mark.feature("gradient checkpointing, reentrant and not")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    model, x = network(), torch.randn(5, 12, requires_grad=True)
    wanted = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    model.zero_grad()
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, wanted[0])
    for parameter, gradient in zip(model.parameters(), wanted[1:], strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.filterwarnings("ignore:Error detected in SparseLinearBackward")
@pytest.mark.feature("anomaly mode names the op whose gradient is NaN")
def test_anomaly_mode():
    model = network()
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        model(torch.randn(5, 12)).sum().backward()
        with pytest.raises(RuntimeError, match=r"SparseLinearBackward.*nan"):
            model(torch.full((5, 12), torch.nan)).sum().backward()


@pytest.mark.feature("forward and backward hooks")
def test_hooks():
    model, x = network(), torch.randn(5, 12)
    seen = {}
    model[2].register_forward_pre_hook(lambda module, args: seen.update(pre=args[0].shape))
    model[2].register_forward_hook(lambda module, args, out: 2 * out)
    model[2].register_full_backward_hook(lambda module, to_input, to_output: seen.update(grad=to_input[0]))
    model[2].weight.register_hook(lambda gradient: seen.update(weight=gradient))
    plain = copy.deepcopy(model)
    plain[2]._forward_hooks.clear()
    out = model(x)
    assert torch.equal(out, 2 * plain(x)) and seen["pre"] == (5, 16)
    out.sum().backward()
    assert seen["grad"].shape == (5, 16)
    assert torch.equal(seen["weight"], model[2].weight.grad)


# Parametrizations


class Doubled(nn.Module):
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return 2 * tensor


@pytest.mark.feature("torch.nn.utils.parametrize on the bias, and on another module beside a sparse layer")
def test_parametrizations_beside_the_weight():
    model = nn.Sequential(network(), nn.Linear(3, 2))
    layer = model[0][0]
    nn.init.normal_(layer.bias)
    bias = layer.bias.detach().clone()
    parametrize.register_parametrization(layer, "bias", Doubled())
    nn.utils.parametrizations.weight_norm(model[1], "weight")
    assert torch.equal(layer.bias, 2 * bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewiring = SET(model, optimizer)
    original = layer.parametrizations.bias.original.detach().clone()
    train_step(model, optimizer, torch.randn(5, 12))
    rewiring.step()
    assert not torch.equal(layer.parametrizations.bias.original, original)
    other = nn.Sequential(network(), nn.Linear(3, 2))
    parametrize.register_parametrization(other[0][0], "bias", Doubled())
    nn.utils.parametrizations.weight_norm(other[1], "weight")
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, 12)
    assert torch.equal(other(x), model(x))


def parametrized(layer: SparseLinear) -> None:
    parametrize.register_parametrization(layer, "weight", Doubled())


def pruned(layer: SparseLinear) -> None:
    prune.random_unstructured(layer, "weight", amount=0.5)


@pytest.mark.feature("torch.nn.utils.parametrize and prune on the weight: it trains; rewiring it is refused by name")
@pytest.mark.parametrize("with_optimizer", [True, False])
@pytest.mark.parametrize("wrap", [parametrized, pruned])
def test_a_weight_that_is_computed_trains_but_is_not_rewired(wrap, with_optimizer):
    model = network()
    wrap(model[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    train_step(model, optimizer, torch.randn(5, 12))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"layer '0': weight must be a Parameter.*remove_parametrizations"):
        SET(model, optimizer if with_optimizer else None)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_weight_that_is_parametrized_later_is_refused_at_the_next_step():
    model = network()
    rewiring = SET(model, None)
    parametrized(model[2])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="layer '2': weight must be a Parameter"):
        rewiring.step()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    parametrize.remove_parametrizations(model[2], "weight")
    assert rewiring.step().step == 1


# Making, copying and loading


@pytest.mark.feature("load_state_dict(assign=True), onto the meta device too, and the model trains on")
@pytest.mark.parametrize("start", ["cpu", "meta"])
def test_loading_by_assignment(start):
    source = network()
    source[0].reset_parameters(seed=9)
    with torch.device(start):
        model = network()
    model.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(5, 12)
    assert torch.equal(model(x), source(x))
    assert model[0].norm.excitability.data_ptr() == source[0].norm.excitability.data_ptr()
    optimizer = torch.optim.Adam(model.parameters())
    train_step(model, optimizer, x)
    assert SET(model, optimizer).step().step == 1


@pytest.mark.feature("torch.nn.utils.skip_init, the meta device and to_empty")
def test_skip_init():
    layer = nn.utils.skip_init(SparseLinear, 12, 16, density=0.4, norm="joint")
    assert not layer.weight.is_meta
    layer.reset_parameters(seed=0)
    fresh = SparseLinear(12, 16, density=0.4, norm="joint", seed=0)
    x = torch.randn(5, 12)
    assert torch.equal(layer(x), fresh(x))


@pytest.mark.feature("deepcopy, pickle and torch.save of a model in training, its optimizer and its rewiring")
def test_copies_go_on_as_the_original(tmp_path):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    rewiring = SET(model, optimizer, seed=3)
    data = torch.randn(3, 5, 12)
    train_step(model, optimizer, data[0])
    rewiring.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    restored = network()
    restored.load_state_dict(state["model"])
    other = torch.optim.Adam(restored.parameters(), lr=0.05)
    other.load_state_dict(state["optimizer"])
    again = SET(restored, other, seed=0)
    again.load_state_dict(rewiring.state_dict())
    copied = copy.deepcopy((model, optimizer, rewiring))
    for x in data[1:]:
        for trio in ((model, optimizer, rewiring), (restored, other, again), copied):
            train_step(*trio[:2], x)
            trio[2].step()
    for trio in ((restored, other, again), copied):
        torch.testing.assert_close(trio[0].state_dict(), model.state_dict(), rtol=0, atol=0)


class Features(Dataset):
    """Examples that a layer computes, in the process that loads them."""

    def __init__(self, layer: SparseLinear) -> None:
        self.layer, self.inputs = layer, torch.arange(6 * 12, dtype=torch.float32).view(6, 12) / 72

    def __len__(self) -> int:
        return len(self.inputs)

    @torch.no_grad()
    def __getitem__(self, index: int) -> torch.Tensor:
        return self.layer(self.inputs[index])


class Collate:
    def __init__(self, layer: SparseLinear) -> None:
        self.layer = layer

    @torch.no_grad()
    def __call__(self, examples: list[torch.Tensor]) -> torch.Tensor:
        return self.layer(torch.stack(examples))


@pytest.mark.feature("DataLoader workers, forked and spawned, whose data set and collate function use layers")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no start method {method}")
    first, second = network()[0], network()[2]
    features = Features(first)
    # A parallel call first: a forked worker must not wait for threads that it did not inherit.
    big = SparseLinear(500, 500, density=0.2)
    big(torch.randn(256, 500)).sum().backward()
    loader = DataLoader(
        features, batch_size=2, num_workers=1, collate_fn=Collate(second), multiprocessing_context=method, timeout=60
    )
    got = torch.cat(list(loader))
    with torch.no_grad():
        torch.testing.assert_close(got, second(first(features.inputs)))


# Optimizers and averages

OPTIMIZERS = {
    "SGD": lambda p, **k: torch.optim.SGD(p, lr=0.1, momentum=0.9, **k),
    "Adam": lambda p, **k: torch.optim.Adam(p, lr=0.1, amsgrad=True, **k),
    "AdamW": lambda p, **k: torch.optim.AdamW(p, lr=0.1, **k),
    "Adagrad": lambda p, **k: torch.optim.Adagrad(p, lr=0.1, **k),
}


@pytest.mark.feature("torch.optim: foreach and fused steps equal the plain loop, with clip_grad_norm_ and rewiring")
@pytest.mark.parametrize("kind", ["foreach", "fused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_foreach_and_fused_optimizers(name, kind):
    models = [network() for _ in range(2)]
    optimizers = [
        OPTIMIZERS[name](models[0].parameters(), foreach=False),
        OPTIMIZERS[name](models[1].parameters(), **{kind: True}),
    ]
    rewirings = [SET(*pair, zeta=0.3) for pair in zip(models, optimizers, strict=True)]
    for _ in range(4):
        x = torch.randn(5, 12)
        for model, optimizer, rewiring in zip(models, optimizers, rewirings, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            rewiring.step()
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.feature("clip_grad_norm_ counts the gradients of sparse layers")
def test_clipping():
    model = network()
    (1000 * model(torch.randn(5, 12)).sum()).backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert norm > 1
    torch.testing.assert_close(nn.utils.clip_grad_norm_(model.parameters(), 1.0), norm)
    clipped = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    torch.testing.assert_close(clipped, torch.tensor(1.0), rtol=1e-4, atol=0)


def raw(layer: SparseLinear, values: torch.Tensor) -> torch.Tensor:
    return torch.zeros(layer.out_features, layer.in_features).index_put(layer.edges(), values)


@pytest.mark.feature("EMA (swa_utils.AveragedModel) with averages.follow: averages move with their connections")
def test_an_average_of_the_weights_follows_the_connections():
    decay, model = 0.8, network()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    rewiring = SET(model, optimizer, zeta=0.3)
    averaged.update_parameters(model)
    layer, mean = model[0], averaged.module[0]
    dense = raw(layer, layer.weight.detach())  # the average by hand, position by position
    for _ in range(5):
        train_step(model, optimizer, torch.randn(5, 12))
        averaged.update_parameters(model)
        dense = decay * dense + (1 - decay) * raw(layer, layer.weight.detach())
        report = rewiring.step()
        follow(averaged, model, report)
        now = raw(layer, layer.weight.detach())
        dense[report[0].removed] = 0
        dense[report[0].grown] = now[report[0].grown]
        assert torch.equal(mean.row_indices, layer.row_indices) and torch.equal(mean.perm, layer.perm)
        torch.testing.assert_close(raw(mean, mean.weight.detach()), dense, rtol=1e-5, atol=1e-6)
    x = torch.randn(5, 12)
    copied = network()
    copied.load_state_dict(averaged.module.state_dict())
    assert torch.equal(averaged(x), copied(x))


def test_an_average_follows_layers_that_share_a_weight():
    first = SparseLinear(12, 12, density=0.3, seed=0)
    second = SparseLinear(12, 12, density=0.3, seed=0)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    averaged = copy.deepcopy(model)
    report = SET(model, None, zeta=0.3).step()
    follow(averaged, model, report)
    for index in (0, 2):
        assert torch.equal(averaged[index].row_indices, model[index].row_indices)
        assert torch.equal(averaged[index].ccol_indices, model[index].ccol_indices)
    fresh = torch.isin(first.edges()[1] * 12 + first.edges()[0], report[0].grown[1] * 12 + report[0].grown[0])
    assert fresh.any() and torch.equal(averaged[0].weight[fresh], first.weight[fresh])
    x = torch.randn(3, 12)
    assert torch.equal(averaged(x), model(x))  # nothing was averaged since the copy was made


def test_an_average_of_buffers_follows_too():
    model = network()
    rewiring = SET(model, None, zeta=0.3)
    averaged = AveragedModel(model, use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(model)
        follow(averaged, model, rewiring.step())
        averaged.update_parameters(model)
        for mine, theirs in zip(averaged.module.modules(), model.modules(), strict=True):
            if isinstance(theirs, SparseLinear):
                assert torch.equal(mine.row_indices, theirs.row_indices)
                assert torch.equal(mine.pattern.perm, theirs.pattern.perm)


@pytest.mark.feature("averages in tensors alone, as diffusers and torch_ema keep them, follow the connections")
@pytest.mark.parametrize("trained", [True, False])
def test_an_average_in_tensors_alone_follows(trained):
    model = network()
    model[2].bias.requires_grad_(False)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.05)
    rewire = SET(model, optimizer, zeta=0.4, seed=1)
    wanted = copy.deepcopy(model)
    shadow = [each.detach().clone() for each in model.parameters() if each.requires_grad or not trained]

    def update():
        owners = [each for each in model.parameters() if each.requires_grad or not trained]
        with torch.no_grad():
            for mine, theirs in zip(shadow, owners, strict=True):
                mine.lerp_(theirs, 0.1)
            for mine, theirs in zip(wanted.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)

    for x in torch.randn(4, 5, 12):
        train_step(model, optimizer, x)
        report = rewire.step()
        follow(wanted, model, report)
        follow(shadow, model, report)
        update()
    expected = [mine for mine, theirs in zip(wanted.parameters(), model.parameters(), strict=True)
                if theirs.requires_grad or not trained]  # fmt: skip
    for mine, theirs in zip(shadow, expected, strict=True):
        assert torch.equal(mine, theirs)
    before = [each.clone() for each in shadow]
    for wrong, message in ((shadow[:-1], "got"), ([*shadow[:-1], None], "tensor like each"), (shadow[::-1], "shapes")):
        with pytest.raises(ValueError, match=f"averaged must be a model, or hold.*{message}"):
            follow(wrong, model, report)
    rewire.step()
    with pytest.raises(ValueError, match=r"report must be of its latest rewiring|before its latest rewiring"):
        follow(shadow, model, report)
    assert all(torch.equal(mine, was) for mine, was in zip(shadow, before, strict=True))


def test_an_average_that_cannot_follow_is_refused_and_left_as_it_was():
    model = network()
    rewiring = SET(model, None, zeta=0.3)
    late = copy.deepcopy(model)
    rewiring.step()
    report = rewiring.step()
    before = copy.deepcopy(late.state_dict())
    with pytest.raises(ValueError, match="layer '0': averaged must have the connections"):
        follow(late, model, report)
    with pytest.raises(ValueError, match="averaged must hold a layer '0'"):
        follow(nn.Linear(2, 2), model, report)
    torch.testing.assert_close(late.state_dict(), before, rtol=0, atol=0)
