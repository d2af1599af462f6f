"""Forks with something changed, carried out by a real orchestrator and real workers on a log in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from support.scripted import Recorder, ScriptedModel, calls
from support.toolbox import MemoryArtifacts

from crewlog.agents.model import Model
from crewlog.events.clock import SystemClock
from crewlog.events.memory_store import MemoryStore
from crewlog.orchestrator.bundle import collect, pack_bundle, unpack_bundle
from crewlog.orchestrator.event_text import describe
from crewlog.orchestrator.folds import Folds
from crewlog.orchestrator.fork_place import fork_place
from crewlog.orchestrator.golden import golden_of
from crewlog.orchestrator.memory_crew import MemoryCrew, memory_crew
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.run_history import RunHistory, all_payloads, load_history, with_texts
from crewlog.schemas.blocks import ModelReply, ModelRequest, ToolResult
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId
from crewlog.schemas.run_events import RunCompleted, RunForked, TaskDispatched
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import ApprovalRequested, ModelCallStarted, TaskCompleted, ToolFinished, ToolStarted
from crewlog.schemas.values import Outcome

TASK = {"task_id": "00000000-0000-4000-8000-000000000001", "type": "data", "objective": "count", "budget": {"hard_micro_usd": 900}}


def obedient(request: ModelRequest) -> ModelReply:
    """Look, then send, then submit what was seen last."""
    results = [block for message in request.messages for block in message.content if isinstance(block, ToolResult)]
    turn = sum(message.role == "assistant" for message in request.messages)
    seen = results[0].content if results else ""
    return calls([("look", '{"text":"there"}'), ("mail", f'{{"text":"{seen}"}}'), ("submit", f'{{"text":"{seen}"}}')][turn])


class Crew:
    """A crew whose only agent does as `obedient` says."""

    def __init__(self, crew: MemoryCrew, tools: Recorder, models: dict[str, ScriptedModel]) -> None:
        self.crew, self.tools, self.models = crew, tools, models

    async def run(self, **task: Any) -> RunId:
        run_id = await self.crew.submit(parse_task({**TASK, "auto_approve": True, **task}))
        await self.crew.end(run_id)
        return run_id

    async def fork(self, parent: RunId, at: int, **asked: Any) -> RunHistory:
        """Fork, wait for the end, and check that it follows from its log."""
        run_id = await self.begin(parent, at, **asked)
        await self.crew.end(run_id)
        return await self.history(run_id)

    async def begin(self, parent: RunId, at: int, **asked: Any) -> RunId:
        return RunId(UUID((await self.crew.ask("runs.fork", {"run_id": parent, "at": at, "actor": "ann", **asked}))["run_id"]))

    async def history(self, run_id: RunId) -> RunHistory:
        report = await replay(MemoryStore(self.crew.log), run_id)
        assert report.divergence is None, report.divergence
        return await load_history(MemoryStore(self.crew.log), run_id)


@pytest.fixture
async def crew(tmp_path: Path) -> AsyncIterator[Crew]:
    async with a_crew(tmp_path) as made:
        yield made


@asynccontextmanager
async def a_crew(folder: Path) -> AsyncIterator[Crew]:
    tools = Recorder()
    models = {name: ScriptedModel([obedient] * 100, name=name) for name in ("script-1", "other-1")}

    def chain(models_: str, role: str) -> tuple[Model, ...]:
        assert role == "data"
        return (models[models_.partition(":")[2]],)

    setup = memory_crew([tools.agent()], lambda _: (models["script-1"],), clock=SystemClock(), artifacts=MemoryArtifacts(), folder=folder, trial_chain=chain)
    async with asyncio.timeout(60), setup as made:
        yield Crew(made, tools, models)


def own(history: RunHistory, type_: type) -> list[Any]:
    """Return the fork's own events of a type."""
    return [event for recorded in history.events[history.first_own - 1 :] if isinstance(event := recorded.event(), type_)]


def index_of(history: RunHistory, matches: Callable[[Any], bool]) -> int:
    return next(n for n, recorded in enumerate(history.events, 1) if matches(recorded.event()))


def outcome(history: RunHistory) -> Outcome:
    (done,) = own(history, TaskCompleted)
    return done.outcome  # type: ignore[no-any-return]


