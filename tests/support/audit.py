"""What must hold for every run, however many processes died under it: read from the log and the views of a live crew."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import UUID

import asyncpg
from support.live_crew import LiveCrew

from crewlog.events.credentials import load_credentials
from crewlog.events.store import Recorded
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.home import Home
from crewlog.orchestrator.invariants import run_violations
from crewlog.orchestrator.replay import replay
from crewlog.projections.digest import digest
from crewlog.schemas.ids import RunId
from crewlog.schemas.task_events import ToolFinished, ToolStarted


async def events(client: Client, run_id: RunId | UUID) -> list[Recorded]:
    """Read everything about a run."""
    return [recorded async for recorded in client.events(RunId(run_id))]


async def ended_well(client: Client, runs: Iterable[RunId], *, within_s: float = 120.0) -> None:
    """Wait until all of these runs have completed, and hold each to the rules."""
    runs = list(runs)
    try:
        async with asyncio.timeout(within_s):
            for run_id in runs:
                run = await client.wait(run_id)
                assert run.status == "completed", f"run {run_id} is {run.status}: {run.error}"
    except TimeoutError as error:
        raise AssertionError(f"run {run_id} has no end {within_s:g} s later") from error
    for run_id in runs:
        await follows_the_rules(client, run_id)


async def follows_the_rules(client: Client, run_id: RunId) -> None:
    """Check: one end for the run and each task, nothing with an effect blindly repeated, and a replay that is identical."""
    recorded = await events(client, run_id)
    found = [*run_violations(run_id, recorded)]
    assert not found, "\n".join(found)
    unfinished = {call for r in recorded if isinstance(event := r.event(), ToolStarted) for call in [(r.stream, event.call_id)]}
    unfinished -= {(r.stream, event.call_id) for r in recorded if isinstance(event := r.event(), ToolFinished)}
    assert not unfinished, f"calls without an outcome: {unfinished}"
    report = await replay(await client.store(), run_id)
    assert report.divergence is None, report


async def same_after_rebuild(crew: LiveCrew, *, within_s: float = 120.0) -> None:
    """Check that views made anew from the log are byte for byte those that followed it.

    A crew records facts of its own as well, as of a worker that died a moment ago. Views are compared when there were none in between.
    """
    state = Home(crew.home).state()
    assert state is not None
    projector = load_credentials(crew.home).postgres_url("crewlog_projector", state.database_port or 0)
    async with asyncio.timeout(within_s):
        position = None
        while position != (position := await caught_up(crew)):
            followed = await digest(projector)
            await asyncio.to_thread(crew.run, "db", "rebuild")
            rebuilt = await digest(projector)
    assert rebuilt == followed
    assert len(rebuilt) > 5


async def caught_up(crew: LiveCrew) -> int:
    """Wait until the views show all of the log, and return the position of its end."""
    state = Home(crew.home).state()
    assert state is not None
    connection = await asyncpg.connect(load_credentials(crew.home).postgres_url("crewlog_operator", state.database_port or 0))
    try:
        while True:
            shown, end = await connection.fetchrow("SELECT (SELECT min(position) FROM crewlog.checkpoints), (SELECT max(position) FROM crewlog.events)")
            if shown >= end:
                return int(end)
            await asyncio.sleep(0.02)
    finally:
        await connection.close()
