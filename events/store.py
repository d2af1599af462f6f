"""The log's port: one small protocol that the memory, Postgres and any other implementation obey, held to by one contract suite.

Versions count the events of a stream: the first event is version 1, a stream nobody wrote to is at version 0.
Positions order all events of all streams; they rise, with gaps. A reader of the whole log never passes a late commit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple, Protocol
from uuid import UUID

import msgspec

from crewlog.events.envelope import DataKey
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.codec import Event, Unknown, decode
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash, RunId, Stream, TaskId

NO_STREAM: Final = 0
"""Expected version of a stream that must not exist yet."""
ANY: Final = -1
"""No expected version: append behind whatever is there."""
RUN_CATEGORIES: Final = frozenset({"run", "task", "alert", "spend"})
"""Streams of one run: their events are of it, also when the append names none. `spend/<task>` is of the run of its task, and for those who may
write to that. All others are of no run, and their events are of a run only in an append that writes to a stream of it, too."""

EVENTS_PER_APPEND_MAX: Final = 1_000
STREAMS_PER_APPEND_MAX: Final = 128
EVENT_BYTES_MAX: Final = 256 * 1024
NAME_CHARS_MAX: Final = 600
"""Of a stream or a kind: in UTF-8 still within an entry of an index of Postgres."""
OCCURRED_US_END: Final = 253_402_300_800_000_000
"""The year 10000, where calendars of most programs end, in microseconds since 1970."""
SCOPES_PER_STREAM_MAX: Final = 16
SETTLEMENTS_PER_APPEND_MAX: Final = 256


class Write(NamedTuple):
    """Events for one stream. `kind` is the agent kind a task stream is opened for; it stays with the stream.

    `scopes` come with the first event of a stream (expected version NO_STREAM) and are bound to it for good: model calls recorded there
    are charged to all of them. A scope that is new gets the given limits; one that exists keeps its own.
    """

    stream: Stream
    events: Sequence[Event]
    expected: int = ANY
    kind: str | None = None
    scopes: Sequence[ScopeLimit] = ()


class Reservation(NamedTuple):
    """Money held back for a model call: its worst price. 0 for a call that is free or has no price; that touches no budget."""

    reservation_id: UUID
    amount_micro_usd: int


class Settlement(NamedTuple):
    """What became of a reservation: the price in fact, also when it is above the reserved amount; None gives the money back.

    Only the first one counts, so sending it again is harmless; but a price that comes after the money was given back is charged all the
    same: the call did happen. It is about a reservation made on the stream of the first write, or on task/<task> if that is spend/<task>;
    one that was never made there is left alone.
    """

    reservation_id: UUID
    actual_micro_usd: int | None


class AppendRequest(NamedTuple):
    """One atomic append to one or more streams: all of it is written, or none.

    `event_ids` has one id per event, in the order of the writes. They are made once, before the first try: the same request
    sent again is answered with the original versions and positions instead of being written twice.
    """

    writes: Sequence[Write]
    event_ids: Sequence[UUID]
    occurred_us: int
    run_id: RunId | None = None
    """That of the streams it writes to, see RUN_CATEGORIES; None for streams of no run."""
    task_id: TaskId | None = None
    causation_id: UUID | None = None
    trace_id: UUID | None = None
    reserve: Reservation | None = None
    """Charged to the scopes of the first write's stream. `ModelCallStarted` on a stream with scopes needs one, and to be in that write."""
    settle: Sequence[Settlement] = ()
    """Take effect before `reserve`, except the one of the same reservation."""
    limits: Sequence[ScopeLimit] = ()
    """New limits, each together with the `BudgetChanged` in `budget/<scope>` that says the same; whoever may write that may set them."""
    key: DataKey | None = None
    """A person's key: what is personal in the events is stored under it, see `personal_store`."""


class Appended(NamedTuple):
    """Where the events are, one entry per event. `duplicate`: they had been there before.

    Go on with these versions, never with `expected + n`: a duplicate answers with the original ones.
    """

    versions: Sequence[int]
    positions: Sequence[int]
    duplicate: bool = False
    warned: Sequence[str] = ()
    """Scopes of the first write's stream that are over their soft limit behind this append, if it reserves or settles more than 0."""


class BudgetState(NamedTuple):
    """A budget as it is, in micro-USD. Its hard limit holds for the sum of spent and reserved."""

    soft: int | None
    hard: int | None
    spent: int
    reserved: int


class ArchivedRun(NamedTuple):
    """A run whose events are in a file of this name."""

    run_id: RunId
    file: str


class OpenReservation(NamedTuple):
    """Money that is held back for a call nobody has settled; run and task are those of the append that reserved it."""

    reservation_id: UUID
    stream: Stream
    run_id: RunId | None
    task_id: TaskId | None
    amount_micro_usd: int
    since_us: int


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """One event as the log holds it."""

    position: int
    stream: Stream
    version: int
    event_id: UUID
    type: str
    schema_version: int
    data: bytes
    """The JSON as written, byte for byte."""
    occurred_us: int
    run_id: RunId | None = None
    task_id: TaskId | None = None
    causation_id: UUID | None = None
    trace_id: UUID | None = None
    actor: str = ""
    """Which process says it wrote this, as `<role>@<worker>`."""
    writer: str = ""
    """Which database login wrote this; the database itself fills it in."""
    erased_us: int = 0
    """When the key to what was personal in it was destroyed: `data` is what is left. 0 for any other event."""

    def event(self) -> Event | Unknown:
        """Decode the data.

        Raises:
            ContractError: it is not what its type says; the place in the log is named.
        """
        try:
            return decode(self.type, self.schema_version, self.data)
        except ContractError as error:
            raise ContractError(f"{self.stream} version {self.version} at position {self.position}: {error}") from error


