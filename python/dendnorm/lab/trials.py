"""Many independent trials, side by side on all cores, each kept as soon as it is finished.

A trial's numbers depend on its settings alone: each runs in a process of one thread, whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._extras import require
from . import data as data_module
from .device import choose_device
from .report import write_text
from .results import new_record
from .settings import Settings
from .train import load_data, train_network

__all__ = ["Job", "run"]

POLL = 0.5  # seconds between two looks at what the processes have sent

_progress: Any = None  # in a worker: the queue to the parent


@dataclass(frozen=True)
class Job:
    """One trial of one norm."""

    settings: Settings
    norm: str
    trial: int

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the numbers of the trial: not where the data lie, not how many trials there are."""
        own = {"norm": self.norm, "seed": self.settings.seed + self.trial, "torch": torch.__version__}
        return self.settings.identity() | own

    @property
    def name(self) -> str:
        """The name of its file: readable, and different for everything that makes a difference."""
        text = json.dumps(self.identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        norm = self.norm.replace(":", "")
        return f"{self.settings.data}-{norm}-{self.settings.seed + self.trial}-{digest}.json"


def run(jobs: Sequence[Job], folder: str | Path, workers: int | None = None, progress: bool = True) -> list[dict]:
    """Train every job that has no file in `folder` yet, and return the records of all, in their order.

    A record is what ``train.train_network`` fills, without the times; a trial whose cost stopped being finite has
    its reason under "failed". Trials are written when they finish, whole or not at all: a run that was killed goes on
    where it was. Jobs that are equal are trained once.

    Args:
        folder: one JSON file for each trial.
        workers: processes; left out: one for each core that this process may use.
        progress: show a bar with an estimate of the time left.

    Raises:
        ValueError: workers, or as ``train.load_data``.
        FileNotFoundError, data.DataFileError: the data cannot be read.
        RuntimeError: a process was killed, for instance for memory; what was finished is kept.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / job.name for job in jobs]
    waiting = {path: job for path, job in zip(paths, jobs, strict=True) if not path.exists()}
    if waiting:
        # Whatever is wrong with the data is found here, once, and not in every process.
        for name, root, validation in {(j.settings.data, j.settings.root, j.settings.validation) for j in jobs}:
            _data(name, root, validation)
        _data.cache_clear()
        _train_all(waiting, min(workers or len(os.sched_getaffinity(0)), len(waiting)), progress)
    records = []
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        for entry in record["epochs"]:
            del entry["seconds"]
        records.append(record)
    return records


def _train_all(waiting: dict[Path, Job], workers: int, progress: bool) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    total = sum(job.settings.epochs for job in waiting.values())
    tqdm = require("tqdm", "train").tqdm
    bar = tqdm(total=total, desc=f"{len(waiting)} trials", unit="epoch", disable=not progress, dynamic_ncols=True,
               smoothing=0.05)  # fmt: skip
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(told,))
    try:
        pending: set[Future] = {pool.submit(_train, job, path) for path, job in waiting.items()}
        done = 0
        while pending:
            finished, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                done += 1
            with contextlib.suppress(queue.Empty):
                while True:
                    bar.update(told.get_nowait())
            bar.set_postfix(finished=done)
    except BrokenProcessPool:
        raise RuntimeError("a training process was killed (perhaps for memory); finished trials are kept") from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()  # after an interruption nobody waits for half a trial
        pool.shutdown(wait=True, cancel_futures=True)
        told.close()
        told.cancel_join_thread()
        bar.close()


def _start(told: Any) -> None:
    """A worker's beginning: one thread, signals are the parent's business, and no end of the parent is outlived."""
    global _progress
    _progress = told
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a trial is written whole or not at all


@functools.lru_cache(maxsize=1)
def _data(name: str, root: str | None, validation: int) -> data_module.DataSet:
    return load_data(Settings(data=name, root=root, validation=validation), torch.device("cpu"))


def _train(job: Job, path: Path) -> None:
    record = new_record(job.settings, job.norm, job.trial) | {"identity": job.identity}
    data = _data(job.settings.data, job.settings.root, job.settings.validation)
    device = choose_device(job.settings.device)
    try:
        train_network(record, data, job.settings, device, lambda done, loss: None, lambda entry: _progress.put(1))
    except FloatingPointError as error:
        record["failed"] = str(error)
        _progress.put(job.settings.epochs - len(record["epochs"]))
    write_text(path, json.dumps(record))
