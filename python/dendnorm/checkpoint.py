"""Checkpoints: one safetensors file with model, optimizer and rewirer, that is whole or not there at all.

The file is ordinary safetensors: any reader of that format gets the tensors. Its metadata holds a JSON document (what
the tensors are, and everything that is no tensor) and a SHA-256 of the whole file. Nothing in it is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ._extras import require
from .layers import SparseLinear

__all__ = ["describe", "load", "save"]

FORMAT = 1
_UNSIGNED = "0" * 64


def save(
    path: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    rewirer: Any = None,
    extra: Any = None,
    *,
    rng: bool = False,
) -> None:
    """Write a checkpoint, such that ``path`` holds the old file or the whole new one, whenever the process is killed.

    Written to a temporary file ``.NAME.*.tmp`` in the same folder, synced, renamed, and the folder synced. A process
    that is killed may leave that temporary file behind; it may be deleted. In a distributed run one rank saves, and it
    saves the module inside the wrapper (``ddp.module``).

    Args:
        path: the file; its folder must exist.
        model: its ``state_dict()`` is saved; a tensor that it holds under several names once.
        optimizer: any torch optimizer of it, or None.
        rewirer: ``SET`` or anything whose ``state_dict()`` holds what ``extra`` may hold, or None.
        extra: anything made of tensors, str, int, float, bool, None, lists, tuples and dicts, for example
            ``{"epoch": 3, "scheduler": scheduler.state_dict()}``.
        rng: whether to save the random state of torch (every device), numpy and Python's ``random``.

    Raises:
        TypeError, ValueError: something that such a file cannot hold; names it. Nothing has been written then.
        OSError: the file cannot be written; what was at ``path`` is untouched.
        ImportError: without the package safetensors.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    writer = require("safetensors.torch", "train")
    tensors: dict[str, torch.Tensor] = {}
    document: dict[str, Any] = {"format": FORMAT, "layers": _layers(model), "shared": _shared(model)}
    state = model.state_dict()
    document["versions"] = getattr(state, "_metadata", {})
    kept = {key: value for key, value in state.items() if key not in document["shared"]}
    document["model"] = _encode(kept, "model", tensors)
    if optimizer is not None:
        document["optimizer"] = _encode(optimizer.state_dict(), "optimizer", tensors)
        document["parameters"] = _parameters(model, optimizer)
    if rewirer is not None:
        document["rewirer"] = _encode(rewirer.state_dict(), "rewirer", tensors)
    document["extra"] = _encode(extra, "extra", tensors)
    if rng:
        document["rng"] = _encode(_random_state(), "rng", tensors)
    data = bytearray(writer.save(tensors, {"dendnorm": json.dumps(document), "sha256": _UNSIGNED}))
    start = data.index(f'"sha256":"{_UNSIGNED}"'.encode()) + len('"sha256":"')
    data[start : start + 64] = hashlib.sha256(data).hexdigest().encode()
    _write(Path(os.path.realpath(path)), data)


