"""The trace of a run: a fold of its events into spans. The log is the only source, so no process spends anything on being traced.

    invoke_workflow <type>                           RunSubmitted … the run's end
      send work.<kind>.<lane>                        TaskDispatched
        process work.<kind>.<lane>                   a worker's hold on the task: TaskStarted … completed, failed, suspended, lost
          invoke_agent <kind>                        the same time, as the agent's work; links to the hold before it, if it goes on
            chat <model>                             ModelCallStarted … Finished | Failed: one per attempt at one model
            execute_tool <tool>                      ToolStarted … ToolFinished

What happened before a crash of any process is in the log, hence in the trace. Times are those of the events; where an event was written
later than what it tells of, the duration it names counts. What a model or a tool said is in no span, unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal
from uuid import UUID

import msgspec

from crewlog.events.store import Recorded
from crewlog.projections import span_names as names
from crewlog.projections.span import Attributes, Content, Part, Span, SpanKind
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.ids import Stream, TaskId, task_stream
from crewlog.schemas.payload import Payload
from crewlog.schemas.run_events import RUN_EVENTS, RunCancelled, RunCompleted, RunFailed, RunForked, RunSubmitted, TaskDispatched
from crewlog.schemas.system_events import CallSettled
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallStarted,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskStarted,
    ToolFinished,
    ToolStarted,
)
from crewlog.schemas.trace_context import SpanRef, parse_traceparent, span_id
from crewlog.schemas.usage import Price, Usage

_TASK_TYPES: Final = (
    *(TaskStarted, ModelCallStarted, ModelCallFinished, ModelCallFailed, ToolStarted, ToolFinished),
    *(ApprovalRequested, ApprovalDecided, AttemptFailed, TaskCompleted, TaskFailed, TaskCancelled),
)
_RUN_TYPES: Final = (RunSubmitted, RunForked, TaskDispatched, RunCompleted, RunFailed, RunCancelled)
TRACED_TYPES: Final = frozenset(cls.__name__ for cls in (*_RUN_TYPES, *_TASK_TYPES, CallSettled))
"""Types of events that a trace is made of."""
END_TYPES: Final = frozenset(cls.__name__ for cls in RUN_EVENTS if cls in (RunCompleted, RunFailed, RunCancelled))

INTERRUPTED: Final = "interrupted"
_PROVIDERS: Final = {"google": "gcp.gemini"}
_ROOT: Final = "workflow"

Ended = Literal["completed", "failed", "suspended", "cancelled", "interrupted"]


class _Submitted(msgspec.Struct):
    type: str
    priority: str = "normal"


class _Begun(msgspec.Struct):
    """A call that is under way."""

    begin_us: int
    span_id: bytes
    parent_id: bytes
    name: str
    actor: str


class _Hold(msgspec.Struct):
    """One worker's hold on a task."""

    begin_us: int
    last_us: int
    process_id: bytes
    agent_id: bytes
    parent_id: bytes
    actor: str
    version: str
    attempt: int
    links: tuple[SpanRef, ...]


class _Task(msgspec.Struct):
    task_id: TaskId
    kind: str
    key: str
    lane: str
    sends: int = 0
    holds: int = 0
    hold: _Hold | None = None
    calls: dict[str, _Begun] = msgspec.field(default_factory=dict)
    tools: dict[str, _Begun] = msgspec.field(default_factory=dict)
    unresolved: set[str] = msgspec.field(default_factory=set)
    """Tool calls of the last turn without a result."""
    asked: set[str] = msgspec.field(default_factory=set)
    """Those that wait for a person."""
    said: list[Part] = msgspec.field(default_factory=list)
    """What the next call of the model is told that the last one was not; kept where content is wanted."""
    arguments: dict[str, Payload] = msgspec.field(default_factory=dict)
    """Of tool calls without a result; likewise."""


