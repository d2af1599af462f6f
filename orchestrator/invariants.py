"""What must hold for a run however many processes died under it. Pure functions from recorded facts to violations in words.

Used by `crewlog chaos`, by the simulation of schedules and by the tests that kill real processes: one set of rules for all of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final
from uuid import UUID

from crewlog.events.bills import BILL_TYPES, Bill
from crewlog.events.store import BudgetState, Recorded
from crewlog.schemas.ids import RunId, Stream, category
from crewlog.schemas.system_events import BillCorrected
from crewlog.schemas.task_events import TERMINAL_TYPES, ApprovalDecided, ToolFinished, ToolProbed, ToolStarted

_OF_CALLS: Final = frozenset(cls.__name__ for cls in (ToolStarted, ToolProbed, ApprovalDecided, ToolFinished))
_BILLS: Final = BILL_TYPES | {BillCorrected.__name__}


def run_violations(run_id: RunId, events: Iterable[Recorded]) -> Iterator[str]:
    """Each stream of the run counts without a gap and ends exactly once, at its end; nothing was blindly repeated."""
    streams: dict[Stream, list[Recorded]] = defaultdict(list)
    for recorded in events:
        streams[recorded.stream].append(recorded)
    if not streams:
        yield f"run {run_id} was accepted and is not in the log"
    for stream, recorded_events in streams.items():
        if category(stream) not in ("run", "task"):
            continue
        versions = [recorded.version for recorded in recorded_events]
        if versions != list(range(1, len(versions) + 1)):
            yield f"{stream} has versions {versions}"
        ends = [recorded.version for recorded in recorded_events if recorded.type in TERMINAL_TYPES]
        if ends != versions[-1:]:
            yield f"{stream} ends at {ends or 'no version'} of {versions[-1]}"
        yield from _call_violations(stream, recorded_events)


def _call_violations(stream: Stream, events: Sequence[Recorded]) -> Iterator[str]:
    keys: dict[str, set[str]] = defaultdict(set)
    finishes: Counter[str] = Counter()
    told: set[str] = set()
    """Calls that may run again: a probe found nothing, or a person said so."""
    asked: set[str] = set()
    repeatable: set[str] = set()
    """Calls of tools that may run twice: where none is there to do it, no person need be asked what became of the first time."""
    for recorded in events:
        if recorded.type not in _OF_CALLS:
            continue
        match event := recorded.event():
            case ToolStarted():
                if event.effect in ("read", "idempotent"):
                    repeatable.add(event.call_id)
                elif keys[event.call_id] and event.call_id not in told:
                    yield f"{event.call_id} of {stream} was repeated and nobody was asked"
                keys[event.call_id].add(event.idempotency_key)
                told.discard(event.call_id)
            case ToolProbed() if event.verdict == "did_not_happen":
                told.add(event.call_id)
            case ApprovalDecided():
                asked.add(event.call_id)
                if event.decision in ("approved", "did_not_happen"):
                    told.add(event.call_id)
            case ToolFinished():
                finishes[event.call_id] += 1
                if event.status == "unknown" and not event.reused and event.call_id not in asked | repeatable:
                    yield f"{event.call_id} of {stream} is left unknown and nobody was asked"
            case _:
                continue
    for call_id, names in keys.items():
        if finishes[call_id] > 1:
            yield f"{call_id} of {stream} has {finishes[call_id]} outcomes"
        if len(names) > 1:
            yield f"{call_id} of {stream} was started under several keys"


def charged_micro_usd(events: Iterable[Recorded]) -> int:
    """Add up what the events of one run say that its model calls cost, in micro-USD. The first bill of a call counts, unless it was corrected."""
    bills: dict[tuple[UUID | None, str], int] = {}
    for recorded in events:
        if recorded.type not in _BILLS:
            continue
        event = recorded.event()
        if isinstance(event, Bill):
            bills.setdefault((recorded.task_id, event.call_id), event.price.cost_micro_usd or 0)
        elif isinstance(event, BillCorrected):
            bills[recorded.task_id, event.call_id] = event.price.cost_micro_usd or 0
    return sum(bills.values())


def ledger_violations(charged: Mapping[str, int], budgets: Mapping[str, BudgetState]) -> Iterator[str]:
    """Each budget holds exactly what the log says was spent from it, and nothing is reserved any more.

    Args:
        charged: scope -> micro-USD according to the log.
        budgets: scope -> what the ledger says.
    """
    for scope, expected in charged.items():
        state = budgets.get(scope)
        if state is None:
            if expected:
                yield f"budget {scope}: {expected} micro-USD in the log, and the ledger does not know it"
        elif (state.spent, state.reserved) != (expected, 0):
            yield f"budget {scope}: {state.spent} micro-USD spent and {state.reserved} reserved in the ledger, {expected} spent in the log"
