"""Shadows have workers of their own: while none is there they wait, and nothing that is live waits behind them or is refused because of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from support.crew import Crew

from crewlog.orchestrator.shadows import parse_shadow
from crewlog.orchestrator.window import UNHEARD
from crewlog.schemas.ids import RunId, TaskId, shadow_run_id, task_stream
from crewlog.schemas.subjects import SHADOW_LANE
from crewlog.schemas.task import parse_task

RUNS = UNHEARD + 10
"""More shadows than may lie on their queue, so that some of them wait in the orchestrator."""
SHADOWED: dict[str, Any] = {"shadow": parse_shadow("data=1:offline"), "shadow_max_micro_usd": 50_000}


def lying(crew: Crew, lane: str) -> int:
    return sum(message.subject == f"work.data.{lane}" for message in crew.broker.messages("WORK"))


async def test_live_work_neither_waits_behind_shadows_nor_is_refused_because_of_them() -> None:
    crew = Crew()
    limits = {"open_runs_max": 2, "waiting_tasks_max": 1}
    async with crew.orchestrator(**SHADOWED, **limits) as service:
        async with crew.agents():
            runs = []
            for _ in range(RUNS):
                runs.append(await crew.submit(type="data"))
                assert (await crew.ended(runs[-1])).type == "RunCompleted"
            await crew.until(lambda: all(crew.events(shadow_run_id(run)) for run in runs))
            assert not any(crew.types(shadow_run_id(run))[-1].startswith("RunC") for run in runs), "no agent of the usual ones took a shadow"
            assert lying(crew, SHADOW_LANE) + service.dispatcher.waiting == RUNS
            assert service.dispatcher.waiting > 0
            assert service.dispatcher.waiting_of("default") == 0
            last = await crew.submit(type="data")
            assert (await crew.ended(last)).type == "RunCompleted"
        async with crew.agents(["data"], lanes=[SHADOW_LANE]):
            for run in (*runs, last):
                assert (await crew.ended(shadow_run_id(run))).type == "RunCompleted"
        assert service.dispatcher.waiting == 0


async def test_a_shadow_is_charged_to_a_scope_of_its_own_and_to_no_day_of_its_tenant() -> None:
    crew = Crew()
    async with crew.orchestrator(**SHADOWED), crew.agents(), crew.agents(["data"], lanes=[SHADOW_LANE]):
        run = await crew.submit(type="data")
        await crew.ended(run)
        shadow = shadow_run_id(run)
        await crew.ended(shadow)
        charged, live = [await crew.store().budgets_of(task_stream(TaskId(one))) for one in (shadow, run)]
        assert sorted(scope.split("/")[0] for scope in live) == ["kind", "run", "tenant", "tree", "user"]
        assert sorted(scope.split("/")[0] for scope in charged) == ["run", "tree", "trial"]
        (own,) = [state for scope, state in charged.items() if scope.startswith("trial/default/shadow-data-")]
        assert own.hard == 50_000


async def test_a_fork_of_a_shadow_is_somebodys_work_like_any_other() -> None:
    crew = Crew()
    async with crew.orchestrator() as service:
        task = {"task_id": str(crew.clock.random_id()), "type": "data", "objective": "Do it", "priority": SHADOW_LANE, "trial": {"name": "shadow-data-x"}}
        refused = await crew.ask("tasks.submit", task)
        assert (refused["ok"], refused["error"]["problems"][0]["pointer"]) == (False, "/priority"), "its costs would be charged to no day of its tenant"
        run = (await service.driver.submit(parse_task(task), "api", is_shadow=True)).run_id
        assert lying(crew, SHADOW_LANE) == 1
        forked = await crew.ask("runs.fork", {"run_id": run, "at": 2, "actor": "ann", "fork_id": str(uuid4())})
        assert forked["ok"], forked
        async with crew.agents():
            fork = RunId(UUID(forked["run_id"]))
            await crew.until(lambda: crew.types(fork)[-1] == "RunCompleted")
        assert lying(crew, SHADOW_LANE) == 1
