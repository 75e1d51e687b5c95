"""What units have counted, which adds up over units, processes and resumed runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_FINDINGS = 50  # that are kept word for word; all are counted


@dataclass
class Tally:
    counts: Counter[str] = field(default_factory=Counter)
    largest: dict[str, float] = field(default_factory=dict)
    sums: dict[str, Any] = field(default_factory=dict)  # arrays that are added up
    findings: list[str] = field(default_factory=list)

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] += number

    def most(self, name: str, value: float) -> None:
        self.largest[name] = max(self.largest.get(name, 0.0), float(value))

    def add(self, name: str, array: np.ndarray) -> None:
        self.sums[name] = np.asarray(array, dtype=float) + self.sums.get(name, 0.0)

    def find(self, text: str) -> None:
        """Something that must not be."""
        self.counts["findings"] += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(text)

    def expect(self, good: object, text: str) -> None:
        if not good:
            self.find(text)

    def merge(self, other: Tally) -> None:
        self.counts.update(other.counts)
        for name, value in other.largest.items():
            self.most(name, value)
        for name, array in other.sums.items():
            self.add(name, array)
        self.findings = (self.findings + other.findings)[:MOST_FINDINGS]

    def as_json(self) -> dict[str, Any]:
        sums = {name: np.asarray(array).tolist() for name, array in self.sums.items()}
        return {"counts": dict(self.counts), "largest": self.largest, "sums": sums, "findings": self.findings}

    @classmethod
    def of_json(cls, given: dict[str, Any]) -> Tally:
        sums = {name: np.asarray(array) for name, array in given["sums"].items()}
        return cls(Counter(given["counts"]), dict(given["largest"]), sums, list(given["findings"]))
