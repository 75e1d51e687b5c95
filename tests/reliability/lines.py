"""The lines of the report, as data: what is counted, the target, and how much fits in `make test` and in hours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from .tally import Tally


@dataclass(frozen=True)
class Line:
    """A figure.

    Attributes:
        figure: what was tried, in words.
        target: what it has to be.
        result: a template over the tally's counts and largest values, `findings` among them.
        harness: the module; None where there is none yet.
        wanted: counts that must be reached, beside 0 findings.
        enough: seconds after which they need not be.
        absent: counts that must be 0.
        limits: largest values that must not be exceeded.
        units: how many units make the long form, `seconds` what they may take in all; `small` those in `make test`.
        planted: within so many units the planted fault must be found.
        isolated: runs in a process of its own, with this environment: it forks, or needs what is set before a start.
        summary: what else the whole tally says; may add findings and counts.
    """

    name: str
    figure: str
    target: str
    result: str = "not measured"
    harness: str | None = None
    wanted: dict[str, int] = field(default_factory=dict)
    enough: float = float("inf")
    absent: tuple[str, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)
    units: int = 0
    seconds: int = 0
    small: int = 1
    planted: int = 20
    isolated: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f".{self.harness}", __package__)

    def summary(self, tally: Tally) -> Tally:
        """The tally with what only all units together tell."""
        tell: Callable[[Tally], None] | None = getattr(self.module, "summary", None)
        whole = Tally()
        whole.merge(tally)
        if tell is not None:
            tell(whole)
        return whole

    def reached(self, tally: Tally, seconds: float = 0.0) -> bool:
        enough = seconds >= self.enough or all(tally.counts[name] >= number for name, number in self.wanted.items())
        small = all(tally.largest.get(name, float("inf")) <= limit for name, limit in self.limits.items())
        return enough and small and not any(tally.counts[name] for name in (*self.absent, "findings"))

    def told(self, tally: Tally) -> str:
        class Found(dict):
            def __missing__(self, key: str) -> int:
                return 0

        numbers = {name: f"{number:,}" for name, number in tally.counts.items()}
        numbers |= {name: f"{number:.3g}" for name, number in tally.largest.items()}
        return self.result.format_map(Found(numbers))


LINES = (
    Line(
        "saving",
        "`dendnorm.save` killed (`kill -9`) at random moments and before every call that touches the disk; each of"
        " these calls failing (ENOSPC, EROFS, EIO, EDQUOT, EACCES), no room for the file, two savers of one file, modes"
        " and links",
        "1,000 kills; the old or the new state loads every time; no file left over",
        "{kills} kills, {failing calls} failing calls, {loads beside two savers} loads beside two savers; old loaded"
        " {old loaded} times, new {new loaded}; {findings} wrong. A kill left its temporary file {files left by a kill}"
        " times, all between the call that names it and the next, which renames it, and the next save deleted it every"
        " time",
        harness="saving",
        wanted={"kills": 1000},
        absent=("files left by a kill",),
        units=450,
        seconds=900,
        small=8,
        isolated=True,
    ),
    Line(
        "mutated",
        "checkpoints cut at every byte and edited at random; edited behind a right digest, and loaded; files of 2 KB"
        " that name a tensor 60 times, that claim 4 TB, that nest or repeat lists",
        "equal or refused; nothing half-loaded; 10^6 random edits; a file of 2 KB gives no more tensors than its size",
        "{edits} edits, {cuts} cuts of a file of {size} bytes, {equal} of them equal and the others refused; {forged}"
        " forged, {forged and refused} of them refused and the others whole; tensors of at most {tensors} times the"
        " file's size, objects of Python of {objects} times 2 KB; {findings} wrong",
        harness="mutated",
        wanted={"edits": 1_000_000, "forged": 10_000, "cuts": 5_000, "bombs": 7},
        limits={"tensors": 1.0},
        units=2500,
        seconds=2400,
        small=3,
    ),
    Line(
        "rewirings",
        "rewirings of random linear layers and convolutions: every rule of excision and growth, twelve of PyTorch's"
        " optimizers; invariants, exactly the k weakest, growth where the score is largest or uniform (chi-square), and"
        " the optimizer's state by a dictionary keyed (row, column)",
        "10,000 rewirings; 0 violations",
        "{rewirings} rewirings, {entries of state} entries of state followed, {grown at random} places drawn, whose"
        " chi-square lies {deviate} standard deviations from its mean; {findings} violations",
        harness="rewirings",
        wanted={"rewirings": 10_000, "grown at random": 10_000},
        limits={"deviate": 4.5},
        units=510,
        seconds=1800,
        small=6,
    ),
    *(
        Line(
            name,
            "`sparse_linear` and `sparse_conv2d`, forward and backward, against the float64 oracle: every norm, dtype"
            f" and layout; the kernel set {kernels}",
            "20,000 cases over the kernel sets; errors at most their bound, k eps sum |terms|",
            "{cases} cases ({convolutions} of convolutions), {results} results with {entries} entries compared; the"
            " largest error is {ulp} ulp of the sum of its terms, and {share} of its bound; {findings} above it",
            harness="oracle_cases",
            wanted={"cases": 6_700, "convolutions": 400},
            limits={"share": 1.0},
            units=125,
            seconds=900,
            small=2,
            isolated=bool(capability),
            environment=capability,
        )
        for name, kernels, capability in (
            ("oracle", "that the processor has (AVX-512, where it has that)", {}),
            ("oracle-avx2", "for AVX2", {"DENDNORM_CPU_CAPABILITY": "avx2"}),
            ("oracle-default", "for any processor", {"DENDNORM_CPU_CAPABILITY": "default"}),
        )
    ),
    Line(
        "bits",
        "two steps of training and a rewiring, linear and convolutional, hashed: on 1 to 16 threads, repeated, and in"
        " other processes. (Resumed runs, ranks, and Python against C++: `test_checkpoint.py`, `test_sharded.py`,"
        " `test_cpp.py`)",
        "0 differ; 100 models",
        "{models} models; {over threads} runs on another number of threads, {repeats} repeats and {over processes} in"
        " another process; {findings} differ",
        harness="bits",
        wanted={"models": 100, "over processes": 100},
        units=100,
        seconds=1500,
        small=2,
        isolated=True,
        environment={"OMP_WAIT_POLICY": "passive"},
    ),
    Line(
        "malformed",
        "every mistake of the table of ops (patterns, shapes, dtypes, devices, values, sizes), for every op that can be"
        " called so, eager and compiled, on the CPU",
        "30 kinds; all refused by name, nothing changed, the next call right",
        "{kinds} kinds, {eager} calls eager and {compiled} compiled, {right calls after} right calls after them;"
        " {findings} wrong",
        harness="malformed",
        wanted={"kinds": 30, "eager": 300, "compiled": 100, "right calls after": 300},
        units=120,
        seconds=1200,
        small=2,
    ),
    Line(
        "allocation",
        "rewiring and loading while the k-th tensor, or the k-th `new` of the compiled library, gets no memory, for"
        " every k, with each rule and three optimizers, in Python",
        "model, optimizer and rewirer unchanged bit for bit",
        "{tensors failing} tensors and {objects failing} objects failing; {findings} times something had changed",
        harness="allocation",
        wanted={"tensors failing": 1000, "objects failing": 100},
        units=24,
        seconds=900,
        small=1,
        isolated=True,
    ),
    Line(
        "fuzzing",
        "mutated bytes for the checkpoint's container (also behind a right digest), IDX, CIFAR and image files,"
        " patterns, CSR matrices, names of norms and command lines; without guidance by coverage. Not the C++ reader of"
        " state dicts",
        "10^7 executions or two hours; crashes, hangs, undocumented errors: 0",
        "{executions} executions, the longest {seconds} s of the processor; {findings} findings",
        harness="fuzzing",
        wanted={"executions": 10_000_000},
        enough=7200,
        units=20_000,
        seconds=7200,
        small=2,
    ),
    Line(
        "modes",
        "flush-to-zero and the four rounding modes, with NaN, infinities, signed zeros and subnormals, through every op"
        " on 1, 2, 3, 7 and 16 threads",
        "the same bits on every number of threads, the caller's mode kept, NaN only in its own sample, values that"
        " move moved bit for bit",
        "{ops} of {of ops} ops, {calls} calls, {samples apart} samples beside one with NaN, {values moved} values"
        " moved, {orders} orders; {findings} wrong",
        harness="modes",
        wanted={"calls": 4_000, "samples apart": 1_000},
        units=450,
        seconds=1500,
        small=3,
        isolated=True,
        environment={"OMP_WAIT_POLICY": "passive"},
    ),
    Line(
        "long run",
        "200,000 steps with rewiring every 100, AdamW, 2 ranks, checkpoints, random kills of either rank",
        "state equal to an undisturbed run; memory flat",
    ),
    Line(
        "derivatives",
        "gradcheck, gradgradcheck and opcheck of every op",
        "all pass; tolerance of non-determinism 0. (`make test` runs them: `test_ops.py`; they are not counted here)",
    ),
    Line(
        "mutants",
        "faults planted in the rules of the Python library (checkpoints, rewiring, norms, patterns, windows,"
        " arguments): another sign, bound, number or operator, a check left out, arguments exchanged; against the tests"
        " of the module's subject. Not in C++",
        "300 planted; 97 % caught",
        "{planted} planted, a sample of {of}; {caught} caught, {survived} survived ({missed} %)",
        harness="mutants",
        wanted={"planted": 300},
        limits={"missed": 3.0},
        units=300,
        seconds=3600,
        small=1,
        planted=1,
        isolated=True,
    ),
    Line("coverage", "lines of core, cpu, ops and of the Python library", "100, 98, 95 and 95 %"),
    Line(
        "sanitizers",
        "ASan, UBSan, LSan and TSan over the C++ tests and the core of the Python suite, valgrind",
        "0 reports. (`make test` runs the C++ tests under them; they are not counted here)",
    ),
    Line(
        "largest sizes",
        "batch x features and connections past 2^31 by address, 10^8 connections for real",
        "right; refused above",
    ),
)


def line(name: str) -> Line:
    (found,) = (each for each in LINES if each.name == name)
    return found
