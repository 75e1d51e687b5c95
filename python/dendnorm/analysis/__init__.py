"""What is inside a sparse layer, and pictures of it (``dendnorm.plots``, loaded when first named)."""

from .topology import *  # noqa: F403
from .topology import __all__ as __all__
