"""Events for people who follow a run: one line each; and for programs: the JSON in which they are relayed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final, assert_never

import msgspec

from crewlog.events.store import Recorded
from crewlog.projections.waiting import format_time
from crewlog.schemas.codec import EVENT_TYPES, Event, Unknown
from crewlog.schemas.payload import Payload
from crewlog.schemas.run_events import (
    QuarantineLifted,
    ResultsHeld,
    RollbackContinued,
    RunCancelled,
    RunCompleted,
    RunEvent,
    RunFailed,
    RunForked,
    RunHeld,
    RunPaused,
    RunPlanned,
    RunQuarantined,
    RunReleased,
    RunResumed,
    RunSubmitted,
    TaskDispatched,
    TaskHeld,
    TaskResumed,
    TaskRetryScheduled,
    TaskReturned,
    TaskReviewed,
    TaskSuspended,
)
from crewlog.schemas.system_events import (
    AgentRegistered,
    AgentStopped,
    BillCorrected,
    BudgetChanged,
    CallSettled,
    ClaimsOpened,
    DocumentIngested,
    EffectClaimed,
    EffectSettled,
    McpToolPinned,
    MemoryForgotten,
    MemoryRemembered,
    ProviderStateChanged,
    RunStoodStill,
    ScheduleAdded,
    ScheduleFired,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScopePaused,
    ScopeQuarantined,
    ScopeReleased,
    ScopeResumed,
    SystemEvent,
    WorkerDrained,
)
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    BudgetWarned,
    CompensationFinished,
    CompensationStarted,
    ContextCompacted,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    Nudged,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TaskForked,
    TaskHandedBack,
    TaskMoved,
    TaskOpened,
    TaskStarted,
    ToolFinished,
    ToolInDoubt,
    ToolProbed,
    ToolStarted,
)
from crewlog.schemas.text import counted, shorten
from crewlog.schemas.usage import format_usd
from crewlog.schemas.values import Failure

TEXT_CHARS_MAX: Final = 140
REASONING: Final = ("thinking", "native")
"""Fields of `ModelCallFinished` that hold, or may hold, what a model thought."""


def describe(event: Event | Unknown) -> str:
    """Say in one line what an event tells, its type left out. Total: every type has a line."""
    return shorten(" ".join(_describe(event).split()), TEXT_CHARS_MAX)


def event_line(recorded: Recorded, first_us: int) -> str:
    """Return one line about an event: seconds since the run began, where, what."""
    kind, _, name = recorded.stream.partition("/")
    where = kind if kind == "run" else f"{kind} {name[:8]}"
    return f"{(recorded.occurred_us - first_us) / 1e6:8.2f}s  {where:<13}  {recorded.type:<18}  {describe(recorded.event())}".rstrip()


def event_json(recorded: Recorded, *, with_reasoning: bool = True) -> dict[str, Any]:
    """Return an event in the shape in which it is relayed to `events.>`.

    Args:
        with_reasoning: False leaves out what a model thought, and what its provider wrote itself, which may hold that.
    """
    data = json.loads(recorded.data)
    if not with_reasoning and recorded.type == ModelCallFinished.__name__:
        data = {name: value for name, value in data.items() if name not in REASONING}
    return {
        "event_id": str(recorded.event_id),
        "type": recorded.type,
        "schema_version": recorded.schema_version,
        "stream": recorded.stream,
        "version": recorded.version,
        "position": recorded.position,
        "run_id": str(recorded.run_id) if recorded.run_id else None,
        "task_id": str(recorded.task_id) if recorded.task_id else None,
        "occurred_at": datetime.fromtimestamp(recorded.occurred_us / 1e6, UTC).isoformat().replace("+00:00", "Z"),
        "causation_id": str(recorded.causation_id) if recorded.causation_id else None,
        "actor": recorded.actor,
        "data": data,
    }


def _describe(event: Event | Unknown) -> str:
    match event:
        case RunEvent():
            return _describe_run(event)
        case TaskEvent():
            return _describe_task(event)
        case SystemEvent():
            return _describe_system(event)
        case Unknown(type=type_, schema_version=version) if type_ in EVENT_TYPES and version <= EVENT_TYPES[type_].schema_version:
            return f"cannot be read: its data is not that of a {type_} of schema version {version}"
        case Unknown():
            return f"a type this program does not know (schema version {event.schema_version})"
        case _:
            assert_never(event)


def _describe_run(event: RunEvent) -> str:  # noqa: C901  (one arm per event type)
    match event:
        case RunSubmitted():
            return event.goal
        case RunPlanned():
            return f"{event.origin} plan: " + ", ".join(f"{s.key} ({s.type}{' after ' + '+'.join(s.depends_on) if s.depends_on else ''})" for s in event.steps)
        case TaskDispatched():
            return f"{event.key} to {event.kind}" + (f", attempt {event.attempt}" if event.attempt > 1 else "")
        case TaskRetryScheduled():
            return f"{event.key}: attempt {event.attempt} follows after {event.error.code}: {event.error.message}"
        case TaskSuspended():
            return f"{event.key} waits for a person to " + (f"say whether {event.tool} happened" if event.question else f"approve {event.tool}")
        case TaskResumed():
            return f"{event.key}: {event.decision} by {event.actor}"
        case TaskReviewed():
            return f"{event.key} {event.verdict}" + "".join(f"; {issue.rule}: {issue.message}" for issue in event.issues)
        case TaskHeld():
            return f"{event.key} has no money left: {event.error.message}"
        case RunHeld():
            used, limit = format_usd(event.used_micro_usd), format_usd(event.limit_micro_usd)
            return f"{event.scope}: {used} of {limit} used, {format_usd(event.needed_micro_usd)} needed; crewlog budget raise {event.scope} --hard USD"
        case RunReleased():
            return f"{event.scope} has room again"
        case RunCompleted():
            told = f"{format_usd(event.cost_micro_usd)} as told by its tasks"  # the ledger may know of more
            return f"{counted(len(event.artifacts), 'file')}, {told}" + (f"; {', '.join(event.flags)}" if event.flags else "")
        case RunFailed():
            return f"{event.error.code}: {event.error.message}"
        case RunCancelled():
            return f"by {event.actor}: {event.reason}"
        case RunForked():
            return _describe_fork(event)
        case _:
            return _describe_intervention(event)


def _describe_intervention(event: RunEvent) -> str:
    match event:
        case RunPaused() | RunResumed() | RunQuarantined() | QuarantineLifted():
            return f"{event.scope} by {event.actor}" + (f": {event.reason}" if event.reason else "")
        case ResultsHeld():
            return f"until its quarantine is lifted; it ends with {event.error.code}" if isinstance(event.error, Failure) else "until its quarantine is lifted"
        case TaskReturned():
            return f"{event.key}, because of {event.scope}"
        case RollbackContinued():
            return f"{len(event.page.orders)} more effects to take back, {len(event.page.left)} that cannot be" + _behind(event.page.more)
        case _:
            return ""


def _behind(more: int) -> str:
    return f"; {more} more behind them" if more else ""


def _describe_fork(event: RunForked) -> str:
    changes = msgspec.json.decode(event.changes)
    changed = sorted(set(changes) - {"task_id", "run_id", "parent_task_id", "trial"})
    goes_on = f"goes on with {', '.join(task.key for task in event.tasks)}" if event.tasks else "nothing was under way"
    trial = changes.get("trial", {})
    effects = f"effects {'carried out' if trial.get('effects') == 'allow' else 'stubbed'}"
    version = [f"only by agents {trial['agent_version']}"] if trial.get("agent_version") else []
    from_where = f"from run {event.parent} behind event {event.at}, by {event.actor}"
    return "; ".join([from_where, goes_on, effects, *version, *(f"other {name}" for name in changed)])


def _describe_task(event: TaskEvent) -> str:  # noqa: C901, PLR0912  (one arm per event type)
    match event:
        case TaskOpened():
            return f"{event.key} for {event.kind}"
        case TaskStarted():
            return f"by {event.worker} with {event.provider}/{event.model}" + (" (simulated)" if event.simulated else "")
        case ModelCallStarted():
            return f"turn {event.turn}: {counted(event.messages, 'message')} to {event.provider}/{event.model}" + _beside(event)
        case ModelCallFinished():
            asked = ", ".join(call.tool for call in event.tool_calls)
            return f"turn {event.turn}: " + (f"calls {asked}" if asked else _text(event.text))
        case ModelCallFailed():
            return f"turn {event.turn}: {event.error.code}: {event.error.message}"
        case ModelCallSkipped():
            why = event.reason + (f" ({event.detail})" if event.detail else "")
            return f"turn {event.turn}: {event.provider}/{event.model} is not asked{_beside(event)}: {why}"
        case ToolStarted():
            return f"{event.tool} ({event.effect})" + _STUBS[event.stub]
        case TaskForked():
            edits = [f"another result of {result.call_id}" for result in event.results]
            edits += [what for what, is_there in (("a message", event.said), ("another prompt", event.setup), ("another opening", event.opening)) if is_there]
            return f"{event.key} from {event.version} events of task {event.parent}" + "".join(f"; {edit}" for edit in edits)
        case ToolFinished():
            return f"{event.tool} {event.status}: {_text(event.result)}"
        case ToolInDoubt():
            return f"{event.tool} may have happened: {event.reason}"
        case ToolProbed():
            return f"{event.tool} {event.verdict.replace('_', ' ')}" + (f": {_text(event.result)}" if event.result.size else "")
        case CompensationStarted():
            return f"{event.tool} takes {event.call_id} back"
        case CompensationFinished():
            return f"{event.tool} {event.status}: {_text(event.result)}"
        case ApprovalRequested():
            return f"{event.tool}: {event.reason}"
        case ApprovalDecided():
            return f"{event.decision} by {event.actor}" + (f": {event.note}" if event.note else "")
        case Nudged():
            return f"{event.reason}: {event.text}"
        case BudgetWarned():
            return f"{event.scope} is over its soft limit, with what its calls reserve"
        case ContextCompacted():
            return f"turn {event.turn}: {len(event.replaced)} texts left out, about {event.tokens_before} to {event.tokens_after} tokens"
        case TaskMoved():
            return f"goes on under version {event.agent_version} of its agent (before: {event.from_version}), at {event.worker}"
        case TaskHandedBack():
            return f"because of {event.scope}"
        case AttemptFailed():
            return f"attempt {event.attempt}: {event.error.code}: {event.error.message}"
        case TaskCompleted():
            return event.outcome.summary
        case TaskFailed():
            return f"{event.error.code}: {event.error.message}"
        case TaskCancelled():
            return f"by {event.actor}: {event.reason}"
        case _:
            return ""


_STUBS: Final = {"": "", "stubbed": ", stubbed: it is not carried out", "recorded": ", answered from the record", "missing": ", not in the record"}


def _beside(event: ModelCallStarted | ModelCallSkipped) -> str:
    return " beside the slow one" if event.hedge else ""


def _bill(event: CallSettled | BillCorrected) -> str:
    settled = f", settled at {format_usd(event.settled_micro_usd)} before" if isinstance(event, BillCorrected) else ""
    return f"{event.call_id} to {event.provider}/{event.model}: {format_usd(event.price.cost_micro_usd)} ({event.price.source}{settled})"


def _describe_system(event: SystemEvent) -> str:
    match event:
        case AgentRegistered():
            return f"{event.worker}, {event.slots} slots, {event.model}" + (f"; unavailable: {event.unavailable}" if event.unavailable else "")
        case AgentStopped():
            return event.worker if event.heard_us is msgspec.UNSET else f"{event.worker} does not answer, last heard {format_time(event.heard_us)}"
        case ProviderStateChanged():
            return f"{event.provider}/{event.model} {event.state} for {event.worker}" + (f": {event.reason}" if event.reason else "")
        case MemoryRemembered():
            return f"for {event.user or 'the tenant'}: {event.text}"
        case MemoryForgotten():
            return f"{event.content[:12]} for {event.user or 'the tenant'} by {event.actor}"
        case DocumentIngested():
            return f"{event.name}, {event.lines} lines"
        case McpToolPinned():
            return f"{event.server}: {event.tool} {'accepted' if event.accepted else 'first seen'} as {event.digest[:12]}"
        case BudgetChanged():
            return f"{event.scope}: limit {_limit(event.hard_micro_usd)}, warning at {_limit(event.soft_micro_usd)}, by {event.actor}"
        case CallSettled() | BillCorrected():
            return _bill(event)
        case ClaimsOpened():
            return f"{event.tool} of {event.kind}, {event.fingerprint[:12]}"
        case EffectClaimed():
            return f"by call {event.call.call_id} of task {event.call.task_id}"
        case EffectSettled():
            return f"{event.status}: {_text(event.result)}"
        case RunStoodStill():
            return f"stands still since {format_time(event.since_us)}: {event.what}"
        case _:
            return _describe_schedule(event)


def _describe_schedule(event: SystemEvent) -> str:
    match event:
        case ScheduleAdded():
            return f"{event.name}: {event.cron} in {event.zone}, by {event.actor}"
        case SchedulePaused() | ScheduleResumed() | ScheduleRemoved():
            return f"by {event.actor}" + (f": {event.reason}" if event.reason else "")
        case ScheduleFired():
            return f"run {event.run_id}" + (f", wanted by {event.actor}" if event.actor else "") + (f"; refused: {event.error}" if event.error else "")
        case ScopePaused() | ScopeResumed() | ScopeQuarantined() | ScopeReleased():
            return f"{event.scope} by {event.actor}" + (f": {event.reason}" if event.reason else "")
        case WorkerDrained():
            return f"{event.worker} by {event.actor}" + (f": {event.reason}" if event.reason else "")
        case _:
            return ""


def _limit(micro_usd: int | None) -> str:
    return "none" if micro_usd is None else format_usd(micro_usd)


def _text(payload: Payload) -> str:
    return payload.inline if payload.inline is not None else f"{payload.size} bytes"