class RunTrace:
    """The spans of one run that have not ended yet."""

    def __init__(self, run_id: UUID, *, replay: UUID | None = None, with_content: bool = False) -> None:
        """Begin with nothing.

        Args:
            replay: given, the spans form another trace with this id, linked to the original.
            with_content: spans name what was said, too: for calls of models what was new to them, for tools arguments and result.
        """
        self.run_id = run_id
        self._with_content = with_content
        self.has_ended = False
        self._replay = replay
        self._trace_id = (replay or run_id).bytes
        self._conversation = str(run_id)
        self._submitted: Recorded | None = None
        self._brief = _Submitted("run")
        self._links: tuple[SpanRef, ...] = () if replay is None else (SpanRef(run_id.bytes, span_id(run_id, _ROOT)),)
        self._tenant = ""
        self._cost_micro_usd = 0
        self._tasks: dict[Stream, _Task] = {}

    def fold(self, recorded: Recorded, event: Event | Unknown) -> list[Span]:
        """Take in the next event of the run and return the spans that it ends. Events of other types than `TRACED_TYPES` end none."""
        if recorded.type not in TRACED_TYPES or (self.has_ended and not isinstance(event, CallSettled)):
            return []  # tasks that a cancelled run closes were closed with it
        match event:
            case RunSubmitted():
                return self._submit(recorded, event)
            case RunForked():
                self._submitted, self._tenant, self._brief = recorded, event.tenant, _Submitted(event.type)
                self._links += (SpanRef(event.parent.bytes, span_id(event.parent, _ROOT)),)
                return []
            case TaskDispatched():
                return self._dispatch(recorded, event)
            case RunCompleted() | RunFailed() | RunCancelled():
                return list(self._end(recorded, event))
            case CallSettled():
                return [self._settled(recorded, event)]
        task = self._tasks.get(recorded.stream)
        return [] if task is None else list(self._fold_task(recorded, event, task))

    def _fold_task(self, recorded: Recorded, event: Event | Unknown, task: _Task) -> Iterator[Span]:
        task_id, at_us = task.task_id, recorded.occurred_us
        if isinstance(event, TaskStarted):
            yield from self._close(task_id, task, INTERRUPTED, error=INTERRUPTED)
            self._take(recorded, event, task_id, task)
            return
        if (hold := task.hold) is not None and not isinstance(event, ApprovalDecided | TaskFailed | TaskCancelled):
            hold.last_us = max(hold.last_us, at_us)
        match event:
            case ModelCallStarted() if hold is not None:
                task.calls[event.call_id] = _Begun(at_us, self._id(task_id, f"chat/{recorded.version}"), hold.agent_id, event.model, recorded.actor)
            case ModelCallFinished() | ModelCallFailed():
                yield from self._chat(recorded, event, task)
            case ToolStarted() if hold is not None:
                task.tools[event.call_id] = _Begun(at_us, self._id(task_id, f"tool/{recorded.version}"), hold.agent_id, event.tool, recorded.actor)
            case ToolFinished():
                yield from self._tool(recorded, event, task_id, task)
            case ApprovalRequested():
                task.asked.add(event.call_id)
            case ApprovalDecided():
                task.asked.discard(event.call_id)
            case TaskCompleted():
                yield from self._close(task_id, task, "completed")
            case AttemptFailed():
                yield from self._close(task_id, task, "failed", error=event.error.code)
            case TaskFailed():
                yield from self._close(task_id, task, "failed", error=event.error.code)
            case TaskCancelled():
                yield from self._close(task_id, task, "cancelled", error="cancelled")
            case _:
                return
        if task.unresolved and task.unresolved == task.asked:
            yield from self._close(task_id, task, "suspended")

    def _submit(self, recorded: Recorded, event: RunSubmitted) -> list[Span]:
        self._submitted = recorded
        self._brief = msgspec.json.decode(event.task, type=_Submitted)
        caller = parse_traceparent(event.caller)
        self._links += () if caller is None else (caller,)
        self._tenant = event.tenant
        return []

    def _dispatch(self, recorded: Recorded, event: TaskDispatched) -> list[Span]:
        task = self._tasks.setdefault(task_stream(event.task_id), _Task(event.task_id, event.kind, event.key, self._brief.priority))
        task.sends += 1
        subject = f"work.{task.kind}.{task.lane}"
        attributes = self._messaging(subject, "send", "publish")
        attributes |= {names.MESSAGE_ID: f"{event.task_id}:{event.attempt}:{task.sends}", names.TASK_KEY: task.key}
        own, at_us = self._id(event.task_id, f"send/{task.sends}"), recorded.occurred_us
        return [self._span(own, self._root, f"send {subject}", SpanKind.PRODUCER, at_us, at_us, attributes, recorded.actor)]

    def _take(self, recorded: Recorded, event: TaskStarted, task_id: TaskId, task: _Task) -> None:
        task.holds += 1
        n, at_us = task.holds, recorded.occurred_us
        before = () if n == 1 else (SpanRef(self._trace_id, self._id(task_id, f"agent/{n - 1}")),)
        ids = (self._id(task_id, f"process/{n}"), self._id(task_id, f"agent/{n}"), self._id(task_id, f"send/{task.sends}"))
        task.hold = _Hold(at_us, at_us, *ids, recorded.actor, event.agent_version, event.attempt, before)
        if self._with_content and n == 1:
            task.said.append(Part("user", "text", event.opening))

    def _close(self, task_id: TaskId, task: _Task, ended: Ended, *, error: str = "") -> Iterator[Span]:
        """End a worker's hold on a task, and what was under way in it."""
        hold, task.hold = task.hold, None
        if hold is None:
            return
        for call_id, begun in task.tools.items():
            yield self._tool_span(begun, call_id, hold.last_us, INTERRUPTED, task.kind)
        task.tools.clear()
        own: Attributes = {names.TASK: str(task_id), names.TASK_KEY: task.key, names.ATTEMPT: hold.attempt, names.ENDED: ended}
        agent: Attributes = {names.OPERATION: "invoke_agent", names.AGENT: task.kind, names.AGENT_VERSION: hold.version, **own}
        times = (hold.begin_us, hold.last_us)
        yield self._span(
            *(hold.agent_id, hold.process_id, f"invoke_agent {task.kind}", SpanKind.INTERNAL), *times, agent, hold.actor, links=hold.links, error=error
        )
        subject = f"work.{task.kind}.{task.lane}"
        messaging = self._messaging(subject, "process", "process") | {names.CONSUMER_GROUP: f"{task.kind}-{task.lane}", **own}
        sent = (SpanRef(self._trace_id, hold.parent_id),)
        yield self._span(*(hold.process_id, hold.parent_id, f"process {subject}", SpanKind.CONSUMER), *times, messaging, hold.actor, links=sent, error=error)

    def _chat(self, recorded: Recorded, event: ModelCallFinished | ModelCallFailed, task: _Task) -> Iterator[Span]:
        begun = task.calls.pop(event.call_id, None)
        if begun is None:
            return
        self._cost_micro_usd += event.price.cost_micro_usd or 0
        hold, end_us = task.hold, recorded.occurred_us
        if hold is None or hold.agent_id != begun.parent_id:
            end_us = begun.begin_us  # nobody knows when it ended: its worker died
        begin_us = end_us - event.latency_ms * 1000 if event.latency_ms else min(begun.begin_us, end_us)
        if hold is not None:  # a simulated call is written together with its task's start
            hold.begin_us = min(hold.begin_us, begin_us)
        attributes = self._asked(event.provider, begun.name, event.price)
        if isinstance(event, ModelCallFinished):
            attributes |= _answered(event)
        elif event.status is not None:
            attributes[names.STATUS_CODE] = event.status
        if event.request_id:
            attributes[names.RESPONSE_ID] = event.request_id
        error = event.error.code if isinstance(event, ModelCallFailed) else ""
        name = f"{attributes[names.OPERATION]} {begun.name}"
        span = self._span(begun.span_id, begun.parent_id, name, SpanKind.CLIENT, begin_us, end_us, attributes, begun.actor, error=error)
        if isinstance(event, ModelCallFinished):
            task.unresolved, task.asked = {call.call_id for call in event.tool_calls}, set()
            if self._with_content:
                span = span._replace(content=Content(tuple(task.said), _outputs(event)))
                task.said.clear()
                task.arguments = {call.call_id: call.arguments for call in event.tool_calls}
        yield span

    def _settled(self, recorded: Recorded, event: CallSettled) -> Span:
        """A call that was paid for when its task had no place for it any more."""
        self._cost_micro_usd += event.price.cost_micro_usd or 0
        attributes = self._asked(event.provider, event.model, event.price) | _used(event.usage)
        own, at_us = self._id(event.task_id, f"settled/{recorded.version}"), recorded.occurred_us
        name = f"{attributes[names.OPERATION]} {event.model}"
        return self._span(own, self._root, name, SpanKind.CLIENT, at_us, at_us, attributes, recorded.actor)

    def _tool(self, recorded: Recorded, event: ToolFinished, task_id: TaskId, task: _Task) -> Iterator[Span]:
        task.unresolved.discard(event.call_id)
        begun = task.tools.pop(event.call_id, None)
        if begun is None:  # nothing ran: refused, denied or answered by a person
            if task.hold is None:
                return
            begun = _Begun(recorded.occurred_us, self._id(task_id, f"tool/{recorded.version}"), task.hold.agent_id, event.tool, recorded.actor)
        error = "" if event.status == "ok" else f"tool_{event.status}"
        span = self._tool_span(begun, event.call_id, begun.begin_us + event.latency_ms * 1000, error, task.kind, status=event.status)
        if self._with_content:
            task.said.append(Part("tool", "tool_call_response", event.result, event.call_id, event.tool))
            span = span._replace(content=Content(arguments=task.arguments.pop(event.call_id, None), result=event.result))
        yield span

    def _tool_span(self, begun: _Begun, call_id: str, end_us: int, error: str, kind: str, *, status: str = INTERRUPTED) -> Span:
        attributes: Attributes = {
            names.OPERATION: "execute_tool",
            names.TOOL: begun.name,
            names.TOOL_TYPE: "function",
            names.TOOL_CALL: call_id,
            names.AGENT: kind,
            names.TOOL_STATUS: status,
        }
        name = f"execute_tool {begun.name}"
        return self._span(begun.span_id, begun.parent_id, name, SpanKind.INTERNAL, begun.begin_us, end_us, attributes, begun.actor, error=error)

    def _end(self, recorded: Recorded, event: RunCompleted | RunFailed | RunCancelled) -> Iterator[Span]:
        self.has_ended = True
        error = ""
        status: Ended = "completed"
        match event:
            case RunFailed():
                error, status = event.error.code, "failed"
            case RunCancelled():
                error, status = "cancelled", "cancelled"
        for task in self._tasks.values():
            yield from self._close(task.task_id, task, "cancelled", error=error or "cancelled")
        self._tasks.clear()
        if self._submitted is None:
            return
        attributes: Attributes = {
            names.OPERATION: "invoke_workflow",
            names.WORKFLOW: self._brief.type,
            names.TENANT: self._tenant,
            names.RUN_STATUS: status,
            names.COST: self._cost_micro_usd / 1e6,
            names.SPAN_KIND: names.CHAIN,
        }
        if self._replay is not None:
            attributes[names.REPLAY_OF] = str(self.run_id)
        times = (self._submitted.occurred_us, recorded.occurred_us)
        name = f"invoke_workflow {self._brief.type}"
        yield self._span(self._root, b"", name, SpanKind.INTERNAL, *times, attributes, recorded.actor, links=self._links, error=error)

    @property
    def _root(self) -> bytes:
        return self._id(self.run_id, _ROOT)

    def _id(self, owner: UUID, what: str) -> bytes:
        return span_id(owner, what if self._replay is None else f"{self._replay}/{what}")

    def _messaging(self, subject: str, type_: str, operation: str) -> Attributes:
        return {
            names.MESSAGING_SYSTEM: "nats",
            names.MESSAGING_TYPE: type_,
            names.MESSAGING_OPERATION: operation,
            names.DESTINATION: subject,
            names.SPAN_KIND: names.CHAIN,
        }

    def _asked(self, provider: str, model: str, price: Price) -> Attributes:
        attributes: Attributes = {
            names.OPERATION: "generate_content" if provider == "google" else "chat",
            names.PROVIDER: _PROVIDERS.get(provider, provider),
            names.REQUEST_MODEL: model,
            names.PRICE_SOURCE: price.source,
        }
        if price.cost_micro_usd is not None:
            attributes[names.COST] = price.cost_micro_usd / 1e6
        return attributes

    def _span(
        self,
        own: bytes,
        parent: bytes,
        name: str,
        kind: SpanKind,
        begin_us: int,
        end_us: int,
        attributes: Attributes,
        actor: str,
        *,
        links: tuple[SpanRef, ...] = (),
        error: str = "",
    ) -> Span:
        attributes[names.CONVERSATION] = self._conversation
        if error:
            attributes[names.ERROR_TYPE] = error
        return Span(self._trace_id, own, parent, name, kind, begin_us, max(begin_us, end_us), attributes, actor, links, error)


