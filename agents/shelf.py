"""The documents one task may read: those attached to it, documents that earlier tasks made, and the tenant's library."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

from crewlog.agents.documents import DOCUMENT_BYTES_MAX, document_type
from crewlog.agents.files import TaskFiles
from crewlog.agents.ingest import ingest
from crewlog.agents.knowledge import DocumentInfo, Knowledge
from crewlog.agents.spec import ToolContext, ToolFailed
from crewlog.events.clock import Clock
from crewlog.events.store import EventStore
from crewlog.schemas.errors import ConfigError, ContractError, Unavailable
from crewlog.schemas.ids import Hash
from crewlog.schemas.text import clean, shorten
from crewlog.schemas.values import ArtifactRef

INDEX_WAIT_S: Final = 20.0
"""How long a tool waits for documents it has just put into the log to become searchable, in seconds."""


class Shelf:
    """Documents under the names this task knows them by. Attached ones keep their file names, whatever they were first ingested as."""

    def __init__(self, attached: Iterable[tuple[str, DocumentInfo]], library: Iterable[DocumentInfo], unreadable: Iterable[tuple[str, str]] = ()) -> None:
        self.unreadable = tuple(unreadable)
        self._by_name: dict[str, DocumentInfo] = {}
        self._names: dict[Hash, str] = {}
        for name, info in attached:
            self._add(name, info)
        self.attached: tuple[Hash, ...] = tuple(self._names)
        for info in library:
            self._add(info.name, info)

    def _add(self, name: str, info: DocumentInfo) -> None:
        if info.document not in self._names:
            name = name if name not in self._by_name else f"{name}@{info.document[:8]}"
            self._by_name[name] = info
            self._names[info.document] = name

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def has_library(self) -> bool:
        """Whether there is anything besides the attached documents."""
        return len(self._by_name) > len(self.attached)

    def items(self) -> list[tuple[str, DocumentInfo]]:
        """Return names and documents, attached ones first."""
        return list(self._by_name.items())

    def name_of(self, document: Hash) -> str | None:
        """Return the name of a document in this task, or None when the task may not read it."""
        return self._names.get(document)

    def find(self, name: str) -> DocumentInfo:
        """Return the document of that name.

        Raises:
            ToolFailed: there is none; the text names similar ones.
        """
        info = self._by_name.get(name) or self._by_name.get(name.strip())
        if info is None:
            why = next((f": it is attached, but {reason}" for unreadable, reason in self.unreadable if unreadable == name), "")
            near = difflib.get_close_matches(name, self._by_name, n=5, cutoff=0.4) or list(self._by_name)[:5]
            raise ToolFailed(
                f"there is no document {shorten(clean(name), 200)!r}{why}; " + (f"did you mean {', '.join(near)}?" if near else "there are no documents at all")
            )
        return info


async def open_shelf(context: ToolContext, *, store: EventStore, knowledge: Knowledge, clock: Clock) -> Shelf:
    """Collect a task's documents, and ingest those of its files the index does not know yet.

    Raises:
        ToolFailed: the index does not catch up in time.
        Unavailable: the log or the index cannot be reached.
    """
    tenant = context.task.tenant
    files = TaskFiles(context)
    wanted: dict[Hash, tuple[str, ArtifactRef]] = {}
    for name in files.names():
        ref = files.find(name)
        if document_type(ref.name, ref.media_type):
            wanted.setdefault(ref.hash, (name, ref))
    known = {info.document: info for info in await knowledge.documents(tenant, list(wanted))} if wanted else {}
    unreadable: list[tuple[str, str]] = []
    position = 0
    for hash_, (name, ref) in wanted.items():
        if hash_ not in known:
            try:
                position = max(position, await _ingest(files, name, ref, tenant=tenant, store=store, clock=clock))
            except (ToolFailed, ContractError, ConfigError) as error:
                unreadable.append((name, str(error)))
    if position:
        await _wait(knowledge, position)
        known = {info.document: info for info in await knowledge.documents(tenant, list(wanted))}
    # a page that was fetched is known by its URL, whatever its file is called
    attached = [(info.name if is_url(info.name) else name, info) for hash_, (name, _) in wanted.items() if (info := known.get(hash_))]
    return Shelf(attached, await knowledge.documents(tenant, None), unreadable)


def is_url(name: str) -> bool:
    """Tell whether a document was fetched from the web: file names are relative paths and hold no `//`."""
    return name.startswith(("https://", "http://"))


async def _ingest(files: TaskFiles, name: str, ref: ArtifactRef, *, tenant: str, store: EventStore, clock: Clock) -> int:
    data = await files.read(name, bytes_max=DOCUMENT_BYTES_MAX)
    return (await ingest(store, clock, tenant=tenant, name=ref.name, data=data, media_type=ref.media_type, library=False)).position


async def _wait(knowledge: Knowledge, position: int) -> None:
    try:
        await knowledge.wait_indexed(position, INDEX_WAIT_S)
    except Unavailable as error:
        raise ToolFailed(f"the task's documents are in the log but cannot be searched yet: {error}. Call the tool again in a moment") from error
