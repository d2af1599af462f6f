"""One run in one file: its events, every blob they refer to, and checksums. It is replayed anywhere, without a server and without keys.

The file is gzip of lines of JSON: a header, the events in the order of the log, the blobs in the order of their hashes, and the sha-256
of all lines before it. The same run gives the same bytes. Files that tasks made are artifacts and not in it; their hashes are.
"""

from __future__ import annotations

import gzip
import io
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from crewlog.events.memory_store import MemoryStore, restored
from crewlog.events.prefix import read_family
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.run_history import all_payloads
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import Hash, RunId, Stream, TaskId
from crewlog.schemas.payload import content_hash
from crewlog.schemas.task_events import ModelCallFinished

FORMAT: Final = "crewlog.run"
VERSION: Final = 1
BYTES_MAX: Final = 1 << 30
"""Of an unpacked file: a small file must not fill the memory."""


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line. `made_by` is the version of the program that wrote the file; `redacted`: texts were taken out."""

    format: str
    version: int
    run_id: UUID
    events: int
    blobs: int
    made_by: str = ""
    redacted: bool = False


class EventLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event as the log holds it. `data` is its JSON as text, so that every byte of it stays."""

    position: int
    stream: str
    stream_version: int
    event_id: UUID
    type: str
    schema_version: int
    occurred_us: int
    data: str
    run_id: UUID | None = None
    task_id: UUID | None = None
    causation_id: UUID | None = None
    trace_id: UUID | None = None
    actor: str = ""
    writer: str = ""


class BlobLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """A blob: as text, or in base64 when it is none."""

    hash: str
    text: str | None = None
    base64: str | None = None


class LastLine(msgspec.Struct, frozen=True):
    """The checksum of everything before it."""

    sha256: str


class Bundle(NamedTuple):
    """What a file holds."""

    run_id: RunId
    events: Sequence[Recorded]
    blobs: Mapping[Hash, bytes]
    made_by: str = ""
    """Version of the program that wrote the file; empty for one that does not say."""
    is_redacted: bool = False
    """Texts were taken out of it: it folds, but what models were sent cannot be rebuilt."""

    def store(self) -> MemoryStore:
        """Return a log in memory that holds this run and nothing else."""
        return MemoryStore(restored(self.events, self.blobs.values()))


async def collect(store: EventStore, run_id: RunId) -> Bundle:
    """Read a run with everything its events refer to; of a fork, with the beginning of the run that it goes on from.

    Raises:
        NotFound: the log has no such run.
        ContractError: a blob is missing.
    """
    events = await read_family(store, run_id)
    if not events:
        raise NotFound("run", str(run_id))
    raw = {event.raw for recorded in events if isinstance(event := recorded.event(), ModelCallFinished) and event.raw is not None}
    hashes = sorted({p.ref for p in all_payloads(events) if p.ref is not None} | raw)
    blobs = await store.get_blobs(hashes)
    if missing := [hash_ for hash_ in hashes if hash_ not in blobs]:
        raise ContractError(f"run {run_id} refers to {len(missing)} blobs that are not in the log, such as {missing[0]}: it cannot be exported whole")
    return Bundle(run_id, events, {hash_: blobs[hash_] for hash_ in hashes}, version("crewlog"))


def pack_bundle(bundle: Bundle) -> bytes:
    """Return the file of a run."""
    header = Header(FORMAT, VERSION, bundle.run_id, len(bundle.events), len(bundle.blobs), bundle.made_by, bundle.is_redacted)
    lines = [header, *map(_event_line, bundle.events), *(_blob_line(hash_, data) for hash_, data in sorted(bundle.blobs.items()))]
    body = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    # without a time in its header, the same run gives the same file
    return gzip.compress(body + msgspec.json.encode(LastLine(content_hash(body))) + b"\n", mtime=0)


def unpack_bundle(data: bytes, name: str) -> Bundle:
    """Read a file and check it.

    Args:
        name: of the file, for the text of an error.

    Raises:
        ContractError: it is no such file, or not the one that was written.
    """
    lines = _checked_lines(data, name)
    try:
        header = msgspec.json.decode(lines[0], type=Header)
        if (header.format, header.version) != (FORMAT, VERSION):
            raise ContractError(f"{name}: {header.format!r} version {header.version} is not the {FORMAT!r} version {VERSION} that this program reads")
        if len(lines) != 1 + header.events + header.blobs:
            raise ContractError(f"{name}: {header.events} events and {header.blobs} blobs were written, {len(lines) - 1} lines are there")
        events = [_recorded(msgspec.json.decode(line, type=EventLine)) for line in lines[1 : 1 + header.events]]
        blobs = dict(_blob(msgspec.json.decode(line, type=BlobLine), name) for line in lines[1 + header.events :])
    except (msgspec.MsgspecError, ValueError) as error:
        raise ContractError(f"{name} is no exported run: {error}") from error
    return Bundle(RunId(header.run_id), events, blobs, header.made_by, header.redacted)


def read_bundle(path: Path) -> Bundle:
    """Read a file; see `unpack_bundle`."""
    return unpack_bundle(path.read_bytes(), str(path))


def _checked_lines(data: bytes, name: str) -> list[bytes]:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            body = file.read(BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ContractError(f"{name} is no exported run, or a part of one: {error}") from error
    if len(body) > BYTES_MAX:
        raise ContractError(f"{name} unpacks to more than {BYTES_MAX} bytes")
    lines = [line + b"\n" for line in body.split(b"\n")[:-1]]
    if len(lines) < 2:
        raise ContractError(f"{name} is no exported run: it has {len(lines)} lines")
    written = content_hash(b"".join(lines[:-1]))
    try:
        said = msgspec.json.decode(lines[-1], type=LastLine).sha256
    except msgspec.MsgspecError as error:
        raise ContractError(f"{name} is no exported run, or a part of one: its last line is no checksum ({error})") from error
    if said != written:
        raise ContractError(f"{name} is not what was exported: its checksum is {written}, expected {said}")
    return lines[:-1]


def _event_line(recorded: Recorded) -> EventLine:
    fields = {name: getattr(recorded, name) for name in EventLine.__struct_fields__ if name not in ("data", "stream_version")}
    return EventLine(**fields, stream_version=recorded.version, data=recorded.data.decode())


def _recorded(line: EventLine) -> Recorded:
    task_id = TaskId(line.task_id) if line.task_id else None
    return Recorded(
        *(line.position, Stream(line.stream), line.stream_version, line.event_id, line.type, line.schema_version, line.data.encode(), line.occurred_us),
        *(RunId(line.run_id) if line.run_id else None, task_id, line.causation_id, line.trace_id, line.actor, line.writer),
    )


def _blob_line(hash_: Hash, data: bytes) -> BlobLine:
    try:
        return BlobLine(hash_, text=data.decode())
    except UnicodeDecodeError:
        return BlobLine(hash_, base64=b64encode(data).decode())


def _blob(line: BlobLine, name: str) -> tuple[Hash, bytes]:
    data = line.text.encode() if line.text is not None else b64decode(line.base64 or "", validate=True)
    if content_hash(data) != line.hash:
        raise ContractError(f"{name}: blob {line.hash} holds other bytes: {content_hash(data)}")
    return Hash(line.hash), data
