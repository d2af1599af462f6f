"""What a chaos run must have left behind: the log, the ledger, the views, the queues and the receiver's book, each held against the others."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from crewlog.events.bus import Bus
from crewlog.events.clock import Clock
from crewlog.events.credentials import load_credentials
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.chaos_agent import KIND
from crewlog.orchestrator.chaos_ends import end_violations
from crewlog.orchestrator.chaos_sink import Effect, Sink
from crewlog.orchestrator.handing_on import is_there
from crewlog.orchestrator.home import Home
from crewlog.orchestrator.invariants import charged_micro_usd, ledger_violations, run_violations
from crewlog.orchestrator.replay import replay
from crewlog.projections.queries import Queries
from crewlog.projections.rebuild import rebuild
from crewlog.schemas.budget import run_scope, tenant_scope, utc_day
from crewlog.schemas.ids import RunId, agent_stream
from crewlog.schemas.subjects import LANES
from crewlog.schemas.system_events import AgentRegistered, AgentStopped
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import ToolFinished, ToolStarted

QUIET_WITHIN_S: Final = 60.0
"""How long queues, reservations and views may take to be empty, settled and level once the last run has ended, in seconds."""
LOOK_S: Final = 0.2


class Found(msgspec.Struct):
    """What an audit looked at, and what it has against it."""

    events: int = 0
    tasks: int = 0
    replays: int = 0
    views_compared: int = 0
    charged_micro_usd: int = 0
    violations: list[str] = msgspec.field(default_factory=list)


async def audit(store: EventStore, bus: Bus, queries: Queries, clock: Clock, home: Home, accepted: Mapping[RunId, AgentTask], sink: Sink) -> Found:
    """Check every invariant once all runs have ended; the crew still runs, and nothing strikes it any more."""
    found = Found()
    found.violations += [violation async for violation in _rest(store, bus, queries, clock)]
    charged: dict[RunId, int] = {}
    calls = Calls()
    days: set[str] = set()
    for run_id, task in sorted(accepted.items()):
        events = await store.read_run(run_id)
        found.events += len(events)
        found.tasks += len({recorded.stream for recorded in events if recorded.stream.startswith("task/")})
        found.violations += run_violations(run_id, events)
        found.violations += end_violations(task, events)
        charged[run_id] = charged_micro_usd(events)
        days.update(utc_day(recorded.occurred_us) for recorded in events)
        calls.note(events)
        if events and (divergence := (await replay(store, run_id)).divergence) is not None:
            found.violations.append(f"replay of {run_id}: {divergence}")
        found.replays += bool(events)
    found.charged_micro_usd = sum(charged.values())
    found.violations += await _open_runs(store, accepted)
    found.violations += calls.violations(sink.arrivals, sink.effects)
    found.violations += [f"key {key} came with two different effects" for key in sink.mixed]
    found.violations += [violation async for violation in _money(store, charged, days, sink.billed_micro_usd)]
    rebuilt = await _rebuild(home, clock)
    found.views_compared = len(rebuilt[0])
    found.violations += [f"view {table}: {rows} rows differ from a rebuild" for table, rows in rebuilt[1].items()]
    return found


class Calls:
    """Calls with an effect, as the log has them."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], str] = {}
        """(stream, call) -> idempotency key."""
        self.done: set[tuple[str, str]] = set()

    def note(self, events: Sequence[Recorded]) -> None:
        """Take in the events of one run."""
        for recorded in events:
            event = recorded.event()
            if isinstance(event, ToolStarted) and event.effect != "read":
                self.keys[recorded.stream, event.call_id] = event.idempotency_key
            elif isinstance(event, ToolFinished) and event.status == "ok":
                self.done.add((recorded.stream, event.call_id))

    def violations(self, arrivals: Mapping[str, int], effects: Mapping[str, Effect]) -> Iterator[str]:
        """Hold the receiver's book against the log.

        Args:
            arrivals: idempotency key -> how often it arrived.
            effects: idempotency key -> what came with it.
        """
        known = set(self.keys.values())
        for call, key in self.keys.items():
            if call in self.done and not arrivals.get(key):
                yield f"{call[1]} of {call[0]} is recorded as done and never reached the receiver"
        for key, effect in effects.items():
            if key not in known:
                yield f"{effect.what} reached the receiver under key {key}, which is not in the log"
            if effect.effect == "irreversible" and arrivals[key] > 1:
                yield f"{effect.what} cannot be taken back and was done {arrivals[key]} times"
        keys_of: dict[str, list[str]] = defaultdict(list)
        for key, effect in effects.items():
            keys_of[effect.what].append(key)
        for what, keys in keys_of.items():
            if len(keys) > 1:
                yield f"{what} was done {len(keys)} times under different keys"


