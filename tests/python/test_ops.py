"""What holds for every op, over the table of ops and norms (op_table.py)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
from op_entry import FLOATS, HALVES, SHAPES, SHARED, SMALL, Op, Sample
from op_table import NORMS, OPS, TYPICAL_NORMS

from dendnorm import norms
from dendnorm.ops import vmap as rules

ops = torch.ops.dendnorm

EVERY_DTYPE = [(name, norm, dtype) for name, op in OPS.items() for norm in op.norms for dtype in op.dtypes]
EVERY_NORM = [(name, norm) for name, op in OPS.items() for norm in op.norms]
TYPICAL = [(name, norm) for name, norm in EVERY_NORM if norm in TYPICAL_NORMS]
THOROUGH = [(name, norm) for name, norm in EVERY_NORM if norm in OPS[name].thorough_norms]
DIFFERENTIABLE = [(name, norm) for name, norm in THOROUGH if OPS[name].differentiable]
KEYS = ("Autograd", "FuncTorchBatched", "Meta")
AOT = "aot_eager"


def over(cases: list[tuple], quick: tuple[str, ...] | None = None) -> pytest.MarkDecorator:
    """Parametrise with cases of an op, a norm and, in some, a dtype; those of norms that are not `quick` are slow."""
    names = ("name", "norm", "dtype")[: len(cases[0])]
    params = []
    for case in cases:
        marks = [pytest.mark.slow] if quick is not None and case[1] not in quick else []
        label = "-".join(str(part).removeprefix("torch.") for part in case)
        params.append(pytest.param(*case, id=label, marks=marks))
    return pytest.mark.parametrize(names, params)


def small(name: str, norm: str, dtype: torch.dtype = torch.float64) -> list[Sample]:
    op = OPS[name]
    return op.samples(norm, dtype if dtype in op.dtypes else op.dtypes[0], SMALL)


def parts(result) -> list[torch.Tensor]:
    return [] if result is None else list(result) if isinstance(result, (tuple, list)) else [result]


def call(name: str, sample: Sample) -> list[torch.Tensor]:
    """The results; of a writer, what it wrote to, which it finds in a copy."""
    written = OPS[name].writes
    if written is None:
        return parts(getattr(ops, name)(**sample))
    copy = torch.empty_strided(sample[written].shape, sample[written].stride(), dtype=sample[written].dtype)
    sample = sample | {written: copy.copy_(sample[written])}
    assert getattr(ops, name)(**sample) is None
    return [sample[written]]


def given(sample: Sample) -> dict[str, torch.Tensor]:
    return {name: value for name, value in sample.items() if isinstance(value, torch.Tensor)}


def check(name: str, sample: Sample) -> None:
    """Results against the reference; and that nothing was written but what the op says it writes."""
    kept = {argument: tensor.clone() for argument, tensor in given(sample).items()}
    results, expected = call(name, sample), OPS[name].reference(**sample)
    assert len(results) == len(expected)
    for index, (got, want) in enumerate(zip(results, expected, strict=True)):
        if isinstance(want, oracle.Result):
            half = got.dtype in HALVES  # one rounding to 16 bits at the end, everything before it in 32
            tolerance = torch.finfo(got.dtype).eps if half else oracle.TOLERANCE[got.dtype]
            oracle.assert_close(f"result {index} of {name}", got, want, tolerance)
        elif want is not None:
            assert torch.equal(got, want.to(got.dtype)), f"result {index} of {name}"
    for argument, tensor in given(sample).items():
        if argument != "status" or None not in expected:
            assert torch.equal(tensor.nan_to_num(), kept[argument].nan_to_num()), f"{name} wrote to {argument}"


# The table is whole


def test_every_op_is_in_the_table():
    registered = {
        schema.name.removeprefix("dendnorm::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("dendnorm::")
    }
    assert registered, "no op is registered"
    assert registered == OPS.keys()


def test_every_op_says_whether_it_has_a_derivative_a_rule_for_vmap_and_shapes():
    for name, op in OPS.items():
        keys = {key: torch._C._dispatch_has_kernel_for_dispatch_key(f"dendnorm::{name}", key) for key in KEYS}
        has_rule = bool(op.differentiable) or op.refuses_gradients
        assert keys == {"Autograd": has_rule, "FuncTorchBatched": bool(op.vmap), "Meta": True}, name


def test_every_name_of_a_norm_is_in_the_table():
    with pytest.raises(ValueError, match="norm must be") as caught:
        norms.resolve("no norm has this name")
    offered = {name for name in re.findall(r'"([^"]+)"', str(caught.value))}
    assert {re.sub(r":.*", ":P", name) for name in NORMS} == offered
    for name, (a, b, p, kind) in NORMS.items():
        norm = norms.resolve(name)
        assert (norm.a, norm.b, norm.variable) == (a, b, kind == "own")
        assert b == 0 or norm.p == p


# Values


@over(EVERY_DTYPE)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_equal_the_reference(name, norm, dtype, shape):
    for sample in OPS[name].samples(norm, dtype, SHAPES[shape]):
        check(name, sample)


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    order = tuple(range(tensor.dim() - 1, -1, -1))
    return tensor.permute(order).contiguous().permute(order)


def sliced(tensor: torch.Tensor) -> torch.Tensor:
    larger = tensor.new_empty([2 * size + 1 for size in tensor.shape])
    view = larger[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def columns(tensor: torch.Tensor) -> torch.Tensor:
    larger = tensor.new_empty([*tensor.shape[:-1], tensor.shape[-1] + 3])
    return larger[..., 2:-1].copy_(tensor)


@over([(name, norm) for name, norm in TYPICAL if OPS[name].strided])
@pytest.mark.parametrize("layout", [transposed, sliced, columns])
def test_any_strides_give_the_same_values(name, norm, layout):
    op = OPS[name]
    for dtype, shape in ((dtype, SHAPES[shape]) for dtype in op.dtypes for shape in ("small", "deep", "dense")):
        sample = op.samples(norm, dtype, shape)[0]
        names = [argument for argument in op.strided if sample[argument] is not None and sample[argument].dim()]
        for chosen in ([argument] for argument in names) if len(names) > 1 else ():
            check(name, sample | {argument: layout(sample[argument]) for argument in chosen})
        check(name, sample | {argument: layout(sample[argument]) for argument in names})


@over([(name, norm, dtype) for name, norm, dtype in EVERY_DTYPE if norm in TYPICAL_NORMS])
def test_same_bits_on_1_to_7_threads(name, norm, dtype):
    for sample in OPS[name].samples(norm, dtype, SHARED):
        results = []
        for threads in range(1, 8):
            torch.set_num_threads(threads)
            results.append(call(name, sample))
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                assert torch.equal(one.nan_to_num(), two.nan_to_num())


# Derivatives


def function_of(name: str, sample: Sample) -> tuple[Callable, tuple[torch.Tensor, ...]]:
    """The op as a function of its differentiable arguments, and these as leaves."""
    names = [argument for argument in OPS[name].differentiable if sample[argument] is not None]

    def run(*leaves: torch.Tensor):
        results = parts(getattr(ops, name)(**(sample | dict(zip(names, leaves, strict=True)))))
        wanted = [result for result in results if result.numel()]
        return wanted[0] if len(wanted) == 1 else tuple(wanted)

    return run, tuple(sample[argument].clone().requires_grad_() for argument in names)


@over(DIFFERENTIABLE, quick=TYPICAL_NORMS)
def test_first_and_second_derivatives(name, norm):
    run, leaves = function_of(name, small(name, norm)[0])
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@over(DIFFERENTIABLE, quick=TYPICAL_NORMS)
def test_forward_mode(name, norm):
    run, leaves = function_of(name, small(name, norm)[0])
    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True, check_backward_ad=False)


# PyTorch's machinery


def with_gradients(name: str, sample: Sample) -> Sample:
    leaves = {argument: sample[argument] for argument in OPS[name].differentiable if sample[argument] is not None}
    return sample | {argument: tensor.clone().requires_grad_() for argument, tensor in leaves.items()}


def positional(name: str, sample: Sample) -> tuple[tuple, dict]:
    """As the schema wants them: what it lists before the star, and the rest by name."""
    schema = getattr(ops, name).default._schema.arguments
    before = [argument.name for argument in schema if not argument.kwarg_only]
    return tuple(sample[argument] for argument in before), {k: v for k, v in sample.items() if k not in before}


# An op that takes no tensor has nothing that opcheck looks at.
@over([(name, norm) for name, norm in THOROUGH if given(small(name, norm)[0])], quick=("none", "joint"))
def test_opcheck(name, norm):
    op, dtypes = getattr(ops, name).default, [dtype for dtype in OPS[name].dtypes if dtype in FLOATS]
    samples = small(name, norm)
    if not OPS[name].differentiable:
        samples = [sample for dtype in dtypes for sample in small(name, norm, dtype)]
    for sample in samples if norm == "none" else samples[:1]:
        torch.library.opcheck(op, *positional(name, sample))


@over(DIFFERENTIABLE, quick=("joint",))
def test_opcheck_with_gradients(name, norm):
    sample = with_gradients(name, small(name, norm)[0])
    torch.library.opcheck(getattr(ops, name).default, *positional(name, sample))


@over(TYPICAL, quick=("none", "joint"))
def test_compiled_equals_eager(name, norm):
    torch._dynamo.reset()  # or the functions below, one code for all ops, would be compiled anew too often
    sample = small(name, norm)[0]
    if OPS[name].writes is not None:
        compiled = torch.compile(lambda sample: (getattr(ops, name)(**sample), sample)[1], fullgraph=True, backend=AOT)
        copy = {argument: value.clone() if argument in given(sample) else value for argument, value in sample.items()}
        assert torch.equal(compiled(copy)[OPS[name].writes], call(name, sample)[0])
        return
    compiled = torch.compile(lambda sample: getattr(ops, name)(**sample), fullgraph=True, backend=AOT)
    torch.testing.assert_close(parts(compiled(sample)), call(name, sample))
    if OPS[name].differentiable:
        run, leaves = function_of(name, sample)
        both = [[r for r in parts(f(*leaves)) if r.requires_grad] for f in (run, torch.compile(run, backend=AOT))]
        asked = {"allow_unused": True, "materialize_grads": True}
        gradients = [torch.autograd.grad([r.square().sum() for r in results], leaves, **asked) for results in both]
        torch.testing.assert_close(gradients[1], gradients[0])


def on_meta(value):
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def described(results: list[torch.Tensor]) -> list[tuple]:
    # Strides that lead to no element mean nothing.
    return [(result.shape, result.stride() if result.numel() else None, result.dtype) for result in results]


@over([(name, norm, dtype) for name, norm, dtype in EVERY_DTYPE if norm in TYPICAL_NORMS])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, transposed])
def test_meta_tensors_agree_with_real_ones(name, norm, dtype, layout):
    for shape in SHAPES.values():
        for sample in OPS[name].samples(norm, dtype, shape):
            sample = sample | {a: layout(sample[a]) for a in OPS[name].strided if sample[a] is not None}
            got = getattr(ops, name)(**{argument: on_meta(value) for argument, value in sample.items()})
            if OPS[name].writes is None:
                assert described(parts(got)) == described(call(name, sample))


# vmap: each group of arguments batched, alone and with all others; as blocks of one layer and one by one


def slices_of(op: Op, norm: str) -> list[Sample]:
    """Three samples that differ in everything but their shapes."""
    samples = [op.samples(norm, torch.float64, dataclasses.replace(SMALL, turned=turned))[0] for turned in range(3)]
    for index, sample in enumerate(samples):
        sample |= {a: sample[a] * (1 + 0.3 * index) for a in op.differentiable if sample[a] is not None}
    return samples


def choices(groups: list[tuple[str, ...]]) -> Iterator[list[str]]:
    for chosen in range(1, 2 ** len(groups)):
        yield [argument for index, group in enumerate(groups) if chosen >> index & 1 for argument in group]


@over([(name, norm) for name, norm in TYPICAL if OPS[name].vmap])
@pytest.mark.parametrize("joined", [True, False], ids=["blocks", "one by one"])
def test_vmap_of_every_choice_of_arguments(name, norm, joined, monkeypatch):
    monkeypatch.setattr(rules, "joins", lambda *_: joined)
    op = OPS[name]
    samples = slices_of(op, norm)
    for chosen in choices([group for group in op.vmap if samples[0][group[0]] is not None]):

        def run(*tensors, chosen=chosen):
            return getattr(ops, name)(**(samples[0] | dict(zip(chosen, tensors, strict=True))))

        stacked = [torch.stack([sample[argument] for sample in samples]) for argument in chosen]
        got = parts(torch.func.vmap(run)(*stacked))
        wanted = [call(name, samples[0] | {a: sample[a] for a in chosen}) for sample in samples]
        for index, result in enumerate(got):
            torch.testing.assert_close(result, torch.stack([each[index] for each in wanted]))


# Errors


@pytest.mark.parametrize(("name", "mistake"), [(name, mistake) for name, op in OPS.items() for mistake in op.errors])
def test_a_wrong_call_is_refused_by_name(name, mistake):
    wrong = OPS[name].errors[mistake]
    norm = "joint" if "joint" in OPS[name].norms else "none"
    sample = wrong.change(small(name, norm)[0])
    kept = {argument: tensor.clone() for argument, tensor in given(sample).items()}
    prefix = f"dendnorm::{name}: " if wrong.prefix is None else wrong.prefix
    message = ".*".join(map(re.escape, (prefix, *wrong.message)))
    with pytest.raises(wrong.error, match=re.compile(message, re.DOTALL)):
        getattr(ops, name)(**sample)
    for argument, tensor in given(sample).items():
        assert tensor.is_meta or torch.equal(tensor.nan_to_num(), kept[argument].nan_to_num()), argument
    devices = {tensor.device.type for tensor in given(sample).values()}
    if not wrong.values and len(devices) == 1:  # what shapes and dtypes show, tracing shows, too
        with pytest.raises(wrong.error, match=re.compile(message, re.DOTALL)):
            getattr(ops, name)(**{argument: on_meta(value) for argument, value in sample.items()})
