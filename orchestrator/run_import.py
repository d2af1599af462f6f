"""Take a run that another crew exported, or that this one archived, into the log: looked at, explained, compared like one of our own, and never
carried out.

Before anything is written, the file must replay by itself: every decision and every model request in it follows. Afterwards it is replayed
from the log, and must come to the same state. The file of a fork also has the beginnings of the runs that it goes on from: each is read in as a run of
its own unless the log has it, and the fork refers to it here as it did there. A file that has more of such a run makes it whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from crewlog.events.clock import Clock
from crewlog.events.connections import Connections
from crewlog.events.personal_store import PersonalStore
from crewlog.events.prefix import fork_of
from crewlog.events.run_files import write_imported
from crewlog.events.store import RUN_CATEGORIES, EventStore, Recorded
from crewlog.orchestrator.bundle import Bundle
from crewlog.orchestrator.replay import ReplayReport, replay
from crewlog.orchestrator.run_history import erased_text
from crewlog.schemas.errors import ContractError, TerminalError
from crewlog.schemas.ids import Hash, RunId, Stream, category
from crewlog.schemas.system_events import RunImported
from crewlog.schemas.task_events import TaskForked, TaskMoved, TaskStarted

BLOBS_PER_CALL: Final = 64


class Imported(NamedTuple):
    """What was read in, where it begins in the log, and what replaying it gives, in the file and here."""

    run_id: RunId
    events: int
    blobs: int
    position: int
    report: ReplayReport
    beginnings: tuple[RunId, ...] = ()
    """Runs that it goes on from, of which the file had more than the log."""


async def import_run(store: EventStore, connections: Connections, bundle: Bundle, marker: RunImported, clock: Clock, *, verify: bool = True) -> Imported:
    """Write a run from a file into the log.

    Args:
        verify: refuse a file whose decisions do not follow from each other; without it, it must only fold.

    Raises:
        ContractError: the run is in the log already, the file does not replay, or the log has other events of a run that it goes on from.
        TerminalError: it replays here to another state than there.
    """
    run_id = bundle.run_id
    if foreign := sorted({category(event.stream) for event in bundle.events} - RUN_CATEGORIES):
        raise ContractError(f"the file of run {run_id} has streams of other kinds: {', '.join(foreign)}")
    family = family_of(bundle)
    missing = {member: await _missing(store, member, events) for member, events in family.items()}
    if not missing[run_id]:
        raise ContractError(f"run {run_id} is in this log already; nothing was written")
    there = await replay(bundle.store(), run_id, verify=verify)
    if there.divergence is not None:
        raise ContractError(f"the file does not follow from itself: {there.divergence}\nimport it all the same with --unverified")
    incomplete = [member for member, events in missing.items() if events]
    stored = {member: await store.adopt(member, family[member]) if isinstance(store, PersonalStore) else family[member] for member in incomplete}
    await _put_blobs(store, bundle)
    first = 0
    for member, events in stored.items():
        fact = marker if member == run_id else replace(marker, run_id=member, events=len(events), blobs=0, is_beginning=True)
        first, _ = await write_imported(connections, fact, events, marker_id=clock.new_id(), now_us=clock.now_us())
    here = await replay(store, run_id, verify=verify)
    if (here.state_hash, here.divergence) != (there.state_hash, there.divergence):
        raise TerminalError(f"run {run_id} was imported at position {first}, but replays to {here.state_hash}, in the file to {there.state_hash}")
    beginnings = tuple(member for member, events in missing.items() if events and member != run_id)
    return Imported(run_id, len(family[run_id]), len(bundle.blobs), first, here, beginnings)


async def is_here(store: EventStore, bundle: Bundle) -> bool:
    """Say whether all of a run is in the log already, so that only files of it may be missing.

    Raises:
        ContractError: the log has other events in its place, or the data of its person was erased here.
    """
    return not await _missing(store, bundle.run_id, family_of(bundle)[bundle.run_id])


async def _put_blobs(store: EventStore, bundle: Bundle) -> None:
    """Store the texts of a file: setups of agents for everybody, all others as the run's own."""
    setups = {event.setup.ref for recorded in bundle.events if isinstance(event := recorded.event(), TaskStarted | TaskMoved)}
    setups |= {event.setup.ref for recorded in bundle.events if isinstance(event := recorded.event(), TaskForked) and event.setup is not None}
    for own in (False, True):
        blobs = [data for hash_, data in bundle.blobs.items() if (hash_ not in setups) is own]
        for begin in range(0, len(blobs), BLOBS_PER_CALL):
            await store.put_blobs(blobs[begin : begin + BLOBS_PER_CALL], run_id=bundle.run_id if own else None)


def family_of(bundle: Bundle) -> dict[RunId, list[Recorded]]:
    """Sort the events of a file by the run that they are of: the run itself last, in front of it each one that it goes on from.

    Raises:
        ContractError: it does not have what a fork in it goes on from.
    """
    owners = _owners(bundle)
    found: dict[RunId, list[Recorded]] = {}
    member: RunId | None = bundle.run_id
    while member is not None:
        events = [event for event in bundle.events if owners[event.stream] == member]
        if not events or member in found:
            raise ContractError(f"the file of run {bundle.run_id} has no events of run {member}, which it goes on from")
        found[member] = events
        forked = fork_of(events)
        member = None if forked is None else forked.parent
    return dict(reversed(found.items()))


def _owners(bundle: Bundle) -> dict[Stream, RunId]:
    """Say which run each stream is of. Not every event does: the bill of a call that came late is found by its task."""
    said: dict[str, RunId] = {}
    for event in bundle.events:
        if event.run_id is not None:
            said.setdefault(event.stream.partition("/")[2], event.run_id)
    return {event.stream: said.get(event.stream.partition("/")[2], bundle.run_id) for event in bundle.events}


async def _missing(store: EventStore, run_id: RunId, events: Sequence[Recorded]) -> int:
    """Count the events of a run that the log does not have.

    Raises:
        ContractError: it has others in their place.
    """
    here = {(recorded.stream, recorded.version): recorded for recorded in await store.read_run(run_id)}
    for event in events:
        known = here.get((event.stream, event.version))
        if known is not None and known.erased_us and not event.erased_us:
            raise ContractError(f"run {run_id} is in this log, and {erased_text(known.erased_us)}; its file is not read in, and should be deleted")
        if known is not None and (known.event_id, known.type, known.data) != (event.event_id, event.type, event.data):
            raise ContractError(f"run {run_id} is in this log with another event at {event.stream} version {event.version}; nothing was written")
    return sum((event.stream, event.version) not in here for event in events)


def marker_of(bundle: Bundle, *, file: str, sha256: Hash, actor: str) -> RunImported:
    """Say where a run comes from.

    Args:
        file: name of the file, without its folder.
        sha256: of the file.
    """
    return RunImported(bundle.run_id, file, sha256, len(family_of(bundle)[bundle.run_id]), len(bundle.blobs), actor, bundle.made_by)