def load(
    path: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    rewirer: Any = None,
    *,
    adopt_pattern: bool = True,
    rng: bool = False,
) -> Any:
    """Put model, optimizer and rewirer, in place, into the state that ``save`` found them in.

    Everything is checked before anything changes: the file's digest, its format, that names, sharing, shapes, dtypes,
    norms and the optimizer's parameters are those of the file, and that every pattern is sound. Tensors are copied to
    where the model has them, so a checkpoint moves between devices.

    Args:
        path: the file.
        model: of the same architecture, with as many connections in each sparse layer.
        optimizer, rewirer: None leaves the file's aside; what is given must be in the file.
        adopt_pattern: whether sparse layers take the file's connections, as ``load_state_dict`` does and resuming
            needs. False refuses a file whose connections are not those that the model has.
        rng: whether to restore the random state of torch, numpy and Python.

    Returns:
        the ``extra`` that was saved; its tensors are on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or does not fit; names the file, what was expected and what came. Model,
            optimizer and rewirer are then as they were.
        ImportError: without the package safetensors.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    try:
        content = _read(path)
        for name, wanted in (("optimizer", optimizer), ("rewirer", rewirer), ("rng", rng or None)):
            if wanted is not None and name not in content:
                raise ValueError(f"must hold the state of {name}, got none; save it with {name}=, or load without")
        state = _checked_model(content, model, adopt_pattern)
        if optimizer is not None:
            _check_optimizer(content, model, optimizer)
        restore = _checked_random_state(content["rng"]) if rng else None
        # The parts that may refuse come first, each undone if a later one does; the model's copies cannot fail.
        with contextlib.ExitStack() as undo:
            for part, name in ((rewirer, "rewirer"), (optimizer, "optimizer")):
                if part is not None:
                    undo.callback(part.load_state_dict, part.state_dict())
                    part.load_state_dict(content[name])
            undo.pop_all()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"checkpoint {os.fspath(path)!r} {_sentence(error)}") from None
    model.load_state_dict(state)
    if restore is not None:
        restore()
    return content["extra"]


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """What a checkpoint holds, without a model: enough to build the model that it fits.

    Returns:
        "format"; "layers": for each sparse layer by name its in_features, out_features, nnz and the norm's a, b, p and
        variable; "tensors": shape and dtype of each of the model's; "holds": which of "optimizer", "rewirer" and "rng"
        are in it; and "extra".

    Raises:
        FileNotFoundError, ValueError, ImportError: as ``load``.
    """
    try:
        content = _read(path)
    except ValueError as error:
        raise ValueError(f"checkpoint {os.fspath(path)!r} {_sentence(error)}") from None
    tensors = {name: (tuple(value.shape), value.dtype) for name, value in content["model"].items()
               if isinstance(value, torch.Tensor)}  # fmt: skip
    holds = [name for name in ("optimizer", "rewirer", "rng") if name in content]
    return {"format": FORMAT, "layers": content["layers"], "tensors": tensors, "holds": holds,
            "extra": content["extra"]}  # fmt: skip


# The file


def _write(path: Path, data: bytes | bytearray) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(path: str | os.PathLike) -> dict[str, Any]:
    """The document with its tensors in place, from a file whose every byte is the one that was written."""
    reader, head = require("safetensors.torch", "train"), require("safetensors", "train")
    data = Path(path).read_bytes()
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        text, digest = metadata["dendnorm"], metadata["sha256"]
        start = data.index(f'"sha256":"{digest}"'.encode(), 8, 8 + size) + len('"sha256":"')
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("is not one of dendnorm, or its head is damaged") from None
    signed = hashlib.sha256(data[:start])
    signed.update(_UNSIGNED.encode())
    signed.update(memoryview(data)[start + 64 :])
    if len(digest) != 64 or signed.hexdigest() != digest:
        raise ValueError("is damaged: its SHA-256 is not the one it was written with")
    try:
        tensors = reader.load(data)
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"must have format {FORMAT}, which this dendnorm reads, got {document['format']!r}")
        plain = ("format", "layers", "shared", "versions", "parameters")
        content = {key: document[key] for key in plain if key in document}
        for key in ("model", "extra", "optimizer", "rewirer", "rng"):
            if key in document:
                content[key] = _decode(document[key], tensors)
        for part in ("layers", "shared", "versions", "model"):
            if not isinstance(content[part], dict):
                raise TypeError
        content["extra"] = content.get("extra")
        return content
    except (KeyError, TypeError, AttributeError, RecursionError, head.SafetensorError) as error:
        raise ValueError(f"has an intact digest but no content of dendnorm ({type(error).__name__})") from None


def _sentence(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    first = text.partition("\n")[0]
    return first if first.startswith(("is ", "has ", "must ")) else f"does not fit: {first}"


# Anything made of tensors and plain values, as JSON: a dict with one key tells what JSON cannot


def _encode(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.device.type == "meta":
            raise ValueError(f"{where} must be a dense tensor with values, got {value.layout} on {value.device}")
        if type(value.detach()) is not torch.Tensor:
            raise ValueError(f"{where} must be a plain tensor, whole on this rank, got a {type(value).__name__}")
        name = f"{where.partition('[')[0]}/{len(tensors)}" if not where.startswith("model[") else f"model/{where[6:-1]}"
        tensors[name] = value.detach().cpu().contiguous().clone()  # a clone: views of one memory may overlap
        return {"tensor": name}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, bool) or not isinstance(key, (int, str)):
                raise TypeError(f"{where} must have keys of type str or int, got {key!r}")
        return {"dict": [[key, _encode(item, f"{where}[{key}]", tensors)] for key, item in value.items()]}
    raise TypeError(
        f"{where} must be a tensor, str, int, float, bool, None or a list, tuple or dict of such, got"
        f" {type(value).__name__}"
    )


def _decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].clone()  # the reader's memory is not ours to write
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    raise TypeError(kind)


# What a model and its optimizer are, beside their tensors


def _layers(model: nn.Module) -> dict[str, Any]:
    return {
        name: {
            "in_features": layer.in_features, "out_features": layer.out_features, "nnz": layer.nnz,
            "norm": {"a": layer.norm.a, "b": layer.norm.b, "p": layer.norm.p, "variable": layer.norm.variable},
        }
        for name, layer in model.named_modules(remove_duplicate=False) if isinstance(layer, SparseLinear)
    }  # fmt: skip


def _shared(model: nn.Module) -> dict[str, str]:
    """For each name of a tensor that has an earlier name: that one."""
    first: dict[int, str] = {}
    shared = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor) and first.setdefault(id(value), name) != name:
            shared[name] = first[id(value)]
    return shared


def _parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str | None]]:
    """The names of the parameters in each group: an optimizer's state knows them by number alone."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]


