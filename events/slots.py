"""Run queued deliveries: at most so many at once, each in a task of its own, each ended exactly once.

Shared by the NATS and the memory bus, so that both treat a failing handler, a poison message and a stop alike:

- A handler that raises hands its message back with a delay that doubles with each delivery.
- A message that was handed out `deliver_max` times without an end is moved to the dead letters, with the reason.
- On stop, handlers still running after the grace are cancelled and their messages handed back at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from crewlog.events.bus import Delivery, DeliveryHandler
from crewlog.schemas import subjects
from crewlog.schemas.errors import OrchestrationError

NAK_DELAY_MAX_S: Final = 30.0

_log = logging.getLogger(__name__)

DeadLetter = Callable[[Delivery, str], Awaitable[None]]
"""Keeps a copy of a delivery with the reason."""


class OpenDelivery(Delivery, Protocol):
    """A delivery that knows whether it has been ended."""

    @property
    def ended(self) -> bool: ...


class Slots:
    """The deliveries being handled right now."""

    def __init__(self, handler: DeliveryHandler, slots: int, *, deliver_max: int | None, dead_letter: DeadLetter, freed: Callable[[], None]) -> None:
        """Prepare empty slots.

        Args:
            deliver_max: hand-outs after which a message goes to the dead letters; None means never.
            freed: called without arguments whenever a slot has become free.
        """
        self._handler = handler
        self._slots = slots
        self._deliver_max = deliver_max
        self._dead_letter = dead_letter
        self._freed = freed
        self._running: dict[asyncio.Task[None], OpenDelivery] = {}

    @property
    def free(self) -> int:
        """How many more deliveries may be taken."""
        return self._slots - len(self._running)

    def running(self) -> list[OpenDelivery]:
        """Return the deliveries in hand."""
        return list(self._running.values())

    def take(self, delivery: OpenDelivery) -> None:
        """Start the handler on a delivery."""
        task = asyncio.get_running_loop().create_task(self._handle(delivery))
        self._running[task] = delivery
        task.add_done_callback(self._release)

    async def stop(self, *, grace_s: float) -> None:
        """Wait for running handlers, then cancel what is left; its deliveries are handed back."""
        if self._running and grace_s > 0:
            await asyncio.wait(self._running, timeout=grace_s)
        left = dict(self._running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for delivery in left.values():
            if not delivery.ended:  # cancelled before its first step, or while it was being ended
                await delivery.nak()

    def _release(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("ending a delivery failed, it will be handed out again: %s: %s", type(error).__name__, error)
        self._freed()

    async def _handle(self, delivery: OpenDelivery) -> None:
        if self._deliver_max is not None and delivery.deliveries > self._deliver_max:
            await self._bury(delivery, f"handed out {delivery.deliveries - 1} times without an end")
            return
        try:
            await self._handler(delivery)
        except Exception as error:  # noqa: BLE001 — the message is handed back or kept as a dead letter, with this reason
            await self._failed(delivery, f"{type(error).__name__}: {error}", None if isinstance(error, OrchestrationError) else error)
        else:
            if not delivery.ended:
                await self._failed(delivery, "the handler returned without ack, nak or term", None)

    async def _failed(self, delivery: OpenDelivery, reason: str, unexpected: Exception | None) -> None:
        _log.warning("delivery %d of %s #%d failed: %s", delivery.deliveries, delivery.subject, delivery.sequence, reason, exc_info=unexpected)
        if delivery.ended:
            return
        if self._deliver_max is not None and delivery.deliveries >= self._deliver_max:
            await self._bury(delivery, reason)
        else:
            await delivery.nak(nak_delay_s(delivery.deliveries))

    async def _bury(self, delivery: OpenDelivery, reason: str) -> None:
        await self._dead_letter(delivery, reason)
        await delivery.term(reason)
        _log.error("%s #%d is dead: %s", delivery.subject, delivery.sequence, reason)


def nak_delay_s(deliveries: int) -> float:
    """Return how long a message whose handler raised waits: 1 s after the first delivery, doubled with each, at most 30 s."""
    return float(min(2.0 ** min(deliveries - 1, 10), NAK_DELAY_MAX_S))


class Enqueuer(Protocol):
    """The part of the bus that dead letters need."""

    async def enqueue(self, subject: str, data: bytes, *, message_id: str, headers: Mapping[str, str] | None = None) -> int: ...


def dead_letters(bus: Enqueuer, stream: str) -> DeadLetter:
    """Return what keeps dead deliveries of a stream on `dlq.<kind>`: body and headers as they were, and why.

    The worker itself does this rather than a process that listens to the server's advisories: nothing more to run, and the reason is
    known here. When it dies in between, the next hand-out is over the limit as well and is buried by whoever gets it.
    """

    async def keep(delivery: Delivery, reason: str) -> None:
        kind = delivery.subject.split(".")[1]
        original = {key: value for key, value in delivery.headers.items() if not key.startswith("Nats-")}
        headers = {
            **original,
            "Dead-Reason": " ".join(reason.split())[:1000],
            "Dead-Subject": delivery.subject,
            "Dead-Deliveries": str(delivery.deliveries),
        }
        message_id = delivery.headers.get("Nats-Msg-Id", f"{stream}-{delivery.sequence}")
        await bus.enqueue(subjects.dead_letter(kind), delivery.data, message_id=f"dead-{message_id}", headers=headers)

    return keep
