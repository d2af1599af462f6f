"""Take runs that are over out of the log and into files, each only when its file was proved to replay to the same state.

The order makes every interruption harmless: the file is on the disk and read back before `RunArchived` says so, and only then does the
database delete the events, if they are still exactly those that `RunArchived` names. Doing it again goes on where it ended. The file has the texts;
files that the run read and made lie beside it, see `archived_files`. Both also stay where they were: other runs may refer to them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from crewlog.events.artifacts import ArtifactStore
from crewlog.events.clock import Clock
from crewlog.events.connections import Connections
from crewlog.events.run_files import Announced, hindrance, run_digest, take_out
from crewlog.events.store import AppendRequest, EventStore, Write
from crewlog.orchestrator.archived_files import files_of, keep_files
from crewlog.orchestrator.bundle import Bundle, collect, pack_bundle, unpack_bundle
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.whole_file import write_durably
from crewlog.projections.queries import Queries
from crewlog.projections.query_rows import RunView
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId, archive_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.public_form import ERASED
from crewlog.schemas.run_events import RunForked, RunSubmitted
from crewlog.schemas.system_events import RunArchived

SUFFIX: Final = ".crewlog"


class LeftAlready(ContractError):
    """Somebody else has archived the run, and the views are behind."""


class Archived(NamedTuple):
    """One run that left the log."""

    run_id: RunId
    file: Path
    events: int
    size: int
    """Of the file, in bytes."""
    files: int
    """That lie beside it and that it refers to."""


async def archive_run(
    store: EventStore, connections: Connections, run: RunView, folder: Path, *, artifacts: ArtifactStore | None, actor: str, clock: Clock
) -> Archived:
    """Write a run to a file, prove that the file replays, and take the run out of the log.

    Args:
        store: reads the run and appends `RunArchived`.
        connections: with the login that may archive.
        run: as the views have it.
        artifacts: where the files are that it read and made; None leaves them out.

    Raises:
        LeftAlready: it is in the log no more.
        ContractError: the run does not replay, its file is not what was written, a file that it refers to is gone, or the database refuses to let
            it go.
        OSError: the file cannot be written.
    """
    run_id = RunId(run.run_id)
    before = await run_digest(connections, run_id)
    if not before.events:
        raise LeftAlready(f"run {run_id} is in the log no more: another command, or one that was interrupted, has archived it")
    if reason := await hindrance(connections, run_id):
        raise ContractError(f"run {run_id} may not leave the log: {reason}")
    bundle = await collect(store, run_id)
    here = await replay(store, run_id)
    if here.divergence is not None:
        raise ContractError(f"run {run_id} does not follow from itself ({here.divergence}): it stays in the log")
    files = {} if artifacts is None else files_of(bundle.events)
    if artifacts is not None:
        await keep_files(artifacts, files, folder)
    data = pack_bundle(bundle)
    path = folder / f"{run_id}{SUFFIX}"
    write_durably(path, data)
    written = unpack_bundle(path.read_bytes(), str(path))
    there = await replay(written.store(), run_id)
    if list(written.events) != list(bundle.events) or there != here:
        raise ContractError(f"{path} does not replay to what run {run_id} is in the log: the run stays there")
    goal = ERASED if any(recorded.erased_us for recorded in bundle.events if recorded.run_id == run_id) else run.goal
    fact = RunArchived(
        *(run_id, run.tenant, run.user_name, run.type, goal, run.status, _us(run.submitted_at), _us(run.finished_at), run.cost_micro_usd),
        *(before.events, before.digest, path.name, content_hash(data), actor, _parent(bundle)),
    )
    await store.append(AppendRequest((Write(archive_stream(run_id), (fact,)),), (clock.new_id(),), clock.now_us()))
    return Archived(run_id, path, await take_out(connections, run_id), len(data), len(files))


async def finish_announced(connections: Connections, announced: Announced, folder: Path) -> int:
    """Take a run out of the log whose file was announced by a command that was interrupted; returns how many events left.

    Raises:
        ContractError: the folder does not have that file, or the database refuses to let the run go.
    """
    path = folder / announced.file
    if not path.is_file() or content_hash(path.read_bytes()) != announced.sha256:
        raise ContractError(
            f"{path} is not there, or not the file that was written (sha256 {announced.sha256}): name the folder that has it with --out; "
            f"without one, crewlog export {announced.run_id} writes the run again"
        )
    return await take_out(connections, announced.run_id)


async def finished_before(queries: Queries, at: datetime, *, tenant: str | None, user: str | None = None) -> AsyncIterator[RunView]:
    """Yield runs that ended before a time, the newest first."""
    async for run in queries.every_run(tenant=tenant, user=user, before=at):
        if run.finished_at is not None and run.finished_at < at:
            yield run


def _parent(bundle: Bundle) -> UUID | None:
    """Return the task or run that a run says it came from. A fork says so of none: it is the beginning of a tree."""
    opening = next(event for recorded in bundle.events if isinstance(event := recorded.event(), RunSubmitted | RunForked) and recorded.run_id == bundle.run_id)
    parent: str | None = msgspec.json.decode(opening.task).get("parent_task_id") if isinstance(opening, RunSubmitted) else None
    return None if parent is None else UUID(parent)


def _us(at: datetime | None) -> int:
    return 0 if at is None else round(at.timestamp() * 1_000_000)
