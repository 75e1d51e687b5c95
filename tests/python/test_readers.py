"""Weights that are read from outside, in many shapes: found before anything runs, or told by name when it happens."""

from __future__ import annotations

import copy
import functools
import operator
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

import dendnorm
from dendnorm import SparseLinear


class Three(nn.Module):
    """Layers q and k that are read, or held, in some way, and one that is free."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.free = (nn.Linear(4, 4) for _ in range(3))
        self.prepare()

    def prepare(self) -> None: ...

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.free(self.inner(x))


class Names(Three):
    def inner(self, x):
        for name in ("q", "k"):
            x = x @ getattr(self, name).weight
        return x


class Listed(Three):
    def prepare(self):
        self.both = [self.q, self.k]

    def inner(self, x):
        for layer in self.both:
            x = x @ layer.weight
        return x


class Comprehension(Three):
    def inner(self, x):
        weights = [layer.weight for layer in (self.q, self.k)]
        return x @ weights[0] @ weights[1]


class Concatenated(Three):
    def inner(self, x):
        return linear(x, torch.cat([self.q.weight, self.k.weight]))[..., 2:6]


class Returned(Three):
    @property
    def proj(self):
        return self.q

    def get(self):
        return self.k

    def inner(self, x):
        return x @ self.proj.weight @ self.get().weight


class Checkpointed(Three):
    def attend(self, x):
        return x @ self.q.weight.data @ self.k.weight.T

    def inner(self, x):
        return checkpoint(self.attend, x, use_reentrant=False)


class Parts(Three):
    def parts(self):
        return {"w": self.q.weight, "b": self.q.bias}

    def inner(self, x):
        weight, bias = self.k.weight, self.k.bias
        return linear(linear(x, self.parts()["w"]), **{"weight": weight, "bias": bias})


class Helper:
    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    def __call__(self, x):
        return x @ self.layer.weight

    def run(self, x):
        return linear(x, self.layer.weight)


class Helped(Three):
    def prepare(self):
        self.first, self.second = Helper(self.q), Helper(self.k)

    def inner(self, x):
        return self.second.run(self.first(x))


class Closures(Three):
    def prepare(self):
        self.first = lambda x: x @ self.q.weight
        self.second = functools.partial(self.read, layer=self.k)

    @staticmethod
    def read(x, layer):
        return x @ layer.weight

    def inner(self, x):
        return self.second(self.first(x))


class Parameters(Three):
    def inner(self, x):
        return linear(linear(x, *self.q.parameters()), self.k._parameters["weight"]) + self.k.state_dict()["weight"][0]


class Handed(Three):
    class Inner(nn.Module):
        def forward(self, x, layer):
            return x @ layer.weight.t()

    def prepare(self):
        self.reads = self.Inner()

    def inner(self, x):
        def local(z):
            return torch.einsum("bi,oi->bo", z, self.k.weight)

        return local(self.reads(x, self.q))


class Penalised(Three):
    def inner(self, x):
        with torch.no_grad():
            self.q.weight.clamp_(-1, 1)
        return self.k(self.q(x)) + self.k.weight.abs().mean()


class Held(Three):
    """Not read, but held where a replaced layer would not come."""

    def prepare(self):
        k = self.k
        self.layers, self.call = {"a": [(self.q,)]}, lambda x: k(x)

    def inner(self, x):
        return self.call(self.layers["a"][0][0](x))


class Hooked(Three):
    def prepare(self):
        self.register_forward_hook(lambda module, args, out: out @ module.q.weight)
        self.register_forward_pre_hook(self.pre)

    @staticmethod
    def pre(module, args):
        return args[0] @ module.k.weight

    def inner(self, x):
        return x


FOUND = [Names, Listed, Comprehension, Concatenated, Returned, Checkpointed, Parts, Helped, Closures, Parameters,
         Handed, Penalised, Held, Hooked]  # fmt: skip


@pytest.mark.feature("weights read from outside, or layers held outside: left by name in every shape of code tried")
@pytest.mark.parametrize("kind", FOUND)
def test_what_reads_or_holds_is_found(kind):
    model, x = kind(), torch.randn(2, 4)
    wanted = model(x)
    replaced = dendnorm.sparsify(model, 1.0, norm="none")
    assert list(replaced) == ["free"] and set(replaced.left) == {"q", "k"}
    for reason in replaced.left.values():
        assert kind.__name__ in reason and ("takes it for a matrix" in reason or "holds it, too" in reason)
    torch.testing.assert_close(model(x), wanted)


class Harmless(Three):
    def inner(self, x):
        weight = self.q.weight
        x = x.to(weight.dtype).to(self.k.weight.device).to(next(self.k.parameters()).dtype)
        assert isinstance(self.k.weight, nn.Parameter) and self.k.weight.requires_grad and weight.is_leaf
        assert self.k.weight.grad is None or self.k.weight.grad is self.k._parameters["weight"].grad
        return self.k(self.q(x))


@pytest.mark.filterwarnings("error")
def test_harmless_reads_are_no_matter():
    model, x = Harmless(), torch.randn(2, 4)
    wanted = model(x)
    assert list(dendnorm.sparsify(model, 1.0, norm="none")) == ["q", "k", "free"]
    for _ in range(2):
        torch.testing.assert_close(model(x), wanted)
        model(x).sum().backward()


# What no search finds


class Unseen(Three):
    read: object = None

    def inner(self, x):
        return type(self).read(self, x)


def name_of() -> str:
    return "".join(["q"])


UNSEEN = {
    "linear": lambda model, x: linear(x, getattr(model, name_of()).weight),
    "matmul": lambda model, x: x @ operator.attrgetter("q.weight")(model),
    "transposed": lambda model, x: x @ model.get_submodule(name_of()).weight.t(),
    "T": lambda model, x: x @ model.get_submodule(name_of()).weight.T,
    "get_parameter": lambda model, x: torch.mm(x, model.get_parameter(name_of() + ".weight")),
    "einsum": lambda model, x: torch.einsum("bi,oi->bo", x, model.get_submodule(name_of()).weight),
    "data": lambda model, x: x @ model.get_submodule(name_of()).weight.data,
    "cast": lambda model, x: linear(x, model.get_submodule(name_of()).weight.to(x.dtype) * 2.0),
    "cat": lambda model, x: linear(x, torch.cat([model.get_submodule(name_of()).weight] * 2)),
    "slice": lambda model, x: x @ model.get_submodule(name_of()).weight[:, :2],
    "fits": lambda model, x: linear(torch.randn(2, 16), model.get_submodule(name_of()).weight),
}


@pytest.mark.feature("a sparse weight taken for a matrix by another module: an error names layer, reader and skip=")
@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_not_found_is_told_at_the_read(name):
    class Reads(Unseen):
        read = staticmethod(UNSEEN[name])

    model = nn.Sequential(Reads())
    dendnorm.sparsify(model, 1.0)
    with pytest.raises(
        ValueError, match=r"weight of 0\.q must not be taken for a matrix, as .* does .*skip=\['0\.q'\]"
    ):
        model(torch.randn(2, 4))


def test_values_are_handed_out_as_what_they_are():
    kept = []

    class Reads(Unseen):
        @staticmethod
        def read(model, x):
            weight = getattr(model, name_of()).weight
            kept.append(weight)
            with torch.no_grad():
                weight.mul_(1.0)
            return model.q(x) + weight.square().sum() + weight @ weight

    model, x = Reads(), torch.randn(2, 4)
    dendnorm.sparsify(model, 0.5, norm="none")
    layer = model.q
    weight = layer.weight
    assert type(weight) is nn.Parameter and weight is layer._parameters["weight"]
    out = model(x)
    assert type(out) is torch.Tensor and isinstance(kept[0], nn.Parameter)
    (gradient,) = torch.autograd.grad(out.sum(), weight)
    (without,) = torch.autograd.grad(model.free(layer(x)).sum(), weight)
    scale = model.free.to_dense().weight.sum()
    torch.testing.assert_close(gradient, without + 2 * 4 * weight.detach() * scale)
    with pytest.raises(RuntimeError, match=r"inplace|in-place"):  # as of any parameter
        kept[0].add_(1)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(model).q):
        assert type(twin.weight) is nn.Parameter


def test_attention_with_a_sparse_projection_put_in_by_hand():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.out_proj = SparseLinear.from_dense(nn.Linear(8, 8), 0.5)
    x = torch.randn(2, 3, 8)
    for training in (True, False):
        attention.train(training)
        with torch.set_grad_enabled(training), pytest.raises(ValueError, match=r"weight of out_proj .* MultiheadAtt"):
            attention(x, x, x, need_weights=False)


def test_tied_afterwards_is_an_error():
    model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "head": nn.Linear(4, 6)})
    dendnorm.sparsify(model, 0.5)
    with pytest.raises(ValueError, match=r"weight must be one-dimensional.*got shape \(6, 4\).*skip"):
        model["head"].weight = model["embedding"].weight
    assert model["head"](torch.randn(2, 4)).shape == (2, 6)
