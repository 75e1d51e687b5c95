"""The calculated tables of docs/cuda.md are what the cost model says today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_calculated_tables_are_those_of_the_cost_model():
    spec = importlib.util.spec_from_file_location("cuda_model", ROOT / "benchmarks" / "cuda_model.py")
    assert spec is not None and spec.loader is not None
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    text = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
    assert model.table() in text
    assert model.table_of_crossovers() in text
