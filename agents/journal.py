"""The worker's pen: fold what happened, and append it in order behind the version this worker owns.

`record` applies an event to the state at once; `send` puts what was recorded on its way; `commit` waits until all of it is
durable. What has no effect on the world (a read, a simulated model) may run between `send` and `commit`: should the append
fail, nothing happened that anybody could see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from msgspec.structs import replace

from crewlog.agents.task_state import TaskState, evolve
from crewlog.events import faults
from crewlog.events.bills import BILL_TYPES, Bill, first_bill
from crewlog.events.clock import Clock
from crewlog.events.store import Appended, AppendRequest, EventStore, Reservation, Settlement, Write
from crewlog.schemas.errors import ConflictError, ContractError, OverBudget
from crewlog.schemas.ids import EventId, Hash, RunId, Stream, TaskId, corrected_event_id, reservation_id, settled_event_id, spend_stream, task_stream
from crewlog.schemas.payload import INLINE_BYTES_MAX, Payload, content_hash, pack
from crewlog.schemas.system_events import BillCorrected, CallSettled
from crewlog.schemas.task_events import ModelCallFailed, ModelCallFinished, ModelCallStarted, TaskEvent
from crewlog.schemas.usage import WORST_CASE


class _Blobs(NamedTuple):
    """Large texts to be stored before an append: what belongs to the run, and setups, which belong to no run."""

    own: list[bytes]
    shared: list[bytes]


@lru_cache(maxsize=64)
def _packed_setup(text: str) -> tuple[Payload, bytes]:
    payload, blob = pack(text, inline_max=0)
    assert blob is not None
    return payload, blob


class Journal:
    """State and unwritten events of one task held by one worker."""

    def __init__(self, store: EventStore, clock: Clock, state: TaskState) -> None:
        assert state.task is not None
        self.state, self.store = state, store
        self._store, self._clock = store, clock
        self._run_id, self._task_id = RunId(state.task.run_id), TaskId(state.task.task_id)
        self.stream: Stream = task_stream(self._task_id)
        self._sent = state.version
        self._pending: list[TaskEvent] = []
        self._begun: ModelCallStarted | None = None
        """The model call whose intent is pending."""
        self._beside: list[Write] = []
        self._blobs: list[bytes] = []
        self._shared: list[bytes] = []
        self._appends: list[asyncio.Task[Appended]] = []
        self._reserve: Reservation | None = None
        self._settle: list[Settlement] = []
        self._unsettled: dict[str, ModelCallFinished | ModelCallFailed] = {}
        self._warned: dict[str, None] = {}
        self._texts: dict[str, str] = {}

    @property
    def sent(self) -> int:
        """Version of the stream behind what was put on its way; what others wrote stands behind it, or in its place."""
        return self._sent

    def pack(self, text: str, *, inline_max: int = INLINE_BYTES_MAX) -> Payload:
        """Turn text into a payload; a large one is stored before the next append."""
        payload, blob = pack(text, inline_max=inline_max)
        if blob is not None and payload.ref is not None:
            self._blobs.append(blob)
            self._texts[payload.ref] = blob.decode()
        return payload

    def pack_setup(self, text: str) -> Payload:
        """Turn the JSON of a setup into a payload: most tasks of a kind share one, so it is stored once, not with each, and under no person's key."""
        payload, blob = _packed_setup(text)
        self._shared.append(blob)
        self._texts[str(payload.ref)] = text
        return payload

    def keep(self, data: bytes) -> Hash:
        """Store bytes before the next append, exactly as they are, and return their name."""
        self._blobs.append(data)
        return content_hash(data)

    def read(self, payload: Payload) -> str:
        """Return the text of a payload that `load` has fetched or this journal has packed."""
        return payload.inline if payload.inline is not None else self._texts[str(payload.ref)]

    async def load(self, payloads: Iterable[Payload]) -> None:
        """Fetch the texts of large payloads that are not known yet.

        Raises:
            ContractError: a blob the log refers to does not exist.
        """
        missing = list(dict.fromkeys(p.ref for p in payloads if p.ref is not None and p.ref not in self._texts))
        if not missing:
            return
        found = await self._store.get_blobs(missing)
        for ref in missing:
            if ref not in found:
                raise ContractError(f"{self.stream} refers to blob {ref}, which does not exist")
            self._texts[ref] = found[ref].decode()

    def record(self, event: TaskEvent, *beside: Write) -> None:
        """Apply an event to the state and queue it for the next append, together with what goes to other streams in the same one."""
        if isinstance(event, ModelCallStarted):
            self._part_calls()
            self._begun = event
        self.state = evolve(self.state, event)
        self._pending.append(event)
        self._beside += beside

    async def record_if(self, event: TaskEvent, claim: Write) -> bool:
        """Record an event and a claim in another stream together, and make both durable; False when that stream has moved on: then neither was
        recorded.

        Raises:
            ConflictError: somebody else wrote to the task.
        """
        await self.commit()
        state, sent = self.state, self._sent
        self.record(event, claim)
        try:
            await self.commit()
        except ConflictError as refused:
            if refused.stream != claim.stream:
                raise
            self.state, self._sent = state, sent
            return False
        return True

    async def is_limited(self) -> bool:
        """Say whether a hard limit holds for the task now: its own, or that of any budget it is charged to."""
        own = self.state.task.budget.hard_micro_usd if self.state.task is not None else None
        return own is not None or any(budget.hard is not None for budget in (await self._store.budgets_of(self.stream)).values())

    async def begin_call(self, event: ModelCallStarted) -> OverBudget | None:
        """Record a model call that costs money and make it durable together with its reservation.

        Returns:
            None when the money is reserved. Otherwise the limit that left no room: then the call was not recorded.
        """
        self._part_calls()
        state, pending, beside, settle, sent = self.state, list(self._pending), list(self._beside), list(self._settle), self._sent
        self.record(event)
        self._reserve = Reservation(reservation_id(self._task_id, event.call_id), event.reserved_micro_usd)
        try:
            await self.commit()
        except OverBudget as refused:
            # the append was refused as a whole: what was to be written before the call is still to be written
            self.state, self._pending, self._beside, self._settle, self._sent = state, pending, beside, settle, sent
            return refused
        return None

    def close_call(self, event: ModelCallFinished | ModelCallFailed, *, reserved_micro_usd: int) -> None:
        """Record what came of a model call, and settle what was reserved for it."""
        self.record(event)
        self._settle.append(Settlement(reservation_id(self._task_id, event.call_id), event.price.cost_micro_usd))
        if reserved_micro_usd or event.price.cost_micro_usd:
            self._unsettled[event.call_id] = event

    def take_warnings(self) -> list[str]:
        """Return budgets that were found to be over their soft limit since this was asked last, and that the log does not name yet."""
        warned, self._warned = self._warned, {}
        return [scope for scope in warned if scope not in self.state.warned]

    async def look(self) -> None:
        """Make sure that nobody else has written to the task behind what this worker sent.

        Raises:
            ConflictError: somebody has: this worker has lost the task and must stop.
        """
        if found := await self._store.read_streams({self.stream: self._sent}):
            raise ConflictError(self.stream, expected=self._sent, actual=found[-1].version)

    def send(self) -> None:
        """Start appending what was recorded, behind what was sent before."""
        if not self._pending:
            return
        request, blobs = self._take_pending()
        # One behind the other: were one refused, the version that the next expects might be there all the same, reached by somebody else's events.
        before = self._appends[-1] if self._appends else None
        self._appends.append(asyncio.create_task(self._append(request, blobs, before)))

    async def commit(self) -> None:
        """Append what was recorded and wait until everything sent is durable.

        Raises:
            ConflictError: somebody else wrote to the task: this worker has lost it and must stop.
        """
        if self._pending and not self._appends:
            results = [await self._append(*self._take_pending(), None)]  # nothing else is on its way: waiting takes no task of its own
        else:
            results = await self._arrived()
        if not results:
            return
        for appended in results:
            self._warned.update(dict.fromkeys(appended.warned))
        self._unsettled.clear()
        if faults.hook is not None:
            faults.hook("after_task_append")

    async def settle_elsewhere(self) -> None:
        """Settle calls whose outcome found no place in the task's stream: it was closed, or another worker has the task.

        Who thought this worker dead may have settled a call as a worst case; what it knows of the bill takes that place.
        """
        for call_id, event in self._unsettled.items():
            if await self._bill_of(call_id) is None:
                settled = CallSettled(self._task_id, self._run_id, call_id, event.provider, event.model, event.usage, event.price)
                settlement = Settlement(reservation_id(self._task_id, call_id), event.price.cost_micro_usd)
                await self._append_beside(settled, settled_event_id(self._task_id, call_id), settlement)
            price, bill = event.price, await self._bill_of(call_id)  # somebody may have been faster
            if bill is None or bill.price.source != WORST_CASE or price.source == WORST_CASE or price.cost_micro_usd is None:
                continue
            known = (event.provider, event.model, event.usage, price, bill.price.cost_micro_usd or 0)
            await self._append_beside(BillCorrected(self._task_id, self._run_id, call_id, *known), corrected_event_id(self._task_id, call_id))
        self._unsettled.clear()

    async def _bill_of(self, call_id: str) -> Bill | None:
        return first_bill(await self._store.read_streams({self.stream: 0, spend_stream(self._task_id): 0}, types=BILL_TYPES), call_id)

    async def _append_beside(self, event: CallSettled | BillCorrected, event_id: EventId, *settle: Settlement) -> None:
        write = Write(spend_stream(self._task_id), (event,))
        await self._store.append(AppendRequest((write,), (event_id,), self._clock.now_us(), self._run_id, self._task_id, settle=settle))

    async def settle_open(self, given_up: Iterable[ModelCallFailed]) -> None:
        """Settle the calls that a closed stream holds without an outcome: at what came of them, if this worker knows, or as given up.

        Args:
            given_up: one for each of those calls.
        """
        self._unsettled = {event.call_id: self._unsettled.get(event.call_id, event) for event in given_up}
        await self.settle_elsewhere()

    def billed(self, given_up: ModelCallFailed) -> ModelCallFailed:
        """Return the record of a call whose outcome was lost, with what it really cost if that is known here."""
        known = self._unsettled.get(given_up.call_id)
        return given_up if known is None else replace(given_up, usage=known.usage, price=known.price)

    async def abandon(self) -> None:
        """Forget what was not sent, and let what was sent come to its end."""
        self._pending.clear()
        self._begun = None
        self._beside.clear()
        self._settle.clear()
        self._reserve = None
        appends, self._appends = self._appends, []
        await asyncio.gather(*appends, return_exceptions=True)

    def _part_calls(self) -> None:
        """Send what is pending if a model call is in it: each has a reservation of its own, and so has each append."""
        if self._begun is not None:
            self.send()

    def _take_pending(self) -> tuple[AppendRequest, _Blobs]:
        """Make the next append of what was recorded, and the blobs that must be stored before it."""
        events, self._pending = self._pending, []
        begun, self._begun = self._begun, None
        settle, self._settle = self._settle, []
        reserve, self._reserve = self._reserve, None
        blobs, self._blobs, self._shared = _Blobs(self._blobs, self._shared), [], []
        writes, self._beside = (Write(self.stream, events, self._sent), *self._beside), []
        if begun is not None and reserve is None:  # free: simulated, so it is not even durable before its outcome
            reserve = Reservation(reservation_id(self._task_id, begun.call_id), 0)
        request = AppendRequest(
            writes=writes,
            event_ids=[self._clock.new_id() for write in writes for _ in write.events],
            occurred_us=self._clock.now_us(),
            run_id=self._run_id,
            task_id=self._task_id,
            reserve=reserve,
            settle=settle,
        )
        self._sent += len(events)
        return request, blobs

    async def _arrived(self) -> list[Appended]:
        """Send what is left, wait for all that is under way, and return where it is; raises the first failure."""
        self.send()
        if self._appends:
            await asyncio.wait(self._appends)  # who is cancelled here leaves them on their way, for the next commit to wait for
        appends, self._appends = self._appends, []
        for error in [append.exception() for append in appends]:  # of all: one that nobody asks for would be complained about
            if error is not None:
                raise error
        return [append.result() for append in appends]

    async def _append(self, request: AppendRequest, blobs: _Blobs, before: asyncio.Task[Appended] | None) -> Appended:
        if any(blobs):
            if faults.hook is not None:
                faults.hook("before_blobs_stored")
            if blobs.shared:
                await self._store.put_blobs(blobs.shared)
            if blobs.own:
                await self._store.put_blobs(blobs.own, run_id=self._run_id)
            if faults.hook is not None:
                faults.hook("after_blobs_stored")
        if before is not None:
            await before
        write = request.writes[0]
        if faults.hook is not None:
            faults.hook("before_task_append")
        appended = await self._store.append(request)
        if appended.versions[0] != write.expected + 1:
            raise ConflictError(write.stream, expected=write.expected, actual=appended.versions[0] - 1)
        return appended
