"""Checkpoints: a resumed run is the undisturbed one, a kill leaves a whole file, damage changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import dendnorm

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
given, settings = hypothesis.given, hypothesis.settings

pytest.importorskip("safetensors")


def network(seed: int = 0, norm: str = "l0") -> torch.nn.Sequential:
    torch.manual_seed(seed)
    shared = dendnorm.norms.l0(s=5.0)
    return torch.nn.Sequential(
        dendnorm.SparseLinear(12, 10, density=0.3, norm=shared, seed=seed),
        torch.nn.BatchNorm1d(10),
        torch.nn.Sigmoid(),
        dendnorm.SparseLinear(10, 8, density=0.4, norm=shared, seed=seed + 1),
        torch.nn.Dropout(0.2),
        dendnorm.SparseLinear(8, 8, density=0.5, norm=norm, seed=seed + 2),
        torch.nn.Linear(8, 3),
    )


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rewire: dendnorm.SET, steps: range) -> None:
    for step in steps:
        x, y = torch.randn(10, 12), torch.randint(3, (10,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % 3 == 2:
            rewire.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "capturable": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
}


def fresh(name: str = "adamw", seed: int = 0) -> tuple:
    model = network(seed)
    groups = dendnorm.param_groups(model, weight_decay=1e-3)
    optimizer = OPTIMIZERS[name](groups)
    return model, optimizer, dendnorm.SET(model, optimizer, zeta=0.3, seed=3)


def everything(*parts) -> list:
    """All tensors and values of the parts' state, flat, for comparison."""
    flat: list = []

    def walk(value) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                flat.append(key)
                walk(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        else:
            flat.append(value.clone() if isinstance(value, torch.Tensor) else value)

    for part in parts:
        walk(part.state_dict())
        if isinstance(part, torch.nn.Module):
            walk(dict(part.named_buffers()))  # the derived views of a pattern are not in the state_dict
    return flat


def assert_same(first: list, second: list) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        else:
            assert a == b


@pytest.mark.feature("a resumed run (save, load) equals the undisturbed one bit for bit")
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_resumed_run_is_the_undisturbed_run_bit_for_bit(name, tmp_path):
    straight = fresh(name)
    train(*straight, range(7))
    random.seed(5)
    dendnorm.save(tmp_path / "run.safetensors", *straight, extra={"step": 7}, rng=True)
    train(*straight, range(7, 17))
    after = random.random(), np.random.random(), torch.rand(())
    resumed = fresh(name, seed=50)  # other edges, values and running statistics
    assert dendnorm.load(tmp_path / "run.safetensors", *resumed, rng=True) == {"step": 7}
    train(*resumed, range(7, 17))
    assert_same(everything(*straight), everything(*resumed))
    assert after[2] == torch.rand(())  # the dropout masks and batches were the same
    assert resumed[0][0].norm.excitability is resumed[0][3].norm.excitability


def test_the_random_state_comes_back(tmp_path):
    model = network()
    torch.randn(3), np.random.seed(4), random.seed(5), np.random.normal()
    dendnorm.save(tmp_path / "r.safetensors", model, rng=True)
    drawn = torch.rand(4), np.random.random(4), np.random.normal(), random.random()
    dendnorm.load(tmp_path / "r.safetensors", model)  # not asked for: goes on
    assert random.random() != drawn[3]
    dendnorm.load(tmp_path / "r.safetensors", model, rng=True)
    assert torch.equal(torch.rand(4), drawn[0])
    assert np.array_equal(np.random.random(4), drawn[1])
    assert (np.random.normal(), random.random()) == drawn[2:]


def test_objects_and_storage_stay(tmp_path):
    parts = fresh()
    train(*parts, range(4))
    dendnorm.save(tmp_path / "a.safetensors", *parts)
    model, optimizer, rewire = fresh(seed=9)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    places = {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors.items()}
    dendnorm.load(tmp_path / "a.safetensors", model, optimizer, rewire)
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert places == {name: (id(tensor), tensor.data_ptr()) for name, tensor in now.items()}
    assert_same(everything(*parts), everything(model, optimizer, rewire))


def test_any_reader_of_safetensors_gets_the_tensors(tmp_path):
    from safetensors.torch import load_file

    model = network()
    dendnorm.save(tmp_path / "a.safetensors", model)
    tensors = load_file(tmp_path / "a.safetensors")
    assert torch.equal(tensors["model/0.weight"], model[0].weight)
    assert "model/3.norm.excitability" not in tensors  # shared: once, under its first name
    assert torch.equal(tensors["model/0.norm.excitability"], model[3].norm.excitability)


def test_describe_tells_how_to_build_the_model(tmp_path):
    parts = fresh()
    dendnorm.save(tmp_path / "a.safetensors", *parts, extra=["note"])
    found = dendnorm.checkpoint.describe(tmp_path / "a.safetensors")
    assert found["holds"] == ["optimizer", "rewirer"]
    assert found["extra"] == ["note"]
    layer = found["layers"]["5"]
    assert (layer["in_features"], layer["out_features"], layer["nnz"]) == (8, 8, 32)
    assert layer["norm"] == {"a": 1.0, "b": 0.0, "p": 2.0, "variable": False}
    assert found["tensors"]["6.weight"] == ((3, 8), torch.float32)


def test_extra_holds_what_it_says(tmp_path):
    model = network()
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 3)
    extra = {
        "none": None, "flags": [True, False], "huge": 2**70, "tuple": (1, (2.5, "x")), 7: {"nested": {}},
        "infinite": float("inf"), "text": 'quotes " and "sha256":"0000"', "scheduler": scheduler.state_dict(),
        "tensors": [torch.arange(3), torch.tensor(2.0, dtype=torch.bfloat16), torch.zeros(0, 2), torch.tensor([True])],
    }  # fmt: skip
    dendnorm.save(tmp_path / "a.safetensors", model, extra=extra)
    got = dendnorm.load(tmp_path / "a.safetensors", model)
    for mine, theirs in zip(extra.pop("tensors"), got.pop("tensors"), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    assert got == extra

    class Tagged(torch.Tensor):
        pass

    for bad in (
        torch.zeros(2).as_subclass(Tagged),
        {"a": object()},
        {(1, 2): 3},
        {1.5: 2},
        [np.zeros(3)],
        {1, 2},
        torch.zeros(2, device="meta"),
    ):
        with pytest.raises((TypeError, ValueError), match="extra"):
            dendnorm.save(tmp_path / "a.safetensors", model, extra=bad)
    assert dendnorm.load(tmp_path / "a.safetensors", model)["none"] is None
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_overlapping_views_and_odd_strides_are_saved(tmp_path):
    class Views(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.randn(4, 6)
            self.register_buffer("whole", whole)
            self.register_buffer("part", whole[1:, ::2])
            self.register_buffer("turned", whole.T)
            self.again = torch.nn.ModuleList([torch.nn.Linear(2, 2)] * 2)

    model, other = Views(), Views()
    dendnorm.save(tmp_path / "v.safetensors", model)
    other.part = torch.zeros(3, 3)
    other.turned = torch.zeros(6, 4)
    dendnorm.load(tmp_path / "v.safetensors", other)
    assert_same(everything(model), everything(other))


# What does not fit


def misfits() -> dict[str, tuple[Callable, str]]:
    def with_layer(position: int, layer: torch.nn.Module) -> Callable:
        def change(model: torch.nn.Sequential) -> torch.nn.Sequential:
            model[position] = layer
            return model

        return change

    sparse = dendnorm.SparseLinear
    return {
        "nnz": (with_layer(5, sparse(8, 8, nnz=31, norm="l0")), "'nnz': 31.*'nnz': 32"),
        "norm": (with_layer(5, sparse(8, 8, density=0.5, norm=None)), "layer '5'"),
        "size": (with_layer(5, sparse(16, 8, nnz=32, norm="l0")), "layer '5'"),
        "dense size": (with_layer(6, torch.nn.Linear(8, 4)), r"6.weight must be float32 \(4, 8\)"),
        "dtype": (with_layer(6, torch.nn.Linear(8, 3).double()), "6.weight must be float64"),
        "missing": (with_layer(6, torch.nn.Linear(8, 3, bias=False)), "6.bias must be absent"),
        "more": (with_layer(4, torch.nn.LayerNorm(8)), "4.weight must be float32.*got none"),
        "not shared": (
            with_layer(3, sparse(10, 8, density=0.4, norm=dendnorm.norms.l0(s=5.0))),
            "3.norm.excitability must be absent.*shared with 0.norm.excitability",
        ),
    }


@pytest.mark.parametrize("name", sorted(misfits()))
def test_another_model_is_refused_by_name_and_left_alone(name, tmp_path):
    change, message = misfits()[name]
    dendnorm.save(tmp_path / "a.safetensors", network())
    model = change(network(seed=20))
    before = everything(model)
    with pytest.raises(ValueError, match=r"checkpoint .*a\.safetensors.*" + message):
        dendnorm.load(tmp_path / "a.safetensors", model)
    assert_same(before, everything(model))


def test_a_model_that_shares_more_is_refused(tmp_path):
    model = network()
    model[3].norm = dendnorm.norms.l0(s=7.0)
    model[3].norm.initialise(model[3].out_features, model[3].nnz, model[3].weight.dtype, model[3].weight.device)
    dendnorm.save(tmp_path / "a.safetensors", model)
    with pytest.raises(ValueError, match=r"3\.norm\.excitability must be shared with 0\.norm\.excitability.*got none"):
        dendnorm.load(tmp_path / "a.safetensors", network())


def test_another_pattern_is_adopted_only_when_asked(tmp_path):
    model = network()
    dendnorm.save(tmp_path / "a.safetensors", model)
    dendnorm.load(tmp_path / "a.safetensors", network())  # the same seed, the same edges
    other = network(seed=8)
    before = everything(other)
    for options in ({}, {"adopt_pattern": False}):
        with pytest.raises(ValueError, match=r"layer '0' must have the connections of the file.*adopt_pattern=True"):
            dendnorm.load(tmp_path / "a.safetensors", other, **options)
        assert_same(before, everything(other))
    dendnorm.load(tmp_path / "a.safetensors", other, adopt_pattern=True)
    assert_same(everything(model), everything(other))


def test_loading_a_rewirer_asks_for_the_pattern_that_it_made(tmp_path):
    parts = fresh("adamw")
    train(*parts, range(4))
    dendnorm.save(tmp_path / "a.safetensors", *parts)
    resumed = fresh("adamw")
    before = everything(*resumed)
    with pytest.raises(ValueError, match="must have the connections of the file"):
        dendnorm.load(tmp_path / "a.safetensors", *resumed, adopt_pattern=False)
    assert_same(before, everything(*resumed))
    dendnorm.load(tmp_path / "a.safetensors", *resumed)
    assert_same(everything(*parts), everything(*resumed))


def test_another_optimizer_is_refused_and_everything_left_alone(tmp_path):
    parts = fresh("adamw")
    train(*parts, range(4))
    dendnorm.save(tmp_path / "a.safetensors", *parts)
    model, _, _ = fresh(seed=30)
    for optimizer, message in (
        (torch.optim.AdamW(model.parameters()), "optimizer must hold the parameters"),
        (torch.optim.AdamW([{"params": list(model.parameters())[::-1]}]), "optimizer must hold the parameters"),
    ):
        rewire = dendnorm.SET(model, optimizer, seed=77)
        before = everything(model, optimizer, rewire)
        with pytest.raises(ValueError, match=message):
            dendnorm.load(tmp_path / "a.safetensors", model, optimizer, rewire)
        assert_same(before, everything(model, optimizer, rewire))


def test_what_was_not_saved_cannot_be_loaded(tmp_path):
    parts = fresh()
    dendnorm.save(tmp_path / "a.safetensors", parts[0])
    for kwargs, name in (
        ({"optimizer": parts[1]}, "optimizer"),
        ({"rewirer": parts[2]}, "rewirer"),
        ({"rng": True}, "rng"),
    ):
        with pytest.raises(ValueError, match=f"must hold the state of {name}"):
            dendnorm.load(tmp_path / "a.safetensors", parts[0], **kwargs)
    with pytest.raises(FileNotFoundError):
        dendnorm.load(tmp_path / "b.safetensors", parts[0])
    with pytest.raises(TypeError, match="model must be"):
        dendnorm.load(tmp_path / "a.safetensors", {})
    for pair in ((tmp_path / "a.safetensors", {}), ({}, tmp_path / "a.safetensors")):
        with pytest.raises(TypeError, match=r"model must be .* got dict; dendnorm.save takes the model itself"):
            dendnorm.save(*pair)
    for pair in ((3, parts[0]), (parts[0], 3)):
        for call in (dendnorm.save, dendnorm.load):
            with pytest.raises(TypeError, match=r"path must be a str or os.PathLike, got int"):
                call(*pair)


def test_path_and_model_in_the_order_of_torch_save(tmp_path):
    model, twin = network(), network(seed=1)
    dendnorm.save(model, str(tmp_path / "a.safetensors"), extra=3)
    assert dendnorm.load(twin, tmp_path / "a.safetensors", adopt_pattern=True) == 3
    torch.testing.assert_close(dict(twin.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_a_part_that_refuses_takes_the_others_back(tmp_path):
    class Stubborn(torch.optim.AdamW):
        def load_state_dict(self, state_dict) -> None:
            super().load_state_dict(state_dict)
            if state_dict["param_groups"][0]["lr"] == 0.01:
                raise ValueError("not this one")

    parts = fresh("adamw")
    train(*parts, range(4))
    dendnorm.save(tmp_path / "a.safetensors", *parts)
    model = network(seed=30)
    optimizer = Stubborn(dendnorm.param_groups(model, weight_decay=0.5), lr=0.5)
    rewire = dendnorm.SET(model, optimizer, seed=77)
    train(model, optimizer, rewire, range(2))
    before = everything(model, optimizer, rewire)
    with pytest.raises(ValueError, match="not this one"):
        dendnorm.load(tmp_path / "a.safetensors", model, optimizer, rewire)
    assert_same(before, everything(model, optimizer, rewire))


# Damage


@pytest.fixture(scope="module")
def whole() -> tuple[bytes, tuple]:
    import tempfile

    parts = fresh()
    train(*parts, range(4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        dendnorm.save(path, *parts, extra={"step": 4}, rng=True)
        return path.read_bytes(), fresh(seed=60)


def refuse(data: bytes, parts: tuple, path: Path) -> None:
    path.write_bytes(data)
    before = everything(*parts)
    with pytest.raises(ValueError, match=r"^checkpoint .*bad"):
        dendnorm.load(path, *parts, rng=True)
    assert_same(before, everything(*parts))


@pytest.mark.feature("a damaged or cut checkpoint is refused and changes nothing")
@settings(max_examples=150)
@given(data=st.data())
def test_a_changed_byte_is_refused_wherever_it_is(whole, tmp_path_factory, data):
    content, parts = whole
    head = 8 + int.from_bytes(content[:8], "little")
    last = data.draw(st.sampled_from([16, head, len(content)]))
    position, flip = data.draw(st.integers(0, last - 1)), data.draw(st.integers(1, 255))
    bad = bytearray(content)
    bad[position] ^= flip
    refuse(bytes(bad), parts, tmp_path_factory.getbasetemp() / "bad")


@settings(max_examples=80)
@given(data=st.data())
def test_a_file_cut_short_or_made_longer_is_refused(whole, tmp_path_factory, data):
    content, parts = whole
    length = data.draw(st.one_of(st.integers(0, 64), st.integers(0, len(content) - 1)))
    more = data.draw(st.binary(min_size=1, max_size=40))
    path = tmp_path_factory.getbasetemp() / "bad"
    refuse(content[:length], parts, path)
    refuse(content + more, parts, path)
    refuse(more, parts, path)


def signed_again(content: bytes, change: Callable[[dict, dict], None]) -> bytes:
    """The same file with another content and a right digest: damage that only the checks behind it can find."""
    from safetensors.torch import load, save

    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors, document = load(content), json.loads(head["__metadata__"]["dendnorm"])
    change(tensors, document)
    data = bytearray(save(tensors, {"dendnorm": json.dumps(document), "sha256": "0" * 64}))
    start = data.index(b'"sha256":"' + b"0" * 64) + 10
    data[start : start + 64] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def put(name: str, value: torch.Tensor) -> Callable:
    def change(tensors: dict, document: dict) -> None:
        tensors[name] = value

    return change


def edit(name: str, at: int, by: int) -> Callable:
    def change(tensors: dict, document: dict) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][at] += by

    return change


def row_twice(tensors: dict, document: dict) -> None:
    pointers = tensors["model/5.ccol_indices"]
    first = int(pointers[int((pointers.diff() >= 2).nonzero()[0])])
    edit("model/5.row_indices", first + 1, int(tensors["model/5.row_indices"][first : first + 2].diff().neg()))(
        tensors, {}
    )


CHANGES = {
    "row out of range": edit("model/0.row_indices", 3, 1000),
    "negative row": edit("model/0.row_indices", 0, -100),
    "row twice": row_twice,
    "pointers": edit("model/0.ccol_indices", 2, 50),
    "last pointer": edit("model/0.ccol_indices", -1, 1),
    "pattern dtype": lambda t, d: put("model/0.row_indices", t["model/0.row_indices"].long())(t, d),
    "shape": put("model/6.bias", torch.zeros(4)),
    "dtype": put("model/6.bias", torch.zeros(3, dtype=torch.float16)),
    "tensor gone": lambda t, d: t.pop("model/6.bias"),
    "pattern mark": edit("model/0.pattern_mark", 0, 1),
    "no versions of a module": lambda t, d: d["versions"].update({"1": None}),
    "versions that are text": lambda t, d: d["versions"].update({"1": {"version": "2"}}),
    "a tensor named twice": lambda t, d: d.update(extra=[{"tensor": "model/6.bias"}]),
    "parameters that are no numbers": lambda t, d: d["optimizer"]["dict"][1][1][0]["dict"][-1].__setitem__(1, [{}]),
    "format": lambda t, d: d.update(format=99),
    "no model": lambda t, d: d.pop("model"),
    "model is a list": lambda t, d: d.update(model=[1]),
    "layers is a list": lambda t, d: d.update(layers=[1]),
    "unknown tag": lambda t, d: d.update(extra={"object": 3}),
    "two tags": lambda t, d: d.update(extra={"dict": [], "tuple": []}),
    "sharing": lambda t, d: d["shared"].clear(),
    "sharing with nothing": lambda t, d: d["shared"].update({"3.norm.excitability": "nowhere"}),
    "no groups": lambda t, d: d.update(optimizer={"dict": [["state", {"dict": []}]]}),
    "group count": lambda t, d: d.update(optimizer={"dict": [["state", {"dict": []}], ["param_groups", []]]}),
    "rewirer": lambda t, d: d.update(rewirer={"dict": [["seed", -1], ["steps", 0], ["calls", 0]]}),
    "random state": lambda t, d: d.update(rng={"dict": [["torch", 1], ["cuda", []], ["numpy", 1], ["python", 1]]}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_content_that_does_not_fit_is_refused_behind_a_right_digest(whole, tmp_path, name):
    content, parts = whole
    assert dendnorm.checkpoint.describe(_written(tmp_path / "good", signed_again(content, lambda t, d: None)))
    refuse(signed_again(content, CHANGES[name]), parts, tmp_path / "bad")


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# Killed while saving


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, broken):
    model = network()
    dendnorm.save(tmp_path / "a.safetensors", model, extra=1)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    if broken == "write":
        monkeypatch.setattr("builtins.open", fail)
    else:
        monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        dendnorm.save(tmp_path / "a.safetensors", model, extra=2)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert dendnorm.load(tmp_path / "a.safetensors", model) == 1


def test_a_save_keeps_the_mode_and_deletes_what_killed_savers_left(tmp_path):
    import fcntl

    path, model = tmp_path / "a.safetensors", network()
    dendnorm.save(path, model, extra=1)
    path.chmod(0o600)
    left, held = (tmp_path / f".a.safetensors.{digit * 16}.tmp" for digit in "0a")
    others = [tmp_path / name for name in (".b.safetensors.0123456789abcdef.tmp", ".a.safetensors.mine.tmp")]
    for each in (left, held, *others):
        each.write_bytes(b"half")
    with open(held) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # its saver lives
        dendnorm.save(path, model, extra=2)
        assert path.stat().st_mode & 0o777 == 0o600 and dendnorm.load(path, model) == 2
        assert {*tmp_path.iterdir()} == {path, held, *others}
    dendnorm.save(path, model, extra=3)
    assert {*tmp_path.iterdir()} == {path, *others}


KILLS = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)  # a fork keeps one thread
import dendnorm

path = os.path.join(sys.argv[1], "a.safetensors")
model = torch.nn.Sequential(dendnorm.SparseLinear(400, 300, density=0.2, norm="joint", seed=0))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
rewire = dendnorm.SET(model, optimizer, seed=0)

def set_to(value):
    with torch.no_grad():
        model[0].weight.fill_(value)
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, value)

set_to(0)
dendnorm.save(path, model, optimizer, rewire, extra=0)
rng, seen, halfway, finished, trial, window = random.Random(0), 0, 0, 0, 0, 0.02
# However busy the machine: until enough saves were finished, and enough were killed half-way.
while trial < 40 or ((finished < 10 or halfway < 10) and trial < 1000):
    trial += 1
    child = os.fork()
    if child == 0:
        try:
            for value in range(seen + 1, seen + 10**6):
                set_to(value)
                dendnorm.save(path, model, optimizer, rewire, extra=value)
        finally:
            os._exit(1)
    time.sleep(rng.random() * window)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the child ended by itself"
    got = dendnorm.load(path, model, optimizer, rewire)
    assert got >= seen, (got, seen)
    window *= 1.5 if got == seen else 0.8  # about as long as a save takes
    finished += got > seen
    halfway += got == seen
    seen = got
    assert (model[0].weight == got).all()
    assert all((state["momentum_buffer"] == got).all() for state in optimizer.state.values())
dendnorm.save(path, model)
assert os.listdir(sys.argv[1]) == [os.path.basename(path)]
print(finished, halfway)
"""


@pytest.mark.feature("a process killed while it saves leaves the previous checkpoint whole")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_the_previous_checkpoint_loads(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLS), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    finished, halfway = map(int, run.stdout.split())
    assert finished >= 10
    assert halfway >= 10


@pytest.mark.parametrize("missing", ["O_TMPFILE", "links"])
def test_without_files_that_have_no_name_it_saves_as_well(missing, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    if missing == "O_TMPFILE":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    else:
        monkeypatch.setattr(dendnorm.checkpoint.container, "_OWN_FILES", str(tmp_path / "none"))
    for _ in range(2):
        dendnorm.save(path, network())
        assert os.listdir(tmp_path) == [path.name]
    dendnorm.load(path, network())


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"safetensors.*pip install .*safetensors"):
        dendnorm.save(tmp_path / "a", network())
    assert os.listdir(tmp_path) == []
