"""Who erases a person's data and has runs ended first waits for ends that will come, and for no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from support.crew import Crew, Moody

from crewlog.events.config import Config
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.personal_store import Person
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.erasure import Found, end_runs
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId
from crewlog.schemas.task import parse_task

WITHIN_S = 60.0


def of_ada(open_runs: Sequence[RunId]) -> Found:
    return Found(Person("default", "ada"), keys=[], gone=[], open_runs=open_runs, schedules=[], in_clear=[])


@asynccontextmanager
async def asking(crew: Crew) -> AsyncIterator[Client]:
    async with AsyncExitStack() as exits, asyncio.timeout(WITHIN_S):
        yield Client(Config(), crew.bus, clock=crew.clock, exits=exits, store=crew.store())


async def test_a_run_that_could_not_be_terminated_is_named_and_not_waited_for() -> None:
    crew = Crew()
    log = Moody(crew.log, role=ORCHESTRATOR)
    async with crew.orchestrator(store=log), asking(crew) as client:
        runs = [
            (await client.submit(parse_task({"task_id": str(crew.clock.random_id()), "type": "data", "user": "ada", "objective": "Count"}))).run_id
            for _ in range(2)
        ]
        log.failing = [Unavailable("the log went away")]

        with pytest.raises(Unavailable, match=r"1 run of ada could not be ended, so nothing was erased: .*: the log went away\ngive the same") as refused:
            await end_runs(client, of_ada(runs), actor="maria")

        assert sum(str(run_id) in str(refused.value) for run_id in runs) == 1
