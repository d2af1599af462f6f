"""The offline rules with the real tools of data and code: SQL and tests run in real child processes on inputs nobody prepared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.solo import Solo, carry_out
from support.toolbox import bench
from support.workshop import Workshop, open_folder

from crewlog.agents.offline import OfflineModel
from crewlog.agents.specialist_code import code_agent
from crewlog.agents.specialist_data import data_agent
from crewlog.schemas.plan import Constraints

DEMO = Path(__file__).parents[2] / "orchestrator" / "demo"
SALES = "date,region,product,units,price\n" + "".join(
    f"2024-{1 + n % 12:02}-{1 + n % 28:02},{('North', 'South', 'East')[n % 3]},{('Lamp', 'Chair')[n % 2]},{n % 7 + 1},{10 + n % 5}.5\n" for n in range(120)
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as made:
        yield made


async def work(kind: str, objective: str, files: Mapping[str, str], folder: Path) -> Solo:
    at = await bench(objective, kind=kind, attachments={name: text.encode() for name, text in files.items()}, constraints=Constraints())
    return await carry_out(data_agent() if kind == "data" else code_agent(), OfflineModel(), Workshop(at.task, at.artifacts, folder=folder))


def figures(solo: Solo) -> dict[str, object]:
    return {figure["label"]: figure["value"] for figure in solo.result.output["figures"]}


async def test_a_table_is_summarised_with_a_chart(folder: Path) -> None:
    solo = await work("data", "Summarise the measurements with a chart", {"penguins.csv": (DEMO / "penguins.csv").read_text()}, folder)
    assert "344 rows" in solo.result.summary
    assert "5076.02 g for Gentoo" in solo.result.summary
    assert figures(solo)["missing values in penguins"] == 19
    assert [a.name.rsplit(".", 1)[1] for a in solo.result.artifacts] == ["svg", "png"]


@pytest.mark.parametrize(
    ("question", "label", "value"),
    [
        ("How many units were sold per month?", "sum units, 2024-01", None),
        ("What is the average price of chairs in the North?", "mean price where region is North and product is Chair", 12.5),
        ("Top 2 regions by units", "sum units, North", None),
        ("How many sales had a price over 13?", "number of rows where price > 13", 48),
    ],
)
async def test_questions_are_computed_from_the_table(question: str, label: str, value: float | None, folder: Path) -> None:
    found = figures(await work("data", question, {"sales.csv": SALES}, folder))
    assert label in found
    assert value is None or found[label] == value


async def test_a_share_of_yes_and_no_is_a_rate_and_who_is_a_name(folder: Path) -> None:
    table = "name,class,age,survived\n" + "".join(f"P{n},{1 + n % 2},{20 + n},{int(n % 4 == 0)}\n" for n in range(40))
    rates = await work("data", "What percentage of the passengers survived by class?", {"ship.csv": table}, folder)
    assert figures(rates) == {"percent survived, 1": 50, "percent survived, 2": 0}
    oldest = await work("data", "Who is the oldest passenger?", {"ship.csv": table}, folder)
    assert "P39 is first with 59" in oldest.result.summary


async def test_time_negation_and_revenue_are_computed(folder: Path) -> None:
    rows = [(f"2024-0{1 + n % 3}-1{n % 5}", ("Oslo", "Rome", "Bern")[n % 3], n % 4 + 1, (2.5, 4.0)[n % 2]) for n in range(30)]
    table = "day,shop,quantity,unit_price\n" + "".join(f"{day},{shop},{quantity},{price}\n" for day, shop, quantity, price in rows)
    asked = "How many sales between 2024-02-11 and 2024-03-12 were not in Rome? Which shop made the highest revenue?"
    found = figures(await work("data", asked, {"t.csv": table}, folder))
    expected = sum("2024-02-11" <= day <= "2024-03-12" and shop != "Rome" for day, shop, _, _ in rows)
    assert found["number of rows where shop is not Rome and day is between 2024-02-11 and 2024-03-12"] == expected > 0
    for name in ("Oslo", "Rome", "Bern"):
        assert found[f"sum quantity × unit_price, {name}"] == sum(quantity * price for _, shop, quantity, price in rows if shop == name)


async def test_groups_and_their_chart_are_found_in_one_goal(folder: Path) -> None:
    goal = "How many penguins of each species are in the table, and what is the mean body mass per species? Draw a bar chart."
    solo = await work("data", goal, {"penguins.csv": (DEMO / "penguins.csv").read_text()}, folder)
    assert figures(solo)["number of rows, Adelie"] == 152
    assert figures(solo)["mean body_mass_g, Gentoo"] == 5076.0163
    chart = json.loads(solo.used("make_chart")[0])
    assert (chart["chart"], chart["x"], chart["y"]) == ("bar", "species", "mean body_mass_g")


async def test_changing_the_table_changes_the_answer(folder: Path) -> None:
    for lines, count in ((3, 3), (5, 5)):
        solo = await work("data", "How many rows are there?", {"t.csv": "a,b\n" + "1,x\n" * lines}, folder)
        assert count in figures(solo).values()


async def test_column_names_with_quotes_and_keywords_are_only_names(folder: Path) -> None:
    hostile = 'select,"a""; drop table t; --"\nx,1\nx,2\ny,6\n'
    solo = await work("data", 'Mean of "a; drop table t" by select', {"t.csv": hostile}, folder)
    assert not [call for call in solo.calls if call[3]]
    assert 6 in figures(solo).values()


async def test_a_task_without_a_table_says_so(folder: Path) -> None:
    summary = (await work("data", "Count the rows", {"a.txt": "x"}, folder)).result.summary
    assert summary.startswith("There is no table to work on: attach a CSV"), "in the rules' own words, not those of the tool that failed"
    summary = (await work("data", "Count the rows", {"a.parquet": "x"}, folder)).result.summary
    assert summary.startswith("No table could be read. The last error was: a.parquet "), "there is one"


async def test_the_bundled_loader_is_repaired(folder: Path) -> None:
    files = {str(path.relative_to(DEMO)): path.read_text() for path in sorted((DEMO / "penguin_loader").rglob("*.py"))}
    solo = await work("code", "Check our loader", files, folder)
    assert solo.result.output["tests"] == {"passed": 5, "failed": 0}
    assert '+    if cell in ("", "NA"):' in solo.result.summary


def project(source: str, *expressions: str) -> dict[str, str]:
    tests = "\n\n".join(f"def test_{n}():\n    assert {expression}\n" for n, expression in enumerate(expressions))
    return {"calc/calc.py": source, "calc/test_calc.py": f"from calc import *\n\n\n{tests}", "calc/README.md": "# calc\n"}


DEFECTS = {
    "off by one": project("def total(n):\n    result = 0\n    for i in range(n):\n        result += i\n    return result\n", "total(3) == 6", "total(0) == 0"),
    "shared default": project("def add(x, items=[]):\n    items.append(x)\n    return items\n", "add(1) == [1]", "add(2) == [2]"),
    "missing import": project("def area(r):\n    return math.pi * r * r\n", "round(area(1), 2) == 3.14"),
    "missing return": project("def slug(text):\n    text = text.strip()\n    text.lower()\n", "slug(' A ') == 'a'"),
    "new key": project("def count(words):\n    seen = {}\n    for word in words:\n        seen[word] += 1\n    return seen\n", "count(['a', 'a']) == {'a': 2}"),
    "early return": project("def same(xs):\n    out = []\n    for x in xs:\n        out.append(x)\n        return out\n", "same([1, 2]) == [1, 2]"),
    "hidden branch": project(
        "def fee(age):\n    if age < 18:\n        return 5\n    if age < 6:\n        return 0\n    return 9\n", "fee(3) == 0", "fee(10) == 5", "fee(40) == 9"
    ),
    "overwritten": project(
        "class Jar:\n    def __init__(self):\n        self.coins = 0\n\n    def put(self, n):\n        self.coins = n\n        return self\n",
        "Jar().put(2).put(3).coins == 5",
        "Jar().coins == 0",
    ),
    "syntax": project("def double(x)\n    return 2 * x\n", "double(2) == 4"),
    "two defects": project(
        "def mean(xs):\n    return sum(xs) / len(xs)\n\n\ndef is_adult(age):\n    return age > 18\n", "mean([1, 3]) == 2", "mean([]) == 0", "is_adult(18)"
    ),
}


@pytest.mark.parametrize("files", DEFECTS.values(), ids=DEFECTS.keys())
async def test_small_defects_are_repaired(files: dict[str, str], folder: Path) -> None:
    solo = await work("code", "Fix the failing tests", files, folder)
    assert solo.result.output["tests"]["failed"] == 0
    assert solo.result.output["diff_lines"] > 0
    assert not any("test_calc.py" in json.loads(arguments).get("path", "") for arguments in solo.used("replace_in_file"))


async def test_what_cannot_be_repaired_is_said_with_the_suspicious_lines(folder: Path) -> None:
    solo = await work("code", "Fix it", project("def roman(n):\n    return 'I' * n\n", "roman(4) == 'IV'", "roman(9) == 'IX'"), folder)
    assert "tests_failing" in solo.result.flags
    assert "calc/calc.py:2: return 'I' * n" in solo.result.summary


async def test_passing_tests_leave_the_project_as_it_is(folder: Path) -> None:
    solo = await work("code", "Fix it", project("def one():\n    return 1\n", "one() == 1"), folder)
    assert "nothing was changed" in solo.result.summary
    assert solo.result.output["diff_lines"] == 0


async def test_the_extremes_of_a_long_series_and_of_many_groups_are_those_of_all_of_it(folder: Path) -> None:
    table = "day,town,amount\n" + "".join(f"2024-{1 + n // 28:02}-{1 + n % 28:02},town {n:03},{1_000 + n}\n" for n in range(200))
    told = (await work("data", "Show the amount per day. What is the total amount by town?", {"t.csv": table}, folder)).result.summary
    assert "highest for 2024-08-04 (1199), lowest for 2024-01-01 (1000)" in told
    assert "highest for town 199 (1199); only the 40 highest are looked at" in told