async def test_without_a_change_a_fork_does_the_same_again_and_sends_nothing(crew: Crew) -> None:
    parent = await crew.run()
    before = await crew.history(parent)
    at = index_of(before, lambda e: isinstance(e, ToolFinished) and e.tool == "look")
    done = list(crew.tools.calls)
    fork = await crew.fork(parent, at)

    assert fork.events[:at] == before.events[:at]
    assert outcome(fork).summary == "look says there"
    assert outcome(fork).flags == ("simulated",)  # the mail was sent by the parent, so that its record answers
    assert [(e.tool, e.stub) for e in own(fork, ToolStarted)] == [("mail", "recorded"), ("submit", "")]
    assert [c for c in crew.tools.calls if c not in done] == [c for c in crew.tools.calls if c[0] == "submit"][1:]
    (forked,) = own(fork, RunForked)
    assert (forked.parent, forked.at, forked.actor) == (parent, at, "ann")


async def test_the_time_of_a_fork_begins_with_the_fork(crew: Crew) -> None:
    """Its deadline, how old it is for operators, and since when a pause can have stopped its clocks."""
    parent = await crew.run()
    fork = await crew.fork(parent, 1)
    states = await Folds(MemoryStore(crew.crew.log)).states([parent, fork.run_id])
    began_us = fork.events[fork.first_own - 1].occurred_us

    assert states[fork.run_id].submitted_us == began_us > states[parent].submitted_us
    assert states[fork.run_id].deadline_us == began_us + states[fork.run_id].brief.timeout_seconds * 1_000_000


async def test_each_task_is_served_what_it_got_itself_though_others_asked_the_same(crew: Crew) -> None:
    crew.tools.counts = True
    steps = [{"key": key, "type": "data", "objective": "count", "depends_on": after} for key, after in (("a", []), ("b", ["a"]))]
    parent = await crew.history(await crew.run(type="run", plan={"steps": steps}))
    fork = await crew.fork(parent.run_id, 1)

    def seen(history: RunHistory) -> list[str]:
        return [history.read(e.result) for r in history.events if isinstance(e := r.event(), ToolFinished) and e.tool == "look"]

    assert len(set(seen(parent))) == 2
    assert seen(fork) == seen(parent)


async def test_an_edited_result_is_what_the_model_goes_on_from(crew: Crew) -> None:
    parent = await crew.run()
    before = await crew.history(parent)
    at = index_of(before, lambda e: isinstance(e, ToolFinished) and e.tool == "look")
    fork = await crew.fork(parent, at, results={before.events[at - 1].event().call_id: "nobody is there"})  # type: ignore[union-attr]

    assert outcome(fork).summary == "nobody is there"


async def test_a_call_without_a_result_is_ended_by_an_edit(crew: Crew) -> None:
    parent = await crew.run()
    before = await crew.history(parent)
    at = index_of(before, lambda e: isinstance(e, ToolStarted) and e.tool == "look")
    fork = await crew.fork(parent, at, results={before.events[at - 1].event().call_id: "made up"})  # type: ignore[union-attr]

    assert outcome(fork).summary == "made up"
    assert all(e.tool != "look" for e in own(fork, ToolStarted))


@pytest.mark.parametrize("type_", [ToolFinished, ToolStarted], ids=["edited", "ended"])
async def test_whoever_tries_a_fork_again_is_served_what_it_was_told_in_the_end(crew: Crew, type_: type) -> None:
    parent = await crew.run()
    at = index_of(await crew.history(parent), lambda e: isinstance(e, type_) and e.tool == "look")
    fork = await crew.fork(parent, at, results={"t1-1": "nobody is there"})
    again = await crew.fork(fork.run_id, 1)

    assert next((e.tool, e.stub) for e in own(again, ToolStarted)) == ("look", "recorded")
    assert outcome(again).summary == "nobody is there"


