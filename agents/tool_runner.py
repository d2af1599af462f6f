"""Run tool calls: validate → authorise → limit → run → record, always in that order and always outside the tool."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

import msgspec
from pydantic import ValidationError

from crewlog.agents.setup import Setup, SetupTool
from crewlog.agents.spec import ToolContext, ToolFailed, ToolOutcomeUnknown, ToolOutput, ToolSpec
from crewlog.agents.task_state import Call, TaskState
from crewlog.agents.tool_ways import REPEATABLE, ToolHealth, Ways, carry_out
from crewlog.agents.turn import approval_of, digest_of
from crewlog.events import faults
from crewlog.events.clock import Clock
from crewlog.schemas.effects import Compensation
from crewlog.schemas.errors import ConflictError, ContractError, OrchestrationError, Unavailable
from crewlog.schemas.ids import ApprovalId
from crewlog.schemas.parse import contract_error
from crewlog.schemas.task_events import Question, ToolProbed
from crewlog.schemas.text import clean

RESULT_CHARS_MAX: Final = 24_000
"""What of one result a model is shown; the rest is cut with a note that says so."""

STARTS_MAX: Final = 3
"""Times a call is started of which its probe says each time that it did not happen."""


class Refuse(msgspec.Struct, frozen=True):
    """The call does not run, or not again; `message` goes to the model."""

    message: str
    status: Literal["refused", "unknown", "error"] = "refused"
    """`unknown`: it may have had its effect. `error`: it ran, and was taken back, or never had any."""


class Ask(msgspec.Struct, frozen=True):
    """A person must agree first, or say what became of a call."""

    approval_id: ApprovalId
    digest: str
    reason: str
    question: Question | msgspec.UnsetType = msgspec.UNSET


class Probe(msgspec.Struct, frozen=True):
    """The tool's probe must look whether the call had its effect."""


class TakeBack(msgspec.Struct, frozen=True):
    """Whether the call had its effect cannot be found out, but it can be taken back."""

    compensation: Compensation


class Found(msgspec.Struct, frozen=True):
    """The probe found that the call had its effect: what it said is the result."""

    probed: ToolProbed


class Run(msgspec.Struct, frozen=True):
    """The call may run now, under the permit `approval_id` if it needed one."""

    approval_id: ApprovalId | None = None


class Answer(msgspec.Struct, frozen=True):
    """Nothing runs: what a person said is the result."""

    message: str


Verdict = Refuse | Ask | Run | Answer | Probe | TakeBack | Found


def judge(call: Call, state: TaskState, setup: Setup, spec: ToolSpec | None, arguments: str) -> Verdict:
    """Decide about one open call. Pure.

    Args:
        spec: what carries out the tool, as of the version that the task began with, in this process; None when nothing does.
        arguments: the JSON text the model wrote.
    """
    tool = setup.tool(call.call.tool)
    if tool is not None and tool.asks_person and call.status in ("approved", "denied"):
        return Answer(call.note)
    if call.status == "happened":
        return Answer(f"{call.call.tool} was interrupted, but {call.note}")
    if call.status == "denied" and call.may_have_happened:
        return Refuse(f"{call.call.tool} may or may not have happened and is not done again: {call.note}", "unknown")
    if call.status == "denied":
        return Refuse(f"{call.call.tool} was not run: {call.note}")
    if tool is not None and call.status == "interrupted" and tool.effect not in REPEATABLE:
        return _judge_in_doubt(call, state, setup, tool, spec)
    if tool is None:
        offered = ", ".join(t.name for t in setup.offered(is_compacted=state.is_compacted))
        return Refuse(f"there is no tool {call.call.tool!r}; the tools are {offered or 'none'}")
    # one that may be repeated and cannot be: nobody knows what became of the first time
    refused: Literal["refused", "unknown"] = "unknown" if call.status == "interrupted" and tool.effect != "read" else "refused"
    if spec is None:
        return Refuse(f"{call.call.tool} version {tool.version}, with which this task began, is not here any more; go on without it", refused)
    problem = arguments_problem(spec, arguments)
    if problem is not None:
        return Refuse(problem, refused)
    if tool.calls_max is not None and not call.starts and state.started.count(call.call.tool) >= tool.calls_max:
        return Refuse(f"{call.call.tool} may be called {tool.calls_max} times in one task, and was")
    if call.status == "approved":
        permit_holds = call.digest == digest_of(state, setup, call)
        return Run(call.approval_id) if permit_holds else Refuse(f"the approval of {call.call.tool} was given for other arguments")
    return _judge_unasked(call, state, setup, tool)


