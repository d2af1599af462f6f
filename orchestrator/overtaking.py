"""Let the tasks of a tenant be taken in although another one has filled the queue before: nobody waits behind ten thousand of a stranger.

TASKS is one queue for all tenants, and its consumer hands out what came first. Behind the dispatched tasks turns are taken (`dispatcher`), but
whoever is not taken in yet has none. A consumer for each tenant would have to be made for every name that anybody publishes to, and asked by
every orchestrator. So the consumer stays, and while many messages wait:

- One question to the server counts them by subject, hence by tenant, every `LOOK_S`.
- A tenant of whom fewer were taken than of the one that was taken most often overtakes: its oldest messages behind the consumer's place are
  read by their subject, dealt with as if they had been handed out, and deleted when they have their verdict. What the consumer hands out
  waits until they have caught up. So each of those that wait gets as many in as the one in front, and one that has a single task gets it in
  now. Whoever comes is behind by a burst at most, as with turns for agents (`fair_queue`): what it did not want an hour ago is gone.
- What would only wait for an agent is taken in at leisure: behind each message of a tenant that has `PLENTY` waiting for agents its slot rests
  for `REST` times as long as that one took. The others' runs have what is left of this process, of the log and of the machine.

Nothing rests on it. A message that overtakes stays in the stream until its verdict, and comes in its turn if it has none. Two orchestrators, or
the consumer and this, may take the same one: it is the same task, since its id is made from what the stream says of the message. A stream that was
lost counts from 1 again: what is deleted is looked at once more, so that nobody's message goes for having the number of one that is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

from crewlog.events import faults
from crewlog.events.bus import Bus, Delivery, Kept
from crewlog.events.clock import Clock
from crewlog.events.jetstream import TASKS
from crewlog.schemas.errors import ContractError, OrchestrationError
from crewlog.schemas.subjects import parse_tasks

CROWD: Final = 32
"""With fewer messages behind it the consumer has done with all of them before it would be worth a look."""
LOOK_S: Final = 0.01
"""Pause between two looks while many wait, in seconds."""
AT_ONCE_MAX: Final = 16
"""Messages that overtake at one time: each is a task of this process, and what else it decides goes on beside them."""
BURST: Final = 16
"""Messages by which a tenant that comes is behind the others."""
PLENTY: Final = 256
"""Tasks of a tenant that wait for agents, from which on nobody has anything from the next one being taken in sooner: agents that end a thousand a
second have work for longer than the rests last, and with fewer waiting there are none."""
REST: Final = 3.0
"""A rest, in times of what the message before it took: so that this takes a quarter of what it could, however fast the machine is."""
REST_MAX_S: Final = 0.1
"""Longest rest, in seconds: a message that took long was waiting for a log that was away, and not in anybody's way."""
AGAIN_S: Final = 1.0
"""When a message comes again whose verdict is being found, in seconds: it is deleted by then."""

log = logging.getLogger(__name__)