async def test_what_no_record_has_is_stubbed_and_says_so(crew: Crew) -> None:
    parent = await crew.run()
    at = index_of(await crew.history(parent), lambda e: isinstance(e, ToolFinished) and e.tool == "look")
    fork = await crew.fork(parent, at, results={"t1-1": "nobody is there"})

    assert [(e.tool, e.stub) for e in own(fork, ToolStarted)] == [("mail", "stubbed"), ("submit", "")]
    (mailed,) = [e for e in own(fork, ToolFinished) if e.tool == "mail"]
    assert mailed.result.inline.startswith("mail was not carried out")
    assert "stubbed" in outcome(fork).flags
    (end,) = own(fork, RunCompleted)
    assert "stubbed" in end.flags
    assert sum(tool == "mail" for tool, *_ in crew.tools.calls) == 1


async def test_no_tenant_is_told_what_the_tools_of_another_one_saw(crew: Crew) -> None:
    parent = await crew.run()
    own_task = {**TASK, "task_id": "00000000-0000-4000-8000-000000000002", "tenant": "other", "auto_approve": True}
    run_id = await crew.crew.submit(parse_task({**own_task, "trial": {"source": str(parent)}}))
    await crew.crew.end(run_id)

    assert [(e.tool, e.stub) for e in own(await crew.history(run_id), ToolStarted)] == [("look", ""), ("mail", "stubbed"), ("submit", "")]


async def test_allowed_effects_happen_again_under_a_key_of_their_own(crew: Crew) -> None:
    parent = await crew.run()
    at = index_of(await crew.history(parent), lambda e: isinstance(e, ToolFinished) and e.tool == "look")
    await crew.fork(parent, at, effects="allow", changes={"auto_approve": True})

    keys = [key for tool, _, key in crew.tools.calls if tool == "mail"]
    assert len(set(keys)) == 2


async def test_what_was_let_run_unasked_is_asked_before_it_happens_once_more(crew: Crew) -> None:
    parent = await crew.run()
    before = await crew.history(parent)
    at = index_of(before, lambda e: isinstance(e, ToolFinished) and e.tool == "mail") - 1
    run_id = await crew.begin(parent, at, effects="allow")
    await crew.crew.until(lambda: any(r.run_id == run_id and r.type == "TaskSuspended" for r in crew.crew.log.events))
    (asked,) = own(await crew.history(run_id), ApprovalRequested)
    body = {"run_id": run_id, "approval_id": asked.approval_id, "decision": "approved", "actor": "ann"}
    await crew.crew.ask("approvals.decide", body)
    await crew.crew.end(run_id)

    assert outcome(await crew.history(run_id)).summary == "look says there"
    assert sum(tool == "mail" for tool, *_ in crew.tools.calls) == 2


async def test_another_model_prompt_and_message_reach_the_next_request(crew: Crew) -> None:
    parent = await crew.run()
    at = index_of(await crew.history(parent), lambda e: isinstance(e, ToolFinished) and e.tool == "look")
    fork = await crew.fork(parent, at, models="data=openai:other-1", prompts={"data": "Be brief."}, message="Look twice.")

    first = crew.models["other-1"].requests[0]
    assert first.system.startswith("Be brief.\n")
    assert first.messages[-1].content[-1].text == "Look twice."  # type: ignore[union-attr]
    assert {e.model for e in own(fork, ModelCallStarted)} == {"other-1"}


async def test_another_goal_is_the_first_message(crew: Crew) -> None:
    parent = await crew.run()
    at = index_of(await crew.history(parent), lambda e: isinstance(e, ToolFinished) and e.tool == "look")
    await crew.fork(parent, at, changes={"objective": "count twice", "limits": {"turns_max": 9}})

    opening = crew.models["script-1"].requests[-1].messages[0].content[0].text  # type: ignore[union-attr]
    assert '"objective":"count twice"' in opening


async def test_the_log_says_which_versions_may_carry_a_fork_out(crew: Crew) -> None:
    (forked,) = own(await crew.fork(await crew.run(), 1, agent_version="1"), RunForked)
    assert describe(forked).endswith("goes on with task; effects stubbed; only by agents data=1")


