"""Work that needs a certain version of its agent is carried out by one of that version, whoever fetches first, and waits while there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from support.scripted import Recorder, ScriptedModel, calls
from support.toolbox import MemoryArtifacts

from crewlog.agents import worker as worker_module
from crewlog.agents.spec import AgentSpec
from crewlog.agents.work import Workshop
from crewlog.agents.worker import Worker
from crewlog.events.clock import SystemClock
from crewlog.events.grants import kind_role
from crewlog.events.lanes import in_turn
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.memory_store import MemoryStore
from crewlog.orchestrator.brief import Brief
from crewlog.orchestrator.kinds import DIRECTORY, KindDirectory, known_versions
from crewlog.orchestrator.memory_crew import QUIET, MemoryCrew, memory_crew
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.shadows import parse_shadow
from crewlog.schemas.blocks import ModelReply, ModelRequest, Text
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId, TaskId, shadow_run_id, task_stream
from crewlog.schemas.subjects import VERSION_LANES, version_lane, work, worker_group
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import ApprovalRequested, TaskStarted, ToolFinished, ToolStarted

FORKS = 12
"""Of each version: enough that workers which take what comes would mix them up."""
CLASHING = ("1", "27")


def by_objective(request: ModelRequest) -> ModelReply:
    """Submit, or mail first if that is the objective."""
    turn, opening = sum(message.role == "assistant" for message in request.messages), request.messages[0].content[0]
    asked = "mail" if isinstance(opening, Text) and '"objective":"mail"' in opening.text and not turn else "submit"
    return calls((asked, '{"text":"done"}'))


class Versions:
    """A crew of which a test starts and stops the workers."""

    def __init__(self, crew: MemoryCrew, folder: Path) -> None:
        self.crew, self._folder = crew, folder
        self._clock = SystemClock()

    @asynccontextmanager
    async def worker(self, version: str, *, kind: str = "data", slots: int = 4, keeps: Sequence[str] = (), **own: Any) -> AsyncIterator[None]:
        """Run a worker. Each version has a `mail` of its own, and some keep those of others."""
        *tools, submit = Recorder().agent(kind).tools  # type: ignore[misc]
        mail = next(tool for tool in tools if tool.name == "mail")
        mails = (*(replace(mail, version=kept, retired=True) for kept in keeps), replace(mail, version=version))
        spec = AgentSpec(kind, "test agent", "Do what you are told.", (*mails, submit), version=version)
        model = ScriptedModel([by_objective] * 1000)
        shop = Workshop(f"{kind}-{version}-{self._clock.random_id().hex[:4]}", spec, (model,), MemoryArtifacts(), self._clock, self._folder, **own)
        store = MemoryStore(self.crew.log, role=kind_role(kind), actor=f"agent@{kind}", on_commit=lambda _: self.crew.grown.set())
        worker = Worker(shop, store, MemoryBus(self.crew.bus.broker), slots=slots)
        await worker.start()
        try:
            yield
        finally:
            await worker.stop(grace_s=1.0)

    async def run(self, kind: str = "data") -> RunId:
        """Carry a run out, by whichever worker takes it."""
        run_id = await self.crew.submit(parse_task({"task_id": str(self._clock.random_id()), "type": kind, "objective": "count"}))
        assert (await self.crew.end(run_id)).type == "RunCompleted"
        return run_id

    async def suspended(self) -> RunId:
        """Submit a run and wait until a person is asked whether it may mail."""
        run_id = await self.crew.submit(parse_task({"task_id": str(self._clock.random_id()), "type": "data", "objective": "mail"}))
        await self.crew.until(lambda: bool(self.found(run_id, ApprovalRequested)))
        return run_id

    async def approve(self, run_id: RunId) -> None:
        (asked,) = self.found(run_id, ApprovalRequested)
        await self.crew.ask("approvals.decide", {"run_id": run_id, "approval_id": asked.approval_id, "decision": "approved", "actor": "ann"})

    def found(self, run_id: RunId, type_: type) -> list[Any]:
        """Return the events of a run's one task."""
        stream = self.crew.log.streams.get(task_stream(TaskId(run_id)))
        return [] if stream is None else [event for recorded in stream.events if isinstance(event := recorded.event(), type_)]

    async def fork(self, parent: RunId, version: str) -> RunId:
        answer = await self.crew.ask("runs.fork", {"run_id": parent, "at": 1, "actor": "ann", "agent_version": version})
        return RunId(UUID(answer["run_id"]))

    async def carried_out_by(self, run_id: RunId) -> list[str]:
        """Wait for the end of a run and return the version of each worker that began one of its tasks."""
        assert (await self.crew.end(run_id)).type == "RunCompleted"
        store = MemoryStore(self.crew.log)
        assert (await replay(store, run_id)).divergence is None
        return [event.agent_version for recorded in await store.read_run(run_id) if isinstance(event := recorded.event(), TaskStarted)]

    def lying(self, lane: str, kind: str = "data") -> int:
        return self.crew.bus.broker.queued("WORK").subjects.get(work(kind, lane), 0)


