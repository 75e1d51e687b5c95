"""Whoever sets, swaps, copies, moves, averages or offloads what a layer saves: the next call is right or refuses."""

from __future__ import annotations

import copy
import io
import pickle
import types

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dendnorm
from dendnorm import SET, SparseConv2d, SparseLinear

NORMS = ["none", "l0", "joint"]


class Convolution(SparseConv2d):
    """Of windows as large as the image, given and taken flat: what a linear layer computes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.view(-1, 5, 2, 2)).flatten(1)


def made(seed: int, norm: str = "l0", kind: str = "linear", **options: object) -> SparseLinear | Convolution:
    if kind == "conv":
        return Convolution(5, 10, 2, density=0.3, norm=norm, seed=seed, **options)
    return SparseLinear(20, 10, 0.3, norm=norm, seed=seed, **options)


def dense(layer: SparseLinear) -> torch.Tensor:
    """The layer's output by a product of its own, from the saved tensors alone."""
    row, col = layer.row_indices.long(), torch.repeat_interleave(torch.arange(20), layer.ccol_indices.diff().long())
    counts = torch.bincount(row, minlength=10).clamp(min=1).double()
    power = torch.zeros(10, dtype=torch.float64).index_add_(0, row, layer.weight.detach().double() ** 2)
    d = counts**layer.norm.a * power.sqrt() ** layer.norm.b
    e = 1.0 if layer.norm.excitability is None else layer.norm.excitability.detach().double().expand(10)[row]
    weight = torch.zeros(10, 20, dtype=torch.float64)
    weight[row, col] = e * layer.weight.detach().double() / d[row]
    return X.double() @ weight.T + layer.bias.detach().double()


X = torch.randn(7, 20, generator=torch.Generator(torch.get_default_device()).manual_seed(0))


def check(layer: SparseLinear) -> None:
    torch.testing.assert_close(layer(X).double(), dense(layer), rtol=1e-5, atol=1e-5)


# Ways to give `target` the state of `source`, each leaving behind the layer to call.


def by_copy(target, source):
    for name, tensor in target.state_dict().items():
        tensor.copy_(source.state_dict()[name])


def by_copy_backwards(target, source):
    for name, tensor in reversed(list(target.state_dict().items())):
        tensor.copy_(source.state_dict()[name])


def by_copy_as_version_0_1_saved(target, source):
    for name, tensor in target.state_dict().items():
        if name != "pattern_mark":
            tensor.copy_(source.state_dict()[name])


def by_foreach_copy(target, source):
    for kind in (torch.float32, torch.int32, torch.float64):
        pairs = [(mine, source.state_dict()[name]) for name, mine in target.state_dict().items() if mine.dtype == kind]
        torch._foreach_copy_([mine for mine, _ in pairs], [theirs for _, theirs in pairs])


def by_setattr(target, source):
    for name, tensor in source.state_dict(keep_vars=True).items():
        module, _, key = name.rpartition(".")
        setattr(target.get_submodule(module), key, copy.deepcopy(tensor))


def by_replacing_buffers(target, source):
    target._buffers.update({name: tensor.clone() for name, tensor in source.named_buffers()})
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
            mine.copy_(theirs)


def by_data(target, source):
    for mine, theirs in zip(tensors(target), tensors(source), strict=True):
        mine.data = theirs.data.clone()


def by_set(target, source):
    with torch.no_grad():
        for mine, theirs in zip(tensors(target), tensors(source), strict=True):
            mine.set_(theirs.detach().clone())


def by_swap(target, source):
    for mine, theirs in zip(tensors(target), tensors(copy.deepcopy(source)), strict=True):
        torch.utils.swap_tensors(mine, theirs)


def by_load(target, source):
    target.load_state_dict(source.state_dict())


def by_assigning(target, source):
    target.load_state_dict(copy.deepcopy(source).state_dict(), assign=True)


