"""What mkdocs does besides: links that leave docs/ lead to copies, under source/ on the site, of what they name.

A link from docs/cuda.md to ../cuda/README.md thus works in the repository and on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")


def _place(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    return (
        uri.removeprefix("source/")
        if uri.startswith("source/")
        else posixpath.join("docs", uri)
    )


def _uri(place: str) -> str:
    """The other way round."""
    return (
        place.removeprefix("docs/")
        if place.startswith("docs/")
        else posixpath.join("source", place)
    )


def _targets(place: str, text: str) -> list[str]:
    return [
        posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
        for link, _ in LINK.findall(text)
    ]


def on_files(files, config):
    waiting = [_place(page.src_uri) for page in files.documentation_pages()]
    while waiting:
        place = waiting.pop()
        for target in _targets(place, (ROOT / place).read_text("utf-8")):
            if (ROOT / target).is_file() and files.get_file_from_path(
                _uri(target)
            ) is None:
                files.append(
                    File.generated(
                        config, _uri(target), abs_src_path=str(ROOT / target)
                    )
                )
                waiting += [target] if target.endswith(".md") else []
    return files


def on_page_markdown(markdown, page, config, files):
    place = _place(page.file.src_uri)

    def moved(match: re.Match) -> str:
        link, anchor = match[1], match[2] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
        if not (ROOT / target).is_file():
            return match[0]  # mkdocs says what is wrong
        return f"]({posixpath.relpath(_uri(target), posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(moved, markdown)