@pytest.fixture
async def crew(tmp_path: Path) -> AsyncIterator[Versions]:
    settings = QUIET._replace(sweep_interval_s=0.05)
    setup = memory_crew([], lambda _: (), clock=SystemClock(), artifacts=MemoryArtifacts(), folder=tmp_path, settings=settings)
    async with asyncio.timeout(30), setup as made:
        yield Versions(made, tmp_path)


async def test_forks_are_carried_out_by_the_version_they_name_whoever_fetches_first(crew: Versions) -> None:
    async with crew.worker("1"):
        parent = await crew.run()
        async with crew.worker("2"), crew.worker("3", slots=1):
            wanted = ["1", "2", "3"] * FORKS
            forks = [await crew.fork(parent, version) for version in wanted]
            assert [await crew.carried_out_by(fork) for fork in forks] == [[version] for version in wanted]


async def test_what_waits_for_a_version_holds_up_nothing_else_and_goes_on_when_one_comes_and_comes_again(crew: Versions) -> None:
    async with crew.worker("1"):
        parent = await crew.run()
        async with crew.worker("2"):
            pass
        waiting = [await crew.fork(parent, "2") for _ in range(100)]
        assert await crew.carried_out_by(await crew.run()) == ["1"]
        assert await crew.carried_out_by(await crew.fork(parent, "1")) == ["1"]
        assert not any(crew.crew.ended(fork) for fork in waiting)
        sent = crew.lying(version_lane("2"))
        assert 0 < sent < len(waiting), "the others wait with the orchestrator until somebody comes"
        async with crew.worker("2"):
            await crew.crew.end(waiting[0])
        # the worker was restarted in the middle of it
        async with crew.worker("2"):
            assert {(await crew.carried_out_by(fork))[-1] for fork in waiting} == {"2"}
        assert crew.lying(version_lane("2")) == 0


async def test_a_kind_that_never_had_the_version_keeps_its_own_and_one_that_is_named_waits(crew: Versions) -> None:
    async with AsyncExitStack() as exits:
        for version, kind in (("1", "data"), ("2", "data"), ("1", "code")):
            await exits.enter_async_context(crew.worker(version, kind=kind))
        steps = [{"key": "a", "type": "data", "objective": "x"}, {"key": "b", "type": "code", "objective": "x", "depends_on": ["a"]}]
        task = {"task_id": "00000000-0000-4000-8000-0000000000aa", "type": "run", "objective": "x", "plan": {"steps": steps}, "synthesis": "collect"}
        parent = await crew.crew.submit(parse_task(task))
        await crew.crew.end(parent)
        for _ in range(FORKS):
            assert await crew.carried_out_by(await crew.fork(parent, "2")) == ["2", "1"]
        waits = await crew.fork(parent, "data=2,code=9")
        async with crew.worker("9", kind="code"):
            assert await crew.carried_out_by(waits) == ["2", "9"]
        with pytest.raises(ContractError, match=r"in version '8'; versions known: code 1, 9; data 1, 2\. Start one, or .* KIND=8"):
            await crew.fork(parent, "8")
        for wrong in ("data=", "da ta=1", "data=1,=2"):
            with pytest.raises(ContractError, match="names no versions of agents: write VERSION, or KIND=VERSION"):
                await crew.fork(parent, wrong)


@pytest.mark.parametrize("other", ["2", CLASHING[1]])
async def test_what_was_agreed_to_is_done_by_a_worker_that_has_it_whoever_fetches_first(crew: Versions, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "OTHER_VERSION_NAK_S", 0.005)
    async with crew.worker("1", slots=1):
        runs = [await crew.suspended() for _ in range(FORKS)]
        async with crew.worker(other, slots=16):
            await asyncio.gather(*map(crew.approve, runs))
            for run_id in runs:
                if version_lane(other) == version_lane("1"):  # the other one may be handed it each time, and goes on in the end
                    assert "1" in await crew.carried_out_by(run_id)
                else:
                    assert await crew.carried_out_by(run_id) == ["1", "1"]
                    assert [event.tool_version for event in crew.found(run_id, ToolStarted) if event.tool == "mail"] == ["1"]


