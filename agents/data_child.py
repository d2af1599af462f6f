"""Runs inside the sandbox, one process per question: load files into DuckDB, lock it, answer. Standard library and the extra `data` only.

Reads one JSON object from stdin, writes one to stdout. Files are loaded before the lock; after it the database has no way to the file
system, the network, extensions or its own settings. The process limits around it hold what the database's own limits do not: some
functions take memory and time past both.

    in:  {sources: [{name, path, format, sheet}], ask: "sheets" | "list" | "describe" | "query" | "chart", sql, rows_max, seconds, memory_bytes, chart: {…}}
    out: {sheets} | {sources} | {rows, columns, notes} | {columns, rows, more} | {points, left_out, svg, png}, or {error}
"""

from __future__ import annotations

import base64
import csv
import datetime as dt
import decimal
import functools
import io
import json
import math
import re
import sys
import zipfile
from collections.abc import Iterable
from typing import Any, Final

import duckdb

MISSING: Final = ["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None"]
WHOLE: Final = r"[-+]?\d{1,18}"
CODE: Final = r"0\d{2,}"
"""How a postal code or a telephone number may begin: with zeros that a number would lose."""
QUOTE: Final = "'"
NO_NUMBER: Final = ["-", "--", "–", "—", "?", ".", "n.a.", "n. a.", "k.A.", "k. A.", "unknown", "missing", "not available", "#N/A", "#VALUE!", "#DIV/0!"]
"""How people also write a missing number. Among numbers it is one; in a column of words it is a word."""
NUMBERS: Final = {
    # convention -> how a whole cell looks, and what of it is no part of the number
    ".": (r"[-+]?(?:[$€£¥] ?)?[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?: ?(?:[$€£¥%]|EUR|USD|GBP|CHF))?", r"[^0-9.-]"),
    ",": (r"[-+]?(?:[$€£¥] ?)?[-+]?(?:\d{1,3}(?:[.'\x{a0}\x{202f} ]\d{3})+|\d+)(?:,\d+)?(?: ?(?:[$€£¥%]|EUR|USD|GBP|CHF))?", r"[^0-9,-]"),
}
"""What stands before the decimals -> how a number is written with it: grouped by thousands, with a currency or a per cent sign."""
VALUES_SHOWN: Final = 12
VALUE_CHARS_MAX: Final = 200
TEXT_CHARS_MAX: Final = 2_000
POINTS_MAX: Final = 20_000
BARS_MAX: Final = 60
READERS: Final = {
    "csv": "read_csv(?, nullstr=?, sample_size=-1, header=true)",
    "tsv": "read_csv(?, nullstr=?, sample_size=-1, header=true, delim='\t')",
    "parquet": "read_parquet(?)",
    "json": "read_json(?, format='auto')",
    "ndjson": "read_json(?, format='newline_delimited')",
    "xlsx": "read_csv(?, nullstr=?, sample_size=-1, header=true, delim=',')",
}
SHEETS_MAX: Final = 20
CELLS_MAX: Final = 10_000_000
UNPACKED_MIB_MAX: Final = 256
HEADING_WITHIN: Final = 50
"""Rows of a sheet among which its headings are looked for."""
WITH_PASSWORD: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""How an encrypted workbook begins, and one of before 2007."""
NEVER_COMPUTED: Final = re.compile(rb"(?:</f>|<f\b[^>]*/>)\s*(?:<v\s*/>|<v>\s*</v>)?\s*</c>")
IN_ERROR: Final = re.compile(rb"<c\b[^>]*\bt=[\"']e[\"']")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def load(job: dict[str, Any]) -> tuple[duckdb.DuckDBPyConnection, list[str]]:
    """Make a database of the files, then take every way out of it away; returns also what was not read as it stands there."""
    settings = {
        "memory_limit": f"{job['memory_bytes'] // 1_048_576}MiB",
        "threads": 1,  # sums of floats come out the same every time
        "max_execution_time": int(job["seconds"] * 1000),
        "temp_directory": "",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "default_null_order": "NULLS LAST",
    }
    database = duckdb.connect(":memory:")
    for name, value in settings.items():
        database.execute(f"SET {name} = ?", [value])
    notes: list[str] = []
    for source in job["sources"]:
        try:
            notes += read_table(database, source)
        except (duckdb.Error, ValueError) as error:
            raise ValueError(f"{source['file']} cannot be read as {source['format']}: {first_line(error)}") from None
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database, notes


def read_table(database: duckdb.DuckDBPyConnection, source: dict[str, Any]) -> list[str]:
    """Make a table of one file; returns what of it was not read as it stands there."""
    reader, name, path = READERS[source["format"]], source["name"], source["path"]
    unread: list[str] = []
    if source["format"] == "xlsx":
        path, unread = sheet_as_csv(source)

    def create(reader: str, *values: Any) -> None:
        database.execute(f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT * FROM {reader}", [path, *values])  # noqa: S608

    if "read_csv" not in reader:
        create(reader)
        return rows_in_document(database, name)
    if source["format"] == "xlsx":
        create(reader, MISSING)
        return [*unread, *numbers_in_text(database, name, has_comma=False)]
    (delimiter, skipped) = database.execute("SELECT Delimiter, SkipRows FROM sniff_csv(?)", [path]).fetchone() or ("", 0)
    has_comma = delimiter in (";", "\t") and has_decimal_comma(database, reader, path)
    if has_comma:
        reader = reader.replace("header=true", "header=true, decimal_separator=','")
    create(reader, MISSING)
    notes = []
    if ragged := uneven(database, name, path, skipped):
        create(reader.replace("header=true", f"header=true, null_padding=true, strict_mode=false, delim='{ragged}'"), MISSING)
        notes = ["rows with fewer or more cells than the headings are in it: what a row lacks is a missing value"]
    elif skipped:
        notes = [f"the {skipped} lines above the headings are left out"]
    return [*notes, *numbers_in_text(database, name, has_comma=has_comma)]


def uneven(database: duckdb.DuckDBPyConnection, name: str, path: str, skipped: int) -> str:
    """Return the delimiter of a file whose rows have different numbers of cells: it was read as one column, or begun behind its rows. Lines above a
    table are sentences, hardly ever with a delimiter."""
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        above = [line for _, line in zip(range(skipped), file, strict=False) if line.strip()]
    (heading, *others) = [column for column, _ in columns_of(database, name)]
    lines = [*above, *([] if others else [heading])]
    return next((sign for sign in ",;\t|" if lines and sum(sign in line for line in lines) * 2 > len(lines)), "")


def has_decimal_comma(database: duckdb.DuckDBPyConnection, reader: str, path: str) -> bool:
    """Say whether a file writes 1,5 for one and a half, as spreadsheets of many countries do, with semicolons or tabs between the cells: read
    that way, more of its columns are numbers."""

    def numbers(decimal_separator: str) -> int:
        columns = database.execute(f"DESCRIBE SELECT * FROM {reader.replace('header=true', decimal_separator)}", [path, MISSING]).fetchall()  # noqa: S608
        return sum(str(kind) == "DOUBLE" for _, kind, *_ in columns)

    return numbers("header=true, decimal_separator=','") > numbers("header=true")


def numbers_in_text(database: duckdb.DuckDBPyConnection, source: str, *, has_comma: bool) -> list[str]:
    """Make numbers of columns that hold nothing else, but written for people: $1,200.50 or 1.234,50 €, and k. A. where there is none."""
    table, notes = quoted(source), []
    for name, kind in columns_of(database, source):
        column = quoted(name)
        if kind != "VARCHAR" or (written := written_with(database, table, column, has_comma=has_comma)) is None:
            continue
        decimal_sign, numbers = written
        pattern, rest = NUMBERS[decimal_sign]
        text = f"trim({column})"
        is_number = f"regexp_full_match({text}, '{pattern.replace(QUOTE, 2 * QUOTE)}')"
        number = f"replace(regexp_replace({text}, '{rest}', '', 'g'), ',', '.')::{numbers}"
        example, value = one(database, f"SELECT max_by({text}, length({text})), max_by({number}, length({text})) FROM {table} WHERE {is_number}")  # noqa: S608
        spelled = database.execute(f"SELECT DISTINCT {text} FROM {table} WHERE list_contains(?, {text}) ORDER BY 1", [NO_NUMBER]).fetchall()  # noqa: S608
        database.execute(f"ALTER TABLE {table} ALTER {column} TYPE {numbers} USING CASE WHEN {is_number} THEN {number} END")
        read = [f"{example} as {value:.12g}"] if example != str(value) else []
        read += [f"{', '.join(str(row[0]) for row in spelled)} as missing"] if spelled else []
        notes.append(f"{name}: read as numbers, {' and '.join(read)}")
    return notes


def written_with(database: duckdb.DuckDBPyConnection, table: str, column: str, *, has_comma: bool) -> tuple[str, str] | None:
    """Return what stands before the decimals of the numbers in a column of text, and their type; None when it holds anything else, or could mean
    either. `has_comma` says that other numbers of the file have a decimal comma."""
    text = f"trim({column})"

    def only(pattern: str) -> bool:
        sql = f"SELECT 1 FROM {table} WHERE {column} IS NOT NULL AND NOT list_contains(?, {text}) AND NOT regexp_full_match({text}, ?) LIMIT 1"  # noqa: S608
        return database.execute(sql, [NO_NUMBER, pattern]).fetchone() is None

    (digits, codes) = one(database, f"SELECT count_if(regexp_matches({column}, '[0-9]')), count_if(regexp_full_match({text}, '{CODE}')) FROM {table}")  # noqa: S608
    if not digits or codes:
        return None
    possible = [sign for sign, (pattern, _) in NUMBERS.items() if only(pattern)]
    if possible and only(WHOLE):
        return possible[0], "BIGINT"
    if len(possible) == 2:  # such as 1,500: only the file or a currency says which it is
        (of_pounds,) = one(database, f"SELECT count(*) FROM {table} WHERE regexp_matches({column}, '[$£]|USD|GBP')")  # noqa: S608
        possible = ["."] if of_pounds else [","] if has_comma else []
    return (possible[0], "DOUBLE") if possible else None


def rows_in_document(database: duckdb.DuckDBPyConnection, name: str) -> list[str]:
    """Make the rows of a JSON document that holds them in one of its fields, as answers of web services do, those of the table."""
    table = quoted(name)
    lists = [column for column, kind in columns_of(database, name) if kind.startswith("STRUCT(") and kind.endswith(")[]")]
    if len(lists) != 1 or one(database, f"SELECT count(*) FROM {table}") != (1,):  # noqa: S608
        return []
    database.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT unnest({quoted(lists[0])}, max_depth := 2) FROM {table}")  # noqa: S608
    return [f"its rows are the entries of {lists[0]}"]


def sheets(job: dict[str, Any]) -> dict[str, Any]:
    """Return the names of the sheets of each workbook that are tables."""
    found = {}
    for source in job["sources"]:
        try:
            found[source["file"]] = list(open_workbook(source["path"])[0])
        except ValueError:  # whoever asks for its table is told why
            found[source["file"]] = [""]
    return {"sheets": found}


@functools.cache
def open_workbook(path: str) -> tuple[dict[str, Any], list[str]]:
    """Return the visible sheets of a workbook that hold something, by name, and what of it is not read as it stands there.

    It is unpacked once before the library does so: what unpacks to more than it says, or to too much, is not opened.
    """
    from python_calamine import CalamineError, SheetTypeEnum, SheetVisibleEnum, load_workbook

    with open(path, "rb") as file:  # noqa: PTH123
        if file.read(len(WITH_PASSWORD)) == WITH_PASSWORD:
            raise ValueError("it is protected by a password, or of before 2007: save it as .xlsx without a password")
    try:
        with zipfile.ZipFile(path) as parts:
            unpacked = sum(part.file_size for part in parts.infolist()) >> 20
            if unpacked > UNPACKED_MIB_MAX:
                raise ValueError(f"it unpacks to {unpacked} MiB; at most {UNPACKED_MIB_MAX} are read")
            texts = [text for part in parts.infolist() for text in [parts.read(part)] if part.filename.startswith("xl/worksheets/")]
        never, errors = (sum(len(pattern.findall(text)) for text in texts) for pattern in (NEVER_COMPUTED, IN_ERROR))
        workbook = load_workbook(path)
        listed = [sheet for sheet in workbook.sheets_metadata if sheet.typ is SheetTypeEnum.WorkSheet]
        seen = [sheet.name for sheet in listed if sheet.visible is SheetVisibleEnum.Visible]
        found = {name: sheet for name in seen[:SHEETS_MAX] for sheet in [workbook.get_sheet_by_name(name)] if sheet.height}
    except (zipfile.BadZipFile, CalamineError, NotImplementedError) as error:
        raise ValueError(first_line(error)) from None
    left_out = [sheet.name for sheet in listed if sheet.name not in seen[:SHEETS_MAX]]
    return found, [
        *([f"{never} formulas of the workbook have no stored value and count as missing: open it in a spreadsheet program and save it"] if never else []),
        *([f"{errors} cells of the workbook hold an error such as #DIV/0! and count as missing"] if errors else []),
        *([f"sheets of the workbook that are hidden or too many are left out: {', '.join(left_out)}"] if left_out else []),
    ]


def sheet_as_csv(source: dict[str, Any]) -> tuple[str, list[str]]:
    """Write a sheet as the table it would be saved as, beside its workbook; returns the path, and what is not read as it stands there."""
    found, unread = open_workbook(source["path"])
    sheet = found[source["sheet"]]
    if sheet.height * sheet.width > CELLS_MAX:
        raise ValueError(f"its sheet {source['sheet']} spans {sheet.height} rows and {sheet.width} columns; at most {CELLS_MAX} cells are read")
    first = sheet.to_python(nrows=HEADING_WITHIN)
    filled = [sum(cell != "" for cell in row) for row in first]
    # a line above the table fills few of its columns; the headings of one with row labels may lack the first
    heading = next(at for at, row in enumerate(first) if 2 * filled[at] > max(filled) - (row[0] == ""))
    path = f"{source['path']}-{source['name']}.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123
        csv.writer(file, lineterminator="\n").writerows(as_text(row) for at, row in enumerate(sheet.iter_rows()) if at >= heading and any(c != "" for c in row))
    above = sum(map(bool, filled[:heading]))
    return path, [*([f"the {above} lines above the headings are left out"] if above else []), *unread]


def as_text(row: Iterable[Any]) -> list[str]:
    """Write the cells of a sheet: whole numbers without decimals, dates and times as ISO has them, durations in hours, minutes and seconds."""

    def written(cell: Any) -> str:
        if isinstance(cell, bool):
            return str(cell).lower()
        if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
            return str(int(cell))
        if isinstance(cell, dt.timedelta):
            minutes, seconds = divmod(round(cell.total_seconds()), 60)
            return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        return str(cell)

    return [written(cell) for cell in row]


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:500]


def plain(value: Any) -> Any:
    """Return a value as JSON has it; numbers that JSON lacks are missing ones."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if value is None or isinstance(value, bool | int):
        return value
    return str(value)[:TEXT_CHARS_MAX]


