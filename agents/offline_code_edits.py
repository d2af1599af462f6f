"""Edits of source text: built from places in the syntax tree, sent as an old text that occurs exactly once and a new one."""

from __future__ import annotations

import ast
from bisect import bisect_right
from typing import Any, NamedTuple


class Edit(NamedTuple):
    """Replace `[start, end)` of a file's text. `prior`: how often this kind of change is the repair, 0 to 1."""

    start: int
    end: int
    new: str
    prior: float
    line: int
    why: str


class Source:
    """A parsed file: converts places of the tree into offsets of the text."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.tree = ast.parse(text)
        self.lines = text.split("\n")
        self._starts = [0]
        for line in self.lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        self.parents: dict[ast.AST, ast.AST] = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def offset(self, line: int, column: int) -> int:
        """Return the offset of a line (from 1) and a column in UTF-8 bytes, as the tree counts them."""
        return self._starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode(errors="ignore"))

    def span(self, node: Any) -> tuple[int, int]:
        """Return where a node's text begins and ends."""
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def segment(self, node: Any) -> str:
        """Return a node's text."""
        start, end = self.span(node)
        return self.text[start:end]

    def around(self, edit: Edit) -> tuple[int, int]:
        """Return where the outermost statements on the lines of an edit begin and end; the whole text when there are none."""
        first, last = bisect_right(self._starts, edit.start), bisect_right(self._starts, edit.end)
        lines = [
            (min(part.lineno for part in (node, *getattr(node, "decorator_list", ()))), node.end_lineno or node.lineno)
            for node in self.tree.body
            if node.lineno <= last and (node.end_lineno or node.lineno) >= first
        ]
        return (self._starts[min(lines)[0] - 1], self._starts[max(end for _, end in lines)]) if lines else (0, len(self.text))

    def replace(self, node: Any, new: str, prior: float, why: str) -> Edit:
        """Replace a node."""
        return Edit(*self.span(node), new, prior, node.lineno, why)

    def insert_before(self, statement: ast.stmt, new: str, prior: float, why: str) -> Edit:
        """Insert whole lines before a statement, with its indentation."""
        at = self._starts[statement.lineno - 1]
        indent = " " * statement.col_offset
        return Edit(at, at, "".join(f"{indent}{line}".rstrip() + "\n" for line in new.split("\n")), prior, statement.lineno, why)


def unique_pair(text: str, edit: Edit) -> tuple[str, str] | None:
    """Return (old, new) of whole lines around the edit, widened until the old text occurs once; None when nothing would change."""
    start, end = text.rfind("\n", 0, edit.start) + 1, text.find("\n", edit.end)
    end = len(text) if end < 0 else end
    while text.count(text[start:end]) != 1 or not text[start:end].strip():
        if start == 0 and end >= len(text):
            return None
        following = text.find("\n", end + 1)
        if end < len(text):
            end = len(text) if following < 0 else following
        else:
            start = text.rfind("\n", 0, max(start - 1, 0)) + 1
    old, new = text[start:end], text[start : edit.start] + edit.new + text[edit.end : end]
    return None if old == new else (old, new)


def is_valid(source: Source, edit: Edit) -> bool:
    """Say whether the file still parses with the edit. Only the outermost statements that it touches are parsed: files may be long."""
    try:
        begin, end = source.around(edit)
        ast.parse(source.text[begin : edit.start] + edit.new + source.text[edit.end : end])
    except (SyntaxError, ValueError):
        return False
    return True
