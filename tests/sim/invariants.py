"""What must hold however many processes died: checked on the log and on what reached the outside world.

Pure functions from recorded facts to a list of violations, shared by the simulation and by the tests that kill real processes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, Protocol

import msgspec

from crewlog.events.controls import FRESH_S
from crewlog.events.memory_store import MemoryLog
from crewlog.events.store import BudgetState, Recorded
from crewlog.orchestrator.invariants import charged_micro_usd, run_violations
from crewlog.orchestrator.invariants import ledger_violations as budget_violations
from crewlog.orchestrator.kinds import DIRECTORY
from crewlog.orchestrator.replay import fold_streams
from crewlog.orchestrator.rollback import RunEffect, effects_of
from crewlog.schemas.budget import run_scope
from crewlog.schemas.effects import Rollback, RollbackPage, UndoOrder
from crewlog.schemas.ids import CONTROL_STREAM, Hash, RunId, Stream, category
from crewlog.schemas.run_events import (
    QuarantineLifted,
    RollbackContinued,
    RunCompleted,
    RunFailed,
    RunHeld,
    RunPaused,
    RunQuarantined,
    RunReleased,
    RunResumed,
    RunSubmitted,
    TaskDispatched,
)
from crewlog.schemas.system_events import AgentRegistered, AgentStopped, ScopePaused, ScopeResumed
from crewlog.schemas.task_events import CompensationFinished, ModelCallStarted, TaskCompleted, TaskOpened, ToolFinished, ToolStarted

BEGINNINGS: Final = frozenset({ModelCallStarted.__name__, ToolStarted.__name__})
"""What a paused task may not do."""
OF_EFFECTS: Final = frozenset({ToolStarted.__name__, ToolFinished.__name__, CompensationFinished.__name__})
"""What is recorded about effects: nothing else is decoded to check them."""
OF_WORKERS: Final = frozenset({AgentRegistered.__name__, AgentStopped.__name__})
ENDS: Final = frozenset({TaskCompleted.__name__, RunCompleted.__name__})
PLANS: Final = frozenset({RunSubmitted.__name__, RollbackContinued.__name__})
"""What holds orders of a rollback."""


class Receiver(Protocol):
    """The book of what effects reach."""

    arrivals: Counter[str]
    """Idempotency key -> how often it arrived."""
    explained: dict[str, str]
    """Idempotency key -> `task/tool/text` of its first arrival."""
    undone: dict[str, str]
    """Key of what was taken back -> key under which it was."""
    confused: list[str]
    """Keys that stood for two things."""


def check(log: MemoryLog, accepted: Collection[RunId], receiver: Receiver, *, expected: int) -> list[str]:
    """Check a whole log and the receiver's book.

    Args:
        accepted: runs whose submission was answered with a yes.
        expected: runs that were submitted.
    """
    texts = {hash_: data.decode() for hash_, data in log.blobs.items()}
    found = [] if len(accepted) == expected else [f"{expected - len(accepted)} submissions were never answered"]
    for run_id in sorted(accepted):
        events = [event for stream in log.streams.values() if stream.run_id == run_id for event in stream.events]
        found += run_violations(run_id, events)
        found += replay_violations(run_id, events, texts)
    found += effect_violations(log.events, receiver)
    found += worker_violations(log.events)
    return found


def worker_violations(events: Iterable[Recorded]) -> Iterator[str]:
    """Nobody dies who has not registered since it stopped: however many orchestrators look, what they notice is written once."""
    dead: dict[str, bool] = {}
    for recorded in events:
        if recorded.type not in OF_WORKERS:
            continue
        match event := recorded.event():
            case AgentRegistered() if recorded.stream != DIRECTORY:
                dead[event.worker] = False
            case AgentStopped():
                if event.heard_us is not msgspec.UNSET and dead.get(event.worker, True):
                    yield f"{event.worker} died at position {recorded.position}, and had not registered since it stopped"
                dead[event.worker] = True
            case _:
                continue


def rollback_violations(log: MemoryLog, rollbacks: Mapping[RunId, RunId], receiver: Receiver) -> Iterator[str]:
    """Each rollback is a run that keeps the rules, and what it says it has taken back is gone, in whichever process that happened.

    Args:
        rollbacks: run -> its rollback.
    """
    texts = {hash_: data.decode() for hash_, data in log.blobs.items()}
    for rollback in rollbacks.values():
        events = [event for stream in log.streams.values() if stream.run_id == rollback for event in stream.events]
        yield from run_violations(rollback, events)
        yield from replay_violations(rollback, events, texts)
        planned = Counter(order.key for recorded in events for order in _orders(recorded))
        yield from (f"rollback {rollback} takes {key} back {count} times" for key, count in planned.items() if count > 1)
        for event in (recorded.event() for recorded in events if recorded.type in ENDS):
            if isinstance(event, TaskCompleted) and event.outcome.output["undone"] not in receiver.undone:
                yield f"{event.outcome.output['undone']} is still there, although rollback {rollback} says that it is not"
            if isinstance(event, RunCompleted) and event.flags == () and any(e.effect == "irreversible" for e in _effects(log, rollbacks, rollback)):
                yield f"rollback {rollback} does not say that something cannot be taken back"


def _orders(recorded: Recorded) -> tuple[UndoOrder, ...]:
    if recorded.type not in PLANS:
        return ()
    match recorded.event():
        case RunSubmitted(rollback=Rollback(orders=orders)) | RollbackContinued(page=RollbackPage(orders=orders)):
            return orders
        case _:
            return ()


def _effects(log: MemoryLog, rollbacks: Mapping[RunId, RunId], rollback: RunId) -> list[RunEffect]:
    run_id = next(run for run, its in rollbacks.items() if its == rollback)
    events = sorted((event for stream in log.streams.values() if stream.run_id == run_id for event in stream.events), key=lambda event: event.position)
    return [effect for effect in effects_of(run_id, events, {}) if effect.status == "ok"]


def replay_violations(run_id: RunId, events: Iterable[Recorded], texts: Mapping[Hash, str]) -> Iterator[str]:
    """Every decision of the run follows from what was recorded before it."""
    streams: dict[Stream, list[Recorded]] = defaultdict(list)
    for recorded in events:
        streams[recorded.stream].append(recorded)
    report = fold_streams(run_id, streams, texts, verify=True)
    if report.divergence is not None:
        yield f"replay of {run_id}: {report.divergence}"


def ledger_violations(log: MemoryLog, accepted: Collection[RunId], billed_micro_usd: int) -> Iterator[str]:
    """What each run is charged is what its events say, nothing stays reserved, and nobody worked for nothing.

    Args:
        billed_micro_usd: what the provider has billed for all runs together, answers that were never recorded included.
    """
    if log.ledger.held:
        yield f"{len(log.ledger.held)} reservations were never settled"
    charged = {run_scope(run_id): charged_micro_usd(r for r in log.events if r.run_id == run_id) for run_id in accepted}
    accounts = {scope: account for scope in charged if (account := log.ledger.accounts.get(scope)) is not None}  # a run without a task has none
    yield from budget_violations(charged, {scope: BudgetState(None, None, account.spent, account.reserved) for scope, account in accounts.items()})
    billed = sum(charged.values())
    if billed < billed_micro_usd:
        yield f"the provider billed {billed_micro_usd} micro-USD, the runs were charged {billed}"


def effect_violations(events: Iterable[Recorded], receiver: Receiver) -> Iterator[str]:
    """What the receiver did is what the log says: one key per call, known to the log, done if the log says so, and gone if it says that."""
    keys: dict[tuple[Stream, str], ToolStarted] = {}
    taken_back: set[tuple[Stream, str]] = set()
    for recorded in events:
        if recorded.type not in OF_EFFECTS:
            continue
        match event := recorded.event():
            case ToolStarted() if event.effect != "read":
                keys[recorded.stream, event.call_id] = event
            case CompensationFinished() if event.status == "ok":
                taken_back.add((recorded.stream, event.call_id))
            case ToolFinished() if (begun := keys.get((recorded.stream, event.call_id))) is not None:
                key = begun.idempotency_key
                if event.status == "ok" and not begun.undoes and not receiver.arrivals[key]:
                    yield f"{event.call_id} of {recorded.stream} is recorded as done and never reached the receiver"
                if (recorded.stream, event.call_id) in taken_back and key not in receiver.undone:
                    yield f"{event.call_id} of {recorded.stream} is recorded as taken back and is still there"
            case _:
                continue
    unknown = sorted(set(receiver.arrivals) - {begun.idempotency_key for begun in keys.values()})
    if unknown:
        yield f"keys {', '.join(unknown)} reached the receiver and are not in the log"
    for what, count in Counter(receiver.explained.values()).items():
        if count > 1:
            yield f"{what} was done {count} times under different keys"
    yield from receiver.confused


def control_violations(log: MemoryLog, committed_us: Mapping[int, int]) -> Iterator[str]:
    """While something is paused nothing of it begins, a run that knows that it is paused or held dispatches nothing, and no end leaves a quarantine.

    Args:
        committed_us: last position of an append -> when it was in the log, in microseconds since 1970.
    """
    pauses = _pauses(log, committed_us)
    tenants = {r.run_id: event.tenant for r in log.events if r.type == RunSubmitted.__name__ and isinstance(event := r.event(), RunSubmitted)}
    kinds = {r.stream: event.kind for r in log.events if r.type == TaskOpened.__name__ and isinstance(event := r.event(), TaskOpened)}
    for recorded in log.events:
        if recorded.type not in BEGINNINGS:
            continue
        scopes = {f"run/{recorded.run_id}", f"tenant/{tenants[recorded.run_id]}", f"kind/{kinds[recorded.stream]}"}
        for scope, since_us, until_us in pauses:
            if scope in scopes and since_us + FRESH_S * 1e6 < recorded.occurred_us < until_us:
                late_s = (recorded.occurred_us - since_us) / 1e6
                yield f"{recorded.type} of {recorded.stream} version {recorded.version}: {late_s:.1f} s behind the pause of {scope}"
    for name, stream in log.streams.items():
        if category(name) == "run":
            yield from _run_control_violations(name, stream.events)


def _pauses(log: MemoryLog, committed_us: Mapping[int, int]) -> list[tuple[str, float, float]]:
    """Return scope, begin and end of every pause, in microseconds since 1970, as the log had them."""
    begun: dict[str, float] = {}
    found = []
    for recorded in log.streams[CONTROL_STREAM].events if CONTROL_STREAM in log.streams else ():
        at_us = min(at for position, at in committed_us.items() if position >= recorded.position)
        match event := recorded.event():
            case ScopePaused():
                begun.setdefault(event.scope, at_us)
            case ScopeResumed() if event.scope in begun:  # two operators may cross
                found.append((event.scope, begun.pop(event.scope), at_us))
    return [*found, *((scope, since_us, float("inf")) for scope, since_us in begun.items())]


def _run_control_violations(name: Stream, events: Iterable[Recorded]) -> Iterator[str]:
    paused: set[str] = set()
    quarantined: set[int] = set()
    for recorded in events:
        match event := recorded.event():
            case RunPaused() if not event.scope.startswith("kind/"):
                paused.add(event.scope)
            case RunResumed():
                paused.discard(event.scope)
            case RunQuarantined():
                quarantined.add(event.control)
            case QuarantineLifted():
                quarantined.discard(event.control)
            case RunHeld():
                paused.add("its budget")
            case RunReleased():
                paused.discard("its budget")
            case TaskDispatched() if paused:
                yield f"{name} version {recorded.version}: {event.key} was dispatched although {', '.join(paused)} keeps it"
            case RunCompleted() | RunFailed() if quarantined:
                yield f"{name} version {recorded.version}: the end of a run in quarantine"
            case _:
                continue
