"""Formulas as MathML, made while the site is built: ``$...$`` in a line, and blocks fenced as ``math``.

GitHub reads both. Nothing is loaded to show them, neither from the network nor from the site.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.exceptions import PluginError

INLINE = r"(?<![\\$\w])\$(?=[^\s$])([^$\n]+?)(?<=\S)\$(?![\w$])"


def mathml(formula: str, display: str) -> str:
    """MathML of a TeX formula, which stays with it as its text for readers that show none."""
    formula = " ".join(formula.split())
    if formula.count("{") != formula.count("}"):
        raise PluginError(f"formula {formula!r} has braces without a partner")
    try:
        made = convert(formula, display=display)
    except Exception as error:
        raise PluginError(
            f"formula {formula!r}: {type(error).__name__}: {error}"
        ) from error
    unknown = re.findall(r"\\[A-Za-z]+", made)
    if unknown:
        raise PluginError(f"formula {formula!r} holds {unknown[0]}, which is not known")
    return made.replace("<math ", f'<math alttext="{escape(formula)}" ', 1)


def _block(source: str, *rest: Any, **more: Any) -> str:
    return f'<div class="formula">{mathml(source, "block")}</div>'


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match, data: str):  # type: ignore[override]
        return self.md.htmlStash.store(mathml(m[1], "inline")), m.start(0), m.end(0)


class _Formulas(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(
            _Inline(INLINE, md), "formula", 185
        )  # after code, before escapes and emphasis


def on_config(config):
    config.markdown_extensions.append(_Formulas())
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault(
        "custom_fences", []
    )
    fences.append({"name": "math", "class": "math", "format": _block})
    return config
