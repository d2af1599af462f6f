"""Reads tables out of tool results: JSON rows, Markdown pipe tables, or comma- and tab-separated lines, whichever a tool writes."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from crewlog.agents.offline_conversation import result_data

_NUMBER: Final = re.compile(r"^-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?$")
_RULE: Final = re.compile(r"^\s*\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\s*$")
_NOTHING: Final = frozenset({"", "null", "none", "nan", "na", "n/a", "<null>", "∅"})


class Table(NamedTuple):
    """Rows under column names; numbers are numbers, missing values None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def column(self, name: str) -> list[Any]:
        """Return the values of one column."""
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


def read_table(text: str | None) -> Table | None:
    """Return the first table in a tool result, or None."""
    data = result_data(text)
    if isinstance(data, dict):
        data = next(
            (
                data[key]
                for key in ("rows", "result", "results", "data", "values")
                if isinstance(data.get(key), list) and not (key == "rows" and "columns" in data)
            ),
            data,
        )
    if isinstance(data, dict) and isinstance(data.get("rows"), list) and isinstance(data.get("columns"), list):
        names = tuple(str(column["name"] if isinstance(column, dict) and "name" in column else column) for column in data["columns"])
        return Table(names, tuple(_row(row, names) for row in data["rows"]))
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        names = tuple(dict.fromkeys(str(key) for row in data for key in row))
        return Table(names, tuple(_row(row, names) for row in data))
    return _pipe_table(text or "") or _separated(text or "")


def is_cut(text: str | None) -> bool:
    """Say whether a result has more rows than it shows."""
    return bool(re.search(r"(?m)^the first \d+ of (?:more than )?\d+ rows", text or ""))


def records(text: str | None) -> list[dict[str, Any]]:
    """Return the rows of the first table as mappings with lower-case names."""
    table = read_table(text)
    return [dict(zip((name.strip().lower() for name in table.columns), row, strict=True)) for row in table.rows] if table else []


def value_of(cell: Any) -> Any:
    """Turn the text of a cell into a number or None where it is one; everything else stays."""
    if not isinstance(cell, str):
        return cell
    text = cell.strip().strip("`")
    if text.lower() in _NOTHING:
        return None
    if not _NUMBER.match(text):
        return text
    plain = text.replace(",", "")
    return float(plain) if any(mark in plain for mark in ".eE") else int(plain)


def as_number(value: Any) -> float | None:
    """Return a value as a number, or None when it is none."""
    value = value_of(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value) else None


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a pipe table."""
    lines = [list(columns), ["---"] * len(columns), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def _row(row: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    if isinstance(row, dict):
        return tuple(value_of(row.get(name)) for name in names)
    cells = [value_of(cell) for cell in row] if isinstance(row, list) else [value_of(row)]
    return tuple((cells + [None] * len(names))[: len(names)])


def _pipe_table(text: str) -> Table | None:
    lines = text.splitlines()
    for at, line in enumerate(lines[1:], 1):
        if "|" in lines[at - 1] and "-" in line and _RULE.match(line):
            names = tuple(cell.strip("` ") for cell in _cells(lines[at - 1]))
            body = []
            for row in lines[at + 1 :]:
                if "|" not in row:
                    break
                body.append(_row(_cells(row), names))
            return Table(names, tuple(body))
    return None


def _cells(line: str) -> list[Any]:
    return [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))]


def _separated(text: str) -> Table | None:
    for mark in ("\t", ","):
        lines = [line for line in text.splitlines() if mark in line]
        if len(lines) >= 2:
            parsed = [row for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=mark) if row]
            if len({len(row) for row in parsed}) == 1:
                names = tuple(cell.strip() for cell in parsed[0])
                return Table(names, tuple(_row(row, names) for row in parsed[1:]))
    return None
