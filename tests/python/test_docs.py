"""Whatever the documentation shows is run, and whatever it links is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dendnorm import norms

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONTINUED = ("tutorial.md",)  # pages of which each block goes on where the last one ended


def snippets(page: Path) -> list[str]:
    found = SNIPPET.findall(page.read_text("utf-8"))
    return ["\n".join(found)] if page.name in CONTINUED else found


SNIPPETS = [(page, number, code) for page in PAGES for number, code in enumerate(snippets(page))]


@pytest.mark.parametrize(("page", "number", "code"), SNIPPETS, ids=lambda value: getattr(value, "name", None))
def test_snippets_run(page, number, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{page.name}, snippet {number + 1}", "exec"), {"__name__": "__main__"})


def test_the_readme_has_its_example():
    example = next(code for page, _, code in SNIPPETS if page.name == "README.md")
    assert "SparseLinear" in example and "SET" in example


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


def test_the_table_of_norms_is_what_the_names_mean():
    rows = re.findall(r"^\| (`.*?) \| (\d) \| (\d) \| (\S+) \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 5
    for names, a, b, p in rows:
        for name in re.findall(r'"([^"]+)"', names):
            norm = norms.resolve(name.replace(":P", ":3"))
            assert (norm.a, norm.b) == (int(a), int(b)), name
            if b == "1":
                assert norm.p == (3 if p == "P" else int(p)), name


SWITCH = re.compile(
    r"option\((DENDNORM_\w+)|set\((DENDNORM_\w+) [^)]*\bCACHE\b"
    r"|getenv\(\"(DENDNORM_\w+)\"|environ(?:\.get\(|\[)\"(DENDNORM_\w+)\""
)


def test_every_switch_is_in_the_table_and_no_other():
    places = [ROOT / name for name in ("csrc", "cuda", "python", "tests", "benchmarks")]
    files = [file for place in places for file in place.rglob("*")] + [ROOT / "CMakeLists.txt", ROOT / "setup.py"]
    texts = [file.read_text("utf-8") for file in files if file.suffix in {".txt", ".cmake", ".py", ".h", ".cpp", ".cu"}]
    read = {name for text in texts for match in SWITCH.findall(text) for name in match if name}
    assert {"DENDNORM_CUDA", "DENDNORM_BUILD_TESTS", "DENDNORM_CUDA_DENSE", "DENDNORM_PREBUILT"} <= read
    table = (ROOT / "docs" / "installing.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(DENDNORM_\w+)` \|", table, re.MULTILINE)) == read
