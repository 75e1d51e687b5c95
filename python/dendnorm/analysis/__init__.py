"""What is inside a sparse layer, and pictures of it (``dendnorm.plots``, loaded when first named)."""

from .topology import (
    TopologyChange,
    degree_histogram,
    efferent_map,
    first_sparse,
    log_rewiring,
    mean_weighted_input,
    snapshot,
    topology_change,
    weight_histogram,
)

__all__ = [
    "TopologyChange",
    "degree_histogram",
    "efferent_map",
    "first_sparse",
    "log_rewiring",
    "mean_weighted_input",
    "snapshot",
    "topology_change",
    "weight_histogram",
]
