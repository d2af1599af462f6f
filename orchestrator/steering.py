"""What operators say about runs, tenants, agent kinds and workers: recorded in the stream of controls, then told to everybody at once.

A command is in force when it is in the log. Each orchestrator reads that stream whenever it looks at a run, so nothing is decided without it;
what is told on the bus only finds the runs that nobody would look at for a while. Nobody polls. Whoever said it tells it, and the relay tells it
again from the log: should the first word have been lost, the orchestrators hear the second one, and pass it on to the workers. Should both be lost,
it is found with the next look at any run (a worker that hands a paused task back causes one), and by the sweep, which reads the stream in each of
its rounds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal
from uuid import UUID

from crewlog.events.bus import Bus, Message, Subscription
from crewlog.events.clock import Clock
from crewlog.events.controls import CONTROL_TYPES, Control, Controls, run_scope
from crewlog.events.store import AppendRequest, EventStore, Write
from crewlog.orchestrator.draft import ORCHESTRATOR
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.kinds import KindDirectory
from crewlog.orchestrator.run import RunState
from crewlog.schemas.errors import NotAuthorised, OrchestrationError
from crewlog.schemas.ids import CONTROL_STREAM, RunId, control_event_id
from crewlog.schemas.subjects import NO_RUN, control_kind, events
from crewlog.schemas.system_events import BudgetChanged, ScopePaused, ScopeQuarantined, ScopeReleased, ScopeResumed, SystemEvent, WorkerDrained

ORCHESTRATORS: Final = "orchestrator"
"""Stands for all orchestrators where a command is told: no worker can be of this kind, as it is a login of its own."""
RETRY_S: Final = 1.0
"""Pause behind a read or a command that found no log, in seconds."""
Verb = Literal["pause", "resume", "quarantine", "release"]

log = logging.getLogger(__name__)


def event_of(verb: Verb, scope: str, *, actor: str, reason: str) -> SystemEvent:
    """Return what a command adds to the log. Pure."""
    match verb:
        case "pause":
            return ScopePaused(scope, actor, reason)
        case "resume":
            return ScopeResumed(scope, actor, reason)
        case "quarantine":
            return ScopeQuarantined(scope, actor, reason)
        case "release":
            return ScopeReleased(scope, actor, reason)


def is_news(verb: Verb, scope: str, controls: Controls) -> bool:
    """Say whether a command changes what is in force. Pure."""
    match verb:
        case "pause":
            return scope not in controls.pauses
        case "resume":
            return scope in controls.pauses
        case "quarantine":
            return scope not in controls.quarantines
        case "release":
            return scope in controls.quarantines


class Steering:
    """The stream of controls, as one orchestrator writes and follows it."""

    def __init__(self, store: EventStore, bus: Bus, clock: Clock, driver: Driver, kinds: KindDirectory, *, on_change: Callable[[], None]) -> None:
        """Prepare.

        Args:
            on_change: has all open runs looked at soon.
        """
        self._store, self._bus, self._clock, self._driver, self._kinds = store, bus, clock, driver, kinds
        self._on_change = on_change
        self._spread: Controls = Controls()
        """What runs were looked at for."""
        self._over: set[RunId] = set()
        """Runs that have ended and that something of their own is in force for."""
        self._words: set[str] = set()
        """Subjects on which was told of commands that were not read yet."""
        self._told = 0
        """Version of the stream up to which workers were told."""
        self._stirred = asyncio.Event()
        """Set when there is something to read, or to look at runs for."""
        self._hearing: list[Subscription] = []
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> asyncio.Task[None]:
        """Read what is in force and follow it; the returned task ends only with `stop` or a defect.

        Raises:
            Unavailable: the log or the bus cannot be reached.
        """
        self._spread = await self._driver.folds.read_controls()
        self._driver.folds.on_controls = self._stirred.set
        self._hearing.append(await self._bus.subscribe(control_kind(ORCHESTRATORS), self._hear))
        try:
            for type_ in CONTROL_TYPES:
                self._hearing.append(await self._bus.subscribe(events(NO_RUN, NO_RUN, type_), self._hear))
            self._hearing.append(await self._bus.subscribe(events(NO_RUN, NO_RUN, BudgetChanged.__name__), self._hear_of_budget))
        except NotAuthorised as error:  # a server with rules of before: the sweep finds out
            log.warning("a command whose word is lost takes effect late: %s", error)
        if self._spread.version:
            await self.tell()  # who said the last of it may have died before it told anybody
        self._following = asyncio.create_task(self._follow(), name="steering")
        return self._following

    async def stop(self) -> None:
        """Stop following. Safe to call twice."""
        hearing, self._hearing = self._hearing, []
        for subscription in hearing:
            await subscription.stop()
        if self._following is not None:
            following, self._following = self._following, None
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def note(self, state: RunState) -> None:
        """Take note of a run: what is in force for one that is over is taken back, so that the stream tells of nothing that is gone."""
        scope, controls = run_scope(state.run_id), self._driver.folds.controls
        if state.status not in ("new", "open") and (scope in controls.pauses or scope in controls.quarantines):
            self._over.add(state.run_id)
            self._stirred.set()

    async def say(self, verb: Verb, scopes: Sequence[str], *, actor: str, reason: str, command_id: UUID | None = None) -> Mapping[str, bool]:
        """Record a command about scopes and tell everybody; returns for which of them it was news.

        Args:
            command_id: names the command, so that a repetition that arrives late, when its contrary was said already, changes nothing. A named
                command is recorded in any case: were it not because it was in force already, its repetition would count later.

        Raises:
            Unavailable: the log cannot be reached; saying it again is safe.
        """
        controls = await self._driver.folds.read_controls()
        news = {scope: is_news(verb, scope, controls) for scope in scopes}
        named = command_id or self._clock.random_id()
        recorded = [scope for scope in scopes if news[scope] or command_id is not None]
        await asyncio.gather(*(self._append(event_of(verb, scope, actor=actor, reason=reason), control_event_id(named, scope)) for scope in recorded))
        await self.tell()
        return news

    async def drain(self, worker: str, *, actor: str, reason: str) -> bool:
        """Record that a worker is to leave, and tell it; False when it was told before.

        Raises:
            Unavailable: the log cannot be reached.
        """
        controls = await self._driver.folds.read_controls()
        if worker in controls.drained:
            return False
        await self._append(WorkerDrained(worker, actor, reason), self._clock.new_id())
        await self.tell()
        return True

    async def tell(self) -> None:
        """Have every process read the stream now. A hint: those that do not hear it read before they start anything."""
        self._told = (await self._driver.folds.read_controls()).version
        for kind in (*self._kinds.offers, ORCHESTRATORS):
            await self._bus.publish(control_kind(kind))

    async def _append(self, event: SystemEvent, event_id: UUID) -> None:
        # no expected version: of two commands that cross, the later one in the log counts
        await self._store.append(AppendRequest([Write(CONTROL_STREAM, (event,))], [event_id], self._clock.now_us()))

    async def _hear(self, message: Message) -> None:
        self._words.add(message.subject)
        self._stirred.set()

    async def _hear_of_budget(self, _: Message) -> None:
        self._on_change()  # runs that it held may go on

    async def _follow(self) -> None:
        folds = self._driver.folds
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            words, self._words = self._words, set()
            try:
                if words:
                    await folds.read_controls()
                if control_kind(ORCHESTRATORS) in words:  # the last word of whoever said it
                    self._told = folds.controls.version
                elif words and self._told < folds.controls.version:
                    await self.tell()
                self._wake_for(folds.controls)
                await self._take_back()
            except OrchestrationError as error:
                log.warning("the stream of controls: %s", error)
                await asyncio.sleep(RETRY_S)
                self._words |= words
                self._stirred.set()

    async def _take_back(self) -> None:
        over = set(self._over)
        verbs: tuple[Verb, ...] = ("resume", "release")
        for verb in verbs if over else ():
            await self.say(verb, [*map(run_scope, over)], actor=ORCHESTRATOR, reason="the run is over")
        self._over -= over

    def _wake_for(self, controls: Controls) -> None:
        """Have those runs looked at that something changed for since the last time."""
        before, self._spread = self._spread, controls
        scopes = {*_changed(before.pauses, controls.pauses), *_changed(before.quarantines, controls.quarantines)}
        for scope in sorted(scopes):
            noun, _, name = scope.partition("/")
            if noun == "run":
                self._driver.wake(RunId(UUID(name)))
        if any(not scope.startswith("run/") for scope in scopes):
            self._on_change()


def _changed(before: Mapping[str, Control], after: Mapping[str, Control]) -> set[str]:
    return {scope for scope in {*before, *after} if before.get(scope) != after.get(scope)}