@pytest.mark.parametrize("how", ["nobody has it", "it is kept", "tasks move"])
async def test_a_task_goes_on_where_it_is_when_that_has_its_tools_or_nobody_has(crew: Versions, how: str) -> None:
    own: dict[str, Any] = {"it is kept": {"keeps": ("1",)}, "tasks move": {"keeps": ("1",), "moves_tasks": True}}.get(how, {})
    async with crew.worker("1"):
        run_id = await crew.suspended()
    async with crew.worker("2", **own) as _, AsyncExitStack() as exits:
        if how != "nobody has it":
            await exits.enter_async_context(crew.worker("1", slots=1))
            monopoly = [await crew.suspended() for _ in range(FORKS)]
            await asyncio.gather(*map(crew.approve, monopoly))
            for one in monopoly:
                await crew.carried_out_by(one)
        await crew.approve(run_id)
        assert (await crew.crew.end(run_id)).type == "RunCompleted"
    mailed = [event.tool_version for event in crew.found(run_id, ToolStarted) if event.tool == "mail"]
    refused = [event.status for event in crew.found(run_id, ToolFinished) if event.tool == "mail"]
    assert (mailed, refused) == (([], ["refused"]) if how == "nobody has it" else (["1"], ["ok"]))


async def test_the_directory_of_kinds_names_each_version_once_and_has_its_queue_also_behind_a_restart(crew: Versions) -> None:
    for version in ("1", "1", "2", "1"):
        async with crew.worker(version):
            pass
    store = MemoryStore(crew.crew.log)
    assert (await known_versions(store))["data"] == ["1", "2"]
    assert [recorded.event().version for recorded in await store.read_streams({DIRECTORY: 0})] == ["1", "2"]  # type: ignore[union-attr]
    restarted = KindDirectory(store, MemoryBus(), SystemClock())
    await restarted.start()
    assert restarted.queues()["data"] == {version_lane("1"), version_lane("2")}
    assert restarted.queues()["code"] == set()


@pytest.mark.parametrize("versions", [CLASHING, ("1", "2")])
async def test_a_worker_that_is_handed_what_needs_another_version_gives_it_back(
    crew: Versions, versions: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "OTHER_VERSION_NAK_S", 0.005)
    if version_lane(versions[0]) != version_lane(versions[1]):  # an orchestrator that knows nothing of such lanes
        monkeypatch.setattr(Brief, "lane_of", lambda brief, _: brief.priority)
    async with crew.worker(versions[0]), crew.worker(versions[1]):
        parent = await crew.run()
        forks = [await crew.fork(parent, version) for version in versions * FORKS]
        assert [await crew.carried_out_by(fork) for fork in forks] == [[version] for version in versions * FORKS]


async def test_a_version_is_tried_on_live_work_by_workers_of_shadows_that_have_it(tmp_path: Path) -> None:
    model = ScriptedModel([by_objective] * 2)
    one, two = (replace(Recorder().agent(), version=version) for version in "12")
    settings = QUIET._replace(shadow=parse_shadow("data=1:offline"))
    shop = {"clock": SystemClock(), "artifacts": MemoryArtifacts(), "folder": tmp_path, "trial_chain": lambda *_: (model,)}
    async with asyncio.timeout(30), memory_crew([one], lambda _: (model,), settings=settings, shadow_agents=[two], **shop) as made:  # type: ignore[arg-type]
        crew = Versions(made, tmp_path)
        run_id = await crew.run()
        assert await crew.carried_out_by(run_id) == ["1"]
        assert await crew.carried_out_by(shadow_run_id(run_id)) == ["2"]


def test_versions_beside_each_other_never_share_a_lane() -> None:
    assert version_lane(CLASHING[0]) == version_lane(CLASHING[1])
    for text in ("{}", "1.{}", "{}.0.0", "2026-05-1{}"):
        assert len({version_lane(text.format(digit)) for digit in range(10)}) == 10
    assert worker_group("data", VERSION_LANES[3]) == "data.version3"
    assert worker_group("data", "normal") == "data"


def test_a_worker_looks_into_the_lane_of_its_version_first_in_its_turn() -> None:
    lanes = ("high", "normal", "low", VERSION_LANES[0])
    firsts = [in_turn(lanes, turn)[0] for turn in range(13)]
    assert [firsts.count(lane) for lane in lanes] == [8, 3, 1, 1]
