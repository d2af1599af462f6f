"""Replay a run: fold its recorded events through the same machines that ran it, and check that they follow from each other.

No model and no tool is called and nothing is written; it costs nothing. `replay` answers with hashes of the final states, so two
replays (another machine, another day, another program version) can be compared at a glance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from crewlog.agents.rederive import replay_task
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.folds import folded
from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.run_history import RunHistory, Unreadable, load_history, payloads_in, shown
from crewlog.schemas.codec import Unknown
from crewlog.schemas.divergence import Divergence
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash, RunId, Stream, category, run_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.task_events import TaskEvent


class ReplayReport(msgspec.Struct, frozen=True):
    """What a replay did and found. `state_hash` covers the folded state of the run and of every task."""

    run_id: RunId
    events: int
    streams: int
    model_calls: int
    state_hash: Hash
    divergence: Divergence | None
    unknown: dict[str, int] = {}
    """Events that were passed over, as this program does not know their type or version or their data is not that of it: `<type> v<version>` -> how many."""
    erased_us: int = 0
    """When the data of the run's person was erased. Then what is left was folded, and nothing was derived from it."""


async def replay(store: EventStore, run_id: RunId, *, verify: bool = True) -> ReplayReport:
    """Fold a run from the log and, with `verify`, derive every decision and every model request in it again.

    Of a run whose person's data was erased, what is left is folded: nothing can be derived again, and that is no divergence.

    Raises:
        NotFound: the log has no such run.
        ContractError: a blob that an event refers to is missing.
    """
    history = await load_history(store, run_id)
    verify = verify and not history.erased_us
    try:
        report = fold_streams(run_id, history.streams, await _texts(store, history), verify=verify)
    except ContractError:
        if (readable := shown(history)) is history:
            raise
        report = fold_streams(run_id, readable.streams, await _texts(store, readable), verify=verify)
        if verify:
            broken = next(recorded for recorded in readable.events if isinstance(recorded, Unreadable))
            divergence = Divergence(broken.stream, broken.version, "data", f"a {broken.type} of schema version {broken.schema_version}", broken.error)
            report = msgspec.structs.replace(report, divergence=divergence)
    return msgspec.structs.replace(report, erased_us=history.erased_us)


def fold_streams(run_id: RunId, streams: Mapping[Stream, Sequence[Recorded]], texts: Mapping[Hash, str], *, verify: bool) -> ReplayReport:
    """Fold all streams of a run. Pure: the same events give the same report."""
    read = RunHistory(run_id, (), texts).read
    run_events = streams.get(run_stream(run_id), ())
    task_events = [r for stream, recorded in streams.items() if category(stream) == "task" for r in recorded]
    divergence = _gap(streams) or (verify_run(run_events, task_events) if verify else None)
    states: dict[str, Any] = {str(run_stream(run_id)): folded(run_events)}
    model_calls = 0
    for stream in sorted(streams):
        if category(stream) == "task":
            task = replay_task(streams[stream], read, verify=verify)
            states[str(stream)] = task.state
            model_calls += task.model_calls
            divergence = divergence or task.divergence
    unknown = Counter(f"{event.type} v{event.schema_version}" for events in streams.values() for r in events if isinstance(event := r.event(), Unknown))
    return ReplayReport(run_id, sum(map(len, streams.values())), len(streams), model_calls, state_hash(states), divergence, dict(unknown))


def state_hash(states: Mapping[str, Any]) -> Hash:
    """Return the hash of folded states, stream -> state: the same on every machine."""
    plain = msgspec.to_builtins(states, str_keys=True, enc_hook=_builtin)  # keys sort only as text, and some states are keyed by ids
    return content_hash(msgspec.json.encode(plain, order="deterministic"))


def _gap(streams: Mapping[Stream, Sequence[Recorded]]) -> Divergence | None:
    for stream in sorted(streams):
        last: dict[Stream, int] = {}
        for recorded in streams[stream]:
            expected = last.get(recorded.stream, 0) + 1
            if recorded.version != expected:
                return Divergence(recorded.stream, recorded.version, "version", expected, recorded.version)
            last[recorded.stream] = expected
    return None


async def _texts(store: EventStore, history: RunHistory) -> Mapping[Hash, str]:
    refs = sorted({p.ref for r in history.events if isinstance(event := r.event(), TaskEvent) for p in payloads_in(event) if p.ref is not None})
    blobs = await store.get_blobs(refs)
    for ref in refs:
        if ref not in blobs and not history.erased_us:
            raise ContractError(f"the run refers to blob {ref}, which is not in the log")
    return {ref: data.decode() for ref, data in blobs.items()}


def _builtin(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be hashed")
