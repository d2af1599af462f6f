"""The code specialist's tools on real projects in the real sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from support.toolbox import bench
from support.workshop import Workshop, open_folder

from crewlog.agents.sandbox import Sandbox
from crewlog.agents.spec import AgentSpec, ToolFailed
from crewlog.agents.specialist_code import code_agent

PAGES = b"""def page(items, number, size):
    start = number * size
    return items[start : start + size]


def count(items, size):
    return len(items) // size
"""
TESTS = b"""from pager.pages import count, page


def test_last_page():
    assert page([1, 2, 3, 4, 5], 2, 2) == [5]


def test_full_pages():
    assert count([1, 2, 3, 4], 2) == 2


def test_a_rest_is_a_page():
    assert count([1, 2, 3, 4, 5], 2) == 3
"""
BOX_TESTS = b"""import pytest


@pytest.mark.parametrize("n", [1, 3])
def test_n(size, n):
    assert size == n


@pytest.mark.skip
def test_later():
    pass
"""
PROJECT = {"shop/pager/__init__.py": b"", "shop/pager/pages.py": PAGES, "shop/tests/test_pages.py": TESTS}
OLD, NEW = "len(items) // size", "-(-len(items) // size)"


@dataclass
class Desk:
    """A task of the code specialist."""

    shop: Workshop
    agent: AgentSpec

    async def __call__(self, tool: str, **arguments: Any) -> str:
        return (await self.shop.call(self.agent, tool, arguments)).content

    async def refused(self, tool: str, **arguments: Any) -> str:
        with pytest.raises(ToolFailed) as caught:
            await self(tool, **arguments)
        return str(caught.value)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent() -> AgentSpec:
    return code_agent(Sandbox())


@pytest.fixture
async def desk(agent: AgentSpec) -> AsyncIterator[Desk]:
    async for opened in opened_desk(agent, PROJECT):
        yield opened


async def opened_desk(agent: AgentSpec, files: Mapping[str, bytes]) -> AsyncIterator[Desk]:
    made = await bench(kind="code", attachments=files)
    with open_folder() as folder:
        yield Desk(Workshop(made.task, made.artifacts, folder=folder), agent)


async def test_a_defect_is_found_repaired_and_handed_over(desk: Desk) -> None:
    assert (await desk("list_files")).splitlines()[1] == f"shop/pager/pages.py ({len(PAGES)} bytes)"
    before = await desk("run_tests", trace=True)
    assert before.startswith("2 passed, 1 failed, 0 errors, 0 skipped (sandbox: ")
    assert "FAILED shop/tests/test_pages.py::test_a_rest_is_a_page - shop/tests/test_pages.py:13: assert 2 == 3" in before
    assert "PASSED shop/tests/test_pages.py::test_full_pages" in before
    assert "0.707 shop/pager/pages.py:7: return len(items) // size" in before
    await desk("replace_in_file", path="shop/pager/pages.py", old=OLD, new=NEW)
    assert "call run_tests without arguments" in await desk.refused("submit_patch", summary="Rounded up.")
    assert (await desk("run_tests")).startswith("3 passed, 0 failed")
    assert f"-    return {OLD}\n+    return {NEW}" in await desk("show_diff")
    end = await desk.shop.call(desk.agent, "submit_patch", {"summary": "Rounded up."})
    assert end.outcome is not None
    assert end.outcome.output == {"tests": {"passed": 3, "failed": 0}, "diff_lines": 2}
    assert end.outcome.flags == ()
    assert [ref.name for ref in end.outcome.artifacts] == ["changes.diff", "workspace/shop/pager/pages.py"]


async def test_a_selection_of_tests_is_no_proof(desk: Desk) -> None:
    assert (await desk("run_tests", arguments=["shop/tests/test_pages.py::test_last_page"])).startswith("1 passed, 0 failed")
    assert "no run of all tests" in await desk.refused("submit_patch", summary="Done.")


async def test_failing_tests_are_admitted(desk: Desk) -> None:
    await desk("run_tests")
    end = await desk.shop.call(desk.agent, "submit_patch", {"summary": "I found nothing."})
    assert end.outcome is not None
    assert end.outcome.flags == ("tests_failing", "no_changes")
    assert end.outcome.output == {"tests": {"passed": 2, "failed": 1}, "diff_lines": 0}


async def test_the_first_edit_that_makes_all_pass_is_kept(desk: Desk) -> None:
    edits = [
        {"path": "shop/pager/pages.py", "old": "number * size", "new": "number * size +"},
        {"path": "shop/pager/pages.py", "old": OLD, "new": f"{OLD} + 1"},
        {"path": "shop/pager/pages.py", "old": f"    return {OLD}", "new": "    while True: pass"},
        {"path": "shop/pager/pages.py", "old": "return", "new": "yield"},
        {"path": "shop/pager/missing.py", "old": "a", "new": "b"},
        {"path": "shop/pager/pages.py", "old": OLD, "new": NEW},
        {"path": "shop/pager/pages.py", "old": OLD, "new": "3"},
    ]
    lines = (await desk("try_edits", candidates=edits)).splitlines()
    assert lines[0] == "Kept candidate 6: all 3 tests pass."
    assert lines[1].startswith("before: 2 passed, 1 failed")
    expected = [
        "not valid Python",
        "fixes 1 of 1 failing tests, breaks 1",
        "the tests did not end",
        "occurs 2 times",
        "there is no file",
        "all tests pass",
        "not tried",
    ]
    assert len(lines) == 2 + len(expected)
    for number, (line, end) in enumerate(zip(lines[2:], expected, strict=True), 1):
        assert line.startswith(f"{number}. shop/pager/")
        assert end in line
    assert NEW in await desk("read_file", path="shop/pager/pages.py")
    assert "submitted: 2 lines changed, 3 tests passed" in await desk("submit_patch", summary="Rounded up."), "the edit brought its own proof"


async def test_when_nothing_helps_the_files_stay_and_that_is_said(desk: Desk) -> None:
    said = await desk(
        "try_edits", candidates=[{"path": "shop/pager/pages.py", "old": OLD, "new": "0"}, {"path": "shop/pager/pages.py", "old": OLD, "new": "4"}]
    )
    assert said.startswith("No candidate makes all tests pass; the files are as they were.")
    assert said.count("fixes no failing test") == 2
    assert await desk("show_diff") == "nothing is changed"


async def test_a_file_beside_the_project_may_be_edited_too(desk: Desk) -> None:
    await desk("write_file", path="tools/hello.py", content="print('hello')\n")
    edits = [{"path": "tools/hello.py", "old": "hello", "new": "good bye"}, {"path": "shop/pager/pages.py", "old": OLD, "new": NEW}]
    said = await desk("try_edits", candidates=edits)
    assert said.startswith("Kept candidate 2: all 3 tests pass.")
    assert "1. tools/hello.py: 'hello' -> 'good bye': fixes no failing test" in said


async def test_there_is_nothing_to_try_when_all_pass(desk: Desk) -> None:
    await desk("replace_in_file", path="shop/pager/pages.py", old=OLD, new=NEW)
    assert (await desk("try_edits", candidates=[{"path": "shop/pager/pages.py", "old": NEW, "new": "0"}])).startswith("all 3 tests pass already")


async def test_what_runs_cannot_change_the_files(desk: Desk) -> None:
    hostile = """
