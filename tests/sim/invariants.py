"""What must hold however many processes died: checked on the log and on what reached the outside world.

Pure functions from recorded facts to a list of violations, shared by the simulation and by the tests that kill real processes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from crewlog.events.memory_store import MemoryLog
from crewlog.events.store import Recorded
from crewlog.orchestrator.replay import fold_streams
from crewlog.schemas.budget import run_scope
from crewlog.schemas.ids import Hash, RunId, Stream, category
from crewlog.schemas.system_events import CallSettled
from crewlog.schemas.task_events import TERMINAL_TYPES, ModelCallFailed, ModelCallFinished, ToolFinished, ToolStarted

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
    starts: dict[str, list[ToolStarted]] = defaultdict(list)
    finishes: Counter[str] = Counter()
    for recorded in events:
        event = recorded.event()
        if isinstance(event, ToolStarted):
            starts[event.call_id].append(event)
        elif isinstance(event, ToolFinished):
            finishes[event.call_id] += 1
    for call_id, begun in starts.items():
        if finishes[call_id] > 1:
            yield f"{call_id} of {stream} has {finishes[call_id]} outcomes"
        if len({start.idempotency_key for start in begun}) > 1:
            yield f"{call_id} of {stream} was started under several keys"
        if any(start.effect not in ("read", "idempotent") and start.approval_id is None for start in begun[1:]):
            yield f"{call_id} of {stream} was repeated and nobody was asked"


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
    charged = 0
    for run_id in accepted:
        bills: dict[tuple[object, str], int] = {}
        for recorded in log.events:
            event = recorded.event() if recorded.run_id == run_id else None
            if isinstance(event, ModelCallFinished | ModelCallFailed | CallSettled):
                bills.setdefault((recorded.task_id, event.call_id), event.price.cost_micro_usd or 0)  # the first bill of a call counts
        account, total = log.ledger.accounts[run_scope(run_id)], sum(bills.values())
        if (account.spent, account.reserved) != (total, 0):
            yield f"run {run_id}: {account.spent} spent and {account.reserved} reserved micro-USD in the ledger, {total} in the log"
        charged += total
    if charged < billed_micro_usd:
        yield f"the provider billed {billed_micro_usd} micro-USD, the runs were charged {charged}"


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
