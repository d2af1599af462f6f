"""What the offline data rules know about the sources, read out of `list_sources` and `describe_source` results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from crewlog.agents.offline_conversation import Conversation, result_data
from crewlog.agents.offline_tables import as_number, records
from crewlog.agents.offline_text import name_tokens

Sort = Literal["number", "text", "date", "bool"]

_UNITS: Final = "mm cm m km g kg mg t s ms min h c f k usd eur gbp musd meur pct percent deg l ml kwh kw w mb gb hg hpa id"
UNITS: Final = frozenset(_UNITS.split())
LINKS: Final = frozenset({"of", "per"})
"""Words that only hold the others of a name together."""
MISSING_SPELLINGS: Final = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "-", "?", "")
_NUMBER_TYPES: Final = re.compile(r"INT|DOUBLE|FLOAT|REAL|DECIMAL|NUMERIC|HUGEINT|NUMBER", re.IGNORECASE)
_DATE_TYPES: Final = re.compile(r"DATE|TIMESTAMP", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `values` are distinct values that are known, not always all of them."""

    name: str
    type: str
    sort: Sort
    is_text_number: bool = False
    """Numbers stored as text, with a spelling for missing ones."""
    nulls: int = 0
    distinct: int = 0
    values: tuple[str, ...] = ()
    factors: tuple[Column, ...] = ()
    """The columns it is computed from; empty for a column of the table."""
    part: Literal["", "weekday", "hour of day", "day", "decade"] = ""
    """What it takes of a point in time; without it, a column with factors is their product."""

    @property
    def words(self) -> tuple[str, ...]:
        """Stems of the name without its unit: `gdp per capita (k USD)` is called gdp, capita."""
        called, _, unit = self.name.partition("(")
        tokens = name_tokens(called if called and unit and set(name_tokens(unit)) <= UNITS else self.name)
        tokens = [token for at, token in enumerate(tokens) if at == 0 or token not in LINKS]
        return tuple(tokens[:-1] if len(tokens) > 1 and tokens[-1] in UNITS else tokens)

    @property
    def is_yes_or_no(self) -> bool:
        """It holds truth values, or only 0 and 1."""
        return self.sort == "bool" or (self.sort == "number" and self.distinct == 2 and set(self.values) == {"0", "1"})

    @property
    def unit(self) -> str:
        """The unit its name ends in, or nothing."""
        tail = re.split(r"[_\s(]+", self.name.lower().rstrip(") "))[-1]
        return (
            {"pct": "%", "percent": "%", "usd": "USD", "eur": "EUR", "gbp": "GBP"}.get(tail, tail)
            if tail in UNITS - {"id", "k", "c", "f", "min"} and tail != self.name.lower()
            else ""
        )


