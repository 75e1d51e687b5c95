"""The registered ops: the compiled library, how they act under vmap and on other layouts, what they cost."""

from . import flops, layouts, library, vmap  # noqa: F401
