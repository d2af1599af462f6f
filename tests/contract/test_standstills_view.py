"""The view of standstills: open runs whose last fact is the alert about them, and nothing else."""

from __future__ import annotations

import msgspec
import pytest
from support.logs import CLOCK, cancelled, dispatched, new_run, new_task, request, to_run
from support.postgres import Database
from support.views import follow, log_of, model_of

from crewlog.events.store import ANY, NO_STREAM, AppendRequest, Write
from crewlog.projections.queries import Queries
from crewlog.schemas.ids import RunId, alert_stream, run_stream
from crewlog.schemas.run_events import RunPlanned, RunSubmitted, Step
from crewlog.schemas.system_events import RunStoodStill

pytestmark = pytest.mark.hand_written("runs of which only what the view looks at is there")


def submitted(run_id: RunId) -> RunSubmitted:
    task = {"task_id": str(run_id), "run_id": str(run_id), "type": "run", "objective": "goal"}
    return RunSubmitted(run_id, "default", "anonymous", "goal", msgspec.Raw(msgspec.json.encode(task)), "api")


def alert(run_id: RunId, what: str) -> AppendRequest:
    return request(Write(alert_stream(run_id), [RunStoodStill(run_id, what, 1_000_000)], ANY), run_id=run_id)


async def test_a_standstill_is_listed_until_something_happens_to_its_run(database: Database) -> None:
    still, moved, over, again = (new_run() for _ in range(4))
    async with log_of(database) as store, model_of(database, store) as model:
        for run_id in (still, moved, over, again):
            await store.append(request(Write(run_stream(run_id), [submitted(run_id)], NO_STREAM), run_id=run_id))
            await store.append(alert(run_id, "nothing is due"))
        for run_id in (moved, again):
            plan = RunPlanned((Step("step", "research", "do it", (), msgspec.Raw(b"{}")),), "given")
            await store.append(to_run(run_id, plan, dispatched(new_task())))
        await store.append(to_run(over, cancelled()))
        await store.append(alert(again, "and now it stands still once more"))
        await follow(model, store)
    async with Queries(database.url("crewlog_operator"), CLOCK) as queries:
        found = await queries.standstills("default")
        assert {one.run_id: one.what for one in found} == {still: "nothing is due", again: "and now it stands still once more"}
        assert {one.since_at.timestamp() for one in found} == {1.0}
        assert await queries.standstills("somebody") == []