class Page(NamedTuple):
    """A stretch of the whole log in position order, and the position up to which nothing can appear any more."""

    events: Sequence[Recorded]
    high_water: int


class Changes(NamedTuple):
    """Which runs have events behind a position, and the position up to which nothing can appear any more."""

    high_water: int
    open: Mapping[RunId, int]
    """Those that are open -> how many events all of their streams have together."""
    over: Collection[RunId]
    is_complete: bool = True
    """False: so much has happened that it was not looked at; `count_open` costs less."""


class EventStore(Protocol):
    """The log. All methods raise `Unavailable` when the server stays away longer than the call may wait."""

    async def append(self, request: AppendRequest) -> Appended:
        """Append atomically and durably.

        Raises:
            ConflictError: a stream is not at its expected version, or is closed (it has its terminal event).
            NotAuthorised: this login may not write such an event to such a stream, or settle what was reserved there.
            ContractError: the request is malformed, names another run than that of a stream it writes to, or some but not all of its
                event ids are known already.
            OverBudget: the reservation does not fit a scope; nothing is written.
        """

    async def read_streams(self, after: Mapping[Stream, int], *, types: frozenset[str] | None = None) -> Sequence[Recorded]:
        """Read several streams at once, each from behind the given version, in position order.

        Args:
            after: stream -> last version the caller knows (0 for all).
            types: only events of these types; None for all.
        """

    async def read_last(self, streams: Collection[Stream], count: int) -> Sequence[Recorded]:
        """Read the last events of several streams, at most `count` of each, in position order."""

    async def read_run(self, run_id: RunId) -> Sequence[Recorded]:
        """Read all streams of a run in position order."""

    async def read_all(self, after: int, limit: int) -> Page:
        """Read the whole log behind position `after`: at most `limit` events, never past a gap that may still fill."""

    async def open_runs(self, *, after: RunId | None, limit: int) -> Sequence[RunId]:
        """List runs without a terminal event in id order, behind `after`."""

    async def child_runs(self, run_ids: Sequence[RunId]) -> Sequence[RunId]:
        """List the runs whose submission names one of these runs, or a task of one, as what it came from."""

    async def archived_runs(self, *, came_from: Collection[RunId] = (), with_tasks: Collection[UUID] = ()) -> Sequence[ArchivedRun]:
        """List runs that went to files and are not back, in no order.

        Args:
            came_from: those that `child_runs` would list if they were here; programs of before did not say what an archived run came from.
            with_tasks: those that have one of these as a task, or as their own id.
        """

    async def count_open(self, *, after: RunId | None, limit: int) -> Mapping[RunId, int]:
        """List the same runs in the same order -> how many events all of their streams have together: a number that only grows."""

    async def changed_runs(self, after: int, *, positions_max: int) -> Changes:
        """List the runs to which something happened behind position `after`.

        Args:
            positions_max: with more positions than that behind `after` nothing but the watermark is returned.
        """

    async def put_blobs(self, blobs: Sequence[bytes], *, run_id: RunId | None = None) -> Sequence[Hash]:
        """Store blobs under the sha-256 of their bytes; what is there already is left alone. Write them before the event.

        Args:
            run_id: the run they are of: when its person has a key, they are stored under that. None for what no person wrote.
        """

    async def get_blobs(self, hashes: Sequence[Hash]) -> Mapping[Hash, bytes]:
        """Fetch blobs; what does not exist is missing from the answer."""

    async def set_timers(self, due: Mapping[RunId, int | None]) -> None:
        """Set when the orchestrator must look at a run again, in microseconds since 1970; None removes the timer.

        Timers are derived from the log: losing one only delays until the sweep finds the run.
        """

    async def take_due(self, now_us: int, limit: int) -> Sequence[RunId]:
        """Take runs whose timer is due, each by one caller only, and remove their timers."""

    async def budgets(self, scopes: Sequence[str]) -> Mapping[str, BudgetState]:
        """Look at budgets; a scope that nothing was ever bound to is missing from the answer."""

    async def budgets_with_room(self, needed: Mapping[str, int]) -> Collection[str]:
        """Return those of these scopes whose budget has room for so many micro-USD, or no hard limit."""

    async def budgets_of(self, stream: Stream) -> Mapping[str, BudgetState]:
        """Look at the budgets that what happens on a stream is charged to: those bound to it when it was opened, with their limits of now."""

    async def open_reservations(self, older_than_us: int, limit: int, *, left_over: bool = False) -> Sequence[OpenReservation]:
        """List reservations nobody has settled or given back, made before a time in microseconds since 1970, oldest first.

        Args:
            left_over: only those whose stream has ended. They are found at once; the others by a look at every stream.
        """

    async def close(self) -> None:
        """Write what is queued, then let go of the connections. Safe to call twice."""
