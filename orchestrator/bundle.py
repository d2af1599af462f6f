"""One run in one file: its events, every blob they refer to, what it was given and made, and checksums. It is replayed anywhere, without a server
and without keys.

The file is gzip of a line of JSON that says everything around the data of the events, then the data of each event on a line of its own in the
order of the log, the blobs and the artifacts, each in the order of their hashes, and a line with the sha-256 of all before it. The same run gives
the same bytes. Artifacts may be left out (`archived_files.with_files` puts them in); their hashes are in the events.

Without artifacts it is of version 2, which older programs read as well. Files of version 1 are read, too: there each event and each blob is a line
of JSON.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from base64 import b64decode
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate, pairwise, repeat
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from crewlog.events.memory_store import MemoryStore, restored
from crewlog.events.prefix import read_family
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.bundle_columns import Columns, columns_of, events_of
from crewlog.orchestrator.run_history import all_payloads, as_shown
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import Hash, RunId, Stream, TaskId
from crewlog.schemas.payload import content_hash
from crewlog.schemas.task_events import ModelCallFinished

FORMAT: Final = "crewlog.run"
VERSION: Final = 3
WITHOUT_FILES: Final = 2
"""Version of a file that holds no artifacts."""
BYTES_MAX: Final = 1 << 30
"""Of an unpacked file: a small file must not fill the memory."""

_HASH: Final = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line. `made_by` is the version of the program that wrote the file; `redacted`: texts were taken out."""

    format: str
    version: int
    run_id: UUID
    events: int
    blobs: int
    made_by: str = ""
    redacted: bool = False
    blob_bytes: list[int] = []
    """Of each blob. Their hashes are not said: events refer to them."""
    file_bytes: list[int] = []
    """Of each artifact, likewise."""
    columns: Columns | None = None


class EventLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event in a file of version 1. `data` is its JSON as text, so that every byte of it stays."""

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
    """A blob in a file of version 1: as text, or in base64 when it is none."""

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
    files: Mapping[Hash, bytes] = {}
    """Artifacts that the run was given or made, as far as they were put in."""

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
    readable = [*as_shown(events)]
    raw = {event.raw for recorded in readable if isinstance(event := recorded.event(), ModelCallFinished) and event.raw is not None}
    hashes = sorted({p.ref for p in all_payloads(readable) if p.ref is not None} | raw)
    blobs = await store.get_blobs(hashes)
    if (missing := [hash_ for hash_ in hashes if hash_ not in blobs]) and not any(recorded.erased_us for recorded in events):
        raise ContractError(f"run {run_id} refers to {len(missing)} blobs that are not in the log, such as {missing[0]}: it cannot be exported whole")
    return Bundle(run_id, events, {hash_: blobs[hash_] for hash_ in hashes if hash_ in blobs}, version("crewlog"))


def pack_bundle(bundle: Bundle) -> bytes:
    """Return the file of a run.

    Raises:
        ContractError: unpacked it would be larger than `BYTES_MAX`, which nobody reads.
    """
    blobs, files = ([data for _, data in sorted(part.items())] for part in (bundle.blobs, bundle.files))
    named = (FORMAT, VERSION if files else WITHOUT_FILES, bundle.run_id, len(bundle.events), len(blobs), bundle.made_by, bundle.is_redacted)
    header = Header(*named, [len(data) for data in blobs], [len(data) for data in files], columns_of(bundle.events))
    parts = (msgspec.json.encode(header), *(event.data for event in bundle.events), *blobs, *files)
    if (size := sum(len(part) + 1 for part in parts)) > BYTES_MAX:
        way_out = ": leave its files out (--without-files)" if files else ""
        raise ContractError(f"run {bundle.run_id} takes {size} bytes, and no more than {BYTES_MAX} fit into a file{way_out}")
    body = b"".join(part + b"\n" for part in parts)
    # without a time in its header, the same run gives the same file
    return gzip.compress(body + msgspec.json.encode(LastLine(content_hash(body))) + b"\n", mtime=0)


def unpack_bundle(data: bytes, name: str) -> Bundle:
    """Read a file and check it.

    Args:
        name: of the file, for the text of an error.

    Raises:
        ContractError: it is no such file, or not the one that was written.
    """
    body = _checked_body(data, name)
    try:
        header = msgspec.json.decode(body[: body.index(b"\n")], type=Header)
        if header.format != FORMAT or not 1 <= header.version <= VERSION:
            raise ContractError(
                f"{name}: {header.format!r} version {header.version} is not the {FORMAT!r} version 1 to {VERSION} that this program reads: {_newer(header)}"
            )
        events, blobs, files = _read_lines(header, body, name) if header.version == 1 else _read_columns(header, body, name)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ContractError(f"{name} is no exported run: {error}") from error
    return Bundle(RunId(header.run_id), events, blobs, header.made_by, header.redacted, files)


def _newer(header: Header) -> str:
    return f"read it with crewlog {header.made_by or 'as it is now'}, which wrote it" if header.format == FORMAT else "it was written by something else"


class _Read(NamedTuple):
    events: list[Recorded]
    blobs: dict[Hash, bytes]
    files: dict[Hash, bytes]


def _read_columns(header: Header, body: bytes, name: str) -> _Read:
    columns = header.columns
    if columns is None or len(header.blob_bytes) != header.blobs or len(columns.lines) not in (0, header.events):
        raise ContractError(f"{name}: its header does not say what is in it")
    at, data = body.index(b"\n") + 1, []
    for lines in columns.lines or repeat(1, header.events):
        end = at
        for _ in range(lines):
            end = body.index(b"\n", end) + 1
        data.append(body[at : end - 1])
        at = end
    sizes = [*header.blob_bytes, *header.file_bytes]
    ends = list(accumulate(sizes, lambda before, size: before + size + 1, initial=at))
    if min(sizes, default=0) < 0 or ends[-1] != len(body) or any(body[end - 1 : end] != b"\n" for end in ends):
        written = f"{header.events} events, {header.blobs} blobs and {len(header.file_bytes)} files were written"
        raise ContractError(f"{name}: {written}, which does not fit {len(body)} bytes")
    kept = [(content_hash(part), part) for part in (body[begin : end - 1] for begin, end in pairwise(ends))]
    said = set(_HASH.findall(body, 0, ends[0]))
    if lost := [hash_ for hash_, _ in kept if hash_.encode() not in said]:
        raise ContractError(f"{name}: no event refers to {lost[0]}: it holds other bytes than were written")
    return _Read(events_of(columns, data), dict(kept[: header.blobs]), dict(kept[header.blobs :]))


def _read_lines(header: Header, body: bytes, name: str) -> _Read:
    lines = body.split(b"\n")[:-1]
    if len(lines) != 1 + header.events + header.blobs:
        raise ContractError(f"{name}: {header.events} events and {header.blobs} blobs were written, {len(lines) - 1} lines are there")
    events = [_recorded(msgspec.json.decode(line, type=EventLine)) for line in lines[1 : 1 + header.events]]
    return _Read(events, dict(_blob(msgspec.json.decode(line, type=BlobLine), name) for line in lines[1 + header.events :]), {})


def read_bundle(path: Path) -> Bundle:
    """Read a file; see `unpack_bundle`."""
    return unpack_bundle(path.read_bytes(), str(path))


def _checked_body(data: bytes, name: str) -> bytes:
    """Return everything before the last line, which says what it is."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            body = file.read(BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ContractError(f"{name} is no exported run, or only a part of one: {error}; copy or export it again") from error
    if len(body) > BYTES_MAX:
        raise ContractError(f"{name} unpacks to more than {BYTES_MAX} bytes")
    end = body.rfind(b"\n", 0, -1) + 1
    if not end:
        raise ContractError(f"{name} is no exported run: it has no two lines")
    try:
        said = msgspec.json.decode(body[end:], type=LastLine).sha256
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ContractError(f"{name} is no exported run, or only a part of one: its last line is no checksum ({error}); copy or export it again") from error
    body = body[:end]
    if said != content_hash(body):
        raise ContractError(f"{name} is not what was exported: its checksum is {content_hash(body)}, expected {said}; copy or export it again")
    return body


def _recorded(line: EventLine) -> Recorded:
    task_id = TaskId(line.task_id) if line.task_id else None
    return Recorded(
        *(line.position, Stream(line.stream), line.stream_version, line.event_id, line.type, line.schema_version, line.data.encode(), line.occurred_us),
        *(RunId(line.run_id) if line.run_id else None, task_id, line.causation_id, line.trace_id, line.actor, line.writer),
    )


def _blob(line: BlobLine, name: str) -> tuple[Hash, bytes]:
    data = line.text.encode() if line.text is not None else b64decode(line.base64 or "", validate=True)
    if content_hash(data) != line.hash:
        raise ContractError(f"{name}: blob {line.hash} holds other bytes: {content_hash(data)}")
    return Hash(line.hash), data
