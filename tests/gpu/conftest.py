"""Skips everything in this folder, with the reason, where no CUDA device can be used."""

from pathlib import Path

import pytest
import torch


def pytest_report_header() -> str:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"tests/gpu: {found} CUDA device(s)" + ("" if found else "; every test in this folder is skipped")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    reason = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(reason)
