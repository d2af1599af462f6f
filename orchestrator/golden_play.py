"""Play a golden task: the orchestrator and the workers of the product on a log in memory, with models and tools that answer from the recording.

    models   recorded: as they answered then, call by call    offline: the rules, anew
    tools    recorded: as they answered then                  real: they run, on the attachments that are kept with the task

No server, no network and no key is needed, unless real tools use one.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from crewlog.agents.kinds import BUILT_IN, Services, load_agent
from crewlog.agents.knowledge_memory import MemoryKnowledge
from crewlog.agents.memories_local import LocalMemories
from crewlog.agents.memory_tools import with_memory
from crewlog.agents.model import Model, ModelError, OnText
from crewlog.agents.offline import OfflineModel
from crewlog.agents.recorded_tools import recorded_tools
from crewlog.agents.setup import Setup
from crewlog.agents.spec import AgentSpec
from crewlog.events.artifact_store import open_artifacts
from crewlog.events.clock import Clock
from crewlog.events.config import Config
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.store import ANY, AppendRequest, Write
from crewlog.orchestrator.bundle import Bundle
from crewlog.orchestrator.dispatch import kinds_told
from crewlog.orchestrator.golden import FILES, Golden, task_of
from crewlog.orchestrator.kinds import DIRECTORY
from crewlog.orchestrator.memory_crew import MemoryCrew, memory_crew
from crewlog.orchestrator.planning import Offer
from crewlog.orchestrator.run_history import RunHistory, all_payloads, load_history, with_texts
from crewlog.schemas.blocks import ModelReply, ModelRequest, Native, Text, ToolUse
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import ApprovalId, Hash, RunId
from crewlog.schemas.payload import Payload
from crewlog.schemas.run_events import TaskSuspended
from crewlog.schemas.system_events import AgentRegistered
from crewlog.schemas.task import read_task
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    ModelCallFinished,
    ModelCallStarted,
    TaskForked,
    TaskMoved,
    TaskOpened,
    TaskStarted,
)
from crewlog.schemas.trial import Trial

Answers = Literal["recorded", "offline"]
Tools = Literal["recorded", "real"]
PLANNER: Final = "planner"
UNDECIDED: Final = ApprovalDecided(ApprovalId(UUID(int=0)), "", Hash(""), "denied", "golden", "nobody decided about this call in the recording")
"""What is said about a call that no person decided about in the recording."""


class Played(NamedTuple):
    """What was played. `drift`: model calls that were asked otherwise than recorded, as `task call`."""

    history: RunHistory
    drift: Sequence[str]
    calls: int


class _Answer(NamedTuple):
    request_hash: str
    wire: str
    provider: str
    model: str
    simulated: bool
    reply: ModelReply


class Tape:
    """The answers of a recorded run, by the key of their task, in their order."""

    def __init__(self, history: RunHistory) -> None:
        """Take the answers of a run, with all its texts."""
        self.drift: list[str] = []
        self.calls = 0
        self._answers: dict[str, list[_Answer]] = defaultdict(list)
        self._kinds: dict[str, str] = {}
        self._next: dict[str, int] = defaultdict(int)
        for stream in history.task_streams:
            self._take(history, stream)

    def _take(self, history: RunHistory, stream: Any) -> None:
        key, asked = "", {}
        for recorded in history.streams[stream]:
            match event := recorded.event():
                case TaskOpened() | TaskForked():
                    key = event.key
                    self._kinds[key] = event.kind
                case ModelCallStarted():
                    asked[event.call_id] = event
                case ModelCallFinished() if event.call_id in asked:
                    call = asked[event.call_id]
                    self._answers[key].append(
                        _Answer(call.request_hash, event.wire, call.provider, call.model, event.simulated, _reply(event, history, call.model))
                    )
                case _:
                    pass

    def first_of(self, kind: str) -> _Answer | None:
        """Return the first answer that an agent kind got; None when it asked nothing."""
        return next((answers[0] for key, answers in self._answers.items() if self._kinds[key] == kind and answers), None)

    def answer(self, key: str, request_hash: str) -> ModelReply:
        """Return the next answer for a task.

        Raises:
            ModelError: it has asked more often than in the recording.
        """
        at, answers = self._next[key], self._answers.get(key, [])
        self._next[key] += 1
        self.calls += 1
        if at >= len(answers):
            raise ModelError("bad_request", f"task {key!r} asks for answer {at + 1}; the recording has {len(answers)}")
        if answers[at].request_hash != request_hash:
            self.drift.append(f"{key} call {at + 1}")
        return answers[at].reply


def _reply(event: ModelCallFinished, history: RunHistory, asked: str) -> ModelReply:
    text = history.read(event.text)
    said = (Text(text),) if text else ()
    native = None if event.native is None else Native(event.wire, asked, msgspec.Raw(history.read(event.native).encode()))
    uses = (ToolUse(call.call_id, call.tool, history.read(call.arguments)) for call in event.tool_calls)
    return ModelReply((*said, *uses), event.stop, event.usage, event.model, native=native, request_id=event.request_id, price=event.price)


class TapeModel:
    """The models of one agent kind, as they answered then."""

    def __init__(self, tape: Tape, kind: str) -> None:
        first = tape.first_of(kind)
        self._tape = tape
        self.wire, self.provider, self.name = (first.wire or "offline", first.provider, first.model) if first else ("offline", "offline", "recorded")
        self.simulated = first.simulated if first else True

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:  # noqa: ARG002  (the port's shape)
        """Answer as in the recording."""
        return self._tape.answer(key_of(request), request.request_hash())


def key_of(request: ModelRequest) -> str:
    """Return the key of the task that a request belongs to, from its first message."""
    first = request.messages[0].content[0]
    text = first.text if isinstance(first, Text) else ""
    start = text.find("{")
    opening = json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else {}
    return str(opening.get("key") or "")


async def play(
    golden: Golden, bundle: Bundle, path: Path, clock: Clock, *, models: Answers = "recorded", tools: Tools = "recorded", agents: Sequence[str] = ()
) -> Played:
    """Play a golden task and return what came of it.

    Args:
        path: of the golden task, beside which its files lie.
        agents: `module:ATTRIBUTE` of agents that are not built in.

    Raises:
        ContractError: it cannot be played; the message says why.
        TimeoutError: it did not come to its end in its own time.
    """
    recorded_store = bundle.store()
    recorded = await load_history(recorded_store, bundle.run_id)
    recorded = await with_texts(recorded_store, recorded, all_payloads(recorded.events))
    tape = Tape(recorded)
    run_id = RunId(clock.random_id())
    trial = Trial("stub", bundle.run_id, fresh_reads=tools == "real", only_recorded=tools == "recorded")
    task = task_of(golden, task_id=str(run_id), run_id=str(run_id), trial=msgspec.to_builtins(trial))
    with tempfile.TemporaryDirectory(prefix="crewlog-golden-") as folder:
        home = Path(folder)
        artifacts = await open_artifacts(home / "artifacts")
        for kept in _files(path):
            await artifacts.put(kept.name, kept.read_bytes())
        log = recorded_store.log
        specs = _specs(recorded, log, agents, clock)
        await _know_kinds(recorded_store, recorded, clock)
        chains: dict[str, tuple[Model, ...]] = {spec.kind: (TapeModel(tape, spec.kind) if models == "recorded" else OfflineModel(),) for spec in specs}
        crew = memory_crew(specs, chains.__getitem__, clock=clock, artifacts=artifacts, folder=home / "workspaces", log=log, allow_unpriced=True)
        async with asyncio.timeout(task.timeout_seconds), crew as up:
            answering = asyncio.create_task(_answer_as_then(up, recorded, run_id, task.tenant))
            try:
                await up.submit(task)
                await up.end(run_id)
            finally:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
        store = MemoryStore(log)
        history = await load_history(store, run_id)
        return Played(await with_texts(store, history, all_payloads(history.events)), tape.drift, tape.calls)


def _files(path: Path) -> list[Path]:
    folder = path.parent / FILES
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _specs(recorded: RunHistory, log: MemoryLog, agents: Sequence[str], clock: Clock) -> list[AgentSpec]:
    """Build the agents that the recorded run needed."""
    store, config = MemoryStore(log), Config()
    knowledge = MemoryKnowledge(store)
    own = {spec.kind: spec for spec in map(load_agent, agents)}
    kinds = {event.kind for r in recorded.events if isinstance(event := r.event(), TaskOpened | TaskForked)} | {PLANNER}
    if unknown := sorted(kinds - own.keys() - BUILT_IN.keys()):
        raise ContractError(f"the recording has tasks of kind {unknown[0]!r}, which is not built in; name it with --agent module:ATTRIBUTE")
    setups, specs = _setups(recorded), []
    for kind in sorted(kinds):
        of_servers, web = recorded_tools(setups, kind)
        spec = own.get(kind) or BUILT_IN[kind](Services(config, store, knowledge, web))
        specs.append(replace(spec, more_tools=partial(tuple, of_servers)) if of_servers else spec)
    return [with_memory(spec, store, LocalMemories(store), clock) for spec in specs] if config.memory else specs


def _setups(recorded: RunHistory) -> list[Setup]:
    """Return what the tasks of a run began with, each once, in order."""
    began = (event.setup for r in recorded.events if isinstance(event := r.event(), TaskStarted | TaskMoved))
    return [msgspec.json.decode(text, type=Setup) for text in dict.fromkeys(map(recorded.read, began))]


async def _know_kinds(store: MemoryStore, recorded: RunHistory, clock: Clock) -> None:
    """Let planners be told of the kinds that they were told of in the recording; those that are up say themselves what they are good for."""
    told: dict[str, Offer] = {}
    for event in (r.event() for r in recorded.events):
        if isinstance(event, TaskOpened):
            told |= kinds_told(read_task(event.task))
    facts = [AgentRegistered(kind, "recorded", offer.description, "recorded", 0, "", True, (), offer.unavailable) for kind, offer in told.items()]
    if facts:
        await store.append(AppendRequest([Write(DIRECTORY, facts, ANY)], [clock.new_id() for _ in facts], clock.now_us()))


async def _answer_as_then(crew: MemoryCrew, recorded: RunHistory, run_id: RunId, tenant: str) -> None:
    """Be the person: decide as was decided about the same call in the recording."""
    decided = dict(_decisions(recorded))
    done: set[ApprovalId] = set()
    while True:
        crew.grown.clear()
        events = [recorded.event() for recorded in crew.log.events if recorded.run_id == run_id]
        asked = {event.approval_id: event for event in events if isinstance(event, ApprovalRequested)}
        waiting = [event.approval_id for event in events if isinstance(event, TaskSuspended) and event.approval_id not in done]
        for approval_id in waiting:
            done.add(approval_id)
            then = decided.get((asked[approval_id].tool, asked[approval_id].arguments), UNDECIDED)
            said = {"decision": "denied" if then.decision == "expired" else then.decision, "actor": then.actor, "note": then.note}
            await crew.ask("approvals.decide", {"run_id": run_id, "approval_id": approval_id, **said}, tenant=tenant)
        await crew.grown.wait()


def _decisions(recorded: RunHistory) -> Iterable[tuple[tuple[str, Payload], ApprovalDecided]]:
    asked: Mapping[Any, ApprovalRequested] = {e.approval_id: e for r in recorded.events if isinstance(e := r.event(), ApprovalRequested)}
    for r in recorded.events:
        event = r.event()
        if isinstance(event, ApprovalDecided) and event.approval_id in asked:
            question = asked[event.approval_id]
            yield (question.tool, question.arguments), event
