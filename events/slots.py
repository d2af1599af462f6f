"""Run queued deliveries: at most so many at once, each in a task of its own, each ended exactly once.

Shared by the NATS and the memory bus, so that both treat a failing handler, a poison message and a stop alike:

- A handler that raises hands its message back with a delay that doubles with each delivery; after `deliver_max` deliveries the message
  is moved to the dead letters, with the reason.
- A message that is handed back for another reason (a server is away, somebody else holds the task, this process stops) did nothing wrong.
  The server counts those hand-outs all the same, so after `deliver_max` of them it goes to the dead letters marked `handed_back`: the
  orchestrator publishes it anew, and its count begins again.
- What kills whoever gets it is never given back. It is dead when it was handed out twice `deliver_max` times, so that at least the
  second half of them ended without a word; one worker that dies at the wrong moment does not make a poison message.
- On stop, handlers still running after the grace are cancelled and their messages handed back at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from crewlog.events.bus import Delivery, DeliveryHandler
from crewlog.events.letters import Bury, Cause
from crewlog.schemas.errors import OrchestrationError, TransientError

NAK_DELAY_MAX_S: Final = 30.0
UNANSWERED_FACTOR: Final = 2
"""Times `deliver_max` that a message may be handed out without any word from whoever got it."""
HAND_BACK_TIMEOUT_S: Final = 5.0
"""How long handing back may take before it is left to the server's own count, in seconds: also a stop waits for it."""

_log = logging.getLogger(__name__)


class OpenDelivery(Delivery, Protocol):
    """A delivery that knows whether it has been ended."""

    @property
    def ended(self) -> bool: ...


class Slots:
    """The deliveries being handled right now."""

    def __init__(self, handler: DeliveryHandler, slots: int, *, deliver_max: int | None, bury: Bury, freed: Callable[[], None]) -> None:
        """Prepare empty slots.

        Args:
            deliver_max: hand-outs after which a message goes to the dead letters; None means never.
            freed: called without arguments whenever a slot has become free.
        """
        self._handler = handler
        self._slots = slots
        self._deliver_max = deliver_max
        self._keep = bury
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
                await self.hand_back(delivery)

    async def hand_back(self, delivery: OpenDelivery, delay_s: float = 0.0) -> None:
        """Give back a message that did nothing wrong; one whose count is used up is kept for the orchestrator, which publishes it anew."""
        if self._is_worn(delivery):
            try:
                async with asyncio.timeout(HAND_BACK_TIMEOUT_S):
                    await self._keep(delivery, "handed_back", f"handed out {delivery.deliveries} times and given back")
                await delivery.ack()
            except (TimeoutError, OrchestrationError) as error:
                _log.warning("%s #%d goes back to its queue as it is: %s", delivery.subject, delivery.sequence, error)
            else:
                return
        await delivery.nak(delay_s)

    def _is_worn(self, delivery: OpenDelivery) -> bool:
        return self._deliver_max is not None and delivery.deliveries >= self._deliver_max

    def _release(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("ending a delivery failed, it will be handed out again: %s: %s", type(error).__name__, error)
        self._freed()

    async def _handle(self, delivery: OpenDelivery) -> None:
        if self._deliver_max is not None and delivery.deliveries > self._deliver_max * UNANSWERED_FACTOR:
            await self._bury(delivery, "unanswered", f"handed out {delivery.deliveries - 1} times without an end")
            return
        try:
            await self._handler(Worn(delivery, self.hand_back) if self._is_worn(delivery) else delivery)
        except TransientError as error:
            _log.warning("delivery %d of %s #%d is handed back: %s", delivery.deliveries, delivery.subject, delivery.sequence, error)
            if not delivery.ended:
                await self.hand_back(delivery, nak_delay_s(delivery.deliveries))
        except Exception as error:  # noqa: BLE001 — the message is handed back or kept as a dead letter, with this reason
            await self._failed(delivery, f"{type(error).__name__}: {error}", None if isinstance(error, OrchestrationError) else error)
        else:
            if not delivery.ended:
                await self._failed(delivery, "the handler returned without ack, nak or term", None)

    async def _failed(self, delivery: OpenDelivery, reason: str, unexpected: Exception | None) -> None:
        _log.warning("delivery %d of %s #%d failed: %s", delivery.deliveries, delivery.subject, delivery.sequence, reason, exc_info=unexpected)
        if delivery.ended:
            return
        if self._is_worn(delivery):
            await self._bury(delivery, "failed", reason)
        else:
            await delivery.nak(nak_delay_s(delivery.deliveries))

    async def _bury(self, delivery: OpenDelivery, cause: Cause, reason: str) -> None:
        await self._keep(delivery, cause, reason)
        await delivery.term(reason)
        _log.error("%s #%d is dead: %s", delivery.subject, delivery.sequence, reason)


class Worn:
    """A delivery whose message was handed out so often that giving it back goes another way; for its handler it is as any other."""

    def __init__(self, delivery: OpenDelivery, hand_back: Callable[[OpenDelivery, float], Awaitable[None]]) -> None:
        self.inner, self._hand_back = delivery, hand_back

    @property
    def subject(self) -> str:
        return self.inner.subject

    @property
    def data(self) -> bytes:
        return self.inner.data

    @property
    def headers(self) -> Mapping[str, str]:
        return self.inner.headers

    @property
    def deliveries(self) -> int:
        return self.inner.deliveries

    @property
    def sequence(self) -> int:
        return self.inner.sequence

    @property
    def kept_us(self) -> int:
        return self.inner.kept_us

    @property
    def waiting(self) -> int:
        return self.inner.waiting

    @property
    def ended(self) -> bool:
        return self.inner.ended

    async def ack(self) -> None:
        await self.inner.ack()

    async def nak(self, delay_s: float = 0.0) -> None:
        if not self.inner.ended:
            await self._hand_back(self.inner, delay_s)

    async def term(self, reason: str) -> None:
        await self.inner.term(reason)

    async def in_progress(self) -> None:
        await self.inner.in_progress()


def nak_delay_s(deliveries: int) -> float:
    """Return how long a message whose handler raised waits: 1 s after the first delivery, doubled with each, at most 30 s."""
    return float(min(2.0 ** min(deliveries - 1, 10), NAK_DELAY_MAX_S))
