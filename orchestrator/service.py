"""The orchestrator as a process: its parts, the order in which they start and stop, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from crewlog.events import faults
from crewlog.events.bus import Bus, Message, Subscription
from crewlog.events.clock import Clock, SystemClock
from crewlog.events.config import Config
from crewlog.events.memory import settle_memory
from crewlog.events.readiness import announce_ready
from crewlog.events.stop_signal import stop_on_signals
from crewlog.events.store import EventStore
from crewlog.orchestrator.admission import Admission
from crewlog.orchestrator.api import QUEUE, Api
from crewlog.orchestrator.api_control import ControlApi
from crewlog.orchestrator.budgets import Budgets
from crewlog.orchestrator.dead_letters import DeadLetters
from crewlog.orchestrator.dispatcher import Dispatcher
from crewlog.orchestrator.driver import NOTHING_LIMITED, Driver
from crewlog.orchestrator.forks import Forks
from crewlog.orchestrator.holds import Holds
from crewlog.orchestrator.intake import Intake
from crewlog.orchestrator.kinds import BUILT_IN, KindDirectory
from crewlog.orchestrator.planning import Kinds
from crewlog.orchestrator.publisher import Publisher
from crewlog.orchestrator.rollbacks import Rollbacks
from crewlog.orchestrator.run import RunState
from crewlog.orchestrator.schedules import Schedules
from crewlog.orchestrator.shadows import NO_SHADOWS, Rules, Shadows, parse_shadow
from crewlog.orchestrator.silent_workers import SilentWorkers
from crewlog.orchestrator.steering import Steering
from crewlog.orchestrator.sweep import Sweep
from crewlog.orchestrator.terms import Allowance
from crewlog.orchestrator.timers import Timers
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.ids import RunId, TaskId, read_id

log = logging.getLogger(__name__)


NO_BOUNDS: Final[Mapping[str, int]] = MappingProxyType({})


class Settings(NamedTuple):
    """What the orchestrator takes from the configuration; see `Config` for the meaning."""

    sweep_interval_s: float = 10.0
    dispatch_lease_s: float = 60.0
    shutdown_grace_s: float = 10.0
    settle_grace_s: float = 900.0
    worker_grace_s: float = 100.0
    allowance: Allowance = NOTHING_LIMITED
    trace_share: float | None = None
    """Part of the runs that is traced; None when nothing is."""
    in_flight_max: Mapping[str, int] = NO_BOUNDS
    open_runs_max: int = 20_000
    waiting_tasks_max: int = 50_000
    shadow: Rules = NO_SHADOWS
    shadow_max_micro_usd: int | None = None
    is_heard_idle: bool = False
    """Whether others hear from this one while it holds nothing back, so that they notice its death at any time, see `peers`."""


DEFAULTS: Final = Settings()


class OrchestratorService:
    """All parts of one orchestrator. Any number may run on the same log and bus."""

    def __init__(self, store: EventStore, bus: Bus, clock: Clock, settings: Settings = DEFAULTS, *, kinds: Kinds = BUILT_IN) -> None:
        self._bus, self._settings = bus, settings
        publisher = Publisher(store, bus, trace_share=settings.trace_share)
        self.kinds = KindDirectory(store, bus, clock, known=kinds)
        self._timers = Timers(store, clock)
        self.dispatcher = Dispatcher(publisher, bus, clock, in_flight_max=settings.in_flight_max, is_heard_idle=settings.is_heard_idle)
        self._admission = Admission(settings.open_runs_max, settings.waiting_tasks_max, self.dispatcher.waiting_of)
        self.driver = Driver(
            *(store, publisher, self.dispatcher, clock, self.kinds),
            on_state=self._note,
            on_left=self._left,
            admit=self._admission.check,
            allowance=settings.allowance,
        )
        self._holds = Holds(store, self.driver)
        self._shadows = Shadows(store, clock, self.driver, settings.shadow, hard_micro_usd=settings.shadow_max_micro_usd)
        silent = SilentWorkers(store, bus, clock, grace_s=settings.worker_grace_s, on_fact=self.kinds.follow)
        self.sweep = Sweep(
            *(store, bus, clock, self.driver, self.dispatcher, self.kinds, self._holds, self._admission, silent),
            interval_s=settings.sweep_interval_s,
            lease_s=settings.dispatch_lease_s,
            settle_grace_s=settings.settle_grace_s,
        )
        self._letters = DeadLetters(bus, clock, self.driver, publisher)
        self.schedules = Schedules(store, clock, self.driver)
        budgets = Budgets(store, clock, self.driver.folds, on_change=self.sweep.soon)
        forks = Forks(store, clock, self.driver, settings.allowance)
        self._steering = Steering(store, bus, clock, self.driver, self.kinds, on_change=self._scopes_changed)
        control = ControlApi(store, bus, clock, self.driver, self._steering, self.sweep.looks)
        self._rollbacks = Rollbacks(store, self.driver, self.kinds)
        self._api = Api(
            *(store, bus, clock, self.driver, self.kinds),
            budgets=budgets,
            letters=self._letters,
            schedules=self.schedules,
            forks=forks,
            control=control,
            rollbacks=self._rollbacks,
            dispatcher=self.dispatcher,
            silent=silent,
        )
        self._intake = Intake(bus, clock, self.driver, self.dispatcher.waiting_of)
        self._wakes: Subscription | None = None
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start to decide, then to answer, then to take tasks.

        Raises:
            Unavailable: the log or the bus cannot be reached.
        """
        await self.kinds.start()
        self._loops = [*await self.dispatcher.start(self.driver.folds, self.sweep.adopt)]
        self._loops += [self.driver.start(), *self._timers.start(self.driver.wake)]
        self._wakes = await self._bus.subscribe("wake.*", self._woken, queue=QUEUE)
        self._loops.append(await self._steering.start())
        await self._api.start()
        self._loops.append(await self._intake.start())
        await self._letters.start()
        self._loops += [await self.sweep.start(), self.schedules.start()]
        await self.dispatcher.ask_workers(self.kinds.offers)
        await self._bus.flush()

    async def stop(self) -> None:
        """Take nothing new, finish what is under way, write timers, send what was published. Safe to call twice."""
        grace_s = self._settings.shutdown_grace_s
        await self._intake.stop(grace_s=grace_s)
        await self._letters.stop(grace_s=grace_s)
        await self._api.stop()
        await self._steering.stop()
        await self._shadows.stop()
        await self._rollbacks.stop()
        if self._wakes is not None:
            wakes, self._wakes = self._wakes, None
            await wakes.stop()
        await self.schedules.stop()
        await self.sweep.stop()
        await self._holds.stop()
        await self.driver.stop(grace_s=grace_s)
        await self.dispatcher.stop()
        await self._timers.stop()
        await self._bus.flush()

    async def broken(self) -> None:
        """Return only when a part has ended by itself, which is a defect; raises what ended it."""
        done, _ = await asyncio.wait(self._loops, return_when=asyncio.FIRST_COMPLETED)
        for loop in done:
            loop.result()

    def _scopes_changed(self) -> None:
        """A tenant or a kind was paused or let go on: every open run takes note, and schedules look what is due."""
        self.sweep.soon()
        self.schedules.soon()

    def _note(self, state: RunState) -> None:
        self._timers.note(state)
        self._holds.note(state)
        self.dispatcher.note(state)
        self._admission.note(state)
        self._steering.note(state)
        self._shadows.note(state)
        self._rollbacks.note(state)
        self.sweep.note(state)

    def _left(self, run_id: RunId) -> None:
        self.sweep.left(run_id)

    async def _woken(self, message: Message) -> None:
        try:
            run_id = RunId(read_id(message.subject.split(".", 1)[1]))
            ended = TaskId(read_id(message.data.decode())) if message.data else None
        except ValueError:
            log.debug("a wake on %s names no run or no task", message.subject)
            return
        if ended is not None:
            self.dispatcher.ended(run_id, ended)
        self.driver.wake(run_id, ended=ended)


