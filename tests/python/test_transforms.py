"""PyTorch's own machinery around the layer: compile, export, torch.func, autocast, functional_call."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

import dendnorm
from dendnorm import SparseLinear, functional

ops = torch.ops.dendnorm
NORMS = ["none", "l0", "l0-variable", "lp:3", "joint"]
every_norm = pytest.mark.parametrize("norm", NORMS)


def layer_of(norm: str = "joint", seed: int = 0, dtype: torch.dtype = torch.float64) -> SparseLinear:
    layer = SparseLinear(7, 5, density=0.5, norm=norm, seed=seed, dtype=dtype)
    torch.nn.init.normal_(layer.bias)
    return layer


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, 7, dtype=dtype)


def parameters_of(layer: SparseLinear) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in layer.named_parameters()}


# torch.compile and torch.export


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        SparseLinear(12, 16, density=0.4, norm="joint", seed=0),
        torch.nn.Sigmoid(),
        SparseLinear(16, 8, density=0.4, norm="lp:3", seed=1),
        torch.nn.Sigmoid(),
        SparseLinear(8, 3, density=0.5, norm=None, seed=2, bias=False),
    )


@pytest.mark.slow
@pytest.mark.feature("torch.compile, full graph and dynamic shapes, forward and backward")
def test_compile_fullgraph_equals_eager_forward_and_backward():
    model = network()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch in (10, 33):
        x = torch.randn(batch, 12)
        results = []
        for run in (model, compiled):
            model.zero_grad()
            leaf = x.clone().requires_grad_()
            out = run(leaf)
            out.square().sum().backward()
            results.append([out.detach(), leaf.grad, *(parameter.grad.clone() for parameter in model.parameters())])
        torch.testing.assert_close(results[1], results[0])
    # Rewiring writes in place: the compiled graph goes on with the new edges.
    other = SparseLinear(12, 16, density=0.4, norm="joint", seed=9)
    model[0].load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_compile_of_functional_effective_weight():
    layer = layer_of()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def penalty(weight: torch.Tensor, excitability: torch.Tensor) -> torch.Tensor:
        return functional.effective_weight(weight, layer.pattern, layer.norm, excitability).abs().sum()

    got = penalty(layer.weight, layer.norm.excitability)
    torch.testing.assert_close(got, layer.effective_weight().abs().sum())
    wanted = torch.autograd.grad(layer.effective_weight().abs().sum(), [layer.weight, layer.norm.excitability])
    torch.testing.assert_close(torch.autograd.grad(got, [layer.weight, layer.norm.excitability]), wanted)


@pytest.mark.feature("torch.export with a dynamic batch")
def test_export():
    model = network().eval()
    x = torch.randn(4, 12)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("dendnorm.sparse_linear" in target for target in targets) == 3
    for batch in (4, 9):
        x = torch.randn(batch, 12)
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.feature("torch.compile keeps checks that return nothing")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_checks_survive_compilation(backend):
    def view(*indices: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([0, 2, 2], dtype=torch.int32), torch.tensor(indices, dtype=torch.int32)

    def csc(ccol: torch.Tensor, row: torch.Tensor) -> int:
        return dendnorm.Pattern.from_csc(ccol, row, (4, 2)).nnz

    def csr(crow: torch.Tensor, col: torch.Tensor) -> int:
        return dendnorm.Pattern.from_csr(crow, col, (2, 4)).nnz

    def direct(compressed: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        ops.check_pattern(compressed, indices, 4, "compressed", "indices")
        return indices * 2

    for function in (csc, csr, direct):
        compiled = torch.compile(function, backend=backend, fullgraph=function is direct)
        compiled(*view(1, 3))
        for wrong in ((3, 1), (1, 4), (-1, 2)):
            with pytest.raises((ValueError, RuntimeError), match="indices must be"):
                compiled(*view(*wrong))

    @torch.compile(backend=backend, fullgraph=True)
    def raising(status: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ops.raise_fault(status)
        return x + 1

    x = torch.ones(2, requires_grad=True)
    clear = torch.tensor([2**63 - 1, 0, 0, 0])
    raising(clear, x).sum().backward()
    with pytest.raises(RuntimeError):
        raising(torch.tensor([0, 0, 0, 0]), x)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_wrong_state_is_refused_in_a_compiled_function(backend):
    layer = layer_of()
    wrong = layer_of(seed=1).state_dict()
    wrong["row_indices"] = wrong["row_indices"].flip(0)

    @torch.compile(backend=backend)
    def load(state: dict[str, torch.Tensor]) -> torch.Tensor:
        layer.load_state_dict(state)
        return layer.weight.sum()

    with pytest.raises((ValueError, RuntimeError), match="indices"):
        load(wrong)


def test_an_exported_function_keeps_its_checks():
    class Checked(torch.nn.Module):
        def forward(self, compressed: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            ops.check_pattern(compressed, indices, 4, "compressed", "indices")
            return indices * 2

    compressed = torch.tensor([0, 2, 2], dtype=torch.int32)
    program = torch.export.export(Checked(), (compressed, torch.tensor([1, 3], dtype=torch.int32)))
    for run in (program.module(), program.run_decompositions().module()):
        with pytest.raises(RuntimeError, match="indices must be"):
            run(compressed, torch.tensor([3, 1], dtype=torch.int32))


# compiled autograd


@pytest.mark.feature("compiled autograd over an eager forward, every norm")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("norm", ["none", "l0-variable", "joint"])
def test_compiled_autograd_over_an_eager_forward(norm, backend):
    layer = layer_of(norm)

    def gradients(x: torch.Tensor) -> list[torch.Tensor]:
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        (layer(leaf).square().sum() + layer.effective_weight().pow(3).sum()).backward()
        return [leaf.grad, *(parameter.grad.clone() for parameter in layer.parameters())]

    for batch in (4, 4, 9, 13):  # traced, found again, with dynamic sizes
        x = inputs(batch)
        with compiled_autograd._enable(torch.compile(backend=backend, dynamic=True)):
            got = gradients(x)
        torch.testing.assert_close(got, gradients(x))


def test_compiled_autograd_gives_the_gradients_asked_for_and_refuses_second_ones_by_name():
    layer, x = layer_of("joint"), inputs(4).requires_grad_()
    layer.bias.requires_grad_(False)
    (wanted,) = torch.autograd.grad(layer(x).pow(3).sum(), (layer.weight,))
    first = torch.autograd.grad(layer(x).pow(3).sum(), (x, layer.weight), create_graph=True)
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        (alone,) = torch.autograd.grad(layer(x).pow(3).sum(), (layer.weight,))
        with pytest.raises(NotImplementedError, match=r"dendnorm.* SparseLinearBackwardBackward.*outside"):
            sum(g.square().sum() for g in first).backward()
    torch.testing.assert_close(alone, wanted)


# torch.func


@pytest.mark.feature("torch.func.grad through functional_call, every norm")
@every_norm
def test_grad_of_functional_call(norm):
    layer, x = layer_of(norm), inputs(4)

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).square().sum()

    got, got_x = grad(loss, argnums=(0, 1))(parameters_of(layer), x)
    leaf = x.clone().requires_grad_()
    layer(leaf).square().sum().backward()
    torch.testing.assert_close(got, {name: parameter.grad for name, parameter in layer.named_parameters()})
    torch.testing.assert_close(got_x, leaf.grad)


@pytest.mark.feature("torch.func.vmap over inputs, as one call of the kernel")
@pytest.mark.parametrize("in_dim", [0, 1, -2])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2)])
def test_vmap_over_inputs_is_one_batch(shape, in_dim):
    layer, x = layer_of(), inputs(*shape)
    calls = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is ops.sparse_linear.default:
                calls.append(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Count():
        got = vmap(layer, in_dims=in_dim, out_dims=in_dim)(x)
    torch.testing.assert_close(got, layer(x))
    assert len(calls) == 1


def test_vmap_in_vmap():
    layer, x = layer_of(), inputs(2, 3, 4)
    torch.testing.assert_close(vmap(vmap(layer))(x), layer(x))
    torch.testing.assert_close(vmap(vmap(vmap(layer)), in_dims=1, out_dims=1)(x), layer(x))


def test_vmap_over_no_slices():
    layer = layer_of()
    assert vmap(layer)(inputs(0, 3)).shape == (0, 3, 5)


@pytest.mark.feature("torch.func: a gradient for each example")
@every_norm
def test_gradients_for_each_example(norm):
    layer, x = layer_of(norm), inputs(4)

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).square().sum()

    got = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0))(parameters_of(layer), x)
    for index, example in enumerate(x):
        wanted = grad(loss, argnums=(0, 1))(parameters_of(layer), example)
        torch.testing.assert_close({name: value[index] for name, value in got[0].items()}, wanted[0])
        torch.testing.assert_close(got[1][index], wanted[1])


@pytest.mark.feature("torch.func.vmap over an ensemble of layers with one pattern")
@every_norm
def test_an_ensemble_with_one_pattern(norm):
    layers = [layer_of(norm) for _ in range(3)]
    for layer in layers:
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))
    stacked, _ = stack_module_state(layers)
    x = inputs(4)

    def run(parameters, x):
        return functional_call(layers[0], parameters, (x,))

    got = vmap(run, in_dims=(0, None))(stacked, x)
    torch.testing.assert_close(got, torch.stack([layer(x) for layer in layers]))
    each = vmap(run)(stacked, torch.stack([x, 2 * x, 3 * x]))
    torch.testing.assert_close(each, torch.stack([layer(k * x) for k, layer in enumerate(layers, 1)]))
    gradients = vmap(grad(lambda parameters: run(parameters, x).square().sum()))(stacked)
    for index, layer in enumerate(layers):
        layer.zero_grad()
        layer(x).square().sum().backward()
        wanted = {name: parameter.grad for name, parameter in layer.named_parameters()}
        torch.testing.assert_close({name: value[index] for name, value in gradients.items()}, wanted)


@pytest.mark.feature("torch.func.vmap over an ensemble with a pattern for each layer")
def test_an_ensemble_with_a_pattern_for_each():
    layers = [layer_of(seed=seed) for seed in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = inputs(4)
    got = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(got, torch.stack([layer(x) for layer in layers]))


def test_vmap_of_effective_weight_and_sampled_product():
    layer = layer_of()
    pattern, abp = layer.pattern, (1.0, 1.0, 2.0)
    weights, e = torch.randn(3, layer.nnz, dtype=torch.float64), layer.norm.excitability.detach()
    got = vmap(lambda weight: ops.effective_weight(weight, e, *pattern, *abp))(weights)
    torch.testing.assert_close(got, torch.stack([ops.effective_weight(w, e, *pattern, *abp) for w in weights]))
    rows, columns = torch.randn(3, 4, 5, dtype=torch.float64), inputs(3, 4)
    got = vmap(lambda r, c: ops.sampled_product(r, c, *pattern))(rows, columns)
    wanted = torch.stack([ops.sampled_product(r, c, *pattern) for r, c in zip(rows, columns, strict=True)])
    torch.testing.assert_close(got, wanted)
    got = vmap(lambda c: ops.sampled_product(rows[0], c, *pattern))(columns)
    torch.testing.assert_close(got, torch.stack([ops.sampled_product(rows[0], c, *pattern) for c in columns]))


@pytest.mark.feature("torch.func.jacrev and jacfwd")
@every_norm
def test_jacobians_in_both_modes(norm):
    layer, x = layer_of(norm), inputs()
    wanted = layer.to_dense().weight.detach()
    for jacobian in (jacrev, jacfwd):
        torch.testing.assert_close(jacobian(layer)(x), wanted)
    torch.testing.assert_close(vmap(jacrev(layer))(inputs(3)), wanted.expand(3, 5, 7))

    def run(parameters):
        return functional_call(layer, parameters, (x,))

    parameters = parameters_of(layer)
    reverse, forward = jacrev(run)(parameters), jacfwd(run)(parameters)
    torch.testing.assert_close(forward, reverse)
    for name, parameter in layer.named_parameters():
        rows = [torch.autograd.grad(out, parameter, retain_graph=True)[0] for out in layer(x)]
        torch.testing.assert_close(reverse[name], torch.stack(rows))


@pytest.mark.feature("torch.func.jvp")
@every_norm
def test_jvp_is_the_directional_derivative(norm):
    layer, x = layer_of(norm), inputs(3)
    parameters = parameters_of(layer)
    primals = (parameters, x)
    tangents = ({name: torch.randn_like(value) for name, value in parameters.items()}, torch.randn_like(x))

    def run(parameters, x):
        return functional_call(layer, parameters, (x,))

    out, tangent = jvp(run, primals, tangents)
    torch.testing.assert_close(out, layer(x))
    step = 1e-6

    def moved(sign: float) -> torch.Tensor:
        shifted = {name: value + sign * step * tangents[0][name] for name, value in parameters.items()}
        return run(shifted, x + sign * step * tangents[1])

    torch.testing.assert_close(tangent, (moved(1) - moved(-1)) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.feature("torch.func: Hessians, reverse over reverse")
@every_norm
def test_hessian(norm):
    layer, x = layer_of(norm), inputs(3)

    def loss(weight):
        return functional_call(layer, {"weight": weight}, (x,)).sigmoid().sum()

    weight = layer.weight.detach()
    hessian = torch.autograd.functional.hessian(loss, weight)
    torch.testing.assert_close(jacrev(jacrev(loss))(weight), hessian)
    torch.testing.assert_close(hessian, hessian.T)


# autocast


@pytest.mark.feature("autocast to bfloat16 on the CPU")
def test_autocast_casts_the_input_and_not_the_values():
    layer = layer_of(dtype=torch.float32)
    x = inputs(4, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        mixed = torch.nn.Sequential(torch.nn.Linear(7, 7), layer)(x)
    assert out.dtype == mixed.dtype == torch.bfloat16
    assert torch.equal(out, layer(x.detach().bfloat16()))
    out.float().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    assert layer.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        assert layer(x).dtype == torch.float32


def test_autocast_leaves_float64_alone():
    layer = layer_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(inputs(4)).dtype == torch.float64


# around the module


def test_checkpointing_parametrization_and_hooks():
    from torch.nn.utils import parametrize
    from torch.utils.checkpoint import checkpoint

    layer, x = layer_of(), inputs(4).requires_grad_()
    plain = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    again = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), [x, layer.weight])
    torch.testing.assert_close(again, plain)
    seen = []
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    layer(x)
    handle.remove()
    assert seen == [(4, 5)]

    class Double(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    unit = layer_of("l0")
    before = unit(x) - unit.bias
    parametrize.register_parametrization(unit, "weight", Double())
    torch.testing.assert_close(unit(x) - unit.bias, 2 * before)


# opcheck: what a layer hands to its op, in the shapes that the other tests of the ops do not have


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
@pytest.mark.parametrize("norm", ["l0", "joint"])
def test_opcheck_of_the_layers_own_call(norm, shape):
    layer = layer_of(norm, dtype=torch.float32)
    x = inputs(*shape, dtype=torch.float32).requires_grad_()
    own = layer.norm
    arguments = (x, layer.weight, layer.bias, own.excitability, *layer.pattern, own.a, own.b, own.p)
    torch.library.opcheck(ops.sparse_linear.default, arguments)


def test_opcheck_with_16_bit_input():
    layer = layer_of("l0", dtype=torch.float32)
    x = inputs(3, dtype=torch.bfloat16).requires_grad_()
    arguments = (x, layer.weight, layer.bias, layer.norm.excitability, *layer.pattern, 1.0, 0.0, 2.0)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.sparse_linear.default, arguments, test_utils=checks)


def test_the_package_offers_what_it_says():
    for name in dendnorm.__all__:
        assert hasattr(dendnorm, name)


@pytest.mark.parametrize("norm", ["l0", "weight_norm", "joint", "lp:3"])
def test_second_derivatives_under_autocast_keep_the_precision_of_the_values(norm):
    layer = dendnorm.SparseLinear(12, 7, density=0.4, norm=norm, seed=0)
    inputs = [layer.weight, layer.norm.excitability]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = layer.effective_weight().pow(3).sum()
        under = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in under), inputs)
        _, tangent = torch.func.jvp(
            lambda v: torch.func.functional_call(layer, {"weight": v}, (torch.eye(12),)), (layer.weight,), (under[0],)
        )
        mixed = torch.autograd.grad(layer(torch.rand(5, 12)).float().square().sum(), inputs, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in mixed), inputs)
    assert tangent.dtype == torch.bfloat16
    expected = torch.autograd.grad(layer.effective_weight().pow(3).sum(), inputs, create_graph=True)
    torch.testing.assert_close(under, expected, rtol=1e-6, atol=1e-6)
    again = torch.autograd.grad(sum(g.square().sum() for g in expected), inputs)
    torch.testing.assert_close(second, again, rtol=1e-5, atol=1e-5)
