"""The site of the documentation: built as `make docs` does, with every page and every public name, and nothing from the
network."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest

import dendnorm

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python")


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