async def run_orchestrator(config: Config) -> None:
    """Run one orchestrator process until SIGTERM or SIGINT.

    Raises:
        ConfigError: the servers' addresses are missing.
        Unavailable: a server cannot be reached.
    """
    from crewlog.events.jetstream import ensure_topology
    from crewlog.events.nats_bus import NatsBus
    from crewlog.events.personal_store import personal_log
    from crewlog.events.poke import Poke
    from crewlog.events.postgres_store import PostgresStore

    if config.database_url is None or config.nats_url is None:
        raise ConfigError("the orchestrator needs CREWLOG_DATABASE_URL and CREWLOG_NATS_URL", hint="`crewlog up` passes them")
    faults.install_from_environment()
    clock = SystemClock()
    name = f"orchestrator-{clock.random_id().hex[:8]}"
    bus = await NatsBus.connect(config.nats_url.get_secret_value(), name=name, provision=config.provision)
    poke = Poke(bus)
    try:
        log_store = await PostgresStore.open(config.database_url.get_secret_value(), actor=f"orchestrator@{name}", clock=clock, on_commit=poke.notify)
        try:
            store = await personal_log(log_store, config, clock, works=True)
            await ensure_topology(bus, provision=config.provision)
            allowance = Allowance(config.budgets, config.hold_ttl_s or math.ceil(config.approval_ttl_s))
            trace_share = None if config.otlp_endpoint is None else config.trace_share
            settings = Settings(
                *(config.sweep_interval_s, config.dispatch_lease_s, config.shutdown_grace_s, config.settle_grace_s, config.worker_grace_s),
                allowance=allowance,
                trace_share=trace_share,
                in_flight_max=config.in_flight_max,
                open_runs_max=config.open_runs_max,
                waiting_tasks_max=config.waiting_tasks_max,
                shadow=parse_shadow(config.shadow),
                shadow_max_micro_usd=config.shadow_max_micro_usd,
                is_heard_idle=True,
            )
            await _serve(OrchestratorService(store, bus, clock, settings))
        finally:
            await log_store.close()
    finally:
        await poke.close()
        await bus.close()


async def _serve(service: OrchestratorService) -> None:
    stop = stop_on_signals()
    stopping = asyncio.create_task(stop.wait())
    serving = asyncio.create_task(_start_and_watch(service))
    try:
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
    finally:
        for task in (stopping, serving):
            task.cancel()
        await asyncio.gather(stopping, serving, return_exceptions=True)
        await service.stop()


async def _start_and_watch(service: OrchestratorService) -> None:
    await service.start()
    settle_memory()
    announce_ready()
    log.info("ready")
    await service.broken()
