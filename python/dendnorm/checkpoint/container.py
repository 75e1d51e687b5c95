"""The file of a checkpoint: safetensors whose every byte is covered by a digest, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .._extras import require

__all__ = ["FORMAT", "encode", "parse", "read", "write"]

FORMAT = 1
_UNSIGNED = "0" * 64
_OWN_FILES = "/proc/self/fd"


def write(path: str | os.PathLike, document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Sign and write a document and its tensors, such that the old file is there until the new one is whole.

    Raises:
        OSError: it cannot be written; what was at ``path`` is untouched.
        ImportError: without the package safetensors.
    """
    writer = require("safetensors.torch", "train")
    data = bytearray(writer.save(tensors, {"dendnorm": json.dumps(document), "sha256": _UNSIGNED}))
    start = data.index(f'"sha256":"{_UNSIGNED}"'.encode()) + len('"sha256":"')
    data[start : start + 64] = hashlib.sha256(data).hexdigest().encode()
    _replace(Path(os.path.realpath(path)), data)


def _replace(path: Path, data: bytes | bytearray) -> None:
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    nameless = _nameless(path.parent)
    try:
        with nameless or _held(temporary) as file:
            _keep_mode(file, path)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if nameless:
                # The folder is that of an absolute path, and is not looked at: it makes the link be followed.
                os.link(f"{_OWN_FILES}/{file.fileno()}", temporary, src_dir_fd=file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some file systems know no such thing
                raise
        finally:
            os.close(folder)


def _nameless(folder: Path) -> BinaryIO | None:
    """A new file that is in no folder, so that it goes when this process is killed; None where that cannot be had."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir(_OWN_FILES):
        return None
    try:
        file = open(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")  # noqa: SIM115
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)  # it will have a name for a moment
    return file


def _held(temporary: Path) -> BinaryIO:
    """A new file that this process holds a lock of for as long as it is open: the lock ends with the process, too."""
    while True:
        file = open(temporary, "xb")  # noqa: SIM115
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # another saver has swept it away before it was locked


def _keep_mode(file: BinaryIO, path: Path) -> None:
    """A file that others may not read stays one that they may not read."""
    with contextlib.suppress(OSError):
        os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))


def _sweep(path: Path) -> None:
    """Delete the temporary files of savers of this path that were killed: those of which nobody holds the lock."""
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            middle = entry.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
            if entry.name != f".{path.name}.{middle}.tmp" or not re.fullmatch("[0-9a-f]{16}", middle):
                continue
            with contextlib.suppress(OSError):
                left = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
                finally:
                    os.close(left)


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The document with its tensors in place, from a file whose every byte is the one that was written."""
    return parse(Path(path).read_bytes())


def parse(data: bytes) -> dict[str, Any]:
    """The document of a file's bytes, with its tensors in place.

    Raises:
        ValueError: a file that is damaged, or none of dendnorm.
        ImportError: without the package safetensors.
    """
    reader, head = require("safetensors.torch", "train"), require("safetensors", "train")
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        text, digest = metadata["dendnorm"], metadata["sha256"]
        start = data.index(f'"sha256":"{digest}"'.encode(), 8, 8 + size) + len('"sha256":"')
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("is not one of dendnorm, or its head is damaged") from None
    if _digest(data, start) != digest:
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


def _digest(data: bytes, start: int) -> str:
    """Of all bytes but the 64 from ``start``, where the digest itself is."""
    signed = hashlib.sha256(data[:start])
    signed.update(_UNSIGNED.encode())
    signed.update(memoryview(data)[start + 64 :])
    return signed.hexdigest()


# Anything made of tensors and plain values, as JSON: a dict with one key tells what JSON cannot


def encode(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    """What JSON can hold of a value; its tensors go into ``tensors``, under a name that tells ``where`` they are from.

    Raises:
        TypeError, ValueError: something else than tensors, plain values and containers of them; names it.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.device.type == "meta":
            raise ValueError(f"{where} must be a dense tensor with values, got {value.layout} on {value.device}")
        if type(value.detach()) is not torch.Tensor:
            raise ValueError(f"{where} must be a plain tensor, whole on this rank, got a {type(value).__name__};"
                             " torch.distributed.checkpoint saves sharded models")  # fmt: skip
        name = f"{where.partition('[')[0]}/{len(tensors)}" if not where.startswith("model[") else f"model/{where[6:-1]}"
        tensors[name] = value.detach().cpu().contiguous().clone()  # a clone: views of one memory may overlap
        return {"tensor": name}
    if isinstance(value, tuple):
        return {"tuple": [encode(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [encode(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, bool) or not isinstance(key, (int, str)):
                raise TypeError(f"{where} must have keys of type str or int, got {key!r}")
        return {"dict": [[key, encode(item, f"{where}[{key}]", tensors)] for key, item in value.items()]}
    raise TypeError(
        f"{where} must be a tensor, str, int, float, bool, None or a list, tuple or dict of such, got"
        f" {type(value).__name__}"
    )


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        # Each once, as it was written, or a small file could name one so often that memory ends. A clone: the reader's
        # memory is not ours to write.
        return tensors.pop(content).clone()
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    raise TypeError(kind)
