"""What a conversion did to a model: the replaced modules, with what was left and why."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["Replaced", "why_nothing"]


def _by_reason(left: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in left.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def _listed(names: list[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


class Replaced(dict[str, nn.Module]):
    """The replaced modules by their first name in the model: a dict, which prints as a report.

    Attributes:
        left: what was left, the reason by first name.
        connections: how many each replaced layer has, in its sparse form, by its name.
        positions: how many it has in its dense form.
        parameters, dense_parameters: of the whole model in its sparse form and in its dense one: biases, embeddings,
            excitabilities and all, what is shared counted once.
    """

    def __init__(
        self,
        verb: str,
        modules: Mapping[str, nn.Module],
        left: Mapping[str, str],
        connections: Mapping[str, int],
        positions: Mapping[str, int],
        parameters: tuple[int, int],
    ) -> None:
        super().__init__(modules)
        self._verb = verb
        self.left, self.connections, self.positions = dict(left), dict(connections), dict(positions)
        self.parameters, self.dense_parameters = parameters

    @property
    def density(self) -> float:
        """Connections of all replaced layers over their positions; 1 where nothing was replaced."""
        positions = sum(self.positions.values())
        return sum(self.connections.values()) / positions if positions else 1.0

    @property
    def overall_density(self) -> float:
        """Parameters of the sparse model over those of the dense one."""
        return self.parameters / self.dense_parameters if self.dense_parameters else 1.0

    def __repr__(self) -> str:
        count, positions = sum(self.connections.values()), sum(self.positions.values())
        lines = [
            f"{self._verb}: {len(self)} layer{'' if len(self) == 1 else 's'} replaced",
            f"  density of these {self.density:.4g} ({count:,} of {positions:,} connections),"
            f" of the model {self.overall_density:.4g} ({self.parameters:,} of {self.dense_parameters:,} parameters)",
        ]
        width = max(map(len, self), default=0)
        lines += [
            f"  {name:<{width}}  {self.connections[name] / self.positions[name]:.4g}"
            f" ({self.connections[name]:,} of {self.positions[name]:,})"
            for name in self
        ]
        lines += [f"  left: {_listed(names)}: {reason}" for reason, names in _by_reason(self.left).items()]
        return "\n".join(lines)

    __str__ = __repr__


def why_nothing(left: Mapping[str, str], wanted: str) -> str:
    """What to say where nothing could be replaced."""
    if not left:
        return f"model must hold a layer to be replaced ({wanted}), got none"
    reasons = "; ".join(f"{_listed(names)}: {reason}" for reason, names in _by_reason(left).items())
    return f"model must hold a layer that can be replaced ({wanted}), and nothing was replaced: {reasons}"