def columns_of(database: duckdb.DuckDBPyConnection, name: str) -> list[tuple[str, str]]:
    rows = database.execute(f"SELECT * FROM {quoted(name)} LIMIT 0").description or []  # noqa: S608
    return [(str(column[0]), str(column[1])) for column in rows]


def one(database: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    row = database.execute(sql).fetchone()
    assert row is not None
    return tuple(plain(value) for value in row)


def list_sources(database: duckdb.DuckDBPyConnection, job: dict[str, Any]) -> dict[str, Any]:
    found = []
    for source in job["sources"]:
        (rows,) = one(database, f"SELECT count(*) FROM {quoted(source['name'])}")  # noqa: S608
        found.append({"name": source["name"], "file": source["file"], "rows": rows, "columns": [name for name, _ in columns_of(database, source["name"])]})
    return {"sources": found}


def describe(database: duckdb.DuckDBPyConnection, job: dict[str, Any]) -> dict[str, Any]:
    """Profile one table: type, missing and distinct values, range and mean, the most frequent values."""
    table = quoted(job["sources"][0]["name"])
    (rows,) = one(database, f"SELECT count(*) FROM {table}")  # noqa: S608
    columns = []
    for name, kind in columns_of(database, job["sources"][0]["name"]):
        column = quoted(name)
        missing, distinct = one(database, f"SELECT count(*) - count({column}), count(DISTINCT {column}) FROM {table}")  # noqa: S608
        is_number = kind.split("(")[0] in {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UBIGINT", "UINTEGER", "DOUBLE", "FLOAT", "DECIMAL"}
        low, high, mean = one(database, f"SELECT min({column}), max({column}), {f'avg({column})' if is_number else 'NULL'} FROM {table}")  # noqa: S608
        top = database.execute(f"SELECT {column}, count(*) FROM {table} WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {VALUES_SHOWN}")  # noqa: S608
        values = [[str(plain(value))[:VALUE_CHARS_MAX], count] for value, count in top.fetchall()]
        columns.append({"name": name, "type": kind, "missing": missing, "distinct": distinct, "min": low, "max": high, "mean": mean, "values": values})
    return {"rows": rows, "columns": columns}


def query(database: duckdb.DuckDBPyConnection, job: dict[str, Any]) -> dict[str, Any]:
    result = database.execute(job["sql"])
    names = [str(column[0]) for column in result.description or []]
    rows = result.fetchmany(job["rows_max"] + 1)
    return {"columns": names, "rows": [[plain(value) for value in row] for row in rows[: job["rows_max"]]], "more": len(rows) > job["rows_max"]}


def chart(database: duckdb.DuckDBPyConnection, job: dict[str, Any]) -> dict[str, Any]:
    wanted = job["chart"]
    table = query(database, {**job, "rows_max": POINTS_MAX})
    names = table["columns"]
    for name in (wanted["x"], *([wanted["y"]] if wanted["y"] else [])):
        if name not in names:
            raise ValueError(f"the query has no column {name!r}; its columns are {', '.join(names)}")
    picked = [(row[names.index(wanted["x"])], row[names.index(wanted["y"])] if wanted["y"] else 0) for row in table["rows"]]
    points = [(x, y) for x, y in picked if x is not None and y is not None]
    check_points(wanted, points)
    svg, png = draw(wanted, [x for x, _ in points], [y for _, y in points])
    files = {"svg": svg.decode(), "png": base64.b64encode(png).decode()}
    return {"points": len(points), "left_out": len(picked) - len(points), "more": table["more"], **files}


def check_points(wanted: dict[str, Any], points: list[tuple[Any, Any]]) -> None:
    if not points:
        raise ValueError("the query gives no rows with values to draw")
    numeric = {"histogram": (0,), "scatter": (0, 1), "bar": (1,), "line": (1,)}[wanted["chart"]]
    for at in numeric:
        bad = next((point[at] for point in points if isinstance(point[at], bool) or not isinstance(point[at], int | float)), None)
        if bad is not None:
            raise ValueError(f"a {wanted['chart']} chart needs numbers in column {wanted['y' if at else 'x']!r}, which has {str(bad)[:60]!r}")
    if wanted["chart"] == "bar" and len(points) > BARS_MAX:
        raise ValueError(f"{len(points)} bars cannot be read; aggregate or limit the query to {BARS_MAX}")


def draw(wanted: dict[str, Any], xs: list[Any], ys: list[Any]) -> tuple[bytes, bytes]:
    """Draw one chart as SVG and PNG; the same data gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    mpl.rcParams.update({"svg.hashsalt": "crewlog", "figure.dpi": 100, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    kind = wanted["chart"]
    if kind == "bar":
        labels = [label(x) for x in xs]
        axes.bar(range(len(xs)), ys, color="#3b6ea8")
        is_crowded = len(xs) > 6 or sum(map(len, labels)) > 60
        axes.set_xticks(range(len(xs)), labels, rotation=45 if is_crowded else 0, ha="right" if is_crowded else "center")
    elif kind == "line":
        places = on_axis(xs)
        axes.plot(places, ys, color="#3b6ea8", marker="o", markersize=3)
        if isinstance(places[0], str) and len(places) > 8:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if not isinstance(places[0], int | float):
            figure.autofmt_xdate()
    elif kind == "scatter":
        axes.scatter(xs, ys, s=14, alpha=0.6, color="#3b6ea8", linewidths=0)
    else:
        axes.hist(xs, bins="sturges", color="#3b6ea8", edgecolor="white")
    axes.set_xlabel(label(wanted["x"]))
    axes.set_ylabel(label(wanted["y"]) if wanted["y"] else "count")
    axes.set_title(f"{label(wanted['title'])} ({len(xs)} groups)" if kind == "bar" else f"{label(wanted['title'])} (n = {len(xs)})")
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def on_axis(values: list[Any]) -> list[Any]:
    """Return numbers as they are, dates as dates, so that distances are right, and everything else as labels."""
    if all(isinstance(value, int | float) for value in values):
        return values
    try:
        return [dt.datetime.fromisoformat(value) for value in values]
    except (TypeError, ValueError):
        return [label(value) for value in values]


def label(value: Any) -> str:
    """Return text for a chart: one line, no control characters, no formula syntax."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return (text[:77] + "…" if len(text) > 78 else text).replace("$", r"\$")


def main(job: dict[str, Any]) -> dict[str, Any]:
    try:
        if job["ask"] == "sheets":
            return sheets(job)
        database, notes = load(job)
        answer = {"list": list_sources, "describe": describe, "query": query, "chart": chart}[job["ask"]](database, job)
        return {**answer, "notes": notes} if job["ask"] == "describe" else answer
    except (duckdb.Error, ValueError, MemoryError) as error:
        return {"error": first_line(error) or "out of memory"}


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout, allow_nan=False)
