"""Checkpoints: one safetensors file with model, optimizer and rewirer, that is whole or not there at all.

The file is ordinary safetensors: any reader of that format gets the tensors. Its metadata holds a JSON document (what
the tensors are, and everything that is no tensor) and a SHA-256 of the whole file. Nothing in it is unpickled.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from .._extras import require
from ..nn.conv import SparseConv
from ..nn.layer import SparseLayer
from ..nn.spread import is_spread
from .container import FORMAT, encode, read, write

__all__ = ["describe", "load", "save"]


Path = str | os.PathLike


def save(
    path: Path | nn.Module,
    model: nn.Module | Path,
    optimizer: torch.optim.Optimizer | None = None,
    rewirer: Any = None,
    extra: Any = None,
    *,
    rng: bool = False,
) -> None:
    """Write a checkpoint, such that ``path`` holds the old file or the whole new one, whenever the process is killed.

    Written to a file without a name in the same folder, synced, named ``.NAME.*.tmp``, renamed, and the folder synced.
    A process that is killed between these two names, or at any time where the system has no files without, leaves that
    temporary file behind; the next save to this path deletes it. A file that is there keeps its mode. In a distributed
    run one rank saves, and it saves the module inside the wrapper (``ddp.module``).

    Args:
        path: the file; its folder must exist. It may come after the model, as ``torch.save`` has it.
        model: its ``state_dict()`` is saved; a tensor that it holds under several names once.
        optimizer: any torch optimizer of it, or None.
        rewirer: ``SET`` or anything whose ``state_dict()`` holds what ``extra`` may hold, or None.
        extra: anything made of tensors, str, int, float, bool, None, lists, tuples and dicts, for example
            ``{"epoch": 3, "scheduler": scheduler.state_dict()}``.
        rng: whether to save the random state of torch (every device), numpy and Python's ``random``.

    Raises:
        TypeError, ValueError: something that such a file cannot hold; names it. Nothing has been written then.
        OSError: the file cannot be written; what was at ``path`` is untouched (unless it is syncing the folder that
            fails: the new file is then there, whole).
        ImportError: without the package safetensors.
    """
    path, model = _in_order(path, model, "save")
    require("safetensors.torch", "train")
    tensors: dict[str, torch.Tensor] = {}
    document: dict[str, Any] = {"format": FORMAT, "layers": _layers(model), "shared": _shared(model)}
    for layer in model.modules():
        if isinstance(layer, SparseLayer):
            layer._row_view()  # refuses a mixture of patterns, which nobody could load
    state = model.state_dict()
    document["versions"] = getattr(state, "_metadata", {})
    kept = {key: value for key, value in state.items() if key not in document["shared"]}
    document["model"] = encode(kept, "model", tensors)
    if optimizer is not None:
        document["optimizer"] = encode(optimizer.state_dict(), "optimizer", tensors)
        document["parameters"] = _parameters(model, optimizer)
    if rewirer is not None:
        document["rewirer"] = encode(rewirer.state_dict(), "rewirer", tensors)
    document["extra"] = encode(extra, "extra", tensors)
    if rng:
        document["rng"] = encode(_random_state(), "rng", tensors)
    write(path, document, tensors)


def load(
    path: Path | nn.Module,
    model: nn.Module | Path,
    optimizer: torch.optim.Optimizer | None = None,
    rewirer: Any = None,
    *,
    adopt_pattern: bool | None = None,
    rng: bool = False,
) -> Any:
    """Put model, optimizer and rewirer, in place, into the state that ``save`` found them in.

    Everything is checked before anything changes: the file's digest, its format, that names, sharing, shapes, dtypes,
    norms and the optimizer's parameters are those of the file, and that every pattern is sound. Tensors are copied to
    where the model has them, so a checkpoint moves between devices.

    Args:
        path: the file. It may come after the model.
        model: of the same architecture, with as many connections in each sparse layer.
        optimizer, rewirer: None leaves the file's aside; what is given must be in the file.
        adopt_pattern: whether sparse layers take the file's connections where theirs are others, as ``load_state_dict``
            does. False refuses such a file. None: they do where a rewirer is loaded, too, which has moved them since.
        rng: whether to restore the random state of torch, numpy and Python.

    Returns:
        the ``extra`` that was saved; its tensors are on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or does not fit; names the file, what was expected and what came. Model,
            optimizer and rewirer are then as they were.
        ImportError: without the package safetensors.
    """
    path, model = _in_order(path, model, "load")
    try:
        content = read(path)
        for name, wanted in (("optimizer", optimizer), ("rewirer", rewirer), ("rng", rng or None)):
            if wanted is not None and name not in content:
                raise ValueError(f"must hold the state of {name}, got none; save it with {name}=, or load without")
        state = _checked_model(content, model, rewirer is not None if adopt_pattern is None else adopt_pattern)
        if optimizer is not None:
            _check_optimizer(content, model, optimizer)
        restore = _checked_random_state(content["rng"]) if rng else None
        # Each part is undone if it or a later one refuses.
        with contextlib.ExitStack() as undo:
            for part, name in ((rewirer, "rewirer"), (optimizer, "optimizer")):
                if part is not None:
                    undo.callback(part.load_state_dict, part.state_dict())
                    part.load_state_dict(content[name])
            undo.callback(_restorer(model))
            model.load_state_dict(state)
            undo.pop_all()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(f"checkpoint {os.fspath(path)!r} {_sentence(error)}") from None
    if restore is not None:
        restore()
    return content["extra"]


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, without a model: enough to build the model that it fits.

    Returns:
        "format"; "layers": for each sparse layer by name its in_features, out_features, nnz, the norm's a, b, p and
        variable, and of a convolution its "window", the arguments that gave it its shape; "tensors": shape and dtype of
        each of the model's; "holds": which of "optimizer", "rewirer" and "rng" are in it; and "extra".

    Raises:
        FileNotFoundError, ValueError, ImportError: as ``load``.
    """
    try:
        content = read(path)
    except ValueError as error:
        raise ValueError(f"checkpoint {os.fspath(path)!r} {_sentence(error)}") from None
    tensors = {name: (tuple(value.shape), value.dtype) for name, value in content["model"].items()
               if isinstance(value, torch.Tensor)}  # fmt: skip
    holds = [name for name in ("optimizer", "rewirer", "rng") if name in content]
    return {"format": FORMAT, "layers": content["layers"], "tensors": tensors, "holds": holds,
            "extra": content["extra"]}  # fmt: skip


