"""Forking runs: read the parent up to the place, make the command, begin the run. What a fork shares is referred to, never copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from crewlog.agents.models import named_models
from crewlog.agents.recorded_task import folded, setup_of
from crewlog.agents.setup import Setup, instructed, opening_message
from crewlog.agents.task_fork import forked_task
from crewlog.agents.task_state import TaskState as AgentState
from crewlog.events.clock import Clock
from crewlog.events.limits import limits_for
from crewlog.events.prefix import tenant_of
from crewlog.events.store import EventStore
from crewlog.orchestrator.commands import ForkRun, TaskFork, Terms
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.folds import Fold
from crewlog.orchestrator.fork_place import ForkPlace, fork_place, own_events
from crewlog.orchestrator.forking import task_changes
from crewlog.orchestrator.kinds import known_versions, refuse_unknown, versions_meant
from crewlog.orchestrator.raised_budget import raised_budget
from crewlog.orchestrator.run import TaskState, active_tasks
from crewlog.orchestrator.run_history import RunHistory, load_history, refuse_erased, with_texts
from crewlog.orchestrator.terms import Allowance
from crewlog.schemas.errors import ConflictError, ContractError, NotFound
from crewlog.schemas.ids import Hash, RunId, task_stream
from crewlog.schemas.merge_patch import merged
from crewlog.schemas.payload import Payload, content_hash, pack
from crewlog.schemas.run_events import RunForked, RunSubmitted
from crewlog.schemas.sparse import sparse_json
from crewlog.schemas.subjects import SHADOW_LANE
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import EditedResult, TaskForked
from crewlog.schemas.text import clean
from crewlog.schemas.trial import CURRENT, Effects, Trial

CHANGEABLE: Final = frozenset(
    {"objective", "auto_approve", "limits", "constraints", "timeout_seconds", "priority", "budget", "routing", "synthesis", "output_schema"}
)
"""What of the submitted task a fork may say differently."""


class ForkRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fork a run. Without any change it does again what came after the place, with effects stubbed."""

    run_id: UUID
    at: int
    """Index of the last event to share, from 1."""
    actor: str
    fork_id: UUID | None = None
    """Id of the new run: the same request sent again makes one fork."""
    reason: str = ""
    task: str = ""
    """Key of the task that `message` is for; empty for the only one under way, or the one that the event at the place is about."""
    message: str = ""
    """What its model is told behind its last results."""
    results: dict[str, str] = {}
    """Call id -> what the call is said to have returned."""
    prompts: dict[str, str] = {}
    """Agent kind, or `*`, -> instructions in place of its own."""
    models: str = ""
    agent_version: str = ""
    """`current`: tasks under way go on with the prompt and tools that agents have now. `KIND=VERSION` with commas: agents of these kinds must have these
    versions, and theirs go on with the prompt and tools of those. `VERSION` alone is said of every kind that has had it."""
    effects: Effects = "stub"
    reads: bool = True
    """Reading tools are answered from the parent's record where it has the same call."""
    changes: dict[str, Any] = {}
    """JSON Merge Patch of the submitted task; see `CHANGEABLE`."""


class Forked(NamedTuple):
    """A fork that is in the log. `at` may lie behind what was asked for: decisions are shared whole."""

    run_id: RunId
    parent_run_id: RunId
    at: int
    tasks: tuple[str, ...]
    """Keys of the tasks that go on."""
    is_new: bool