def _judge_unasked(call: Call, state: TaskState, setup: Setup, tool: SetupTool) -> Verdict:
    assert state.task is not None
    if tool.asks_person and call.status == "new":
        return Ask(approval_of(state, call), digest_of(state, setup, call), f"the {setup.kind} agent asks you; approve with your answer as the note")
    if tool.needs_approval and not state.task.auto_approve and call.status == "new":
        return Ask(approval_of(state, call), digest_of(state, setup, call), f"{call.call.tool} needs a person's approval")
    return Run(call.approval_id)


def _judge_in_doubt(call: Call, state: TaskState, setup: Setup, tool: SetupTool, spec: ToolSpec | None) -> Verdict:
    """Decide about a call that ran and has no outcome, whose effect must not happen twice."""
    assert state.task is not None
    name, probed = call.call.tool, call.probed
    spec = spec if state.task.trial is None else None  # a trial touches nothing outside: a person is asked
    if probed is None and tool.has_probe and spec is not None:
        return Probe()
    if probed is not None and probed.verdict == "happened":
        return Found(probed)
    if probed is not None and probed.verdict == "did_not_happen" and call.starts >= STARTS_MAX:
        return Refuse(f"{name} was tried {call.starts} times and never happened{': ' if call.doubt else ''}{call.doubt}", "error")
    if probed is not None and probed.verdict == "did_not_happen" and spec is not None:
        return Run(call.approval_id)
    if call.undoing == "ok":
        return Refuse(f"{name} was interrupted, so whatever it did was taken back; call it again if it is still wanted", "error")
    if tool.effect == "compensable" and call.compensation is not None and call.undoing != "error" and spec is not None:
        return TakeBack(call.compensation)
    why = call.doubt or f"a worker died while {name} was running"
    reason = f"{why}: it may or may not have happened. Look, and say so; if nobody can know, give up"
    return Ask(approval_of(state, call), digest_of(state, setup, call), reason, "outcome")


def arguments_problem(spec: ToolSpec, arguments: str) -> str | None:
    """Return what is wrong with a call's arguments in words a model can act on, or None."""
    try:
        spec.args.model_validate_json(arguments or "{}")
    except ValidationError as error:
        return str(contract_error(f"the arguments of {spec.name} are not valid", error, spec.args.model_json_schema()))
    except ContractError as error:
        return f"the arguments of {spec.name} are not valid: {error}"
    return None


class Ran(msgspec.Struct, frozen=True):
    """What came of one call."""

    is_ok: bool
    output: ToolOutput
    latency_ms: int
    ways: Ways | None = None
    """How it was carried out, when it was."""
    doubt: str = ""
    """Why nobody knows whether it had its effect, which must not happen twice."""


async def run_tool(spec: ToolSpec, context: ToolContext, arguments: str, clock: Clock, health: ToolHealth) -> Ran:
    """Run one authorised call within its time; whatever goes wrong inside comes back as data.

    Raises:
        Unavailable, ConflictError: the log itself failed: the call has no outcome that could be recorded.
    """
    began = clock.monotonic()
    ways: Ways | None = None
    doubt = ""
    if faults.hook is not None:
        faults.hook("before_tool_effect")
    try:
        ways = await carry_out(spec, context, spec.args.model_validate_json(arguments or "{}"), health, clock)
        is_ok, output, content = True, ways.output, shown(ways.output.content)
        if content is not output.content:
            output = replace(output, content=content)
    except (Unavailable, ConflictError):
        raise
    except Exception as error:  # noqa: BLE001  (one of two such places: a tool's bug is a result the model is told about, and is recorded)
        is_ok, output = False, ToolOutput(shown(_said(spec, error)))
        is_known = isinstance(error, ToolFailed) and not isinstance(error, ToolOutcomeUnknown)
        doubt = "" if is_known or spec.effect in REPEATABLE else output.content
    if faults.hook is not None:
        faults.hook("after_tool_effect")
    return Ran(is_ok, output, round((clock.monotonic() - began) * 1000), ways, doubt)


def _said(spec: ToolSpec, error: Exception) -> str:
    """Return an error in words for a model."""
    match error:
        case TimeoutError():
            return f"{spec.name} did not finish within {spec.timeout_s:g} s"
        case ToolFailed() | OrchestrationError():
            return str(error)
        case _:
            return f"{spec.name} failed: {type(error).__name__}: {error}"


def shown(text: str) -> str:
    """Return what a model is shown of a result: clean, and cut with a note when it is too long."""
    text = clean(text)
    if len(text) <= RESULT_CHARS_MAX:
        return text
    return f"{text[:RESULT_CHARS_MAX]}\n[cut: {len(text) - RESULT_CHARS_MAX} of {len(text)} characters left out; ask for a smaller part]"