def _in_order(path: Path | nn.Module, model: nn.Module | Path, name: str) -> tuple[Path, nn.Module]:
    """The path and the model, which may be given the other way round."""
    if isinstance(path, nn.Module) > isinstance(model, nn.Module) or isinstance(model, Path) > isinstance(path, Path):
        path, model = model, path
    if not isinstance(model, nn.Module):
        hint = f"; dendnorm.{name} takes the model itself" if isinstance(model, Mapping) else ""
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}{hint}")
    if not isinstance(path, Path):
        raise TypeError(f"path must be a str or os.PathLike, got {type(path).__name__}")
    return path, model


def _sentence(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    first = text.partition("\n")[0]
    return first if first.startswith(("is ", "has ", "must ")) else f"does not fit: {first}"


# What a model and its optimizer are, beside their tensors


def _layers(model: nn.Module) -> dict[str, Any]:
    return {
        name: {
            "in_features": layer.in_features, "out_features": layer.out_features, "nnz": layer.nnz,
            "norm": {"a": layer.norm.a, "b": layer.norm.b, "p": layer.norm.p, "variable": layer.norm.variable},
            **({"window": layer.window()} if isinstance(layer, SparseConv) else {}),
        }
        for name, layer in model.named_modules(remove_duplicate=False) if isinstance(layer, SparseLayer)
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
    for name, value in own.items():
        if is_spread(value):
            raise ValueError(f"is of whole tensors, and the model's {name} is a DTensor; torch.distributed.checkpoint"
                             " loads sharded models")  # fmt: skip
    shared, layers = _shared(model), _layers(model)
    if shared != content["shared"]:
        parts = (shared, content["shared"])
        raise ValueError(
            _differences(*({name: f"shared with {other}" for name, other in part.items()} for part in parts))
        )
    given: Any = OrderedDict(content["model"])
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
        if not isinstance(layer, SparseLayer):
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
                f"layer {name!r} must have the connections of the file, got others; load with adopt_pattern=True"
                " to take the file's"
            )
    return given


def _restorer(model: nn.Module) -> Callable[[], None]:
    """What makes the model's tensors what they are now; it takes its memory here."""
    own = [value.detach() for value in model.state_dict(keep_vars=True).values() if isinstance(value, torch.Tensor)]
    kept = [(tensor, tensor.clone()) for tensor in own if not tensor.is_meta]

    def restore() -> None:
        for tensor, before in kept:
            tensor.copy_(before)

    return restore


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
    legacy: Any = np.random.get_state()  # a tuple, unless a dict is asked for
    kind, keys, *rest = legacy
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
