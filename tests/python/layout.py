"""What imports what in the Python package, read from its sources: for the test of it, and for its picture."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "dendnorm"
ENTRANCES = {"__init__", "__main__", "_moved", "info"}  # above all rooms, and imported by none


def modules() -> dict[str, Path]:
    """The package's modules by their names within it; a folder's own is that of its ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, every: bool = True) -> set[str]:
    """The package's modules that a module imports, within functions and for type checking too unless not `every`."""
    known, found = modules(), set()
    folder = list(path.relative_to(PACKAGE).parent.parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if every else ast.iter_child_nodes(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = folder[: len(folder) - node.level + 1] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            whole = ".".join([*base, alias.name])
            found |= {whole} if whole in known else {".".join(base)} & known.keys()
    return found - {name}


def room(name: str) -> str:
    return name.split(".")[0]


def levels() -> dict[str, int]:
    """How many modules deep the imports below each module of the library go; raises on a circle."""
    arrows = {name: imports(name, path) for name, path in modules().items() if room(name) != "lab"}
    arrows = {name: others for name, others in arrows.items() if name not in ENTRANCES}
    found: dict[str, int] = {}

    def level(name: str, above: tuple[str, ...]) -> int:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        if name not in found:
            found[name] = 1 + max((level(other, (*above, name)) for other in arrows[name]), default=0)
        return found[name]

    for name in arrows:
        level(name, ())
    return found
