"""Workbooks as tables of the data specialist: the sheets of .xlsx files in the real sandbox."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from support.toolbox import bench
from support.workbook import Fault, Formula, sheet_xml, workbook
from support.workshop import Workshop, open_folder

from crewlog.agents import data_child
from crewlog.agents.sandbox import Sandbox
from crewlog.agents.spec import AgentSpec, ToolFailed
from crewlog.agents.specialist_data import data_agent

ORDERS = [
    ["Orders of the spring"],
    [],
    ["no", "city", "on", "amount", "with tax", "paid", "took"],
    [1, "Köln", dt.date(2025, 3, 1), 12.5, Formula(14.875), True, dt.timedelta(hours=30)],
    [2, 'Bonn, "old" town', dt.date(2025, 4, 2), "n/a", Formula(None), False, dt.timedelta(minutes=5)],
    [3, "Köln", None, 100, Fault("#DIV/0!"), True, None],
]
CITIES = [[None, "people"], ["Köln", 1_080_000], ["Bonn", 330_000]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent() -> AsyncIterator[AgentSpec]:
    yield data_agent(Sandbox())


@asynccontextmanager
async def opened(agent: AgentSpec, files: Mapping[str, bytes]) -> AsyncIterator[Workshop]:
    made = await bench(kind="data", attachments=files)
    with open_folder() as folder:
        yield Workshop(made.task, made.artifacts, folder=folder)


async def said(shop: Workshop, agent: AgentSpec, tool: str, **arguments: object) -> str:
    return (await shop.call(agent, tool, arguments)).content


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")][2:]


async def test_each_sheet_is_a_table(agent: AgentSpec) -> None:
    book = workbook({"Orders": ORDERS, "Sheet 2": [], "City facts": CITIES, "Old": [["x"], [1]]}, hidden="Old")
    async with opened(agent, {"in/Sales.xlsx": book, "one.XLSX": workbook({"Sheet1": CITIES}), "a.csv": b"a\n1\n"}) as shop:
        assert rows(await said(shop, agent, "list_sources")) == [
            ["sales_orders", "in/Sales.xlsx, sheet Orders", "3", "no, city, on, amount, with tax, paid, took"],
            ["sales_city_facts", "in/Sales.xlsx, sheet City facts", "2", "column0, people"],
            ["one", "one.XLSX", "2", "column0, people"],
            ["a", "a.csv", "1", "a"],
        ]
        described = await said(shop, agent, "describe_source", source="sales_orders")
        assert {row[0]: (row[1], row[2]) for row in rows(described)} == {
            "no": ("BIGINT", "0"),
            "city": ("VARCHAR", "0"),
            "on": ("DATE", "1"),
            "amount": ("DOUBLE", "1"),
            "with tax": ("DOUBLE", "2"),
            "paid": ("BOOLEAN", "0"),
            "took": ("VARCHAR", "1"),
        }
        for note in (
            "the 1 lines above the headings are left out",
            "1 formulas of the workbook have no stored value and count as missing",
            "1 cells of the workbook hold an error such as #DIV/0! and count as missing",
            "sheets of the workbook that are hidden or too many are left out: Old",
        ):
            assert note in described
        by_city = 'select city, sum(amount), max("with tax"), min("on"), max(took) from sales_orders group by 1 order by 1'
        assert rows(await said(shop, agent, "run_sql", sql=by_city)) == [
            ['Bonn, "old" town', "NULL", "NULL", "2025-04-02", "0:05:00"],
            ["Köln", "112.5", "14.875", "2025-03-01", "30:00:00"],
        ]
        joined = "select people from sales_orders join sales_city_facts on city = column0 where no = 1"
        assert rows(await said(shop, agent, "run_sql", sql=joined)) == [["1080000"]]


FAR = sheet_xml([["a"], [1]]).replace("</sheetData>", '<row r="1048576"><c r="XFD1048576"><v>2</v></c></row></sheetData>')
BAD = {
    "a password": (data_child.WITH_PASSWORD + bytes(512), "is protected by a password, or of before 2007"),
    "no workbook": (b"a,b\n1,2\n", "cannot be read as xlsx: File is not a zip file"),
    "broken off": (workbook({"A": CITIES})[:700], "cannot be read as xlsx"),
    "a bomb": (workbook({"A": CITIES}, padding=300 << 20), "it unpacks to 300 MiB; at most 256 are read"),
    "a bomb that lies": (workbook({"A": CITIES}, padding=8 << 20).replace((8 << 20).to_bytes(4, "little"), bytes([9, 0, 0, 0])), "Bad CRC-32"),
    "a cell far away": (workbook({"A": FAR}), "memory"),
}


@pytest.mark.parametrize("what", BAD)
async def test_what_cannot_be_read_is_said_and_stands_in_nobodys_way(agent: AgentSpec, what: str) -> None:
    data, why = BAD[what]
    async with opened(agent, {"bad.xlsx": data, "good.csv": b"a\n1\n"}) as shop:
        if what != "a cell far away":  # it takes the child down before the other table can be named
            assert rows(await said(shop, agent, "run_sql", sql="select sum(a) from good")) == [["1"]]
        with pytest.raises(ToolFailed) as caught:
            await said(shop, agent, "describe_source", source="bad")
        assert why in str(caught.value)
        assert "source-" not in str(caught.value), "what the child calls its files is nobody's business"


async def test_a_sheet_of_too_many_cells_is_refused_by_its_name(agent: AgentSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = sheet_xml([["a"], [1]]).replace("</sheetData>", '<row r="1048576"><c r="J1048576"><v>2</v></c></row></sheetData>')
    async with opened(agent, {"wide.xlsx": workbook({"Big": wide})}) as shop:
        with pytest.raises(ToolFailed, match="its sheet Big spans 1048576 rows and 10 columns; at most 10000000 cells are read"):
            await said(shop, agent, "describe_source", source="wide")
