"""With this folder on PYTHONPATH, and DENDNORM_ON_HOST, a Python begins with devices that the host stands in for."""

import os

if os.environ.get("DENDNORM_ON_HOST"):
    import on_host  # noqa: F401
