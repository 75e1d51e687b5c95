"""The site of the documentation: built as `make docs` does, with every page and every public name, and nothing from the
network."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import dendnorm

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml")


def missing() -> list[str]:
    return [name for name in NEEDED if find_spec(name.split(".")[0]) is None]


needs_mkdocs = pytest.mark.skipif(bool(missing()), reason=f"needs mkdocs: {', '.join(missing())} cannot be imported")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def public_names() -> list[str]:
    """What ``dendnorm`` and its public modules export, a module's re-exports under their shorter name."""
    names = [f"dendnorm.{name}" for name in dendnorm.__all__]
    exported = {id(getattr(dendnorm, name)) for name in dendnorm.__all__}
    for name in dendnorm.__all__:
        module = getattr(dendnorm, name)
        if isinstance(module, types.ModuleType):
            names += [f"dendnorm.{name}.{inner}" for inner in module.__all__
                      if id(getattr(module, inner)) not in exported]  # fmt: skip
    return names


@needs_mkdocs
def test_every_page_is_built(site):
    for page in DOCS.glob("*.md"):
        assert (site / page.with_suffix(".html").name).is_file(), page.name
    assert not list(site.glob("*.py"))


@needs_mkdocs
def test_every_public_name_is_in_the_reference(site):
    names = public_names()
    assert "dendnorm.SparseLinear" in names and "dendnorm.checkpoint.describe" in names
    anchors = set(re.findall(r'id="([^"]+)"', (site / "reference.html").read_text("utf-8")))
    assert not [name for name in names if name not in anchors]


@needs_mkdocs
def test_docstrings_are_rendered(site):
    text = (site / "reference.html").read_text("utf-8")
    assert "with exactly nnz connections" in text and "share of the N M positions that are connected" in text
    assert not re.findall(r"<em>[^<]*</em>", text), "a * in a docstring that is no code"


@needs_mkdocs
def test_a_link_out_of_the_folder_leads_to_a_copy_and_back(site):
    assert 'href="source/cuda/index.html"' in (site / "cuda.html").read_text("utf-8")
    assert 'href="../../cuda.html"' in (site / "source" / "cuda" / "index.html").read_text("utf-8")


@needs_mkdocs
def test_formulas_are_mathml(site):
    text = (site / "maths.html").read_text("utf-8")
    source = (DOCS / "maths.md").read_text("utf-8")
    assert text.count('display="block"') == source.count("```math") > 1
    assert text.count('display="inline"') > 50 and "<mfrac>" in text
    assert "<math " in (site / "index.html").read_text("utf-8")
    for page in site.rglob("*.html"):
        shown = re.sub(r"<(script|style|code|math)\b.*?</\1>", "", page.read_text("utf-8"), flags=re.DOTALL)
        assert not re.search(r"mathjax|katex", shown, re.IGNORECASE), page.name
        assert not re.search(r"\$[^$\n]*[_^\\][^$\n]*\$", re.sub(r"<[^>]*>", "", shown)), "a formula that was left"


@needs_mkdocs
def test_a_formula_that_is_none_stops_the_build():
    spec = importlib.util.spec_from_file_location("site_math", DOCS / "site_math.py")
    site_math = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site_math)
    assert "<mfrac>" in site_math.mathml(r"\frac{a}{b}", "block")
    for wrong in (r"\frac{a", r"\nosuchthing{a}", r"\left( a"):
        with pytest.raises(site_math.PluginError, match="formula"):
            site_math.mathml(wrong, "inline")


LONGEST = 88  # characters of code that fit beside the links of both sides, in a window of 1300 pixels


def lines_of_code(text: str) -> Iterator[str]:
    """Lines of fenced blocks other than formulas, and of indented ones that belong to no list."""
    fence, listed = None, False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fence = line.strip("` ") if fence is None else None
        elif fence is not None:
            if fence != "math":
                yield line
        elif line.startswith("    "):
            if not listed:
                yield line
        elif line:
            listed = line.startswith(("- ", "  ", ":::"))


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_no_line_of_code_runs_out_of_its_box(page):
    assert list(lines_of_code("- a\n\n    b\n\nc\n\n    d\n```sh\ne\n```\n```math\nf\n```\n")) == ["    d", "e"]
    assert [line for line in lines_of_code(page.read_text("utf-8")) if len(line) > LONGEST] == []


def test_the_first_page_has_the_numbers_of_the_others():
    head, rows = read_table(DOCS / "index.md", "layer, batch, density")
    _, times = read_table(DOCS / "performance.md", "layer", "SparseProp", "dendnorm, l0")
    names = ["dense", "masked", "torch.sparse", "SparseProp", "dendnorm", "dendnorm, l0"]
    ratios, shares = read_table(DOCS / "performance.md", "layer", "memory against dense")
    assert len(rows) >= 3
    for row in rows.values():
        measured = dict(zip(names, times[row[0]][1:], strict=True))
        for name, told in zip(head[1:-1], row[1:-1], strict=True):
            assert told.strip("*") == measured[name].split(" ")[0] + " ms", (row[0], name)
        assert row[-1] == shares[row[0]][ratios.index("memory against dense")]


def read_table(page: Path, *wanted: str) -> tuple[list[str], dict[str, list[str]]]:
    """The first table whose head has these words: its head, and rows by their first cell."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text("utf-8").splitlines()]
    start = next(n for n, cells in enumerate(lines) if cells and all(name in cells for name in wanted))
    end = next(n for n in range(start, len(lines)) if not lines[n])
    return lines[start], {cells[0]: cells for cells in lines[start + 2 : end]}


@needs_mkdocs
def test_pages_load_nothing_from_the_network(site):
    loads = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="https?:|<link\b[^>]*\bhref="https?:')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        assert not loads.findall(page.read_text("utf-8")), page.name


def test_the_reference_names_only_what_there_is():
    for path in re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text("utf-8"), re.MULTILINE):
        module, _, name = path.rpartition(".")
        if module.startswith("dendnorm.integrations.") and module.endswith("transformers"):
            pytest.importorskip("transformers")
        if path == "dendnorm.nn.patterns":  # a module that is loaded when it is first named
            importlib.import_module(path)
        assert hasattr(importlib.import_module(module), name), path
