"""What a sparse layer and its normalisation are worth: dense, sparse and normalised networks side by side."""

from .networks import NETWORKS
from .plan import GRIDS, plan
from .runner import RESULTS, run
from .tables import readings, table

__all__ = ["GRIDS", "NETWORKS", "RESULTS", "plan", "readings", "run", "table"]
