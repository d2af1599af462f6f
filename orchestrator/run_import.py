"""Take a run that another crew exported into the log: looked at, explained, compared like one of our own, and never carried out.

Before anything is written, the file must replay by itself: every decision and every model request in it follows. Afterwards it is replayed
from the log, and must come to the same state.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from crewlog.events.clock import Clock
from crewlog.events.connections import Connections
from crewlog.events.prefix import fork_of
from crewlog.events.run_files import write_imported
from crewlog.events.store import EventStore
from crewlog.orchestrator.bundle import Bundle
from crewlog.orchestrator.replay import ReplayReport, replay
from crewlog.schemas.errors import ContractError, TerminalError
from crewlog.schemas.ids import Hash, RunId, category
from crewlog.schemas.system_events import RunImported

BLOBS_PER_CALL: Final = 64


class Imported(NamedTuple):
    """What was read in, where it begins in the log, and what replaying it gives, in the file and here."""

    run_id: RunId
    events: int
    blobs: int
    position: int
    report: ReplayReport


async def import_run(store: EventStore, connections: Connections, bundle: Bundle, marker: RunImported, clock: Clock, *, verify: bool = True) -> Imported:
    """Write a run from a file into the log.

    Args:
        verify: refuse a file whose decisions do not follow from each other; without it, it must only fold.

    Raises:
        ContractError: the run is in the log already, or the file does not replay.
        TerminalError: it replays here to another state than there.
    """
    run_id = bundle.run_id
    if await store.read_run(run_id):
        raise ContractError(f"run {run_id} is in this log already; nothing was written")
    if (forked := fork_of([event for event in bundle.events if event.run_id == run_id])) is not None:
        raise ContractError(f"run {run_id} is a fork of {forked.parent} and refers to its place in the log it comes from: look at the file instead")
    if foreign := sorted({category(event.stream) for event in bundle.events} - {"run", "task", "spend"}):
        raise ContractError(f"the file of run {run_id} has streams of other kinds: {', '.join(foreign)}")
    there = await replay(bundle.store(), run_id, verify=verify)
    if there.divergence is not None:
        raise ContractError(f"the file does not follow from itself: {there.divergence}\nimport it all the same with --unverified")
    blobs = list(bundle.blobs.values())
    for begin in range(0, len(blobs), BLOBS_PER_CALL):
        await store.put_blobs(blobs[begin : begin + BLOBS_PER_CALL])
    first, _ = await write_imported(connections, marker, bundle.events, marker_id=clock.new_id(), now_us=clock.now_us())
    here = await replay(store, run_id, verify=verify)
    if (here.state_hash, here.divergence) != (there.state_hash, there.divergence):
        raise TerminalError(f"run {run_id} was imported at position {first}, but replays to {here.state_hash}, in the file to {there.state_hash}")
    return Imported(run_id, len(bundle.events), len(bundle.blobs), first, here)


def marker_of(bundle: Bundle, *, file: str, sha256: Hash, actor: str) -> RunImported:
    """Say where a run comes from.

    Args:
        file: name of the file, without its folder.
        sha256: of the file.
    """
    return RunImported(bundle.run_id, file, sha256, len(bundle.events), len(bundle.blobs), actor, bundle.made_by)
