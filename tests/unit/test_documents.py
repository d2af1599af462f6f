from __future__ import annotations

import asyncio
import io
import os
import sys
import time
import zipfile
from typing import Any

import pytest
from docx.text.paragraph import Paragraph
from support.papers import make_docx, make_html, make_pdf
from support.reaper import descendants

from crewlog.agents import documents
from crewlog.agents.documents import document_type, extract
from crewlog.schemas.errors import ConfigError, ContractError

SENTENCES = ["The basic plan costs twelve euros per month and includes five seats.", "Larger teams ask for an offer, which is answered within two days."] * 4


async def test_markdown_keeps_its_line_numbers() -> None:
    data = "\ufeff---\r\nowner: ops\r\n---\r\n\r\n## Refunds ##\r\nform\x0cfeed\u2028kept\r\n\r\n\r\n".encode()
    document = await extract("rules.md", data)
    assert document.text.split("\n") == ["---", "owner: ops", "---", "", "## Refunds ##", "form feed kept"]
    assert (document.title, document.lines, document.media_type) == ("Refunds", 6, "text/markdown")


@pytest.mark.parametrize(
    ("data", "text"),
    [("Grüße".encode("utf-16"), "Grüße"), ("Grüße".encode("cp1252"), "Grüße"), (b"a\rb\r\nc", "a\nb\nc"), (b"x" * 9_000 + b"\0", "x" * 9_000 + "\ufffd")],
)
async def test_other_encodings_and_line_ends(data: bytes, text: str) -> None:
    assert (await extract("note.txt", data)).text == text


async def test_pdf_text_comes_page_by_page() -> None:
    document = await extract("terms.pdf", make_pdf([["Terms of use", "Refunds within 14 days."], ["Second page."]], title="Terms"))
    assert document.text.split("\n") == ["Terms of use", "Refunds within 14 days.", "", "Second page."]
    assert (document.title, document.media_type) == ("Terms", "application/pdf")


async def test_docx_keeps_headings_lists_and_tables_in_order() -> None:
    document = await extract(
        "plan.docx", make_docx(heading="Plan", paragraphs=["First we measure."], items=["tape", "scale"], rows=[["what", "n"], ["bills", "3"]])
    )
    assert document.text == "# Plan\n\nFirst we measure.\n\n- tape\n\n- scale\n\n| what | n |\n| bills | 3 |"
    assert document.title == "Plan"


async def test_html_keeps_the_main_text_and_drops_the_rest() -> None:
    document = await extract("prices.html", make_html(title="Prices &amp; seats", paragraphs=SENTENCES))
    assert "basic plan costs twelve euros" in document.text
    assert "tracking" not in document.text
    assert "Imprint" not in document.text
    assert document.title == "Prices & seats"


async def test_html_without_a_main_part_keeps_all_its_text() -> None:
    document = await extract("bare.html", b"<script>x()</script><p>Closed on Sundays.</p>")
    assert document.text == "Closed on Sundays."


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.pdf", make_pdf([["secret"]], password="x"), "is encrypted"),
        ("a.pdf", b"%PDF-1.7 nothing follows", "seems to be damaged"),
        ("a.pdf", make_pdf([[]]), "holds no text; a scanned PDF needs text recognition"),
        ("a.docx", b"PK\x03\x04 nothing follows", "seems to be damaged"),
        ("a.docx", b"\xd0\xcf\x11\xe0 old", "encrypted or in the old .doc format"),
        ("a.html", b"", "seems to be damaged"),
        ("a.html", b"\x00\x01\x02", "holds binary data"),
        ("a.md", b"\n \n", "holds no text"),
        ("a.txt", b"\x7fELF\0\0", "holds binary data"),
        ("a.xlsx", b"x", "is not a document that can be read"),
    ],
)
async def test_what_cannot_be_read_says_why(name: str, data: bytes, problem: str) -> None:
    with pytest.raises(ContractError, match=problem):
        await extract(name, data)


async def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "TEXT_CHARS_MAX", 100)
    monkeypatch.setattr(documents, "UNPACKED_BYTES_MAX", 100)
    monkeypatch.setattr(documents, "PAGES_MAX", 1)
    monkeypatch.setattr(documents, "CELLS_MAX", 1)
    with pytest.raises(ContractError, match="101 characters"):
        await extract("a.txt", b"x" * 101)
    with pytest.raises(ContractError, match="unpacks to"):
        await extract("a.docx", make_docx(heading="x", paragraphs=[]))
    monkeypatch.setattr(documents, "UNPACKED_BYTES_MAX", 1_000_000)
    with pytest.raises(ContractError, match="more than 1 cells"):
        await extract("a.docx", make_docx(heading="x", paragraphs=[], rows=[["a", "b"]]))
    with pytest.raises(ContractError, match="has 2 pages"):
        await extract("a.pdf", make_pdf([["a"], ["b"]]))
    monkeypatch.setattr(documents, "DOCUMENT_BYTES_MAX", 100)
    with pytest.raises(ContractError, match="has 101 bytes"):
        await extract("a.txt", b"x" * 101)