def by_memory_map(target, source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "state.pt")
    target.load_state_dict(torch.load(tmp_path / "state.pt", mmap=True), assign=True)


def by_to_empty_and_load(target, source):
    target.to_empty(device="cpu")
    target.load_state_dict(source.state_dict())


def by_distributed_checkpoint(target, source, tmp_path):
    import torch.distributed.checkpoint as dcp

    dcp.save(source.state_dict(), checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    dcp.load(target.state_dict(), checkpoint_id=str(tmp_path / "dcp"), no_dist=True)  # into its tensors


def by_one_rewiring_and_back(target, source):
    by_load(target, source)
    kept = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    SET(target, None, zeta=0.3).step()
    for name, tensor in target.state_dict().items():
        tensor.copy_(kept[name])


def tensors(layer: SparseLinear) -> list[torch.Tensor]:
    return [*layer.parameters(), *layer.buffers()]


WAYS = [by_copy, by_copy_backwards, by_copy_as_version_0_1_saved, by_foreach_copy, by_setattr, by_replacing_buffers,
        by_data, by_set, by_swap, by_load, by_assigning, by_memory_map, by_to_empty_and_load,
        by_distributed_checkpoint, by_one_rewiring_and_back]  # fmt: skip


@pytest.mark.feature("state that is set tensor by tensor, in whatever way: the next call has the other pattern")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("norm", "kind"), [*((norm, "linear") for norm in NORMS), ("joint", "conv")])
@pytest.mark.parametrize("called_before", [True, False])
def test_state_may_be_set_in_any_way(way, norm, kind, called_before, tmp_path):
    target, source = made(0, norm, kind), made(1, norm, kind)
    with torch.no_grad():
        source.bias.normal_()
    if called_before:
        check(target)
    arguments = (target, source, tmp_path) if "tmp_path" in way.__code__.co_varnames[: way.__code__.co_argcount] else (
        target, source)  # fmt: skip
    way(*arguments)
    check(target)
    torch.testing.assert_close(target(X), source(X))
    for mine, theirs in zip(target.pattern, source.pattern, strict=True):
        assert torch.equal(mine, theirs)
    # and it goes on: gradients, a rewiring, a checkpoint
    target(X).sum().backward()
    SET(target, None, zeta=0.3, seed=1).step()
    check(target)
    again = made(2, norm, kind)
    again.load_state_dict(target.state_dict())
    check(again)


# Ways to write that leave no trace in a tensor's count of writes.


def through_data(mine, theirs):
    mine.data.copy_(theirs)


def under_inference_mode(mine, theirs):
    with torch.inference_mode():
        mine.copy_(theirs)


def by_numpy(mine, theirs):
    mine.detach().numpy()[...] = theirs.detach().numpy()


UNCOUNTED = [through_data, under_inference_mode, by_numpy]


@pytest.mark.feature("state that is written through .data, under inference mode or by NumPy, which nothing counts")
@pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="a call does not wait for a device to look")
@pytest.mark.parametrize("way", UNCOUNTED, ids=lambda way: way.__name__)
@pytest.mark.parametrize("zeta", [0.02, 0.1])
def test_writes_that_nothing_counts_are_seen(way, zeta):
    for seed in range(40):  # one connection elsewhere, which few entries of the row view tell
        layer = made(seed)
        layer(X)
        other = copy.deepcopy(layer)
        assert SET(other, None, zeta=zeta, seed=seed).step()[0].k == round(zeta * 60)
        for mine, theirs in zip(tensors(layer), tensors(other), strict=True):
            way(mine, theirs)
        check(layer)
        assert torch.equal(layer(X), other(X))


@pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="a call does not wait for a device to look")
@pytest.mark.parametrize("way", UNCOUNTED, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    "read",
    [SparseLinear.in_degrees, SparseLinear.to_sparse_csr, SparseLinear.effective_weight, SparseLinear.to_dense,
     lambda layer: layer.pattern, lambda layer: SET(layer, None, zeta=0.3).step()[0].grown,
     lambda layer: pickle.loads(pickle.dumps(layer)).perm, lambda layer: copy.deepcopy(layer).crow_indices],
)  # fmt: skip
def test_whoever_reads_first_sees_them(way, read):
    layer, other = made(0), made(1)
    layer(X)
    for mine, theirs in zip(tensors(layer), tensors(other), strict=True):
        way(mine, theirs)
    got, want = read(layer), read(other)
    if isinstance(got, torch.nn.Module):
        got, want = got.weight, want.weight
    if isinstance(got, torch.Tensor):
        got, want = [got], [want]
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine.to_dense(), theirs.to_dense())


@pytest.mark.feature("state that is set partly: the saved tensors decide, whichever was written")
def test_only_the_pattern_is_written():
    target, source = made(0), made(1)
    target(X)
    with torch.no_grad():
        target.row_indices.copy_(source.row_indices)
        target.ccol_indices.copy_(source.ccol_indices)
    check(target)


def test_an_unsound_pattern_is_refused_by_name_and_mended():
    layer = made(0)
    want = layer(X)
    kept = layer.row_indices.clone()
    with torch.no_grad():
        layer.row_indices.fill_(9)
    with pytest.raises(ValueError, match=r"SparseLinear\(in_features=20.*row_indices.*state_dict"):
        layer(X)
    with pytest.raises(ValueError, match="row_indices"):
        layer.pattern  # noqa: B018
    with torch.no_grad():
        layer.row_indices.copy_(kept)
    assert torch.equal(layer(X), want)


def test_functional_call_takes_another_layers_state():
    first, second = made(0), made(1)
    state = second.state_dict()
    for _ in range(3):
        assert torch.equal(functional_call(first, state, X), second(X))
        check(first)
    only = {name: state[name] for name in ("weight", "bias", "norm.excitability")}
    want = dense(copy_with(first, only))
    torch.testing.assert_close(functional_call(first, only, X).double(), want, rtol=1e-5, atol=1e-5)


def copy_with(layer: SparseLinear, state: dict) -> SparseLinear:
    other = copy.deepcopy(layer)
    other.load_state_dict(other.state_dict() | state)
    return other