class Overtaking:
    """Stands between the consumer of TASKS and what deals with its messages."""

    def __init__(self, bus: Bus, clock: Clock, handle: Callable[[Delivery], Coroutine[Any, Any, None]], waiting_of: Callable[[str], int]) -> None:
        """Prepare.

        Args:
            handle: deals with one message, whichever way it came.
            waiting_of: how many tasks of a tenant wait for their turn with an agent.
        """
        self._bus, self._clock, self._handle, self._waiting_of = bus, clock, handle, waiting_of
        self._front = 0
        """Sequence up to which the consumer has handed out."""
        self._taken: Counter[str] = Counter()
        """Tenant that has messages waiting -> those taken since it has."""
        self._last: dict[str, int] = {}
        """Tenant -> sequence of its last message that overtook."""
        self._ahead: dict[int, tuple[str, asyncio.Task[None]]] = {}
        """Sequence of a message that overtakes -> its tenant, and what deals with it."""
        self._crowded = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._caught_up.set()
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to look, whenever many wait; the returned task ends only with `stop` or a defect."""
        self._looking = asyncio.create_task(self._look_while_crowded(), name="overtaking")
        return self._looking

    async def stop(self, *, grace_s: float) -> None:
        """Let what is under way get its verdict within `grace_s` seconds; the rest stays in the queue. Safe to call twice."""
        if self._looking is None:
            return
        looking, self._looking = self._looking, None
        looking.cancel()
        under_way = [task for _, task in self._ahead.values()]
        if under_way:
            await asyncio.wait(under_way, timeout=grace_s)
        for task in under_way:
            task.cancel()
        await asyncio.gather(looking, *under_way, return_exceptions=True)

    async def take(self, delivery: Delivery) -> None:
        """Deal with a message that the consumer hands out."""
        if delivery.sequence in self._ahead:
            await delivery.nak(AGAIN_S)
            return
        self._front = max(self._front, delivery.sequence)
        if delivery.waiting < CROWD:
            self._taken.clear()
            await self._handle(delivery)
            return
        tenant = _tenant(delivery.subject)
        self._taken[tenant] += 1
        self._crowded.set()
        await self._caught_up.wait()
        began_s = self._clock.monotonic()
        await self._handle(delivery)
        if self._waiting_of(tenant) >= PLENTY:
            await asyncio.sleep(min((self._clock.monotonic() - began_s) * REST, REST_MAX_S))

    async def _look_while_crowded(self) -> None:
        while True:
            await self._crowded.wait()
            self._crowded.clear()
            try:
                while not await self._look():
                    self._caught_up.clear()
                    await asyncio.wait([task for _, task in self._ahead.values()])
            except OrchestrationError as error:
                log.info("tasks are taken in one after the other, whoever sent them: %s", error)
            finally:
                self._caught_up.set()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> bool:
        """Let those overtake that are behind, as many as may at once; returns whether nobody is left behind."""
        queued = await self._bus.queued(TASKS.name)
        if queued.last_sequence < self._front:  # the stream was made anew and counts from 1 again
            self._front = 0
            self._last.clear()
        waiting = _by_tenant(queued.subjects)
        self._last = {tenant: last for tenant, last in self._last.items() if tenant in waiting}
        most = max((self._taken[tenant] for tenant in waiting), default=0)
        self._taken = Counter({tenant: max(self._taken[tenant], most - BURST) for tenant in waiting})
        for tenant, _ in self._ahead.values():
            waiting[tenant] -= 1
        while behind := [tenant for tenant, count in waiting.items() if count > 0 and self._taken[tenant] < most]:
            if len(self._ahead) >= AT_ONCE_MAX:
                return False
            tenant = min(behind, key=self._taken.__getitem__)
            waiting[tenant] = waiting[tenant] - 1 if await self._let_overtake(tenant) else 0
        return True

    async def _let_overtake(self, tenant: str) -> bool:
        """Begin with the next message of a tenant; False when the consumer has handed out all there are."""
        kept = await self._bus.first_kept(TASKS.name, max(self._front, self._last.get(tenant, 0)) + 1, subject=f"tasks.{tenant}.*")
        if kept is None:
            return False
        if faults.hook is not None:
            faults.hook("after_overtaker_read")
        self._last[tenant] = kept.sequence
        self._taken[tenant] += 1
        task = asyncio.create_task(self._handle(Overtaker(self._bus, kept)))
        self._ahead[kept.sequence] = tenant, task
        task.add_done_callback(partial(self._done, kept.sequence))
        return True

    def _done(self, sequence: int, task: asyncio.Task[None]) -> None:
        del self._ahead[sequence]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("message %d has no verdict and comes again in its turn: %s: %s", sequence, type(error).__name__, error)


class Overtaker:
    """A message that overtakes, as a delivery: its verdict deletes it, and without one it is where it was."""

    deliveries = 1
    waiting = 0

    def __init__(self, bus: Bus, kept: Kept) -> None:
        self._bus = bus
        self.subject, self.data, self.sequence, self.kept_us = kept.subject, kept.data, kept.sequence, kept.kept_us
        self.headers: Mapping[str, str] = kept.headers

    async def ack(self) -> None:
        await self._remove()

    async def nak(self, delay_s: float = 0.0) -> None:
        """Leave it where it is."""

    async def term(self, reason: str) -> None:
        log.debug("message %d on %s: %s", self.sequence, self.subject, reason)
        await self._remove()

    async def in_progress(self) -> None:
        """Nobody else is given it for being slow."""

    async def _remove(self) -> None:
        if faults.hook is not None:
            faults.hook("before_overtaker_removed")
        kept = await self._bus.first_kept(TASKS.name, self.sequence, subject=self.subject)
        if kept is not None and (kept.sequence, kept.kept_us) == (self.sequence, self.kept_us):
            await self._bus.remove(TASKS.name, self.sequence)
        if faults.hook is not None:
            faults.hook("after_overtaker_removed")


def _by_tenant(subjects: Mapping[str, int]) -> Counter[str]:
    waiting: Counter[str] = Counter()
    for subject, count in subjects.items():
        if tenant := _tenant(subject):
            waiting[tenant] += count
    return waiting


def _tenant(subject: str) -> str:
    """Return whose subject it is; nobody's, when it is none that tasks can be published to: such a message is refused in its turn."""
    try:
        return parse_tasks(subject).tenant
    except ContractError:
        return ""
