"""Saving that is killed or fails: at every call that touches the disk, at random moments, and beside another saver.

Each trial is a child process that saves over a file of which the old content is known. Whatever happens to it, the file
then loads as the old state or as the new one, whole; and after the next save nothing else lies in the folder.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import io
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import dendnorm
from dendnorm.checkpoint import container

from .tally import Tally

NAME = "a.safetensors"
CALLS = (
    "open",
    "fsync",
    "replace",
    "close",
    "unlink",
    "link",
    "fchmod",
    "scandir",
)  # of os; and of the file: open, write, close
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES)
UNLUCKY = ("killed before os.replace", "killed at a random moment")
Before = Callable[[int, str], None]


class Parts:
    """A model, its optimizer and its rewirer, of which every number is one value."""

    def __init__(self) -> None:
        self.model = torch.nn.Sequential(dendnorm.SparseLinear(40, 30, density=0.2, norm="joint", seed=0))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.rewirer = dendnorm.SET(self.model, self.optimizer, seed=0)

    def __iter__(self) -> Iterator:
        return iter((self.model, self.optimizer, self.rewirer))

    @torch.no_grad()
    def set_to(self, value: float) -> None:
        for parameter in self.model.parameters():
            parameter.fill_(value)
            self.optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, value)

    def save(self, path: Path, value: int) -> None:
        self.set_to(value)
        dendnorm.save(path, *self, extra=value)

    def load(self, path: Path) -> int:
        """The value that the file has; of all its numbers, or it is torn."""
        value = dendnorm.load(path, *self)
        buffers = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        for tensor in (*self.model.parameters(), *buffers):
            assert (tensor == value).all(), "a file that loads holds numbers of two saves"
        return value


@functools.cache
def parts() -> Parts:
    torch.set_num_threads(1)  # a fork keeps one thread
    return Parts()


def watched(before: Before) -> None:
    """In a child: tell ``before`` the number and name of each call that touches the disk, before it is made.

    A write is three of them: none, half and all of it has been written.
    """
    number = -1

    def tell(name: str) -> None:
        nonlocal number
        number += 1
        before(number, name)

    class File(io.FileIO):
        def write(self, data) -> int:
            whole = memoryview(data).cast("B")
            tell("write")
            super().write(whole[: len(whole) // 2])
            tell("write the rest")
            super().write(whole[len(whole) // 2 :])
            return len(whole)

        def close(self) -> None:
            if not self.closed:
                tell("close")
            super().close()

    def opened(file, mode="r", *_, **__):
        tell("open")
        return File(file, mode.replace("b", ""))

    def told(name: str, call: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            tell(name)
            return call(*args, **kwargs)

        return wrapped

    builtins.open = opened
    for name in CALLS:
        setattr(os, name, told(f"os.{name}", getattr(os, name)))


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            work()
            status = 0
        except OSError:
            status = 1
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Its exit status; minus the signal's number where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@functools.cache
def events() -> tuple[str, ...]:
    """The calls of an undisturbed save over a file, as `watched` tells them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        parts().save(path, 0)
        reader, writer = os.pipe()

        def work() -> None:
            names: list[str] = []
            watched(lambda number, name: names.append(name))
            parts().save(path, 1)
            os.write(writer, "\n".join(names).encode())

        assert ended(child(work)) == 0
        return tuple(os.read(reader, 1 << 16).decode().split("\n"))


