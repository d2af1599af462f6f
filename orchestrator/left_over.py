"""Money that dead workers left reserved: when their task is over, nobody will come to settle it, so the sweep does.

What the call cost in the end nobody can know; the ledger takes what was reserved, which is the upper bound, and the event says so. A task
that is not over is left alone: the worker that takes it over finds the call in its stream and settles it there.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from crewlog.events import faults
from crewlog.events.clock import Clock
from crewlog.events.store import ANY, AppendRequest, EventStore, OpenReservation, Recorded, Settlement, Write
from crewlog.schemas.errors import ContractError, NotAuthorised
from crewlog.schemas.ids import Stream, TaskId, reservation_id, settled_event_id, spend_stream
from crewlog.schemas.system_events import CallSettled
from crewlog.schemas.task_events import ModelCallStarted
from crewlog.schemas.usage import WORST_CASE, Price, Usage

AT_ONCE_MAX: Final = 500
"""Reservations looked at in one round, the oldest first."""

log = logging.getLogger(__name__)


async def settle_left_over(store: EventStore, clock: Clock, *, grace_s: float) -> int:
    """Settle reservations older than `grace_s` seconds whose task is over; returns how many there were. Doing it twice settles once.

    Raises:
        Unavailable: the log cannot be reached.
    """
    now_us = clock.now_us()
    found = await store.open_reservations(now_us - round(grace_s * 1e6), AT_ONCE_MAX, left_over=True)
    if not found:
        return 0
    streams: dict[Stream, list[Recorded]] = defaultdict(list)
    for recorded in await store.read_streams({Stream(reservation.stream): 0 for reservation in found}, types=frozenset({ModelCallStarted.__name__})):
        streams[recorded.stream].append(recorded)
    settled = 0
    for reservation in found:
        request = settlement_of(reservation, streams[Stream(reservation.stream)], now_us)
        if request is None:
            continue
        try:
            if faults.hook is not None:
                faults.hook("before_settlement")
            await store.append(request)
            if faults.hook is not None:
                faults.hook("after_settlement")
        except (ContractError, NotAuthorised) as error:  # it stays reserved and is looked at again; the others need not wait for that
            log.warning("reservation %s of %s is not settled: %s", reservation.reservation_id, reservation.stream, error)
        else:
            settled += 1
            log.info("reservation %s of %s is settled at its %d micro-USD", reservation.reservation_id, reservation.stream, reservation.amount_micro_usd)
    return settled


def settlement_of(reservation: OpenReservation, events: Sequence[Recorded], now_us: int) -> AppendRequest | None:
    """Return the append that settles a reservation, or None if it belongs to no model call of a task. Pure.

    Args:
        events: the beginnings of model calls of the stream it was made on.
    """
    run_id, task_id = reservation.run_id, reservation.task_id
    if run_id is None or task_id is None:
        return None
    call = _call_of(reservation, task_id, events)
    if call is None:
        return None
    price = Price(reservation.amount_micro_usd, WORST_CASE)
    event = CallSettled(task_id, run_id, call.call_id, call.provider, call.model, Usage(), price)
    return AppendRequest(
        writes=(Write(spend_stream(task_id), (event,), ANY),),
        event_ids=(settled_event_id(task_id, call.call_id),),
        occurred_us=now_us,
        run_id=run_id,
        task_id=task_id,
        settle=(Settlement(reservation.reservation_id, reservation.amount_micro_usd),),
    )


def _call_of(reservation: OpenReservation, task_id: TaskId, events: Sequence[Recorded]) -> ModelCallStarted | None:
    for recorded in events:
        event = recorded.event()
        if isinstance(event, ModelCallStarted) and reservation_id(task_id, event.call_id) == reservation.reservation_id:
            return event
    return None
