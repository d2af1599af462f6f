"""The artifact store: one suite for a local folder and an object store."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore
from pydantic import TypeAdapter

from crewlog.events import artifact_store
from crewlog.events.artifact_store import ObjectArtifacts, clean_name, guess_media_type, open_artifacts
from crewlog.schemas.checks import RelativePath
from crewlog.schemas.errors import ConfigError, LimitExceeded, NotFound, TerminalError
from crewlog.schemas.ids import Hash


@pytest.fixture(params=["local", "object"])
async def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectArtifacts:
    """Return an empty store."""
    if request.param == "local":
        return await open_artifacts(tmp_path / "artifacts")
    return ObjectArtifacts(MemoryStore(), where="memory")


async def test_a_file_comes_back_by_its_hash(artifacts: ObjectArtifacts) -> None:
    ref = await artifacts.put("plots/heights.svg", b"<svg/>")
    assert (ref.name, ref.size, ref.media_type) == ("plots/heights.svg", 6, "image/svg+xml")
    assert ref.hash == hashlib.sha256(b"<svg/>").hexdigest()
    assert await artifacts.get(ref.hash) == b"<svg/>"


async def test_the_same_bytes_are_stored_once_also_by_several_at_once(artifacts: ObjectArtifacts, tmp_path: Path) -> None:
    refs = await asyncio.gather(*(artifacts.put(f"copy-{n}.txt", b"same" * 1000) for n in range(20)))
    assert len({ref.hash for ref in refs}) == 1
    assert {ref.name for ref in refs} == {f"copy-{n}.txt" for n in range(20)}
    assert await artifacts.get(refs[0].hash) == b"same" * 1000
    assert len(_files(tmp_path)) <= 1  # none for the object store


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_an_empty_file_is_a_file(artifacts: ObjectArtifacts) -> None:
    assert await artifacts.get((await artifacts.put("empty", b"")).hash) == b""


@pytest.mark.parametrize("hash_", ["0" * 64, "", "../../etc/passwd", "A" * 64, "ab/" + "0" * 61])
async def test_what_was_never_stored_is_not_found(artifacts: ObjectArtifacts, hash_: str) -> None:
    with pytest.raises(NotFound, match="artifact"):
        await artifacts.get(hash_)
    assert not await artifacts.delete(Hash(hash_))


async def test_a_given_media_type_wins(artifacts: ObjectArtifacts) -> None:
    assert (await artifacts.put("data.bin", b"", "text/csv")).media_type == "text/csv"


async def test_a_file_over_the_limit_is_refused(artifacts: ObjectArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_store, "ARTIFACT_BYTES_MAX", 10)
    with pytest.raises(LimitExceeded, match="artifact_bytes reached: 11 of 10"):
        await artifacts.put("large", b"x" * 11)


async def test_damaged_bytes_are_noticed_and_mended_by_storing_again(tmp_path: Path) -> None:
    artifacts = await open_artifacts(str(tmp_path))
    ref = await artifacts.put("answer.md", b"forty-two")
    (tmp_path / ref.hash[:2] / ref.hash).write_bytes(b"")
    with pytest.raises(TerminalError, match="is damaged"):
        await artifacts.get(ref.hash)
    await artifacts.put("answer.md", b"forty-two")
    assert await artifacts.get(ref.hash) == b"forty-two"


async def test_what_nobody_has_stored_lately_is_listed_and_storing_it_again_says_that_it_is_in_use(artifacts: ObjectArtifacts) -> None:
    kept, left = await artifacts.put("kept", b"kept"), await artifacts.put("left", b"left")
    seen = datetime.now(UTC)
    assert await artifacts.untouched(seen - timedelta(days=1)) == []
    assert sorted(await artifacts.untouched(seen + timedelta(days=1))) == sorted([(kept.hash, 4), (left.hash, 4)])
    async with asyncio.timeout(60):
        while kept.hash in dict(await artifacts.untouched(seen)):  # stores count in their own steps of time
            await artifacts.put("kept", b"kept")
    assert dict(await artifacts.untouched(seen)) == {left.hash: 4}


async def test_places_that_cannot_hold_artifacts_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot use .*file/artifacts"):
        await open_artifacts(tmp_path / "file" / "artifacts")
    with pytest.raises(ConfigError, match="ftp:// is not supported"):
        await open_artifacts("ftp://host/folder")
    await open_artifacts("s3://bucket/prefix")  # nothing is asked of the bucket before the first file


@given(st.text())
def test_every_name_becomes_a_safe_relative_path(name: str) -> None:
    cleaned = clean_name(name)
    assert TypeAdapter(RelativePath).validate_python(cleaned) == cleaned
    assert clean_name(cleaned) == cleaned


def test_names_lose_what_leads_out_of_a_folder() -> None:
    assert clean_name("../../etc/passwd") == "etc/passwd"
    assert clean_name("C:\\temp\\report.pdf") == "C:/temp/report.pdf"
    assert clean_name("a\x00b\r\n.txt") == "a\ufffdb.txt"
    assert clean_name("///") == "unnamed"


@pytest.mark.parametrize(
    ("name", "media_type"), [("a.md", "text/markdown"), ("A.CSV", "text/csv"), ("x.png", "image/png"), ("Makefile", "application/octet-stream")]
)
def test_media_types_are_guessed_from_the_ending(name: str, media_type: str) -> None:
    assert guess_media_type(name) == media_type
