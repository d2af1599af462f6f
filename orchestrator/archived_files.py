"""Files that runs read and made. Beside archives each is kept once, under its hash, in the folder `files`, however many runs refer to it; an exported
run has its own in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from crewlog.events.artifacts import ArtifactStore
from crewlog.events.store import Recorded
from crewlog.orchestrator.bundle import BYTES_MAX, Bundle
from crewlog.orchestrator.whole_file import write_durably
from crewlog.schemas.errors import ContractError, NotFound, TerminalError
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash

FOLDER: Final = "files"
_HEX: Final = frozenset("0123456789abcdef")


def files_of(events: Iterable[Recorded]) -> dict[Hash, str]:
    """Return the files that events refer to: hash -> a name it goes by."""
    found: dict[Hash, str] = {}
    for recorded in events:
        if b'"hash"' in recorded.data:
            found |= _refs(msgspec.json.decode(recorded.data))
    return found


def _refs(value: Any) -> Iterator[tuple[Hash, str]]:
    """Find `ArtifactRef` and `Attachment`, wherever they stand: both say name, hash and size."""
    if isinstance(value, dict):
        hash_ = value.get("hash")
        if isinstance(value.get("name"), str) and isinstance(value.get("size"), int) and isinstance(hash_, str) and len(hash_) == 64 and _HEX.issuperset(hash_):
            yield Hash(hash_), value["name"]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _refs(item)


async def keep_files(artifacts: ArtifactStore, files: Mapping[Hash, str], folder: Path) -> None:
    """Write files beside an archive, those that are not there, and read each back.

    Raises:
        ContractError: the store does not have one of them, or it is damaged there.
        OSError: one cannot be written.
    """
    beside = folder / FOLDER
    for hash_, name in files.items():
        path = beside / hash_
        if path.is_file() and content_hash(path.read_bytes()) == hash_:
            continue
        try:
            data = await artifacts.get(hash_)
        except (NotFound, TerminalError) as error:
            raise ContractError(f"its file {name!r} cannot be kept: {error}\narchive it without its files all the same with --without-files") from error
        beside.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)
        if content_hash(path.read_bytes()) != hash_:
            raise ContractError(f"{path} does not hold what was written")


async def with_files(artifacts: ArtifactStore, bundle: Bundle) -> tuple[Bundle, list[str]]:
    """Put the files that a run read and made into its bundle; returns also what is wrong with those that the store cannot give.

    Raises:
        ContractError: they are more than fit into one file.
    """
    found: dict[Hash, bytes] = {}
    problems = []
    size = 0
    for hash_, name in files_of(bundle.events).items():
        try:
            found[hash_] = await artifacts.get(hash_)
        except (NotFound, TerminalError) as error:
            problems.append(f"its file {name!r} is left out: {error}")
            continue
        size += len(found[hash_])
        if size > BYTES_MAX:
            raise ContractError(f"the files of run {bundle.run_id} are more than the {BYTES_MAX} bytes that fit: leave them out (--without-files)")
    return bundle._replace(files=found), problems


class Restored(NamedTuple):
    """How many files were put back into the store, and how many neither the bundle nor its folder has."""

    put: int
    missing: int


async def restore_files(artifacts: ArtifactStore, bundle: Bundle, folder: Path) -> Restored:
    """Put the files of a run back into the store: those in its bundle, else those that lie beside it.

    Raises:
        ContractError: one that lies there holds other bytes.
        Unavailable: the store cannot be written.
    """
    files = files_of(bundle.events)
    put = 0
    for hash_, name in files.items():
        beside = folder / FOLDER / hash_
        data = bundle.files.get(hash_)
        if data is None and beside.is_file():
            data = beside.read_bytes()
            if content_hash(data) != hash_:
                raise ContractError(f"{beside} is not the file {name!r}: its bytes have another hash")
        if data is not None:
            await artifacts.put(name, data)
            put += 1
    return Restored(put, len(files) - put)
