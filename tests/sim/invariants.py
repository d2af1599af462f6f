"""What must hold however many processes died: checked on the log and on what reached the outside world.

Pure functions from recorded facts to a list of violations, shared by the simulation and by the tests that kill real processes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from crewlog.events.memory_store import MemoryLog
from crewlog.events.store import BudgetState, Recorded
from crewlog.orchestrator.invariants import charged_micro_usd, run_violations
from crewlog.orchestrator.invariants import ledger_violations as budget_violations
from crewlog.orchestrator.replay import fold_streams
from crewlog.schemas.budget import run_scope
from crewlog.schemas.ids import Hash, RunId, Stream
from crewlog.schemas.task_events import ToolFinished, ToolStarted

NO_ANSWER: Final = "no answer, it may have happened"
"""What a tool of the simulation says whose receiver did not answer."""


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
    accounts = {scope: log.ledger.accounts[scope] for scope in charged}
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
