"""Markdown as the HTML of a mail. Loaded with the first mail: most workers that could send one never do."""

from __future__ import annotations

from typing import Final

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml


def to_html(markdown: str) -> str:
    """Render Markdown: raw HTML is shown as text, pictures become their alternative text, links lead to web and mail addresses only."""
    return str(_RENDERER.render(markdown))


class _Renderer(MarkdownIt):
    def __init__(self) -> None:
        super().__init__("commonmark", {"html": False})
        self.enable("table")
        # a picture from elsewhere would tell its server who reads the mail, and could carry data out in its address
        self.add_render_rule("image", lambda _self, tokens, index, _options, _env: escapeHtml(tokens[index].content))

    def validateLink(self, url: str) -> bool:  # noqa: N802  (the library's name)
        return url.lower().startswith(("https://", "http://", "mailto:"))


_RENDERER: Final = _Renderer()