class Forks:
    """Makes forks for one orchestrator."""

    def __init__(self, store: EventStore, clock: Clock, driver: Driver, allowance: Allowance) -> None:
        self._store, self._clock, self._driver, self._allowance = store, clock, driver, allowance

    async def fork(self, tenant: str, request: ForkRequest) -> Forked:
        """Fork a run of this tenant. The fork is durable when this returns, and on its way.

        Raises:
            NotFound: there is no such run or event.
            ContractError: it cannot be forked there or so; the message says where or how it can.
        """
        history = await load_history(self._store, RunId(request.run_id))
        if tenant_of(history.events) != tenant:
            raise NotFound("run", str(request.run_id))
        if not 1 <= request.at <= len(history.events):
            raise NotFound(f"event (run {request.run_id} has events 1 to {len(history.events)})", f"{request.run_id}:{request.at}")
        refuse_erased(history, "forked")
        await refuse_unknown(self._store, request.prompts, what="a prompt")
        history, at = await self._owner(history, request.at)
        request = msgspec.structs.replace(request, at=at, agent_version=await self._versions(request.agent_version))
        place = fork_place(history, at)
        fork_id = RunId(request.fork_id or self._clock.random_id())
        made = await _Making(self._store, history, place, request, fork_id, self._allowance).command()
        await self._store.put_blobs(made.prompts)
        await self._store.put_blobs(made.blobs, run_id=history.run_id)  # it has no key of its own yet, and the same person
        fold = Fold(fork_id)
        fold.state = place.state
        keys = tuple(task.key for task in active_tasks(place.state))
        try:
            await self._driver.begin(fold, made.command)
        except ConflictError:
            return await self._known(made.command, keys)
        return Forked(fork_id, history.run_id, place.at, keys, True)

    async def _owner(self, history: RunHistory, at: int) -> tuple[RunHistory, int]:
        """Return the run that an event belongs to, and its index there: what a fork shares is forked from its parent."""
        while (forked := history.forked) is not None and at < history.first_own:
            position = history.events[at - 1].position
            history = await load_history(self._store, forked.parent)
            at = next(index for index, recorded in enumerate(history.events, 1) if recorded.position == position)
        return history, at

    async def _versions(self, asked: str) -> str:
        return asked if asked in ("", CURRENT) else versions_meant(asked, await known_versions(self._store))

    async def _known(self, command: ForkRun, keys: tuple[str, ...]) -> Forked:
        history = await load_history(self._store, command.run_id)
        first = history.forked
        if first is None or (first.parent, first.at) != (command.parent, command.at):
            raise ContractError(f"run {command.run_id} exists and is another fork or no fork; choose another id")
        return Forked(command.run_id, command.parent, command.at, keys, False)


class _Made(NamedTuple):
    command: ForkRun
    blobs: list[bytes]
    prompts: list[bytes]
    """Of agents: no person's data."""