def _answered(event: ModelCallFinished) -> Attributes:
    attributes: Attributes = {names.RESPONSE_MODEL: event.model, names.FINISH_REASONS: (event.stop,), **_used(event.usage)}
    if event.purpose == "output":
        attributes[names.OUTPUT_TYPE] = "json"
    if event.simulated:
        attributes[names.SIMULATED] = True
    return attributes


def _used(usage: Usage) -> Attributes:
    """Name the tokens of a call that was answered: backends bill what they find, so a failed one has none."""
    used: Attributes = {names.INPUT_TOKENS: usage.input_tokens, names.OUTPUT_TOKENS: usage.output_tokens}
    if usage.cache_read_tokens:
        used[names.CACHE_READ_TOKENS] = usage.cache_read_tokens
    if usage.cache_write_tokens:
        used[names.CACHE_CREATION_TOKENS] = used[names.CACHE_WRITE_TOKENS] = usage.cache_write_tokens
    if usage.reasoning_tokens:
        used[names.REASONING_TOKENS] = usage.reasoning_tokens
    return used


def _outputs(event: ModelCallFinished) -> tuple[Part, ...]:
    text = (Part("assistant", "text", event.text),) if event.text.size else ()
    return (*text, *(Part("assistant", "tool_call", call.arguments, call.call_id, call.tool) for call in event.tool_calls))