def trial(tally: Tally, kind: str, work: Callable[[Path], None], stop: Callable[[int], None], clean: bool) -> None:
    """One child that saves 1 over 0; then what is there must be one of them, and the next save leaves nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        parts().save(path, 0)
        pid = child(lambda: work(path))
        stop(pid)
        status = ended(pid)
        tally.count(kind)
        tally.count("kills", status == -signal.SIGKILL)
        tally.expect(status != 99, f"{kind}: the saver failed with something else than an OSError")
        tally.expect(not clean or os.listdir(folder) == [NAME], f"{kind}: left {os.listdir(folder)}")
        try:
            value = parts().load(path)
            tally.expect(value in (0, 1), f"{kind}: loaded {value}")
            tally.expect(status != 0 or value == 1, f"{kind}: a save that ended left the old file")
            tally.count("new loaded" if value else "old loaded")
        except Exception as error:
            tally.find(f"{kind}: {type(error).__name__}: {error}")
        left = len(os.listdir(folder)) - 1
        tally.count("files left by a kill", left)
        # Between its two names the file is there; before, only a system without files that have none leaves one.
        tally.expect(left == 0 or "os.link" not in events() or kind in UNLUCKY, f"{kind}: left {left} files")
        parts().save(path, 2)
        tally.expect(parts().load(path) == 2, f"{kind}: the next save")
        tally.expect(os.listdir(folder) == [NAME], f"{kind}: the next save left {os.listdir(folder)}")


def killed_at(tally: Tally, chosen: int) -> None:
    def kill(number: int, name: str) -> None:
        if number == chosen:
            os.kill(os.getpid(), signal.SIGKILL)

    def work(path: Path) -> None:
        watched(kill)
        parts().save(path, 1)

    trial(tally, f"killed before {events()[chosen]}", work, lambda pid: None, clean=False)


def failing_at(tally: Tally, chosen: int, code: int) -> None:
    def fail(number: int, name: str) -> None:
        if number == chosen:
            raise OSError(code, os.strerror(code))

    def work(path: Path) -> None:
        watched(fail)
        parts().save(path, 1)

    tally.count("failing calls")
    trial(tally, f"{errno.errorcode[code]} at {events()[chosen]}", work, lambda pid: None, clean=True)


def disk_full_after(tally: Tally, size: int) -> None:
    """By the kernel's own limit of a file's size: it takes what fits and refuses the rest."""

    def work(path: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        parts().save(path, 1)

    tally.count("failing calls")
    trial(tally, "no room for the file", work, lambda pid: None, clean=True)


def killed_after(tally: Tally, seconds: float) -> None:
    def work(path: Path) -> None:
        while True:
            parts().save(path, 1)

    def stop(pid: int) -> None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)

    trial(tally, "killed at a random moment", work, stop, clean=False)


def two_savers(tally: Tally, draw: random.Random) -> None:
    """Both save over the same file as fast as they can, and are killed; all the while it loads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        parts().save(path, 0)

        def work(value: int) -> None:
            try:
                while True:
                    parts().save(path, value)
            except OSError:
                os._exit(7)

        pids = [child(functools.partial(work, value)) for value in (1, 2)]
        for _ in range(10):
            time.sleep(draw.random() * 0.004)
            try:
                tally.expect(parts().load(path) in (0, 1, 2), "two savers: another value")
                tally.count("loads beside two savers")
            except Exception as error:
                tally.find(f"two savers: {type(error).__name__}: {error}")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            tally.expect(ended(pid) == -signal.SIGKILL, "two savers: one of them failed")
            tally.count("kills")
        parts().save(path, 3)
        tally.expect(parts().load(path) == 3, "two savers: the next save")
        tally.expect(os.listdir(folder) == [NAME], f"two savers: the next save left {os.listdir(folder)}")


def modes_and_links(tally: Tally) -> None:
    """A file keeps its mode, a new one has the umask's; a link is followed, one of a temporary name is not."""
    with tempfile.TemporaryDirectory() as folder:
        path, kept, link = (Path(folder) / name for name in (NAME, "kept", "link"))
        before = os.umask(0o027)
        try:
            parts().save(path, 0)
        finally:
            os.umask(before)
        tally.expect(path.stat().st_mode & 0o777 == 0o640, f"a new file has mode {path.stat().st_mode & 0o777:o}")
        path.chmod(0o600)
        parts().save(path, 1)
        tally.expect(path.stat().st_mode & 0o777 == 0o600, f"a private file became {path.stat().st_mode & 0o777:o}")
        link.symlink_to(path)
        parts().save(link, 2)
        tally.expect(link.is_symlink() and parts().load(path) == 2, "a link to a checkpoint was replaced")
        kept.write_bytes(b"mine")
        token = container.secrets.token_hex
        container.secrets.token_hex = lambda size: "0" * 2 * size
        try:
            (Path(folder) / f".{NAME}.{'0' * 16}.tmp").symlink_to(kept)
            with contextlib.suppress(OSError):
                parts().save(path, 3)
        finally:
            container.secrets.token_hex = token
        tally.expect(kept.read_bytes() == b"mine", "a link of the temporary file's name was followed")
        tally.expect(parts().load(path) in (2, 3), "the file beside a link of that name")
        tally.count("modes and links")


def unit(number: int, tally: Tally) -> None:
    """Two kills and a failing call; now and then the rarer trials."""
    draw = random.Random(number)
    count = len(events())
    killed_at(tally, number % count)
    killed_after(tally, draw.random() * 0.01)
    failing_at(tally, number % count, ERRORS[number // count % len(ERRORS)])
    if number % 5 == 0:
        disk_full_after(tally, draw.randrange(20_000))
        two_savers(tally, draw)
    if number % 50 == 0:
        modes_and_links(tally)


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """A saver that writes over the file itself."""

    def in_place(path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())

    kept, container._replace = container._replace, in_place
    events.cache_clear()
    try:
        yield
    finally:
        container._replace = kept
        events.cache_clear()
