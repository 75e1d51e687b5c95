"""Studies that ask what is saved and what is gained, on equal terms, with every choice made on held-out images."""

from .catalogue import AREA, LAST, STUDIES, Arm, Panel, Study
from .collect import collect, compare
from .runner import run
from .statistics import Difference, holm, paired
from .tables import reading, table

__all__ = ["AREA", "LAST", "STUDIES", "Arm", "Difference", "Panel", "Study", "collect", "compare", "holm", "paired",
           "reading", "run", "table"]  # fmt: skip
