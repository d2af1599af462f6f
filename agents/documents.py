"""Turn files people read into plain text with stable line numbers: .md .txt .html .pdf .docx.

Line `n` of a text or Markdown file is line `n` of its text here, so a citation can be checked in any editor. Parsers are loaded on first use
and run in a thread, that of large HTML pages in a process. They bound what a hostile file can expand to; callers bound the size first.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import logging
import math
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from crewlog.agents.html_page import is_large, read_apart, read_page
from crewlog.schemas.errors import ConfigError, ContractError
from crewlog.schemas.text import clean, shorten

DOCUMENT_BYTES_MAX: Final = 32 * 1024 * 1024
TEXT_CHARS_MAX: Final = 8_000_000
PAGES_MAX: Final = 5_000
CPU_S_MAX: Final = 60.0
"""Computing time that the pages of a PDF, the paragraphs and rows of a .docx, or an HTML page may take, in seconds. A small file unpacks to millions of
paragraphs, and thousands of pages may share one that is long."""
UNPACKED_BYTES_MAX: Final = 256 * 1024 * 1024
MERGED_CELLS_MAX: Final = 100_000
"""Columns that all merged cells of a document may cover together: the library makes as many cells of one as it says that it covers."""
CELLS_MAX: Final = 1_000_000
"""Cells of all tables of a .docx together: those of one row are made in one go."""
TITLE_CHARS_MAX: Final = 160

MARKDOWN: Final = "text/markdown"
PLAIN: Final = "text/plain"
HTML: Final = "text/html"
PDF: Final = "application/pdf"
DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

_SUFFIXES: Final = {
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".txt": PLAIN,
    ".text": PLAIN,
    ".rst": PLAIN,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".pdf": PDF,
    ".docx": DOCX,
}
# every character but LF that some program takes for a line end: it must not shift line numbers between programs
_OTHER_LINE_ENDS: Final = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_HEADING: Final = re.compile(r"^#{1,6}[ \t]+(?=[^ \t#])(.*)$", re.MULTILINE)


class Document(NamedTuple):
    """The text of a file: LF line ends, no NUL, `lines` lines of which the last is not empty."""

    text: str
    title: str
    lines: int
    media_type: str


def document_type(name: str, media_type: str = "") -> str | None:
    """Return which of the five kinds of document a file is, or None. Its name decides before its declared media type does."""
    by_name = _SUFFIXES.get(PurePosixPath(name).suffix.lower())
    declared = media_type.partition(";")[0].strip().lower()
    return by_name or (declared if declared in {MARKDOWN, HTML, PDF, DOCX} or (declared == PLAIN and not PurePosixPath(name).suffix) else None)


async def extract(name: str, data: bytes, media_type: str = "") -> Document:
    """Read a document's text beside the event loop.

    Args:
        name: file name; its suffix decides the kind.
        data: the file, at most 32 MiB.
        media_type: the declared type, for names without a telling suffix.

    Raises:
        ContractError: not a document, too large, encrypted, broken, or without any text.
        ConfigError: the library that reads this kind is not installed.
    """
    kind = document_type(name, media_type)
    if kind is None:
        raise ContractError(f"{name!r} ({media_type or 'no media type'}) is not a document that can be read; known are {' '.join(sorted(_SUFFIXES))}")
    if len(data) > DOCUMENT_BYTES_MAX:
        raise ContractError(f"document {name!r} has {len(data)} bytes; at most {DOCUMENT_BYTES_MAX} are read; split it")
    if kind == HTML and is_large(data):
        text, title = await read_apart(name, await asyncio.to_thread(_page, name, data), math.ceil(CPU_S_MAX))
    else:
        text, title = await asyncio.to_thread(_READERS[kind], name, data)
    return await asyncio.to_thread(_document, name, kind, text, title)


def _document(name: str, kind: str, text: str, title: str) -> Document:
    text = _tidy(text)
    if len(text) > TEXT_CHARS_MAX:
        raise ContractError(f"document {name!r} holds {len(text)} characters of text; at most {TEXT_CHARS_MAX} are indexed; split it")
    if not text.strip():
        raise ContractError(f"document {name!r} holds no text" + ("; a scanned PDF needs text recognition first" if kind == PDF else ""))
    title = " ".join(clean(title).split()) or _first_heading(text)
    return Document(text, shorten(title, TITLE_CHARS_MAX), text.count("\n") + 1, kind)


def _tidy(text: str) -> str:
    text = clean(text).replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(line.rstrip() for line in _OTHER_LINE_ENDS.sub(" ", text).split("\n")).rstrip("\n")


def _first_heading(text: str) -> str:
    heading = _HEADING.search(text)
    return heading.group(1).rstrip("#").rstrip() if heading else next(line.strip() for line in text.split("\n") if line.strip())


def _decode(name: str, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data[:8192]:
        raise ContractError(f"document {name!r} holds binary data, not text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _library(module: str) -> Any:
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"reading documents needs the module {module}: {error}", hint="pip install 'crewlog[docs]'") from error
    # what the readers log about damaged files is told by the error, or made good by a fallback
    logging.getLogger(module).setLevel(logging.CRITICAL)
    return library


@contextmanager
def _reporting(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        # parsers of broken files raise whatever they stumble over
        raise ContractError(f"{what} {name!r} cannot be read, it seems to be damaged: {type(error).__name__}: {shorten(clean(str(error)), 200)}") from error


def _read_text(name: str, data: bytes) -> tuple[str, str]:
    return _decode(name, data), ""


def _page(name: str, data: bytes) -> bytes:
    for module in ("trafilatura", "lxml.html"):
        _library(module)
    return _decode(name, data).encode()


def _read_html(name: str, data: bytes) -> tuple[str, str]:
    page = _page(name, data)
    with _reporting(name, "HTML page"):
        return read_page(page)


def _read_pdf(name: str, data: bytes) -> tuple[str, str]:
    pypdf = _library("pypdf")
    with _reporting(name, "PDF"):
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ContractError(f"PDF {name!r} is encrypted; remove the password and add it again")
        if len(reader.pages) > PAGES_MAX:
            raise ContractError(f"PDF {name!r} has {len(reader.pages)} pages; at most {PAGES_MAX} are read; split it")
        pages: list[str] = []
        chars, check = 0, _limit_of_time(f"PDF {name!r}")
        for page in _each(reader.pages, check):
            pages.append(page.extract_text().strip("\n"))
            chars += len(pages[-1])
            if chars > TEXT_CHARS_MAX:
                break
        title = (reader.metadata.title if reader.metadata else None) or ""
    return "\n\n".join(pages), str(title)


def _read_docx(name: str, data: bytes) -> tuple[str, str]:
    docx = _library("docx")
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise ContractError(f"document {name!r} is encrypted or in the old .doc format; save it as .docx without a password")
    with _reporting(name, ".docx file"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > UNPACKED_BYTES_MAX:
            raise ContractError(f"document {name!r} unpacks to {unpacked} bytes; at most {UNPACKED_BYTES_MAX} are read")
        document = docx.Document(io.BytesIO(data))
        if sum(map(int, document.element.xpath("//w:gridSpan/@w:val"))) > MERGED_CELLS_MAX:
            raise ContractError(f"document {name!r} has merged cells over more than {MERGED_CELLS_MAX} columns; split it")
        if document.element.xpath("count(//w:tc)") > CELLS_MAX:
            raise ContractError(f"document {name!r} has more than {CELLS_MAX} cells; split it")
        text = "\n\n".join(_docx_blocks(document, _limit_of_time(f"document {name!r}")))
        title = document.core_properties.title or ""
    # python-docx puts this into every file it makes
    return text, "" if title == "Word Document" else title


def _docx_blocks(document: Any, check: Callable[[], None]) -> Iterator[str]:
    marks: dict[str | None, str] = {}  # by the id of a style: to look one up takes longer than all the rest
    for block in document.iter_inner_content():
        check()
        if hasattr(block, "rows"):
            yield "\n".join("| " + " | ".join(" ".join(cell.text.split()) for cell in row.cells) + " |" for row in _each(block.rows, check))
        elif block.text.strip():
            id_ = block.paragraph_format.element.style
            if id_ not in marks:
                marks[id_] = _docx_mark((block.style.name or "") if block.style is not None else "")
            yield marks[id_] + block.text


def _each(items: Iterable[Any], check: Callable[[], None]) -> Iterator[Any]:
    for item in items:
        check()
        yield item


def _limit_of_time(what: str) -> Callable[[], None]:
    """Return what ends the reading of a file once this thread has computed for too long."""
    begun = time.thread_time()

    def check() -> None:
        if time.thread_time() - begun > CPU_S_MAX:
            raise ContractError(f"{what} takes more than {CPU_S_MAX:g} s of computing; split it")

    return check


def _docx_mark(style: str) -> str:
    level = style.removeprefix("Heading ") if style != "Title" else "1"
    return "#" * int(level) + " " if level.isdigit() else "- " if style.startswith("List") else ""


_READERS: Final[dict[str, Callable[[str, bytes], tuple[str, str]]]] = {
    MARKDOWN: _read_text,
    PLAIN: _read_text,
    HTML: _read_html,
    PDF: _read_pdf,
    DOCX: _read_docx,
}
