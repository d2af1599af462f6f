from __future__ import annotations

import pytest
from support.toolbox import MemoryArtifacts, bench, earlier

from crewlog.agents.files import TaskFiles
from crewlog.agents.spec import ToolFailed
from crewlog.schemas.ids import Hash
from crewlog.schemas.values import ArtifactRef


async def test_attachments_come_before_earlier_tasks_and_own_files() -> None:
    store = MemoryArtifacts()
    theirs, chart, old, new = [await store.put(n, d) for n, d in [("a.csv", b"theirs"), ("chart.svg", b"chart"), ("own.md", b"old"), ("own.md", b"new")]]
    desk = await bench(attachments={"a.csv": b"attached"}, context=[earlier("measure", artifacts=[theirs, chart])])
    desk.artifacts.files.update(store.files)
    desk.made += [old, new]
    files = TaskFiles(desk.context())
    assert files.names() == ["a.csv", "measure/a.csv", "chart.svg", "own.md"]
    assert await files.read("a.csv") == b"attached"
    assert await files.read("./a.csv") == b"attached"
    assert await files.read("measure/a.csv") == b"theirs"
    assert await files.read("own.md") == b"new"


async def test_the_same_file_under_one_name_is_listed_once() -> None:
    store = MemoryArtifacts()
    same = await store.put("a.csv", b"attached")
    desk = await bench(attachments={"a.csv": b"attached"}, context=[earlier("measure", artifacts=[same])])
    assert TaskFiles(desk.context()).names() == ["a.csv"]


async def test_unknown_names_are_answered_with_the_known_ones() -> None:
    desk = await bench(attachments={"a.csv": b"1", "b.md": b"2"})
    with pytest.raises(ToolFailed, match=r"no file 'c.txt' in this task; the files are: a.csv, b.md"):
        TaskFiles(desk.context()).find("c.txt")
    with pytest.raises(ToolFailed, match="it has no files at all"):
        TaskFiles((await bench()).context()).find("c.txt")


async def test_lost_damaged_and_large_files_say_so() -> None:
    desk = await bench(attachments={"a.csv": b"12345"})
    files = TaskFiles(desk.context())
    with pytest.raises(ToolFailed, match="has 5 bytes; this tool reads at most 4"):
        await files.read("a.csv", bytes_max=4)
    desk.made.append(ArtifactRef("cut.csv", Hash(desk.task.attachments[0].hash), 9))
    with pytest.raises(ToolFailed, match="declared with 9 bytes, but 5 are stored"):
        await TaskFiles(desk.context()).read("cut.csv")
    desk.artifacts.files.clear()
    with pytest.raises(ToolFailed, match="cannot be fetched"):
        await files.read("a.csv")


async def test_text_is_utf8_with_lf_and_without_nul() -> None:
    desk = await bench(attachments={"a.txt": b"\xef\xbb\xbfone\r\ntwo\0\rthree", "b.txt": b"\xff\xfe"})
    files = TaskFiles(desk.context())
    assert await files.read_text("a.txt") == "one\ntwo\ufffd\nthree"
    with pytest.raises(ToolFailed, match="not UTF-8 text"):
        await files.read_text("b.txt")