async def test_what_takes_too_long_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_docx(heading="x", paragraphs=[], rows=[["a", "b"]])
    monkeypatch.setattr(documents, "CPU_S_MAX", -1.0)
    for name, data in (("a.pdf", make_pdf([["a"]])), ("a.docx", make_docx(heading="x", paragraphs=["y"])), ("b.docx", rows)):
        with pytest.raises(ContractError, match="takes more than -1 s of computing"):
            await extract(name, data)


MANY = " ".join(f"a{n}" for n in range(80_000))


async def test_a_large_page_that_takes_too_long_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "CPU_S_MAX", 2.0)
    with pytest.raises(ContractError, match=r"'wide\.html' takes more than 2 s of computing"):
        await extract("wide.html", f"<p {MANY}>hello".encode())


async def test_a_large_page_is_read_as_a_small_one_is() -> None:
    page = "<html><head><title>All of it</title></head><body><h1>Penguins</h1>{}</body></html>"
    paragraphs = [f"<p>Paragraph {n} tells how much the penguin number {n} weighs, which is more than one would think.</p>" for n in range(900)]
    small, large = await asyncio.gather(*(extract("a.html", page.format("".join(paragraphs[:count])).encode()) for count in (9, 900)))
    assert (large.title, large.media_type) == (small.title, small.media_type) == ("All of it", "text/html")
    assert large.text.startswith(small.text)
    assert "penguin number 899 weighs" in large.text


async def test_nothing_of_a_large_page_is_left_when_nobody_waits_for_it() -> None:
    reading = asyncio.create_task(extract("wide.html", f"<p {MANY}>hello".encode()))
    async with asyncio.timeout(60):
        while not (readers := [pid for pid, command in descendants(os.getpid()).items() if "crewlog.agents.html_page" in command]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not descendants(os.getpid()).keys() & set(readers)


async def test_the_style_of_many_paragraphs_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes ten times as long as all the rest of a paragraph."""
    data = make_docx(heading="Title", paragraphs=["text"] * 500, items=["one", "two"])
    known, asked = Paragraph.style, []

    def style(paragraph: Paragraph) -> Any:
        asked.append(paragraph)
        return known.__get__(paragraph)

    monkeypatch.setattr(Paragraph, "style", property(style))
    document = await extract("a.docx", data)
    assert (document.text.count("text"), document.text[:7], document.text[-12:]) == (500, "# Title", "- one\n\n- two")
    assert len(asked) < 20


async def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as entry:
        for _ in range(300):
            entry.write(b"\0" * (1024 * 1024))
    with pytest.raises(ContractError, match="unpacks to 314572800 bytes"):
        await extract("bomb.docx", data.getvalue())


async def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(ConfigError, match=r"pip install 'crewlog\[docs\]'"):
        await extract("a.pdf", make_pdf([["text"]]))


def test_kinds_of_documents() -> None:
    assert document_type("a.MD") == "text/markdown"
    assert document_type("dir.d/README", "text/plain; charset=utf-8") == "text/plain"
    assert document_type("report", "application/pdf") == "application/pdf"
    assert document_type("data.csv", "text/csv") is None
    assert document_type("main.py", "text/plain") is None


async def test_a_heading_is_found_in_time_that_grows_with_the_text_alone() -> None:
    began = time.process_time()
    document = await extract("a.md", b"# a" + b" " * 200_000 + b"b\n## c ##\n")
    assert document.title.startswith("a ")
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    ("line", "title"), [("# One ##", "One"), ("#\tTwo", "Two"), ("#Three\n## Four", "Four"), ("#  \ntext", "#"), ("####### x", "####### x")]
)
async def test_the_title_of_a_text_is_its_first_heading_or_line(line: str, title: str) -> None:
    assert (await extract("a.md", line.encode())).title == title


async def test_a_cell_that_says_it_covers_millions_of_columns_is_not_read() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(make_docx(heading="x", paragraphs=[], rows=[["a"]]))) as given, zipfile.ZipFile(data, "w") as made:
        for name in given.namelist():
            made.writestr(name, given.read(name).replace(b"<w:tcPr>", b'<w:tcPr><w:gridSpan w:val="3000000"/>'))
    with pytest.raises(ContractError, match="merged cells"):
        await extract("a.docx", data.getvalue())
