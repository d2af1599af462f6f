"""Which other orchestrators there are, what they hold back, and who of them has died: one beat tells all of it.

Each says what it holds back every `BEAT_S` while there are others, and every `ALONE_S` while it knows of none, so that one by itself is quiet.
Who begins, or hears of one that is new, says so at once. Nobody is polled: only who is silent for longer than a beat is asked, and NATS itself
answers at once for a process that is gone. A death is looked after by one sweep of those that remain; a hint like any other, one that was
wrong costs a sweep too many.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from crewlog.events.bus import Bus, Message, Subscription
from crewlog.events.clock import Clock
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.subjects import ORCHESTRATORS, control_orchestrator

BEAT_S: Final = 0.4
"""Runs of an orchestrator that is killed are to wait one second longer at most: a beat, the silence behind it, and the sweep fit into that."""
ALONE_S: Final = 10.0
"""So late may two find each other that lost each other's first word."""
SILENCE_S: Final = 0.5
"""Who was not heard for so long is asked, in seconds."""
ASK_TIMEOUT_S: Final = 1.0
"""Who does not answer for so long is taken for gone: it stands still, in seconds."""
WAIT_MIN_S: Final = 0.001
"""A wait that rounding makes shorter than a clock can tell would never end."""
_ARE_YOU_THERE: Final = b"{}"
"""A question about no message, see `holders.Question`."""

log = logging.getLogger(__name__)


class Beat(msgspec.Struct, omit_defaults=True):
    """What an orchestrator says of itself: how many messages it holds back, by tenant; shadows count for none, and stand under the empty name."""

    orchestrator: str
    waiting: dict[str, int] = {}
    kinds: tuple[str, ...] = ()
    """For which groups of workers."""
    leaves: bool = False


class Known(NamedTuple):
    """What another orchestrator said last, and when it was heard."""

    beat: Beat
    heard_s: float


_read_beat: Final = msgspec.json.Decoder(Beat).decode


class Peers:
    """Listens to the other orchestrators, and is heard by them."""

    def __init__(self, bus: Bus, clock: Clock, name: str, *, says: Callable[[], tuple[dict[str, int], tuple[str, ...]]], is_heard_idle: bool) -> None:
        """Prepare.

        Args:
            says: counts what this one holds back, by tenant, and says of which kinds.
            is_heard_idle: beat also while nothing is held back, so that a death is noticed at any time.
        """
        self._bus, self._clock, self._name, self._says, self._is_heard_idle = bus, clock, name, says, is_heard_idle
        self.others: dict[str, Known] = {}
        self._on_death: Callable[[], None] = lambda: None
        self._said_holding = False
        self._news = asyncio.Event()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._hearing: Subscription | None = None
        self._beating: asyncio.Task[None] | None = None

    async def start(self, on_death: Callable[[], None]) -> asyncio.Task[None]:
        """Begin; the returned task ends only with `stop` or a defect.

        Args:
            on_death: called when another one is gone without a word, or leaves and held messages back.
        """
        self._on_death = on_death
        self._hearing = await self._bus.subscribe(ORCHESTRATORS, self._hear)
        self._beating = asyncio.create_task(self._beat(), name="peers")
        return self._beating

    async def stop(self) -> None:
        """Say that this one leaves. Safe to call twice."""
        if self._hearing is not None:
            await self._hearing.stop()
            self._hearing = None
        if self._beating is not None:
            tasks, self._beating = [self._beating, *self._asking.values()], None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            waiting, kinds = self._says()
            if waiting or self._is_heard_idle:
                await self._publish(Beat(self._name, waiting, kinds, leaves=True))

    def begin(self) -> None:
        """Take note that this one holds something back, which the others are to know soon."""
        if not self._said_holding:
            self._news.set()

    def lost(self, name: str) -> None:
        """Take note that another one is gone."""
        if (known := self.others.pop(name, None)) is not None:
            log.warning("orchestrator %s is gone, and held %d messages back: looking after its runs", name, sum(known.beat.waiting.values()))
            self._on_death()

    async def _publish(self, beat: Beat) -> None:
        await self._bus.publish(ORCHESTRATORS, msgspec.json.encode(beat))

    async def _beat(self) -> None:
        due_s = self._clock.monotonic()
        while True:
            now_s = self._clock.monotonic()
            if self._news.is_set() or now_s >= due_s:
                self._news.clear()
                await self._say()
                due_s = now_s + self._period_s()
            for name, known in self.others.items():
                if known.heard_s + SILENCE_S <= now_s and name not in self._asking:
                    self._asking[name] = asyncio.create_task(self._ask(name), name=f"ask {name}")
            silent_s = min((known.heard_s + SILENCE_S for name, known in self.others.items() if name not in self._asking), default=math.inf)
            await self._pause(min(due_s, silent_s) - now_s)

    async def _say(self) -> None:
        waiting, kinds = self._says()
        if waiting or self._said_holding or self._is_heard_idle:
            self._said_holding = bool(waiting)
            await self._publish(Beat(self._name, waiting, kinds))

    def _period_s(self) -> float:
        if self._is_heard_idle:
            return BEAT_S if self.others else ALONE_S
        return BEAT_S if self._said_holding else math.inf

    async def _pause(self, wait_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(wait_s) else max(wait_s, WAIT_MIN_S)):
                await self._news.wait()

    async def _ask(self, name: str) -> None:
        """Ask one that was not heard whether it is there: it may be this process that was not listening."""
        try:
            await self._bus.request(control_orchestrator(name), _ARE_YOU_THERE, timeout_s=ASK_TIMEOUT_S)
        except Unavailable:
            self.lost(name)
        else:
            if name in self.others:
                self.others[name] = self.others[name]._replace(heard_s=self._clock.monotonic())
        finally:
            del self._asking[name]

    async def _hear(self, message: Message) -> None:
        try:
            beat = _read_beat(message.data)
        except msgspec.MsgspecError as error:
            log.debug("a beat on %s does not decode: %s", message.subject, error)
            return
        name = beat.orchestrator
        if name == self._name:
            return
        if beat.leaves or not (beat.waiting or self._is_heard_idle):
            self.others.pop(name, None)
            if beat.leaves and beat.waiting:
                self._on_death()
            return
        if name not in self.others:
            self._news.set()
        self.others[name] = Known(beat, self._clock.monotonic())
