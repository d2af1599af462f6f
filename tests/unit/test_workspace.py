from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.toolbox import MemoryArtifacts, bench, earlier

from crewlog.agents.spec import ToolFailed
from crewlog.agents.workspace import FILE_BYTES_MAX, Workspace, diff_lines, file_diff, safe_path

ESCAPES = ["../x", "/etc/passwd", "a/../../x", "a//b", "a/./b", "", ".", "..", "a\\..\\b", "a\nb", "a\x00b", "a/..", "x" * 600]


@pytest.mark.parametrize("path", ESCAPES)
async def test_paths_that_lead_outside_are_refused(path: str) -> None:
    desk = await bench(attachments={"a.py": b"1"})
    workspace = Workspace(desk.context())
    with pytest.raises(ToolFailed, match="is refused"):
        await workspace.read(path)
    with pytest.raises(ToolFailed, match="is refused"):
        await workspace.write(path, "x")


def test_a_leading_dot_is_the_same_path() -> None:
    assert safe_path("./a/b.py") == "a/b.py"


async def test_a_hostile_artifact_name_is_not_written(tmp_path: Path) -> None:
    store = MemoryArtifacts()
    evil = await store.put("../evil.py", b"x")
    desk = await bench(context=[earlier("before", artifacts=[evil])])
    desk.artifacts.files.update(store.files)
    with pytest.raises(ToolFailed, match="is refused"):
        await Workspace(desk.context()).checkout(tmp_path / "project")
    assert not (tmp_path / "evil.py").exists()


async def test_writes_are_artifacts_and_another_machine_rebuilds_them(tmp_path: Path) -> None:
    desk = await bench(attachments={"a.py": b"old\n", "b/c.py": b"same\n"})
    here = Workspace(desk.context())
    desk.made += [await here.write("a.py", "new\n"), await here.write("d/e.py", "more\n"), await here.write("a.py", "newer\n")]
    there = Workspace(desk.context())
    assert there.tree_hash() == here.tree_hash()
    assert there.changed() == ["a.py", "d/e.py"]
    await there.checkout(tmp_path / "project")
    found = {str(p.relative_to(tmp_path / "project")): p.read_text() for p in (tmp_path / "project").rglob("*.py")}
    assert found == {"a.py": "newer\n", "b/c.py": "same\n", "d/e.py": "more\n"}


async def test_writing_the_same_twice_changes_nothing() -> None:
    workspace = Workspace((await bench(attachments={"a.py": b"old"})).context())
    first = await workspace.write("a.py", "new")
    before = workspace.tree_hash()
    assert await workspace.write("a.py", "new") == first
    assert workspace.tree_hash() == before


async def test_the_work_of_an_earlier_task_goes_on() -> None:
    store = MemoryArtifacts()
    repaired = await store.put("workspace/a.py", b"repaired\n")
    desk = await bench(attachments={"a.py": b"broken\n"}, context=[earlier("fix", artifacts=[repaired])])
    desk.artifacts.files.update(store.files)
    workspace = Workspace(desk.context())
    assert await workspace.read("a.py") == "repaired\n"
    assert workspace.changed() == []


async def test_work_that_was_sent_back_goes_on_and_the_patch_is_of_all_of_it() -> None:
    store = MemoryArtifacts()
    tried = [await store.put("workspace/a.py", b"half\n"), await store.put("changes.diff", b"of a.py")]
    desk = await bench(attachments={"a.py": b"broken\n", "b.py": b"broken\n"}, key="fix", context=[earlier("fix", artifacts=tried)])
    desk.artifacts.files.update(store.files)
    workspace = Workspace(desk.context())
    assert workspace.paths() == ["a.py", "b.py"]
    assert await workspace.read("a.py") == "half\n"
    await workspace.write("b.py", "whole\n")
    assert workspace.changed() == ["a.py", "b.py"]
    patch = await workspace.diff()
    assert [line for line in patch.splitlines() if line[0] in "+-" and line[1] not in "+-"] == ["-broken", "+half", "-broken", "+whole"]


async def test_limits_and_clashes_are_told() -> None:
    workspace = Workspace((await bench(attachments={"a/b.py": b"1", "c": b"\xff\xfe"})).context())
    with pytest.raises(ToolFailed, match=f"at most {FILE_BYTES_MAX}"):
        await workspace.write("big.py", "x" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ToolFailed, match="a file or a folder, not both"):
        await workspace.write("a", "x")
    with pytest.raises(ToolFailed, match="a file or a folder, not both"):
        await workspace.write("c/d.py", "x")
    with pytest.raises(ToolFailed, match="not UTF-8"):
        await workspace.read("c")
    with pytest.raises(ToolFailed, match=r"did you mean a/b\.py"):
        await workspace.read("a/bb.py")


@pytest.mark.parametrize(
    ("paths", "root"),
    [
        (["pager/pages.py", "tests/test_pages.py"], ""),
        (["shop/pyproject.toml", "shop/shop/cart.py", "shop/tests/test_cart.py"], "shop"),
        (["code/one/tests/test_a.py", "data.csv"], "code/one"),
        (["script.py"], ""),
        (["pyproject.toml", "lib/tests/test_a.py"], ""),
    ],
)
async def test_the_root_of_the_project_is_found(paths: list[str], root: str) -> None:
    assert Workspace((await bench(attachments=dict.fromkeys(paths, b""))).context()).root() == root


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"a\nb\n", b"a\nc\n"), (b"a", b"a\nb"), (b"a\n", b"a"), (None, b"new\n"), (b"x\r\ny\r\n", b"x\r\nz\r\n"), (b"", b"a\n"), (b"a\x0cb\n", b"a\x0cc\n")],
)
@pytest.mark.skipif(shutil.which("git") is None, reason="git checks the patches")
def test_git_applies_the_patch(tmp_path: Path, old: bytes | None, new: bytes) -> None:
    (tmp_path / "d").mkdir()
    if old is not None:
        (tmp_path / "d" / "f.txt").write_bytes(old)
    subprocess.run(["git", "apply", "-"], input=file_diff("d/f.txt", old, new).encode(), cwd=tmp_path, check=True)
    assert (tmp_path / "d" / "f.txt").read_bytes() == new


def test_changed_lines_are_counted() -> None:
    assert diff_lines(file_diff("f", b"a\nb\nc\n", b"a\nx\ny\nc\n")) == 3
    assert diff_lines("") == 0
