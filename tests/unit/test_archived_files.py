"""Files beside archives: each that a run refers to, once, and only with the bytes that it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.toolbox import MemoryArtifacts

from crewlog.orchestrator.archived_files import FOLDER, files_of, keep_files, restore_files
from crewlog.orchestrator.bundle import read_bundle
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash

GOLDEN = Path(__file__).parents[1] / "golden_tasks"


def test_attachments_and_what_tasks_made_are_found_whichever_event_names_them() -> None:
    events = read_bundle(GOLDEN / "data-mean-per-group.golden.run").events
    found = files_of(events)
    assert "penguins.csv" in found.values(), "attached"
    made = {ref.name for recorded in events if recorded.type == "RunCompleted" for ref in recorded.event().artifacts}  # type: ignore[union-attr]
    assert made
    assert made <= set(found.values())


async def test_files_are_kept_once_and_put_back(tmp_path: Path) -> None:
    store, empty = MemoryArtifacts(), MemoryArtifacts()
    refs = [await store.put(name, name.encode()) for name in ("a.txt", "b.txt")]
    files = {ref.hash: ref.name for ref in refs}
    for _ in range(2):
        await keep_files(store, files, tmp_path)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == set(files)
    assert await restore_files(empty, {**files, Hash("0" * 64): "elsewhere"}, tmp_path) == (2, 1)
    assert empty.files == store.files


async def test_what_is_gone_or_damaged_is_no_archive(tmp_path: Path) -> None:
    store = MemoryArtifacts()
    ref = await store.put("a.txt", b"a")
    with pytest.raises(ContractError, match=r"its file .b\.txt. cannot be kept(.|\n)*--without-files"):
        await keep_files(store, {Hash("0" * 64): "b.txt"}, tmp_path)
    await keep_files(store, {ref.hash: ref.name}, tmp_path)
    (tmp_path / FOLDER / ref.hash).write_bytes(b"b")
    with pytest.raises(ContractError, match="another hash"):
        await restore_files(store, {ref.hash: ref.name}, tmp_path)
    await keep_files(store, {ref.hash: ref.name}, tmp_path)
    assert (tmp_path / FOLDER / ref.hash).read_bytes() == b"a", "written anew"
