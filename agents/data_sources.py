"""The files of a data task as tables, and the child process that answers one question about them."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from crewlog.agents.child import MIB, ChildLimits
from crewlog.agents.files import TaskFiles
from crewlog.agents.sandbox import Sandbox
from crewlog.agents.scratch import scratch
from crewlog.agents.spec import ToolContext, ToolFailed
from crewlog.schemas.text import clean

if TYPE_CHECKING:
    from crewlog.agents.sql_guard import Checked  # the module needs an extra; without it the agent must still be able to say so

CHILD: Final = Path(__file__).with_name("data_child.py")
NO_TABLES: Final = "this task has no tables"
TABLES: Final = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".json": "json", ".ndjson": "ndjson", ".jsonl": "ndjson"}
FORMATS: Final = {**TABLES, ".xlsx": "xlsx", ".xlsm": "xlsx"}
TEXT_FORMATS: Final = frozenset({"csv", "tsv"})
OWN_FILES: Final = re.compile(r"(test-report|query-[0-9a-f]{8})\.json$")
RESERVED: Final = frozenset(
    """
    all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create default deferrable desc describe distinct do
    else end except false fetch for foreign from group having in initially intersect into lambda lateral leading limit not null offset on only or order
    pivot pivot_longer pivot_wider placing primary qualify references returning select show some summarize symmetric table then to trailing true union
    unique unpivot using variadic when where window with
    """.split()  # noqa: SIM905  (a list literal would take eighty lines)
)
"""DuckDB's reserved words: a table of that name would have to be quoted in every query."""
SOURCE_BYTES_MAX: Final = 64 * MIB
QUERY_SECONDS: Final = 30
CHILD_LIMITS: Final = ChildLimits(
    wall_s=QUERY_SECONDS + 15,
    cpu_s=QUERY_SECONDS + 15,
    address_bytes_max=1536 * MIB,
    resident_bytes_max=1024 * MIB,
    processes_max=16,
    output_bytes_max=16 * MIB,
    file_bytes_max=256 * MIB,
)
DATABASE_BYTES_MAX: Final = 512 * MIB
STOPPED: Final = {
    "timeout": f"it took longer than {QUERY_SECONDS} s",
    "memory": "it needs more memory than allowed",
    "output": "its result is too large",
    "disk": "it stored more than allowed ({used})",
}


class Source(NamedTuple):
    """One file, or one sheet of a workbook, as a table. `place` says where in the task's files it is."""

    name: str
    file: str
    format: str
    sheet: str = ""
    place: str = ""


async def sources_of(context: ToolContext, sandbox: Sandbox, files: TaskFiles) -> dict[str, Source]:
    """Return the tables of a task by name: the file's stem in lower case, other characters as `_`, numbered when two are alike; behind it the
    name of the sheet in a workbook that has several.

    Raises:
        ToolFailed: a workbook cannot be read.
    """
    tables = [(file, format_) for file in files.names() if (format_ := FORMATS.get(PurePosixPath(file).suffix.lower())) and not OWN_FILES.search(file)]
    workbooks = [Source("", file, format_, place=file) for file, format_ in tables if format_ == "xlsx"]
    sheets: dict[str, list[str]] = (await ask(context, sandbox, files, workbooks, ask="sheets"))["sheets"] if workbooks else {}
    found: dict[str, Source] = {}
    for file, format_ in tables:
        names = sheets.get(file, [""])
        for sheet in names:
            several = f" {sheet}" if len(names) > 1 else ""
            name = _unused(PurePosixPath(file).stem + several, found)
            found[name] = Source(name, file, format_, sheet, f"{file}, sheet{several}" if several else file)
    return found


def _unused(words: str, names: Container[str]) -> str:
    stem = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or "table"
    stem = f"t_{stem}" if stem[0].isdigit() or stem in RESERVED else stem
    return next(name for number in itertools.count(1) if (name := f"{stem}_{number}" if number > 1 else stem) not in names)


def as_utf8(data: bytes) -> bytes:
    """Return the text of a table in UTF-8. Spreadsheets also write UTF-16, which begins with a mark, and Windows-1252, which does not: what
    is no UTF-8 is taken for it. What is none of them stays as it is.

    >>> [as_utf8("Köln".encode(encoding)).decode() for encoding in ("cp1252", "utf-16", "utf-8")]
    ['Köln', 'Köln', 'Köln']
    """
    encodings = ("utf-16",) if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ("utf-8", "cp1252")
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            return data if encoding == "utf-8" else text.encode()
    return data


def checked(sql: str, sources: dict[str, Source]) -> Checked:
    """Check a query against these sources.

    Raises:
        ToolFailed: it may not run; the text says why.
    """
    from crewlog.agents.sql_guard import SqlRefused, check_sql

    try:
        return check_sql(sql, list(sources))
    except SqlRefused as error:
        raise ToolFailed(f"the query was not run: {error}") from None


async def ask(context: ToolContext, sandbox: Sandbox, files: TaskFiles, sources: Sequence[Source], **question: Any) -> dict[str, Any]:
    """Load these sources in a fresh child and let it answer.

    Raises:
        ToolFailed: a file cannot be read, the query is wrong, or it went past a limit; in words the model can act on.
    """
    with scratch(context.workspace) as folder:
        paths: dict[str, Path] = {}
        for number, source in enumerate({source.file: source for source in sources}.values()):
            paths[source.file] = folder / f"source-{number}"
            data = await files.read(source.file, bytes_max=SOURCE_BYTES_MAX)
            paths[source.file].write_bytes(as_utf8(data) if source.format in TEXT_FORMATS else data)
        placed = [{"name": s.name, "file": s.place, "format": s.format, "sheet": s.sheet, "path": str(paths[s.file])} for s in sources]
        (folder / CHILD.name).write_bytes(CHILD.read_bytes())
        job = {"sources": placed, "seconds": QUERY_SECONDS, "memory_bytes": DATABASE_BYTES_MAX, "sql": "", "rows_max": 0, "chart": None, **question}
        result = await sandbox.run_python(["-P", CHILD.name], folder=folder, limits=CHILD_LIMITS, stdin=json.dumps(job).encode())
    if result.killed_reason is not None:
        raise ToolFailed(f"the query was stopped: {STOPPED[result.killed_reason].format(used=result.used)}")
    try:
        answer: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        said = clean(result.stderr.decode(errors="replace"))[-800:].strip()
        raise ToolFailed(f"the query could not be run (status {result.returncode}): {said or 'most likely it needs more memory than allowed'}") from None
    if "error" in answer:
        raise ToolFailed(clean(answer["error"]).replace(f"{folder}/", ""))
    return answer