class _Making:
    """One fork in the making."""

    def __init__(self, store: EventStore, history: RunHistory, place: ForkPlace, request: ForkRequest, fork_id: RunId, allowance: Allowance) -> None:
        self._store, self._history, self._place, self._request, self._fork_id, self._allowance = store, history, place, request, fork_id, allowance
        self._blobs: list[bytes] = []
        self._prompts: list[bytes] = []

    async def command(self) -> _Made:
        request, place = self._request, self._place
        changes = await self._changes()
        terms = Terms(limits_for(self._allowance.limits, place.state.brief.surface), hold_s=self._allowance.hold_s)
        where = (self._history.run_id, place.parent_version, place.at, place.position)
        plain = ForkRun(self._fork_id, *where, msgspec.Raw(msgspec.json.encode(changes)), (), request.actor, request.reason, terms)
        tasks = tuple([await self._task(plain, task) for task in active_tasks(place.state)])
        self._check_edits(tasks)
        return _Made(msgspec.structs.replace(plain, tasks=tasks), self._blobs, self._prompts)

    async def _changes(self) -> dict[str, Any]:
        """Write what is different in the submitted task, checked as a submission is."""
        request = self._request
        if unknown := sorted(set(request.changes) - CHANGEABLE):
            raise ContractError(f"a fork cannot change {', '.join(unknown)} of its task; it may change {', '.join(sorted(CHANGEABLE))}")
        if request.models:
            named_models(request.models)
        prompts: dict[str, str] | None = {kind: self._keep(text) for kind, text in request.prompts.items()} or None
        trial = Trial(request.effects, request.run_id, not request.reads, request.models, self._version, prompts=prompts)
        ids = {"task_id": str(self._fork_id), "run_id": str(self._fork_id), "parent_task_id": None}
        submitted = self._submitted()
        own: dict[str, Any] = {"priority": "normal"} if submitted.get("priority") == SHADOW_LANE else {}  # somebody waits for this one
        if (raised := await raised_budget(self._store, self._history.run_id)) is not None:
            own["budget"] = msgspec.to_builtins(raised)
        if request.effects == "allow" and submitted.get("auto_approve"):
            own["auto_approve"] = False  # that was agreed to for the parent's effects, and they would happen once more
        changes = {**own, **request.changes, **ids, "trial": msgspec.to_builtins(trial)}
        checked = msgspec.json.decode(sparse_json(parse_task(merged(submitted, changes))))
        return {**changes, **{name: checked.get(name) for name in request.changes if name != "budget"}}

    @property
    def _version(self) -> str:
        return "" if self._request.agent_version == CURRENT else self._request.agent_version

    def _submitted(self) -> Any:
        task: Any = {}
        for recorded in self._history.events[: self._place.at]:
            event = recorded.event() if recorded.type in ("RunSubmitted", "RunForked") else None
            if isinstance(event, RunSubmitted):
                task = msgspec.json.decode(event.task)
            elif isinstance(event, RunForked):
                task = merged(task, msgspec.json.decode(event.changes))
        return task

    async def _task(self, command: ForkRun, task: TaskState) -> TaskFork:
        request, version = self._request, self._place.versions[task.key]
        begins_anew = request.agent_version == CURRENT or bool(Trial(agent_version=self._version).version_of(task.kind))
        plain = TaskFork(task.task_id, version, begins_anew=begins_anew)
        if not self._is_edited:
            return plain
        events = own_events(self._history.events[: self._place.at], task, version)
        state = folded(events)
        said = clean(request.message) if request.message and self._target() == task.key else ""
        results = tuple(EditedResult(call_id, self._pack(text)) for call_id, text in request.results.items() if call_id in _calls(state))
        if state.setup is None or state.opening is None or plain.begins_anew:
            if said and not state.exchanges:
                raise ContractError(f"task {task.key!r} has not begun at event {self._place.at}: fork behind its first model call, or change the objective")
            return msgspec.structs.replace(plain, results=results, said=said)
        texts = await with_texts(self._store, self._history, [state.setup, state.opening])
        setup = setup_of(state, texts.read)
        assert setup is not None
        opening = self._opening(command, task, state, setup, texts.read(state.opening), said)
        prompt = request.prompts.get(task.kind, request.prompts.get("*"))
        return TaskFork(
            task.task_id,
            version,
            results,
            said if state.exchanges else "",
            None if prompt is None else self._pack_setup(instructed(setup, prompt)),
            None if opening is None else self._pack(opening),
        )

    def _opening(self, command: ForkRun, task: TaskState, state: AgentState, setup: Setup, recorded: str, said: str) -> str | None:
        """Return the first message of a task when it is another one: the task is described differently, or nothing was said behind it yet."""
        assert state.task is not None
        patch = {name: value for name, value in task_changes(self._place.state, command, task).items() if name in CHANGEABLE}
        what = TaskForked(task.task_id, 0, task.kind, task.key, task.revision, msgspec.Raw(msgspec.json.encode(patch)))
        opening = opening_message(forked_task(state.task, what), setup.context)
        is_same = opening == opening_message(state.task, setup.context)
        told = recorded if is_same else opening
        more = f"{told}\n\n{said}" if said and not state.exchanges else told
        return None if more == recorded else more

    @property
    def _is_edited(self) -> bool:
        request = self._request
        return bool(request.results or request.message or request.prompts or CHANGEABLE & request.changes.keys())

    def _target(self) -> str:
        """Return the key of the task that a message is for."""
        keys = list(self._place.versions)
        if self._request.task:
            if self._request.task not in keys:
                raise ContractError(f"task {self._request.task!r} is not under way at event {self._place.at}; under way: {', '.join(keys) or 'none'}")
            return self._request.task
        at = self._history.events[self._request.at - 1]
        about = next((task.key for task in active_tasks(self._place.state) if task_stream(task.task_id) == at.stream), None)
        if about is None and len(keys) != 1:
            raise ContractError(f"which task is the message for? Under way at event {self._place.at}: {', '.join(keys)}; name one as the task")
        return about or keys[0]

    def _check_edits(self, tasks: Sequence[TaskFork]) -> None:
        found = {result.call_id for task in tasks for result in task.results}
        if missing := sorted(self._request.results.keys() - found):
            raise ContractError(
                f"call {missing[0]!r} was not asked for by a task that is under way at event {self._place.at}; "
                "fork behind the event in which the model asks for it, and before its task ends"
            )

    def _pack(self, text: str) -> Payload:
        payload, blob = pack(text)
        if blob is not None:
            self._blobs.append(blob)
        return payload

    def _pack_setup(self, setup: Setup) -> Payload:
        payload, blob = pack(msgspec.json.encode(setup).decode(), inline_max=0)
        assert blob is not None
        self._prompts.append(blob)
        return payload

    def _keep(self, text: str) -> Hash:
        self._prompts.append(text.encode())
        return content_hash(text.encode())


def _calls(state: AgentState) -> frozenset[str]:
    return frozenset(call.call_id for exchange in state.exchanges for call in exchange.calls)