async def test_a_prompt_holds_for_tasks_that_begin_in_the_fork(crew: Crew) -> None:
    parent = await crew.run()
    await crew.fork(parent, 1, prompts={"*": "Be brief."}, agent_version="1")
    assert crew.models["script-1"].requests[-1].system.startswith("Be brief.\n")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"at": 99}, "has events 1 to 20) .* matches nothing"),
        ({"at": 3, "results": {"nope": "x"}}, "call 'nope' was not asked for by a task that is under way at event 4"),
        ({"at": 3, "task": "b", "message": "x"}, "task 'b' is not under way at event 4; under way: task"),
        ({"at": 3, "message": "x"}, "task 'task' has not begun at event 4: fork behind its first model call, or change the objective"),
        ({"at": 3, "changes": {"tenant": "other"}}, "a fork cannot change tenant"),
        ({"at": 3, "changes": {"limits": {"turns_max": 0}}}, "greater than or equal to 1"),
        ({"at": 3, "models": "nobody:x"}, "unknown provider 'nobody'"),
        ({"at": 3, "prompts": {"ghost": "x", "*": "y"}}, "a prompt is named for kind ghost, which no agent has; there are code, communicate, data, planner"),
        ({"at": 3, "agent_version": "7"}, "no agent has been there in version '7'; versions known: data 1. Start one, or name the kind"),
    ],
)
async def test_what_cannot_be_is_refused_with_a_way_out(crew: Crew, asked: dict[str, Any], message: str) -> None:
    parent = await crew.run()
    with pytest.raises(ContractError, match=message.replace(")", r"\)")):
        await crew.begin(parent, **asked)


async def test_the_end_of_a_run_names_the_last_place_before_it(crew: Crew) -> None:
    parent = await crew.run()
    history = await crew.history(parent)
    with pytest.raises(ContractError, match=r"is over behind event (\d+) of \1: fork it at \d+ or before"):
        await crew.begin(parent, len(history.events))


@pytest.mark.parametrize(
    ("type_", "damage", "why"),
    [
        (ToolFinished, {"data": b'{"call_id": 5}'}, "at position {p}: stored event ToolFinished v1 does not decode: "),
        (ToolFinished, {"type": "ToolSang"}, "at position {p} is a ToolSang v1, unknown to this program"),
        (TaskDispatched, {"data": b"{}"}, "at position {p}: stored event TaskDispatched v1 does not decode: "),
        (TaskDispatched, {"type": "TaskSung"}, "at position {p} is a TaskSung v1, unknown to this program"),
    ],
)
async def test_behind_what_cannot_be_folded_no_fork_begins(crew: Crew, type_: type, damage: dict[str, Any], why: str) -> None:
    history = await crew.history(await crew.run())
    bad = index_of(history, lambda event: isinstance(event, type_))
    at = index_of(history, lambda event: isinstance(event, TaskCompleted)) - 1
    there = history.events[bad - 1]
    events = (*history.events[: bad - 1], msgspec.structs.replace(there, **damage), *history.events[bad:])
    told = re.escape(f"cannot be forked behind event {at}, which would share event {bad}: {there.stream} version {there.version} ") + why.format(
        p=there.position
    )
    way = f"fork it at {bad - 1} or before" if bad > 4 else "no part of it can be forked"  # four events are the first decision
    with pytest.raises(ContractError, match=told + rf".*; {way}"):
        fork_place(RunHistory(history.run_id, events), at)


async def test_another_tenant_has_no_such_run(crew: Crew) -> None:
    parent = await crew.run()
    for at in (3, 999):
        with pytest.raises(ContractError, match=f"run '{parent}' matches nothing"):
            await crew.crew.ask("runs.fork", {"run_id": parent, "at": at, "actor": "eve"}, tenant="other")


async def test_a_file_of_a_fork_holds_what_it_shares_and_replays_alone(crew: Crew) -> None:
    parent = await crew.run()
    fork = await crew.fork(parent, 9, message="Look twice.")
    store = MemoryStore(crew.crew.log)
    bundle = unpack_bundle(pack_bundle(await collect(store, fork.run_id)), "fork.crewlog")

    assert list(bundle.events) == list(fork.events)
    assert await replay(bundle.store(), fork.run_id) == await replay(store, fork.run_id)
    golden = golden_of(await with_texts(store, fork, all_payloads(fork.events)), "forked")
    assert golden.task["objective"] == TASK["objective"]
    assert not golden.task.keys() & {"task_id", "run_id", "trial"}
