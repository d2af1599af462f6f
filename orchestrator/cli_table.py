"""How a table looks in the room there is. Pure.

A pipe gets every row on one line, whatever its width. In a terminal nothing runs over the edge: first a column that may be cut gives way, then long
words wrap in place, and in a narrow window the columns of a row go on below each other, indented. Ids, numbers and paths stay whole, to be copied.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

GAP: Final = "  "
INDENT: Final = "    "
"""In front of the columns that go on below."""
CUT_WIDTH_MIN: Final = 16
"""A column that may be cut keeps so much; with less room it goes on below, whole."""
PROSE_WIDTH_MIN: Final = 28
"""As narrow words may wrap in place; with less room they go on below, over the whole width."""
WORDS_MIN: Final = 3
"""So many words make a cell prose."""


class Column(NamedTuple):
    """A column: its cells, the heading first, and how wide it is when nothing is in its way."""

    cells: Sequence[str]
    width: int
    is_right: bool = False
    may_be_cut: bool = False

    @property
    def is_prose(self) -> bool:
        """Whether its cells read as sentences, which may go on in another line."""
        return self.may_be_cut or any(cell.count(" ") >= WORDS_MIN - 1 for cell in self.cells[1:])


def table_lines(rows: Sequence[Sequence[str]], *, right: Collection[str] = (), cut: Collection[str] = (), width: int | None = None) -> Iterator[str]:
    """Lay out a table.

    Args:
        rows: the headings, then the cells of each row; printable, and without line feeds.
        right: headings of the columns that hold numbers.
        cut: headings of the columns that may end in an ellipsis.
        width: columns of the terminal; None for no limit.
    """
    columns = [Column(cells, max(map(shown_width, cells)), cells[0] in right, cells[0] in cut) for cells in zip(*rows, strict=True)]
    groups = [columns] if width is None else _groups(columns, width)
    for n in range(len(rows)):
        for group, indent in zip(groups, ["", *[INDENT] * len(groups)], strict=False):
            yield from _row(group, n, indent)


def shown_width(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for a wide character, none for one that is put on top of another."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _groups(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Divide the columns among lines, each as full as it can be."""
    if not columns or _total(columns) <= width:
        return [list(columns)]
    if squeezed := _squeezed(columns, width):
        return [squeezed]
    groups: list[list[Column]] = [[]]
    for column in columns:
        room = width - (len(INDENT) if len(groups) > 1 else 0)
        if groups[-1] and _total([*groups[-1], column]) > room:
            groups.append([])
            room = width - len(INDENT)
        wide = column.width > room and column.is_prose
        groups[-1].append(column._replace(width=room, may_be_cut=False) if wide else column)
    return groups


def _squeezed(columns: Sequence[Column], width: int) -> list[Column] | None:
    """Take what is too much from the columns that can give it, the widest first; None when that is not enough."""
    made = list(columns)
    while _total(made) > width:
        giving = [n for n, column in enumerate(made) if column.is_prose and column.width > (CUT_WIDTH_MIN if column.may_be_cut else PROSE_WIDTH_MIN)]
        if not giving:
            return None
        widest = max(giving, key=lambda n: made[n].width)
        made[widest] = made[widest]._replace(width=made[widest].width - 1)
    return made


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + len(GAP) * (len(columns) - 1)


def _row(group: Sequence[Column], n: int, indent: str) -> Iterator[str]:
    """Yield the lines of one row of these columns; a row of cells without anything in them, of those that go on below, has none."""
    cells = [_fitted(column, column.cells[n]) for column in group]
    if indent and not any(map(any, cells)):
        return
    for line in range(max(map(len, cells), default=0)):
        parts = (_padded(cell[line] if line < len(cell) else "", column) for cell, column in zip(cells, group, strict=True))
        yield f"{indent}{GAP.join(parts)}".rstrip()


def _fitted(column: Column, cell: str) -> list[str]:
    if shown_width(cell) <= column.width or not column.is_prose:
        return [cell]
    return [_cut(cell, column.width)] if column.may_be_cut else _wrapped(cell, column.width)


def _cut(text: str, width: int) -> str:
    kept = text
    while shown_width(kept) > width - 1:
        kept = kept[:-1]
    return f"{kept.rstrip()}…"


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and shown_width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _padded(cell: str, column: Column) -> str:
    blanks = " " * (column.width - shown_width(cell))
    return blanks + cell if column.is_right else cell + blanks