async def _rest(store: EventStore, bus: Bus, queries: Queries, clock: Clock) -> AsyncIterator[str]:
    """Wait until nothing happens any more, workers first: views are to show what is said of them."""
    async for violation in _workers(store, bus, clock):
        yield violation
    async for violation in _quiet(store, bus, queries, clock):
        yield violation


async def _quiet(store: EventStore, bus: Bus, queries: Queries, clock: Clock) -> AsyncIterator[str]:
    """Wait until nothing is queued, reserved or behind; yields what still is."""
    consumers = [("TASKS", "intake"), *(("WORK", f"{KIND}-{lane}") for lane in LANES)]
    deadline = clock.monotonic() + QUIET_WITHIN_S
    while True:
        waiting = {f"{stream}/{consumer}": await bus.backlog(stream, consumer) for stream, consumer in consumers}
        reserved = await store.open_reservations(clock.now_us(), 10)
        behind = [view.name for view in await queries.lag() if view.waiting_since is not None]
        if not any(waiting.values()) and not reserved and not behind:
            return
        if clock.monotonic() > deadline:
            break
        await asyncio.sleep(LOOK_S)
    for queue, messages in Counter(waiting).items():
        if messages:
            yield f"queue {queue} still holds {messages} messages"
    for reservation in reserved:
        yield f"reservation {reservation.reservation_id} of {reservation.stream} was never settled"
    for name in behind:
        yield f"view {name} does not catch up with the log"


async def _workers(store: EventStore, bus: Bus, clock: Clock) -> AsyncIterator[str]:
    """Wait until the log says of every worker that was there whether it is; yields of whom it does not."""
    deadline = clock.monotonic() + QUIET_WITHIN_S
    while True:
        said: dict[str, bool] = {}
        for recorded in await store.read_streams({agent_stream(KIND): 0}):
            if isinstance(event := recorded.event(), AgentRegistered | AgentStopped):
                said[event.worker] = isinstance(event, AgentRegistered)
        answers = await asyncio.gather(*(is_there(bus, worker) for worker in said))
        wrong = [worker for worker, answered in zip(said, answers, strict=True) if said[worker] != answered]
        if not wrong or clock.monotonic() > deadline:
            break
        await asyncio.sleep(LOOK_S)
    for worker in wrong:
        yield f"worker {worker} is {'gone' if said[worker] else 'there'}, and the log says otherwise"


async def _open_runs(store: EventStore, accepted: Collection[RunId]) -> list[str]:
    return [
        f"run {run_id} is open{'' if run_id in accepted else ', and nobody was told that it was accepted'}"
        for run_id in await store.open_runs(after=None, limit=100)
    ]


async def _money(store: EventStore, charged: Mapping[RunId, int], days: Collection[str], billed_micro_usd: int) -> AsyncIterator[str]:
    by_scope = {run_scope(run_id): micro_usd for run_id, micro_usd in charged.items()}
    for violation in ledger_violations(by_scope, await store.budgets(list(by_scope))):
        yield violation
    daily = await store.budgets([tenant_scope("default", day) for day in sorted(days)])
    total, spent, reserved = sum(charged.values()), sum(b.spent for b in daily.values()), sum(b.reserved for b in daily.values())
    if (spent, reserved) != (total, 0):
        yield f"the tenant's budgets: {spent} micro-USD spent and {reserved} reserved in the ledger, {total} spent in the log"
    if total < billed_micro_usd:
        yield f"models billed {billed_micro_usd} micro-USD, the runs were charged {total}"


async def _rebuild(home: Home, clock: Clock) -> tuple[tuple[str, ...], dict[str, int]]:
    """Fold the whole log again; returns the projections and how many rows of each table were not as the log says."""
    state = home.state()
    assert state is not None
    assert state.database_port is not None
    url = load_credentials(home.path).postgres_url("crewlog_projector", state.database_port)
    store = await PostgresStore.open(url, actor="projector@chaos", clock=clock)
    try:
        done = await rebuild(url, store)
    finally:
        await store.close()
    return done.projections, done.corrected