@dataclass(frozen=True, slots=True)
class Source:
    """One table."""

    name: str
    rows: int
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    """What was not read as it stands in the file, as `describe_source` says below its table."""

    def of(self, *sorts: Sort) -> list[Column]:
        """Return the columns of these sorts."""
        return [column for column in self.columns if column.sort in sorts]

    @property
    def measures(self) -> list[Column]:
        """Numeric columns that measure something: no ids, no years."""
        return [c for c in self.of("number") if not is_key(c, self.rows) and not is_year(c) and c is not self.numbering]

    @property
    def numbering(self) -> Column | None:
        """A first column of whole numbers, different in each row, before columns that say something: it numbers the rows, whatever its name."""
        first = self.columns[0]
        is_whole = "INT" in first.type.upper()
        return first if is_whole and self.rows >= 10 and first.distinct >= self.rows and len(self.of("text", "bool", "date")) > 0 else None

    @property
    def categories(self) -> list[Column]:
        """Columns worth grouping by: few distinct values, more than one."""
        few = max(2, min(30, self.rows // 2))
        found = [c for c in self.columns if c.sort in ("text", "bool") and 2 <= c.distinct <= few]
        return found + [c for c in self.of("number") if is_year(c) and 2 <= c.distinct <= few]


def is_key(column: Column, rows: int) -> bool:
    """Say whether a column only numbers the rows."""
    tokens = name_tokens(column.name)
    return tokens[-1:] == ["id"] or tokens in (["index"], ["row"], ["rownum"], ["no"], ["#"]) or (column.name == "" and column.distinct >= rows)


def is_year(column: Column) -> bool:
    """Say whether a numeric column holds years."""
    return name_tokens(column.name)[-1:] == ["year"]


def source_names(talk: Conversation) -> list[str]:
    """Return the names of the sources that `list_sources` told of."""
    names: list[str] = []
    for call in talk.made("list_sources"):
        data = result_data(call.result)
        entries = data.get("sources", data) if isinstance(data, dict) else data
        if isinstance(entries, dict):
            entries = list(entries)
        if isinstance(entries, list):
            names += [str(e.get("name") or e.get("source") or e.get("view") or "") if isinstance(e, dict) else str(e) for e in entries]
        elif rows := records(call.result):
            names += [str(row.get("source") or row.get("name") or row.get("view") or next(iter(row.values()), "")) for row in rows]
        else:
            names += re.findall(r"(?m)^\s*[-*]\s+[`\"']?([A-Za-z_]\w*)", call.result or "")
    return [name for name in dict.fromkeys(names) if name]


def described(talk: Conversation) -> list[Source]:
    """Return the sources that were described, in the order of the calls."""
    return [source for call in talk.made("describe_source") if (source := read_source(str(call.arguments.get("source", "")), call.result))]


def read_source(name: str, text: str | None) -> Source | None:
    """Read one description: JSON with `columns`, or a table with a line for each column."""
    data = result_data(text)
    rows_known: Any = None
    if isinstance(data, dict) and isinstance(data.get("columns"), list):
        entries = [{str(k).lower(): v for k, v in entry.items()} for entry in data["columns"] if isinstance(entry, dict)]
        rows_known = data.get("rows", data.get("row_count"))
    else:
        entries = records(text)
    columns = tuple(column for entry in entries if (column := _column(entry)) is not None)
    if not columns:
        return None
    if not isinstance(rows_known, int):
        found = re.search(r"([\d,_]+)\s+rows|rows\W{1,3}([\d,_]+)", text or "")
        rows_known = int(re.sub(r"[,_]", "", next(g for g in found.groups() if g))) if found else 0
    return Source(name, rows_known, columns, _notes(text or ""))


def _notes(text: str) -> tuple[str, ...]:
    """Return the lines below the table of a description."""
    below = text.rpartition("|\n\n")[2] if text.count("|\n\n") else ""
    return tuple(line.strip() for line in below.splitlines() if line.strip() and not line.startswith("|"))


def _first(entry: dict[str, Any], *keys: str) -> Any:
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _column(entry: dict[str, Any]) -> Column | None:
    name = _first(entry, "name", "column", "column_name")
    if name is None:
        return None
    type_ = str(_first(entry, "type", "column_type", "dtype") or "VARCHAR")
    listed = _first(entry, "values", "top", "top_values", "most_common", "examples", "sample", "samples")
    values = _values(listed)
    nulls = as_number(_first(entry, "nulls", "missing", "null_count", "na")) or 0
    distinct = as_number(_first(entry, "distinct", "unique", "distinct_count", "approx_unique"))
    sort: Sort = "number" if _NUMBER_TYPES.search(type_) else "date" if _DATE_TYPES.search(type_) else "bool" if type_.upper().startswith("BOOL") else "text"
    known = [value for value in values if value not in MISSING_SPELLINGS]
    is_text_number = sort == "text" and len(known) >= 2 and all(as_number(value) is not None for value in known)
    return Column(
        str(name), type_, "number" if is_text_number else sort, is_text_number, int(nulls), int(distinct if distinct is not None else len(values)), values
    )


def _values(listed: Any) -> tuple[str, ...]:
    if isinstance(listed, dict):
        return tuple(str(key) for key in listed)
    if isinstance(listed, list):
        return tuple(str(_first(v, "value", "name") if isinstance(v, dict) else v[0] if isinstance(v, list) and v else v) for v in listed if v is not None)
    if isinstance(listed, str):
        if counted := re.findall(r"(\S.*?) \(\d+\)(?:, |$)", listed):
            return tuple(value for value in counted if not value.endswith("…"))  # what is cut short is no value, and the commas are theirs
        return tuple(
            part for part in (re.sub(r"\s*[:×x]\s*\d+\s*$", "", piece).strip(" '\"`") for piece in re.split(r"[,;]\s+", listed)) if part and part != "…"
        )
    return () if listed is None else (str(listed),)
