"""The data specialist's tools on real files: DuckDB and matplotlib in the real sandbox."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
import pytest_asyncio
from support.toolbox import bench, earlier
from support.workshop import Workshop, open_folder

from crewlog.agents import data_child, data_sources
from crewlog.agents.child import MIB
from crewlog.agents.files import TaskFiles
from crewlog.agents.sandbox import Sandbox
from crewlog.agents.spec import AgentSpec, ToolFailed
from crewlog.agents.specialist_data import data_agent

BIRDS = b"species,mass_g,seen\nAdelie,3700,2007-11-11\nAdelie,NA,2007-11-12\nGentoo,5100,2008-01-01\nGentoo,4900,\nChinstrap,N/A,null\n"


@dataclass
class Desk:
    """A task of the data specialist."""

    shop: Workshop
    agent: AgentSpec

    async def __call__(self, tool: str, **arguments: Any) -> str:
        return (await self.shop.call(self.agent, tool, arguments)).content

    async def refused(self, tool: str, **arguments: Any) -> str:
        with pytest.raises(ToolFailed) as caught:
            await self(tool, **arguments)
        return str(caught.value)

    def made(self, suffix: str) -> list[bytes]:
        return [self.shop.artifacts.files[ref.hash] for ref in self.shop.made if ref.name.endswith(suffix)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent() -> AgentSpec:
    return data_agent(Sandbox())


@pytest.fixture
async def desk(agent: AgentSpec) -> AsyncIterator[Desk]:
    async for opened in opened_desk(agent, {"field notes/Birds 2007.csv": BIRDS}):
        yield opened


async def opened_desk(agent: AgentSpec, files: Mapping[str, bytes]) -> AsyncIterator[Desk]:
    made = await bench(kind="data", attachments=files)
    with open_folder() as folder:
        yield Desk(Workshop(made.task, made.artifacts, folder=folder), agent)


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")][2:]


async def test_sources_are_found_and_described(desk: Desk) -> None:
    assert rows(await desk("list_sources")) == [["birds_2007", "field notes/Birds 2007.csv", "5", "species, mass_g, seen"]]
    said = await desk("describe_source", source="birds_2007")
    assert said.startswith("birds_2007 (field notes/Birds 2007.csv): 5 rows\n")
    described = {row[0]: row[1:] for row in rows(said)}
    assert described["species"] == ["VARCHAR", "0", "3", "Adelie", "Gentoo", "NULL", "Adelie (2), Gentoo (2), Chinstrap (1)"]
    assert described["mass_g"][:6] == ["BIGINT", "2", "3", "3700", "5100", "4566.66666667"], "NA and N/A are missing values, and what is left are numbers"
    assert described["seen"][:3] == ["DATE", "2", "3"]
    assert "the sources are: birds_2007" in await desk.refused("describe_source", source="penguins")


async def test_every_format_is_read(agent: AgentSpec, tmp_path: Path) -> None:
    duckdb.connect().execute("copy (select 1 as a, 'x' as b union all select 2, null) to ? (format parquet)", [str(tmp_path / "p.parquet")])
    files = {
        "a.csv": b"a,b\n1,x\n2,\n",
        "b.tsv": b"a\tb\n1\tx\n2\t\n",
        "c.json": b'[{"a": 1, "b": "x"}, {"a": 2, "b": null}]',
        "d.ndjson": b'{"a": 1, "b": "x"}\n{"a": 2, "b": null}\n',
        "order.csv": b"a,b\n1,x\n2,NA\n",
        "x/a.csv": b"a,b\n1,x\n2,NA\n",
        "7.parquet": (tmp_path / "p.parquet").read_bytes(),
        "readme.md": b"# no table",
    }
    async for desk in opened_desk(agent, files):
        names = [row[0] for row in rows(await desk("list_sources"))]
        assert names == ["a", "b", "c", "d", "t_order", "a_2", "t_7"]
        union = " union all ".join(f"select a, b from {name}" for name in names)
        assert rows(await desk("run_sql", sql=f"select sum(a), count(b), count(*) from ({union})")) == [["21", "7", "14"]]


async def test_codes_keep_their_zeros(agent: AgentSpec) -> None:
    async for desk in opened_desk(agent, {"z.csv": b"zip,month,n\n01067,01,5\n10115,02,7\n"}):
        assert [row[:2] for row in rows(await desk("describe_source", source="z"))] == [["zip", "VARCHAR"], ["month", "BIGINT"], ["n", "BIGINT"]]
        assert rows(await desk("run_sql", sql="select n from z where zip = '01067'")) == [["5"]]


async def test_other_data_give_another_answer(agent: AgentSpec) -> None:
    answers = []
    for data in (BIRDS, BIRDS.replace(b"5100", b"5300"), BIRDS + b"Gentoo,4000,\n"):
        async for desk in opened_desk(agent, {"birds.csv": data}):
            answers += rows(await desk("run_sql", sql="select species, avg(mass_g), count(mass_g) from birds group by all having species = 'Gentoo'"))
    assert answers == [["Gentoo", "5000", "2"], ["Gentoo", "5100", "2"], ["Gentoo", "4666.66666667", "3"]]


async def test_tables_of_earlier_tasks_and_own_results_are_sources(agent: AgentSpec) -> None:
    made = await bench(kind="data")
    table = await made.artifacts.put("cleaned.csv", b"a\n1\n2\n")
    with_context = await bench(kind="data", context=[earlier("clean", artifacts=[table])])
    with_context.artifacts.files.update(made.artifacts.files)
    with open_folder() as folder:
        desk = Desk(Workshop(with_context.task, with_context.artifacts, folder=folder), agent)
        assert rows(await desk("run_sql", sql="select sum(a) from cleaned")) == [["3"]]


async def test_a_long_result_is_cut_and_kept(agent: AgentSpec) -> None:
    async for desk in opened_desk(agent, {"n.csv": b"n\n" + b"".join(b"%d\n" % n for n in range(120))}):
        said = await desk("run_sql", sql="select n, n * n as square from n order by n", rows_max=3)
        assert rows(said) == [["0", "0"], ["1", "1"], ["2", "4"]]
        (stored,) = desk.made(".json")
        assert f"the first 3 of 120 rows; 120 are stored as {desk.shop.made[0].name}" in said
        assert json.loads(stored)["rows"][119] == [119, 14_161]
        assert [row[0] for row in rows(await desk("list_sources"))] == ["n"], "a stored result is no source of its own"


async def test_cells_stay_in_their_cells(agent: AgentSpec) -> None:
    async for desk in opened_desk(agent, {"t.csv": b'a\n"x | y\nz"\n'}):
        assert "| x \\| y z |" in await desk("run_sql", sql="select a from t")


async def test_wrong_queries_are_explained(desk: Desk) -> None:
    assert "there is no source 'secrets'; the sources are: birds_2007" in await desk.refused("run_sql", sql="select * from secrets")
    assert 'column "weight" not found' in await desk.refused("run_sql", sql="select weight from birds_2007")
    assert "only SELECT is allowed" in await desk.refused("run_sql", sql="drop table birds_2007")
    assert "exactly one statement" in await desk.refused("run_sql", sql="select 1; select 2")


async def test_a_query_past_the_limits_is_stopped(desk: Desk) -> None:
    assert "Memory" in await desk.refused("run_sql", sql="select repeat(repeat('x', 100000), 20000)")
    assert "emory" in await desk.refused("run_sql", sql="select length(list(a)::varchar) from range(400000000) t(a)")


async def test_a_query_without_end_is_stopped(desk: Desk) -> None:
    files = TaskFiles(desk.shop.context())
    with pytest.raises(ToolFailed, match=r"(?i)interrupt|time|stopped"):
        await data_sources.ask(
            desk.shop.context(),
            Sandbox(),
            files,
            [],
            ask="query",
            sql="select sum(a.r * b.r) from range(10000000) a(r), range(10000000) b(r)",
            rows_max=1,
            seconds=1,
        )


ATTACKS = [
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/proc/self/environ')",
    "select * from glob('/*')",
    "select * from '/etc/passwd'",
    "copy (select 1) to 'out.csv'",
    "copy t from '/etc/passwd'",
    "export database 'out'",
    "import database 'out'",
    "attach 'other.db' as other",
    "install httpfs",
    "load httpfs",
    "select * from read_csv('http://127.0.0.1/x.csv')",
    "create secret s (type s3, key_id 'a', secret 'b')",
    "set enable_external_access = true",
    "set lock_configuration = false",
    "set memory_limit = '100GB'",
    "set allow_community_extensions = true",
    "reset enable_external_access",
    "pragma enable_profiling",
]


@pytest.mark.parametrize("sql", ATTACKS)
def test_the_database_alone_refuses_what_the_guard_would(sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_bytes(b"a\n1\n")
    source = {"name": "t", "file": "t.csv", "format": "csv", "path": str(tmp_path / "t.csv")}
    database, _ = data_child.load({"sources": [source], "seconds": 5, "memory_bytes": 100 * MIB})
    assert database.execute("select a from t").fetchall() == [(1,)]
    with pytest.raises(duckdb.Error):
        database.execute(sql)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


async def test_broken_files_are_named(agent: AgentSpec) -> None:
    for name, data in {"a.parquet": b"not parquet", "b.json": b"{", "c.csv": b"\xff\xfe\x00"}.items():
        async for desk in opened_desk(agent, {name: data}):
            assert name in await desk.refused("list_sources")
    async for desk in opened_desk(agent, {"readme.md": b"no table"}):
        assert "no tables" in await desk.refused("list_sources")


CHART = {"sql": "select species, avg(mass_g) as mean_mass_g from birds_2007 group by 1 order by 1", "chart": "bar", "x": "species", "y": "mean_mass_g"}


async def test_charts_are_the_same_bytes_every_time(desk: Desk) -> None:
    first = await desk("make_chart", title="Mean mass (g) $x^2$ <script>", **CHART)
    assert first.startswith("drew bar chart mean-mass-g-x-2-script.svg and mean-mass-g-x-2-script.png of 2 points; 1 rows without a value were left out")
    await desk("make_chart", title="Mean mass (g) $x^2$ <script>", **CHART)
    (svg, again), (png, png_again) = desk.made(".svg"), desk.made(".png")
    assert svg == again
    assert png == png_again
    assert png.startswith(b"\x89PNG")
    text = svg.decode()
    assert ET.fromstring(text).tag.endswith("svg")
    assert "Mean mass (g)" in text
    assert "<script" not in text


async def test_every_kind_of_chart_is_drawn(desk: Desk) -> None:
    assert "of 3 points" in await desk("make_chart", sql="select mass_g from birds_2007", chart="histogram", x="mass_g", title="Mass (g)")
    assert "of 3 points" in await desk("make_chart", sql="select seen, 1 as n from birds_2007 order by 1", chart="line", x="seen", y="n", title="Seen")
    assert "of 3 points" in await desk("make_chart", sql="select mass_g, mass_g * 2 as d from birds_2007", chart="scatter", x="mass_g", y="d", title="Twice")
    assert len(desk.made(".svg")) == 3


async def test_a_chart_that_cannot_be_drawn_says_why(desk: Desk) -> None:
    assert "no column 'mass'; its columns are species, mean_mass_g" in await desk.refused("make_chart", title="t", **{**CHART, "y": "mass"})
    assert "needs y" in await desk.refused("make_chart", title="t", **{**CHART, "y": ""})
    assert "needs numbers in column 'species', which has 'Adelie'" in await desk.refused(
        "make_chart", title="t", sql="select species from birds_2007", chart="histogram", x="species"
    )
    assert "no rows" in await desk.refused("make_chart", title="t", **{**CHART, "sql": "select species, 1 as mean_mass_g from birds_2007 where false"})
    assert desk.made(".svg") == []


async def test_the_end_hands_over_figures_and_charts(desk: Desk) -> None:
    await desk("make_chart", title="Mean mass (g)", **CHART)
    end = await desk.shop.call(
        desk.agent, "submit_analysis", {"summary": "Gentoo are heaviest.", "figures": [{"label": "mean mass of Gentoo", "value": 5000, "unit": "g"}]}
    )
    assert end.outcome is not None
    assert end.outcome.output == {"figures": [{"label": "mean mass of Gentoo", "value": 5000, "unit": "g"}]}
    assert [ref.name for ref in end.outcome.artifacts] == ["mean-mass-g.svg", "mean-mass-g.png"]
    assert end.outcome.trust == "untrusted"


async def test_a_decimal_comma_is_read_between_semicolons(agent: AgentSpec) -> None:
    tables = {
        "a": "ort;grad\nBonn;1,5\nBonn;2,5\n",
        "b": 'ort,grad\nBonn,"1,500"\n',
        "c": "ort;grad\nBonn;1.5\nBonn;2.5\n",
        "d": "ort;grad\nBonn;1,5\nBonn;2.5\n",
    }
    async for desk in opened_desk(agent, {f"{name}.csv": table.encode() for name, table in tables.items()}):
        kinds = {name: rows(await desk("describe_source", source=name))[1][1] for name in tables}
        assert kinds == {"a": "DOUBLE", "b": "VARCHAR", "c": "DOUBLE", "d": "VARCHAR"}
        assert rows(await desk("run_sql", sql="SELECT avg(grad) FROM a")) == [["2"]]


async def test_tables_of_spreadsheets_in_other_encodings_are_read(agent: AgentSpec) -> None:
    table = "Stadt;Größe\nKöln;405,02\nNürnberg;186,44\n"
    for encoding in ("utf-8", "utf-8-sig", "cp1252", "utf-16"):
        async for desk in opened_desk(agent, {"towns.csv": table.encode(encoding)}):
            assert rows(await desk("run_sql", sql="SELECT * FROM towns"))[0] == ["Köln", "405.02"], encoding


async def test_numbers_that_were_written_for_people_are_numbers_and_it_is_said(agent: AgentSpec) -> None:
    tables = {
        "dollars.csv": (
            'shop,sales\nA,"$1,200.50"\nB,$900\nC,unknown\n',
            [["A", "1200.5"], ["B", "900"], ["C", "NULL"]],
            "$1,200.50 as 1200.5 and unknown as missing",
        ),
        "euros.csv": ("shop;sales\nA;1.234,50 €\nB;99,90 €\nC;-\n", [["A", "1234.5"], ["B", "99.9"], ["C", "NULL"]], "1.234,50 € as 1234.5 and - as missing"),
        "units.csv": ("shop,units\nA,3\nB,?\n", [["A", "3"], ["B", "NULL"]], "units: read as numbers, ? as missing"),
        "comma.csv": ("shop;grade;sales\nA;1,5;1,234\nB;2,5;k. A.\n", [["A", "1.5", "1.234"], ["B", "2.5", "NULL"]], "1,234 as 1.234 and k. A. as missing"),
        "either.csv": ('shop,sales\nA,"1,500"\nB,n.a.\n', [["A", "1,500"], ["B", "n.a."]], ""),
        "words.csv": ("shop,code\nA,12-7\nB,-\n", [["A", "12-7"], ["B", "-"]], ""),
        "ragged.csv": ("a,b\n1,2\n3\n4,5,6\n", [["1", "2", "NULL"], ["3", "NULL", "NULL"], ["4", "5", "6"]], "rows with fewer or more cells"),
        "answer.json": ('{"count": 2, "items": [{"k": "x", "v": 1}, {"k": "y", "v": 2}]}', [["x", "1"], ["y", "2"]], "its rows are the entries of items"),
    }
    async for desk in opened_desk(agent, {file: text.encode() for file, (text, _, _) in tables.items()}):
        for file, (_, expected, note) in tables.items():
            source = file.partition(".")[0]
            assert rows(await desk("run_sql", sql=f"SELECT * FROM {source} ORDER BY 1")) == expected, file
            told = await desk("describe_source", source=source)
            assert note in told, file
            assert note or "read as" not in told, file
