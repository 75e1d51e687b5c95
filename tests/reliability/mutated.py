"""Checkpoints that are not what was saved: cut at every byte, edited at random, and edited behind a right digest.

A file that was damaged is refused. One that somebody wrote with a right digest is refused with a ValueError or loaded
whole; nothing of it is ever half-loaded, and it cannot ask for more memory than a few times its size.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as file_of

import dendnorm
from dendnorm.checkpoint import container

from .tally import Tally

EDITS, SIGNED = 400, 6  # in each unit
OBJECTS = (
    100  # times a file of 2 KB: Python's lists, and the calls that read lists in lists, are larger than their text
)


def parts(seed: int = 0) -> tuple:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        dendnorm.SparseLinear(5, 4, nnz=8, norm="joint", seed=seed), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rewirer = dendnorm.SET(model, optimizer, seed=seed)
    model(torch.randn(3, 5)).sum().backward()
    optimizer.step()
    return model, optimizer, rewirer


@functools.cache
def saved() -> tuple[bytes, dict[str, Any]]:
    """A file, and what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        dendnorm.save(path, *parts(), extra={"step": 3, "tensors": [torch.arange(3)]}, rng=False)
        return path.read_bytes(), container.read(path)


@functools.cache
def target() -> tuple:
    return parts(seed=7)


def state(some: tuple) -> list:
    flat: list = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                flat.append(key)
                walk(item)
        elif isinstance(value, (list, tuple)):
            flat.append(len(value))
            for item in value:
                walk(item)
        else:
            flat.append((value.dtype, value.shape, value.clone()) if isinstance(value, torch.Tensor) else value)

    for part in some:
        walk(part.state_dict())
    return flat


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(
            first.contiguous().view(torch.uint8) if first.dim() else first,
            second.contiguous().view(torch.uint8) if second.dim() else second,
        )
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return type(first) is type(second) and (first == second or first != first)


def refused(data: bytes | bytearray, tally: Tally, what: str) -> None:
    """A damaged file: a ValueError, or, should the damage be none, the content that was saved."""
    tally.count(what)
    try:
        content = container.parse(bytes(data))
    except ValueError:
        return
    except Exception as error:
        tally.find(f"{what}: {type(error).__name__}: {error}")
        return
    tally.count("equal")
    tally.expect(same(content, saved()[1]), f"{what}: read as something else")