def _differences(own: Mapping, given: Mapping) -> str:
    names = [name for name in dict.fromkeys([*own, *given]) if own.get(name) != given.get(name)]
    lines = [f"{name} must be {own.get(name, 'absent')}, as the model has it, got {given.get(name, 'none')}"
             for name in names]  # fmt: skip
    return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")


def _checked_model(content: dict[str, Any], model: nn.Module, adopt_pattern: bool) -> dict[str, Any]:
    """The state_dict for `model`, of which nothing can be refused any more."""
    own = model.state_dict(keep_vars=True)
    shared, layers = _shared(model), _layers(model)
    if shared != content["shared"]:
        parts = (shared, content["shared"])
        raise ValueError(
            _differences(*({name: f"shared with {other}" for name, other in part.items()} for part in parts))
        )
    given = OrderedDict(content["model"])
    given.update({name: given[other] for name, other in shared.items()})
    given._metadata = content["versions"]

    def kind(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        return type(value).__name__

    # The layers first: "nnz must be" says more than a shape.
    for own_kinds, given_kinds in (
        ({f"layer {name!r}": layer for name, layer in layers.items()},
         {f"layer {name!r}": layer for name, layer in content["layers"].items()}),
        ({name: kind(value) for name, value in own.items()}, {name: kind(value) for name, value in given.items()}),
    ):  # fmt: skip
        if own_kinds != given_kinds:
            raise ValueError(_differences(own_kinds, given_kinds))
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, SparseLinear):
            continue
        prefix = f"{name}." if name else ""
        pattern = given[prefix + "ccol_indices"], given[prefix + "row_indices"]
        try:
            layer._check_pattern(*pattern)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
        if not adopt_pattern and not all(
            torch.equal(mine.cpu(), theirs) for mine, theirs in zip(layer.pattern[:2], pattern, strict=True)
        ):
            raise ValueError(
                f"layer {name!r} must have the connections of the file where adopt_pattern=False, got others"
            )
    return given


def _check_optimizer(content: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    given, own = content["optimizer"], optimizer.state_dict()
    names, saved = _parameters(model, optimizer), content["parameters"]
    if names != saved:
        raise ValueError(f"optimizer must hold the parameters {saved}, group by group as it was saved, got {names}")
    if [len(group["params"]) for group in given["param_groups"]] != [len(group) for group in names]:
        raise ValueError("optimizer must have a number for each parameter, got another count in its groups")
    for index, state in given["state"].items():
        for key, mine in own["state"].get(index, {}).items():
            theirs = state.get(key)
            got = tuple(theirs.shape) if isinstance(theirs, torch.Tensor) else theirs
            if isinstance(mine, torch.Tensor) and tuple(mine.shape) != got:
                raise ValueError(
                    f"optimizer state {key!r} of parameter {index} must have shape {tuple(mine.shape)}, got {got}"
                )


# Random state


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, keys.tolist(), *rest),
        "python": random.getstate(),
    }


def _checked_random_state(state: dict[str, Any]) -> Callable[[], None]:
    """What restores it; refuses here what it would refuse then."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) != devices:
        raise ValueError(
            f"must have the random state of {devices} CUDA devices, got {len(state['cuda'])}; load with rng=False"
        )
    try:
        torch.Generator().set_state(state["torch"])
        np.random.RandomState().set_state(state["numpy"])
        random.Random().setstate(state["python"])
    except RuntimeError as error:
        raise ValueError(f"has a random state that torch refuses: {str(error).partition(chr(10))[0]}") from None

    def restore() -> None:
        torch.set_rng_state(state["torch"])
        for device, value in enumerate(state["cuda"]):
            torch.cuda.set_rng_state(value, device)
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])

    return restore
