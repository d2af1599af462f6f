"""Small .xlsx files, written part by part as the format has them."""

from __future__ import annotations

import datetime as dt
import io
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
STYLES = '<numFmts/><fonts/><fills/><borders/><cellStyleXfs/><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="46"/></cellXfs>'
"""The formats of cells: none, a date, a duration."""


class Formula(NamedTuple):
    """A cell that is computed, with the value that was stored with it; None when it never was computed."""

    value: float | None


class Fault(NamedTuple):
    """A cell whose formula failed."""

    shown: str


def cell_xml(at: str, value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return f'<c r="{at}" t="b"><v>{int(value)}</v></c>'
        case int() | float():
            return f'<c r="{at}"><v>{value}</v></c>'
        case dt.date():
            return f'<c r="{at}" s="1"><v>{(value - dt.date(1899, 12, 30)).days}</v></c>'
        case dt.timedelta():
            return f'<c r="{at}" s="2"><v>{value / dt.timedelta(days=1)}</v></c>'
        case Formula():
            return f'<c r="{at}"><f>A1</f>{"<v></v>" if value.value is None else f"<v>{value.value}</v>"}</c>'
        case Fault():
            return f'<c r="{at}" t="e"><f>1/0</f><v>{value.shown}</v></c>'
    return f'<c r="{at}" t="inlineStr"><is><t>{escape(str(value))}</t></is></c>'


def sheet_xml(rows: Sequence[Sequence[Any]]) -> str:
    lines = ("".join(cell_xml(f"{chr(65 + column)}{number}", value) for column, value in enumerate(row)) for number, row in enumerate(rows, 1))
    return f"<worksheet {MAIN}><sheetData>{''.join(f'<row>{line}</row>' for line in lines)}</sheetData></worksheet>"


def workbook(sheets: dict[str, Sequence[Sequence[Any]] | str], *, hidden: str = "", padding: int = 0) -> bytes:
    """Write a workbook.

    Args:
        sheets: rows of cells by the sheet's name, or the whole XML of a sheet.
        hidden: a sheet that is not shown.
        padding: bytes of zeros in a part that nobody needs.
    """
    state = {name: ' state="hidden"' if name == hidden else "" for name in sheets}
    listed = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"{state[name]}/>' for n, name in enumerate(sheets, 1))
    related = "".join(f'<Relationship Id="r{n}" Type="{RELATIONS}/worksheet" Target="worksheets/sheet{n}.xml"/>' for n in range(1, len(sheets) + 1))
    parts = {
        "_rels/.rels": f'<Relationships {PACKAGE}><Relationship Id="r1" Type="{RELATIONS}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook {MAIN} xmlns:r="{RELATIONS}"><sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships {PACKAGE}>{related}<Relationship Id="s" Type="{RELATIONS}/styles" Target="styles.xml"/></Relationships>',
        "xl/styles.xml": f"<styleSheet {MAIN}>{STYLES}</styleSheet>",
        **{f"xl/worksheets/sheet{n}.xml": rows if isinstance(rows, str) else sheet_xml(rows) for n, rows in enumerate(sheets.values(), 1)},
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in parts.items():
            made.writestr(name, text)
        if padding:
            with made.open("xl/media/image1.png", "w") as part:
                for _ in range(padding >> 20):
                    part.write(bytes(1 << 20))
    return file.getvalue()