def edited(data: bytes, draw: random.Random) -> bytearray:
    """One to four edits: a byte, a bit, a stretch that is cut out, doubled, moved or made of zeros."""
    new = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        at = draw.randrange(max(1, len(new))) if draw.random() < 0.5 else draw.randrange(min(len(new), 900) or 1)
        size = draw.choice([1, 2, 8, 64])
        kind = draw.randrange(6)
        if kind == 0:
            new[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1 and new:
            new[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del new[at : at + size]
        elif kind == 3:
            new[at:at] = new[at : at + size]
        elif kind == 4:
            new[at : at + size] = bytes(len(new[at : at + size]))
        else:
            new[at : at + size] = draw.randbytes(size)
    return new


VALUES = (
    None, True, -1, 0, 3, 2**63, 2**200, 1e400, 0.5, "", "x", "tensor", [], {}, [[]], {"dict": []}, {"tuple": []},
    {"tensor": "model/0.weight"}, {"tensor": "nothing"}, {"dict": [["a", 1], ["a", 2]]}, {"dict": [[[], 1]]},
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def forged(draw: random.Random) -> tuple[bytes, str]:
    """The file with something else in its document or a tensor, and a right digest; and what was changed."""
    data = saved()[0]
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors, document = dict(tensors_of(data)), json.loads(head["__metadata__"]["dendnorm"])
    what = []
    for _ in range(draw.choice([1, 1, 2])):
        if draw.random() < 0.3:
            name = draw.choice(sorted(tensors))
            old = tensors[name].clone()
            change = draw.randrange(4)
            if change == 0:
                old.flatten()[:1].fill_(draw.choice([-1, 0, 1, 7, 2**30])) if old.numel() else None
                tensors[name] = old
            elif change == 1:
                tensors[name] = old.to(draw.choice([torch.float64, torch.int64, torch.float16, torch.bool]))
            elif change == 2:
                tensors[name] = torch.cat([old.flatten(), old.flatten()[:1]])
            else:
                del tensors[name]
            what.append(f"tensor {name}, change {change}")
            continue
        path = draw.choice(list(places(document)))
        inside: Any = document
        for key in path[:-1]:
            inside = inside[key]
        if draw.random() < 0.25:
            del inside[path[-1]]
            what.append(f"{path} deleted")
        else:
            inside[path[-1]] = draw.choice(VALUES)
            what.append(f"{path} = {str(inside[path[-1]])[:40]}")
    return signed(tensors, document), "; ".join(what)


def signed(tensors: dict[str, torch.Tensor], document: Any) -> bytes:
    """A file with a right digest."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = bytearray(file_of(whole, {"dendnorm": json.dumps(document), "sha256": "0" * 64}))
    start = data.index(b'"sha256":"' + b"0" * 64) + 10
    data[start : start + 64] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def whole_or_not(data: bytes, what: str, tally: Tally, path: Path) -> None:
    path.write_bytes(data)
    some = target()
    before = state(some)
    tally.count("forged")
    try:
        dendnorm.load(path, *some)
    except ValueError:
        tally.count("forged and refused")
        tally.expect(same(before, state(some)), f"half-loaded: {what}")
    except Exception as error:
        tally.find(f"forged, {type(error).__name__}: {error}: {what}; half-loaded: {not same(before, state(some))}")
    else:
        # Whole: the model is what the file says of it.
        wanted, own = container.read(path)["model"], some[0].state_dict()
        tally.expect(all(same(own[name], value) for name, value in wanted.items() if name in own), f"not whole: {what}")
        before = state(some)
    if not same(before, state(some)):  # what comes next begins with a sound target
        target.cache_clear()


def bombs() -> dict[str, bytes]:
    """Files of about 2 KB that would be larger in memory."""
    tensors = {"model/a": torch.zeros(150)}
    plain = {"format": 1, "layers": {}, "shared": {}, "versions": {}, "model": {"dict": []}}
    named = {"tensor": "model/a"}
    data = bytearray(saved()[0])
    huge = bytearray(data)
    huge[:8] = (2**63).to_bytes(8, "little")
    head = {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    text = json.dumps(head).encode()
    empty = {"x": {"dtype": "F32", "shape": [0, 2**60], "data_offsets": [0, 0]}}
    hollow = json.dumps(empty).encode()
    return {
        "a tensor named 60 times": signed(tensors, plain | {"extra": [named] * 60}),
        "lists in lists": signed({}, plain | {"extra": [[]] * 400}),
        "lists 400 deep": signed({}, plain | {"extra": json.loads("[" * 400 + "]" * 400)}),
        "a long head": bytes(huge[:2000]),
        "a tensor of 4 TB": len(text).to_bytes(8, "little") + text,
        "2^60 columns of no rows": len(hollow).to_bytes(8, "little") + hollow,
        "a number of 1,500 digits": signed({}, plain | {"extra": 10**1500}),
    }


def held(value: Any) -> int:
    """Bytes of tensors."""
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(map(held, value.values()))
    return sum(map(held, value)) if isinstance(value, (list, tuple)) else 0


def modest(tally: Tally) -> None:
    for what, data in bombs().items():
        content: Any = None
        tracemalloc.start()
        with contextlib.suppress(ValueError):
            content = container.parse(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        tensors, objects = held(content) / len(data), peak / max(len(data), 2048)
        tally.count("bombs")
        tally.most("tensors", tensors)
        tally.most("objects", objects)
        tally.expect(tensors <= 1, f"{what}: a file of {len(data)} bytes gave tensors of {tensors:.1f} times its size")
        tally.expect(objects <= OBJECTS, f"{what}: a file of {len(data)} bytes took {objects:.0f} times as much")


def unit(number: int, tally: Tally) -> None:
    """Random edits, a share of all cuts, and a few forged files."""
    draw, data = random.Random(number), saved()[0]
    for _ in range(EDITS):
        refused(edited(data, draw), tally, "edits")
    for length in range(number % 40, len(data), 40):
        refused(data[:length], tally, "cuts")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(SIGNED):
            whole_or_not(*forged(draw), tally, Path(folder) / "a.safetensors")
        for length in (0, 1, 7, 8, 9, draw.randrange(len(data))):
            before = state(target())
            Path(folder, "cut").write_bytes(data[:length])
            with contextlib.suppress(ValueError):
                dendnorm.load(Path(folder, "cut"), *target())
                tally.find(f"a file cut to {length} bytes was loaded")
            tally.expect(same(before, state(target())), f"half-loaded: cut to {length} bytes")
    if number % 40 == 0:
        modest(tally)


def summary(tally: Tally) -> None:
    size = len(saved()[0])
    tally.count("size", size)


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """A reader that does not look at the digest."""

    def as_written(data: bytes, start: int) -> str:
        return data[start : start + 64].decode(errors="replace")

    kept, container._digest = container._digest, as_written
    try:
        yield
    finally:
        container._digest = kept
        target.cache_clear()
