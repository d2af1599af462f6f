"""Calls that ask for the same thing within a tool's window, in runs that know nothing of each other: it is done once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from pydantic import BaseModel
from support.effects import Outside
from support.scripted import Line, ScriptedModel, calls

from crewlog.agents.spec import AgentSpec, ToolSpec
from crewlog.events.artifact_store import open_artifacts
from crewlog.events.clock import SystemClock
from crewlog.events.memory_store import MemoryStore
from crewlog.orchestrator.memory_crew import MemoryCrew, memory_crew
from crewlog.orchestrator.replay import replay
from crewlog.schemas.effects import EffectRef
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.ids import RunId
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import ToolFinished

SUBMIT = calls(("submit", '{"text":"done"}'))


class Stamped(BaseModel):
    """What is asked for, and when."""

    text: str
    at: str = ""


class LeapingClock(SystemClock):
    """Real time, in which a test may leap ahead."""

    ahead_s = 0.0

    def now_us(self) -> int:
        return super().now_us() + round(self.ahead_s * 1e6)


def agent(outside: Outside, kind: str = "data") -> AgentSpec:
    """The agent of `Outside`, whose effects count once an hour; the argument `at` does not make two calls differ."""
    spec = outside.agent(kind)
    assert not callable(spec.tools)
    changed = (replace(t, args=Stamped, nonces=("at",), dedupe_window_s=3600.0) if t.effect in ("compensable", "irreversible") else t for t in spec.tools)
    return replace(spec, tools=tuple(changed))


@asynccontextmanager
async def crew(tmp: Path, agents: list[AgentSpec], scripts: Mapping[str, tuple[Line, ...]], clock: SystemClock | None = None) -> AsyncIterator[MemoryCrew]:
    artifacts = await open_artifacts(tmp / "artifacts")
    setup = memory_crew(agents, lambda kind: (ByTask(scripts[kind]),), clock=clock or SystemClock(), artifacts=artifacts, folder=tmp)  # type: ignore[arg-type, return-value]
    async with asyncio.timeout(60), setup as made:
        yield made


class ByTask(ScriptedModel):
    """Says its lines to each task from the beginning."""

    def __init__(self, lines: tuple[Line, ...]) -> None:
        super().__init__(list(lines))

    async def complete(self, request: Any, **kind: Any) -> Any:
        turn = sum(message.role == "assistant" for message in request.messages)
        self.requests = [request] * turn
        return await super().complete(request, **kind)


async def submitted(made: MemoryCrew, **fields: Any) -> RunId:
    return await made.submit(parse_task({"task_id": str(uuid4()), "type": "data", "objective": "do it", **fields}))


async def outcomes(made: MemoryCrew, run_id: RunId, tool: str) -> list[ToolFinished]:
    """Wait for the end of a run, see that a replay derives it, and return what came of its calls of a tool."""
    await made.end(run_id)
    replayed = await replay(made.store, run_id, verify=True)
    assert replayed.divergence is None, str(replayed.divergence)
    return [e for r in await made.store.read_run(run_id) if isinstance(e := r.event(), ToolFinished) and e.tool == tool]


def asks(tool: str, *texts: str) -> tuple[Line, ...]:
    return (calls(*((tool, f'{{"text":"x","at":"{at}"}}') for at in texts)), SUBMIT)


async def test_the_second_run_gets_the_outcome_of_the_first_with_a_reference(tmp_path: Path) -> None:
    outside = Outside()
    async with crew(tmp_path, [agent(outside)], {"data": asks("post", "now")}) as made:
        first = await submitted(made)
        (done,) = await outcomes(made, first, "post")
        second = await submitted(made)
        (reused,) = await outcomes(made, second, "post")
        assert len(outside.arrivals) == 1
        assert (done.status, done.reused) == ("ok", msgspec.UNSET)
        assert (reused.status, reused.reused) == ("ok", EffectRef(UUID(str(first)), UUID(str(first)), "t1-1", next(iter(outside.arrivals))))
        assert (reused.result.inline or "").startswith("post did x\n\n[not done again: this is what came of the same call in run")


async def test_of_many_runs_at_the_same_time_one_acts(tmp_path: Path) -> None:
    outside = Outside()
    async with crew(tmp_path, [agent(outside)], {"data": asks("post", "a", "b")}) as made:
        runs = [await submitted(made) for _ in range(4)]
        found = [event for run_id in runs for event in await outcomes(made, run_id, "post")]
        assert len(outside.arrivals) == 1
        assert {event.status for event in found} == {"ok"}
        assert sum(event.reused is msgspec.UNSET for event in found) == 1
        assert len(found) == 8


async def test_the_window_ends(tmp_path: Path) -> None:
    outside, clock = Outside(), LeapingClock()
    async with crew(tmp_path, [agent(outside)], {"data": asks("post", "now")}, clock) as made:
        await made.end(await submitted(made))
        clock.ahead_s = 3601
        await made.end(await submitted(made))
        assert len(outside.arrivals) == 2


async def test_other_tenants_and_other_kinds_ask_for_something_else(tmp_path: Path) -> None:
    outside = Outside()
    script = asks("post", "now")
    async with crew(tmp_path, [agent(outside), agent(outside, "code")], {"data": script, "code": script}) as made:
        for fields in ({}, {"tenant": "other"}, {"type": "code"}):
            await made.end(await submitted(made, **fields))
        assert len(outside.arrivals) == 3


async def test_what_certainly_did_not_happen_keeps_nobody_from_it(tmp_path: Path) -> None:
    outside = Outside()

    async def refuse(*_: Any) -> Any:
        from crewlog.agents.spec import ToolFailed

        raise ToolFailed("the door is shut")

    spec = agent(outside)
    assert not callable(spec.tools)
    refusing = replace(spec, kind="code", tools=tuple(replace(t, run=refuse) if t.name == "post" else t for t in spec.tools))
    script = asks("post", "now")
    async with crew(tmp_path, [refusing], {"code": script}) as made:
        first, second = await submitted(made, type="code"), await submitted(made, type="code")
        found = [*await outcomes(made, first, "post"), *await outcomes(made, second, "post")]
        assert [(event.status, event.reused) for event in found] == [("error", msgspec.UNSET)] * 2


async def test_what_a_rollback_took_back_may_be_asked_for_again(tmp_path: Path) -> None:
    outside = Outside()
    async with crew(tmp_path, [agent(outside)], {"data": asks("rent", "now")}) as made:
        first = await submitted(made)
        await made.end(first)
        begun = await made.ask("runs.rollback", {"run_id": first, "reason": "wrong hall", "actor": "maria"})
        await made.end(RunId(UUID(begun["run_id"])))
        assert outside.things == {}
        (again,) = await outcomes(made, await submitted(made), "rent")
        assert (again.status, again.reused) == ("ok", msgspec.UNSET)
        assert len(outside.things) == 1


async def test_a_call_in_doubt_is_not_repeated_by_another_run(tmp_path: Path) -> None:
    outside = Outside(mode="done_and_silent")
    spec = agent(outside)
    assert not callable(spec.tools)
    quick = replace(spec, tools=tuple(replace(t, timeout_s=0.2) if isinstance(t, ToolSpec) and t.name == "post" else t for t in spec.tools))
    async with crew(tmp_path, [quick], {"data": asks("post", "now")}) as made:
        first = await submitted(made)
        await made.until(lambda: any(recorded.type == "TaskSuspended" for recorded in made.log.events))
        outside.mode = "answers"
        (refused,) = await outcomes(made, await submitted(made), "post")
        assert refused.status == "refused"
        assert f"what became of that is not known yet: run {first}" in (refused.result.inline or "")
        assert list(outside.arrivals.values()) == [1]


async def test_a_claim_is_no_part_of_a_run(tmp_path: Path) -> None:
    outside = Outside()
    async with crew(tmp_path, [agent(outside)], {"data": asks("post", "now")}) as made:
        run_id = await submitted(made)
        await made.end(run_id)
        assert isinstance(made.store, MemoryStore)
        assert {r.stream.partition("/")[0] for r in await made.store.read_run(run_id)} == {"run", "task"}
        assert [r.type for r in made.log.events if r.stream.startswith("claim/")] == ["ClaimsOpened", "EffectClaimed", "EffectSettled"]


@pytest.mark.parametrize("wrong", [{"effect": "read"}, {"dedupe_window_s": 1.0}, {"ends_task": True}])
def test_windows_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="dedupe_window_s is for effects that do not end their task"):
        replace(Outside().tool("post", "irreversible"), **{"dedupe_window_s": 60.0, **wrong})
