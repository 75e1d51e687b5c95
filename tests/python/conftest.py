"""Shared settings: this folder on the path (for oracle.py), one hypothesis profile, and the thread count kept.

DENDNORM_TEST_DEVICE=cuda runs the tests on that device: tensors are made there, and read from there where numpy asks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

try:
    from hypothesis import HealthCheck, settings

    # Derandomised, so that a failure on one machine is the same failure on every other.
    settings.register_profile(
        "dendnorm", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    settings.load_profile("dendnorm")
except ImportError:
    pass

# As in a CI service, so that every machine tests the same: PyTorch is stricter with itself where this is set.
os.environ.setdefault("CI", "true")

DEVICE = os.environ.get("DENDNORM_TEST_DEVICE", "cpu")

if DEVICE != "cpu":
    _from_numpy, _numpy = torch.from_numpy, torch.Tensor.numpy
    torch.from_numpy = lambda array: _from_numpy(array).to(DEVICE)
    torch.Tensor.numpy = lambda tensor, **options: _numpy(tensor.cpu(), **options)
    torch.set_default_device(DEVICE)


# What `make test-fast` leaves out, beside tests marked "slow": files of trainers, other processes, whole trainings and
# builds, and single tests that start many processes or train.
SLOW_FILES = {
    "architectures", "bench", "cli", "compatibility", "cpp", "data", "demo", "distributed", "docs", "ecosystem",
    "gpu_check", "journeys", "models", "optimizers", "paper", "site", "study", "trainers", "training",
}  # fmt: skip
SLOW_TESTS = {
    "test_killed_at_any_moment_the_previous_checkpoint_loads",
    "test_ranks_agree_where_the_sums_are_reduced",
    "test_what_is_public",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW_FILES or getattr(item, "originalname", "") in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _keep_torch_state() -> Iterator[None]:
    """A test that changes the threads or the seed must not change what the next one sees."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
