"""Harnesses behind docs/reliability.md: what they try, how often, and what came of it.

    python -m reliability run        # the long forms, resumable, into build/reliability.json; then the page
    python -m reliability page       # the page alone

``lines.py`` lists the figures as data. A harness is a module with ``unit(number, tally)``, which tries one numbered
piece of work and tells the tally, and ``planted()``, a context within which the library has a fault that ``unit`` must
find. tests/python/test_reliability.py runs a few units of each, and each planted fault.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The oracle, the table of ops and the helpers of the tests are used as they are.
for _path in (ROOT / "python", ROOT / "tests" / "python"):
    if str(_path) not in sys.path:
        sys.path.append(str(_path))
