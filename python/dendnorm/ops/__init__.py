"""The registered ops: the compiled library, how they act under vmap, what they cost."""

from . import flops, library, vmap  # noqa: F401
