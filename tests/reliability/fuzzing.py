"""Bytes, text and numbers that nobody meant: readers of files, checks of patterns, names of norms, command lines.

Each target takes bytes, mutations of sound ones, and must give a result or one of the errors that it documents;
what comes of them may not take long, nor more memory than a few times the input and what it says that it holds.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import random
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import dendnorm
from dendnorm.checkpoint import container
from dendnorm.lab import cli
from dendnorm.lab.data import cifar, idx, images

from . import mutated
from .tally import Tally

ops = torch.ops.dendnorm
EACH = 100  # executions of every target in each unit; of those that open files a quarter
SLOW = 5.0  # seconds
ALLOWED = (ValueError, TypeError, RuntimeError, OSError)


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="dendnorm-fuzz-"))


def written(data: bytes) -> Path:
    path = folder() / "file"
    path.write_bytes(data)
    return path


def checkpoint(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        container.parse(data)


def signed_checkpoint(data: bytes) -> None:
    """Behind a right digest, the reader of safetensors and the document are what is asked."""
    start = data.find(b'"sha256":"') + 10
    if start < 10 or len(data) < start + 64:
        return
    new = bytearray(data)
    new[start : start + 64] = container._digest(data, start).encode()
    with contextlib.suppress(ValueError):
        container.parse(bytes(new))


def images_of_idx(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        idx.read_idx(written(data), 3)


def batch_of_cifar(data: bytes) -> None:
    with contextlib.suppress(ValueError), mock.patch.object(cifar, "RECORDS", 2):
        cifar._read_batch(written(data))


def image(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        images.read_image(written(data), lambda opened: opened.convert("RGB"))


def pattern(data: bytes) -> None:
    """A pattern of few numbers of any size: refused, or what is made of it is sound."""
    if len(data) < 4:
        return
    count, size = data[0] % 8, int.from_bytes(data[1:3], "little") % 12
    numbers = np.frombuffer(data[4 : 4 + (len(data) - 4) // 4 * 4], np.int32).copy()
    compressed, indices = torch.from_numpy(numbers[: count + 1]), torch.from_numpy(numbers[count + 1 :])
    with contextlib.suppress(*ALLOWED):
        ops.check_pattern(compressed, indices, size, "compressed", "indices")
        pointers, others, perm = ops.transpose_pattern(compressed, indices, size)
        ops.check_pattern(pointers, others, len(compressed) - 1, "compressed", "indices")
        if sorted(perm.tolist()) != list(range(len(indices))):
            raise AssertionError("a pattern that is sound has a view that is not")


def csr(data: bytes) -> None:
    numbers = np.frombuffer(data[: len(data) // 8 * 8], np.int64).copy()
    crow, col = torch.from_numpy(numbers[:4]), torch.from_numpy(numbers[4:])
    with contextlib.suppress(*ALLOWED):
        dendnorm.SparseLinear.from_csr(crow, col, torch.ones(len(col)), shape=(3, 5))


def name_of_a_norm(data: bytes) -> None:
    with contextlib.suppress(ValueError, TypeError):
        dendnorm.norms.resolve(data.decode("utf-8", "replace"))


class Chosen(Exception):
    """The command line was understood."""


def command_line(data: bytes) -> None:
    """Parsed, and not run: wrong ones end in argparse's status 2."""
    words = data.decode("utf-8", "replace").split("\n")
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with mock.patch.object(cli, "_run", side_effect=Chosen), quiet[0], quiet[1]:
        try:
            cli.main(words)
        except Chosen:
            pass
        except SystemExit as end:
            if end.code not in (0, 2):
                raise


def _png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def _huge_png() -> bytes:
    """Of 60,000 x 60,000 pixels, in a hundred bytes."""
    data = bytearray(_png())
    data[16:24] = struct.pack(">2I", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def _jpeg() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "JPEG")
    return buffer.getvalue()


@functools.cache
def seeds() -> dict[str, list[bytes]]:
    whole = struct.pack(">4I", 0x0803, 2, 3, 3) + bytes(range(18))
    sound = np.array([0, 2, 3, 4, 0, 2, 1, 3], np.int32).tobytes()
    return {
        "checkpoint": [mutated.saved()[0], *mutated.bombs().values()],
        "signed_checkpoint": [mutated.saved()[0], *mutated.bombs().values()],
        "images_of_idx": [whole, gzip.compress(whole, mtime=0)],
        "batch_of_cifar": [bytes(2 * cifar.RECORD_BYTES)],
        "image": [_png(), _jpeg(), _huge_png(), b"GIF89a" + bytes(20), b"BM" + bytes(60), b"P6 2 2 255 " + bytes(12)],
        "pattern": [bytes([3, 4, 0, 0]) + sound, bytes(4), bytes([7, 11, 0, 0]) + bytes(40)],
        "csr": [np.array([0, 2, 2, 3, 0, 4, 1], np.int64).tobytes()],
        "name_of_a_norm": [b"lp:2", b"lp-variable:3.7", b"joint", b"l0-variable", b"lp:1e400", b"lp:\xff"],
        "command_line": [
            b"train\n--data\ndigits\n--density\n0.1\n--norm\nl0", b"demo\n--out\nx\n--overwrite", b"info", b"--version",
            b"bench\n--quick", b"paper\n3F\n--trials\n2", b"train\n--epochs\n-1\n--lr\nnan",
        ],
    }  # fmt: skip


_ALL = (checkpoint, signed_checkpoint, images_of_idx, batch_of_cifar, image, pattern, csr, name_of_a_norm, command_line)
TARGETS: dict[str, Callable[[bytes], None]] = {target.__name__: target for target in _ALL}
FEWER = ("image", "batch_of_cifar", "command_line", "csr")


def execute(name: str, data: bytes, tally: Tally) -> None:
    started = time.process_time()  # what others do at the same time is not its fault
    try:
        TARGETS[name](data)
    except Exception as error:
        tally.find(f"{name}: {type(error).__name__}: {str(error)[:120]}: {data[:200].hex()}")
    tally.count("executions")
    tally.count(f"of {name}")
    taken = time.process_time() - started
    tally.most("seconds", taken)
    tally.expect(taken < SLOW, f"{name}: took {taken:.1f} s: {data[:200].hex()}")


def unit(number: int, tally: Tally) -> None:
    draw = random.Random(number)
    for name in TARGETS:
        for index in range(EACH // 4 if name in FEWER else EACH):
            seed = draw.choice(seeds()[name])
            data = seed if number == index == 0 else bytes(mutated.edited(seed, draw))
            if draw.random() < 0.05:
                data = draw.randbytes(draw.randrange(100))
            execute(name, data, tally)


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """A reader that trusts the header of an IDX file."""
    kept = idx.read_idx

    def trusting(path: Path, ndim: int) -> np.ndarray:
        content = Path(path).read_bytes()
        return np.frombuffer(content, np.uint8, count=content[7], offset=16)[content[7]]

    idx.read_idx = trusting
    try:
        yield
    finally:
        idx.read_idx = kept
