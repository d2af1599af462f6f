"""What must hold however many processes died: checked on the log and on what reached the outside world.

Pure functions from recorded facts to a list of violations, shared by the simulation and by the tests that kill real processes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from crewlog.events.controls import FRESH_S
from crewlog.events.memory_store import MemoryLog
from crewlog.events.store import BudgetState, Recorded
from crewlog.orchestrator.invariants import charged_micro_usd, run_violations
from crewlog.orchestrator.invariants import ledger_violations as budget_violations
from crewlog.orchestrator.replay import fold_streams
from crewlog.schemas.budget import run_scope
from crewlog.schemas.ids import CONTROL_STREAM, Hash, RunId, Stream, category
from crewlog.schemas.run_events import QuarantineLifted, RunCompleted, RunFailed, RunPaused, RunQuarantined, RunResumed, RunSubmitted, TaskDispatched
from crewlog.schemas.system_events import ScopePaused, ScopeResumed
from crewlog.schemas.task_events import ModelCallStarted, TaskOpened, ToolFinished, ToolStarted

NO_ANSWER: Final = "no answer, it may have happened"
"""What a tool of the simulation says whose receiver did not answer."""
BEGINNINGS: Final = frozenset({ModelCallStarted.__name__, ToolStarted.__name__})
"""What a paused task may not do."""


def check(log: MemoryLog, accepted: Collection[RunId], arrivals: Counter[str], explained: Mapping[str, str], *, expected: int) -> list[str]:
    """Check a whole log and the receiver's book.

    Args:
        accepted: runs whose submission was answered with a yes.
        arrivals: idempotency key -> how often it reached the receiver.
        explained: idempotency key -> `task/tool/text` of its first arrival.
        expected: runs that were submitted.
    """
    texts = {hash_: data.decode() for hash_, data in log.blobs.items()}
    found = [] if len(accepted) == expected else [f"{expected - len(accepted)} submissions were never answered"]
    for run_id in sorted(accepted):
        events = [event for stream in log.streams.values() if stream.run_id == run_id for event in stream.events]
        found += run_violations(run_id, events)
        found += replay_violations(run_id, events, texts)
    found += effect_violations(log.events, arrivals, explained)
    return found


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


def effect_violations(events: Iterable[Recorded], arrivals: Counter[str], explained: Mapping[str, str]) -> Iterator[str]:
    """What the receiver did is what the log says: one key per call, known to the log, and done if the log says so."""
    keys: dict[tuple[Stream, str], str] = {}
    for recorded in events:
        event = recorded.event() if recorded.type in ("ToolStarted", "ToolFinished") else None
        if isinstance(event, ToolStarted) and event.effect != "read":
            keys[recorded.stream, event.call_id] = event.idempotency_key
        elif isinstance(event, ToolFinished) and event.status == "ok":
            key = keys.get((recorded.stream, event.call_id))
            if key is not None and not arrivals[key] and NO_ANSWER not in (event.result.inline or ""):
                yield f"{event.call_id} of {recorded.stream} is recorded as done and never reached the receiver"
    unknown = sorted(set(arrivals) - set(keys.values()))
    if unknown:
        yield f"keys {', '.join(unknown)} reached the receiver and are not in the log"
    for what, count in Counter(explained.values()).items():
        if count > 1:
            yield f"{what} was done {count} times under different keys"


def control_violations(log: MemoryLog, committed_us: Mapping[int, int]) -> Iterator[str]:
    """While something is paused nothing of it begins, a run that knows that it is paused dispatches nothing, and no end leaves a quarantine.

    Args:
        committed_us: last position of an append -> when it was in the log, in microseconds since 1970.
    """
    pauses = _pauses(log, committed_us)
    tenants = {r.run_id: event.tenant for r in log.events if isinstance(event := r.event(), RunSubmitted)}
    kinds = {r.stream: event.kind for r in log.events if isinstance(event := r.event(), TaskOpened)}
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
            case TaskDispatched() if paused:
                yield f"{name} version {recorded.version}: {event.key} was dispatched although {', '.join(paused)} is paused"
            case RunCompleted() | RunFailed() if quarantined:
                yield f"{name} version {recorded.version}: the end of a run in quarantine"
            case _:
                continue
