"""What the figures and tables read from a measured panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["finished", "marks"]

MARKS = (1, 5, 10, 20)  # epochs that figure 3G shows


def marks(panel: Mapping[str, Any]) -> list[int]:
    """The epochs of figure 3G that a panel has."""
    return [epoch for epoch in MARKS if epoch <= panel["settings"]["epochs"]]


def finished(panel: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The finished records of each norm of a panel."""
    by_norm = {norm: [r for r in panel["runs"] if r["norm"] == norm and r["complete"]]
               for norm in panel["settings"]["norms"]}  # fmt: skip
    return {norm: records for norm, records in by_norm.items() if records}