@pytest.mark.parametrize("norm", NORMS)
def test_an_ensemble_of_different_patterns(norm):
    layers = [made(seed, norm) for seed in range(3)]
    parameters, buffers = stack_module_state(layers)

    def call(parameters, buffers):
        return functional_call(layers[0], (parameters, buffers), (X,))

    out = vmap(call)(parameters, buffers)
    for layer, mine in zip(layers, out, strict=True):
        torch.testing.assert_close(mine, layer(X))
    check(layers[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_have_state_of_their_own(copied):
    layer = made(0)
    layer(X)
    other = copied(layer)
    assert torch.equal(other(X), layer(X))
    SET(other, None, zeta=0.3).step()
    check(other)
    check(layer)
    assert not torch.equal(other.row_indices, layer.row_indices)


def test_a_whole_module_in_a_file():
    layer = made(0)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(X), layer(X))


def test_a_pickle_of_version_0_1():
    """Its row view was buffers, and it had no mark."""
    layer = made(0)
    want, view = layer(X), [tensor.clone() for tensor in layer.pattern[2:]]
    state = layer.__getstate__()
    for name in [name for name in state if name.startswith("_") and name not in vars(torch.nn.Module())]:
        del state[name]
    state["_buffers"] = {name: tensor for name, tensor in state["_buffers"].items() if name != "pattern_mark"}
    state["_buffers"] |= dict(zip(("crow_indices", "col_indices", "perm"), view, strict=True))
    state["_non_persistent_buffers_set"] = {"crow_indices", "col_indices", "perm"}
    old = SparseLinear.__new__(SparseLinear)
    old.__setstate__(state)
    assert torch.equal(old(X), want)
    assert list(old.state_dict()) == list(layer.state_dict())
    SET(old, None, zeta=0.3).step()
    check(old)


def test_a_state_dict_of_version_0_1():
    layer, source = made(0), made(1)
    state = source.state_dict()
    del state["pattern_mark"]
    layer.load_state_dict(state)
    assert torch.equal(layer(X), source(X))
    assert torch.equal(layer.pattern_mark, source.pattern_mark)


# Averages


def updates() -> dict:
    def ema_v2(averaged, model):  # over the values of both state_dicts, as timm's first averages did
        with torch.no_grad():
            for mine, theirs in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
                mine.copy_(0.9999 * mine + (1 - 0.9999) * theirs)

    def in_float32(averaged, model):
        with torch.no_grad():
            for mine, theirs in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
                mine.copy_(0.5 * mine.float() + 0.5 * theirs.float())

    return {"ema_v2": ema_v2, "in_float32": in_float32}


@pytest.mark.feature("averages of weights that go over buffers, too: exact while the pattern stays")
@pytest.mark.parametrize("decay", [0.5, 0.9999, None])
@pytest.mark.parametrize("steps", [1, 20])
def test_averages_with_buffers_are_exact_while_the_pattern_stays(decay, steps):
    net = SparseLinear(784, 300, 0.1, seed=0)
    function = None if decay is None else get_ema_multi_avg_fn(decay)
    averaged = AveragedModel(net, use_buffers=True, multi_avg_fn=function)
    x = torch.randn(16, 784)
    for _ in range(steps):
        averaged.update_parameters(net)
    torch.testing.assert_close(averaged(x), net(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(averaged.module.row_indices, net.row_indices)
    assert torch.equal(averaged.module.ccol_indices, net.ccol_indices)
    averaged.update_parameters(net)
    torch.testing.assert_close(averaged(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("update", updates().values(), ids=updates())
def test_averages_over_state_dicts_are_exact_while_the_pattern_stays(update):
    net = made(0)
    averaged = copy.deepcopy(net)
    for _ in range(5):
        update(averaged, net)
    torch.testing.assert_close(averaged(X), net(X), rtol=1e-5, atol=1e-5)


@pytest.mark.feature("averages over layers with different patterns: refused by name")
@pytest.mark.parametrize("update", [*updates(), "averaged", "swa"])
def test_averages_of_different_patterns_are_refused(update):
    net = made(0)
    if update in ("averaged", "swa"):
        function = get_ema_multi_avg_fn(0.9999) if update == "averaged" else None
        averaged = AveragedModel(net, use_buffers=True, multi_avg_fn=function)
        averaged.update_parameters(net)
        step = averaged.update_parameters
    else:
        averaged = copy.deepcopy(net)

        def step(model):
            updates()[update](averaged, model)

    SET(net, None, zeta=0.3).step()
    step(net)
    with pytest.raises(ValueError, match=r"SparseLinear\(.*averages\.follow"):
        averaged(X)


@pytest.mark.feature("averages of parameters alone that went on through a rewiring: refused by name")
@pytest.mark.parametrize("function", [None, get_ema_multi_avg_fn(0.99)])
def test_an_average_that_was_given_the_next_pattern_is_refused(function):
    net = made(0)
    averaged = AveragedModel(net, multi_avg_fn=function)
    averaged.update_parameters(net)
    SET(net, None, zeta=0.3).step()
    averaged.update_parameters(net)  # copies buffers, and averages values of both patterns
    with pytest.raises(ValueError, match=r"SparseLinear\(.*before a rewiring.*averages\.follow"):
        averaged(X)
    averaged.module.load_state_dict(net.state_dict())
    assert torch.equal(averaged(X), net(X))


def test_a_copy_that_is_given_all_of_the_original_in_place():
    net = made(0)
    target, restored = copy.deepcopy(net), copy.deepcopy(net)
    for seed in range(3):
        SET(net, None, zeta=0.3, seed=seed).step()
        with torch.no_grad():
            for mine, theirs in zip(target.state_dict().values(), net.state_dict().values(), strict=True):
                mine.copy_(theirs)
        assert torch.equal(target(X), net(X))
        with torch.no_grad():
            net.weight.mul_(0.5)
        assert not torch.equal(target(X), net(X))
    with torch.no_grad():
        net.weight.mul_(0.5)
    restored.load_state_dict(target.state_dict())  # the pattern of the original, and other values
    assert torch.equal(restored(X), target(X))


def lerped(averaged, net, data):
    with torch.no_grad():
        for mine, theirs in zip(averaged.parameters(), net.parameters(), strict=True):
            (mine.data if data else mine).lerp_(theirs, 0.1)


@pytest.mark.feature("averages of parameters alone by hand, as of target networks: refused by name after a rewiring")
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("data", [True, False])
def test_a_copy_that_is_given_values_of_the_next_pattern_is_refused(frozen, data):
    net = made(0)
    target = copy.deepcopy(net).requires_grad_(not frozen)
    lerped(target, net, data)
    with torch.no_grad():
        check(target)
        SET(net, None, zeta=0.3).step()
        check(target)
        lerped(target, net, data)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"SparseLinear\(.*since the layer that this one was copied from was"):
                target(X)
        target.load_state_dict(net.state_dict())
        lerped(target, net, data)
        check(target)
        lerped(target, SET(net, None, zeta=0.3).step() and net, data)
        for mine, theirs in zip(tensors(target), tensors(net), strict=True):
            mine.copy_(theirs)
        assert torch.equal(target(X), net(X))


def test_copies_that_are_trained_by_themselves_go_on():
    nets = [made(0)]
    nets += [copy.deepcopy(nets[0]) for _ in range(2)]
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.01) for net in nets]
    rewirings = [SET(net, optimizer, zeta=0.3) for net, optimizer in zip(nets, optimizers, strict=True)]
    teacher = copy.deepcopy(nets[0]).requires_grad_(False)
    want = teacher(X)
    for turn in range(4):
        for net, optimizer in zip(nets, optimizers, strict=True):
            for _ in range(2):
                optimizer.zero_grad()
                (net(X) - teacher(X)).square().mean().backward()
                optimizer.step()
            optimizer.zero_grad()
        for rewire in rewirings[: 1 + turn % 2]:
            rewire.step()
        with torch.no_grad():
            for net in nets:
                check(net)
    assert torch.equal(teacher(X), want)


def test_an_average_that_begins_after_rewirings():
    net = made(0)
    averaged = AveragedModel(net)
    SET(net, None, zeta=0.3).step()
    averaged.update_parameters(net)  # the first copies
    with torch.no_grad():
        net.weight.add_(1)
    averaged.update_parameters(net)
    assert torch.equal(averaged(X), averaged.module(X))
    check(averaged.module)
    SET(net, None, zeta=0.3, seed=1).step()
    averaged.update_parameters(net)
    with pytest.raises(ValueError, match="before a rewiring"):
        averaged(X)


def test_what_is_copied_together_belongs_together():
    net = made(0)
    target = copy.deepcopy(net).requires_grad_(False)
    other, its_target = copy.deepcopy((net, target))
    SET(other, None, zeta=0.3).step()
    lerped(its_target, other, False)
    with pytest.raises(ValueError, match="was rewired"):
        its_target(X)
    lerped(target, net, False)
    check(target)


def test_a_mixture_of_patterns_is_not_saved(tmp_path):
    net = made(0)
    averaged = AveragedModel(net)
    averaged.update_parameters(net)
    SET(net, None, zeta=0.3).step()
    averaged.update_parameters(net)
    with pytest.raises(ValueError, match="before a rewiring"):
        dendnorm.save(tmp_path / "average.safetensors", averaged)
    assert not list(tmp_path.iterdir())


def test_biases_alone_are_loaded_where_that_is_allowed():
    model = torch.nn.Sequential(made(0))
    want = model(X).detach() + 1
    told = model.load_state_dict({"0.bias": model[0].bias.detach() + 1}, strict=False)
    assert "0.weight" in told.missing_keys
    torch.testing.assert_close(model(X), want)
    with pytest.raises(RuntimeError, match=r"bias must have shape \(10,\)"):
        model.load_state_dict({"0.bias": torch.zeros(3)}, strict=False)


def test_a_state_dict_without_the_layer_leaves_it_where_that_is_allowed():
    model = torch.nn.Sequential(made(0), torch.nn.Linear(3, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    head = {name: value + 1 for name, value in before.items() if name.startswith("1.")}
    told = model.load_state_dict(head, strict=False)
    assert {"0.weight", "0.ccol_indices", "0.row_indices"} <= set(told.missing_keys)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] + 1 if name.startswith("1.") else before[name]), name
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
        model.load_state_dict(head)
    part = {"0.weight": before["0.weight"] * 2}
    with pytest.raises(RuntimeError, match="0: the state_dict must hold"):
        model.load_state_dict(part, strict=False)  # values of another pattern, as like as not
    assert torch.equal(model[0].weight, before["0.weight"])


def test_scripting_is_refused_by_name():
    with pytest.raises(TypeError, match=r"SparseLinear\(.*torch\.jit\.script.*torch\.export"):
        torch.jit.script(torch.nn.Sequential(made(0)))


def test_saved_tensors_put_in_one_by_one_where_the_layer_was_on_the_meta_device():
    net = made(0)
    with torch.device("meta"):
        empty = made(0)
    for name, tensor in net.named_buffers():
        empty.register_buffer(name, tensor.clone())
    for name, tensor in net.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(empty.get_submodule(owner), leaf, torch.nn.Parameter(tensor.detach().clone()))
    assert torch.equal(empty.to("cpu")(X), net(X))


def test_a_soup_of_state_dicts():
    first = made(0)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.weight.normal_()
    target = made(2)

    def mean(a, b):
        return {name: (a.state_dict()[name] + b.state_dict()[name]) / 2 for name in a.state_dict()}

    target.load_state_dict(mean(first, second))
    assert torch.equal(target.row_indices, first.row_indices)
    torch.testing.assert_close(target.weight, (first.weight + second.weight) / 2)
    check(target)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(RuntimeError, match="different patterns"):
        target.load_state_dict(mean(first, made(1)))
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


# Devices that hold nothing, inference mode, offloading


def test_meta_then_tensors_one_by_one():
    with torch.device("meta"):
        layer = SparseLinear(20, 10, 0.3)
    source = made(1)
    assert layer(torch.empty(3, 20, device="meta")).shape == (3, 10)
    for name, tensor in source.state_dict().items():
        module, _, key = name.rpartition(".")
        owner = layer.get_submodule(module)
        if key in owner._parameters:
            owner._parameters[key] = torch.nn.Parameter(tensor.clone())
        else:
            owner._buffers[key] = tensor.clone()
    assert torch.equal(layer(X), source(X))


def test_to_empty_of_a_layer_with_values_is_no_pattern():
    layer = made(0).to_empty(device="cpu")
    with torch.no_grad():
        layer.row_indices.fill_(-5)
    with pytest.raises(ValueError, match="_indices"):
        layer(X)
    layer.reset_parameters(seed=0)
    assert torch.equal(layer(X), made(0)(X))


def test_a_layer_made_under_inference_mode():
    with torch.inference_mode():
        layer = made(0)
        want = layer(X)
        assert torch.equal(layer(X), want)
    with torch.no_grad():
        assert torch.equal(layer(X), want)
    torch.testing.assert_close(want, made(0)(X).detach())


def test_what_was_made_under_inference_mode_can_be_loaded():
    with torch.inference_mode():
        layer = made(0)
        assert torch.equal(layer.pattern_mark, made(0).pattern_mark)
        layer.load_state_dict(made(1).state_dict())
        made(2).load_state_dict(layer.state_dict())
    other = made(3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(X), made(1)(X))


def test_copies_and_averages_of_a_weight_that_is_computed():
    layer = made(0)
    parametrize.register_parametrization(layer, "weight", torch.nn.Tanh())
    assert torch.equal(copy.deepcopy(layer)(X), layer(X))
    averaged = AveragedModel(layer)
    averaged.update_parameters(layer)
    assert torch.equal(averaged(X), layer(X))


def test_a_view_that_was_derived_under_inference_mode_trains():
    layer, source = made(0), made(1)
    by_copy(layer, source)
    with torch.inference_mode():
        layer(X)
    layer(X).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.feature("accelerate: loading by a device map, and offloading, shared norms included")
def test_accelerate_loads_and_offloads(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    safetensors = pytest.importorskip("safetensors.torch")
    source = torch.nn.Sequential(made(1), torch.nn.ReLU(), SparseLinear(10, 4, 0.5, seed=3))
    x, want = X, source(X).detach()
    safetensors.save_file(source.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = torch.nn.Sequential(made(0), torch.nn.ReLU(), SparseLinear(10, 4, 0.5, seed=4))
    accelerate.load_checkpoint_in_model(model, str(tmp_path / "model.safetensors"), device_map={"": "cpu"})
    assert torch.equal(model(x), want)
    with accelerate.init_empty_weights(include_buffers=True):
        empty = torch.nn.Sequential(SparseLinear(20, 10, 0.3), torch.nn.ReLU(), SparseLinear(10, 4, 0.5))
    accelerate.load_checkpoint_in_model(empty, str(tmp_path / "model.safetensors"), device_map={"": "cpu"})
    assert torch.equal(empty(x), want)
    model = accelerate.cpu_offload(copy.deepcopy(source), execution_device="cpu")
    for _ in range(2):
        assert torch.equal(model(x), want)
        assert model[0].weight.is_meta
    disk = torch.nn.Sequential(made(0), torch.nn.ReLU(), SparseLinear(10, 4, 0.5, seed=4))
    disk.load_state_dict(source.state_dict())
    accelerate.disk_offload(disk, str(tmp_path / "disk"), execution_device="cpu")
    for _ in range(2):
        assert torch.equal(disk(x), want)


def test_an_offloaded_layer_keeps_no_tables():
    """They would hold the memory that offloading frees after each call."""
    layer, source = made(0), made(1)
    layer(X)
    layer._hf_hook = types.SimpleNamespace(offload=True)
    layer._buffers.update({name: tensor.clone() for name, tensor in source.named_buffers()})
    layer(X)
    assert layer._tables is None


def test_shared_memory():
    layer = made(0)
    want = layer(X)
    layer.share_memory()
    assert torch.equal(layer(X), want)
    assert all(tensor.is_shared() for tensor in layer.pattern)


# Graphs


def test_a_compiled_layer_goes_on_after_a_load_and_a_rewiring():
    layer, source = made(0), made(1)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(X), layer(X))
    layer.load_state_dict(source.state_dict())
    torch.testing.assert_close(compiled(X), source(X))
    SET(layer, None, zeta=0.3).step()
    torch.testing.assert_close(compiled(X).double(), dense(layer), rtol=1e-5, atol=1e-5)
    fresh = torch.compile(made(3), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fresh(X), made(3)(X))


@pytest.mark.parametrize("name", ["weight", "tables"])
def test_addresses_stay_through_loads_and_rewirings(name):
    layer, source = made(0), made(1)
    layer(X)
    before = [tensor.data_ptr() for tensor in (*layer.parameters(), *layer.pattern)]
    by_load(layer, source)
    SET(layer, None, zeta=0.3).step()
    by_copy(layer, source)
    layer(X)
    assert [tensor.data_ptr() for tensor in (*layer.parameters(), *layer.pattern)] == before