import pathlib

def test_all():
    for path in pathlib.Path().rglob("*.py"):
        path.unlink()
    pathlib.Path("link").symlink_to("/etc")
"""
    await desk("write_file", path="shop/tests/test_hostile.py", content=hostile)
    files = await desk("list_files")
    assert "PASSED shop/tests/test_hostile.py::test_all" in await desk("run_tests", arguments=["shop/tests/test_hostile.py"])
    assert await desk("list_files") == files
    assert (await desk("run_tests")).startswith("3 passed, 1 failed")


async def test_a_script_runs_and_shows_what_it_said(desk: Desk) -> None:
    await desk("write_file", path="tools/hello.py", content="import os, sys\nprint('hello', sys.argv[1:], sorted(os.listdir()))\nsys.exit('that was all')\n")
    said = await desk("run_script", path="tools/hello.py", arguments=["; echo $HOME"])
    assert said.startswith("exit status 1 (sandbox: ")
    assert "hello ['; echo $HOME'] ['shop', 'tools']" in said
    assert "stderr:\nthat was all" in said
    assert "there is no file" in await desk.refused("run_script", path="tools/nothing.py")


@pytest.mark.parametrize("tool", ["read_file", "write_file", "replace_in_file", "run_script"])
async def test_no_tool_leaves_the_workspace(desk: Desk, tool: str) -> None:
    more: dict[str, dict[str, str]] = {"write_file": {"content": "x"}, "replace_in_file": {"old": "root", "new": "x"}}
    assert "is refused" in await desk.refused(tool, path="../../etc/passwd", **more.get(tool, {}))


async def test_errors_of_collection_are_shown(agent: AgentSpec) -> None:
    async for desk in opened_desk(agent, {"tests/test_a.py": b"import nothing_of_that_name\n"}):
        said = await desk("run_tests")
        assert said.startswith("0 passed, 0 failed, 1 errors")
        assert "No module named 'nothing_of_that_name'" in said
        end = await desk.shop.call(desk.agent, "submit_patch", {"summary": "It cannot be imported."})
        assert end.outcome is not None
        assert "tests_failing" in end.outcome.flags


async def test_a_project_without_tests_says_so(agent: AgentSpec) -> None:
    async for desk in opened_desk(agent, {"a.py": b"x = 1\n"}):
        assert "no tests ran" in await desk("run_tests")
        end = await desk.shop.call(desk.agent, "submit_patch", {"summary": "Nothing to do."})
        assert end.outcome is not None
        assert "no_tests" in end.outcome.flags


async def test_fixtures_parameters_and_a_src_folder_work(agent: AgentSpec) -> None:
    project = {
        "pyproject.toml": b"[tool.pytest.ini_options]\naddopts = '--strict-markers'\n",
        "src/box/__init__.py": b"SIZE = 3\n",
        "tests/conftest.py": b"import pytest\n\n\n@pytest.fixture\ndef size():\n    import box\n    return box.SIZE\n",
        "tests/test_box.py": BOX_TESTS,
    }
    async for desk in opened_desk(agent, project):
        said = await desk("run_tests")
        assert said.startswith("1 passed, 1 failed, 0 errors, 1 skipped")
        assert "FAILED tests/test_box.py::test_n[1]" in said
