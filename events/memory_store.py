"""The log in memory: the same behaviour as Postgres, for tests and simulations.

Several stores may share one `MemoryLog`, as processes share a database, each with a role of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from crewlog.events.append_call import another_run, beside_no_run, partly_known, unreserved
from crewlog.events.append_request import encode_request
from crewlog.events.appender import OnCommit
from crewlog.events.bills import correction_in, first_bill, settled_otherwise
from crewlog.events.grants import GRANTS, Grant, owner_grants
from crewlog.events.memory_ledger import MemoryLedger
from crewlog.events.person_keys_memory import KeyTables, MemoryPersonKeys
from crewlog.events.store import RUN_CATEGORIES, Appended, AppendRequest, ArchivedRun, BudgetState, Changes, OpenReservation, Page, Recorded, Write
from crewlog.schemas.codec import type_name
from crewlog.schemas.errors import ConflictError, ContractError, NotAuthorised, Unavailable
from crewlog.schemas.ids import Hash, RunId, Stream, TaskId, category, document_stream, run_stream, task_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.system_events import BillCorrected, CallSettled, DocumentErased, DocumentIngested, RunArchived
from crewlog.schemas.task_events import TERMINAL_TYPES, ModelCallStarted
from crewlog.schemas.usage import WORST_CASE, Price

OWNER = "owner"
"""The role that may write everything, like the login that owns a database."""


@dataclass(slots=True)
class _Stream:
    run_id: RunId | None
    kind: str | None
    scopes: tuple[str, ...] = ()
    events: list[Recorded] = field(default_factory=list)
    closed: bool = False


@dataclass(slots=True)
class MemoryLog:
    """What a database would hold."""

    events: list[Recorded] = field(default_factory=list)
    by_id: dict[UUID, Recorded] = field(default_factory=dict)
    streams: dict[Stream, _Stream] = field(default_factory=dict)
    blobs: dict[Hash, bytes] = field(default_factory=dict)
    timers: dict[RunId, int] = field(default_factory=dict)
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    key_tables: KeyTables = field(default_factory=KeyTables)

    def is_open(self, run_id: UUID) -> bool:
        """Say whether a run, or a task of it, has not ended."""
        return any(stream.run_id == run_id and not stream.closed for name, stream in self.streams.items() if category(name) in ("run", "task"))

    def first_stream(self, key_id: UUID) -> Stream | None:
        """Say where the key of a run, or of an event outside of runs, was used first."""
        run = run_stream(RunId(key_id))
        return run if run in self.streams else self.by_id[key_id].stream if key_id in self.by_id else None

    def drop_erased_text(self, tenant: str, content: Hash) -> bool:
        """Delete the text of a document that is erased, unless another document has the same text."""
        documents = {name: stream.events[-1].event() for name, stream in self.streams.items() if category(name) == "doc"}
        own = document_stream(tenant, content)
        if not isinstance(documents.get(own), DocumentErased):
            raise ContractError(f"the text of document {content} of tenant {tenant} stays: the log does not say that it is erased")
        text = next(e.text for recorded in reversed(self.streams[own].events) if isinstance(e := recorded.event(), DocumentIngested))
        if any(isinstance(last, DocumentIngested) and last.text == text for last in documents.values()):
            return False
        return self.blobs.pop(text, None) is not None


def restored(events: Iterable[Recorded], blobs: Iterable[bytes]) -> MemoryLog:
    """Make a log of events that were recorded elsewhere: positions, versions, ids and times stay. To be read; nothing is charged or due in it.

    Args:
        events: in the order of their positions, each stream without gaps.
    """
    log = MemoryLog(blobs={content_hash(blob): blob for blob in blobs})
    for recorded in events:
        stream = log.streams.setdefault(recorded.stream, _Stream(recorded.run_id, None))
        stream.events.append(recorded)
        stream.closed = stream.closed or recorded.type in TERMINAL_TYPES
        log.events.append(recorded)
        log.by_id[recorded.event_id] = recorded
    return log


class MemoryStore:
    """`EventStore` over a `MemoryLog`. Each method is one step: nothing else runs in between."""

    def __init__(self, log: MemoryLog | None = None, *, role: str = OWNER, actor: str = "", on_commit: OnCommit | None = None) -> None:
        """Open the log.

        Args:
            log: share it between stores; None makes a new one.
            role: a login of `crewlog.events.grants`, whose rights are enforced as the database does.
            actor: who this process says it is.
            on_commit: called after each append with the highest new position.
        """
        self.log = log if log is not None else MemoryLog()
        self._role, self._actor, self._on_commit = role, actor or role, on_commit
        self._grants = {grant.category: grant for grant in (*GRANTS, *owner_grants(OWNER)) if grant.role == role}
        self._closed = False

    @property
    def person_keys(self) -> MemoryPersonKeys:
        """Where persons' keys are kept."""
        return MemoryPersonKeys(self.log.key_tables, self.log.first_stream, self.log.is_open, self.log.drop_erased_text)

    async def append(self, request: AppendRequest) -> Appended:
        documents = encode_request(request).documents
        if self._closed:
            raise Unavailable(f"append to {request.writes[0].stream}: this process is closing its log")
        if (correction := correction_in(request)) is not None:
            return self._correct(request, correction, documents)
        self._check_opens_run(request)
        for write in request.writes:
            self._authorise(write)
        self._authorise_settlements(request)
        if known := self._known(request):
            return known
        for write in request.writes:
            self._check(write, request.run_id)
        self._check_is_of_run(request)
        self._book(request)
        return self._written(request, documents)

    async def read_streams(self, after: Mapping[Stream, int], *, types: frozenset[str] | None = None) -> Sequence[Recorded]:
        found = [
            event
            for name, version in after.items()
            if (stream := self.log.streams.get(name))
            for event in stream.events[version:]
            if types is None or event.type in types
        ]
        return sorted(found, key=_position)

    async def read_last(self, streams: Collection[Stream], count: int) -> Sequence[Recorded]:
        found = [event for name in streams if (stream := self.log.streams.get(name)) for event in stream.events[-count:]]
        return sorted(found, key=_position)

    async def read_run(self, run_id: RunId) -> Sequence[Recorded]:
        return sorted((event for stream in self.log.streams.values() if stream.run_id == run_id for event in stream.events), key=_position)

    async def read_all(self, after: int, limit: int) -> Page:
        start = bisect_right(self.log.events, after, key=_position)
        return Page(self.log.events[start : start + limit], self.log.events[-1].position if self.log.events else 0)

    async def open_runs(self, *, after: RunId | None, limit: int) -> Sequence[RunId]:
        found = sorted(
            stream.run_id
            for name, stream in self.log.streams.items()
            if not stream.closed and stream.run_id is not None and category(name) == "run" and (after is None or stream.run_id > after)
        )
        return found[:limit]

    async def child_runs(self, run_ids: Sequence[RunId]) -> Sequence[RunId]:
        parents = self._run_and_task_ids(run_ids)
        submitted = (stream.events[0] for name, stream in self.log.streams.items() if category(name) == "run" and stream.events)
        return [RunId(first.run_id) for first in submitted if first.run_id is not None and _parent(first) in parents]

    async def archived_runs(self, *, came_from: Collection[RunId] = (), with_tasks: Collection[UUID] = ()) -> Sequence[ArchivedRun]:
        parents = self._run_and_task_ids(came_from)
        owners = {stream.run_id for one in with_tasks for name in (task_stream(TaskId(one)), run_stream(RunId(one))) if (stream := self.log.streams.get(name))}
        said = [recorded.event() for name, stream in self.log.streams.items() if category(name) == "archive" for recorded in stream.events]
        told = {event.run_id: event for event in said if isinstance(event, RunArchived)}
        found = {run_id: last.file for run_id, last in told.items() if str(last.parent_task_id) in parents or run_id in owners or run_id in with_tasks}
        return [ArchivedRun(run_id, file) for run_id, file in found.items() if run_stream(run_id) not in self.log.streams]

    def _run_and_task_ids(self, run_ids: Collection[RunId]) -> set[str]:
        tasks = {name.removeprefix("task/") for name, stream in self.log.streams.items() if stream.run_id in run_ids and category(name) == "task"}
        return tasks.union(map(str, run_ids))

    async def count_open(self, *, after: RunId | None, limit: int) -> Mapping[RunId, int]:
        found = dict.fromkeys(await self.open_runs(after=after, limit=limit), 0)
        for stream in self.log.streams.values():
            if stream.run_id in found:
                found[stream.run_id] += len(stream.events)
        return found

    async def changed_runs(self, after: int, *, positions_max: int) -> Changes:
        page = await self.read_all(after, positions_max + 1)
        if page.high_water - after > positions_max:
            return Changes(page.high_water, {}, [], is_complete=False)
        changed = {RunId(recorded.run_id) for recorded in page.events if recorded.run_id is not None and run_stream(RunId(recorded.run_id)) in self.log.streams}
        over = [run_id for run_id in changed if self.log.streams[run_stream(run_id)].closed]
        found = dict.fromkeys(changed.difference(over), 0)
        for stream in self.log.streams.values():
            if stream.run_id in found:
                found[stream.run_id] += len(stream.events)
        return Changes(page.high_water, found, over)

    async def put_blobs(self, blobs: Sequence[bytes], *, run_id: RunId | None = None) -> Sequence[Hash]:  # noqa: ARG002  (stored for all runs alike)
        hashes = [content_hash(blob) for blob in blobs]
        self.log.blobs.update(zip(hashes, blobs, strict=True))
        return hashes

    async def get_blobs(self, hashes: Sequence[Hash]) -> Mapping[Hash, bytes]:
        return {hash_: self.log.blobs[hash_] for hash_ in hashes if hash_ in self.log.blobs}

    async def set_timers(self, due: Mapping[RunId, int | None]) -> None:
        for run_id, due_us in due.items():
            if due_us is None:
                self.log.timers.pop(run_id, None)
            else:
                self.log.timers[run_id] = due_us

    async def take_due(self, now_us: int, limit: int) -> Sequence[RunId]:
        due = sorted((due_us, run_id) for run_id, due_us in self.log.timers.items() if due_us <= now_us)[:limit]
        for _, run_id in due:
            del self.log.timers[run_id]
        return [run_id for _, run_id in due]

    async def budgets(self, scopes: Sequence[str]) -> Mapping[str, BudgetState]:
        return self.log.ledger.states(scopes)

    async def budgets_with_room(self, needed: Mapping[str, int]) -> Collection[str]:
        states = self.log.ledger.states(tuple(needed))
        return {scope for scope, found in states.items() if found.hard is None or found.spent + found.reserved + needed[scope] <= found.hard}

    async def budgets_of(self, stream: Stream) -> Mapping[str, BudgetState]:
        known = self.log.streams.get(stream)
        return self.log.ledger.states(known.scopes if known is not None else ())

    async def open_reservations(self, older_than_us: int, limit: int, *, left_over: bool = False) -> Sequence[OpenReservation]:
        found = (
            reservation
            for reservation in self.log.ledger.open_reservations()
            if reservation.since_us < older_than_us and (not left_over or self.log.streams[reservation.stream].closed)
        )
        return sorted(found, key=lambda reservation: (reservation.since_us, reservation.reservation_id))[:limit]

    async def close(self) -> None:
        self._closed = True

    def _check_opens_run(self, request: AppendRequest) -> None:
        new = (write.stream for write in request.writes if write.stream.startswith("run/") and write.stream not in self.log.streams)
        if request.run_id is None and "run" in self._grants and (stream := next(new, None)) is not None:
            raise ContractError(f"append to {stream}: opening a run needs the run's id")

    def _authorise(self, write: Write) -> None:
        grant: Grant | None = self._grants.get(category(write.stream)) if "/" in write.stream else None
        stream = self.log.streams.get(write.stream)
        if grant is None or not (grant.opens if stream is None else grant.covers(stream.kind)) or not self._covers_task_of(write.stream):
            raise NotAuthorised(self._actor, "append", reason=f"{write.stream} is unknown or not for {self._role}")
        for event in write.events:
            if type_name(event) not in grant.types:
                raise NotAuthorised(self._actor, "append", reason=f"{type_name(event)} on {write.stream}")

    def _covers_task_of(self, name: Stream) -> bool:
        """Say whether what a stream stands beside is a task that this login may write to; any other stream stands beside none."""
        if category(name) != "spend":
            return True
        of_task, task = self._grants.get("task"), self.log.streams.get(Stream(f"task/{name.removeprefix('spend/')}"))
        return of_task is not None and task is not None and of_task.covers(task.kind)

    def _authorise_settlements(self, request: AppendRequest) -> None:
        for settlement in request.settle:
            stream = self.log.ledger.stream_of(settlement, request)
            grant = self._grants.get(category(stream)) if stream else None
            if stream and (grant is None or not grant.covers(self.log.streams[stream].kind)):
                raise NotAuthorised(self._actor, "append", reason=f"reservation {settlement.reservation_id} of {stream} is not for {self._role}")

    def _known(self, request: AppendRequest) -> Appended | None:
        """Answer a request some of whose event ids are in the log: duplicates come before versions."""
        meant = [(write.stream, type_name(event)) for write in request.writes for event in write.events]
        known = [self.log.by_id.get(event_id) for event_id in request.event_ids]
        if not any(known):
            return None
        if not all(event is not None and (event.stream, event.type) == one for event, one in zip(known, meant, strict=True)):
            raise partly_known(request)
        warned = self.log.ledger.warned(request, self.log.streams[request.writes[0].stream].scopes)
        return Appended([event.version for event in known if event], [event.position for event in known if event], duplicate=True, warned=warned)

    def _check(self, write: Write, run_id: RunId | None) -> None:
        stream = self.log.streams.get(write.stream)
        actual = len(stream.events) if stream else 0
        closed = stream is not None and stream.closed
        if closed or write.expected not in (-1, actual):
            raise ConflictError(write.stream, expected=write.expected, actual=actual, closed=closed)
        if run_id is not None and category(write.stream) in RUN_CATEGORIES:
            own = self._run_of(write.stream, run_id)
            if own != run_id:
                raise another_run(write.stream, own, run_id)

    def _run_of(self, name: Stream, opener: RunId | None) -> RunId | None:
        """Return the run that events of a stream are of. On a new stream, and on one of no run, it is that of whoever appends them."""
        if category(name) == "spend":
            task = self.log.streams.get(Stream(f"task/{name.removeprefix('spend/')}"))
            return task.run_id if task is not None else None
        stream = self.log.streams.get(name)
        return stream.run_id if stream is not None and category(name) in RUN_CATEGORIES else opener

    def _check_is_of_run(self, request: AppendRequest) -> None:
        if request.run_id is not None and not any(category(write.stream) in RUN_CATEGORIES for write in request.writes):
            raise beside_no_run(request.writes[0].stream, request.run_id)

    def _book(self, request: AppendRequest) -> None:
        """Reserve and settle, if what is spent on streams with scopes is reserved as it must be."""
        for write in request.writes:
            scopes = self._scopes(write)
            calls = sum(isinstance(event, ModelCallStarted) for event in write.events)
            if scopes and calls and (request.reserve is None or calls > 1 or write is not request.writes[0]):
                raise unreserved(write.stream)
        opened = [limit for write in request.writes if write.stream not in self.log.streams for limit in write.scopes]
        first = request.writes[0]
        self.log.ledger.book(request._replace(run_id=self._run_of(first.stream, request.run_id)), self._scopes(first), opened)

    def _correct(self, request: AppendRequest, event: BillCorrected, documents: Sequence[str]) -> Appended:
        """Do what `es.correct_bill` does."""
        spend, of_task = self._grants.get("spend"), self._grants.get("task")
        stream = self.log.streams.get(task_stream(event.task_id))
        if spend is None or CallSettled.__name__ not in spend.types or of_task is None or stream is None or not of_task.covers(stream.kind):
            raise NotAuthorised(self._actor, "append", reason=f"task {event.task_id} is unknown or not for this login")
        if request.run_id not in (None, stream.run_id):
            raise another_run(request.writes[0].stream, stream.run_id, request.run_id)
        if known := self._known(request):
            return known
        beside = self.log.streams.get(request.writes[0].stream)
        recorded = sorted((*stream.events, *(beside.events if beside else ())), key=_position)
        bill = first_bill(recorded, event.call_id)
        again = any(isinstance(e := r.event(), BillCorrected) and e.call_id == event.call_id for r in recorded if r.type == BillCorrected.__name__)
        if again or bill is None or bill.price != Price(event.settled_micro_usd, WORST_CASE):
            raise settled_otherwise(event)
        if not self.log.ledger.correct(stream.scopes, (event.price.cost_micro_usd or 0) - event.settled_micro_usd):
            raise settled_otherwise(event)
        return self._written(request, documents)

    def _scopes(self, write: Write) -> tuple[str, ...]:
        stream = self.log.streams.get(write.stream)
        return stream.scopes if stream else tuple(limit.scope for limit in write.scopes)

    def _written(self, request: AppendRequest, documents: Sequence[str]) -> Appended:
        written = self._write(request, documents)
        if self._on_commit is not None:
            self._on_commit(written.positions[-1])
        return written

    def _write(self, request: AppendRequest, documents: Sequence[str]) -> Appended:
        versions: list[int] = []
        positions: list[int] = []
        for write in request.writes:
            run_id = self._run_of(write.stream, request.run_id)
            of_run = run_id if category(write.stream) in RUN_CATEGORIES else None
            stream = self.log.streams.setdefault(write.stream, _Stream(of_run, write.kind, self._scopes(write)))
            for event in write.events:
                at = len(versions)
                recorded = Recorded(
                    *(len(self.log.events) + 1, write.stream, len(stream.events) + 1, request.event_ids[at], type_name(event), event.schema_version),
                    *(documents[at].encode(), request.occurred_us, run_id, request.task_id, request.causation_id, request.trace_id),
                    *(self._actor, self._role),
                )
                stream.events.append(recorded)
                self.log.events.append(recorded)
                self.log.by_id[recorded.event_id] = recorded
                versions.append(recorded.version)
                positions.append(recorded.position)
            stream.closed = stream.closed or type_name(write.events[-1]) in TERMINAL_TYPES
        return Appended(versions, positions, warned=self.log.ledger.warned(request, self._scopes(request.writes[0])))


def _position(event: Recorded) -> int:
    return event.position


def _parent(first: Recorded) -> str | None:
    if first.type != RunSubmitted.__name__:
        return None
    parent: str | None = msgspec.json.decode(first.data)["task"].get("parent_task_id")
    return parent
