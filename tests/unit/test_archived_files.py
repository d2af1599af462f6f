"""Files beside archives: each that a run refers to, once, and only with the bytes that it says."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from support.toolbox import MemoryArtifacts

from crewlog.orchestrator.archived_files import FOLDER, Restored, files_of, keep_files, restore_files, with_files
from crewlog.orchestrator.bundle import Bundle, pack_bundle, read_bundle, unpack_bundle
from crewlog.orchestrator.saved_files import save_bundled, save_files
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash
from crewlog.schemas.run_events import RunCompleted
from crewlog.schemas.values import ArtifactRef

GOLDEN = Path(__file__).parents[1] / "golden_tasks"


def test_attachments_and_what_tasks_made_are_found_whichever_event_names_them() -> None:
    events = read_bundle(GOLDEN / "data-mean-per-group.golden.run").events
    found = files_of(events)
    assert "penguins.csv" in found.values(), "attached"
    made = {ref.name for recorded in events if recorded.type == "RunCompleted" for ref in recorded.event().artifacts}  # type: ignore[union-attr]
    assert made
    assert made <= set(found.values())


def referring(files: dict[Hash, str]) -> Bundle:
    """A run whose last event refers to these files."""
    bundle = read_bundle(GOLDEN / "data-no-table.golden.run")
    refs = msgspec.json.encode([{"name": name, "hash": hash_, "size": 1} for hash_, name in files.items()])
    events = [recorded for recorded in bundle.events if not files_of([recorded])]
    return bundle._replace(events=[*events[:-1], replace(events[-1], type="Later", data=b'{"files": %b}' % refs)])


async def test_files_are_kept_once_and_put_back(tmp_path: Path) -> None:
    store, empty = MemoryArtifacts(), MemoryArtifacts()
    refs = [await store.put(name, name.encode()) for name in ("a.txt", "b.txt")]
    files = {ref.hash: ref.name for ref in refs}
    for _ in range(2):
        await keep_files(store, files, tmp_path)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == set(files)
    assert await restore_files(empty, referring({**files, Hash("0" * 64): "elsewhere"}), tmp_path) == Restored(2, 1)
    assert empty.files == store.files


async def test_an_exported_run_brings_its_files_along_and_names_those_that_are_gone(tmp_path: Path) -> None:
    store, there = MemoryArtifacts(), MemoryArtifacts()
    refs = [await store.put(name, data) for name, data in (("a.bin", b"\x00\n\xff"), ("empty", b""), ("line\n", b"line\n"))]
    named = {ref.hash: ref.name for ref in refs}
    bundle, problems = await with_files(store, referring({**named, Hash("0" * 64): "gone.txt"}))
    assert [problem for problem in problems if "'gone.txt' is left out" in problem] == problems != []
    data = pack_bundle(bundle)
    read = unpack_bundle(data, "run.crewlog")
    assert (read, read.files) == (bundle, store.files)
    assert pack_bundle(read) == data, "canonical"
    assert await restore_files(there, read, tmp_path) == Restored(3, 1)
    assert there.files == store.files
    assert b'"version":2' in gzip.decompress(pack_bundle(bundle._replace(files={})))[:99], "older programs read what holds no files"
    foreign = bundle._replace(files={content_hash(b"evil"): b"evil"})
    with pytest.raises(ContractError, match="no event refers to"):
        unpack_bundle(pack_bundle(foreign), "run.crewlog")


async def test_what_a_run_made_is_saved_from_its_file_and_nowhere_else_than_said(tmp_path: Path) -> None:
    bundle = read_bundle(GOLDEN / "data-mean-per-group.golden.run")
    end = next(event for recorded in reversed(bundle.events) if isinstance(event := recorded.event(), RunCompleted))
    with pytest.raises(ContractError, match=f"of {len(end.artifacts)} files that run .* are not in what was exported"):
        await save_bundled(bundle, tmp_path)
    whole = bundle._replace(files={file.hash: file.name.encode() for file in end.artifacts})
    written = await save_bundled(whole, tmp_path)
    assert {path.relative_to(tmp_path).as_posix(): path.read_text() for path in written} == {file.name: file.name for file in end.artifacts}
    with pytest.raises(ContractError, match="outside"):
        await save_files([ArtifactRef("../a", end.artifacts[0].hash, 1)], tmp_path, lambda _: nothing())


async def nothing() -> bytes:
    return b""


async def test_what_is_gone_or_damaged_is_no_archive(tmp_path: Path) -> None:
    store = MemoryArtifacts()
    ref = await store.put("a.txt", b"a")
    with pytest.raises(ContractError, match=r"its file .b\.txt. cannot be kept(.|\n)*--without-files"):
        await keep_files(store, {Hash("0" * 64): "b.txt"}, tmp_path)
    await keep_files(store, {ref.hash: ref.name}, tmp_path)
    (tmp_path / FOLDER / ref.hash).write_bytes(b"b")
    with pytest.raises(ContractError, match="another hash"):
        await restore_files(store, referring({ref.hash: ref.name}), tmp_path)
    await keep_files(store, {ref.hash: ref.name}, tmp_path)
    assert (tmp_path / FOLDER / ref.hash).read_bytes() == b"a", "written anew"
